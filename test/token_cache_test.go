package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestReloadVoidsTheCache: a token that is cached is judged by the configuration
// that is in force, and not by the one that let it into the cache.
func TestReloadVoidsTheCache(t *testing.T) {
	t.Parallel()
	idp, other, app := newIssuer(t), newIssuer(t), newUpstream(t)
	config := func(issuer string) string { return withIssuers(app, "", issuer) }
	good := corp(idp)
	g := serving(t, config(good))
	bearer := bearing(idp.token(nil))
	for _, c := range []struct {
		name, issuer, reason string // "" if the token still passes
	}{
		{"another audience", fmt.Sprintf("{name: corp, issuer: %s, audiences: [other]}", idp.URL), "token_audience"},
		{"another issuer", corp(other), "token_issuer"},
		{"an issuer of another name", fmt.Sprintf("{name: corporation, issuer: %s, audiences: [app]}", idp.URL), ""},
		{"other types", corp(idp, "token_types: [JWT]"), "token_type"},
		{"other algorithms", corp(idp, "algorithms: [RS256]"), "token_algorithm"},
		{"another claim as jti", corp(idp, "claims: {jti: uti}"), "token_claims"},
		{"other keys", corp(idp, "jwks_url: "+other.URL+"/keys"), "token_signature"},
		{"a shorter life", corp(idp, "max_lifetime: 1m"), "token_lifetime"}, // the last: a longer one later is not for this token
	} {
		eventually(t, 5*time.Second, "it passes before "+c.name, func() bool { return send(t, "GET", g.url("/"), "", bearer).StatusCode == 200 })
		for range 3 {
			wantAnswer(t, "before "+c.name, send(t, "GET", g.url("/"), "", bearer), 200, "")
		}
		g.write(config(c.issuer))
		if status, out := g.call("POST", "/reload", ""); status != 200 {
			t.Fatalf("%s: %d %s", c.name, status, out)
		}
		status := 401
		if c.reason == "" {
			status = 200
		}
		for range 3 {
			wantAnswer(t, c.name, send(t, "GET", g.url("/"), "", bearer), status, c.reason)
		}
		g.write(config(good))
		if status, out := g.call("POST", "/reload", ""); status != 200 {
			t.Fatalf("%s, taken back: %d %s", c.name, status, out)
		}
	}
}

// TestRevokedWithinLeeway: a token that has expired, and is still good for the
// leeway, can be revoked like any other (M35): no clock has forgotten it yet.
func TestRevokedWithinLeeway(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, withIssuers(app, "", corp(idp, "leeway: 10m")))
	now := time.Now().Unix()
	old := jwt.MapClaims{"iat": now - 600, "exp": now - 60}
	with := func(name, value string) string {
		old[name] = value
		defer delete(old, name)
		return bearing(idp.token(old))
	}
	for _, c := range []struct{ name, token, line string }{
		{"by jti", with("jti", "late-1"), fmt.Sprintf(`{"jti":"late-1","exp":%d}`, now-60)},
		{"by jti without exp", with("jti", "late-2"), `{"jti":"late-2"}`},
		{"by sid", with("sid", "late-3"), fmt.Sprintf(`{"sid":"late-3","exp":%d}`, now-60)},
		{"by sub", with("sub", "late-4"), `{"sub":"late-4"}`},
		{"by client", with("client_id", "late-5"), fmt.Sprintf(`{"client":"late-5","before":%d}`, now-600)},
	} {
		for range 2 {
			wantAnswer(t, c.name+", before", send(t, "GET", g.url("/"), "", c.token), 200, "")
		}
		if status, out := g.call("POST", "/revocations", c.line); status != 200 {
			t.Errorf("%s: %d %s", c.name, status, out)
		}
		for range 2 {
			wantAnswer(t, c.name+", after", send(t, "GET", g.url("/"), "", c.token), 401, "revoked")
		}
		wantAnswer(t, c.name+", another late token", send(t, "GET", g.url("/"), "", bearing(idp.token(old))), 200, "")
	}
}
