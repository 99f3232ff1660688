package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// TestNewIssuerIsJudgedAtOnce adds an issuer by a reload, with lines about its
// tokens in the feed already: none of them passes, not even for a moment.
func TestNewIssuerIsJudgedAtOnce(t *testing.T) {
	t.Parallel()
	old, added, app := newIssuer(t), newIssuer(t), newUpstream(t)
	feed := filepath.Join(t.TempDir(), "revoked.jsonl")
	var lines strings.Builder
	for i := range 50_000 { // so that reading takes a while
		fmt.Fprintf(&lines, "{\"iss\":%q,\"jti\":\"filler-%d\"}\n", added.URL, i)
	}
	fmt.Fprintf(&lines, "{\"iss\":%q,\"jti\":\"victim\"}\n", added.URL)
	if err := os.WriteFile(feed, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	config := func(more string) string {
		return fmt.Sprintf("listen: 127.0.0.1:0\nissuers:\n  - {name: old, issuer: %q, audiences: [app]}\n%sdenylist: {feeds: [{name: local, file: %q}]}\nroutes: [{name: all, upstream: %q, issuers: [old%s]}]\n",
			old.URL, more, feed, app.URL, map[bool]string{true: ", added"}[more != ""])
	}
	g := serving(t, config(""))
	keys := filepath.Join(t.TempDir(), "keys.json") // there at once, unlike fetched ones
	if err := os.WriteFile(keys, added.jwks(), 0o600); err != nil {
		t.Fatal(err)
	}
	g.write(config(fmt.Sprintf("  - {name: added, issuer: %q, audiences: [app], jwks_file: %q}\n", added.URL, keys)))
	victim := "Authorization: Bearer " + added.token(jwt.MapClaims{"jti": "victim"})
	if status, out := g.call("POST", "/reload", ""); status != 200 {
		t.Fatal(status, out)
	}
	for range 20 {
		if a := send(t, "GET", g.url("/"), "", victim); a.StatusCode != 401 || a.reason() != "revoked" {
			t.Fatalf("%s %s", a.Status, a.reason())
		}
	}
	if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+added.token(nil)); a.StatusCode != 200 {
		t.Errorf("the twin: %s %s", a.Status, a.reason())
	}
}
