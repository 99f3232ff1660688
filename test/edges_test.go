package test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// accepting listens and serves each connection until the test ends.
func accepting(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			go func() {
				defer stop()
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// careless is an upstream that reads no body, unless told to close behind an answer,
// and so takes each for the next request. It remembers the request lines.
func careless(t *testing.T) (address string, lines func() string) {
	var mu sync.Mutex
	var seen []string
	address = accepting(t, func(conn net.Conn) {
		for in := bufio.NewReader(conn); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			closes := false
			for field := line; field != "\r\n"; closes = closes || strings.EqualFold(field, "Connection: close\r\n") {
				if field, err = in.ReadString('\n'); err != nil {
					return
				}
			}
			mu.Lock()
			seen = append(seen, strings.TrimSpace(line))
			mu.Unlock()
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			if closes {
				// With bytes that nobody read, closing at once would reset the connection, and
				// the answer could be lost with it.
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, in)
				return
			}
		}
	})
	return address, func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(seen, ", ")
	}
}

// TestUnreadBodies: what a client puts into the body of a request that has none, as a
// rule, never becomes another request, which nobody has judged.
func TestUnreadBodies(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "DELETE"} {
		for _, framing := range []string{"length", "chunked"} {
			address, lines := careless(t)
			g := serving(t, guarded(newIssuer(t), "routes: [{name: all, upstream: %q, auth: none}]\n", "http://"+address))
			hidden := "GET /admin HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-User: root\r\n\r\n"
			request := fmt.Sprintf("%s /page HTTP/1.1\r\nHost: app.test\r\nContent-Length: %d\r\n\r\n%s", method, len(hidden), hidden)
			if framing == "chunked" {
				request = fmt.Sprintf("%s /page HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", method, len(hidden), hidden)
			}
			if status, _ := rawSend(t, g.public[0], request); status != 200 {
				t.Errorf("%s, %s: %d", method, framing, status)
			}
			if a := send(t, "GET", g.url("/next"), ""); a.StatusCode != 200 {
				t.Errorf("the next one: %s", a.Status)
			}
			if got := lines(); got != method+" /page HTTP/1.1, GET /next HTTP/1.1" {
				t.Errorf("%s, %s: the upstream took it for %s", method, framing, got)
			}
		}
	}
}

// TestLeavingClients: who leaves an answer without end is noticed, also with bytes
// behind the request that nobody has looked at yet.
func TestLeavingClients(t *testing.T) {
	t.Parallel()
	app := accepting(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
			io.Copy(io.Discard, conn) // until the gateway leaves
		}
	})
	g := serving(t, guarded(newIssuer(t), "routes: [{name: all, upstream: %q, auth: none}]\n", "http://"+app))
	for _, behind := range []string{"", "G", "GET /next HTTP/1.1\r\nHost: app.test\r\n\r\n", strings.Repeat("x", 100_000)} {
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, "GET /events HTTP/1.1\r\nHost: app.test\r\n\r\n")
		in := bufio.NewReader(conn)
		for line := ""; line != "data: 1\n"; {
			if line, err = in.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if open := send(t, "GET", g.admin+"/metrics", "").Body; !strings.Contains(open, "durward_inflight_requests 1\n") {
			t.Errorf("%.10q: it is not in progress", behind)
		}
		io.WriteString(conn, behind)
		conn.Close()
		eventually(t, 10*time.Second, fmt.Sprintf("the end of the one with %d bytes behind", len(behind)), func() bool {
			return strings.Contains(send(t, "GET", g.admin+"/metrics", "").Body, "durward_inflight_requests 0\n")
		})
	}
	// And pipelined requests are answered, in order.
	echo := newUpstream(t)
	g = serving(t, guarded(newIssuer(t), "routes: [{name: all, upstream: %q, auth: none}]\n", echo.URL))
	conn, err := net.Dial("tcp", g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	const many = 100
	for i := range many {
		fmt.Fprintf(conn, "POST /%d HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello", i)
	}
	in := bufio.NewReader(conn)
	for i := range many {
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("answer %d: %v %v", i, res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	if got := echo.requests(); len(got) != many || got[many-1].URL.Path != fmt.Sprint("/", many-1) {
		t.Errorf("%d requests arrived", len(got))
	}
}

// TestHTTP2Upstreams: what only HTTP/2 lets an upstream say does not come to a client
// of HTTP/1 in two readings.
func TestHTTP2Upstreams(t *testing.T) {
	t.Parallel()
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nevi"
	answers := map[string][]string{ // fields; the last is the body
		"/good":       {":status", "200", "content-length", "2", "ok"},
		"/unknown":    {":status", "200", "ok"},
		"/two":        {":status", "200", "content-length", "41", "content-length", "0", evil},
		"/plus":       {":status", "200", "content-length", "+2", "ok"},
		"/zeros":      {":status", "200", "content-length", "02", "ok"},
		"/switch":     {":status", "101", evil},
		"/1000":       {":status", "1000", "ok"},
		"/99999":      {":status", "99999", "ok"},
		"/unmodified": {":status", "304", "content-length", "50", ""},
	}
	app := accepting(t, func(conn net.Conn) {
		io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
		framer := http2.NewFramer(conn, conn)
		framer.AllowIllegalWrites = true
		framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		framer.WriteSettings()
		for {
			f, err := framer.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					framer.WriteSettingsAck()
				}
			case *http2.MetaHeadersFrame:
				answer := answers[f.PseudoValue("path")]
				body := answer[len(answer)-1]
				var block bytes.Buffer
				encoder := hpack.NewEncoder(&block)
				for i := 0; i+1 < len(answer); i += 2 {
					encoder.WriteField(hpack.HeaderField{Name: answer[i], Value: answer[i+1]})
				}
				framer.WriteHeaders(http2.HeadersFrameParam{StreamID: f.StreamID, EndHeaders: true, EndStream: body == "", BlockFragment: block.Bytes()})
				if body != "" {
					framer.WriteData(f.StreamID, true, []byte(body))
				}
			}
		}
	})
	g := serving(t, guarded(newIssuer(t), "upstreams: {app: {url: %q, timeout: {response_header: 2s}}}\nroutes: [{name: all, upstream: app, auth: none}]\n", "h2c://"+app))
	for _, c := range []struct {
		path   string
		status int
		length string
	}{
		{"/good", 200, "2"}, {"/unknown", 200, ""}, {"/zeros", 200, "2"}, {"/unmodified", 304, ""},
		{"/two", 502, ""}, {"/plus", 502, ""}, {"/switch", 502, ""}, {"/1000", 502, ""}, {"/99999", 502, ""},
	} {
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, "GET "+c.path+" HTTP/1.1\r\nHost: app.test\r\n\r\n")
		in := bufio.NewReader(conn)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			conn.Close()
			continue
		}
		body, err := io.ReadAll(res.Body)
		if res.StatusCode != c.status || len(res.Header["Content-Length"]) > 1 || c.length != "" && res.Header.Get("Content-Length") != c.length || err != nil || c.status == 200 && string(body) != "ok" {
			t.Errorf("%s: %s %v %q, %v", c.path, res.Status, res.Header, body, err)
		}
		if c.status == 502 && res.Header.Get("Durward-Reason") != "upstream_unreachable" {
			t.Errorf("%s: %v", c.path, res.Header)
		}
		// What comes next is the next answer.
		if c.status != 502 {
			io.WriteString(conn, "GET /good HTTP/1.1\r\nHost: app.test\r\n\r\n")
			if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != 200 {
				t.Errorf("behind %s: %v %v", c.path, res, err)
			}
		}
		conn.Close()
	}
	if strings.Contains(g.log.String(), "a bug") {
		t.Error("the log speaks of a bug")
	}
}

// TestLateBodies: what comes behind an answer that has no body is nobody's answer.
func TestLateBodies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ method, head string }{
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"},
		{"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 60\r\n\r\n"},
		{"GET", "HTTP/1.1 204 No Content\r\nContent-Length: 60\r\n\r\n"},
	} {
		asked := make(chan struct{}, 10)
		app := accepting(t, func(conn net.Conn) {
			for in := bufio.NewReader(conn); ; {
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				if r.URL.Path != "/late" {
					asked <- struct{}{}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
					continue
				}
				io.WriteString(conn, c.head)
				select { // with the next request on its way, at the latest
				case <-asked:
				case <-time.After(100 * time.Millisecond):
				}
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			}
		})
		g := serving(t, guarded(newIssuer(t), "routes: [{name: all, upstream: %q, auth: none}]\n", "http://"+app))
		if a := send(t, c.method, g.url("/late"), ""); a.StatusCode >= 400 {
			t.Errorf("%s %q: %s", c.method, c.head, a.Status)
		}
		for range 3 {
			if a := send(t, "GET", g.url("/next"), ""); a.StatusCode != 200 || a.Body != "good" {
				t.Errorf("behind %s %q: %s %q", c.method, c.head, a.Status, a.Body)
			}
		}
	}
}

// TestUpstreamWordsStay: the log says what was wrong with an answer, in few words, and
// nothing of what stood in it.
func TestUpstreamWordsStay(t *testing.T) {
	t.Parallel()
	secret := "__Host-session=SECRETTOKEN"
	long := strings.Repeat("x", 100<<10)
	app := literalUpstream(t, map[string]string{
		"/status": "HTTP/1.1 abc " + secret + long + "\r\n\r\n",
		"/line":   "Set-Cookie: " + secret + long + "\r\n\r\n",
		"/header": "HTTP/1.1 200 OK\r\nSet-Cookie " + secret + long + "\r\n\r\n",
		"/many":   "HTTP/1.1 200 OK\r\n" + strings.Repeat("Set-Cookie: "+secret+"\r\n", 1000) + "Content-Length: 0\r\n\r\n",
	})
	noisy := accepting(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			time.Sleep(50 * time.Millisecond) // so that it is read as what nobody asked for
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nSet-Cookie: "+secret+"\r\n\r\n")
			io.Copy(io.Discard, conn)
		}
	})
	g := serving(t, guarded(newIssuer(t), "routes:\n  - {name: noisy, path: /noisy, upstream: %q, auth: none}\n  - {name: all, upstream: %q, auth: none}\n", "http://"+noisy, "http://"+app))
	for _, method := range []string{"GET", "POST"} {
		for path, want := range map[string]int{"/status": 502, "/line": 502, "/header": 502, "/many": 200} {
			if a := send(t, method, g.url(path), ""); a.StatusCode != want {
				t.Errorf("%s %s: %s", method, path, a.Status)
			}
		}
	}
	send(t, "POST", g.url("/noisy"), "x")
	eventually(t, 10*time.Second, "the log tells of bytes that nobody asked for", func() bool { return len(g.log.lines("a library says")) > 0 })
	if text := g.log.String(); strings.Contains(text, "SECRETTOKEN") {
		t.Error("the log tells a cookie")
	}
	for line := range strings.Lines(g.log.String()) {
		if len(line) > 4<<10 || !strings.HasPrefix(line, "{") {
			t.Errorf("a line of %d bytes: %.200s", len(line), line)
		}
	}
	if n := len(g.log.lines("dropped a session cookie from an upstream")); n != 2 {
		t.Errorf("%d lines for two answers", n)
	}
}

// TestHubWaitsForNobody: who sends no body, or one of many lines, costs a hub little.
func TestHubWaitsForNobody(t *testing.T) {
	t.Parallel()
	hub, tokenFile := freeAddress(t), filepath.Join(t.TempDir(), "hub.token")
	if err := os.WriteFile(tokenFile, []byte("a long random secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := serving(t, guarded(newIssuer(t), "denylist: {serve_feed: {listen: %s, token_file: %q}}\nroutes: [{name: all, upstream: %q}]\n", hub, tokenFile, newUpstream(t).URL))
	const bearer = "Authorization: Bearer a long random secret\r\n"
	for _, c := range []struct {
		head   string
		status int // 0: none
	}{
		{"POST /revlog/v1/revocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", 401},
		{"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 401},
		{"GET /revlog/v1/head HTTP/1.1\r\nHost: x\r\n" + bearer + "Content-Length: 100\r\n\r\n", 400},
		{"POST /revlog/v1/revocations HTTP/1.1\r\nHost: x\r\n" + bearer + "Content-Length: 100\r\n\r\n", 413},
		{"GET /revlog/v1/head HTTP/1.1\r\nHost: x\r\n" + bearer + "\r\n", 200},
	} {
		t.Run(c.head, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", hub)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			io.WriteString(conn, c.head)
			in := bufio.NewReader(conn)
			if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != c.status {
				t.Fatalf("%v %v, want %d", res, err, c.status)
			} else if c.status == 200 {
				return
			}
			if _, err := io.Copy(io.Discard, in); err != nil {
				t.Errorf("the connection is still there: %v", err)
			}
		})
	}
	many := strings.Repeat("{}\n", 100_001)
	if status, answer := g.call("POST", "/revocations", many); status != 413 || !strings.Contains(answer, "more than 100000 lines") {
		t.Errorf("many lines: %d %.200s", status, answer)
	}
	if a := send(t, "POST", "http://"+hub+"/revlog/v1/revocations", many, "Authorization: Bearer a long random secret"); a.StatusCode != 413 {
		t.Errorf("many lines at the hub: %s %.200s", a.Status, a.Body)
	}
	if status, answer := g.call("POST", "/revocations", strings.Repeat("\n", 1<<20)+`{"jti":"one"}`); status != 200 {
		t.Errorf("many empty lines and one: %d %.200s", status, answer)
	}
}

// TestHubWithoutToken: a hub on loopback that asks nobody who they are answers no web
// page that a browser on that machine has loaded.
func TestHubWithoutToken(t *testing.T) {
	t.Parallel()
	hub := freeAddress(t)
	serving(t, guarded(newIssuer(t), "denylist: {serve_feed: {listen: %s}}\nroutes: [{name: all, upstream: %q}]\n", hub, newUpstream(t).URL))
	for headers, want := range map[string]int{
		"Host: " + hub: 200,
		"Host: evil.example:9300\r\nOrigin: http://evil.example:9300":            403,
		"Host: " + hub + "\r\nSec-Fetch-Site: cross-site":                        403,
		"Host: " + hub + "\r\nOrigin: http://" + hub:                             200,
		"Host: " + hub + "\r\nOrigin: http://" + hub + "\r\nOrigin: http://evil": 403,
	} {
		if status, _ := rawSend(t, hub, "GET /revlog/v1/log HTTP/1.1\r\n"+headers+"\r\n\r\n"); status != want {
			t.Errorf("%q: %d, want %d", headers, status, want)
		}
	}
}

// TestRemovedIssuer: a stream of an issuer that a reload takes out of the
// configuration ends: nobody could revoke its token any more.
func TestRemovedIssuer(t *testing.T) {
	t.Parallel()
	one, two := newIssuer(t), newIssuer(t)
	var open atomic.Int64
	app := accepting(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			open.Add(1)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
			io.Copy(io.Discard, conn)
			open.Add(-1)
		}
	})
	config := func(issuers string) string {
		return fmt.Sprintf("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nissuers: [%s]\nroutes: [{name: all, upstream: 'http://%s', issuers: [%%s]}]\n", issuers, app)
	}
	entry := func(name string, i *issuer) string {
		return fmt.Sprintf("{name: %s, issuer: %q, audiences: [app]}", name, i.URL)
	}
	both := fmt.Sprintf(config(entry("one", one)+", "+entry("two", two)), "one, two")
	g := startGateway(t, both)
	g.waitReady()
	streams := map[*issuer]*http.Response{}
	for _, i := range []*issuer{one, two} {
		req, _ := http.NewRequest("GET", g.url("/events"), nil)
		req.Header.Set("Authorization", "Bearer "+i.token(jwt.MapClaims{}))
		res, err := http.DefaultClient.Do(req)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v %v", res, err)
		}
		defer res.Body.Close()
		streams[i] = res
	}
	g.write(fmt.Sprintf(config(entry("one", one)), "one"))
	if status, answer := g.call("POST", "/reload", ""); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	eventually(t, 5*time.Second, "one stream is left", func() bool { return open.Load() == 1 })
	if _, err := io.Copy(io.Discard, streams[two].Body); err == nil {
		t.Error("the client does not see that its stream was cut")
	}
	if text := send(t, "GET", g.admin+"/metrics", "").Body; !strings.Contains(text, `durward_streams_cut_total{cause="issuer_removed"} 1`) {
		t.Error("the metrics do not tell")
	}
}

// TestKeyAddressStays: what stands in the query of jwks_url, which may be a key of
// its own, is shown to nobody.
func TestKeyAddressStays(t *testing.T) {
	t.Parallel()
	keys := newUpstream(t) // which has none
	g := startGateway(t, fmt.Sprintf("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nissuers: [{name: corp, issuer: 'https://idp.example.com', audiences: [app], jwks_url: '%s/keys?apikey=SECRETKEY'}]\nroutes: [{name: all, upstream: %q}]\n", keys.URL, keys.URL))
	eventually(t, 10*time.Second, "readyz tells why", func() bool {
		return strings.Contains(send(t, "GET", g.admin+"/readyz", "").Body, "/keys")
	})
	for _, path := range []string{"/readyz", "/status", "/metrics"} {
		if strings.Contains(send(t, "GET", g.admin+path, "").Body, "SECRETKEY") {
			t.Errorf("%s shows it", path)
		}
	}
	if strings.Contains(g.log.String(), "SECRETKEY") {
		t.Error("the log shows it")
	}
}

// TestPlantedFiles: what somebody put beforehand where the state is written is
// neither followed nor given its rights.
func TestPlantedFiles(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	dir := t.TempDir()
	state, victim := filepath.Join(dir, "state"), filepath.Join(dir, "victim")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "admin.token.tmp"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(state, "admin.token.tmp"), 0o666)
	if err := os.Symlink(victim, filepath.Join(state, "denylist.snapshot.tmp")); err != nil {
		t.Fatal(err)
	}
	feed := filepath.Join(dir, "revoked.jsonl")
	if err := os.WriteFile(feed, []byte(`{"jti":"x"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, fmt.Sprintf("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nstate_dir: %q\nissuers: [{name: corp, issuer: %q, audiences: [app]}]\ndenylist: {feeds: [{name: local, file: %q}]}\nroutes: [{name: all, upstream: %q}]\n", state, idp.URL, feed, app.URL))
	g.waitReady()
	g.stop()
	for name, mode := range map[string]os.FileMode{"admin.token": 0o600, "denylist.snapshot": 0o600} {
		if info, err := os.Lstat(filepath.Join(state, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "mine" {
		t.Errorf("the other file is now %q, %v", text, err)
	}
}

// TestConfigurationPipe: a pipe in the place of the configuration holds up neither a
// reload nor the end.
func TestConfigurationPipe(t *testing.T) {
	t.Parallel()
	g := serving(t, guarded(newIssuer(t), "routes: [{name: all, upstream: %q}]\n", newUpstream(t).URL))
	if err := os.Remove(g.config); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(g.config, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, answer := g.call("POST", "/reload", ""); status != 422 || !strings.Contains(answer, "is not a regular file any more") {
		t.Errorf("%d %s", status, answer)
	}
	g.cmd.Process.Signal(os.Interrupt)
	select {
	case <-g.ended:
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
}
