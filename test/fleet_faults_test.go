package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// relayed is a relay of the fleet's hub that forwards, and where it is followed.
func (f *fleet) relayed(t *testing.T, hub, more string) (relay *gateway, address string) {
	t.Helper()
	address = freePort(t)
	relay = startGateway(t, f.followerConfig(hub, ", forward_revocations: true", fmt.Sprintf(", serve_feed: {listen: %q, token_file: %q}", address, f.tokenFile)+more))
	relay.waitReady()
	return relay, address
}

// TestFleetScope revokes twice behind a relay that is cut off from the hub: that
// the relay knows it from the first time does not mean that the fleet does.
func TestFleetScope(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 1, "", "")
	wire := newWire(t, f.address)
	_, address := f.relayed(t, wire.Addr().String(), "")
	here := startGateway(t, f.followerConfig(address, ", forward_revocations: true", ""))
	here.waitReady()
	b := f.idp.bearer()
	wire.set(true)
	for range 2 {
		if scope := here.revokes(b); scope != "local" {
			t.Errorf("scope %q, and the hub never heard of it", scope)
		}
	}
	f.gateways[0].says(b, "/", 200, "")
	wire.set(false)
	refusedAt(t, b.text, f.hub, f.gateways[0])
	eventually(t, 5*time.Second, "scope: fleet", func() bool { return here.revokes(b) == "fleet" })
}

// TestFleetForwardsBeside forwards past a line that the hub will never take.
func TestFleetForwardsBeside(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 0, "", "")
	stranger := newIssuer(t)
	config := strings.Replace(f.followerConfig(f.address, ", forward_revocations: true", ""), "issuers: [", fmt.Sprintf("issuers: [{name: two, issuer: %q, audiences: [app]}, ", stranger.URL), 1)
	here := startGateway(t, strings.ReplaceAll(config, "upstream:", "issuers: [corp, two], upstream:"))
	here.waitReady()
	if status, answer := here.call("POST", "/revocations", fmt.Sprintf(`{"iss":%q,"jti":"a"}`, stranger.URL)); status != 200 || !strings.Contains(answer, `"local"`) || !strings.Contains(answer, "not a configured issuer") {
		t.Errorf("%d %s", status, answer)
	}
	f.hub.kill()
	var lines strings.Builder
	for i := range 1200 {
		fmt.Fprintf(&lines, "{\"iss\":%q,\"jti\":\"p-%d\"}\n", f.idp.URL, i)
	}
	if status, answer := here.call("POST", "/revocations", lines.String()); status != 200 {
		t.Fatal(status, answer)
	}
	b := f.idp.bearer()
	if status, answer := here.call("POST", "/revocations", fmt.Sprintf(`{"iss":%q,"jti":%q}`, f.idp.URL, b.jti)); status != 200 {
		t.Fatal(status, answer)
	}
	f.hub.start()
	refusedAt(t, b.text, f.hub)
	eventually(t, 5*time.Second, "the hub holds all", func() bool { return f.hub.total() >= 1201 })
	if status := send(t, "GET", here.admin+"/status", "").Body; !strings.Contains(status, "the hub refused") {
		t.Errorf("/status does not tell what the hub refused: %s", status)
	}
}

// TestFleetHubWiped loses all that the hub knew: who forwarded to it tells it again,
// so that those who come later know it too.
func TestFleetHubWiped(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 0, "", "")
	here := startGateway(t, f.followerConfig(f.address, ", forward_revocations: true", ""))
	here.waitReady()
	b, good := f.idp.bearer(), f.idp.bearer()
	if scope := here.revokes(b); scope != "fleet" {
		t.Fatalf("scope %q", scope)
	}
	f.hub.kill()
	if err := os.RemoveAll(filepath.Join(f.hub.dir, "durward-state")); err != nil {
		t.Fatal(err)
	}
	f.hub.start()
	here.answers(10*time.Second, good, "/", 200, "")
	refusedAt(t, b.text, here, f.hub)
	late := startGateway(t, f.followerConfig(f.address, "", ""))
	late.waitReady()
	refusedAt(t, b.text, late)
	late.answers(5*time.Second, good, "/", 200, "")
}

// TestFleetRefusedReload reloads a relay with a feed too many: what the refused
// configuration brought must not be waited for behind it.
func TestFleetRefusedReload(t *testing.T) {
	t.Parallel()
	f, second := startFleet(t, 0, "", ""), startFleet(t, 0, "", "")
	address := freePort(t)
	config := f.followerConfig(f.address, "", fmt.Sprintf(", serve_feed: {listen: %q, token_file: %q}", address, f.tokenFile))
	relay := startGateway(t, config)
	relay.waitReady()
	g := startGateway(t, f.followerConfig(address, "", ""))
	g.waitReady()
	good, b := f.idp.bearer(), f.idp.bearer()
	g.answers(5*time.Second, good, "/", 200, "")
	relay.write(strings.Replace(config, "feeds: [", fmt.Sprintf("feeds: [{name: second, http: {urls: [\"http://%s\"], token_file: %q}}, {name: third, http: {urls: [\"http://127.0.0.1:9\"]}}, ", second.address, f.tokenFile), 1))
	if status, answer := relay.call("POST", "/reload", ""); status != 422 {
		t.Fatal(status, answer)
	}
	relay.write(config)
	f.hub.revokes(b)
	refusedAt(t, b.text, relay, g)
	for until := time.Now().Add(2 * fleetLease); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if status, reason := g.status(good.text, "/"); status != 200 {
			t.Fatalf("behind a relay that refused a reload: %d %s", status, reason)
		}
	}
}

// TestFleetRelayGoes ends a relay through which something was revoked: it was for
// the hub to publish, so nobody waits for the relay.
func TestFleetRelayGoes(t *testing.T) {
	t.Parallel()
	private, public := sourceKey(t)
	relayPrivate, relayPublic := sourceKey(t)
	keys := fmt.Sprintf(", source_keys: {hub: %q, relay: %q}", public, relayPublic)
	f := startFleet(t, 0, fmt.Sprintf(", signing_key_file: %q", private), "")
	relay, address := f.relayed(t, f.address, fmt.Sprintf(", signing_key_file: %q", relayPrivate)+keys)
	g := startGateway(t, f.followerConfig(f.address+","+address, "", keys))
	g.waitReady()
	good, b := f.idp.bearer(), f.idp.bearer()
	if scope := relay.revokes(b); scope != "fleet" {
		t.Errorf("scope %q", scope)
	}
	refusedAt(t, b.text, g, relay, f.hub)
	relay.kill()
	for until := time.Now().Add(2 * fleetLease); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if status, reason := g.status(good.text, "/"); status != 200 {
			t.Fatalf("without the relay: %d %s", status, reason)
		}
	}
}

// TestFleetTokenChanges replaces the hub's token, which followers read again.
func TestFleetTokenChanges(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 1, "", "")
	g, good := f.gateways[0], f.idp.bearer()
	if err := os.WriteFile(f.tokenFile, []byte("another-token-for-the-hub\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.hub.stop()
	g.answers(fleetLease+3*time.Second, good, "/", 503, "denylist_stale")
	f.hub.start()
	g.answers(10*time.Second, good, "/", 200, "")
}
