package test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestFloodOfForgeries: however many tokens with forged signatures come, each
// another one, whoever's token is known is answered, and none of the forgeries
// passes or takes a known token's place in the cache.
//
// It does not run beside other tests, which would share the machine with the flood.
func TestFloodOfForgeries(t *testing.T) {
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, withIssuers(app, "", corp(idp)))
	known := make([]string, 20)
	for i := range known {
		known[i] = bearing(idp.token(jwt.MapClaims{"sub": fmt.Sprint("user-", i)}))
	}
	const hits = "durward_token_cache_hits_total"
	eventually(t, 10*time.Second, "all known tokens are cached", func() bool {
		before := metric(t, g, hits)
		for _, header := range known {
			wantAnswer(t, "before the flood", send(t, "GET", g.url("/"), "", header), 200, "")
		}
		return metric(t, g, hits) == before+float64(len(known))
	})

	const rounds = 15
	measure := func(when string) (times []time.Duration) {
		before := metric(t, g, hits)
		for range rounds {
			for _, header := range known {
				began := time.Now()
				wantAnswer(t, "a known token "+when, send(t, "GET", g.url("/"), "", header), 200, "")
				times = append(times, time.Since(began))
			}
		}
		if n := metric(t, g, hits) - before; n != float64(len(times)) {
			t.Errorf("%s: %v of %d known tokens were found in the cache", when, n, len(times))
		}
		slices.Sort(times)
		return times
	}
	idle := measure("at rest")

	good := strings.Split(idp.token(nil), ".")
	flood := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	var over atomic.Bool
	var forged, refused, turnedAway atomic.Int64
	var clients sync.WaitGroup
	for range 64 {
		clients.Go(func() {
			for signature := make([]byte, 64); !over.Load(); {
				rand.Read(signature)
				req, _ := http.NewRequest("GET", g.url("/"), nil)
				req.Header.Set("Authorization", "Bearer "+strings.Join([]string{good[0], good[1], b64(signature)}, "."))
				forged.Add(1)
				res, err := flood.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
				switch reason := res.Header.Get("Durward-Reason"); {
				case res.StatusCode == 401 && reason == "token_signature":
					refused.Add(1)
				case res.StatusCode == 503 && reason == "overloaded":
					turnedAway.Add(1)
				default:
					t.Errorf("a forgery: %s %s", res.Status, reason)
				}
			}
		})
	}
	eventually(t, 10*time.Second, "the flood runs", func() bool { return refused.Load() > 64 })
	before, began := refused.Load(), time.Now()
	flooded := measure("during the flood")
	rate := float64(refused.Load()-before) / time.Since(began).Seconds()
	over.Store(true)
	clients.Wait()
	p := func(times []time.Duration, percent int) time.Duration {
		return times[len(times)*percent/100].Round(10 * time.Microsecond)
	}
	t.Logf("%d forgeries, %d refused, %d turned away, %.0f a second; a known token takes %v (p50), %v (p99) at rest, and %v, %v during the flood",
		forged.Load(), refused.Load(), turnedAway.Load(), rate, p(idle, 50), p(idle, 99), p(flooded, 50), p(flooded, 99))
	if refused.Load()+turnedAway.Load() != forged.Load() || len(app.requests()) < 2*rounds*len(known) {
		t.Errorf("of %d forgeries %d were refused and %d turned away", forged.Load(), refused.Load(), turnedAway.Load())
	}
	if slowest := flooded[len(flooded)-1]; slowest > 5*time.Second {
		t.Errorf("a known token waited %v", slowest)
	}
	wantAnswer(t, "a new token after the flood", send(t, "GET", g.url("/"), "", bearing(idp.token(nil))), 200, "")
}
