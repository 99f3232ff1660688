package policy

import (
	"encoding/hex"
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

// FuzzRoute: wherever five kinds of server resolve an accepted path to, the policy
// routes it there too; else it must have been refused. Nothing of the resolvers is
// shared with the policy.
func FuzzRoute(f *testing.F) {
	fold := []bool{false, true}
	var policies []*Policy
	for _, insensitive := range fold {
		var routes []RouteConfig
		for _, path := range []string{"/", "/public/", "/Admin/", "/admin/panel/", "/users/{id}/edit", "/files/{name}", "/a/b", "/c/{$}", "/slashes/", "/slashes/secret", "/caf\u00e9/"} {
			rc := RouteConfig{Name: path, Path: path, FoldCase: insensitive}
			if path == "/slashes/" {
				rc.EncodedSlash = "allow"
			}
			routes = append(routes, rc)
		}
		p, err := Compile(routes, []string{"corp"})
		if err != nil {
			f.Fatal(err)
		}
		policies = append(policies, p)
	}
	for _, seed := range []string{
		"/public/../Admin/x", "/public/..%2fAdmin", "/public/%252e%252e/Admin", "/public/..;/Admin/", "/public/..%5cAdmin", "/Admin;x/y", "/Admin.;x/y", "/admin./x", "/admin%20/x",
		"/public;/x", "/files/a%2fb", "/slashes/a%2fb", "/slashes/a%2f..%2fb", "/slashes;x%2fy", "/slashes/secret;x%2fy", "/slashes/secret%3bx%2fy", "/slashes/a;x%2fy/b", "/slashes/a%2fb;x/c", "/slashes/a%3bx%2fy", "/%41dmin/x", "/admin/panel;a=b/c", "/users/1/edit;x", "/users/a%2fb/edit", "/caf%c3%a9/x", "/c", "/c/;x", "/a/b/", "/Admin", "/%u0041dmin/", "/a//b", "/admin%3bx/panel/",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		path, _, err := ReadTarget(raw)
		if err != nil {
			return
		}
		for i, p := range policies {
			rt, err := p.Find(Host{Name: "app.test"}, path, nil)
			if err != nil {
				continue
			}
			every := *p.other
			every.depths = ^depths(0)
			if other := every.find(path); !path.parameters && !fold[i] && other != rt {
				t.Fatalf("%q: judged by %q, but by %q if no pattern is left out", raw, rt.Name, other.Name)
			}
			for server, resolved := range resolve(path.Escaped(), fold[i]) {
				encoded := server == "raw" || server == "tomcat, encoded"
				if path.encodedSlash != encoded && server != "raw" {
					continue // the route says that its upstream leaves escaped slashes alone
				}
				u := url.URL{Path: resolved}
				if encoded {
					u.RawPath = resolved
					if u.Path, err = url.PathUnescape(resolved); err != nil {
						t.Fatalf("%q: canonical %q does not unescape", raw, resolved)
					}
				}
				there := Path{escaped: u.EscapedPath(), decoded: u.Path}
				if fold[i] {
					there.escaped, there.decoded = strings.ToLower(there.escaped), strings.ToLower(there.decoded)
				}
				if other := p.other.find(there); other != rt {
					t.Fatalf("%q, folding %v: judged by %q, but %s resolves it to %q, which %q would judge", raw, fold[i], rt.Name, server, resolved, other.Name)
				}
			}
		}
	})
}

// resolve is what servers of five kinds make of an escaped path.
func resolve(escaped string, windows bool) map[string]string {
	decode := func(s string) string {
		var out strings.Builder
		for i := 0; i < len(s); i++ {
			if s[i] == '%' && i+2 < len(s) {
				if b, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
					out.WriteByte(b[0])
					i += 2
					continue
				}
			}
			if s[i] == '%' && i+5 < len(s) && (s[i+1] == 'u' || s[i+1] == 'U') {
				if b, err := hex.DecodeString(s[i+2 : i+6]); err == nil {
					out.WriteRune(rune(b[0])<<8 | rune(b[1]))
					i += 5
					continue
				}
			}
			out.WriteByte(s[i])
		}
		return out.String()
	}
	each := func(s string, change func(string) string) string {
		segments := strings.Split(s, "/")
		for i := range segments {
			segments[i] = change(segments[i])
		}
		return strings.Join(segments, "/")
	}
	clean := func(s string) string {
		resolved := path.Clean("/" + s)
		if strings.HasSuffix(s, "/") && resolved != "/" {
			resolved += "/"
		}
		return resolved
	}
	once := decode(escaped)
	iis := strings.ReplaceAll(once, `\`, "/")
	tomcat := each(escaped, func(s string) string { bare, _, _ := strings.Cut(s, ";"); return decode(bare) })
	if windows {
		trim := func(s string) string { return strings.TrimRight(s, ". ") }
		iis, tomcat = each(iis, trim), each(tomcat, trim)
	}
	return map[string]string{
		"raw":    clean(escaped),
		"nginx":  clean(once),
		"php":    clean(decode(once)),
		"iis":    clean(iis),
		"tomcat": clean(tomcat),
		// As it is where escaped slashes stay what they are.
		"tomcat, encoded": clean(each(escaped, func(s string) string { bare, _, _ := strings.Cut(s, ";"); return bare })),
	}
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
			if h != (Host{}) {
				t.Fatalf("%q: a host beside the error %v", raw, err)
			}
			return
		}
		again, err := ReadHost(h.String())
		if err != nil || again != h {
			t.Fatalf("%q: canonical of canonical is %+v, %v; want %+v", raw, again, err, h)
		}
		// Whoever reads it as part of a URL finds this host and this port and nothing else.
		u, err := url.Parse("http://" + h.String() + "/")
		if err != nil || u.Hostname() != h.Name || u.Port() != h.Port || u.User != nil || u.Path != "/" || h.Name != strings.ToLower(h.Name) {
			t.Fatalf("%q: judged %+v, a URL with it is read as %+v, %v", raw, h, u, err)
		}
	})
}
