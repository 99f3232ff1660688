package test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// loginConfig has routes of a named host and, under "*", of any other.
const loginConfig = `
listen: 127.0.0.1:0
login_url: %q
issuers: [{name: corp, issuer: %q, audiences: [app]}]
routes:
  - {name: open, host: app.test, path: /open/, upstream: %q, auth: none}
  - {name: app, host: app.test, path: /, upstream: %[3]q}
  - {name: vault, host: app.test, path: /vault/, upstream: %[3]q, allow: [{acr: [mfa, hwk], max_age: 15m}]}
  - {name: recent, host: app.test, path: /recent/, upstream: %[3]q, allow: [{max_age: 1h}]}
  - {name: staff, host: app.test, path: /staff/, upstream: %[3]q, allow: [{claims: {groups: [ops]}}]}
  - {name: optional, host: app.test, path: /optional/, upstream: %[3]q, auth: optional}
  - {name: other, host: "*", path: /, upstream: %[3]q}
`

// TestLogin sends browsers to the login, and nobody else.
func TestLogin(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, fmt.Sprintf(loginConfig, "https://login.test/start?return_to={url}", idp.URL, app.URL))
	now := time.Now().Unix()
	expired := idp.token(jwt.MapClaims{"iat": now - 700, "exp": now - 60})
	revoked := idp.token(jwt.MapClaims{"jti": "ended"})
	if status, out := g.call("POST", "/revocations", `{"jti":"ended"}`); status != 200 {
		t.Fatalf("revoke: %d %s", status, out)
	}
	good := inCookie(idp.token(nil))
	const (
		navigates = "Sec-Fetch-Mode: navigate"
		document  = "Sec-Fetch-Dest: document"
		html      = "Accept: text/html,application/xhtml+xml"
		login     = "https://login.test/start?return_to="
	)
	back := func(address string) string { return login + url.QueryEscape(address) }
	for _, c := range []struct {
		name     string
		q        question
		status   int
		reason   string
		location string
		clears   bool // the cookie
	}{
		{"a navigation", asking("GET", "/x", navigates, document), 302, "no_token", back("http://app.test/x"), false},
		{"a navigation of an older browser", asking("GET", "/x", html), 302, "no_token", back("http://app.test/x"), false},
		{"a navigation with query, escapes and port", asking("GET", "/a%20b/%C3%A9?x=1&y={url}&z=%26#", navigates).to("app.test:8443"), 400, "ambiguous_request", "", false},
		{"the same without the fragment", asking("GET", "/a%20b/%C3%A9?x=1&y={url}&z=%26", navigates).to("APP.test:8443"), 302, "no_token", back("http://app.test:8443/a%20b/%C3%A9?x=1&y={url}&z=%26"), false},
		{"a host that no route names", asking("GET", "/x?y=1", navigates).to("evil.test"), 302, "no_token", back("/x?y=1"), false},
		{"a navigation with a good cookie", asking("GET", "/x", navigates, document, good), 200, "", "", false},

		{"an API client", asking("GET", "/x"), 401, "no_token", "", false},
		{"an API client that takes anything", asking("GET", "/x", "Accept: */*"), 401, "no_token", "", false},
		{"a script's request", asking("GET", "/x", "Sec-Fetch-Mode: cors", html), 401, "no_token", "", false},
		{"a frame", asking("GET", "/x", navigates, "Sec-Fetch-Dest: iframe", html), 401, "no_token", "", false},
		{"a form", asking("POST", "/x", navigates, document, html, "Content-Length: 0"), 401, "no_token", "", false},
		{"HEAD", asking("HEAD", "/x", navigates, document, html), 401, "no_token", "", false},

		{"an expired cookie", asking("GET", "/x", navigates, inCookie(expired)), 302, "token_expired", back("http://app.test/x"), true},
		{"an expired cookie of a script", asking("GET", "/x", inCookie(expired)), 401, "token_expired", "", true},
		{"an expired cookie on a route that asks for none", asking("GET", "/optional/", navigates, inCookie(expired)), 302, "token_expired", back("http://app.test/optional/"), true},
		{"the same without the cookie", asking("GET", "/optional/", navigates), 200, "", "", false},
		{"an expired cookie on an open route", asking("GET", "/open/", navigates, inCookie(expired)), 200, "", "", false},
		{"an expired bearer token", asking("GET", "/x", html, bearing(expired)), 302, "token_expired", back("http://app.test/x"), false},
		{"a revoked cookie", asking("GET", "/x", navigates, inCookie(revoked)), 302, "revoked", back("http://app.test/x"), true},
		{"a revoked cookie of a script", asking("GET", "/x", inCookie(revoked)), 401, "revoked", "", true},
		{"a broken cookie", asking("GET", "/x", navigates, inCookie("x.y.z")), 401, "token_malformed", "", false},

		{"step-up", asking("GET", "/vault/7", navigates, good), 302, "step_up", back("http://app.test/vault/7") + "&acr_values=mfa+hwk&max_age=900", false},
		{"step-up by age alone", asking("GET", "/recent/", navigates, good), 302, "step_up", back("http://app.test/recent/") + "&max_age=3600", false},
		{"step-up of a script", asking("GET", "/vault/7", good), 401, "step_up", "", false},
		{"step-up done", asking("GET", "/vault/7", navigates, inCookie(idp.token(jwt.MapClaims{"acr": "hwk", "auth_time": now}))), 200, "", "", false},
		{"forbidden", asking("GET", "/staff/", navigates, good), 403, "forbidden", "", false},
		{"the gateway's own", asking("GET", "/.durward/x", navigates), 404, "no_route", "", false},
	} {
		a := exchange(t, "tcp", g.public[0], c.q.method, c.q.wire())
		if a.StatusCode != c.status || a.reason() != c.reason || a.Header.Get("Location") != c.location {
			t.Errorf("%s: %d %q to %q,\nwant %d %q to %q", c.name, a.StatusCode, a.reason(), a.Header.Get("Location"), c.status, c.reason, c.location)
		}
		if challenged := a.Header.Get("Www-Authenticate") != ""; challenged != (c.status == 401) {
			t.Errorf("%s: %d with challenge %q", c.name, a.StatusCode, a.Header.Get("Www-Authenticate"))
		}
		if c.status != 200 && a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be cached: %q", c.name, a.Header.Get("Cache-Control"))
		}
		want := ""
		if c.clears {
			want = "__Host-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax"
		}
		if got := strings.Join(a.Header["Set-Cookie"], " | "); got != want {
			t.Errorf("%s: Set-Cookie %q, want %q", c.name, got, want)
		}
	}
}

// TestLoginURLs are other shapes of login_url: without a query, and without {url}.
func TestLoginURLs(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	good := idp.token(nil)
	for _, c := range []struct{ login, location, stepUp string }{
		{"https://login.test/", "https://login.test/", "https://login.test/?max_age=3600"},
		{"https://login.test/to/{url}", "https://login.test/to/http%3A%2F%2Fapp.test%2Frecent%2F", "https://login.test/to/http%3A%2F%2Fapp.test%2Frecent%2F?max_age=3600"},
	} {
		g := serving(t, fmt.Sprintf(loginConfig, c.login, idp.URL, app.URL))
		a := send(t, "GET", g.url("/recent/"), "", "Host: app.test", "Sec-Fetch-Mode: navigate")
		if a.StatusCode != 302 || a.Header.Get("Location") != c.location {
			t.Errorf("%s: %s to %q, want %q", c.login, a.Status, a.Header.Get("Location"), c.location)
		}
		a = send(t, "GET", g.url("/recent/"), "", "Host: app.test", "Sec-Fetch-Mode: navigate", bearing(good))
		if a.StatusCode != 302 || a.Header.Get("Location") != c.stepUp {
			t.Errorf("%s, step-up: %s to %q, want %q", c.login, a.Status, a.Header.Get("Location"), c.stepUp)
		}
		if a := send(t, "GET", g.url("/"), "", "Host: app.test", "Sec-Fetch-Mode: navigate", bearing(good)); a.StatusCode != 200 {
			t.Errorf("%s: a good token: %s %s", c.login, a.Status, a.reason())
		}
	}
}

// The page for people loads nothing, runs nothing and tells nothing; what it is
// styled with is allowed by its hash alone.
func TestRefusalPage(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: %q, audiences: [app]}]
routes: [{name: secret-route, upstream: %q, allow: [{claims: {groups: [secret-group]}}]}]
`, idp.URL, app.URL))
	if a := send(t, "GET", g.url("/"), "", "Accept: text/html", bearing(idp.token(jwt.MapClaims{"groups": "secret-group"}))); a.StatusCode != 200 {
		t.Errorf("with the group: %s %s", a.Status, a.reason())
	}
	a := send(t, "GET", g.url("/<script>alert(1)</script>?<script>"), "", "Accept: text/html", "X-Request-Id: <script>", bearing(idp.token(nil)))
	if a.StatusCode != 403 || a.reason() != "forbidden" {
		t.Errorf("%s %s", a.Status, a.reason())
	}
	for _, s := range []string{"<script", "http:", "https:", "src=", "href=", "url(", "@import", "secret", "alert", "alice", app.URL, idp.URL} {
		if strings.Contains(a.Body, s) {
			t.Errorf("the page contains %q:\n%s", s, a.Body)
		}
	}
	for _, s := range []string{"403", "Forbidden", "You are signed in, but you may not do this.", a.Header.Get("X-Request-Id"), `name="viewport"`, `lang="en"`} {
		if !strings.Contains(a.Body, s) {
			t.Errorf("the page lacks %q:\n%s", s, a.Body)
		}
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": `^default-src 'none'; style-src 'sha256-[A-Za-z0-9+/]{43}='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$`,
		"Referrer-Policy":         "^no-referrer$",
		"X-Content-Type-Options":  "^nosniff$",
		"Cache-Control":           "^no-store$",
		"X-Request-Id":            "^[A-Z2-7]{26}$",
	} {
		if got := a.Header.Get(name); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: %q, want %s", name, got, want)
		}
	}
	if len(a.Body) > 4<<10 {
		t.Errorf("the page has %d bytes", len(a.Body))
	}
	eventually(t, 5*time.Second, "a record with the page's request id", func() bool {
		all := g.log.lines("request")
		return len(all) > 0 && all[len(all)-1]["decision"].(map[string]any)["id"] == a.Header.Get("X-Request-Id")
	})
	if a := send(t, "HEAD", g.url("/"), "", "Accept: text/html"); a.StatusCode != 401 || a.Body != "" || a.Header.Get("Content-Length") == "0" {
		t.Errorf("HEAD: %s with %q, Content-Length %q", a.Status, a.Body, a.Header.Get("Content-Length"))
	}
}

// With hide_reasons a client learns the status, and what it could come back with.
func TestHideReasons(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
hide_reasons: true
issuers: [{name: corp, issuer: %q, audiences: [app]}]
routes:
  - {name: app, path: /, upstream: %q}
  - {name: staff, path: /staff/, upstream: %[2]q, allow: [{claims: {groups: [ops]}}]}
`, idp.URL, app.URL))
	if a := send(t, "GET", g.url("/"), "", bearing(idp.token(nil))); a.StatusCode != 200 {
		t.Errorf("a good token: %s", a.Status)
	}
	// One text must do for all bad tokens, or the text would be the reason.
	texts := map[string]bool{}
	for _, c := range []struct {
		target    string
		changes   jwt.MapClaims
		status    int
		reason    string
		challenge string
	}{
		{"/", jwt.MapClaims{"aud": "other"}, 401, "token_audience", `Bearer error="invalid_token"`},
		{"/", jwt.MapClaims{"iss": "other"}, 401, "token_issuer", `Bearer error="invalid_token"`},
		{"/", jwt.MapClaims{"exp": nil}, 401, "token_claims", `Bearer error="invalid_token"`},
		{"/staff/", nil, 403, "forbidden", ""},
	} {
		a := send(t, "GET", g.url(c.target), "", bearing(idp.token(c.changes)))
		if a.StatusCode != c.status || a.Header["Durward-Reason"] != nil || a.Header.Get("Www-Authenticate") != c.challenge || strings.Contains(a.Body, c.reason) {
			t.Errorf("%s: %s, reason %q, challenge %q: %s", c.reason, a.Status, a.reason(), a.Header.Get("Www-Authenticate"), a.Body)
		}
		var problem struct{ Detail, Reason string }
		if err := json.Unmarshal([]byte(a.Body), &problem); err != nil || problem.Reason != "" || problem.Detail == "" {
			t.Errorf("%s: %s (%v)", c.reason, a.Body, err)
		}
		if c.status == 401 {
			texts[problem.Detail] = true
		}
		eventually(t, 5*time.Second, "the record names "+c.reason, func() bool {
			all := g.log.lines("request")
			return len(all) > 0 && all[len(all)-1]["decision"].(map[string]any)["reason"] == c.reason
		})
	}
	if len(texts) != 1 {
		t.Errorf("the texts tell reasons apart: %v", texts)
	}
}
