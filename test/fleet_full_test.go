package test

import (
	"strings"
	"testing"
	"time"
)

// TestFleetFull: a follower without room for all that is revoked is stale and drops
// nothing; with room it is live.
func TestFleetFull(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 0, "", "")
	config := f.followerConfig(f.address, "", ", max_entries: 10")
	g := startGateway(t, config)
	g.waitReady()
	tokens, good := f.idp.bearers(30), f.idp.bearer()
	f.hub.revokes(tokens[:10]...)
	refusedAt(t, tokens[9].text, g)
	g.says(good, "/", 200, "")
	f.hub.revokes(tokens[10:]...)
	g.answers(5*time.Second, good, "/", 503, "denylist_stale")
	for _, b := range tokens[:10] {
		g.says(b, "/", 401, "revoked")
	}
	for _, b := range tokens[10:] {
		g.says(b, "/", 503, "denylist_stale")
	}
	if n := g.total(); n != 10 {
		t.Errorf("%d entries, want the 10 that fit", n)
	}
	g.write(strings.Replace(config, "max_entries: 10", "max_entries: 1000", 1))
	raised := time.Now()
	if status, answer := g.call("POST", "/reload", ""); status != 200 {
		t.Fatal(status, answer)
	}
	g.answers(20*time.Second, good, "/", 200, "")
	t.Logf("live %v after the limit was raised", time.Since(raised))
	for _, b := range tokens {
		g.says(b, "/", 401, "revoked")
	}
}
