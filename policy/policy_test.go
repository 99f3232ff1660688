package policy

import (
	"strings"
	"testing"
	"time"

	"durward/decision"
	"durward/token"
)

func issuer(t *testing.T, name string) *token.Issuer {
	t.Helper()
	i, err := token.NewIssuer(token.IssuerConfig{
		Name: name, Issuer: "https://" + name + ".test", Audiences: []string{"app"},
		Claims: map[string]string{"groups": "realm_access.roles"},
	}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func compile(t *testing.T, routes ...RouteConfig) *Policy {
	t.Helper()
	for i := range routes {
		if routes[i].Name == "" {
			routes[i].Name = strings.TrimSpace(strings.Join(routes[i].Host, " ") + " " + routes[i].Path)
		}
	}
	p, err := Compile(routes, []string{"corp"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// find is the name of the route, "-" for none, or the error.
func find(t *testing.T, p *Policy, host, path string) string {
	t.Helper()
	h, err := ReadHost(host)
	if err != nil {
		t.Fatal(err)
	}
	canonical, err := ReadPath(path)
	if err != nil {
		t.Fatal(err)
	}
	rt, err := p.Find(h, canonical, nil)
	switch {
	case err != nil:
		return "ambiguous"
	case rt == nil:
		return "-"
	}
	return rt.Name
}

func TestFindPath(t *testing.T) {
	p := compile(t,
		RouteConfig{Path: "/"},
		RouteConfig{Path: "/admin/"},
		RouteConfig{Path: "/login"},
		RouteConfig{Path: "/api/{id}"},
		RouteConfig{Path: "/api/me"},
		RouteConfig{Path: "/files/{rest...}"},
		RouteConfig{Path: "/exact/{$}"},
		RouteConfig{Path: "/blob/", EncodedSlash: "allow"},
	)
	for _, c := range []struct{ path, want string }{
		{"/", "/"},
		{"/x", "/"},
		{"/administrator", "/"},
		{"/admin", "/admin/"},
		{"/admin/", "/admin/"},
		{"/admin/x/y", "/admin/"},
		{"/%61dmin", "/admin/"},
		{"/login", "/login"},
		{"/login/", "/login"},
		{"/login/x", "/"},
		{"/api", "/"},
		{"/api/", "/"},
		{"/api/7", "/api/{id}"},
		{"/api/7/", "/api/{id}"},
		{"/api/me", "/api/me"},
		{"/api/me/", "/api/me"},
		{"/api/7/x", "/"},
		{"/files", "/files/{rest...}"},
		{"/files/", "/files/{rest...}"},
		{"/files/a/b", "/files/{rest...}"},
		{"/exact/", "/exact/{$}"},
		{"/exact", "/exact/{$}"},
		{"/exact/x", "/"},
		{"/ADMIN/x", "/"},
		{"/admin;v=1/x", "ambiguous"}, // a servlet container would read /admin/x
		{"/admin/x;v=1", "/admin/"},
		{"/x;v=1/y", "/"},
		{"/login;jsessionid=1", "ambiguous"},
		{"/admin%2Fx", "ambiguous"},
		{"/blob/a%2Fb", "/blob/"},
		{"/blob%2Fa", "ambiguous"}, // one segment: the catch-all, which has no encoded_slash
	} {
		if got := find(t, p, "any.test", c.path); got != c.want {
			t.Errorf("%s: got %s, want %s", c.path, got, c.want)
		}
	}
}

func TestFindHost(t *testing.T) {
	p := compile(t,
		RouteConfig{Name: "exact", Host: Strings{"Shop.Example.com"}},
		RouteConfig{Name: "wild", Host: Strings{"*.example.com"}},
		RouteConfig{Name: "deep", Host: Strings{"*.eu.example.com", "eu.example.com"}},
		RouteConfig{Name: "other", Host: Strings{"*"}, Path: "/open/"},
	)
	for _, c := range []struct{ host, path, want string }{
		{"shop.example.com", "/", "exact"},
		{"SHOP.example.com.:8443", "/", "exact"},
		{"www.example.com", "/", "wild"},
		{"a.eu.example.com", "/", "deep"},
		{"eu.example.com", "/", "deep"},
		{"example.com", "/open/", "other"},
		{"a.b.example.com", "/open/", "other"},
		{"a.b.example.com", "/", "-"},
		{"elsewhere.test", "/open/x", "other"},
		{"elsewhere.test", "/", "-"},
		{"shop.example.com", "/open/x", "exact"}, // never falls through to "*"
	} {
		if got := find(t, p, c.host, c.path); got != c.want {
			t.Errorf("%s%s: got %s, want %s", c.host, c.path, got, c.want)
		}
	}
	if len(p.Warnings()) != 4 {
		t.Errorf("got warnings %v, want one for each table that lacks /open/", p.Warnings())
	}
	if h, _ := ReadHost("elsewhere.test"); p.Named(h) {
		t.Error(`a host of the "*" table counts as named`)
	}
	if h, _ := ReadHost("www.example.com"); !p.Named(h) {
		t.Error("a host of a wildcard does not count as named")
	}
}

func TestFoldCase(t *testing.T) {
	p := compile(t,
		RouteConfig{Path: "/", FoldCase: true},
		RouteConfig{Path: "/Admin/"},
	)
	for _, path := range []string{"/admin", "/ADMIN/x", "/Admin/x", "/aDmIn"} {
		if got := find(t, p, "any.test", path); got != "/Admin/" {
			t.Errorf("%s: got %s", path, got)
		}
	}
}

func TestGrants(t *testing.T) {
	corp := issuer(t, "corp")
	now := time.Now()
	orders := RouteConfig{Name: "orders", Allow: []GrantConfig{
		{Methods: []string{"GET"}, Scopes: []string{"orders:read"}},
		{Methods: []string{"POST", "PUT"}, Scopes: []string{"orders:read", "orders:write"}},
		{Methods: []string{"DELETE"}, Claims: map[string]Values{"groups": {"ops", "sre"}}, ACR: []string{"mfa"}, MaxAge: new(15 * time.Minute)},
		{Methods: []string{"PATCH"}, Scopes: []string{"orders:write"}, ACR: []string{"mfa"}},
		{Methods: []string{"LOCK"}, Claims: map[string]Values{"level": {1, 2.5}, "admin": {true}}},
	}}
	required := compile(t, orders).Routes()[0]
	orders.Auth = "optional"
	optional := compile(t, orders).Routes()[0]
	orders.Shadow = true
	orders.Auth = ""
	shadow := compile(t, orders).Routes()[0]
	plain := compile(t, RouteConfig{Path: "/"}).Routes()[0]
	plainOptional := compile(t, RouteConfig{Path: "/", Auth: "optional"}).Routes()[0]
	open := compile(t, RouteConfig{Path: "/", Auth: "none"}).Routes()[0]
	openGET := compile(t, RouteConfig{Path: "/", Auth: "none", Allow: []GrantConfig{{Methods: []string{"GET"}}}}).Routes()[0]
	optionalGET := compile(t, RouteConfig{Path: "/", Auth: "optional", Allow: []GrantConfig{{Methods: []string{"GET"}}, {Scopes: []string{"w"}}}}).Routes()[0]

	type claims = map[string]any
	fresh := now.Add(-time.Minute).Unix()
	old := now.Add(-time.Hour).Unix()
	roles := func(r ...any) map[string]any { return claims{"roles": r} }
	for _, c := range []struct {
		name   string
		route  *Route
		method string
		claims claims // nil: no token
		want   decision.Reason
		shadow decision.Reason
	}{
		{"read", required, "GET", claims{"scope": "orders:read"}, decision.Allowed, ""},
		{"GET covers HEAD", required, "HEAD", claims{"scope": "orders:read"}, decision.Allowed, ""},
		{"scopes as array", required, "GET", claims{"scope": []any{"x", "orders:read"}}, decision.Allowed, ""},
		{"no scope", required, "GET", claims{}, decision.InsufficientScope, ""},
		{"scope is not a prefix", required, "GET", claims{"scope": "orders:reader orders"}, decision.InsufficientScope, ""},
		{"all scopes", required, "POST", claims{"scope": "orders:write orders:read"}, decision.Allowed, ""},
		{"one of two scopes", required, "POST", claims{"scope": "orders:write"}, decision.InsufficientScope, ""},
		{"no grant for the method", required, "OPTIONS", claims{"scope": "orders:read"}, decision.MethodNotAllowed, ""},
		{"mapped claim, fresh login", required, "DELETE", claims{"realm_access": roles("sre"), "acr": "mfa", "auth_time": fresh}, decision.Allowed, ""},
		{"old login", required, "DELETE", claims{"realm_access": roles("sre"), "acr": "mfa", "auth_time": old}, decision.StepUp, ""},
		{"no auth_time", required, "DELETE", claims{"realm_access": roles("sre"), "acr": "mfa"}, decision.StepUp, ""},
		{"weak login", required, "DELETE", claims{"realm_access": roles("ops"), "acr": "pwd", "auth_time": fresh}, decision.StepUp, ""},
		{"wrong group, weak login", required, "DELETE", claims{"realm_access": roles("dev"), "acr": "pwd"}, decision.Forbidden, ""},
		{"the unmapped name is another claim", required, "DELETE", claims{"groups": []any{"ops"}, "acr": "mfa", "auth_time": fresh}, decision.Forbidden, ""},
		{"scope and step-up missing", required, "PATCH", claims{"acr": "pwd"}, decision.InsufficientScope, ""},
		{"step-up missing", required, "PATCH", claims{"scope": "orders:write"}, decision.StepUp, ""},
		{"numbers and booleans", required, "LOCK", claims{"level": 1, "admin": true}, decision.Allowed, ""},
		{"fractions", required, "LOCK", claims{"level": []any{2.5}, "admin": true}, decision.Allowed, ""},
		{"a text is no number", required, "LOCK", claims{"level": "1", "admin": true}, decision.Forbidden, ""},
		{"a text is no boolean", required, "LOCK", claims{"level": 1, "admin": "true"}, decision.Forbidden, ""},
		{"another number", required, "LOCK", claims{"level": 10, "admin": true}, decision.Forbidden, ""},
		{"no token", required, "GET", nil, decision.NoToken, ""},

		{"optional, no token", optional, "GET", nil, decision.NoToken, ""},
		{"optional, no token, no grant", optional, "OPTIONS", nil, decision.MethodNotAllowed, ""},
		{"optional, token", optional, "GET", claims{"scope": "orders:read"}, decision.Allowed, ""},
		{"optional without allow", plainOptional, "GET", nil, decision.Public, ""},
		{"optional without allow, token", plainOptional, "GET", claims{}, decision.Allowed, ""},
		{"optional, open method", optionalGET, "GET", nil, decision.Public, ""},
		{"optional, closed method", optionalGET, "POST", nil, decision.NoToken, ""},
		{"optional, closed method, token", optionalGET, "POST", claims{"scope": "w"}, decision.Allowed, ""},

		{"shadow", shadow, "POST", claims{}, decision.Allowed, decision.InsufficientScope},
		{"shadow lifts grants alone", shadow, "POST", nil, decision.NoToken, ""},
		{"shadow, good", shadow, "GET", claims{"scope": "orders:read"}, decision.Allowed, ""},

		{"no allow", plain, "PUT", claims{}, decision.Allowed, ""},
		{"open", open, "PUT", nil, decision.Public, ""},
		{"open method", openGET, "GET", nil, decision.Public, ""},
		{"closed method", openGET, "PUT", nil, decision.MethodNotAllowed, ""},
	} {
		var cl *token.Claims
		if c.claims != nil {
			var err error
			if cl, err = corp.Suppose(c.claims, now); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		rec := &decision.Record{Time: now, Trace: &decision.Trace{}}
		c.route.Decide(c.method, cl, rec)
		if rec.Reason != c.want || rec.Shadow != c.shadow || rec.Verdict != c.want.Verdict() {
			t.Errorf("%s: got %v %s shadow %q, want %s shadow %q", c.name, rec.Verdict, rec.Reason, rec.Shadow, c.want, c.shadow)
		}
		if c.want == decision.MethodNotAllowed && (rec.Remedy == nil || len(rec.Remedy.Methods) == 0) {
			t.Errorf("%s: no methods for Allow", c.name)
		}
	}
}

func TestCompileProblems(t *testing.T) {
	yes := []GrantConfig{{Scopes: []string{"a"}}}
	for _, c := range []struct {
		name   string
		routes []RouteConfig
		want   []string // one part of each problem
	}{
		{"none", nil, []string{"routes: is empty"}},
		{"names", []RouteConfig{{Path: "/a"}, {Name: "x", Path: "/b"}, {Name: "x", Path: "/c"}}, []string{"routes[0].name: is missing", `routes[2].name: "x" is also`}},
		{"same pattern", []RouteConfig{{Name: "a", Path: "/x"}, {Name: "b", Path: "/x"}}, []string{`routes[1].path: /x is also the path of route "a"`}},
		{"conflict", []RouteConfig{{Name: "a", Path: "/x/{y}"}, {Name: "b", Path: "/{z}/y"}}, []string{"routes[1].path: conflicts with /x/{y}"}},
		{"method in path", []RouteConfig{{Name: "a", Path: "GET /x"}}, []string{`must begin with "/"`}},
		{"dots in path", []RouteConfig{{Name: "a", Path: "/a/../b"}}, []string{"no request could ever match"}},
		{"bad wildcard", []RouteConfig{{Name: "a", Path: "/{x"}}, []string{"pattern"}},
		{"words", []RouteConfig{{Name: "a", Auth: "no", OnStale: "pass", Preflight: "x", EncodedSlash: "y", MaxBody: "-1"}},
			[]string{`auth: "no"`, `on_stale: "pass"`, `preflight: "x"`, `encoded_slash: "y"`, `max_body: "-1"`}},
		{"host on some", []RouteConfig{{Name: "a", Host: Strings{"a.test"}}, {Name: "b"}}, []string{"routes[1].host: is missing here"}},
		{"bad hosts", []RouteConfig{{Name: "a", Host: Strings{"a..b", "a.test:80", "*.*.c", "x.test", "X.test"}}}, []string{"host[0]", "host[1]", "host[2]", "host[4]"}},
		{"empty host", []RouteConfig{{Name: "a", Host: Strings{}}}, []string{"host: is empty"}},
		{"empty allow", []RouteConfig{{Name: "a", Allow: []GrantConfig{}}}, []string{"allow: is empty"}},
		{"empty grant", []RouteConfig{{Name: "a", Allow: []GrantConfig{{}}}}, []string{"allow[0]: is empty"}},
		{"empty lists", []RouteConfig{{Name: "a", Allow: []GrantConfig{{Scopes: []string{}, Methods: []string{}, Claims: map[string]Values{}, ACR: []string{}, Issuers: []string{}}}}},
			[]string{"methods: is empty", "scopes: is empty", "acr: is empty", "claims: is empty", "issuers: is empty"}},
		{"blank in scope", []RouteConfig{{Name: "a", Allow: []GrantConfig{{Scopes: []string{"a b", ""}}}}}, []string{"scopes[0]", "scopes[1]"}},
		{"methods", []RouteConfig{{Name: "a", Allow: []GrantConfig{{Methods: []string{"get", "CONNECT", "TRACE"}}}}}, []string{"write GET", "CONNECT is never", "TRACE is never"}},
		{"claims", []RouteConfig{{Name: "a", Allow: []GrantConfig{{Claims: map[string]Values{"a..b": {"x"}, "c": {}, "d": {nil}}}}}}, []string{"claims.a..b", "claims.c: is empty", "claims.d"}},
		{"unknown issuers", []RouteConfig{{Name: "a", Issuers: []string{"corp", "other"}, Allow: []GrantConfig{{Issuers: []string{"x"}}}}}, []string{"issuers[1]", "allow[0].issuers[0]"}},
		{"scopes without token", []RouteConfig{{Name: "a", Auth: "none", Allow: yes}}, []string{"asks for a token, but the route has auth: none"}},
		{"pass_authorization", []RouteConfig{{Name: "a", PassAuthorization: true}}, []string{"pass_authorization: is for auth: none"}},
		{"cross_site", []RouteConfig{{Name: "a", CrossSite: CrossSite{Word: "deny"}}, {Name: "b", Path: "/b", CrossSite: CrossSite{TrustedOrigins: []string{"app.test"}}}, {Name: "c", Path: "/c", CrossSite: CrossSite{TrustedOrigins: []string{}}}},
			[]string{`routes[0].cross_site: "deny"`, "routes[1].cross_site.trusted_origins[0]", "routes[2].cross_site.trusted_origins: is empty"}},
		{"max_age", []RouteConfig{{Name: "a", Allow: []GrantConfig{{MaxAge: new(time.Duration(-1))}, {MaxAge: new(time.Duration(0))}}}}, []string{"allow[0].max_age: -1ns", "allow[1].max_age: 0s"}},
	} {
		p, err := Compile(c.routes, []string{"corp"})
		if err == nil || p != nil {
			t.Errorf("%s: compiled", c.name)
			continue
		}
		problems := strings.Split(err.Error(), "\n")
		if len(problems) != len(c.want) {
			t.Errorf("%s: got %d problems, want %d:\n%v", c.name, len(problems), len(c.want), err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in:\n%v", c.name, want, err)
			}
		}
	}
	if _, err := Compile([]RouteConfig{{Name: "a"}}, []string{"corp", "partner"}); err == nil || !strings.Contains(err.Error(), "routes[0].issuers: is missing") {
		t.Errorf("several issuers and none named: %v", err)
	}
	if _, err := Compile([]RouteConfig{{Name: "a", Auth: "none"}}, []string{"corp", "partner"}); err != nil {
		t.Errorf("several issuers and an open route: %v", err)
	}
}

func TestCheckMethod(t *testing.T) {
	p := compile(t, RouteConfig{Path: "/", Allow: []GrantConfig{{Methods: []string{"PROPFIND"}}}})
	for method, ok := range map[string]bool{
		"GET": true, "OPTIONS": true, "PROPFIND": true,
		"get": false, "BREW": false, "CONNECT": false, "TRACE": false, "TRACK": false, "PRI": false, "": false,
	} {
		if err := p.CheckMethod(method); (err == nil) != ok {
			t.Errorf("%q: %v", method, err)
		}
	}
	p = compile(t,
		RouteConfig{Path: "/dav/", Allow: []GrantConfig{{Methods: []string{"PROPFIND"}}, {Scopes: []string{"x"}}}},
		RouteConfig{Path: "/x/", Allow: []GrantConfig{{Scopes: []string{"x"}}}},
		RouteConfig{Path: "/"},
	)
	for i, rt := range p.Routes() {
		for method, ok := range map[string]bool{"GET": true, "HEAD": true, "OPTIONS": true, "PROPFIND": i == 0, "BREW": false, "propfind": false, "TRACE": false, "": false} {
			if err := rt.CheckMethod(method); (err == nil) != ok {
				t.Errorf("route %d, %q: %v", i, method, err)
			}
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[Size]int64{"": 0, "1": 1, "64KiB": 64 << 10, "10 MiB": 10 << 20, "2GiB": 2 << 30, "1_000": 1000} {
		if got, err := in.Bytes(); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []Size{"0", "-1", "x", "1kb", "9999999999999GiB", "KiB"} {
		if got, err := in.Bytes(); err == nil {
			t.Errorf("%q: got %d", in, got)
		}
	}
}
