package test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// newFramingWorld is a gateway with a plain and a TLS listener, all of whose
// routes are open.
func newFramingWorld(t *testing.T) (g *gateway, app *rawUpstream, dial map[string]func() net.Conn) {
	t.Helper()
	idp, ca := newIssuer(t), newAuthority(t)
	app = newRawUpstream(t)
	routes := fmt.Sprintf("routes: [{name: open, upstream: %q, auth: none, allow: [{methods: [GET, HEAD, POST, PURGE]}]}, {name: other, path: /other/, upstream: %[1]q, auth: none}]\n", app.url)
	g = serving(t, guarded(idp, "%s", routes))
	cert, key := ca.pair(t)
	secure := serving(t, guarded(idp, "tls: {cert_file: %q, key_file: %q}\n%s", cert, key, routes))
	conf := &tls.Config{RootCAs: ca.pool()}
	open := func(dial func() (net.Conn, error)) func() net.Conn {
		return func() net.Conn {
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(15 * time.Second))
			return conn
		}
	}
	return g, app, map[string]func() net.Conn{
		"plain": open(func() (net.Conn, error) { return net.Dial("tcp", g.public[0]) }),
		"TLS":   open(func() (net.Conn, error) { return tls.Dial("tcp", secure.public[0], conf) }),
	}
}

// TestFraming sends requests whose end two readers could see in two places (M14,
// M15), each with another request behind it on the same connection. Such a request
// is refused with 400, the connection is closed, and what is behind is neither
// answered nor forwarded. In the twins both are.
func TestFraming(t *testing.T) {
	t.Parallel()
	_, app, dial := newFramingWorld(t)
	const (
		behind = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n"
		post   = "POST /first HTTP/1.1\r\nHost: app.test\r\n"
		get    = "GET /first HTTP/1.1\r\nHost: app.test\r\n"
	)
	for _, c := range []struct {
		name    string
		request string
		good    bool
	}{
		{"good GET", get + "\r\n", true},
		{"good POST", post + "Content-Length: 5\r\n\r\nhello", true},
		{"good chunks", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n", true},
		{"chunks with leading zeros", post + "Transfer-Encoding: chunked\r\n\r\n0005\r\nhello\r\n000\r\n\r\n", true},
		{"chunked in another case", post + "transfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true},
		{"trailers", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\nContent-Length: 9\r\n\r\n", true},
		{"blanks around a value", post + "Content-Length: \t5 \t\r\n\r\nhello", true},
		{"no blank before a value", post + "Content-Length:5\r\n\r\nhello", true},
		{"an empty value", get + "X-A:\r\n\r\n", true},
		{"one empty line behind a POST", post + "Content-Length: 5\r\n\r\nhello\r\n", true},
		{"a body that looks like a request", post + "Content-Length: 16\r\n\r\nGET / HTTP/1.1\n\n", true},
		{"a chunk that looks like an end", post + "Transfer-Encoding: chunked\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n", true},
		{"a GET with a body", get + "Content-Length: 5\r\n\r\nhello", true},
		{"Upgrade: h2c, which is none", get + "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", true},
		{"Upgrade beside a body", post + "Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\nhello", true},

		{"both lengths", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
		{"both lengths, the other way round", post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", false},
		{"both lengths, zero", post + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", false},
		{"HTTP/1.0 with chunks", "POST /first HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
		{"HTTP/1.2 with chunks", "POST /first HTTP/1.2\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
		{"the same length twice", post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", false},
		{"two lengths", post + "Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello", false},
		{"lengths in a list", post + "Content-Length: 5, 5\r\n\r\nhello", false},
		{"a leading zero", post + "Content-Length: 05\r\n\r\nhello", false},
		{"a sign", post + "Content-Length: +5\r\n\r\nhello", false},
		{"a negative length", post + "Content-Length: -5\r\n\r\nhello", false},
		{"hexadecimal", post + "Content-Length: 0x5\r\n\r\nhello", false},
		{"an underscore", post + "Content-Length: 0_5\r\n\r\nhello", false},
		{"a fraction", post + "Content-Length: 5.0\r\n\r\nhello", false},
		{"an empty length", post + "Content-Length:\r\n\r\nhello", false},
		{"a length beyond 64 bits", post + "Content-Length: 18446744073709551621\r\n\r\nhello", false},
		{"a vertical tab before the length", post + "Content-Length: \v5\r\n\r\nhello", false},
		{"Transfer-Encoding twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
		{"xchunked", post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", false},
		{"gzip, chunked", post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", false},
		{"chunked, identity", post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", false},
		{"identity", post + "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", false},
		{"quoted chunked", post + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", false},
		{"chunked with a parameter", post + "Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", false},
		{"a vertical tab before chunked", post + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", false},
		{"an empty Transfer-Encoding", post + "Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello", false},
		{"a folded value", get + "X-A: b\r\n c\r\n\r\n", false},
		{"a folded credential", get + "Authorization: Bearer\r\n x\r\n\r\n", false},
		{"folded with a tab", get + "X-A: b\r\n\tc\r\n\r\n", false},
		{"folded Transfer-Encoding", post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", false},
		{"a first line that is folded", "GET /first HTTP/1.1\r\n Host: app.test\r\n\r\n", false},
		{"LF in the request line", "GET /first HTTP/1.1\nHost: app.test\r\n\r\n", false},
		{"LF in a header line", get + "X-A: b\nX-B: c\r\n\r\n", false},
		{"LF behind the header", get + "X-A: b\r\n\n", false},
		{"LF alone", "GET /first HTTP/1.1\nHost: app.test\n\n", false},
		{"a blank before the colon", get + "X-A : b\r\n\r\n", false},
		{"a tab before the colon", post + "Content-Length\t: 5\r\n\r\nhello", false},
		{"no colon", get + "X-A\r\n\r\n", false},
		{"no name", get + ": b\r\n\r\n", false},
		{"our own field", get + "Durward-Front: allowed\r\n\r\n", false},
		{"our own field in another case", get + "dURWARD-fRONT: too_large x\r\n\r\n", false},
		{"a chunk extension", post + "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", false},
		{"an extension of the last chunk", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0;a\r\n\r\n", false},
		{"a blank behind a chunk's size", post + "Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", false},
		{"a blank before a chunk's size", post + "Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n", false},
		{"LF behind a chunk's size", post + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", false},
		{"LF behind a chunk", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", false},
		{"a longer chunk", post + "Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n", false},
		{"a chunk's size with 0x", post + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", false},
		{"a signed chunk", post + "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", false},
		{"an empty chunk's size", post + "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", false},
		{"a chunk beyond 63 bits", post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n0\r\n\r\n", false},
		{"17 digits", post + "Transfer-Encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\n", false},
		{"LF behind the trailers", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\n\r\n", false},
		{"a folded trailer", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n", false},
		{"HTTP/2 without its preface", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", false},
	} {
		for how, dial := range dial {
			app.take()
			conn := dial()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			own := "/" + how + strings.Map(func(r rune) rune {
				if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
					return r
				}
				return '-'
			}, c.name)
			go io.WriteString(conn, strings.Replace(c.request, "/first", own, 1)+behind)
			in := bufio.NewReader(conn)
			var statuses []int
			reason := ""
			for range 3 {
				if c.good && len(statuses) == 2 {
					break
				}
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					break
				}
				io.Copy(io.Discard, res.Body)
				statuses, reason = append(statuses, res.StatusCode), res.Header.Get("Durward-Reason")
			}
			got := app.take()
			conn.Close()
			switch {
			case c.good:
				if fmt.Sprint(statuses) != "[200 200]" || strings.Count(got, own) != 1 || strings.Count(got, "GET /smuggled HTTP/1.1\r\n") != 1 {
					t.Errorf("%s, %s: %v %q, the upstream received %q", c.name, how, statuses, reason, got)
				}
			case fmt.Sprint(statuses) != "[400]" || reason != "ambiguous_request" || strings.Contains(got, "smuggled"):
				t.Errorf("%s, %s: %v %q, the upstream received %q", c.name, how, statuses, reason, got)
			case strings.Contains(got, own+" ") && !strings.Contains(c.request, "hello"): // what goes wrong late may have been begun
				t.Errorf("%s, %s: the upstream received %q", c.name, how, got)
			}
		}
	}
}

// TestFramingRecords: a refusal by the front is one like any other, behind the
// answers to earlier requests, with a record that says why.
func TestFramingRecords(t *testing.T) {
	t.Parallel()
	g, app, dial := newFramingWorld(t)
	conn := dial["plain"]()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "GET /one HTTP/1.1\r\nHost: app.test\r\n\r\nPOST /two?secret HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /three HTTP/1.1\r\nHost: app.test\r\n\r\n")
	in := bufio.NewReader(conn)
	for i, want := range []int{200, 400} {
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != want {
			t.Fatalf("answer %d: %v %v", i, res, err)
		}
		io.Copy(io.Discard, res.Body)
		if want == 400 && (res.Header.Get("Durward-Reason") != "ambiguous_request" || res.Header.Get("X-Request-Id") == "" || !res.Close) {
			t.Errorf("the refusal: %v", res.Header)
		}
	}
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("behind the refusal: %q %v", rest, err)
	}
	if got := app.take(); strings.Count(got, "HTTP/1.1\r\n") != 1 {
		t.Errorf("the upstream received %q", got)
	}
	var refused map[string]any
	eventually(t, 5*time.Second, "the record", func() bool {
		for _, line := range g.log.lines("request") {
			if d := line["decision"].(map[string]any); d["reason"] == "ambiguous_request" {
				refused = d
			}
		}
		return refused != nil
	})
	if refused["method"] != "POST" || refused["path"] != "/two" || refused["detail"] != "both Content-Length and Transfer-Encoding" || refused["client"] != nil {
		t.Errorf("the record: %v", refused)
	}
	if n := metric(t, g, `durward_requests_total{reason="ambiguous_request",route="-",verdict="deny"}`); n != 1 {
		t.Errorf("counted %v times", n)
	}
	eventually(t, 5*time.Second, "it counts as not read", func() bool { return metric(t, g, "durward_requests_unparsed_total") == 1 })
}

// TestFramingInPieces sends good requests byte by byte and in odd pieces, on one
// connection.
func TestFramingInPieces(t *testing.T) {
	t.Parallel()
	_, app, dial := newFramingWorld(t)
	request := "POST /a HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nX-Long: " + strings.Repeat("x", 9000) + "\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n\r\n" +
		"GET /b HTTP/1.1\r\nHost: app.test\r\n\r\nPOST /c HTTP/1.1\r\nHost: app.test\r\nContent-Length: 7\r\n\r\nPOST /x"
	for how, dial := range dial {
		for _, size := range []int{1, 2, 7, 100, 4095, 4096, 4097} {
			conn := dial()
			go func() {
				for rest := request; rest != ""; {
					n := min(size, len(rest))
					io.WriteString(conn, rest[:n])
					rest = rest[n:]
				}
			}()
			in := bufio.NewReader(conn)
			for i := range 3 {
				res, err := http.ReadResponse(in, nil)
				if err != nil || res.StatusCode != 200 {
					t.Fatalf("%s, %d bytes at a time, answer %d: %v %v", how, size, i, res, err)
				}
				io.Copy(io.Discard, res.Body)
			}
			conn.Close()
			if got := app.take(); strings.Count(got, "HTTP/1.1\r\n") != 3 || !strings.HasSuffix(got, "\r\n\r\nPOST /x") {
				t.Errorf("%s, %d bytes at a time: the upstream received %q", how, size, got)
			}
		}
	}
}

// TestBehindPost: net/http bears up to four CRs and LFs behind a POST. Of them one
// empty line is left, which RFC 9112 section 2.2 asks for.
func TestBehindPost(t *testing.T) {
	t.Parallel()
	g, app, _ := newFramingWorld(t)
	for between, want := range map[string]string{"": "200 200", "\r\n": "200 200", "\r": "200 400", "\n": "200 400", "\r\n\r": "200 400", "\r\n\r\n": "200 400", "\r\r\n": "200 400", "\n\n": "200 400"} {
		app.take()
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(15 * time.Second))
		io.WriteString(conn, "POST /first HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\n\r\nx"+between+"GET /second HTTP/1.1\r\nHost: app.test\r\n\r\n")
		in, got := bufio.NewReader(conn), ""
		for range 2 {
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%q: %v", between, err)
			}
			io.Copy(io.Discard, res.Body)
			got += fmt.Sprintf(" %d", res.StatusCode)
		}
		conn.Close()
		if seen := app.take(); got != " "+want || strings.Contains(seen, "GET /second") != (want == "200 200") {
			t.Errorf("%q:%s, want %s; the upstream received %q", between, got, want, seen)
		}
	}
}

// TestListedMethods: a method that the standard does not know passes where a route
// lists it, and is refused everywhere else (M13).
func TestListedMethods(t *testing.T) {
	t.Parallel()
	g, app, dial := newFramingWorld(t)
	for _, c := range []struct {
		method string
		status int
		reason string
	}{
		{"GET /other", 200, ""}, {"DELETE /other", 200, ""}, {"PURGE /other", 400, "ambiguous_request"}, {"BREW /other", 400, "ambiguous_request"},
		{"GET", 200, ""}, {"HEAD", 200, ""}, {"PURGE", 200, ""},
		{"DELETE", 405, "method_not_allowed"}, {"OPTIONS", 405, "method_not_allowed"},
		{"BREW", 400, "ambiguous_request"}, {"purge", 400, "ambiguous_request"}, {"Get", 400, "ambiguous_request"},
		{"CONNECT", 400, "ambiguous_request"}, {"TRACE", 400, "ambiguous_request"}, {"TRACK", 400, "ambiguous_request"}, {"DEBUG", 400, "ambiguous_request"}, {"PRI", 400, "ambiguous_request"},
	} {
		app.take()
		if !strings.Contains(c.method, " ") {
			c.method += " "
		}
		status, reason := rawSend(t, g.public[0], c.method+"/x HTTP/1.1\r\nHost: app.test\r\n\r\n")
		if got := app.take(); status != c.status || reason != c.reason || strings.HasPrefix(got, c.method+"/x ") != (status == 200) {
			t.Errorf("%s: %d %q, the upstream received %q", c.method, status, reason, got)
		}
	}
	// The preface of HTTP/2 where HTTP/1.1 was agreed on is neither.
	conn := dial["TLS"]()
	defer conn.Close()
	io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n")
	all, _ := io.ReadAll(conn)
	if got := app.take(); !strings.HasPrefix(string(all), "HTTP/1.1 400 ") || strings.Count(string(all), "HTTP/1.1 ") != 1 || got != "" {
		t.Errorf("answered %q, the upstream received %q", all, got)
	}
}

// TestEarlyWebSocket: what a client sends before the switch is answered is passed
// on as it is if the protocol is switched, and is another request if it is not.
func TestEarlyWebSocket(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if req.URL.Path == "/switch" {
						time.Sleep(50 * time.Millisecond) // the early bytes are there by now
						io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+webSocketAccept+"\r\n")
						io.Copy(conn, in)
						return
					}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
				}
			}()
		}
	}()
	g := serving(t, guarded(idp, "routes: [{name: open, upstream: %q, auth: none}]\n", "http://"+l.Addr().String()))
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		return conn
	}
	const fields = " HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	early := "\x81\x85\x01\x02\x03\x04\n\r\n :" + strings.Repeat("\n", 300)

	conn := dial()
	io.WriteString(conn, "GET /switch"+fields+early)
	in := bufio.NewReader(conn)
	if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("the switch: %v %v", res, err)
	}
	io.WriteString(conn, "later")
	back := make([]byte, len(early)+5)
	if _, err := io.ReadFull(in, back); err != nil || string(back) != early+"later" {
		t.Errorf("through the WebSocket: %q %v", back, err)
	}
	conn.Close()

	conn = dial()
	io.WriteString(conn, "GET /stay"+fields+"GET /next HTTP/1.1\r\nHost: app.test\r\n\r\nGET /next HTTP/1.1\r\nHost: app.test\r\n\r\nGET /bad HTTP/1.1\r\nHost: app.test\r\nX-A: b\n\r\n")
	in = bufio.NewReader(conn)
	for i, want := range []int{200, 200, 200, 400} {
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != want {
			t.Fatalf("without the switch, answer %d: %v %v", i, res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	conn.Close()

	// Who says more than fits before the answer is heard no more.
	conn = dial()
	go io.WriteString(conn, "GET /stay"+fields+strings.Repeat("x", 200_000))
	in = bufio.NewReader(conn)
	if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != 200 {
		t.Fatalf("with much behind: %v %v", res, err)
	} else if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Error(err)
	}
	// What is behind was in part taken for a request that does not end, or not at all.
	if rest, err := io.ReadAll(in); len(rest) > 0 && !strings.HasPrefix(string(rest), "HTTP/1.1 431 ") || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("behind that: %q %v", rest, err)
	}
	conn.Close()
}

// TestUnaskedSwitch: an upstream that answers 101 to what was no request to
// switch, or not to this protocol, gets no tunnel, whatever it says it switches to.
func TestUnaskedSwitch(t *testing.T) {
	t.Parallel()
	const webSocket = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
	for _, fields := range []string{"", webSocket, webSocket + "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n", webSocket + webSocketAccept + webSocketAccept,
		"Connection: Upgrade\r\nUpgrade: h2c\r\n" + webSocketAccept, "Upgrade: \r\n" + webSocketAccept, webSocket + webSocketAccept} {
		app := scripted(t, func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n"+fields+"\r\n")
			io.Copy(io.Discard, conn)
		})
		g := serving(t, guarded(newIssuer(t), "routes: [{name: open, upstream: %q, auth: none}]\n", app))
		for _, asked := range []string{"", "Connection: Upgrade\r\nUpgrade: h2c\r\n", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n" + webSocketKey, "Upgrade: websocket\r\n" + webSocketKey, webSocket} {
			status, reason := rawSend(t, g.public[0], "GET / HTTP/1.1\r\nHost: app.test\r\n"+asked+"\r\n")
			if status != 502 || reason != "upstream_unreachable" {
				t.Errorf("asked %q, answered %q: %d %q", asked, fields, status, reason)
			}
		}
		if status, _ := rawSend(t, g.public[0], "POST / HTTP/1.1\r\nHost: app.test\r\n"+webSocket+webSocketKey+"Content-Length: 0\r\n\r\n"); status != 502 {
			t.Errorf("a POST, answered %q: %d", fields, status)
		}
		if status, _ := rawSend(t, g.public[0], "GET / HTTP/1.0\r\nHost: app.test\r\n"+webSocket+webSocketKey+"\r\n"); status != 502 {
			t.Errorf("HTTP/1.0, answered %q: %d", fields, status)
		}
		want := 502
		if fields == webSocket+webSocketAccept {
			want = 101 // the twin: it was asked for, and is what it was asked for
		}
		if status, _ := rawSend(t, g.public[0], "GET / HTTP/1.1\r\nHost: app.test\r\n"+webSocket+webSocketKey+"\r\n"); status != want {
			t.Errorf("a WebSocket, answered %q: %d, want %d", fields, status, want)
		}
	}
}

// A key that a client sends to open a WebSocket, and the proof that it was read (RFC
// 6455 section 1.3).
const (
	webSocketKey    = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	webSocketAccept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)

// TestHandshakes: who begins a TLS handshake and does not go on is shown out, who
// speaks something else is told, and neither is in the way of others or of the end.
func TestHandshakes(t *testing.T) {
	t.Parallel()
	app := newUpstream(t)
	cert, key := newAuthority(t).pair(t)
	g := serving(t, guarded(newIssuer(t), "limits: {header_timeout: 1s}\ntls: {cert_file: %q, key_file: %q}\nroutes: [{name: open, upstream: %q, auth: none}]\n", cert, key, app.URL))
	open := func(text string) net.Conn {
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, text)
		return conn
	}
	var slow []net.Conn
	for range 50 {
		slow = append(slow, open(""), open("\x16\x03\x01\x02\x00\x01"), open("\x16\x03\x01"))
	}
	began := time.Now()
	if status, reason := rawSendTLS(t, g.public[0], "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"); status != 200 {
		t.Errorf("beside them: %d %q", status, reason)
	}
	for _, conn := range slow {
		if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a handshake that does not go on is waited for")
		}
		conn.Close()
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("they were waited for %v", took)
	}
	for text, want := range map[string]string{"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n": "HTTP/1.0 400 Bad Request\r\n", "SSH-2.0-x\r\n": ""} {
		conn := open(text)
		if said, _ := io.ReadAll(conn); want != "" && !strings.HasPrefix(string(said), want) || want == "" && strings.HasPrefix(string(said), "HTTP/") {
			t.Errorf("%q was told %q", text, said)
		}
		conn.Close()
	}
	for range 20 {
		defer open("\x16\x03\x01").Close()
	}
	began = time.Now()
	g.stop()
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// scripted is an upstream that does with each connection what the function says,
// once a request's header has come.
func scripted(t *testing.T, answer func(net.Conn)) (url string) {
	t.Helper()
	return "http://" + accepting(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			answer(conn)
		}
	})
}
