package token

import (
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

func TestIssuerProblems(t *testing.T) {
	const second = time.Second
	broken := write(t, "broken.json", `{"keys":[]}`)
	noPEM := write(t, "ca.pem", "hello")
	for _, c := range []struct {
		name   string
		change func(*IssuerConfig)
		want   string // the error up to its length; "" means none
	}{
		{"good", func(c *IssuerConfig) {}, ""},
		{"no name", func(c *IssuerConfig) { c.Name = "" }, "name: missing"},
		{"no issuer", func(c *IssuerConfig) { c.Issuer = "" }, "issuer: missing"},
		{"odd issuer with a file", func(c *IssuerConfig) { c.Issuer = "corp" }, ""},
		{"odd issuer to be discovered", func(c *IssuerConfig) { c.Issuer, c.JWKSFile = "corp", "" }, `issuer: its keys cannot be discovered: "corp" is not an http or https URL`},
		{"issuer with a query to be discovered", func(c *IssuerConfig) { c.Issuer, c.JWKSFile = "https://idp.example.com?x", "" }, `issuer: "https://idp.example.com?x": keys cannot be discovered`},
		{"discovery", func(c *IssuerConfig) { c.JWKSFile = "" }, ""},
		{"no audience", func(c *IssuerConfig) { c.Audiences = nil }, "audiences: missing"},
		{"empty audiences", func(c *IssuerConfig) { c.Audiences = []string{} }, "audiences: missing"},
		{"an empty audience", func(c *IssuerConfig) { c.Audiences = []string{"a", ""} }, "audiences: an audience is empty"},
		{"two sources", func(c *IssuerConfig) { c.JWKSURL = "https://idp.example.com" }, "jwks_file: excludes jwks_url"},
		{"URL", func(c *IssuerConfig) { c.JWKSFile, c.JWKSURL = "", "http://127.0.0.1:1/keys?a=b" }, ""},
		{"ftp", func(c *IssuerConfig) { c.JWKSFile, c.JWKSURL = "", "ftp://idp.example.com" }, `jwks_url: "ftp://idp.example.com" is not an http or https URL`},
		{"no host", func(c *IssuerConfig) { c.JWKSFile, c.JWKSURL = "", "https:///keys" }, `jwks_url: "https:///keys" is not an http or https URL`},
		{"no URL", func(c *IssuerConfig) { c.JWKSFile, c.JWKSURL = "", "https://a b%" }, "jwks_url: not a URL"},
		{"password", func(c *IssuerConfig) { c.JWKSFile, c.JWKSURL = "", "https://u:secret@idp.example.com" }, `jwks_url: "https://u:xxxxx@idp.example.com" has credentials in it`},
		{"HS256", func(c *IssuerConfig) { c.Algorithms = []string{"RS256", "HS256"} }, "algorithms: HS256 is symmetric: "},
		{"none", func(c *IssuerConfig) { c.Algorithms = []string{"None"} }, "algorithms: none is no signature"},
		{"unknown algorithm", func(c *IssuerConfig) { c.Algorithms = []string{"rs256"} }, `algorithms: "rs256" is unknown`},
		{"empty algorithm", func(c *IssuerConfig) { c.Algorithms = []string{""} }, `algorithms: "" is unknown`},
		{"no algorithms", func(c *IssuerConfig) { c.Algorithms = []string{} }, "algorithms: empty"},
		{"no types", func(c *IssuerConfig) { c.TokenTypes = []string{} }, "token_types: empty"},
		{"an empty type", func(c *IssuerConfig) { c.TokenTypes = []string{""} }, "token_types: a type is empty"},
		{"no file", func(c *IssuerConfig) { c.JWKSFile += ".not" }, "jwks_file: open "},
		{"directory", func(c *IssuerConfig) { c.JWKSFile = "/" }, `jwks_file: "/" is not a regular file`},
		{"broken file", func(c *IssuerConfig) { c.JWKSFile = broken }, `jwks_file: keys from "` + broken + `": no usable key`},
		{"negative lifetime", func(c *IssuerConfig) { c.MaxLifetime = -second }, "max_lifetime: -1s is not between 0 and 87600h0m0s"},
		{"negative age", func(c *IssuerConfig) { c.JWKSMaxAge = -second }, "jwks_max_age: -1s is not between 0 and 87600h0m0s"},
		{"negative leeway", func(c *IssuerConfig) { c.Leeway = deref(-second) }, "leeway: -1s is not between 0 and 87600h0m0s"},
		{"negative skew", func(c *IssuerConfig) { c.Skew = deref(-second) }, "skew: -1s is not between 0 and 87600h0m0s"},
		{"no CA file", func(c *IssuerConfig) { c.CAFile = "/nowhere.pem" }, "ca_file: open /nowhere.pem"},
		{"CA file without PEM", func(c *IssuerConfig) { c.CAFile = noPEM }, `ca_file: "` + noPEM + `" holds no PEM certificate`},
		{"fixed claim", func(c *IssuerConfig) { c.Claims = map[string]string{"exp": "expires"} }, "claims.exp: exp is fixed"},
		{"sub mapped", func(c *IssuerConfig) { c.Claims = map[string]string{"sub": "oid", "jti": "uti"} }, ""},
		{"bad path", func(c *IssuerConfig) { c.Claims = map[string]string{"groups": "a..b"} }, `claims.groups: claim path "a..b" has an empty name`},
		{"empty path", func(c *IssuerConfig) { c.Claims = map[string]string{"groups": ""} }, "claims.groups: the claim path is empty"},
		{"two problems", func(c *IssuerConfig) { c.Name, c.Audiences = "", nil }, "name: missing: routes and metrics call the issuer by it\naudiences: missing"},
	} {
		cfg := testConfig(t)
		c.change(&cfg)
		i, err := NewIssuer(cfg, nil, nil)
		if (i == nil) != (err != nil) || (err != nil) != (c.want != "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
		var field *FieldError
		if err != nil && (!errors.As(err, &field) || field.Field != c.want[:strings.IndexByte(c.want, ':')]) {
			t.Errorf("%s: the problem is with %v", c.name, field)
		}
	}
}

func TestIssuerYAML(t *testing.T) {
	var cfg IssuerConfig
	d := yaml.NewDecoder(strings.NewReader(`
name: corp
issuer: https://idp.example.com/realms/corp
audiences: [intranet]
jwks_url: https://idp.example.com/realms/corp/keys
algorithms: [RS256, ES256, EdDSA]
token_types: [at+jwt, JWT]
max_lifetime: 12h
leeway: 0s
skew: 3s
jwks_max_age: 48h
require_jti: false
claims: {scopes: scp, groups: realm_access.roles}
`))
	d.KnownFields(true)
	if err := d.Decode(&cfg); err != nil {
		t.Fatal(err)
	}
	i := newIssuer(t, cfg)
	got := i.Config()
	if got.MaxLifetime != 12*time.Hour || *got.Leeway != 0 || *got.Skew != 3*time.Second || got.JWKSMaxAge != 48*time.Hour || *got.RequireJTI {
		t.Errorf("got %+v", got)
	}
	if i.Name() != "corp" || i.URL() != testIssuer || got.Claims["scopes"] != "scp" || got.Claims["session"] != "sid" {
		t.Errorf("got %+v", got)
	}
	cfg = testConfig(t)
	cfg.Algorithms = nil
	got = newIssuer(t, cfg).Config()
	if got.MaxLifetime != 24*time.Hour || *got.Leeway != 30*time.Second || *got.Skew != 2*time.Second || got.JWKSMaxAge != 24*time.Hour || !*got.RequireJTI ||
		!slices.Equal(got.Algorithms, []string{"RS256", "ES256", "EdDSA"}) || !slices.Equal(got.TokenTypes, []string{"at+jwt", "JWT"}) {
		t.Errorf("defaults are %+v", got)
	}
	if cfg.Leeway != nil || len(cfg.Claims) != 1 {
		t.Errorf("the argument was changed: %+v", cfg)
	}
}

func TestCarryOver(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	ca := func() string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	}
	first := IssuerConfig{Name: "corp", Issuer: testIssuer, Audiences: []string{"intranet"}, JWKSURL: "https://idp.example.com/keys", CAFile: write(t, "ca.pem", ca())}
	history := []Limits{{testNow.Add(-48 * time.Hour), time.Hour, 0, 0}, {testNow, 24 * time.Hour, 30 * time.Second, 0}}
	prev, err := NewIssuer(first, history, nil)
	if err != nil {
		t.Fatal(err)
	}
	document, _, err := parseKeys([]byte(allKeys()))
	if err != nil {
		t.Fatal(err)
	}
	prev.keys.current.Store(&snapshot{keys: document, generation: 1, at: testNow})
	const same, keys, seeded, nothing = "the issuer", "the keys", "a copy of the keys", "nothing"
	for _, c := range []struct {
		name   string
		change func(*IssuerConfig)
		limits []Limits
		want   string
	}{
		{"nothing changed", func(c *IssuerConfig) {}, history, same},
		{"defaults spelled out", func(c *IssuerConfig) { c.MaxLifetime = 24 * time.Hour; c.Leeway = deref(30 * time.Second) }, history, same},
		{"history pruned", func(c *IssuerConfig) {}, history[1:], same},
		{"history grown", func(c *IssuerConfig) {}, append(history[:2:2], Limits{testNow, time.Hour, 0, 0}), keys},
		{"audience", func(c *IssuerConfig) { c.Audiences = []string{"extranet"} }, history, keys},
		{"leeway", func(c *IssuerConfig) { c.Leeway = deref(time.Second) }, history, keys},
		{"name", func(c *IssuerConfig) { c.Name = "other" }, history, keys},
		{"age", func(c *IssuerConfig) { c.JWKSMaxAge = time.Hour }, history, seeded},
		{"address", func(c *IssuerConfig) { c.JWKSURL += "2" }, history, nothing},
		{"issuer", func(c *IssuerConfig) { c.Issuer += "2" }, history, nothing},
		{"CA", func(c *IssuerConfig) { rewrite(t, c.CAFile, ca()+"\n") }, history, nothing},
	} {
		cfg := first
		c.change(&cfg)
		next, err := NewIssuer(cfg, c.limits, prev)
		if err != nil {
			t.Fatal(err)
		}
		got := nothing
		switch {
		case next == prev:
			got = same
		case next.Keys() == prev.Keys():
			got = keys
		case next.keys.current.Load() == prev.keys.current.Load():
			got = seeded
		}
		if got != c.want {
			t.Errorf("%s: %s was kept, want %s", c.name, got, c.want)
		}
	}
}

func TestSuppose(t *testing.T) {
	i := newIssuer(t, testConfig(t))
	given := map[string]any{"sub": "bob", "realm_access": map[string]any{"roles": []string{"ops"}}, "level": 3}
	c, err := i.Suppose(given, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject != "bob" || c.TokenID == "" || !c.IssuedAt.Equal(testNow) || !c.Expiry.After(testNow) || c.Issuer != i || len(given) != 3 {
		t.Errorf("got %+v of %v", c, given)
	}
	if got := c.Value("groups"); !reflect.DeepEqual(got, []any{"ops"}) {
		t.Errorf("groups are %v", got)
	}
	if id, ok := c.ID(KindSubject); !ok || id != Identify(KindSubject, testIssuer, "bob") {
		t.Errorf("identity %x", id)
	}
	for _, c := range []struct {
		claims object
		want   string
	}{
		{nil, ""},
		{object{"iss": testIssuer, "exp": testNow.Unix() - 100}, ""},
		{object{"iss": "https://evil.example"}, `iss "https://evil.example" is not that of issuer "corp"`},
		{object{"sub": 7}, "claims: sub is not a string"},
		{object{"exp": "tomorrow"}, "claims: exp is not a number"},
		{object{"events": object{}}, "claims: events: "},
		{object{"x": func() {}}, "claims: json: "},
	} {
		got, err := i.Suppose(c.claims, testNow)
		if (err != nil) != (c.want != "") || (got == nil) != (err != nil) || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%v: got %v, %v, want %s", c.claims, got, err, c.want)
		}
	}
	cfg := testConfig(t)
	cfg.Claims = map[string]string{"jti": "meta.id", "sub": "meta.user"}
	c, err = newIssuer(t, cfg).Suppose(object{"meta": object{"user": "carol"}}, testNow)
	if err != nil || c.TokenID == "" || c.Subject != "carol" {
		t.Errorf("with a mapped jti: %+v, %v", c, err)
	}
}
