package test

import (
	"sync"
	"testing"
	"time"
)

// cutOff bounds how long a revoked token may pass at a gateway that may have been
// cut off from its hub; soon, at one that was not.
const (
	cutOff = fleetLease + 2*time.Second
	soon   = time.Second
)

// Once a revocation is answered, a connected fleet refuses the token.
func TestFleetHistory(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 2, "", "")
	tokens := f.idp.bearers(60)
	at, all := watch(t, tokens, f.hub), watch(t, tokens, f.gateways...)
	for _, b := range tokens[:50] {
		all.sending(b)
		if !at.revoke(f.hub, b) {
			t.Fatal("the hub took no revocation")
		}
		all.taken(b)
	}
	refusedAt(t, tokens[49].text, f.gateways...)
	at.check(0)
	all.check(soon)
}

// TestFleetHubKilled kills the hub while tokens are revoked through it. Whoever
// followed it is stale within a lease and refuses with 503 where the route says
// deny; the hub comes back, and they are live. What was answered is enforced.
func TestFleetHubKilled(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 2, "", "")
	tokens := f.idp.bearers(600)
	good := f.idp.bearer()
	h := watch(t, append(tokens, good), f.gateways...)
	gone := make(chan struct{})
	var operator sync.WaitGroup
	next := 0
	operator.Go(func() {
		for ; next < 400; next++ {
			select {
			case <-gone:
				return
			default:
				h.revoke(f.hub, tokens[next])
			}
		}
	})
	refusedAt(t, tokens[50].text, f.gateways...)
	f.hub.kill()
	killed := time.Now()
	close(gone)
	operator.Wait()
	t.Logf("%d revocations were sent until the hub was killed", next)
	for i, g := range f.gateways {
		g.answers(fleetLease+3*time.Second, good, "/", 503, "denylist_stale")
		if after := h.last(i).Sub(killed); after > fleetLease+time.Second {
			t.Errorf("a request passed %v after the hub was killed", after)
		} else {
			t.Logf("the last request passed %v after the hub was killed (lease %v)", after, fleetLease)
		}
		g.says(good, "/open/", 200, "")
		g.says(tokens[5], "/open/", 401, "revoked")
	}
	f.hub.start()
	back := time.Now()
	for _, g := range f.gateways {
		g.answers(5*time.Second, good, "/", 200, "")
		t.Logf("live %v after the hub was back", time.Since(back))
	}
	for _, b := range tokens[400:450] {
		if !h.revoke(f.hub, b) {
			t.Fatal("the hub took no revocation after its return")
		}
	}
	refusedAt(t, tokens[449].text, f.gateways...)
	refusedAt(t, tokens[0].text, f.gateways...)
	h.check(cutOff)
}
