package test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"durward/denylist"
)

// A gateway that writes and is killed while it does has lost nothing that it
// answered: what the log has not got is in its journal.
func TestEngineWriterKilled(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 3)
		writer, others := f.gateways[0], f.gateways[1:]
		tokens := f.idp.bearers(2000)
		h := watch(t, tokens, others...)
		answered := make(chan int, len(tokens))
		go func() {
			defer close(answered)
			for i := 0; i < len(tokens) && h.revoke(writer, tokens[i:i+4]...); i += 4 {
				answered <- i
			}
		}()
		for range 20 {
			<-answered
		}
		writer.kill()
		last := 0
		for i := range answered {
			last = i
		}
		if last+4 >= len(tokens) {
			t.Fatal("it was done before it was killed")
		}
		refusedAt(t, tokens[last].text, others...)
		// And so it is where the engine was away.
		e.stop()
		more := f.idp.bearers(10)
		writer.start()
		for _, b := range more {
			if scope := writer.revokes(b); scope != "local" {
				t.Errorf("revoked without an engine: scope %q", scope)
			}
		}
		writer.kill()
		e.start()
		f.live(10*time.Second, others...)
		writer.start()
		writer.waitReady()
		for _, b := range append(more, tokens[:last+4]...) {
			for _, g := range others {
				g.answers(10*time.Second, b, "/", 401, "revoked")
			}
		}
		h.check(fleetLease + 2*time.Second)
	})
}

// A gateway that hardly gets to run is late or says that it does not know, and keeps
// nobody else from anything.
func TestEngineSlowGateway(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 3)
		slow := f.late()
		tokens := f.idp.bearers(200)
		h := watch(t, tokens, append(slices.Clone(f.gateways), slow)...)
		revokes := func(tokens []bearer) string {
			before := delays(t, f.gateways)
			for i := range tokens {
				if !h.revoke(f.gateways[i%3], tokens[i]) {
					t.Error("not revoked")
				}
			}
			refusedAt(t, tokens[len(tokens)-1].text, f.gateways...)
			after := delays(t, f.gateways)
			for le, n := range before {
				after[le] -= n
			}
			return fmt.Sprintf("p50 %.1f, p99 %.1f ms", 1000*quantile(after, .5), 1000*quantile(after, .99))
		}
		alone := revokes(tokens[:80])
		done := make(chan struct{})
		var strain sync.WaitGroup
		strain.Go(func() { // a tenth of the time is its own
			defer slow.cmd.Process.Signal(syscall.SIGCONT)
			for {
				slow.cmd.Process.Signal(syscall.SIGSTOP)
				select {
				case <-done:
					return
				case <-time.After(90 * time.Millisecond):
				}
				slow.cmd.Process.Signal(syscall.SIGCONT)
				time.Sleep(10 * time.Millisecond) // what is slow is slow for a time
			}
		})
		beside := revokes(tokens[80:160])
		// It is in step, if late, all the same.
		slow.answers(10*time.Second, tokens[159], "/", 401, "revoked")
		close(done)
		strain.Wait()
		t.Logf("made -> enforced at the others: %s before, %s beside a slow one", alone, beside)
		f.live(10*time.Second, append(slices.Clone(f.gateways), slow)...)
		h.check(fleetLease + 2*time.Second)
	})
}

// A way to the engine on which everything takes half a second, and one piece in a
// hundred a whole one, makes a gateway late, and never stale.
func TestEngineSlowWay(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 2)
		w := newWire(t, e.address())
		w.lag(500 * time.Millisecond)
		far := engineFleet{engine: &engine{t: t, feed: e.feed}, idp: f.idp, app: f.app, named: 100}
		far.through(t, w)
		g := far.begin(true)
		g.waitReadyFor(30 * time.Second)
		good, tokens := f.idp.bearer(), f.idp.bearers(8)
		stale, done := 0, make(chan struct{})
		var asking sync.WaitGroup
		asking.Go(func() {
			for tick := time.NewTicker(20 * time.Millisecond); ; {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				if status, _ := g.status(good.text, "/"); status != 200 {
					stale++
				}
			}
		})
		h := watch(t, tokens, f.gateways[0], f.gateways[1], g)
		var took []time.Duration
		for i, b := range tokens {
			began := time.Now()
			if !h.revoke(f.gateways[i%2], b) {
				t.Error("not revoked")
			}
			g.answers(10*time.Second, b, "/", 401, "revoked")
			took = append(took, time.Since(began))
		}
		close(done)
		asking.Wait()
		slices.Sort(took)
		t.Logf("asked for -> enforced at its end: p50 %v, longest %v", took[len(took)/2], took[len(took)-1])
		if stale > 0 {
			t.Errorf("%d requests were refused there", stale)
		}
		// It writes by that way, too.
		mine := f.idp.bearer()
		if scope := g.revokes(mine); scope != "fleet" {
			t.Errorf("revoked there: scope %q", scope)
		}
		refusedAt(t, mine.text, f.gateways...)
		h.check(fleetLease + 2*time.Second)
	})
}

// What is said by a gateway whose clock is off makes nobody believe that it knows
// everything for longer than the lease, however far ahead it dates its signs of
// life; those that it dates too far back make nobody believe anything, and the log
// says that clocks are apart.
func TestEngineClocks(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
		g := f.begin(false)
		f.init(g)
		good := f.idp.bearer()
		for _, c := range []struct {
			off    time.Duration
			status int
		}{{0, 200}, {-10 * time.Minute, 503}, {10 * time.Minute, 200}} {
			quiet := f.signs(fmt.Sprintf("clock%d", int(c.off.Minutes())), c.off)
			g.answers(10*time.Second, good, "/", c.status, map[int]string{200: "", 503: "denylist_stale"}[c.status])
			if c.off < 0 {
				eventually(t, 5*time.Second, "it says that clocks are apart", func() bool { return strings.Contains(g.log.String(), "clocks are apart") })
			}
			quiet()
			g.answers(fleetLease+3*time.Second, good, "/", 503, "denylist_stale")
		}
	})
}

// signs gives signs of life, by a clock that is off, until it is told to be quiet.
func (f *engineFleet) signs(source string, off time.Duration) (quiet func()) {
	done := make(chan struct{})
	var saying sync.WaitGroup
	saying.Go(func() {
		log := denylist.NewLog()
		writer := denylist.NewWriter(log, nil, denylist.Head{Source: source}, false, time.Now().Add(off))
		var sent []denylist.Head
		for tick := time.NewTicker(300 * time.Millisecond); ; {
			writer.Beat(time.Now().Add(off))
			next, _, _ := log.Read(sent, 1<<20)
			for _, data := range slices.Concat(next.Records, next.Beats) {
				f.append(string(data))
			}
			sent = next.Next
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(done)
		saying.Wait()
	}
}

// BenchmarkEngineBurst revokes a million tokens within ten seconds at one of three
// gateways, if the machine carries as many, and reports when all of them enforce all
// of it, how long requests at another one took meanwhile and before, and how long
// the garbage collector stopped a gateway at most.
func BenchmarkEngineBurst(b *testing.B) {
	for name, begin := range map[string]func(testing.TB) *engine{"nats": newNATS, "redis": newRedis} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				burst(b, begin(b))
			}
		})
	}
}

func burst(b *testing.B, e *engine) {
	const n, each, within = 1_000_000, 1000, 10 * time.Second
	f := startEngineFleet(b, e, 3)
	good, last := f.idp.bearer(), f.idp.bearer()
	var mu sync.Mutex
	var took []time.Duration
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			began := time.Now()
			if status, reason := f.gateways[2].status(good.text, "/"); status != 200 {
				b.Errorf("a good token: %d %s", status, reason)
			}
			mu.Lock()
			took = append(took, time.Since(began))
			mu.Unlock()
		}
	})
	p99 := func() float64 {
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(took)
		d := took[len(took)*99/100]
		took = nil
		return float64(d.Microseconds()) / 1000
	}
	eventually(b, 10*time.Second, "some requests", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(took) > 1000
	})
	b.ReportMetric(p99(), "p99-ms-before")
	began := time.Now()
	post := make(chan int)
	for range 4 {
		work.Go(func() {
			for i := range post {
				var lines strings.Builder
				for j := i; j < i+each; j++ {
					fmt.Fprintf(&lines, "{\"jti\":\"burst-%d\"}\n", j)
				}
				if status, answer := f.gateways[0].call("POST", "/revocations", lines.String()); status != 200 {
					b.Errorf("%d %.200s", status, answer)
				}
			}
		})
	}
	tick := time.NewTicker(within / (n / each))
	for i := 0; i < n; i += each {
		<-tick.C
		post <- i
	}
	close(post)
	tick.Stop()
	f.gateways[0].revokes(last)
	b.ReportMetric(time.Since(began).Seconds(), "s-answered")
	for _, g := range f.gateways {
		g.answers(time.Minute, last, "/", 401, "revoked")
		for range 100 {
			if _, text := g.call("GET", fmt.Sprintf("/revocations/check?iss=%s&jti=burst-%d", url.QueryEscape(f.idp.URL), rand.IntN(n)), ""); !strings.Contains(text, "true") {
				b.Fatalf("one is not held: %s", text)
			}
		}
	}
	b.ReportMetric(time.Since(began).Seconds(), "s-enforced")
	b.ReportMetric(p99(), "p99-ms-meanwhile")
	close(done)
	work.Wait()
	longest := 0.0
	for _, g := range f.gateways {
		for line := range strings.Lines(send(b, "GET", g.admin+"/metrics", "").Body) {
			if rest, ok := strings.CutPrefix(line, `go_gc_duration_seconds{quantile="1"} `); ok {
				var s float64
				fmt.Sscan(rest, &s)
				longest = max(longest, s)
			}
		}
		g.stop()
	}
	b.ReportMetric(1000*longest, "gc-ms-longest")
}

// away is for how long an engine is away at least: DURWARD_AWAY, to see what a
// longer time does.
func away(t *testing.T) time.Duration {
	text := os.Getenv("DURWARD_AWAY")
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("DURWARD_AWAY: %v", err)
	}
	return d
}
