package token

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

const session = "__Host-session"

func header(fields ...string) http.Header {
	h := http.Header{}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		h[name] = append(h[name], value)
	}
	return h
}

func TestFind(t *testing.T) {
	for _, c := range []struct{ fields, want string }{
		{"", "none"},
		{"Cookie: __Host-session=x", "cookie x"},
		{"Cookie: a=1; __Host-session=x; b=2", "cookie x"},
		{"Cookie: a=1|Cookie: __Host-session=x|Cookie: b", "cookie x"},
		{"Cookie: a=1;__Host-session=x;b=2", "cookie x"},
		{"Cookie: a=1 ;\t__Host-session=x \t; b", "cookie x"},
		{"Cookie: __Host-session=a=b", "cookie a=b"},
		{`Cookie: a="quoted"; __Host-session=x; b=""`, "cookie x"},
		{`Cookie: prefs={"a":1}; __Host-session=x`, "cookie x"},
		{"Cookie: __Host-session2=x; x__Host-session=y; __Host-sessio=z", "none"},
		{"Cookie: " + strings.Repeat("a=1; ", 4000) + "__Host-session=x", "cookie x"},
		{"Cookie: __Host-session=x; __Host-session=y", "ambiguous_credentials"},
		{"Cookie: __Host-session=x; __Host-session=x", "ambiguous_credentials"},
		{"Cookie: __Host-session=x|Cookie: __Host-session=x", "ambiguous_credentials"},
		{"Cookie: __Host-session=x; __Host-session =y", "ambiguous_credentials"},
		{"Cookie: __Host-session =x", "ambiguous_credentials"},
		{"Cookie: __HOST-session=x", "ambiguous_credentials"},
		{"Cookie: __host-SESSION=y; __Host-session=x", "ambiguous_credentials"},
		{`Cookie: "__Host-session"=x`, "ambiguous_credentials"},
		{"Cookie: \x01__Host-session=x", "ambiguous_credentials"},
		{"Cookie: \u00a0__Host-session=x", "ambiguous_credentials"},
		{"Cookie: \x85__Host-session=x", "ambiguous_credentials"},
		{"Cookie: =__Host-session=x", "ambiguous_credentials"},
		{"Cookie: = __Host-session=x", "ambiguous_credentials"},
		{"Cookie: __Host-session", "ambiguous_credentials"},
		{"Cookie: __Host-session; __Host-session=x", "ambiguous_credentials"},
		{`Cookie: x="1; __Host-session=evil; y=2"`, "ambiguous_credentials"},
		{`Cookie: __Host-session=x; y=a"b`, "ambiguous_credentials"},
		{`Cookie: __Host-session=x; y="a"b"`, "ambiguous_credentials"},
		{`Cookie: y"=1; __Host-session=x`, "ambiguous_credentials"},
		{`Cookie: x="1; y=2"`, "none"}, // nothing to hide
		{`Cookie: __Host-session="x"`, "ambiguous_credentials"},
		{"Cookie: __Host-session=", "token_malformed"},
		{"Cookie: __Host-session= ; a=1", "token_malformed"},
		{"Authorization: Bearer x", "bearer x"},
		{"Authorization: bEARER   x", "bearer x"},
		{"Authorization: Bearer x, Basic y", "bearer x, Basic y"}, // one credential, which cannot be a token
		{"Authorization: Basic eDp5", "none"},
		{"Authorization: BearerX y", "none"},
		{"Authorization: Bearer-x y", "none"},
		{"Authorization: Bear x", "none"},
		{"Authorization: Bearer", "token_malformed"},
		{"Authorization: Bearer  ", "token_malformed"},
		{"Authorization: Bearer\tx", "ambiguous_credentials"},
		{"Authorization: Bearer,x", "ambiguous_credentials"},
		{"Authorization: Bearer=x", "ambiguous_credentials"},
		{"Authorization: Bearer\u00a0x", "ambiguous_credentials"},
		{"Authorization:  Bearer x", "ambiguous_credentials"},
		{"Authorization: \"Bearer x", "ambiguous_credentials"},
		{"Authorization: Bearer x|Authorization: Bearer x", "ambiguous_credentials"},
		{"Authorization: Bearer x|Authorization: Basic y", "ambiguous_credentials"},
		{"Authorization: Basic x|Authorization: Basic y", "ambiguous_credentials"},
		{"Authorization: Bearer x|Cookie: __Host-session=x", "bearer x"},
		{"Authorization: Bearer x|Cookie: __Host-session=y", "ambiguous_credentials"},
		{"Authorization: Bearer x|Cookie: __Host-session=", "token_malformed"},
		{"Authorization: Basic x|Cookie: __Host-session=y", "cookie y"},
	} {
		got, refused := Finder{Cookie: session, Bearer: true}.Find(header(strings.Split(c.fields, "|")...))
		text := "bearer " + got.Raw
		switch {
		case refused != nil:
			if text = reason(refused); got != (Credential{}) {
				t.Errorf("%.60q: refused, and yet gave %q", c.fields, got.Raw)
			}
		case got.Raw == "":
			text = "none"
		case got.Cookie:
			text = "cookie " + got.Raw
		}
		if text != c.want {
			t.Errorf("%.60q: got %q, want %q", c.fields, text, c.want)
		}
	}
}

func TestFindOff(t *testing.T) {
	both := header("Authorization: Bearer x", "Authorization: Bearer y", "Cookie: __Host-session=z")
	if got, err := (Finder{}).Find(both); err != nil || got != (Credential{}) {
		t.Errorf("the zero Finder found %v, %v", got, err)
	}
	if got, err := (Finder{Cookie: session}).Find(both); err != nil || got != (Credential{"z", true}) {
		t.Errorf("without bearer: got %v, %v", got, err)
	}
	if got, err := (Finder{Bearer: true}).Find(header("Authorization: Bearer x", "Cookie: __Host-session=a; __Host-session=b")); err != nil || got != (Credential{"x", false}) {
		t.Errorf("without cookie: got %v, %v", got, err)
	}
}

func TestStripCookies(t *testing.T) {
	for _, c := range []struct{ before, after string }{
		{"a=1; b=2", "a=1; b=2"},
		{"a=1;b=\"2\" ;; c", "a=1;b=\"2\" ;; c"},
		{"__Host-session=x", ""},
		{"__Host-session=x; a=1", "a=1"},
		{"a=1; __Host-session=x; b=2", "a=1; b=2"},
		{"a=1; __Host-session=x", "a=1"},
		{"a=1;__Host-session=x;b=2", "a=1;b=2"},
		{"__Host-session=x; __Host-session=y; ", ""},
		{"a=1; __HOST-SESSION=x; __Host-session =y; \"__Host-session\"=z; =__Host-session=u; __Host-session; b=2", "a=1; b=2"},
		{"a=1; second=x; __Host-session2=y", "a=1; __Host-session2=y"},
		{"a=1|__Host-session=x|b=2", "a=1|b=2"},
		{`x="1; __Host-session=evil; y=2"`, `x="1; y=2"`},
	} {
		before := strings.Split(c.before, "|")
		h := http.Header{"Cookie": slices.Clone(before), "Other": {"__Host-session=x"}}
		shared := h["Cookie"]
		StripCookies(h, []string{session, "second", ""})
		if got := strings.Join(h["Cookie"], "|"); got != c.after {
			t.Errorf("%q: got %q, want %q", c.before, got, c.after)
		}
		if _, ok := h["Cookie"]; ok != (c.after != "") || h.Get("Other") == "" || !slices.Equal(shared, before) {
			t.Errorf("%q: left %v, the shared slice holds %q", c.before, h, shared)
		}
	}
}

func FuzzCredential(f *testing.F) {
	for _, seed := range []string{"__Host-session=x", "a=1; __Host-session=x; b=2", `x="1; __Host-session=e; y=2"`, "=__Host-session=x;__HOST-session=y", "__Host-session =x", "\x00__Host-session"} {
		f.Add(seed, "a=1")
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		h := http.Header{"Cookie": {first, second}}
		finder := Finder{Cookie: session}
		found, refused := finder.Find(h)
		pairs := 0
		for _, piece := range strings.Split(first+";"+second, ";") {
			if value, ok := strings.CutPrefix(strings.Trim(piece, " \t"), session+"="); ok {
				if pairs++; refused == nil && value != found.Raw {
					t.Fatalf("%q, %q: found %q, not %q", first, second, found.Raw, value)
				}
			}
		}
		if refused == nil && (found.Raw != "") != (pairs == 1) {
			t.Fatalf("%q, %q: found %q with %d pairs", first, second, found.Raw, pairs)
		}
		StripCookies(h, []string{session})
		for _, field := range h["Cookie"] {
			for _, piece := range strings.Split(field, ";") {
				if Resembles(piece, session) {
					t.Fatalf("%q, %q: %q is left", first, second, piece)
				}
			}
		}
		if left, refused := finder.Find(h); refused != nil || left.Raw != "" {
			t.Fatalf("%q, %q: after stripping found %q, %v", first, second, left.Raw, refused)
		}
	})
}
