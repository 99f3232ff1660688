package test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFleetRollback lets everything that a fleet learns from go back or away: the
// hub's file is emptied, cut in two, deleted and replaced by an older copy; the
// hub's state is replaced by an older copy, and lost. Followers are restarted in
// between. No revoked token passes again, and all are live again each time.
func TestFleetRollback(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "revoked.jsonl")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("")
	f := startFleet(t, 2, fmt.Sprintf(", lease: %v, feeds: [{name: local, file: %q}]", fleetLease, file), "")
	tokens := f.idp.bearers(40)
	good := f.idp.bearer()
	older, text := linesOf(tokens[:10]), linesOf(tokens[:20])
	h := watch(t, append(tokens, good), f.gateways...)
	h.sending(tokens[:20]...)
	put(older)
	refusedAt(t, tokens[9].text, f.gateways...)
	put(text)
	refusedAt(t, tokens[19].text, f.gateways...)
	h.taken(tokens[:20]...)

	// Every step ends with the whole fleet live again and nothing lifted.
	steady := func(what string, revoked ...bearer) {
		t.Helper()
		for _, g := range append(f.gateways, f.hub) {
			g.answers(10*time.Second, good, "/", 200, "")
		}
		for _, g := range f.gateways {
			for _, b := range revoked {
				g.says(b, "/", 401, "revoked")
			}
		}
		if t.Failed() {
			t.Fatalf("after: %s", what)
		}
	}
	again := func(g *gateway) {
		g.stop()
		g.start()
	}
	// Where nothing changes, the next news must have come for the step to be over.
	marker := 20
	news := func() {
		t.Helper()
		b := tokens[marker]
		marker++
		if !h.revoke(f.hub, b) {
			t.Fatal("the hub took no revocation")
		}
		refusedAt(t, b.text, f.gateways...)
	}

	put("")
	news()
	steady("the file was emptied", tokens[:21]...)
	again(f.gateways[0])
	steady("a follower was restarted", tokens[:21]...)
	put(text[:len(text)/2])
	news()
	steady("the file was cut in two", tokens[:22]...)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for _, g := range f.gateways {
		g.answers(10*time.Second, good, "/", 503, "denylist_stale") // the hub does not vouch for what it cannot read
		g.says(tokens[0], "/", 401, "revoked")
	}
	put(older)
	steady("the file came back as an older copy", tokens[:22]...)

	state := filepath.Join(f.hub.dir, "durward-state")
	copied := filepath.Join(t.TempDir(), "older")
	f.hub.stop()
	if err := os.CopyFS(copied, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	f.hub.start()
	steady("the hub was restarted", tokens[:22]...)
	news()
	news()
	f.hub.stop()
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(state, os.DirFS(copied)); err != nil {
		t.Fatal(err)
	}
	again(f.gateways[0]) // without its hub
	f.hub.start()
	steady("the hub's state went back", tokens[:24]...)
	news()
	steady("the hub went on", tokens[:25]...)

	f.hub.stop()
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	f.hub.start()
	again(f.gateways[1])
	steady("the hub's state was lost", tokens[:25]...)
	news()
	steady("the new source went on", tokens[:26]...)
	again(f.gateways[0])
	steady("a follower of the new source was restarted", tokens[:26]...)
	f.gateways[0].kill()
	f.gateways[0].start()
	steady("a follower of the new source was killed", tokens[:26]...)
	h.check(soon)
}
