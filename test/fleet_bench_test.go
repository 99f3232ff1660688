package test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkFleet makes 500 revocations a second for five seconds through the
// operators' interface of a hub with three gateways behind it, if its disk keeps up
// with a write for each, and reports how long they took from their making to their
// enforcement at the gateways: as these count it themselves, for all records, and as
// clients see it, for some.
func BenchmarkFleet(b *testing.B) {
	b.Run("one by one", func(b *testing.B) { measure(b, 1) })
	b.Run("ten at once", func(b *testing.B) { measure(b, 10) })
}

// measure posts this many lines at once.
func measure(b *testing.B, lines int) {
	const rate, seconds, sample = 500, 5, 50
	for b.Loop() {
		f := startFleet(b, 3, "", "")
		tokens := f.idp.bearers(rate * seconds)
		before := delays(b, f.gateways)
		var mu sync.Mutex
		var seen []time.Duration
		var work, watchers sync.WaitGroup
		post := make(chan int)
		for range 16 {
			work.Go(func() {
				for i := range post {
					made := time.Now()
					if i%sample == 0 { // whoever asks now asks until it is refused
						for _, g := range f.gateways {
							watchers.Go(func() {
								for {
									asked := time.Now()
									if status, _ := g.status(tokens[i].text, "/"); status == 401 {
										mu.Lock()
										seen = append(seen, max(0, asked.Sub(made)))
										mu.Unlock()
										return
									}
									if time.Since(made) > 10*time.Second {
										b.Errorf("a token is not refused after 10 s")
										return
									}
								}
							})
						}
					}
					f.hub.revokes(tokens[i : i+lines]...)
				}
			})
		}
		began := time.Now()
		tick := time.NewTicker(time.Second / rate * time.Duration(lines))
		for i := 0; i < len(tokens); i += lines {
			<-tick.C
			post <- i
		}
		close(post)
		work.Wait()
		took := time.Since(began)
		tick.Stop()
		watchers.Wait()
		refusedAt(b, tokens[len(tokens)-1].text, f.gateways...)
		after := delays(b, f.gateways)
		for le, n := range before {
			after[le] -= n
		}
		total := after[slices.Max(slices.Collect(maps.Keys(after)))]
		text := fmt.Sprintf("%d records at 3 gateways, %.0f revocations/s:", int(total), float64(len(tokens))/took.Seconds())
		for _, le := range slices.Sorted(maps.Keys(after)) {
			text += fmt.Sprintf(" within %gms %.2f%%", 1000*le, 100*after[le]/total)
		}
		b.Log(text)
		slices.Sort(seen)
		b.ReportMetric(1000*quantile(after, .5), "p50-ms")
		b.ReportMetric(1000*quantile(after, .99), "p99-ms")
		b.ReportMetric(float64(seen[len(seen)/2].Microseconds())/1000, "seen-p50-ms")
		b.ReportMetric(float64(seen[len(seen)*99/100].Microseconds())/1000, "seen-p99-ms")
		b.ReportMetric(float64(len(tokens))/took.Seconds(), "revocations/s")
		for _, g := range append(f.gateways, f.hub) {
			g.stop()
		}
	}
}

// delays is the sum of the gateways' histograms of the time from a record's making
// to its enforcement: how many took at most so many seconds.
func delays(t testing.TB, gateways []*gateway) map[float64]float64 {
	sum := map[float64]float64{}
	for _, g := range gateways {
		for line := range strings.Lines(send(t, "GET", g.admin+"/metrics", "").Body) {
			rest, ok := strings.CutPrefix(line, `durward_denylist_apply_delay_seconds_bucket{le="`)
			if !ok {
				continue
			}
			bound, count, _ := strings.Cut(rest, `"} `)
			le, err := strconv.ParseFloat(bound, 64)
			n, err2 := strconv.ParseFloat(strings.TrimSpace(count), 64)
			if err != nil || err2 != nil {
				t.Fatalf("not a bucket: %s", line)
			}
			sum[le] += n
		}
	}
	return sum
}

// quantile is interpolated inside the bucket, as Prometheus' histogram_quantile does.
func quantile(buckets map[float64]float64, q float64) float64 {
	bounds := slices.Sorted(maps.Keys(buckets))
	rank := q * buckets[bounds[len(bounds)-1]]
	lower, below := 0.0, 0.0
	for _, le := range bounds[:len(bounds)-1] {
		if n := buckets[le]; n >= rank && n > below {
			return lower + (le-lower)*(rank-below)/(n-below)
		}
		lower, below = le, buckets[le]
	}
	return lower
}
