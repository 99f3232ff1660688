package test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const hubToken = "a-token-for-the-hub-of-tests"

// fleetConfig is a gateway's configuration; denylist is the content of that key.
const fleetConfig = `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: %q, audiences: [app]}]
routes:
  - {name: open, path: /open/, upstream: %[2]q, on_stale: allow}
  - {name: app, upstream: %[2]q}
denylist: {%[3]s}
`

// freePort is a port of 127.0.0.1 that nobody listens on. A hub that is restarted
// has to come back where it was.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// tokenFile holds the hub's token.
func tokenFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hub.token")
	if err := os.WriteFile(path, []byte(hubToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A fleet is a hub and gateways that follow it.
type fleet struct {
	idp       *issuer
	app       *upstream
	hub       *gateway
	address   string // of the hub's feed
	gateways  []*gateway
	tokenFile string
}

// startFleet starts a hub and n gateways, and waits until all are ready. hub and
// follower are more of their denylist's configuration.
func startFleet(t *testing.T, n int, hub, follower string) *fleet {
	t.Helper()
	f := &fleet{idp: newIssuer(t), app: newUpstream(t), address: freePort(t), tokenFile: tokenFile(t)}
	f.hub = startGateway(t, fmt.Sprintf(fleetConfig, f.idp.URL, f.app.URL, fmt.Sprintf("serve_feed: {listen: %q, token_file: %q}", f.address, f.tokenFile)+hub))
	f.hub.waitReady()
	for range n {
		f.gateways = append(f.gateways, startGateway(t, f.followerConfig(f.address, "", follower)))
	}
	for _, g := range f.gateways {
		g.waitReady()
	}
	return f
}

// followerConfig follows the feed at these addresses, separated by commas.
func (f *fleet) followerConfig(addresses, feed, more string) string {
	urls := strings.Split(addresses, ",")
	for i, address := range urls {
		urls[i] = "http://" + address
	}
	return fmt.Sprintf(fleetConfig, f.idp.URL, f.app.URL, fmt.Sprintf("lease: 2s, feeds: [{name: hub, http: {urls: [%s], token_file: %q}%s}]%s", strings.Join(urls, ", "), f.tokenFile, feed, more))
}

// status is what the gateway says to a token.
func (g *gateway) status(token, path string) (int, string) {
	a, err := attempt("GET", g.url(path), "", "Authorization: Bearer "+token)
	if err != nil {
		return 0, err.Error()
	}
	return a.StatusCode, a.reason()
}

// refusedAt waits until every gateway refuses the token as revoked.
func refusedAt(t *testing.T, token string, gateways ...*gateway) {
	t.Helper()
	for i, g := range gateways {
		eventually(t, 5*time.Second, fmt.Sprintf("gateway %d refuses the token", i), func() bool {
			status, reason := g.status(token, "/")
			return status == 401 && reason == "revoked"
		})
	}
}

// A revocation through the hub's operators' interface ends the token everywhere;
// each kind of rule does.
func TestFleet(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 2, "", "")
	all := append([]*gateway{f.hub}, f.gateways...)
	good := f.idp.token(jwt.MapClaims{"sub": "bystander", "sid": "other", "client_id": "other"})
	for _, rule := range []string{`{"jti":%q}`, `{"sid":%q}`, `{"sub":%q}`, `{"client":%q}`} {
		id := fmt.Sprintf("id-%d", jtis.Add(1))
		token := f.idp.token(jwt.MapClaims{"jti": id, "sid": id, "sub": id, "client_id": id})
		for _, g := range all {
			if status, reason := g.status(token, "/"); status != 200 {
				t.Fatalf("before: %d %s", status, reason)
			}
		}
		status, answer := f.hub.call("POST", "/revocations", fmt.Sprintf(rule, id))
		var said struct{ Scope string }
		if json.Unmarshal([]byte(answer), &said); status != 200 || said.Scope != "fleet" {
			t.Fatalf("%d %s", status, answer)
		}
		refusedAt(t, token, all...)
	}
	for _, g := range all {
		if status, reason := g.status(good, "/"); status != 200 {
			t.Errorf("another token: %d %s", status, reason)
		}
	}
}

// A dead hub makes every gateway stale, which refuses with 503 where the route says
// deny; it comes back, and they are live again. What was revoked stays revoked.
func TestFleetLosesItsHub(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 2, "", "")
	revoked, good := f.idp.token(nil), f.idp.token(nil)
	jti := jwt.MapClaims{}
	jwt.NewParser().ParseUnverified(revoked, jti)
	if status, answer := f.hub.call("POST", "/revocations", fmt.Sprintf(`{"jti":%q}`, jti["jti"])); status != 200 {
		t.Fatal(status, answer)
	}
	refusedAt(t, revoked, f.gateways...)
	f.hub.kill()
	killed := time.Now()
	for _, g := range f.gateways {
		eventually(t, 5*time.Second, "stale", func() bool {
			status, reason := g.status(good, "/")
			return status == 503 && reason == "denylist_stale"
		})
		if status, reason := g.status(good, "/open/"); status != 200 {
			t.Errorf("on_stale: allow: %d %s", status, reason)
		}
		if status, reason := g.status(revoked, "/open/"); status != 401 || reason != "revoked" {
			t.Errorf("revoked, on_stale: allow: %d %s", status, reason)
		}
	}
	t.Logf("stale %v after the hub was killed (lease 2s)", time.Since(killed))
	f.hub.start()
	back := time.Now()
	for _, g := range f.gateways {
		eventually(t, 10*time.Second, "live again", func() bool {
			status, _ := g.status(good, "/")
			return status == 200
		})
		if status, reason := g.status(revoked, "/"); status != 401 || reason != "revoked" {
			t.Errorf("after the hub's return: %d %s", status, reason)
		}
	}
	t.Logf("live %v after the hub was back", time.Since(back))
}
