package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startKnowing is a fleet of one follower that holds this many entries and the
// token, which is revoked. It was stopped and has written its snapshot.
func startKnowing(t testing.TB, entries int) (f *fleet, revoked bearer) {
	t.Helper()
	f = startFleet(t, 1, "", "")
	revoked = f.idp.bearer()
	const batch = 50_000
	for from := 0; from < entries; from += batch {
		var lines bytes.Buffer
		for i := range min(batch, entries-from) {
			fmt.Fprintf(&lines, "{\"jti\":\"entry-%d\"}\n", from+i)
		}
		if status, answer := f.hub.call("POST", "/revocations", lines.String()); status != 200 {
			t.Fatalf("%d %.300s", status, answer)
		}
	}
	f.hub.revokes(revoked)
	g := f.gateways[0]
	eventually(t, time.Minute, "the follower holds all", func() bool { return g.total() >= entries+1 })
	g.stop()
	return f, revoked
}

// total is how many entries the gateway holds.
func (g *gateway) total() int {
	g.t.Helper()
	var status struct {
		Denylist struct{ Total int }
	}
	if err := json.Unmarshal([]byte(send(g.t, "GET", g.admin+"/status", "").Body), &status); err != nil {
		g.t.Fatal(err)
	}
	return status.Denylist.Total
}

// TestFleetRestart kills a gateway that knows 20,000 revocations.
func TestFleetRestart(t *testing.T) {
	t.Parallel()
	restart(t, 20_000)
}

// BenchmarkFleetRestart kills one that knows a million.
func BenchmarkFleetRestart(b *testing.B) {
	for b.Loop() {
		enforcing, ready := restart(b, 1_000_000)
		b.ReportMetric(float64(enforcing.Milliseconds()), "enforcing-ms")
		b.ReportMetric(float64(ready.Milliseconds()), "ready-ms")
	}
}

// restart kills a gateway and then its hub, and starts the gateway alone: it must
// enforce what its snapshot knows before it lets anybody in, and let nobody in
// before the hub is back. It returns how long it took until the gateway enforced,
// from its start, and until it was ready, from the hub's.
func restart(t testing.TB, entries int) (enforcing, ready time.Duration) {
	t.Helper()
	const patience = 90 * time.Second
	f, revoked := startKnowing(t, entries)
	g, unsaved, good := f.gateways[0], f.idp.bearer(), f.idp.bearer()
	g.start()
	g.waitReady()
	f.hub.revokes(unsaved)
	refusedAt(t, unsaved.text, g)
	g.kill()
	f.hub.kill()

	began := time.Now()
	g.start()
	g.answers(patience, revoked, "/", 401, "revoked") // its keys come meanwhile
	enforcing = time.Since(began)
	if n := g.total(); n < entries {
		t.Errorf("%d entries are enforced from the snapshot, want %d", n, entries)
	}
	for _, path := range []string{"/", "/open/"} { // on_stale: allow is not for who knows nothing yet
		g.says(revoked, path, 401, "revoked")
		g.says(good, path, 503, "denylist_stale")
		g.says(unsaved, path, 503, "denylist_stale")
	}
	if g.isReady() {
		t.Error("ready without having been in step")
	}
	f.hub.start()
	back := time.Now()
	eventually(t, patience, "ready", g.isReady)
	ready = time.Since(back)
	g.says(good, "/", 200, "")
	g.says(revoked, "/", 401, "revoked")
	g.says(unsaved, "/", 401, "revoked")
	t.Logf("%d entries: enforcing %v after its start, ready %v after the hub's return", entries, enforcing, ready)
	return enforcing, ready
}

// A snapshot of which one bit is not as it was written is not used at all: the
// gateway says so, lets nobody in, and learns everything anew.
func TestFleetBrokenSnapshot(t *testing.T) {
	t.Parallel()
	f, revoked := startKnowing(t, 100)
	g, good := f.gateways[0], f.idp.bearer()
	f.hub.kill()
	path := filepath.Join(g.dir, "durward-state", "denylist.snapshot")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 4
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	g.start()
	if n := g.total(); n != 0 {
		t.Errorf("%d entries were taken from a broken snapshot", n)
	}
	g.answers(5*time.Second, revoked, "/", 503, "denylist_stale")
	g.says(good, "/open/", 503, "denylist_stale")
	if lines := g.log.lines("the snapshot of the denylist cannot be used; what it held and no feed says again is not enforced"); len(lines) != 1 || lines[0]["level"] != "ERROR" {
		t.Errorf("the log has no alarm:\n%s", g.log)
	}
	if text := send(t, "GET", g.admin+"/status", "").Body; !strings.Contains(text, "what the last run knew was lost at the start") {
		t.Errorf("/status does not tell: %s", text)
	}
	f.hub.start()
	g.answers(10*time.Second, good, "/", 200, "")
	g.says(revoked, "/", 401, "revoked")
	if n := g.total(); n < 101 {
		t.Errorf("%d entries, want 101 and the canaries", n)
	}
	// Written anew, it is used.
	g.stop()
	f.hub.kill()
	g.start()
	g.answers(5*time.Second, revoked, "/", 401, "revoked")
}
