package token

import (
	"crypto/sha256"
	"reflect"
	"slices"
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
		"sub": "al\nice", "scopes": "orders:read orders:write", "groups": []any{"ops", "sre"}, "realm_access.roles": []any{"ops", "sre"},
		"jti": "hypothetical", "missing": nil, "realm_access.missing": nil, "sub.inner": nil, "": nil, ".": nil,
	}
	suppose := func() *Claims {
		c, err := i.Suppose(object{"sub": "al\nice", "scope": "orders:read orders:write", "realm_access": object{"roles": []string{"ops", "sre"}}}, testNow)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for token := range 2 {
		c := suppose()
		if known := len(c.known); known != token*len(want) {
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
		if c.Subject != "al\nice" || c.beside != len(c.Subject) || !slices.Equal(c.Scopes, []string{"orders:read", "orders:write"}) {
			t.Errorf("token %d: subject %q, %d bytes beside the text, scopes %q", token, c.Subject, c.beside, c.Scopes)
		}
	}
	for n := range 2 * maxAsked {
		name := strconv.Itoa(n)
		if got := suppose().Value(name); got != nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if asked := len(*i.asked.Load()); asked != maxAsked {
		t.Errorf("%d names are remembered, want %d", asked, maxAsked)
	}
	if got := suppose().Value("realm_access"); !reflect.DeepEqual(got, map[string]any{"roles": []any{"ops", "sre"}}) {
		t.Errorf("beyond what is remembered: got %v", got)
	}
}

// A token that is remembered learns at its next use what was asked for meanwhile, and
// is remembered as that much larger.
func TestValueRemembered(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	raw := es256(goodClaims())
	verify := func() *Claims {
		t.Helper()
		c, refused := v.Verify(t.Context(), raw, nil, testNow, nil)
		if refused != nil {
			t.Fatal(refused)
		}
		v.cache.entries.Wait()
		return c
	}
	cost := func() int64 {
		t.Helper()
		digest := sha256.Sum256([]byte(raw))
		e := v.cache.get(&digest)
		if e == nil {
			t.Fatal("the token is not remembered")
		}
		return e.cost()
	}
	first := verify()
	before := cost()
	if verify() != first {
		t.Error("other claims, and nothing was asked for")
	}
	for _, name := range []string{"groups", "email"} {
		first.Value(name)
	}
	second := verify()
	if len(first.known) != 0 || len(second.known) != 2 || !reflect.DeepEqual(second.Value("groups"), []any{"ops", "sre"}) || second.ids != first.ids || second.Subject != "alice" {
		t.Errorf("first %+v, second %+v", first, second)
	}
	if after := cost(); after <= before {
		t.Errorf("remembered as %d bytes, before that as %d", after, before)
	}
	if verify() != second {
		t.Error("other claims, and nothing new was asked for")
	}
}
