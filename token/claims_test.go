package token

import (
	"reflect"
	"strconv"
	"sync"
	"testing"
)

func TestParsePath(t *testing.T) {
	for s, want := range map[string][]string{
		"sub":                        {"sub"},
		"realm_access.roles":         {"realm_access", "roles"},
		"a.b.c":                      {"a", "b", "c"},
		`a\.b.c`:                     {"a.b", "c"},
		`a\\.b`:                      {`a\`, "b"},
		"https://example.com/groups": {"https://example.com/groups"},
		"urn:example:groups":         {"urn:example:groups"},
		"":                           nil,
		".":                          nil,
		"a.":                         nil,
		".a":                         nil,
		"a..b":                       nil,
		`a\`:                         nil,
		`a\b`:                        nil,
	} {
		got, err := ParsePath(s)
		if !reflect.DeepEqual(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: got %q, %v, want %q", s, got, err, want)
		}
	}
}

func TestScopes(t *testing.T) {
	i := newIssuer(t, testConfig(t))
	for _, c := range []struct {
		scope any
		want  []string
	}{
		{"a", []string{"a"}},
		{"a b:c", []string{"a", "b:c"}},
		{" a  b ", []string{"a", "b"}},
		{"a\tb", []string{"a\tb"}},
		{"a,b", []string{"a,b"}},
		{"", []string{}},
		{[]string{"a b", "c"}, []string{"a b", "c"}},
		{[]string{}, []string{}},
	} {
		got, err := i.Suppose(object{"scope": c.scope}, testNow)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Scopes, c.want) {
			t.Errorf("%q: got %q, want %q", c.scope, got.Scopes, c.want)
		}
	}
}

// A claim is what the payload says, whether its name was asked of an earlier token,
// and so looked up when this one was verified, or is asked for the first time.
func TestValue(t *testing.T) {
	i := newIssuer(t, testConfig(t))
	want := map[string]any{
		"sub": "alice", "scopes": "orders:read orders:write", "groups": []any{"ops", "sre"}, "realm_access.roles": []any{"ops", "sre"},
		"jti": "hypothetical", "missing": nil, "realm_access.missing": nil, "sub.inner": nil, "": nil, ".": nil,
	}
	suppose := func() *Claims {
		c, err := i.Suppose(object{"sub": "alice", "scope": "orders:read orders:write", "realm_access": object{"roles": []string{"ops", "sre"}}}, testNow)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for token := range 2 {
		c := suppose()
		if known := len(*c.known.Load()); known != token*len(want) {
			t.Errorf("token %d: %d claims are known before they are asked for", token, known)
		}
		for range 2 {
			var asking sync.WaitGroup
			for name, want := range want {
				asking.Go(func() {
					if got := c.Value(name); !reflect.DeepEqual(got, want) {
						t.Errorf("token %d, %q: got %v, want %v", token, name, got, want)
					}
				})
			}
			asking.Wait()
		}
	}
	for n := range 100 {
		name := strconv.Itoa(n)
		if got := suppose().Value(name); got != nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if asked := len(*i.asked.Load()); asked != 64 {
		t.Errorf("%d names are remembered, want 64", asked)
	}
	if got := suppose().Value("sub"); got != "alice" {
		t.Errorf("beyond what is remembered: got %v", got)
	}
}
