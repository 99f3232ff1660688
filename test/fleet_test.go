package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
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
listen: %[4]q
issuers: [{name: corp, issuer: %[1]q, audiences: [app]}]
routes:
  - {name: open, path: /open/, upstream: %[2]q, on_stale: allow}
  - {name: app, upstream: %[2]q}
denylist: {%[3]s}
`

// freePort is a port of 127.0.0.1 that nobody listens on. Who is restarted has to
// come back where it was, so it is none of those that outgoing connections get.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.N(22_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// tokenFile holds the hub's token.
func tokenFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hub.token")
	if err := os.WriteFile(path, []byte(hubToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A fleet is a hub and gateways that follow it.
type fleet struct {
	t         testing.TB
	idp       *issuer
	app       *upstream
	hub       *gateway
	address   string // of the hub's feed
	gateways  []*gateway
	tokenFile string
}

// fleetLease is the lease of every gateway that follows a hub here.
const fleetLease = 2 * time.Second

// startFleet starts a hub and n gateways, and waits until all are ready. hub and
// follower are more of their denylist's configuration.
func startFleet(t testing.TB, n int, hub, follower string) *fleet {
	t.Helper()
	f := &fleet{t: t, idp: newIssuer(t), app: newUpstream(t), address: freePort(t), tokenFile: tokenFile(t)}
	f.hub = startGateway(t, f.config(fmt.Sprintf("serve_feed: {listen: %q, token_file: %q}", f.address, f.tokenFile)+hub))
	f.hub.waitReady()
	for range n {
		f.gateways = append(f.gateways, startGateway(t, f.followerConfig(f.address, "", follower)))
	}
	for _, g := range f.gateways {
		g.waitReady()
	}
	return f
}

// config is a gateway of the fleet, at an address that a restart does not change.
func (f *fleet) config(denylist string) string {
	return fmt.Sprintf(fleetConfig, f.idp.URL, f.app.URL, denylist, freePort(f.t))
}

// followerConfig follows the feed at these addresses, separated by commas.
func (f *fleet) followerConfig(addresses, feed, more string) string {
	urls := strings.Split(addresses, ",")
	for i, address := range urls {
		urls[i] = "http://" + address
	}
	return f.config(fmt.Sprintf("lease: %v, feeds: [{name: hub, http: {urls: [%s], token_file: %q}%s}]%s", fleetLease, strings.Join(urls, ", "), f.tokenFile, feed, more))
}

// revokes revokes tokens by their jti, through this gateway, and returns how far it
// says that they are.
func (g *gateway) revokes(tokens ...bearer) (scope string) {
	g.t.Helper()
	status, answer := g.call("POST", "/revocations", linesOf(tokens))
	var said struct{ Scope string }
	if json.Unmarshal([]byte(answer), &said); status != 200 {
		g.t.Fatalf("revoke %d tokens: %d %.300s", len(tokens), status, answer)
	}
	return said.Scope
}

func linesOf(tokens []bearer) string {
	var lines strings.Builder
	for _, b := range tokens {
		fmt.Fprintf(&lines, "{\"jti\":%q}\n", b.jti)
	}
	return lines.String()
}

// A bearer is a token and its jti.
type bearer struct{ jti, text string }

func (i *issuer) bearer() bearer {
	jti := fmt.Sprintf("jti-%d", jtis.Add(1))
	return bearer{jti, i.token(jwt.MapClaims{"jti": jti})}
}

func (i *issuer) bearers(n int) []bearer {
	all := make([]bearer, n)
	for j := range all {
		all[j] = i.bearer()
	}
	return all
}

// answers waits until the gateway says this to a token.
func (g *gateway) answers(within time.Duration, b bearer, path string, status int, reason string) {
	g.t.Helper()
	eventually(g.t, within, fmt.Sprintf("%d %s", status, reason), func() bool {
		s, r := g.status(b.text, path)
		return s == status && r == reason
	})
}

// says fails the test if the gateway does not say this to a token now.
func (g *gateway) says(b bearer, path string, status int, reason string) {
	g.t.Helper()
	if s, r := g.status(b.text, path); s != status || r != reason {
		g.t.Errorf("%s: %d %s, want %d %s", path, s, r, status, reason)
	}
}

// isReady is what /readyz says.
func (g *gateway) isReady() bool {
	g.t.Helper()
	return send(g.t, "GET", g.admin+"/readyz", "").StatusCode == 200
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
func refusedAt(t testing.TB, token string, gateways ...*gateway) {
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
