package policy

import (
	"strings"
	"testing"
	"time"

	"durward/decision"
	"durward/token"
)

// told is what a trace says, a line for each step: name, mark, text.
func told(trace *decision.Trace) string {
	var b strings.Builder
	for _, s := range trace.Steps() {
		b.WriteString(strings.TrimSpace(s.Name+" "+string(s.Mark)) + ": " + s.Text + "\n")
	}
	return b.String()
}

// TestExplainRoute: which host's routes are asked, and which pattern wins over which.
func TestExplainRoute(t *testing.T) {
	hosted, err := Compile([]RouteConfig{
		{Name: "shop", Host: Strings{"shop.test"}, Path: "/"},
		{Name: "orders", Host: Strings{"shop.test"}, Path: "/orders/"},
		{Name: "order", Host: Strings{"shop.test"}, Path: "/orders/{id}"},
		{Name: "tenants", Host: Strings{"*.tenants.test"}, Path: "/app/"},
		{Name: "rest", Host: Strings{"*"}, Path: "/rest"},
	}, []string{"corp"})
	if err != nil {
		t.Fatal(err)
	}
	open, err := Compile([]RouteConfig{{Name: "all"}}, []string{"corp"})
	if err != nil {
		t.Fatal(err)
	}
	closed, err := Compile([]RouteConfig{{Name: "shop", Host: Strings{"shop.test"}}, {Name: "tenants", Host: Strings{"*.tenants.test"}}}, []string{"corp"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		policy     *Policy
		host, path string
		want       string
	}{
		{hosted, "shop.test", "/orders/7", `host ok: "shop.test" is named by routes, and only these are asked
route ok: "order": pattern /orders/{id} of host "shop.test" is more specific for "/orders/7" than / of "shop", /orders/ of "orders"
`},
		{hosted, "shop.test", "/x", `host ok: "shop.test" is named by routes, and only these are asked
route ok: "shop": pattern / of host "shop.test" is the only one that matches "/x"
`},
		{hosted, "a.tenants.test", "/x", `host ok: "a.tenants.test" falls under "*.tenants.test", and only the routes of that are asked
route no: no route of host "*.tenants.test" matches "/x"; its patterns are /app/
`},
		{hosted, "else.test", "/rest/", `host ok: "else.test" is named by no route, so those of "*" are asked
route ok: "rest": pattern /rest of host "*" is the only one that matches "/rest/"
`},
		{open, "any.test", "/", `host ok: "any.test": no route asks for a host
route ok: "all": pattern / of host "*" is the only one that matches "/"
`},
		{closed, "else.test", "/", `host no: no route speaks of "else.test"; there are routes for shop.test, *.tenants.test
`},
	} {
		host, err := ReadHost(c.host)
		if err != nil {
			t.Fatal(err)
		}
		path, err := ReadPath(c.path)
		if err != nil {
			t.Fatal(err)
		}
		trace := &decision.Trace{}
		explained, _ := c.policy.Find(host, path, trace)
		if got := told(trace); got != c.want {
			t.Errorf("%s%s\ngot:\n%swant:\n%s", c.host, c.path, got, c.want)
		}
		if silent, _ := c.policy.Find(host, path, nil); silent != explained {
			t.Errorf("%s%s: explained, it is another route", c.host, c.path)
		}
	}
}

// TestExplainGrants: each grant names what it lacks, and what the token has.
func TestExplainGrants(t *testing.T) {
	issuer, err := token.NewIssuer(token.IssuerConfig{Name: "corp", Issuer: "https://idp.test", Audiences: []string{"app"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_790_000_000, 0)
	age := 15 * time.Minute
	claims := func(c map[string]any) *token.Claims {
		t.Helper()
		made, err := issuer.Suppose(c, now)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	for _, c := range []struct {
		grant  GrantConfig
		claims map[string]any
		want   string
	}{
		{GrantConfig{Methods: []string{"POST"}}, nil, "grant: allow[0] (methods POST) does not speak of GET\n"},
		{GrantConfig{Scopes: []string{"a", "b", "c"}}, map[string]any{"scope": "b x"}, "grant no: allow[0] (scopes a b c) lacks the scope a c: the token has b x\n"},
		{GrantConfig{Scopes: []string{"a"}}, nil, "grant no: allow[0] (scopes a) lacks the scope a: the token has none\n"},
		{GrantConfig{Scopes: []string{"a"}}, map[string]any{"scope": "a"}, "grant ok: allow[0] (scopes a) holds\n"},
		{GrantConfig{ACR: []string{"mfa", "hw"}}, map[string]any{"acr": "pwd"}, `grant no: allow[0] (acr mfa hw) lacks an acr of mfa hw: the token has "pwd"` + "\n"},
		{GrantConfig{MaxAge: &age}, nil, "grant no: allow[0] (login at most 15m0s ago) lacks a login at most 15m0s ago: the token has no auth_time\n"},
		{GrantConfig{MaxAge: &age}, map[string]any{"auth_time": now.Add(-20 * time.Minute).Unix()}, "grant no: allow[0] (login at most 15m0s ago) lacks a login at most 15m0s ago: it was 20m0s ago\n"},
		{GrantConfig{Claims: map[string]Values{"groups": {"ops", "sre"}}}, map[string]any{"groups": []string{"sales"}}, "grant no: allow[0] (groups any of [ops sre]) lacks the claim groups with one of [ops sre]: the token has [sales]\n"},
		{GrantConfig{Claims: map[string]Values{"groups": {"ops"}}, Scopes: []string{"a"}}, nil, "grant no: allow[0] (scopes a, groups any of [ops]) lacks the scope a: the token has none; the claim groups with one of [ops]: the token lacks it\n"},
		{GrantConfig{Issuers: []string{"partner"}}, nil, "grant no: allow[0] (issuers partner) lacks the issuer partner: the token comes from corp\n"},
	} {
		p, err := Compile([]RouteConfig{{Name: "all", Issuers: []string{"corp", "partner"}, Allow: []GrantConfig{c.grant}}}, []string{"corp", "partner"})
		if err != nil {
			t.Fatal(err)
		}
		rec := &decision.Record{Time: now, Trace: &decision.Trace{}}
		p.Routes()[0].Decide("GET", claims(c.claims), rec)
		if got := told(rec.Trace); got != c.want {
			t.Errorf("got:  %swant: %s", got, c.want)
		}
		if holds := strings.Contains(c.want, " holds"); holds != (rec.Verdict == decision.Allow) {
			t.Errorf("%s: %s", c.want, rec.Verdict)
		}
	}
}

// TestWarnedGrants: of grants that decide nothing each is named once, and no other.
func TestWarnedGrants(t *testing.T) {
	long, short := time.Hour, time.Minute
	for _, c := range []struct {
		name  string
		allow []GrantConfig
		want  string // the fields that are warned of
	}{
		{"each for itself", []GrantConfig{{Methods: []string{"GET"}, Scopes: []string{"a"}}, {Methods: []string{"POST"}, Scopes: []string{"a"}}, {Scopes: []string{"b"}}}, ""},
		{"more scopes", []GrantConfig{{Scopes: []string{"a", "b"}}, {Scopes: []string{"a"}}}, "routes[0].allow[0]"},
		{"the same twice", []GrantConfig{{Scopes: []string{"a"}}, {Scopes: []string{"a"}}}, "routes[0].allow[1]"},
		{"GET covers HEAD", []GrantConfig{{Methods: []string{"GET"}, Scopes: []string{"a"}}, {Methods: []string{"HEAD"}, Scopes: []string{"a"}}}, "routes[0].allow[1]"},
		{"all methods", []GrantConfig{{Methods: []string{"GET"}, Scopes: []string{"a"}}, {Scopes: []string{"a"}}}, "routes[0].allow[0]"},
		{"a younger login", []GrantConfig{{MaxAge: &long}, {MaxAge: &short}}, "routes[0].allow[1]"},
		{"other acr", []GrantConfig{{ACR: []string{"a"}}, {ACR: []string{"b"}}}, ""},
		{"fewer acr", []GrantConfig{{ACR: []string{"a"}}, {ACR: []string{"a", "b"}}}, "routes[0].allow[0]"},
		{"fewer values", []GrantConfig{{Claims: map[string]Values{"g": {"x", "y"}}}, {Claims: map[string]Values{"g": {"x"}}}}, "routes[0].allow[1]"},
		{"another claim", []GrantConfig{{Claims: map[string]Values{"g": {"x"}}}, {Claims: map[string]Values{"h": {"x"}}}}, ""},
		{"a number is no text", []GrantConfig{{Claims: map[string]Values{"g": {"1"}}}, {Claims: map[string]Values{"g": {1}}}}, ""},
	} {
		p, err := Compile([]RouteConfig{{Name: "all", Allow: c.allow}}, []string{"corp"})
		if err != nil {
			t.Fatal(err)
		}
		var fields []string
		for _, w := range p.Warnings() {
			fields = append(fields, w.Field)
		}
		if got := strings.Join(fields, " "); got != c.want {
			t.Errorf("%s: warned of %q, want %q", c.name, got, c.want)
		}
	}
}
