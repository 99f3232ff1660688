package test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"durward/denylist"
	"durward/denylist/natsfeed"
	"durward/denylist/redisfeed"
	"durward/token"
)

// BenchmarkEngine makes up to 1,000 revocations a second for five seconds at one of
// 16 gateways on one engine, if the machine carries as many, and reports how long
// they took from their making to their enforcement, as all gateways count it
// themselves; beside it, in the same run and at the same rate, how long a message of
// the same size takes through the bare engine, from its writing to one reader.
func BenchmarkEngine(b *testing.B) {
	for name, begin := range map[string]func(testing.TB) *engine{"nats": newNATS, "redis": newRedis} {
		for _, c := range []struct{ gateways, rate, lines int }{{3, 500, 1}, {16, 250, 1}, {16, 1000, 10}, {16, 1000, 50}} {
			b.Run(fmt.Sprintf("%s/%d gateways/%d a second/%d at once", name, c.gateways, c.rate, c.lines), func(b *testing.B) {
				for b.Loop() {
					measureEngine(b, begin(b), c.gateways, c.rate, c.lines)
				}
			})
		}
	}
}

func measureEngine(b *testing.B, e *engine, gateways, rate, lines int) {
	const seconds = 5
	f := startEngineFleet(b, e, gateways)
	bare := e.bare(b, 200, rate/lines)
	tokens := f.idp.bearers(rate * seconds)
	before := delays(b, f.gateways)
	var work sync.WaitGroup
	post := make(chan int)
	for range 16 {
		work.Go(func() {
			for i := range post {
				f.gateways[0].revokes(tokens[i : i+lines]...)
			}
		})
	}
	began := time.Now()
	tick := time.NewTicker(time.Second / time.Duration(rate) * time.Duration(lines))
	for i := 0; i < len(tokens); i += lines {
		<-tick.C
		post <- i
	}
	close(post)
	work.Wait()
	took := time.Since(began)
	tick.Stop()
	refusedAt(b, tokens[len(tokens)-1].text, f.gateways...)
	after := delays(b, f.gateways)
	for le, n := range before {
		after[le] -= n
	}
	total := after[slices.Max(slices.Collect(maps.Keys(after)))]
	text := fmt.Sprintf("%d records at %d gateways, %.0f revocations/s:", int(total), gateways, float64(len(tokens))/took.Seconds())
	for _, le := range slices.Sorted(maps.Keys(after)) {
		text += fmt.Sprintf(" within %gms %.2f%%", 1000*le, 100*after[le]/total)
	}
	b.Log(text)
	p50 := 1000 * quantile(after, .5)
	b.ReportMetric(p50, "p50-ms")
	b.ReportMetric(1000*quantile(after, .99), "p99-ms")
	b.ReportMetric(float64(bare[len(bare)/2].Microseconds())/1000, "bare-p50-ms")
	b.ReportMetric(float64(bare[len(bare)*99/100].Microseconds())/1000, "bare-p99-ms")
	b.ReportMetric(p50/(float64(bare[len(bare)/2].Microseconds())/1000), "p50/bare")
	b.ReportMetric(float64(len(tokens))/took.Seconds(), "revocations/s")
	for _, g := range f.gateways {
		g.stop()
	}
}

// open is a client of the engine.
func (e *engine) open(b *testing.B) denylist.Engine {
	b.Helper()
	var engine denylist.Engine
	var err error
	if strings.HasPrefix(e.feed, "nats") {
		engine, err = natsfeed.Open(natsfeed.Config{URL: "nats://" + e.address(), Stream: engineStream})
	} else {
		engine, err = redisfeed.Open(redisfeed.Config{URL: "redis://" + e.address() + "/0", Stream: "revocations"})
	}
	if err != nil {
		b.Fatal(err)
	}
	return engine
}

// bare is how long n messages took through the engine, each from before it was
// written to when it was read, sorted.
func (e *engine) bare(b *testing.B, n, rate int) []time.Duration {
	b.Helper()
	reader, writer := e.open(b), e.open(b)
	defer reader.Close()
	defer writer.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var ends denylist.Ends
	eventually(b, 10*time.Second, "the engine answers", func() (ok bool) {
		var err error
		ends, err = reader.Ends(ctx)
		return err == nil
	})
	var mu sync.Mutex
	sent := map[string]time.Time{}
	var took []time.Duration
	done := make(chan struct{})
	go func() {
		defer close(done)
		reader.Read(ctx, ends.Last, func(_ uint64, data []byte) error {
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			if at, ok := sent[string(data)]; ok {
				if took = append(took, now.Sub(at)); len(took) == n {
					return io.EOF
				}
			}
			return nil
		})
	}()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for i := range n {
		<-tick.C
		data := fmt.Sprintf("%0250d", i)
		mu.Lock()
		sent[data] = time.Now()
		mu.Unlock()
		if err := writer.Append(ctx, []byte(data), false); err != nil {
			b.Fatal(err)
		}
	}
	<-done
	if len(took) != n {
		b.Fatalf("%d of %d messages came through the bare engine", len(took), n)
	}
	slices.Sort(took)
	return took
}

// BenchmarkEngineCold is how long a gateway takes that knows nothing, from its start
// to its being in step with a log of so many revocations (DURWARD_COLD; default a
// million): from the log alone, and from the snapshot that the first one left.
func BenchmarkEngineCold(b *testing.B) {
	n := 1_000_000
	if text := os.Getenv("DURWARD_COLD"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			b.Fatal(err)
		}
	}
	for name, begin := range map[string]func(testing.TB) *engine{"nats": newNATS, "redis": newRedis} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				coldEngine(b, begin(b), n)
			}
		})
	}
}

func coldEngine(b *testing.B, e *engine, n int) {
	f := &engineFleet{engine: e, idp: newIssuer(b), app: newUpstream(b)}
	large := func() string { return strings.Replace(f.config(true), "lease:", "max_entries: 20_000_000, lease:", 1) }
	g := &gateway{t: b, dir: b.TempDir()}
	g.config = filepath.Join(g.dir, "durward.yaml")
	g.write(large())
	f.init(g)
	engine := e.open(b)
	defer engine.Close()
	ctx := context.Background()
	records := denylist.NewLog()
	now := time.Now()
	writer := denylist.NewWriter(records, nil, denylist.Head{Source: "filler"}, false, now)
	var sent []denylist.Head
	bytes := 0
	for i := 0; i < n; {
		rs := make([]denylist.Revocation, 0, denylist.MaxOps)
		for ; i < n && len(rs) < cap(rs); i++ {
			rs = append(rs, denylist.Revocation{Issuer: f.idp.URL, Kind: token.KindToken, Value: fmt.Sprintf("%036d", i)})
		}
		writer.Publish(rs, now)
		next, _, ok := records.Read(sent, 1<<30)
		if !ok {
			b.Fatal("the log forgot")
		}
		for _, raw := range next.Records {
			bytes += len(raw)
			if err := engine.Append(ctx, raw, false); err != nil {
				b.Fatal(err)
			}
		}
		sent = next.Next
	}
	inStep := func(g *gateway) time.Duration {
		began := time.Now()
		g.start()
		g.waitReadyFor(3 * time.Minute)
		took := time.Since(began)
		if _, text := g.call("GET", fmt.Sprintf("/revocations/check?iss=%s&jti=%036d", url.QueryEscape(f.idp.URL), n-1), ""); !strings.Contains(text, "true") {
			b.Fatalf("the last revocation is not held: %s", text)
		}
		return took
	}
	b.ReportMetric(inStep(g).Seconds(), "s-from-log")
	b.ReportMetric(float64(bytes)/1e6, "MB-of-log")
	eventually(b, 3*time.Minute, "a snapshot is left", e.saved)
	late := &gateway{t: b, dir: b.TempDir()}
	late.config = filepath.Join(late.dir, "durward.yaml")
	late.write(large())
	b.ReportMetric(inStep(late).Seconds(), "s-from-snapshot")
	g.stop()
	late.stop()
}
