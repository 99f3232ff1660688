package policy

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestReadPath(t *testing.T) {
	for _, c := range []struct{ raw, want string }{ // want "" is refused
		{"/", "/"},
		{"/a/b", "/a/b"},
		{"/a/b/", "/a/b/"},
		{"/a%20b", "/a%20b"},
		{"/%61dmin", "/admin"},
		{"/%7Euser", "/~user"},
		{"/caf%C3%A9", "/caf%C3%A9"},
		{"/caf%c3%a9", "/caf%c3%a9"},
		{"/café", "/caf%C3%A9"},
		{"/a|b", "/a%7Cb"},
		{"/a;v=1/b", "/a;v=1/b"},
		{"/100%25", "/100%25"},
		{"/a%2Fb", "/a%2Fb"},
		{"/a%3Fb%23c", "/a%3Fb%23c"},
		{"/.well-known/x", "/.well-known/x"},
		{"/a..b/c...d", "/a..b/c...d"},
		{"/(a)!*'$&+,=:@", "/(a)!*'$&+,=:@"},

		{"", ""}, {"a", ""}, {"*", ""}, {"x:admin/secret", ""}, {"http://app.test/x", ""},
		{"//", ""}, {"//admin", ""}, {"/a//b", ""}, {"/a//", ""},
		{"/.", ""}, {"/..", ""}, {"/a/../b", ""}, {"/a/./b", ""}, {"/a/..", ""}, {"/a/...", ""}, {"/.../a", ""},
		{"/a/%2e%2e/b", ""}, {"/a/.%2e/b", ""}, {"/a/..%2fb", ""}, {"/a%2f..%2fb", ""}, {"/%2fadmin", ""}, {"/a%2f%2fb", ""},
		{"/a/%252e%252e/b", ""}, {"/a/%25%32%65", ""}, {"/a/%u002e", ""}, {"/a/%25u002e", ""},
		{"/a/..;/b", ""}, {"/a/..;x=y/b", ""}, {"/;/admin", ""}, {"/a/.;/b", ""}, {"/a/..%3b/b", ""}, {"/a/;x", ""},
		{"/a/.. /b", ""}, {"/a/..%20/b", ""}, {"/a/%20/b", ""},
		{`/a\b`, ""}, {"/a%5cb", ""}, {`/a/..\admin`, ""},
		{"/a%00b", ""}, {"/a\x00b", ""}, {"/a%0d%0ab", ""}, {"/a%7f", ""}, {"/a\tb", ""}, {"/a b", ""},
		{"/%c0%ae%c0%ae/admin", ""}, {"/%ff", ""}, {"/\xff", ""}, {"/%e0%80%af", ""},
		{"/a#b", ""}, {"/a%", ""}, {"/a%2", ""}, {"/a%zz", ""},
	} {
		p, err := ReadPath(c.raw)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%q: accepted as %q", c.raw, p.Escaped())
		case c.want != "" && (err != nil || p.Escaped() != c.want):
			t.Errorf("%q: got %q, %v; want %q", c.raw, p.Escaped(), err, c.want)
		}
	}
}

// FuzzReadPath holds the properties on which the promise "what is judged is what
// is forwarded" rests.
func FuzzReadPath(f *testing.F) {
	for _, seed := range []string{"/", "/a/b", "/a%2Fb", "/%61", "/a;x/b", "/caf%C3%A9", "/café", "/a|b", "/%25", "/a/../b", "/..%2f", "/%c0%ae"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := ReadPath(raw)
		if err != nil {
			if p != (Path{}) {
				t.Fatalf("%q: a path beside the error %v", raw, err)
			}
			return
		}
		again, err := ReadPath(p.Escaped())
		if err != nil || again != p {
			t.Fatalf("%q: canonical of canonical is %+v, %v; want %+v", raw, again, err, p)
		}
		// net/url, which writes the request line, must send these very bytes.
		u := url.URL{Path: p.Decoded(), RawPath: p.Escaped()}
		if got := u.RequestURI(); got != p.Escaped() {
			t.Fatalf("%q: judged %q, sent %q", raw, p.Escaped(), got)
		}
		// However a server resolves dots, after decoding once or twice, with
		// backslashes or parameters, it stays at this path.
		for _, reading := range readings(p.Escaped()) {
			if got := path.Clean(reading); got != reading && got+"/" != reading {
				t.Fatalf("%q: a server reads %q and resolves it to %q", raw, reading, got)
			}
		}
	})
}

// readings are what servers of five kinds make of an escaped path before they
// resolve dots: raw, decoding once (nginx), decoding twice, turning backslashes
// (IIS), cutting parameters (Tomcat).
func readings(escaped string) []string {
	once, err := url.PathUnescape(escaped)
	if err != nil {
		once = escaped
	}
	twice, err := url.PathUnescape(once)
	if err != nil {
		twice = once
	}
	var bare []string
	for segment := range strings.SplitSeq(escaped, "/") {
		name, _, _ := strings.Cut(segment, ";")
		bare = append(bare, name)
	}
	tomcat, err := url.PathUnescape(strings.Join(bare, "/"))
	if err != nil {
		tomcat = once
	}
	return []string{escaped, once, twice, strings.ReplaceAll(once, `\`, "/"), tomcat}
}

func TestReadHost(t *testing.T) {
	for _, c := range []struct{ raw, want string }{
		{"app.test", "app.test"},
		{"APP.test", "app.test"},
		{"app.test.", "app.test"},
		{"app.test:8080", "app.test:8080"},
		{"APP.test.:443", "app.test:443"},
		{"localhost", "localhost"},
		{"my_service:80", "my_service:80"},
		{"127.0.0.1:1", "127.0.0.1:1"},
		{"[::1]:8080", "[::1]:8080"},
		{"[0:0::1]", "[::1]"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},

		{"", ""}, {".", ""}, {"a,b", ""}, {"a:80:90", ""}, {"[::1", ""}, {"app.test:", ""}, {"app.test:99999", ""}, {"app.test:0", ""}, {"app.test:080", ""},
		{"app.test:8o", ""}, {"a%00b", ""}, {"a..b", ""}, {"*.test", ""}, {"[::1%25eth0]", ""}, {"[::1]x", ""}, {"a@b", ""}, {"a/b", ""}, {"a b", ""}, {"a\tb", ""},
		{"bücher.example", ""}, {"127.1", ""}, {"0x7f.0.0.1", "0x7f.0.0.1"[:0]}, {"127.0.0.1.", "127.0.0.1"}, {"256.1.1.1", ""}, {strings.Repeat("a", 64) + ".test", ""},
		{"app.test..", ""}, {"[::1]:", ""}, {"[127.0.0.1]", ""},
	} {
		h, err := ReadHost(c.raw)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%q: accepted as %q", c.raw, h)
		case c.want != "" && (err != nil || h.String() != c.want):
			t.Errorf("%q: got %q, %v; want %q", c.raw, h, err, c.want)
		}
	}
}

func FuzzReadHost(f *testing.F) {
	for _, seed := range []string{"app.test", "APP.test.:80", "[::1]:1", "127.0.0.1", "a..b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		h, err := ReadHost(raw)
		if err != nil {
			return
		}
		again, err := ReadHost(h.String())
		if err != nil || again != h {
			t.Fatalf("%q: canonical of canonical is %+v, %v; want %+v", raw, again, err, h)
		}
	})
}
