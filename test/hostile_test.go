package test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A rawUpstream keeps what it receives byte for byte, as no HTTP library shows it.
type rawUpstream struct {
	url string
	mu  sync.Mutex
	got []string // a request each: its head as it came but for X-Request-Id, which is random; its body decoded
}

func newRawUpstream(t *testing.T) *rawUpstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	u := &rawUpstream{url: "http://" + l.Addr().String()}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go u.serve(conn)
		}
	}()
	return u
}

// serve answers every request with 200, and takes whatever comes next on the
// connection for the next request: what one client could slip in there would be
// seen as one.
func (u *rawUpstream) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		var head strings.Builder
		for !strings.HasSuffix(head.String(), "\r\n\r\n") {
			line, err := in.ReadString('\n')
			if !strings.HasPrefix(line, "X-Request-Id: ") {
				head.WriteString(line)
			}
			if err != nil {
				if head.Len() > 0 {
					u.keep(head.String())
				}
				return
			}
		}
		body := io.Reader(strings.NewReader(""))
		for line := range strings.Lines(head.String()) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch strings.ToLower(name) {
			case "content-length":
				var n int64
				fmt.Sscan(value, &n)
				body = io.LimitReader(in, n)
			case "transfer-encoding":
				body = &chunks{in: in}
			}
		}
		content, err := io.ReadAll(body)
		u.keep(head.String() + string(content))
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

// chunks reads a chunked body with its trailers, which net/http would hide.
type chunks struct {
	in   *bufio.Reader
	left int64
	done bool
}

func (c *chunks) Read(b []byte) (int, error) {
	for c.left == 0 {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return 0, err
		}
		line = strings.TrimSpace(line)
		switch {
		case c.done && line == "":
			return 0, io.EOF
		case c.done:
			return copy(b, line+"\n"), nil
		case line == "":
			continue // the end of a chunk
		}
		if _, err := fmt.Sscanf(line, "%x", &c.left); err != nil {
			return 0, err
		}
		c.done = c.left == 0
	}
	n, err := c.in.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

func (u *rawUpstream) keep(text string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.got = append(u.got, text)
}

// take is what came since the last take.
func (u *rawUpstream) take() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := strings.Join(u.got, "\n==\n")
	u.got = nil
	return all
}

// rawSend writes a request as it stands and reads one response. A zero status
// says that the gateway closed the connection without one.
func rawSend(t *testing.T, address, request string) (status int, reason string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return rawSendOn(conn, request)
}

// rawSendTLS is rawSend over TLS; who answers does not matter.
func rawSendTLS(t *testing.T, address, request string) (status int, reason string) {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return rawSendOn(conn, request)
}

func rawSendOn(conn net.Conn, request string) (status int, reason string) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	go io.WriteString(conn, request) // a large one may be answered before it is read
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, ""
	}
	res.Body.Close()
	return res.StatusCode, res.Header.Get("Durward-Reason")
}

// A hostileWorld is one gateway for all hostile requests, whose routes are told
// apart by the host and the path alone.
type hostileWorld struct {
	*gateway
	idp *issuer
	app *rawUpstream
}

func newHostileWorld(t *testing.T) hostileWorld {
	t.Helper()
	idp, app := newIssuer(t), newRawUpstream(t)
	g := startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - %s
upstreams:
  app: {url: %s}
  folding: {url: %[2]s, path_case: insensitive}
routes:
  - {name: public, host: app.test, path: /public/, upstream: app, auth: none}
  - {name: optional, host: app.test, path: /optional/, upstream: app, auth: optional}
  - {name: admin, host: app.test, path: /admin/, upstream: app, allow: [{claims: {groups: [admin]}}]}
  - {name: scoped, host: app.test, path: /scoped/, upstream: app, allow: [{scopes: [admin]}]}
  - {name: slashes, host: app.test, path: /slashes/, upstream: app, encoded_slash: allow}
  - {name: app, host: app.test, upstream: app}
  - {name: admin host, host: admin.test, upstream: app, allow: [{claims: {groups: [admin]}}]}
  - {name: folding admin, host: fold.test, path: /admin/, upstream: folding, allow: [{claims: {groups: [admin]}}]}
  - {name: folding, host: fold.test, upstream: folding}
`, corp(idp), app.url))
	g.waitReady()
	return hostileWorld{g, idp, app}
}

// A manner is one way in which a request brings its token.
type manner struct {
	name   string
	header string
	token  func() string
}

// manners are the bearer header and the cookie, each with the verified-token
// cache cold (a token of its own) and warm (one seen before).
func (w hostileWorld) manners() []manner {
	seen := w.idp.token(nil)
	cold, warm := func() string { return w.idp.token(nil) }, func() string { return seen }
	return []manner{
		{"bearer, cold", "Authorization: Bearer ", cold}, {"bearer, warm", "Authorization: Bearer ", warm},
		{"cookie, cold", "Cookie: __Host-session=", cold}, {"cookie, warm", "Cookie: __Host-session=", warm},
	}
}

// TestHostileRequests sends requests that two readers could understand in two
// ways, or that try to be more than they are. What is refused never reaches the
// upstream; what is let pass reaches it in the form that was judged. After each,
// the same request without the fault passes.
//
// Who sends them is alice, in no group. A reason of "" is a refusal by net/http.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t)
	const (
		ok        = 200
		twice     = "ambiguous_request"
		public    = "GET /public/page HTTP/1.1"
		optional  = "GET /optional/page HTTP/1.1"
		page      = "GET /page HTTP/1.1"
		post      = "POST /page HTTP/1.1"
		anonymous = "(none)" // in place of the credential
	)
	type hostile struct {
		name   string
		line   string // the request line; the good request has the same without its fault
		host   string // "" is "Host: app.test"
		extra  string // header lines, then perhaps an empty one and a body
		status int
		reason string
		sees   string // what the upstream must receive, in any case; "" if nothing is expected but a request
		hidden string // what it must not
	}
	get := func(target string) string { return "GET " + target + " HTTP/1.1" }
	path := func(target string, status int, reason, sees string) hostile {
		return hostile{"path " + target, get(target), "", "", status, reason, sees, ""}
	}
	host := func(h string, status int, reason, sees string) hostile {
		return hostile{"host " + h, page, "Host: " + h, "", status, reason, sees, ""}
	}
	cases := []hostile{
		// Paths (M7, M8, M9): one that a prefix rule would take for public, or for
		// anything but what the upstream makes of it.
		path("/public/../admin/x", 400, twice, ""),
		path("/public/..", 400, twice, ""),
		path("/public/./x", 400, twice, ""),
		path("/public/%2e%2e/admin/x", 400, twice, ""),
		path("/public/.%2E/admin/x", 400, twice, ""),
		path("/public/..%2fadmin", 400, twice, ""),
		path("/public/%2e%2e%2fadmin", 400, twice, ""),
		path("/public/%252e%252e%252fadmin", 400, twice, ""),
		path("/public/%252e%252e/admin", 400, twice, ""),
		path("/public/%25252e%25252e/admin", 400, twice, ""),
		path("/public/..;/admin", 400, twice, ""),
		path("/public/..;a=b/admin", 400, twice, ""),
		path("/public/.;/x", 400, twice, ""),
		path("/public/..%3b/admin", 400, twice, ""),
		path("/public/;/../admin", 400, twice, ""),
		path(`/public/..\admin`, 400, twice, ""),
		path(`/public\..\admin`, 400, twice, ""),
		path("/public/..%5cadmin", 400, twice, ""),
		path("/public/%5C..%5Cadmin", 400, twice, ""),
		path("/public/.../x", 400, twice, ""),
		path("/public/..%20/admin", 400, twice, ""),
		path("/public/%20/x", 400, twice, ""),
		path("//admin/x", 400, twice, ""),
		path("//app.test/admin", 400, twice, ""),
		path("/public//x", 400, twice, ""),
		path("/;/admin/x", 400, twice, ""),
		path("/admin;x/y", 400, twice, ""),
		path("/admin%3Bx/y", 400, twice, ""),
		path("/public%2fx", 400, twice, ""),
		path("/%2fadmin", 400, twice, ""),
		path("/admin%2Fx", 400, twice, ""),
		path("/slashes/a%2f..%2fb", 400, twice, ""),
		path("/slashes/..%2f..%2fadmin", 400, twice, ""),
		path("/slashes/a;x%2fb", 400, twice, ""),
		path("/slashes/a%3bx%2fb", 400, twice, ""),
		path("/public%00/../admin", 400, twice, ""),
		path("/public/%00", 400, twice, ""),
		path("/public/x%0d%0aX-Forwarded-User:%20mallory", 400, twice, ""),
		path("/public/%09", 400, twice, ""),
		path("/public/%7f", 400, twice, ""),
		path("/%c0%ae%c0%ae/admin", 400, twice, ""),
		path("/public/%c0%af..%c0%afadmin", 400, twice, ""),
		path("/public/%ff", 400, twice, ""),
		path("/public/%ef%bc%8e%ef%bc%8e/admin", ok, "", "get /public/%ef%bc%8e%ef%bc%8e/admin "), // full-width dots are no dots
		path("/public/x#/../admin", 400, twice, ""),
		path("/public/%25u002e%25u002e/admin", 400, twice, ""),
		path("/public/%u002e%u002e/admin", 400, "", ""),
		path("/public/%zz", 400, "", ""),
		path("/public/%", 400, "", ""),
		path("/public/a b", 400, "", ""),
		path("/public/\x01", 400, "", ""),
		path("/admin/../public/x", 400, twice, ""),
		path("/admin", 403, "forbidden", ""),
		path("/admin/", 403, "forbidden", ""),
		path("/adm%69n/x", 403, "forbidden", ""),
		path("/%61%64%6d%69%6e/x", 403, "forbidden", ""),
		path("/admin/x?/../public/", 403, "forbidden", ""),
		path("/admin/x;/public", 403, "forbidden", ""),
		path("/ADMIN/x", ok, "", "get /ADMIN/x "), // a path of its own, and forwarded as one
		path("/public/a%20b", ok, "", "get /public/a%20b "),
		path("/public/%e2%82%ac", ok, "", "get /public/%e2%82%ac "),
		path("/public/\xe2\x82\xac", ok, "", "get /public/%e2%82%ac "),
		path("/public/a;b=c", ok, "", "get /public/a;b=c "),
		path("/public/%41%7e", ok, "", "get /public/A~ "),
		path("/slashes/a%2fb", ok, "", "get /slashes/a%2fb "),
		path("/slashes/a%2fb;x", ok, "", "get /slashes/a%2fb;x "),
		path("/page?a=1;admin=true&b=%zz&c=../..//", ok, "", "get /page?a=1;admin=true&b=%zz&c=../..// "),
		path("/page?", ok, "", "get /page? "),
		path("/page?x#y", 400, twice, ""),
		{"folding upstream, another case", get("/ADMIN/x"), "Host: fold.test", "", 403, "forbidden", "", ""},
		{"folding upstream, escaped", get("/%41dmin/x"), "Host: fold.test", "", 403, "forbidden", "", ""},
		{"folding upstream, a dot that Windows drops", get("/admin./x"), "Host: fold.test", "", 400, twice, "", ""},
		{"folding upstream, a blank that Windows drops", get("/admin%20/x"), "Host: fold.test", "", 400, twice, "", ""},
		{"folding upstream, a dot before a parameter", get("/admin.;a=b/x"), "Host: fold.test", "", 400, twice, "", ""},
		{"folding upstream", get("/Page"), "Host: fold.test", "", ok, "", "get /Page ", ""},

		// Targets (M5, M6, M10).
		{"absolute form", get("http://admin.test/x"), "", "", 400, twice, "", ""},
		{"absolute form of the same host", get("http://app.test/page"), "", "", 400, twice, "", ""},
		{"absolute form without a host", get("http:///x"), "", "", 400, twice, "", ""},
		{"absolute form with userinfo", get("http://app.test@evil/"), "", "", 400, twice, "", ""},
		{"another scheme", get("file:///etc/passwd"), "", "", 400, twice, "", ""},
		{"opaque", get("x:admin/secret"), "", "", 400, twice, "", ""},
		{"asterisk", get("*"), "", "", 400, twice, "", ""},
		{"OPTIONS asterisk", "OPTIONS * HTTP/1.1", "", "", 400, twice, "", ""},
		{"no slash", get("admin"), "", "", 400, "", "", ""},
		{"empty target", "GET  HTTP/1.1", "", "", 400, "", "", ""},
		{"a query alone", get("?x"), "", "", 400, "", "", ""},

		// Methods (M4, M13).
		{"CONNECT authority", "CONNECT admin.test:443 HTTP/1.1", "Host: admin.test:443", "", 400, twice, "", ""},
		{"CONNECT path", "CONNECT /page HTTP/1.1", "", "", 400, twice, "", ""},
		{"CONNECT with a poisonous body", "CONNECT x:1 HTTP/1.1", "", "Content-Length: 40\r\n\r\nGET /poison HTTP/1.1\r\nHost: x\r\nX-Ignore: z", 400, twice, "", "poison"},
		{"TRACE", "TRACE /page HTTP/1.1", "", "", 400, twice, "", ""},
		{"TRACK", "TRACK /page HTTP/1.1", "", "", 400, twice, "", ""},
		{"lower case", "get /page HTTP/1.1", "", "", 400, twice, "", ""},
		{"BREW", "BREW /page HTTP/1.1", "", "", 400, twice, "", ""},
		{"PRI", "PRI /page HTTP/1.1", "", "", 400, twice, "", ""},
		{"PRI at a route without auth", "PRI /public/page HTTP/1.1", "", "", 400, twice, "", ""},
		{"a colon", "GE:T /page HTTP/1.1", "", "", 400, "", "", ""},

		// Hosts (M11).
		host("", 400, twice, ""),
		host("a,b", 400, twice, ""),
		host("app.test,admin.test", 400, twice, ""),
		host("app.test:80:90", 400, twice, ""),
		host("app.test:", 400, twice, ""),
		host("app.test:0", 400, twice, ""),
		host("app.test:99999", 400, twice, ""),
		host("app.test:http", 400, twice, ""),
		host("[::1", 400, twice, ""),
		host("[::1%25eth0]", 400, twice, ""),
		host("app.test%00", 400, twice, ""),
		host("app..test", 400, twice, ""),
		host(".app.test", 400, twice, ""),
		host("app.test..", 400, twice, ""),
		host("*.test", 400, twice, ""),
		host("0x7f.1", 400, twice, ""),
		host("127.1", 400, twice, ""),
		host("app.test@admin.test", 400, "", ""),
		host("app.test/x", 400, "", ""),
		host("app test", 400, "", ""),
		host("app.test\r\nHost: admin.test", 400, "", ""),
		host("app.test\r\nHost: app.test", 400, "", ""),
		host("unknown.test", 404, "no_route", ""),
		host("admin.test", 403, "forbidden", ""),
		host("ADMIN.test.", 403, "forbidden", ""),
		host("APP.Test.", ok, "", "host: app.test\r\n"),
		host("app.test:8080", ok, "", "host: app.test:8080\r\n"),
		{"no host", page, "X-No: host", "", 400, "", "", ""},
		{"no host, HTTP/1.0", "GET /page HTTP/1.0", "X-No: host", "", 400, twice, "", ""},

		// Headers that steer other servers (M3).
		{"X-Forwarded-Host", page, "", "X-Forwarded-Host: admin.test", ok, "", "x-forwarded-host: app.test", "admin.test"},
		{"X-Forwarded-Proto", page, "", "X-Forwarded-Proto: https", ok, "", "x-forwarded-proto: http\r\n", "https"},
		{"X-Forwarded-For", page, "", "X-Forwarded-For: 6.6.6.6", ok, "", "x-forwarded-for: 127.0.0.1\r\n", "6.6.6.6"},
		{"Forwarded", page, "", "Forwarded: for=6.6.6.6;host=admin.test", ok, "", "", "6.6.6.6"},
		{"X-Forwarded-Uri", page, "", "X-Forwarded-Uri: /admin", ok, "", "", "/admin"},
		{"X-Forwarded-Method", page, "", "X-Forwarded-Method: BREW", ok, "", "", "brew"},
		{"X-Forwarded-Port", page, "", "X-Forwarded-Port: 6666", ok, "", "", "6666"},
		{"X-Forwarded-Prefix", page, "", "X-Forwarded-Prefix: /admin", ok, "", "", "/admin"},
		{"X-Real-Ip", page, "", "X-Real-IP: 6.6.6.6", ok, "", "", "6.6.6.6"},
		{"True-Client-Ip", page, "", "True-Client-IP: 6.6.6.6", ok, "", "", "6.6.6.6"},
		{"X-Original-Url", page, "", "X-Original-URL: /admin", ok, "", "", "/admin"},
		{"X-Rewrite-Url", page, "", "X-Rewrite-URL: /admin", ok, "", "", "/admin"},
		{"X-HTTP-Method-Override", post, "", "X-HTTP-Method-Override: DELETE\r\nContent-Length: 0", ok, "", "", "delete"},
		{"X-HTTP-Method", post, "", "X-HTTP-Method: DELETE\r\nContent-Length: 0", ok, "", "", "delete"},
		{"X_Method_Override", post, "", "X_Method_Override: DELETE\r\nContent-Length: 0", ok, "", "", "delete"},
		{"Proxy (httpoxy)", page, "", "Proxy: http://evil.test", ok, "", "", "evil.test"},
		{"Durward-Reason", page, "", "Durward-Reason: mallory", ok, "", "", "mallory"},

		// Upgrades and framing in another spelling (M15, M18).
		{"h2c", page, "", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", ok, "", "", "h2"},
		{"h2c, settings not in Connection", page, "", "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", ok, "", "", "h2"},
		{"h2c beside websocket", page, "", "Connection: Upgrade\r\nUpgrade: websocket, h2c", ok, "", "", "upgrade"},
		{"websocket with a body", page, "", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx", ok, "", "content-length: 1\r\n", "upgrade"},
		{"websocket", page, "", "Connection: Upgrade\r\nUpgrade: websocket", ok, "", "upgrade: websocket", ""},
		{"Upgrade: TLS", page, "", "Connection: Upgrade\r\nUpgrade: TLS/1.0", ok, "", "", "upgrade"},
		{"Transfer_Encoding", post, "", "Transfer_Encoding: chunked\r\nContent-Length: 0", 400, twice, "", ""},
		{"Transfer.Encoding", post, "", "Transfer.Encoding: chunked\r\nContent-Length: 0", 400, twice, "", ""},
		{"Content_Length", post, "", "Content_Length: 5\r\nContent-Length: 0", 400, twice, "", ""},
		{"Content-Length_", post, "", "Content-Length_: 5\r\nContent-Length: 0", 400, twice, "", ""},
		{"an odd Expect", post, "", "Expect: y 100-continue\r\nContent-Length: 2\r\n\r\nhi", 400, twice, "", ""},
		{"Expect twice", post, "", "Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi", 400, twice, "", ""},
		{"another Expect", post, "", "Expect: y\r\nContent-Length: 2\r\n\r\nhi", 417, "", "", ""},
		{"another spelling of Host", page, "", "H_ost: admin.test", 400, twice, "", ""},
		{"another spelling of Cookie", page, "", "Co-okie: a=b", 400, twice, "", ""},
		{"another spelling of Authorization", page, "", "Authorization_: Bearer x", 400, twice, "", ""},

		// What net/http refuses by itself (M16).
		{"a blank before the colon", page, "", "X-Forwarded-User : mallory", 400, twice, "", ""},
		{"a bare CR in a value", page, "", "X-A: b\rX-Forwarded-User: mallory", 400, "", "", ""},
		{"NUL in a value", page, "", "X-A: b\x00c", 400, "", "", ""},
		{"xchunked", post, "", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, twice, "", ""},
		{"chunked, identity", post, "", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, twice, "", ""},
		{"Transfer-Encoding twice", post, "", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, twice, "", ""},
		{"two lengths", post, "", "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 400, twice, "", ""},
		{"a negative length", post, "", "Content-Length: -1", 400, twice, "", ""},
		{"a length in hexadecimal", post, "", "Content-Length: 0x5\r\n\r\nhello", 400, twice, "", ""},
		{"HTTP/3.0", "GET /page HTTP/3.0", "", "", 505, "", "", ""},
		{"a tab in the request line", "GET\t/page HTTP/1.1", "", "", 400, "", "", ""},

		// Floods (M17).
		{"128 fields and more", page, "", strings.TrimSuffix(strings.Repeat("a: b\r\n", 128), "\r\n"), 431, "too_large", "", ""},
		{"150,000 fields", page, "", strings.TrimSuffix(strings.Repeat("a: b\r\n", 150_000), "\r\n"), 431, "too_large", "", ""},
		{"120 fields", page, "", strings.TrimSuffix(strings.Repeat("a: b\r\n", 120), "\r\n"), ok, "", "", ""},
		{"33 KiB in a field", page, "", "X-Long: " + strings.Repeat("x", 33<<10), 431, "too_large", "", ""},
		{"900 KB in a field", page, "", "X-Long: " + strings.Repeat("x", 900_000), 431, "too_large", "", ""},
		{"a target of 100 KB", get("/" + strings.Repeat("x", 100<<10)), "", "", 431, "", "", ""},

		// Trailers, announced and real (M19).
		{"trailers", post, "", "Transfer-Encoding: chunked\r\nTrailer: X-Forwarded-User, X-Other\r\n\r\n2\r\nhi\r\n0\r\nX-Forwarded-User: mallory\r\nX-Other: mallory\r\n\r\n", ok, "", "x-forwarded-user: alice", "mallory"},
		{"trailers not announced", post, "", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Forwarded-User: mallory\r\n\r\n", ok, "", "x-forwarded-user: alice", "mallory"},
	}

	// Identity headers in every spelling (M1, M2), on every kind of route.
	for _, field := range []string{
		"X-Forwarded-User: mallory", "x-forwarded-user: mallory", "X_Forwarded_User: mallory", "X.Forwarded.User: mallory", "X-Forwarded_User: mallory",
		"x_forwarded-USER: mallory", "XForwardedUser: mallory", "X--Forwarded--User: mallory", "X-Forwarded-User-: mallory", "X!Forwarded#User: mallory", "X-Forwarded-User~: mallory",
		"X-Forwarded-User: mallory\r\nX-Forwarded-User: mallory", "X-Forwarded-User: mallory\r\nConnection: close, X-Forwarded-User", "Connection: X-Forwarded-User, X_Forwarded_User\r\nX_Forwarded_User: mallory",
		"X-Forwarded-Email: mallory", "X_Forwarded_Groups: mallory", "X-Forwarded-Preferred-Username: mallory", "Remote-User: mallory", "REMOTE_USER: mallory", "X-Remote-User: mallory", "X_User: mallory",
		"X-Auth-Request-User: mallory", "X-WebAuth-User: mallory", "X-Authentik-Username: mallory", "X-Goog-Authenticated-User-Email: mallory", "Tailscale-User-Login: mallory", "X-Ssl-Client-S-Dn: mallory",
	} {
		cases = append(cases,
			hostile{"identity " + field, page, "", field, ok, "", "x-forwarded-user: alice\r\n", "mallory"},
			hostile{"identity, public route, " + field, public, "", field, ok, "", "", "mallory"},
			hostile{"identity, anonymous, public route, " + field, public, anonymous, field, ok, "", "", "mallory"},
			hostile{"identity, anonymous, optional route, " + field, optional, anonymous, field, ok, "", "", "mallory"},
			hostile{"identity, anonymous, protected route, " + field, page, anonymous, field, 401, "no_token", "", ""},
			hostile{"identity, refused, " + field, get("/admin/x"), "", field, 403, "forbidden", "", ""})
	}

	for _, m := range w.manners() {
		for _, c := range cases {
			token := m.token()
			head, auth := c.host, m.header+token
			if head == anonymous {
				head, auth = "", "X-Anonymous: yes"
			}
			if head == "" {
				head = "Host: app.test"
			}
			request := c.line + "\r\n" + head + "\r\n" + auth + "\r\n"
			if c.extra != "" {
				request += c.extra + "\r\n"
			}
			if !strings.Contains(c.extra, "\r\n\r\n") {
				request += "\r\n"
			}
			w.app.take()
			status, reason := rawSend(t, w.public[0], request)
			got := strings.ToLower(w.app.take())
			what := fmt.Sprintf("%.80s (%s)", c.name, m.name)
			if status != c.status || reason != c.reason {
				t.Errorf("%s: %d %q, want %d %q", what, status, reason, c.status, c.reason)
			}
			if (got != "") != (c.status == ok) || strings.Contains(got, "\n==\n") {
				t.Errorf("%s: the upstream received %q", what, got)
			}
			if !strings.Contains(got, strings.ToLower(c.sees)) || c.hidden != "" && strings.Contains(got, c.hidden) {
				t.Errorf("%s: the upstream received %q, want %q and no %q", what, got, c.sees, c.hidden)
			}
			if strings.Contains(got, strings.ToLower(token)) {
				t.Errorf("%s: the upstream received the token: %q", what, got)
			}
			// The twin: the same without the fault, on a connection of its own.
			twin, sees := page, "get /page http/1.1\r\n"
			if c.line == post {
				twin, sees = post+"\r\nContent-Length: 0", "post /page http/1.1\r\n"
			}
			status, reason = rawSend(t, w.public[0], twin+"\r\nHost: app.test\r\n"+m.header+m.token()+"\r\n\r\n")
			if got := strings.ToLower(w.app.take()); status != 200 || !strings.HasPrefix(got, sees) || strings.Contains(got, "\n==\n") {
				t.Fatalf("%s: the same without the fault: %d %q, the upstream received %q", what, status, reason, got)
			}
		}
	}
}

// TestHostileCredentials puts the token where two readers would find two of them,
// or none (M19, M20). {T} is alice's token, {O} somebody else's, both good.
func TestHostileCredentials(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t)
	const (
		twice     = "ambiguous_credentials"
		malformed = "token_malformed"
		session   = "__Host-session="
	)
	many := strings.Repeat("a=b; ", 3001)
	for _, c := range []struct {
		name, headers string
		status        int
		reason        string
	}{
		{"bearer", "Authorization: Bearer {T}", 200, ""},
		{"bearer in lower case", "Authorization: bearer {T}", 200, ""},
		{"bearer with several blanks", "Authorization: Bearer   {T}", 200, ""},
		{"cookie", "Cookie: " + session + "{T}", 200, ""},
		{"cookie among others", "Cookie: a=b; " + session + `{T}; theme="dark"; c={"x":"y"}`, 200, ""},
		{"cookie in a second field", "Cookie: a=b\r\nCookie: " + session + "{T}", 200, ""},
		{"both, equal", "Authorization: Bearer {T}\r\nCookie: " + session + "{T}", 200, ""},
		{"both, different", "Authorization: Bearer {T}\r\nCookie: " + session + "{O}", 400, twice},
		{"both, one garbage", "Authorization: Bearer {T}\r\nCookie: " + session + "x", 400, twice},
		{"two bearers", "Authorization: Bearer {T}\r\nAuthorization: Bearer {O}", 400, twice},
		{"twice the same bearer", "Authorization: Bearer {T}\r\nAuthorization: Bearer {T}", 400, twice},
		{"Basic, then bearer", "Authorization: Basic YTpi\r\nAuthorization: Bearer {T}", 400, twice},
		{"two in a list", "Authorization: Bearer {T}, Bearer {O}", 401, malformed},
		{"something behind", "Authorization: Bearer {T} x", 401, malformed},
		{"a tab behind the scheme", "Authorization: Bearer\tT", 400, twice},
		{"a quote before the scheme", `Authorization: "Bearer {T}`, 400, twice},
		{"no blank behind the scheme", "Authorization: Bearer{T}", 401, "no_token"},
		{"no token", "Authorization: Bearer", 401, malformed},
		{"a blank as token", "Authorization: Bearer  ", 401, malformed},
		{"the token alone", "Authorization: {T}", 401, "no_token"},
		{"another scheme", "Authorization: DPoP {T}", 401, "no_token"},
		{"Basic", "Authorization: Basic YTpi", 401, "no_token"},
		{"in the query", "X-Query: only", 401, "no_token"},
		{"two cookies", "Cookie: " + session + "{T}; " + session + "{O}", 400, twice},
		{"two cookies in two fields", "Cookie: " + session + "{T}\r\nCookie: " + session + "{O}", 400, twice},
		{"twice the same cookie", "Cookie: " + session + "{T}; " + session + "{T}", 400, twice},
		{"a cookie with a blank before =", "Cookie: __Host-session ={O}; " + session + "{T}", 400, twice},
		{"a cookie with a blank before = alone", "Cookie: __Host-session ={T}", 400, twice},
		{"a quoted cookie", "Cookie: " + session + `"{T}"`, 400, twice},
		{"a cookie in another case", "Cookie: __host-Session={O}; " + session + "{T}", 400, twice},
		{"a cookie in another case alone", "Cookie: __host-Session={T}", 400, twice},
		{"a cookie without a name before", "Cookie: =" + session + "{T}", 400, twice},
		{"a cookie without a value before", "Cookie: __Host-session; " + session + "{T}", 400, twice},
		{"hidden in another's quotes", `Cookie: x="1; ` + session + `{O}; y=2"`, 400, twice},
		{"behind another's quotes", `Cookie: x="1; y=2"; ` + session + "{T}", 400, twice},
		{"shadowed by one with a backslash", "Cookie: " + session + `{O}\; ` + session + "{T}", 400, twice},
		{"shadowed by one beyond ASCII", "Cookie: " + session + "{O}\xe9; " + session + "{T}", 400, twice},
		{"a cookie beyond ASCII", "Cookie: " + session + "{T}\xe9", 401, malformed},
		{"a cookie name beyond ASCII", "Cookie: \xc2\xa0" + session + "{O}; " + session + "{T}", 400, twice},
		{"an empty cookie", "Cookie: " + session, 401, malformed},
		{"a prefix of the name", "Cookie: __Host-sessio={T}", 401, "no_token"},
		{"a longer name", "Cookie: __Host-session2={T}", 401, "no_token"},
		{"another prefix", "Cookie: __Secure-session={T}; session={T}", 401, "no_token"},
		{"behind a comma", "Cookie: a=b, " + session + "{T}", 400, twice},
		{"shadowed behind a comma", "Cookie: " + session + "{T}; a=b," + session + "{O}", 400, twice},
		{"shadowed behind a blank", "Cookie: " + session + "{T}; a=b " + session + "{O}", 400, twice},
		{"shadowed behind a tab", "Cookie: a=b\t" + session + "{O}; " + session + "{T}", 400, twice},
		{"shadowed by an encoded one", "Cookie: " + session + "{T}; __Host%2Dsession={O}", 400, twice},
		{"shadowed by one encoded in part", "Cookie: %5f%5FHost-session={O}; " + session + "{T}", 400, twice},
		{"shadowed by one encoded behind a blank", "Cookie: %20__Host-session={O}; " + session + "{T}", 400, twice},
		{"shadowed by an array", "Cookie: " + session + "{T}; __Host-session[]={O}", 400, twice},
		{"shadowed by dots", "Cookie: " + session + "{T}; ..Host-session={O}", 400, twice},
		{"beside blanks, commas and percents", "Cookie: a=b c, d=%5F%; 100%=x; " + session + "{T}", 200, ""},
		{"thousands of cookies, 15 KB", "Cookie: " + many + session + "{T}", 200, ""},
		{"thousands of cookies, then two", "Cookie: " + session + "{O}; " + many + session + "{T}", 400, twice},
		{"cookies of 17 KiB", "Cookie: x=" + strings.Repeat("x", 17<<10) + "; " + session + "{T}", 431, "too_large"},
	} {
		for _, cache := range []string{"cold", "warm"} {
			alice, other := w.idp.token(nil), w.idp.token(jwt.MapClaims{"sub": "mallory", "groups": []string{"admin"}})
			if cache == "warm" {
				for _, token := range []string{alice, other} {
					wantAnswer(t, "the token alone", send(t, "GET", w.url("/page"), "", "Host: app.test", bearing(token)), 200, "")
				}
			}
			headers := strings.NewReplacer("{T}", alice, "{O}", other).Replace(c.headers)
			for _, route := range []string{"/page", "/optional/page"} {
				w.app.take()
				status, reason := rawSend(t, w.public[0], "GET "+route+" HTTP/1.1\r\nHost: app.test\r\n"+headers+"\r\n\r\n")
				got := w.app.take()
				want, why := c.status, c.reason
				if why == "no_token" && route == "/optional/page" {
					want, why = 200, "" // no credential at all; and never the identity of one that was not seen
				}
				if status != want || reason != why || (got != "") != (want == 200) {
					t.Errorf("%s, %s at %s: %d %q, want %d %q; the upstream received %q", c.name, cache, route, status, reason, want, why, got)
				}
				if user := strings.Contains(got, "X-Forwarded-User: alice\r\n"); user != (c.status == 200) || strings.Contains(got, "mallory") {
					t.Errorf("%s, %s at %s: the upstream received %q", c.name, cache, route, got)
				}
				if strings.Contains(got, "Authorization") || c.status == 200 && strings.Contains(got, alice) {
					t.Errorf("%s, %s at %s: the upstream received the credential: %q", c.name, cache, route, got)
				}
			}
		}
	}
}

// b64 is base64url without padding.
func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// compact signs exactly these texts as header and payload.
func compact(k issuerKey, header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	signature, err := jwt.SigningMethodES256.Sign(input, k.key)
	if err != nil {
		panic(err)
	}
	return input + "." + b64(signature)
}

// TestHostileTokens offers tokens that are almost good: each row is alice's token
// with one fault, through the bearer header and the cookie, the second time after
// the good token was seen.
func TestHostileTokens(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t)
	key := w.idp.keys[0]
	other := newKey("other")
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	attacker := newIssuer(t)
	attacker.setKeys(issuerKey{"k1", other.key})
	point, err := key.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()

	good := w.idp.token(nil)
	parts := strings.Split(good, ".")
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, good[len(good)-1])
	slack := good[:len(good)-1] + string(alphabet[last^1]) // one of the two bits that no byte needs
	flipped := parts[0] + "." + parts[1] + "." + string(alphabet[strings.IndexByte(alphabet, parts[2][0])^32]) + parts[2][1:]

	claims := func(changes jwt.MapClaims) string { return w.idp.token(changes) }
	header := func(changes map[string]any) string {
		h := map[string]any{"kid": "k1", "typ": "at+jwt"}
		for name, value := range changes {
			if h[name] = value; value == nil {
				delete(h, name)
			}
		}
		return sign(jwt.SigningMethodES256, key.key, h, w.idp.claims(nil))
	}
	signedAs := func(method jwt.SigningMethod, private any, kid string) string {
		return sign(method, private, map[string]any{"kid": kid}, w.idp.claims(nil))
	}
	payload, _ := json.Marshal(w.idp.claims(nil))
	const plain = `{"alg":"ES256","kid":"k1"}`
	extended := func(member string) string {
		return compact(key, plain, strings.TrimSuffix(string(payload), "}")+","+member+"}")
	}
	extendedHeader := func(member string) string {
		return compact(key, strings.TrimSuffix(plain, "}")+","+member+"}", string(payload))
	}
	padded := func(size int) string { // a good token of so many bytes, or up to three fewer
		length := size - len(claims(jwt.MapClaims{"pad": ""}))
		return claims(jwt.MapClaims{"pad": strings.Repeat("x", length*3/4-1)})
	}
	confused := func(secret []byte) string {
		return sign(jwt.SigningMethodHS256, secret, map[string]any{"kid": "k1"}, w.idp.claims(nil))
	}

	const malformed = "token_malformed"
	for _, c := range []struct {
		name, token, reason string // "" is a good one
	}{
		{"good", good, ""},

		// Shape (M27, M28).
		{"two parts", parts[0] + "." + parts[1], malformed},
		{"an empty signature", parts[0] + "." + parts[1] + ".", malformed},
		{"four parts", good + "." + parts[2], malformed},
		{"a dot at the end", good + ".", malformed},
		{"a dot at the beginning", "." + good, malformed},
		{"five parts, as a JWE has", good + "." + parts[0] + "." + parts[1], malformed},
		{"no payload", parts[0] + ".." + parts[2], malformed},
		{"dots alone", "..", malformed},
		{"one letter", "x", malformed},
		{"padding", good + "=", malformed},
		{"padding inside", parts[0] + "=." + parts[1] + "." + parts[2], malformed},
		{"slack bits in the signature", slack, malformed},
		{"the other base64 alphabet", parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 43), malformed},
		{"a percent escape", strings.Replace(good, ".", "%2E", 1), malformed},
		{"null as payload", compact(key, plain, "null"), malformed},
		{"an array as payload", compact(key, plain, "["+string(payload)+"]"), malformed},
		{"a string as payload", compact(key, plain, `"x"`), malformed},
		{"an array as header", compact(key, "["+plain+"]", string(payload)), malformed},
		{"something behind the payload", compact(key, plain, string(payload)+"{}"), malformed},
		{"something behind the header", compact(key, plain+"x", string(payload)), malformed},
		{"white space around the payload", compact(key, plain, " "+string(payload)+"\n"), ""},
		{"invalid UTF-8", extended("\"x\":\"\xff\""), malformed},
		{"half a surrogate pair", extended(`"x":"\ud800"`), malformed},
		{"a byte order mark", compact(key, plain, "\ufeff"+string(payload)), malformed},
		{"nested 15 deep", extended(`"x":` + strings.Repeat("[", 15) + strings.Repeat("]", 15)), ""},
		{"nested 1000 deep", extended(`"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000)), malformed},
		{"8 KiB", padded(8 << 10), ""},
		{"8 KiB and a little", padded(8<<10 + 8), malformed},
		{"15 KiB", padded(15 << 10), malformed},

		// Members that two readers understand in two ways (M25).
		{"sub twice", extended(`"sub":"mallory"`), malformed},
		{"sub twice, escaped", extended(`"s\u0075b":"mallory"`), malformed},
		{"exp twice", extended(fmt.Sprintf(`"exp":%d`, now+60)), malformed},
		{"a duplicate deep inside", extended(`"x":{"a":[{"b":1,"b":2}]}`), malformed},
		{"alg twice", extendedHeader(`"alg":"none"`), malformed},
		{"kid twice", extendedHeader(`"kid":"other"`), malformed},
		{"Sub in another case", extended(`"Sub":"mallory","SUB":"mallory","\u017fub":"mallory"`), ""},
		{"EXP in another case", compact(key, plain, fmt.Sprintf(`{"iss":%q,"aud":"app","jti":"j","iat":%d,"exp":%d,"EXP":%d}`, w.idp.URL, now-700, now-600, now+600)), "token_expired"},

		// Signature and key (M26, M29, M30).
		{"a flipped bit in the signature", flipped, "token_signature"},
		{"another's payload", parts[0] + "." + strings.Split(claims(jwt.MapClaims{"sub": "mallory"}), ".")[1] + "." + parts[2], "token_signature"},
		{"another's header", strings.Split(header(map[string]any{"x": 1}), ".")[0] + "." + parts[1] + "." + parts[2], "token_signature"},
		{"a signature of zeros", parts[0] + "." + parts[1] + "." + b64(make([]byte, 64)), "token_signature"},
		{"a short signature", parts[0] + "." + parts[1] + "." + b64([]byte("x")), "token_signature"},
		{"a long signature", parts[0] + "." + parts[1] + "." + b64(make([]byte, 4096)), "token_signature"},
		{"another key under the kid", w.idp.signedBy(issuerKey{"k1", other.key}, nil), "token_signature"},
		{"an unknown kid", w.idp.signedBy(other, nil), "token_signature"},
		{"a kid that is a path", w.idp.signedBy(issuerKey{"../../../../dev/null", other.key}, nil), "token_signature"},
		{"a kid that is a URL", w.idp.signedBy(issuerKey{attacker.URL + "/keys", other.key}, nil), "token_signature"},
		{"a kid that is SQL", w.idp.signedBy(issuerKey{"x' UNION SELECT 'k", other.key}, nil), "token_signature"},
		{"a kid of 4 KB", w.idp.signedBy(issuerKey{strings.Repeat("k", 4000), other.key}, nil), "token_signature"},
		{"an empty kid", header(map[string]any{"kid": ""}), "token_signature"},
		{"a number as kid", header(map[string]any{"kid": 1}), malformed},
		{"null as kid", compact(key, `{"alg":"ES256","kid":null}`, string(payload)), malformed},
		{"no kid, one key", header(map[string]any{"kid": nil}), ""},
		{"alg none", compact(key, `{"alg":"none","kid":"k1"}`, string(payload)), "token_algorithm"},
		{"alg None", compact(key, `{"alg":"None"}`, string(payload)), "token_algorithm"},
		{"alg nOnE without a signature", b64([]byte(`{"alg":"nOnE"}`)) + "." + parts[1] + ".", malformed},
		{"alg es256", compact(key, `{"alg":"es256","kid":"k1"}`, string(payload)), "token_algorithm"},
		{"alg with a blank", compact(key, `{"alg":"ES256 ","kid":"k1"}`, string(payload)), "token_algorithm"},
		{"an empty alg", compact(key, `{"alg":"","kid":"k1"}`, string(payload)), "token_algorithm"},
		{"no alg", compact(key, `{"kid":"k1"}`, string(payload)), malformed},
		{"a list as alg", compact(key, `{"alg":["ES256"],"kid":"k1"}`, string(payload)), malformed},
		{"HS256 with the public key", confused(point), "token_algorithm"},
		{"HS256 with the public key's x", confused(point[1:33]), "token_algorithm"},
		{"HS256 with the key set", confused(w.idp.jwks()), "token_algorithm"},
		{"HS256 with an empty key", confused([]byte{}), "token_algorithm"},
		{"RS256 under the kid of an EC key", signedAs(jwt.SigningMethodRS256, rsaKey, "k1"), "token_signature"},
		{"PS256, not configured", signedAs(jwt.SigningMethodPS256, rsaKey, "k1"), "token_algorithm"},
		{"ES384, not configured", signedAs(jwt.SigningMethodES384, p384, "k1"), "token_algorithm"},
		{"ES512, not configured", signedAs(jwt.SigningMethodES512, p521, "k1"), "token_algorithm"},
		{"EdDSA in the header, ES256 in the signature", compact(key, `{"alg":"EdDSA","kid":"k1"}`, string(payload)), "token_signature"},
		{"its own key in jwk", sign(jwt.SigningMethodES256, other.key, map[string]any{"kid": "k1", "jwk": json.RawMessage(attacker.jwks()[9 : len(attacker.jwks())-2])}, w.idp.claims(nil)), "token_signature"},
		{"its own keys in jku", sign(jwt.SigningMethodES256, other.key, map[string]any{"kid": "k1", "jku": attacker.URL + "/keys"}, w.idp.claims(nil)), "token_signature"},
		{"its own keys in x5u, unknown kid", sign(jwt.SigningMethodES256, other.key, map[string]any{"kid": "zz", "x5u": attacker.URL + "/keys"}, w.idp.claims(nil)), "token_signature"},
		{"crit", header(map[string]any{"crit": []string{"exp"}, "exp": 1}), malformed},
		{"an empty crit", header(map[string]any{"crit": []string{}}), malformed},
		{"b64 false", header(map[string]any{"b64": false}), malformed},
		{"b64 true", header(map[string]any{"b64": true}), malformed},
		{"zip", header(map[string]any{"zip": "DEF"}), malformed},
		{"cty", header(map[string]any{"cty": "JWT"}), malformed},

		// Types: other tokens of the same issuer.
		{"typ JWT", header(map[string]any{"typ": "JWT"}), ""},
		{"typ application/at+jwt", header(map[string]any{"typ": "application/AT+JWT"}), ""},
		{"no typ", header(map[string]any{"typ": nil}), ""},
		{"typ logout+jwt", header(map[string]any{"typ": "logout+jwt"}), "token_type"},
		{"typ secevent+jwt", header(map[string]any{"typ": "secevent+jwt"}), "token_type"},
		{"typ dpop+jwt", header(map[string]any{"typ": "dpop+jwt"}), "token_type"},
		{"an empty typ", header(map[string]any{"typ": ""}), "token_type"},
		{"a number as typ", header(map[string]any{"typ": 1}), malformed},
		{"a logout token without its typ", claims(jwt.MapClaims{"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}), "token_claims"},
		{"events null", claims(jwt.MapClaims{"events": json.RawMessage("null")}), "token_claims"},
		{"an ID token", claims(jwt.MapClaims{"aud": "client", "nonce": "n"}), "token_audience"},
		{"bound to a key", claims(jwt.MapClaims{"cnf": map[string]any{"jkt": "x"}}), "token_claims"},

		// Times (M23).
		{"no exp", claims(jwt.MapClaims{"exp": nil}), "token_claims"},
		{"exp 0", claims(jwt.MapClaims{"exp": 0}), "token_claims"},
		{"exp null", claims(jwt.MapClaims{"exp": json.RawMessage("null")}), "token_claims"},
		{"exp as a string", claims(jwt.MapClaims{"exp": fmt.Sprint(now + 600)}), "token_claims"},
		{"exp true", claims(jwt.MapClaims{"exp": true}), "token_claims"},
		{"exp -1", claims(jwt.MapClaims{"exp": -1}), "token_claims"},
		{"exp 9e18", claims(jwt.MapClaims{"exp": json.RawMessage("9e18")}), "token_claims"},
		{"exp 1e308", claims(jwt.MapClaims{"exp": json.RawMessage("1e308")}), "token_claims"},
		{"exp 1e999", claims(jwt.MapClaims{"exp": json.RawMessage("1e999")}), "token_claims"},
		{"exp in a list", claims(jwt.MapClaims{"exp": []int64{now + 600}}), "token_claims"},
		{"exp in milliseconds", claims(jwt.MapClaims{"exp": (now + 600) * 1000}), "token_claims"},
		{"exp with a fraction", claims(jwt.MapClaims{"exp": float64(now) + 600.5}), ""},
		{"expired beyond the leeway", claims(jwt.MapClaims{"iat": now - 600, "exp": now - 31}), "token_expired"},
		{"expired within the leeway", claims(jwt.MapClaims{"iat": now - 600, "exp": now - 1}), ""},
		{"no iat", claims(jwt.MapClaims{"iat": nil}), "token_claims"},
		{"iat as a string", claims(jwt.MapClaims{"iat": fmt.Sprint(now)}), "token_claims"},
		{"iat 1e308", claims(jwt.MapClaims{"iat": json.RawMessage("1e308")}), "token_claims"},
		{"iat in ten minutes", claims(jwt.MapClaims{"iat": now + 600, "exp": now + 900}), "token_not_yet_valid"},
		{"nbf in ten minutes", claims(jwt.MapClaims{"nbf": now + 600}), "token_not_yet_valid"},
		{"nbf within the leeway", claims(jwt.MapClaims{"nbf": now + 5}), ""},
		{"nbf 1e308", claims(jwt.MapClaims{"nbf": json.RawMessage("1e308")}), "token_claims"},
		{"nbf as a string", claims(jwt.MapClaims{"nbf": "0"}), "token_claims"},
		{"auth_time in ten minutes", claims(jwt.MapClaims{"auth_time": now + 600}), "token_not_yet_valid"},
		{"auth_time an hour ago", claims(jwt.MapClaims{"auth_time": now - 3600}), ""},
		{"a life of 25 hours", claims(jwt.MapClaims{"exp": now + 25*3600}), "token_lifetime"},
		{"iat in 1970, to live longer", claims(jwt.MapClaims{"iat": 1}), "token_lifetime"},

		// Who and for whom (M24).
		{"no aud", claims(jwt.MapClaims{"aud": nil}), "token_audience"},
		{"another aud", claims(jwt.MapClaims{"aud": "App"}), "token_audience"},
		{"an empty aud", claims(jwt.MapClaims{"aud": ""}), "token_audience"},
		{"an empty list as aud", claims(jwt.MapClaims{"aud": []string{}}), "token_audience"},
		{"aud in a list", claims(jwt.MapClaims{"aud": []string{"other", "app"}}), ""},
		{"aud beside a number", claims(jwt.MapClaims{"aud": []any{"app", 1}}), "token_audience"},
		{"aud in an object", claims(jwt.MapClaims{"aud": map[string]any{"app": true}}), "token_audience"},
		{"aud with a blank", claims(jwt.MapClaims{"aud": "app "}), "token_audience"},
		{"aud with another behind", claims(jwt.MapClaims{"aud": "other app"}), "token_audience"},
		{"another iss", claims(jwt.MapClaims{"iss": attacker.URL}), "token_issuer"},
		{"iss with a slash", claims(jwt.MapClaims{"iss": w.idp.URL + "/"}), "token_issuer"},
		{"iss in another case", claims(jwt.MapClaims{"iss": strings.ToUpper(w.idp.URL)}), "token_issuer"},
		{"iss in a list", claims(jwt.MapClaims{"iss": []string{w.idp.URL}}), "token_issuer"},
		{"no iss", claims(jwt.MapClaims{"iss": nil}), "token_issuer"},
		{"no jti", claims(jwt.MapClaims{"jti": nil}), "token_claims"},
		{"an empty jti", claims(jwt.MapClaims{"jti": ""}), "token_claims"},
		{"a number as jti", claims(jwt.MapClaims{"jti": 7}), "token_claims"},
		{"a list as sub", claims(jwt.MapClaims{"sub": []string{"alice"}}), "token_claims"},
		{"a number as sid", claims(jwt.MapClaims{"sid": 7}), "token_claims"},
		{"an object as scope", claims(jwt.MapClaims{"scope": map[string]any{"admin": true}}), "token_claims"},
	} {
		status := 401
		if c.reason == "" {
			status = 200
		}
		for _, how := range []string{"Authorization: Bearer ", "Cookie: __Host-session=", "Authorization: Bearer ", "Cookie: __Host-session="} {
			w.app.take()
			got, reason := rawSend(t, w.public[0], "GET /page HTTP/1.1\r\nHost: app.test\r\n"+how+c.token+"\r\n\r\n")
			seen := w.app.take()
			if got != status || reason != c.reason {
				t.Errorf("%s (%.6s): %d %q, want %d %q", c.name, how, got, reason, status, c.reason)
			}
			if strings.Contains(seen, "X-Forwarded-User: alice\r\n") != (status == 200) || strings.Contains(seen, "mallory") {
				t.Errorf("%s (%.6s): the upstream received %q", c.name, how, seen)
			}
			if status, reason := rawSend(t, w.public[0], "GET /page HTTP/1.1\r\nHost: app.test\r\n"+how+good+"\r\n\r\n"); status != 200 {
				t.Fatalf("the good token after %s: %d %q", c.name, status, reason)
			}
		}
	}
	if attacker.fetches.Load() != 0 {
		t.Error("the gateway fetched keys from where a token said")
	}

	// What a token says in another spelling grants nothing.
	for _, c := range []struct {
		name, path, token string
		status            int
	}{
		{"scope", "/scoped/x", claims(jwt.MapClaims{"scope": "read admin"}), 200},
		{"scope in a list", "/scoped/x", claims(jwt.MapClaims{"scope": []string{"admin"}}), 200},
		{"Scope", "/scoped/x", extended(`"Scope":"admin","\u017fcope":"admin"`), 403},
		{"scope with commas", "/scoped/x", claims(jwt.MapClaims{"scope": "read,admin"}), 403},
		{"scope with a tab", "/scoped/x", claims(jwt.MapClaims{"scope": "read\tadmin"}), 403},
		{"scope in another case", "/scoped/x", claims(jwt.MapClaims{"scope": "Admin"}), 403},
		{"a list with a blank inside", "/scoped/x", claims(jwt.MapClaims{"scope": []string{"read admin"}}), 403},
		{"groups", "/admin/x", claims(jwt.MapClaims{"groups": []string{"ops", "admin"}}), 200},
		{"groups as a string", "/admin/x", claims(jwt.MapClaims{"groups": "admin"}), 200},
		{"groups with commas", "/admin/x", claims(jwt.MapClaims{"groups": "ops,admin"}), 403},
		{"Groups", "/admin/x", claims(jwt.MapClaims{"Groups": []string{"admin"}}), 403},
		{"groups nested", "/admin/x", claims(jwt.MapClaims{"groups": []any{[]string{"admin"}}}), 403},
		{"groups in an object", "/admin/x", claims(jwt.MapClaims{"groups": map[string]any{"admin": true}}), 403},
	} {
		if status, reason := rawSend(t, w.public[0], "GET "+c.path+" HTTP/1.1\r\nHost: app.test\r\n"+bearing(c.token)+"\r\n\r\n"); status != c.status {
			t.Errorf("%s at %s: %d %q, want %d", c.name, c.path, status, reason, c.status)
		}
	}
}

// TestRevokedInEverySpelling: an ECDSA signature (r, s) has a twin (r, n-s), which
// verifies too, so that a token has two texts; and a token can be signed anew.
// All of them are the same to the denylist, whichever of them is cached (M27).
func TestRevokedInEverySpelling(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t)
	k := w.idp.keys[0]
	header, payload := `{"alg":"ES256","kid":"k1"}`, fmt.Sprintf(`{"iss":%q,"aud":"app","sub":"alice","jti":"spelled","iat":%d,"exp":%d}`, w.idp.URL, time.Now().Unix(), time.Now().Unix()+600)
	first := compact(k, header, payload)
	signature, err := base64.RawURLEncoding.DecodeString(strings.Split(first, ".")[2])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(signature[32:])
	spellings := []string{
		first,
		first[:strings.LastIndexByte(first, '.')+1] + b64(signature),
		compact(k, header, payload),
		compact(k, `{"kid":"k1","alg":"ES256"}`, payload),
		compact(k, `{"alg":"ES256"}`, payload),
		compact(k, header, strings.Replace(payload, `"spelled"`, `"s\u0070elled"`, 1)),
		compact(k, header, strings.Replace(payload, `{`, `{ "x": 1,`, 1)),
	}
	for i, token := range spellings[:4] { // the others stay cold
		if status, reason := rawSend(t, w.public[0], "GET /page HTTP/1.1\r\nHost: app.test\r\n"+bearing(token)+"\r\n\r\n"); status != 200 {
			t.Errorf("spelling %d before: %d %q", i, status, reason)
		}
	}
	w.revoke(`{"jti":"spelled"}`)
	for i, token := range spellings {
		for _, how := range []string{"Authorization: Bearer ", "Authorization: bEARER  ", "Cookie: __Host-session=", "Cookie: a=b\r\nCookie: __Host-session="} {
			if status, reason := rawSend(t, w.public[0], "GET /page HTTP/1.1\r\nHost: app.test\r\n"+how+token+"\r\n\r\n"); status != 401 || reason != "revoked" {
				t.Errorf("spelling %d after, %q: %d %q", i, how, status, reason)
			}
		}
	}
	if status, reason := rawSend(t, w.public[0], "GET /page HTTP/1.1\r\nHost: app.test\r\n"+bearing(w.idp.token(nil))+"\r\n\r\n"); status != 200 {
		t.Errorf("another token: %d %q", status, reason)
	}
}

// TestHostileHTTP2 sends frames that no client library would (M5, M12, M13).
func TestHostileHTTP2(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t)
	for _, c := range []struct {
		name   string
		fields string // "name: value" lines that replace or follow those of a good request, or "-name" for none of it; {T} is the token, {O} another
		status int    // 0: the stream or the connection is reset
		reason string
		sees   string
	}{
		{"good", "", 200, "", "GET /page HTTP/1.1\r\n"},
		{"host equal to :authority", "host: app.test", 200, "", "Host: app.test\r\n"},
		{"host other than :authority", "host: admin.test", 400, "ambiguous_request", ""},
		{"two hosts", "host: app.test\nhost: app.test", 400, "ambiguous_request", ""},
		{"opaque path", ":path: x:admin/secret", 400, "ambiguous_request", ""},
		{"absolute path form", ":path: http://admin.test/x", 400, "ambiguous_request", ""},
		{"path *", ":path: *", 400, "ambiguous_request", ""},
		{"empty path", ":path: ", 0, "", ""},
		{"dot segments", ":path: /public/../admin/x", 400, "ambiguous_request", ""},
		{"encoded dot segments", ":path: /public/%2e%2e/admin/x", 400, "ambiguous_request", ""},
		{"a blank in the path", ":path: /public/ HTTP/1.1", 400, "ambiguous_request", ""},
		{"CR and LF in the path", ":path: /public/\r\rX-Forwarded-User:mallory", 0, "", ""},
		{"two paths", ":path: /page\n:path: /admin/x", 0, "", ""},
		{"CONNECT", ":method: CONNECT", 0, "", ""},
		{"TRACE", ":method: TRACE", 400, "ambiguous_request", ""},
		{"method in lower case", ":method: get", 400, "ambiguous_request", ""},
		{"an :authority of two", ":authority: app.test,admin.test", 400, "ambiguous_request", ""},
		{"an :authority with userinfo", ":authority: app.test@admin.test", 0, "", ""},
		{"another :authority", ":authority: admin.test", 403, "forbidden", ""},
		{"identity in another spelling", "x_forwarded_user: mallory\nx.forwarded.user: mallory\nx-forwarded-user: mallory", 200, "", "X-Forwarded-User: alice\r\n"},
		{"an upper-case name", "X-Forwarded-User: mallory", 0, "", ""},
		{"transfer-encoding", "transfer-encoding: chunked", 400, "", ""},
		{"transfer_encoding", "transfer_encoding: chunked", 400, "ambiguous_request", ""},
		{"connection", "connection: x-forwarded-user", 400, "", ""},
		{"te", "te: trailers, deflate", 400, "", ""},
		{"a length", "content-length: 0", 200, "", ""},
		{"two lengths", "content-length: 0\ncontent-length: 5", 400, "ambiguous_request", ""},
		{"the same length twice", "content-length: 0\ncontent-length: 0", 400, "ambiguous_request", ""},
		{"a length that is none", "content-length: x", 400, "ambiguous_request", ""},
		{"two credentials", "authorization: Bearer {O}", 400, "ambiguous_credentials", ""},
		{"cookie crumbs", "-authorization\ncookie: a=b\ncookie: __Host-session={T}\ncookie: c=d", 200, "", "X-Forwarded-User: alice\r\n"},
		{"two session cookies in crumbs", "-authorization\ncookie: __Host-session={T}\ncookie: __Host-session={O}", 400, "ambiguous_credentials", ""},
		{"the front's own field", "durward-front: too_large x", 400, "ambiguous_request", ""},
		{"an extended CONNECT", ":method: CONNECT\n:protocol: websocket", 0, "", ""},
	} {
		token, other := w.idp.token(nil), w.idp.token(jwt.MapClaims{"sub": "mallory"})
		fields := []string{":method: GET", ":scheme: http", ":path: /page", ":authority: app.test", "authorization: Bearer {T}"}
		seen := map[string]bool{}
		for line := range strings.Lines(c.fields) {
			line = strings.TrimSuffix(line, "\n")
			if without, ok := strings.CutPrefix(line, "-"); ok {
				fields = slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, without+": ") })
				continue
			}
			i := strings.Index(line[1:], ": ") + 1
			name := line[:i]
			replaced := false
			if name[0] == ':' && !seen[name] {
				for j, f := range fields {
					if strings.HasPrefix(f, name+": ") {
						fields[j], replaced = line, true
					}
				}
			}
			if seen[name] = true; replaced {
				continue
			}
			if name[0] == ':' { // pseudo-headers come first
				fields = append([]string{line}, fields...)
				continue
			}
			fields = append(fields, line)
		}
		for i, f := range fields {
			fields[i] = strings.NewReplacer("{T}", token, "{O}", other).Replace(f)
		}
		w.app.take()
		status, reason := frames(t, w.public[0], fields)
		got := w.app.take()
		if status != c.status || reason != c.reason {
			t.Errorf("%s: %d %q, want %d %q", c.name, status, reason, c.status, c.reason)
		}
		if (got != "") != (c.status == 200) || !strings.Contains(got, c.sees) || strings.Contains(got, "mallory") {
			t.Errorf("%s: the upstream received %q", c.name, got)
		}
	}
}

// TestHostileHTTP2Trailers: what comes behind a body is passed on no more than over
// HTTP/1 (M19).
func TestHostileHTTP2Trailers(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t)
	for _, announced := range []string{"", "trailer: x-forwarded-user"} {
		conn, err := net.Dial("tcp", w.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(15 * time.Second))
		block := func(fields ...string) []byte {
			var b bytes.Buffer
			encoder := hpack.NewEncoder(&b)
			encoder.SetMaxDynamicTableSize(0)
			for _, f := range fields {
				if i := strings.Index(f, ": "); i > 0 {
					encoder.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+2:]})
				}
			}
			return b.Bytes()
		}
		io.WriteString(conn, http2.ClientPreface)
		framer := http2.NewFramer(conn, conn)
		framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		framer.WriteSettings()
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true,
			BlockFragment: block(":method: POST", ":scheme: http", ":path: /page", ":authority: app.test", "authorization: Bearer "+w.idp.token(nil), announced)})
		framer.WriteData(1, false, []byte("hello"))
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: block("x-forwarded-user: mallory", "x-other: mallory")})
		status := ""
		for status == "" {
			frame, err := framer.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if headers, ok := frame.(*http2.MetaHeadersFrame); ok {
				status = headers.PseudoValue("status")
			}
		}
		conn.Close()
		if got := w.app.take(); status != "200" || !strings.Contains(got, "X-Forwarded-User: alice\r\n") || !strings.HasSuffix(got, "hello") || strings.Contains(strings.ToLower(got), "mallory") || strings.Contains(got, "Trailer:") {
			t.Errorf("announced %q: %s, the upstream received %q", announced, status, got)
		}
	}
}

// frames sends one request as HTTP/2 frames with exactly these fields, without
// TLS (RFC 9113 section 3.3). A zero status says that it was reset.
func frames(t *testing.T, address string, fields []string) (status int, reason string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		i := strings.Index(f[1:], ": ") + 1
		encoder.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+2:]})
	}
	io.WriteString(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return 0, ""
		}
		switch f := frame.(type) {
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0, ""
		case *http2.MetaHeadersFrame:
			for _, field := range f.RegularFields() {
				if field.Name == "durward-reason" {
					reason = field.Value
				}
			}
			fmt.Sscan(f.PseudoValue("status"), &status)
			return status, reason
		}
	}
}
