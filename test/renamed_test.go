package test

import (
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// A reload lifts nothing by reading a claim elsewhere by which something is revoked.
func TestReloadOfRevokedClaims(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	config := func(claims string) string { return withIssuers(app, "", corp(idp, "claims: {"+claims+"}")) }
	g := serving(t, config("session: sid"))
	token := idp.token(jwt.MapClaims{"sid": "s", "session_state": "x"})
	g.write(config("session: session_state, groups: roles"))
	if status, answer := g.call("POST", "/reload", ""); status != 200 {
		t.Fatalf("nothing is revoked: %d %s", status, answer)
	}
	g.write(config("session: sid"))
	if status, answer := g.call("POST", "/reload", ""); status != 200 {
		t.Fatalf("back: %d %s", status, answer)
	}
	g.passes("before", token)
	g.revoke(`{"sid":"s"}`)
	g.refused("revoked", token)
	g.write(config("session: session_state"))
	if status, answer := g.call("POST", "/reload", ""); status != 422 || !strings.Contains(answer, "issuers[corp].claims.session") || !strings.Contains(answer, "revocations by sid are held") {
		t.Errorf("a session is revoked: %d %s", status, answer)
	}
	g.refused("after the reload that was refused", token)
	g.write(config("session: sid, client: azp, groups: roles"))
	if status, answer := g.call("POST", "/reload", ""); status != 200 {
		t.Errorf("another claim: %d %s", status, answer)
	}
	g.refused("after a reload", token)
}
