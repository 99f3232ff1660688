package test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestSessionEndpoint walks the way of a page that has a token: it hands it in,
// goes on with the cookie, and gives it up.
func TestSessionEndpoint(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, `
credentials: {session_endpoint: /.durward/session}
routes:
  - {name: optional, path: /optional, upstream: %[1]q, auth: optional}
  - {name: all, upstream: %[1]q}
`, app.URL))
	endpoint := g.url("/.durward/session")
	raw := idp.token(jwt.MapClaims{"jti": "the-session"})
	bearer, cookie := "Authorization: Bearer "+raw, "Cookie: __Host-session="+raw

	a := send(t, "POST", endpoint, "", bearer)
	if a.StatusCode != 204 || a.Body != "" || a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("hand in: %s %q %v", a.Status, a.Body, a.Header)
	}
	wantSessionCookie(t, "hand in", a, raw)
	if a := send(t, "GET", g.url("/"), "", cookie); a.StatusCode != 200 {
		t.Errorf("with the cookie: %s %s", a.Status, a.reason())
	}
	if got := app.last(t).Header; got["Cookie"] != nil || got.Get("X-Forwarded-User") != "alice" {
		t.Errorf("the upstream received %v", got)
	}

	// Whoever is not the page itself, or brings nothing that counts, gets no cookie
	// and ends nothing.
	expired := idp.token(jwt.MapClaims{"iat": time.Now().Add(-time.Hour).Unix(), "exp": time.Now().Add(-10 * time.Minute).Unix()})
	stranger := newIssuer(t)
	long := idp.token(jwt.MapClaims{"padding": strings.Repeat("x", 3000)})
	fits := idp.token(jwt.MapClaims{"padding": strings.Repeat("x", 2500)})
	if len(long) < 4096 || len(long) > 8<<10 || len(fits) > 4000 {
		t.Fatalf("tokens of %d and %d bytes", len(long), len(fits))
	}
	host := g.public[0]
	for _, c := range []struct {
		name, method string
		headers      []string
		status       int
		reason       string
	}{
		{"no token", "POST", nil, 401, "no_token"},
		{"the cookie is not read", "POST", []string{cookie}, 401, "no_token"},
		{"an expired token", "POST", []string{"Authorization: Bearer " + expired}, 401, "token_expired"},
		{"a stranger's token", "POST", []string{"Authorization: Bearer " + stranger.token(nil)}, 401, "token_issuer"},
		{"no token at all", "POST", []string{"Authorization: Bearer x"}, 401, "token_malformed"},
		{"too long for a cookie", "POST", []string{"Authorization: Bearer " + long}, 413, "too_large"},
		{"not too long", "POST", []string{"Authorization: Bearer " + fits}, 204, ""},
		{"another origin", "POST", []string{bearer, "Origin: https://evil.example"}, 403, "cross_site"},
		{"another port", "POST", []string{bearer, "Origin: http://127.0.0.1:1"}, 403, "cross_site"},
		{"another site", "POST", []string{bearer, "Sec-Fetch-Site: cross-site"}, 403, "cross_site"},
		{"a sibling", "POST", []string{bearer, "Sec-Fetch-Site: same-site"}, 403, "cross_site"},
		{"own origin", "POST", []string{bearer, "Origin: http://" + host}, 204, ""},
		{"own site", "POST", []string{bearer, "Sec-Fetch-Site: same-origin"}, 204, ""},
		{"GET", "GET", []string{bearer, cookie}, 405, "method_not_allowed"},
		{"PUT", "PUT", []string{bearer, cookie}, 405, "method_not_allowed"},
		{"end: no cookie", "DELETE", nil, 401, "no_token"},
		{"end: the bearer token is not read", "DELETE", []string{bearer}, 401, "no_token"},
		{"end: another origin", "DELETE", []string{cookie, "Origin: https://evil.example"}, 403, "cross_site"},
		{"end: another site", "DELETE", []string{cookie, "Sec-Fetch-Site: cross-site"}, 403, "cross_site"},
		{"end: two cookies", "DELETE", []string{cookie, "Cookie: __Host-session=x"}, 400, "ambiguous_credentials"},
		{"end: a stranger's token", "DELETE", []string{"Cookie: __Host-session=" + stranger.token(nil)}, 401, "token_issuer"},
	} {
		a := send(t, c.method, endpoint, "", c.headers...)
		if a.StatusCode != c.status || a.reason() != c.reason || (a.Header["Set-Cookie"] != nil) != (c.status == 204 || c.method == "DELETE" && strings.HasPrefix(c.reason, "token_")) {
			t.Errorf("%s: %s %s, Set-Cookie %q; want %d %s", c.name, a.Status, a.reason(), a.Header["Set-Cookie"], c.status, c.reason)
		}
		if c.status == 405 && a.Header.Get("Allow") != "POST, DELETE" {
			t.Errorf("%s: Allow %q", c.name, a.Header.Get("Allow"))
		}
	}
	if n := len(app.requests()); n != 1 {
		t.Errorf("the upstream received %d requests; the endpoint is the gateway's own", n)
	}
	if a := send(t, "GET", g.url("/"), "", cookie); a.StatusCode != 200 {
		t.Errorf("the session after all that: %s %s", a.Status, a.reason())
	}

	// The end of it.
	a = send(t, "DELETE", endpoint, "", cookie, "Origin: http://"+host)
	wantCleared(t, "end", a, 204)
	dead := func(when string) {
		t.Helper()
		a := send(t, "GET", g.url("/"), "", cookie)
		wantCleared(t, when+", cookie", a, 401)
		if a.reason() != "revoked" {
			t.Errorf("%s: %s", when, a.reason())
		}
		if a := send(t, "GET", g.url("/"), "", bearer); a.StatusCode != 401 || a.reason() != "revoked" || a.Header["Set-Cookie"] != nil {
			t.Errorf("%s, bearer: %s %s %q", when, a.Status, a.reason(), a.Header["Set-Cookie"])
		}
		if a := send(t, "POST", endpoint, "", bearer); a.StatusCode != 401 || a.reason() != "revoked" || a.Header["Set-Cookie"] != nil {
			t.Errorf("%s, handed in again: %s %s", when, a.Status, a.reason())
		}
		if a := send(t, "GET", g.url("/optional"), "", cookie); a.StatusCode != 401 {
			t.Errorf("%s, optional: %s", when, a.Status)
		}
		if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+fits); a.StatusCode != 200 {
			t.Errorf("%s, another session: %s %s", when, a.Status, a.reason())
		}
	}
	dead("afterwards")
	wantCleared(t, "ended twice", send(t, "DELETE", endpoint, "", cookie), 204)
	g.kill()
	g.start()
	g.waitReady()
	endpoint = g.url("/.durward/session")
	dead("after a power failure")

	// A session that is over by itself.
	gone := "Cookie: __Host-session=" + expired
	wantCleared(t, "expired", send(t, "GET", g.url("/"), "", gone), 401)
	wantCleared(t, "expired, optional", send(t, "GET", g.url("/optional"), "", gone), 401)
	wantCleared(t, "expired, ended", send(t, "DELETE", endpoint, "", gone), 204)
	if a := send(t, "GET", g.url("/optional"), ""); a.StatusCode != 200 {
		t.Errorf("without the cookie: %s %s", a.Status, a.reason())
	}
}

// wantCleared checks that the answer has this status and makes the browser forget
// the session cookie.
func wantCleared(t *testing.T, name string, a answer, status int) {
	t.Helper()
	lines := a.Header["Set-Cookie"]
	if a.StatusCode != status || len(lines) != 1 {
		t.Errorf("%s: %s %s, Set-Cookie %q; want %d and a cleared cookie", name, a.Status, a.reason(), lines, status)
		return
	}
	c, err := http.ParseSetCookie(lines[0])
	if err != nil || c.Name != "__Host-session" || c.Value != "" || c.MaxAge >= 0 || c.Path != "/" || !c.Secure || !c.HttpOnly || c.Domain != "" {
		t.Errorf("%s: Set-Cookie %q, %v", name, lines[0], err)
	}
}

// TestSessionEndpointElsewhere puts the endpoint on a path and the session into a
// cookie of the application's choosing, among its own paths and cookies.
func TestSessionEndpointElsewhere(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, `
credentials: {cookie: __Host-app, session_endpoint: /session}
routes:
  - {name: all, upstream: %[1]q}
`, app.URL))
	raw := idp.token(nil)
	a := send(t, "POST", g.url("/session"), "", "Authorization: Bearer "+raw)
	if lines := a.Header["Set-Cookie"]; a.StatusCode != 204 || len(lines) != 1 || !strings.HasPrefix(lines[0], "__Host-app="+raw+";") {
		t.Errorf("%s %q", a.Status, lines)
	}
	for path, cookie := range map[string]string{"/session/": "__Host-app", "/sessions": "__Host-app", "/": "__Host-app", "/%73ession": ""} {
		want, headers := 200, []string{"Cookie: " + cookie + "=" + raw}
		if cookie == "" { // another spelling of the endpoint is the endpoint
			want, headers = 405, nil
		}
		if a := send(t, "GET", g.url(path), "", headers...); a.StatusCode != want {
			t.Errorf("%s: %s %s, want %d", path, a.Status, a.reason(), want)
		}
	}
	if a := send(t, "GET", g.url("/"), "", "Cookie: __Host-session="+raw); a.StatusCode != 401 || a.reason() != "no_token" {
		t.Errorf("the default cookie: %s %s", a.Status, a.reason())
	}
}

// TestOriginWithoutTLS: who can write the pages that come without TLS cannot make
// them act with the cookie of those that come with it.
func TestOriginWithoutTLS(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	routes := `
trusted_proxies: [127.0.0.1]
credentials: {session_endpoint: /.durward/session}
routes:
  - {name: trusting, path: /trusting, upstream: %[1]q, cross_site: {trusted_origins: ["http://app.test"]}}
  - {name: all, upstream: %[1]q}
`
	g := serving(t, guarded(idp, routes, app.URL))
	cookie, socket := "Cookie: __Host-session="+idp.token(nil), []string{"Connection: Upgrade", "Upgrade: websocket"}
	bearer := "Authorization: Bearer " + idp.token(nil)
	for _, c := range []struct {
		name, method, path, credential string
		more                           []string
		plain                          int // with TLS, from a page without it; everything else passes
	}{
		{"unsafe", "POST", "/x", cookie, nil, 403},
		{"safe", "GET", "/x", cookie, nil, 200},
		{"a WebSocket", "GET", "/x", cookie, socket, 403},
		{"trusted", "POST", "/trusting", cookie, nil, 200},
		{"a trusted WebSocket", "GET", "/trusting", cookie, socket, 200},
		{"a bearer token", "POST", "/x", bearer, nil, 200},
		{"hand in", "POST", "/.durward/session", bearer, nil, 403},
	} {
		for _, from := range []string{"http", "https"} {
			for _, to := range []string{"http", "https"} {
				want := 200
				if from == "http" && to == "https" {
					want = c.plain
				}
				a := send(t, c.method, g.url(c.path), "", append([]string{"Host: app.test", "Origin: " + from + "://app.test", "X-Forwarded-Proto: " + to, c.credential}, c.more...)...)
				if a.StatusCode == 204 {
					a.StatusCode = 200
				}
				if a.StatusCode != want || want == 403 && a.reason() != "cross_site" {
					t.Errorf("%s, from %s to %s: %d %s, want %d", c.name, from, to, a.StatusCode, a.reason(), want)
				}
			}
		}
	}
}
