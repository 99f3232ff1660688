package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestFifteenLines is the README's promise: with a configuration of fifteen lines
// and any OIDC issuer, an application is protected.
func TestFifteenLines(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - name: corp
    issuer: %s
    audiences: [app]
routes:
  - name: health
    path: /healthz
    upstream: %[2]s
    auth: none
  - name: app
    upstream: %[2]s
`, idp.URL, app.URL))
	g.waitReady()

	if a := send(t, "GET", g.url("/healthz"), ""); a.StatusCode != 200 || a.Body != "hello from the upstream" {
		t.Errorf("open route: %s %q", a.Status, a.Body)
	}
	if a := send(t, "GET", g.url("/"), ""); a.StatusCode != 401 || a.reason() != "no_token" {
		t.Errorf("no token: %s %s", a.Status, a.reason())
	}
	bearer := "Authorization: Bearer " + idp.token(nil)
	if a := send(t, "GET", g.url("/page?x=1;y=2"), "", bearer, "X-Forwarded-User: mallory", "X_Forwarded_User: mallory", "Connection: X-Forwarded-User"); a.StatusCode != 200 {
		t.Fatalf("good token: %s %s %s", a.Status, a.reason(), a.Body)
	}
	got := app.last(t)
	if user := got.Header["X-Forwarded-User"]; len(user) != 1 || user[0] != "alice" {
		t.Errorf("X-Forwarded-User is %q", user)
	}
	if got.Header["Authorization"] != nil || got.Header["X_forwarded_user"] != nil {
		t.Errorf("the upstream received %v", got.Header)
	}
	if got.RequestURI != "/page?x=1;y=2" {
		t.Errorf("the upstream was asked for %q", got.RequestURI)
	}

	revoked := idp.token(jwt.MapClaims{"jti": "to-be-revoked"})
	if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+revoked); a.StatusCode != 200 {
		t.Fatalf("before the revocation: %s %s", a.Status, a.reason())
	}
	if status, out, errOut := durward(t, "revoke", "-config", g.config, "-jti", "to-be-revoked"); status == 0 {
		t.Errorf("revoke found an admin interface on port 0: %s%s", out, errOut)
	}
	if status, out := g.call("POST", "/revocations", `{"jti":"to-be-revoked"}`); status != 200 {
		t.Fatalf("revoke: %d %s", status, out)
	}
	if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+revoked); a.StatusCode != 401 || a.reason() != "revoked" {
		t.Errorf("after the revocation: %s %s", a.Status, a.reason())
	}
	if a := send(t, "GET", g.url("/"), "", bearer); a.StatusCode != 200 {
		t.Errorf("another token after the revocation: %s %s", a.Status, a.reason())
	}
	g.kill()
	g.start()
	eventually(t, 5*time.Second, "the other token passes again", func() bool { return send(t, "GET", g.url("/"), "", bearer).StatusCode == 200 })
	if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+revoked); a.StatusCode != 401 || a.reason() != "revoked" {
		t.Errorf("after kill and restart: %s %s", a.Status, a.reason())
	}
}
