package token

import (
	"crypto/sha256"
	"fmt"
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
// is remembered as that much larger. All else stays as it is, the identity by which a
// token without jti is revoked as well.
func TestValueRemembered(t *testing.T) {
	cfg := testConfig(t)
	cfg.RequireJTI = deref(false)
	for name, raw := range map[string]string{"with jti": es256(goodClaims()), "without": es256(with(goodClaims(), object{"jti": nil}))} {
		t.Run(name, func(t *testing.T) {
			v := NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
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
			if IsDigest(first.TokenID) != (name == "without") {
				t.Fatalf("token id %q", first.TokenID)
			}
			before := cost()
			if verify() != first {
				t.Error("other claims, and nothing was asked for")
			}
			for _, name := range []string{"groups", "email"} {
				first.Value(name)
			}
			second := verify()
			if len(first.known) != 0 || len(second.known) != 2 || !reflect.DeepEqual(second.Value("groups"), []any{"ops", "sre"}) {
				t.Errorf("first %+v, second %+v", first, second)
			}
			was, is := reflect.ValueOf(first).Elem(), reflect.ValueOf(second).Elem()
			for i := range was.NumField() {
				field := was.Type().Field(i).Name
				if a, b := fmt.Sprint(was.Field(i)), fmt.Sprint(is.Field(i)); field != "known" && a != b {
					t.Errorf("%s was %s, is %s", field, a, b)
				}
			}
			if after := cost(); after <= before {
				t.Errorf("remembered as %d bytes, before that as %d", after, before)
			}
			if verify() != second {
				t.Error("other claims, and nothing new was asked for")
			}
		})
	}
}

// A rendering is kept from the second on, for its maker alone, the latest of them.
func TestRendering(t *testing.T) {
	c, err := newIssuer(t, testConfig(t)).Suppose(nil, testNow)
	if err != nil {
		t.Fatal(err)
	}
	one, other := &Rendering{Of: new(int)}, &Rendering{Of: new(int)}
	for n, keep := range []*Rendering{one, one, other} {
		c.KeepRendering(keep)
		for _, r := range []*Rendering{one, other} {
			if kept, want := c.Rendering(r.Of) == r, n > 0 && r == keep; kept != want {
				t.Errorf("after %d: kept %t, want %t", n+1, kept, want)
			}
		}
	}
}
