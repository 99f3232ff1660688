package token

import (
	"reflect"
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
