package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// echo is an upstream that echoes WebSocket messages and remembers the
// handshakes.
func echo(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.seen = append(u.seen, seen{r, nil})
		u.mu.Unlock()
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}, InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer conn.CloseNow()
		conn.SetReadLimit(8 << 20)
		for {
			kind, message, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			if string(message) == "bye" {
				conn.Close(websocket.StatusGoingAway, "as you wish")
				return
			}
			if conn.Write(r.Context(), kind, message) != nil {
				return
			}
		}
	}))
	t.Cleanup(u.Close)
	return u
}

// TestWebSocket opens WebSockets by cookie and bearer, in the clear and over TLS,
// from its own and from other origins.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	idp, app, ca := newIssuer(t), echo(t), newAuthority(t)
	cert, key := ca.pair(t)
	routes := fmt.Sprintf(`
routes:
  - {name: trusting, path: /trusting, upstream: %[1]q, cross_site: {trusted_origins: ["https://app.example.com"]}}
  - {name: careless, path: /careless, upstream: %[1]q, cross_site: allow}
  - {name: all, upstream: %[1]q}
`, app.URL)
	plain := serving(t, guarded(idp, "%s", routes))
	secure := serving(t, guarded(idp, "tls: {cert_file: %q, key_file: %q}\n", cert, key)+routes)
	client := map[string]*http.Client{"ws": speaking(t, "http/1.1", nil), "wss": speaking(t, "http/1.1", ca)}
	raw := idp.token(nil)

	for _, c := range []struct {
		name, scheme, path, credential, origin string // "own" is the gateway's
		status                                 int    // 101: it works
		reason                                 string
	}{
		{"bearer", "ws", "/", "bearer", "", 101, ""},
		{"bearer, TLS", "wss", "/", "bearer", "", 101, ""},
		{"bearer, own origin", "ws", "/", "bearer", "own", 101, ""},
		{"bearer, foreign origin", "ws", "/", "bearer", "https://evil.example", 101, ""}, // no browser adds it by itself
		{"cookie, no origin", "ws", "/", "cookie", "", 101, ""},                          // no browser
		{"cookie, own origin", "ws", "/", "cookie", "own", 101, ""},
		{"cookie, own origin, TLS", "wss", "/", "cookie", "own", 101, ""},
		{"cookie, foreign origin", "ws", "/", "cookie", "https://evil.example", 403, "cross_site"},
		{"cookie, foreign origin, TLS", "wss", "/", "cookie", "https://evil.example", 403, "cross_site"},
		{"cookie, origin with another port", "ws", "/", "cookie", "http://127.0.0.1:1", 403, "cross_site"},
		{"cookie, opaque origin", "ws", "/", "cookie", "null", 403, "cross_site"},
		{"cookie, trusted origin", "ws", "/trusting", "cookie", "https://app.example.com", 101, ""},
		{"cookie, own origin where another is trusted", "ws", "/trusting", "cookie", "own", 101, ""},
		{"cookie, almost the trusted origin", "ws", "/trusting", "cookie", "http://app.example.com", 403, "cross_site"},
		{"cookie, below the trusted origin", "ws", "/trusting", "cookie", "https://evil.app.example.com", 403, "cross_site"},
		{"cookie, foreign origin, check off", "ws", "/careless", "cookie", "https://evil.example", 101, ""},
		{"no credential", "ws", "/", "", "own", 401, "no_token"},
	} {
		g, web := plain, "http"
		if c.scheme == "wss" {
			g, web = secure, "https"
		}
		header := http.Header{}
		switch c.credential {
		case "bearer":
			header.Set("Authorization", "Bearer "+raw)
		case "cookie":
			header.Set("Cookie", "__Host-session="+raw+"; theme=dark")
		}
		if c.origin == "own" {
			header.Set("Origin", web+"://"+g.public[0])
		} else if c.origin != "" {
			header.Set("Origin", c.origin)
		}
		before := len(app.requests())
		conn, res, err := websocket.Dial(t.Context(), c.scheme+"://"+g.public[0]+c.path+"?room=1", &websocket.DialOptions{HTTPClient: client[c.scheme], HTTPHeader: header, Subprotocols: []string{"chat"}})
		if c.status != 101 {
			if err == nil || res == nil || res.StatusCode != c.status || res.Header.Get("Durward-Reason") != c.reason || len(app.requests()) != before {
				t.Errorf("%s: %v, %v; want %d %s", c.name, res, err, c.status, c.reason)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		conn.SetReadLimit(8 << 20)
		for _, message := range [][]byte{[]byte("hello"), {}, bytes.Repeat([]byte("0123456789abcdef"), 1<<16)} {
			if err := conn.Write(t.Context(), websocket.MessageBinary, message); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if _, back, err := conn.Read(t.Context()); err != nil || !bytes.Equal(back, message) {
				t.Errorf("%s: %d bytes came back of %d, %v", c.name, len(back), len(message), err)
			}
		}
		if err := conn.Write(t.Context(), websocket.MessageText, []byte("bye")); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var closed websocket.CloseError
		if _, _, err := conn.Read(t.Context()); !errors.As(err, &closed) || closed.Code != websocket.StatusGoingAway || closed.Reason != "as you wish" {
			t.Errorf("%s: closed with %v", c.name, err)
		}
		conn.CloseNow()
		got := app.last(t)
		if got.Header.Get("X-Forwarded-User") != "alice" || got.Header["Authorization"] != nil || strings.Contains(got.Header.Get("Cookie"), raw) || conn.Subprotocol() != "chat" || got.RequestURI != c.path+"?room=1" {
			t.Errorf("%s: subprotocol %q, the upstream received %s %v", c.name, conn.Subprotocol(), got.RequestURI, got.Header)
		}
	}
}

// TestWebSocketEnds watches one WebSocket from its beginning to its end, at
// either side.
func TestWebSocketEnds(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), echo(t)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q}]\n", app.URL))
	header := http.Header{"Authorization": {"Bearer " + idp.token(nil)}}
	for path, end := range map[string]func(*websocket.Conn){
		"/client-leaves": func(c *websocket.Conn) { c.CloseNow() },
		"/client-closes": func(c *websocket.Conn) { c.Close(websocket.StatusNormalClosure, "") },
		"/upstream-closes": func(c *websocket.Conn) {
			c.Write(t.Context(), websocket.MessageText, []byte("bye"))
			c.Read(t.Context())
		},
	} {
		conn, _, err := websocket.Dial(t.Context(), g.url(path), &websocket.DialOptions{HTTPHeader: header})
		if err != nil {
			t.Fatal(err)
		}
		if n := metric(t, g, "durward_streams_open"); n != 1 {
			t.Errorf("%s: %v streams are open, want 1", path, n)
		}
		end(conn)
		conn.CloseNow()
		if rec := g.soleRecord(path); rec["status"] != 101.0 || rec["reason"] != "allowed" || rec["subject"] != "alice" {
			t.Errorf("%s: record %v", path, rec)
		}
		if n := metric(t, g, "durward_streams_open"); n != 0 {
			t.Errorf("%s: %v streams are open at the end", path, n)
		}
	}
}

// TestUpgrades covers upgrades to anything but a WebSocket: the request goes on
// without, as an upstream that switched protocols would leave the gateway's sight.
func TestUpgrades(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	for _, upgrade := range []string{"h2c", "websocket, h2c", "TLS/1.2", "foo", "h2c\r\nUpgrade: websocket"} {
		a := exchange(t, "tcp", g.public[0], "GET", "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nUpgrade: "+upgrade+"\r\n\r\n")
		got := app.last(t).Header
		if a.StatusCode != 200 || got["Upgrade"] != nil || got["Http2-Settings"] != nil || got["Connection"] != nil {
			t.Errorf("%q: %s, the upstream received %v", upgrade, a.Status, got)
		}
	}
}

// TestEvents receives each server-sent event before the next is sent.
func TestEvents(t *testing.T) {
	t.Parallel()
	idp, ca := newIssuer(t), newAuthority(t)
	next := make(chan bool)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.URL.Query().Get("type"))
		for i := 0; ; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			select {
			case more := <-next:
				if !more {
					return
				}
			case <-r.Context().Done():
				return
			}
		}
	}))
	t.Cleanup(app.Close)
	cert, key := ca.pair(t)
	g := serving(t, guarded(idp, "tls: {cert_file: %q, key_file: %q}\nroutes: [{name: all, upstream: %q}]\n", cert, key, app.URL))
	raw := idp.token(nil)
	for _, version := range []string{"http/1.1", "h2"} {
		for _, kind := range []string{"text/event-stream", "text/event-stream; charset=utf-8", "application/octet-stream"} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+g.public[0]+"/events?type="+strings.ReplaceAll(kind, " ", "+"), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.URL.RawQuery = strings.ReplaceAll(req.URL.RawQuery, ";", "%3B")
			req.Header.Set("Authorization", "Bearer "+raw)
			res, err := speaking(t, version, ca).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != 200 || res.Header.Get("Content-Type") != kind {
				t.Fatalf("%s %s: %s, %s", version, kind, res.Status, res.Header.Get("Content-Type"))
			}
			events := bufio.NewReader(res.Body)
			for i := range 20 {
				line, err := events.ReadString('\n')
				if err != nil || line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("%s %s: event %d is %q, %v", version, kind, i, line, err)
				}
				events.ReadString('\n')
				next <- i < 19
			}
			if rest, err := io.ReadAll(events); err != nil || len(rest) != 0 {
				t.Errorf("%s %s: at the end %q, %v", version, kind, rest, err)
			}
			res.Body.Close()
		}
	}
}

// memory reads a line such as VmHWM of the process's status, in bytes.
func (g *gateway) memory(line string) int64 {
	g.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		lack(g.t, "memory is read from /proc, which is not here: "+err.Error())
	}
	for l := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				g.t.Fatal(err)
			}
			return n << 10
		}
	}
	g.t.Fatalf("no %s in %s", line, text)
	return 0
}

// zeroes is a reader that counts down.
type zeroes struct{ left int64 }

func (z *zeroes) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	z.left -= n
	return int(n), nil
}

// TestGigabyte sends a gigabyte up and one down. The gateway must not hold them.
func TestGigabyte(t *testing.T) {
	if testing.Short() {
		t.Skip("moves two gigabytes; run without -short")
	}
	t.Parallel()
	const size, growth = 1 << 30, 32 << 20
	idp := newIssuer(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			n, err := io.CopyBuffer(io.Discard, onlyReader{r.Body}, make([]byte, 256<<10))
			fmt.Fprintf(w, "%d %v", n, err)
			return
		}
		io.CopyBuffer(onlyWriter{w}, &zeroes{size}, make([]byte, 256<<10))
	}))
	t.Cleanup(app.Close)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q}]\n", app.URL))
	bearer := "Authorization: Bearer " + idp.token(nil)
	send(t, "POST", g.url("/"), strings.Repeat("x", 1<<20), bearer) // what every process needs at first

	before := g.memory("VmHWM")
	flat := func(what string) {
		t.Helper()
		if after := g.memory("VmHWM"); after-before > growth {
			t.Errorf("%s took the gateway's memory from %d to %d MiB", what, before>>20, after>>20)
		}
	}
	for _, length := range []int64{size, -1} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", g.url("/"), &zeroes{size / 2})
		if length > 0 {
			req, err = http.NewRequestWithContext(t.Context(), "POST", g.url("/"), &zeroes{size})
		}
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length // -1: chunked
		req.Header.Set("Authorization", strings.TrimPrefix(bearer, "Authorization: "))
		res, err := speaking(t, "http/1.1", nil).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		want := fmt.Sprint(length, " <nil>")
		if length < 0 {
			want = fmt.Sprint(size/2, " <nil>")
		}
		if err != nil || string(text) != want {
			t.Errorf("upload: %s %q %v, want %q", res.Status, text, err, want)
		}
		flat("a gigabyte up")
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", g.url("/down"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", strings.TrimPrefix(bearer, "Authorization: "))
	res, err := speaking(t, "http/1.1", nil).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.CopyBuffer(io.Discard, onlyReader{res.Body}, make([]byte, 256<<10))
	res.Body.Close()
	if n != size || err != nil {
		t.Errorf("download: %d bytes, %v", n, err)
	}
	flat("a gigabyte down")
	if rec := g.soleRecord("/down"); rec["bytes"] != float64(size) {
		t.Errorf("record %v", rec)
	}
}

// onlyReader and onlyWriter hide the shortcuts around a copy's buffer.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// TestClientProtocols speaks every version of HTTP to the gateway.
func TestClientProtocols(t *testing.T) {
	t.Parallel()
	idp, app, ca := newIssuer(t), newUpstream(t), newAuthority(t)
	cert, key := ca.pair(t)
	routes := fmt.Sprintf("routes: [{name: all, upstream: %q}]\n", app.URL)
	plain := serving(t, guarded(idp, "%s", routes))
	secure := serving(t, guarded(idp, "tls: {cert_file: %q, key_file: %q}\n", cert, key)+routes)
	raw := idp.token(nil)
	for _, c := range []struct {
		url, version string
		ca           *authority
		major        int
		alpn         string
	}{
		{"http://" + plain.public[0], "http/1.1", nil, 1, ""},
		{"http://" + plain.public[0], "h2", nil, 2, ""},
		{"https://" + secure.public[0], "http/1.1", ca, 1, ""},
		{"https://" + secure.public[0], "h2", ca, 2, "h2"},
	} {
		client := speaking(t, c.version, c.ca)
		for i := range 3 {
			req, err := http.NewRequestWithContext(t.Context(), "POST", c.url+"/x?y", strings.NewReader("a body"))
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				req.Header.Set("Authorization", "Bearer "+raw)
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(res.Body)
			res.Body.Close()
			want, wantBody := 200, "hello from the upstream"
			if i == 0 {
				want, wantBody = 401, string(text)
			}
			if err != nil || res.StatusCode != want || string(text) != wantBody || res.ProtoMajor != c.major || c.ca != nil && res.TLS.NegotiatedProtocol != c.alpn {
				t.Errorf("%s %s: %s %s, %q %v", c.url, c.version, res.Proto, res.Status, text, err)
			}
		}
		if got := app.last(t); string(got.Body) != "a body" || got.RequestURI != "/x?y" || got.Header.Get("X-Forwarded-Proto") != c.url[:strings.Index(c.url, ":")] {
			t.Errorf("%s %s: the upstream received %s %q %v", c.url, c.version, got.RequestURI, got.Body, got.Header)
		}
	}
	if a := exchange(t, "tcp", plain.public[0], "GET", "GET / HTTP/1.0\r\nHost: app.test\r\nAuthorization: Bearer "+raw+"\r\n\r\n"); a.StatusCode != 200 {
		t.Errorf("HTTP/1.0: %s", a.Status)
	}
	// What is not TLS gets an answer that it can read, and nothing through.
	before := len(app.requests())
	if a := exchange(t, "tcp", secure.public[0], "GET", "GET / HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer "+raw+"\r\n\r\n"); a.StatusCode != 400 || len(app.requests()) != before {
		t.Errorf("plain HTTP to the TLS listener: %s", a.Status)
	}
	old := &tls.Config{RootCAs: ca.pool(), MaxVersion: tls.VersionTLS11}
	if conn, err := tls.Dial("tcp", secure.public[0], old); err == nil {
		conn.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

// TestEarlyResponse has an upstream answer before it has read a large upload. The
// client must get that answer, over either version.
func TestEarlyResponse(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/reads" {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n)
			return
		}
		w.Header().Set("X-Early", "yes")
		w.WriteHeader(http.StatusConflict)
		io.WriteString(w, "no need to send that")
	}))
	t.Cleanup(app.Close)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	const size = 64 << 20
	for _, version := range []string{"http/1.1", "h2"} {
		client := speaking(t, version, nil)
		for _, length := range []int64{size, -1} {
			for i := range 10 {
				path, want, wantBody := "/early", 409, "no need to send that"
				if i == 0 {
					path, want, wantBody = "/reads", 200, fmt.Sprint(size)
				}
				req, err := http.NewRequestWithContext(t.Context(), "POST", g.url(path), &zeroes{size})
				if err != nil {
					t.Fatal(err)
				}
				req.ContentLength = length
				a, err := upload(client, req, version == "http/1.1")
				if err != nil || a.StatusCode != want || a.Body != wantBody {
					t.Errorf("%s, length %d, %s: %v %q %v", version, length, path, a.Response, a.Body, err)
				}
			}
		}
	}
}

// upload sends the request. Over HTTP/1.1 it does not use net/http's client, which
// may report that it could not send everything instead of the answer that came.
func upload(client *http.Client, req *http.Request, literal bool) (answer, error) {
	var res *http.Response
	var err error
	if literal {
		conn, dialErr := net.Dial("tcp", req.URL.Host)
		if dialErr != nil {
			return answer{}, dialErr
		}
		defer conn.Close()
		go req.Write(conn)
		res, err = http.ReadResponse(bufio.NewReader(conn), req)
	} else {
		res, err = client.Do(req)
	}
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answer{res, string(text)}, err
}

// TestUpstreamDiesDuringUpload has an upstream go away while the client pauses in
// the middle of its body. The client hears of it when it goes on, or at the latest
// when it has paused for too long.
func TestUpstreamDiesDuringUpload(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	address := literalUpstream(t, map[string]string{"/dies": "", "/answers": "HTTP/1.1 409 Conflict\r\nContent-Length: 5\r\n\r\nearly"})
	g := serving(t, guarded(idp, "limits: {idle_timeout: 1s}\nroutes: [{name: all, upstream: \"http://%s\", auth: none}]\n", address))
	for _, path := range []string{"/answers", "/dies"} {
		for i, framing := range []string{"Content-Length: 1000000\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"} {
			conn, err := net.Dial("tcp", g.public[0])
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			path := fmt.Sprintf("%s?%d", path, i)
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: app.test\r\n%s", path, framing)
			text, err := io.ReadAll(conn)
			if want := map[bool]string{true: "HTTP/1.1 409 ", false: "HTTP/1.1 502 "}[strings.HasPrefix(path, "/answers")]; err != nil || !strings.HasPrefix(string(text), want) && (len(text) > 0 || strings.HasPrefix(path, "/answers")) {
				t.Errorf("%s: %.60q %v", path, text, err)
			}
			conn.Close()
		}
	}
	eventually(t, 5*time.Second, "no request is in progress", func() bool { return metric(t, g, "durward_inflight_requests") == 0 })
}

// TestMessages covers the responses and requests that are not simply a header and
// a body.
func TestMessages(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/head":
			w.Header().Set("Content-Length", "12345")
			w.Header().Set("X-Method", r.Method)
			if r.Method == "GET" {
				w.Write(make([]byte, 12345))
			}
		case "/204":
			w.Header().Set("X-Left", "12")
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"abc"`)
			w.WriteHeader(304)
		case "/hints":
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.Header().Set("X-Secret", "not yet")
			w.WriteHeader(103)
			w.Header().Set("Link", "</script.js>; rel=preload")
			w.WriteHeader(103)
			w.Header().Del("Link")
			w.Header().Set("X-Final", "yes")
			io.WriteString(w, "final")
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			w.Write(make([]byte, 1000))
			http.NewResponseController(w).Flush()
			w.Write(make([]byte, 1000))
			w.Header().Set("X-Sum", "2000")
			w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
		case "/chunked":
			body, err := io.ReadAll(r.Body)
			for b := range bytes.SplitSeq(body, []byte(",")) {
				w.Write(b)
				http.NewResponseController(w).Flush()
			}
			fmt.Fprintf(w, "|%v %d %v %v", r.TransferEncoding, r.ContentLength, err, r.Trailer)
		case "/empty":
			fmt.Fprintf(w, "%v %d %q", r.TransferEncoding, r.ContentLength, r.Header["Content-Length"])
		case "/range":
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader("0123456789"))
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, r.Header["Accept-Encoding"])
		case "/refresh":
			w.Header().Set("Location", "/elsewhere?x=%2F")
			w.WriteHeader(302)
		case "/teapot":
			w.Header()["Server"], w.Header()["Via"] = []string{"legacy/1.0"}, []string{"1.1 inner"}
			w.Header().Add("X-Two", "a")
			w.Header().Add("X-Two", "b")
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("X-Hop", "1")
			w.Header().Set("Durward-Reason", "forged")
			w.WriteHeader(418)
		}
	}))
	t.Cleanup(app.Close)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	for _, version := range []string{"http/1.1", "h2"} {
		client := speaking(t, version, nil)
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		do := func(ctx context.Context, method, path string, body io.Reader, headers ...string) (answer, bool) {
			t.Helper()
			req, err := http.NewRequestWithContext(ctx, method, g.url(path), body)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range headers {
				name, value, _ := strings.Cut(h, ": ")
				req.Header.Set(name, value)
			}
			res, err := client.Do(req)
			if err != nil {
				t.Errorf("%s %s: %v", version, path, err)
				return answer{}, false
			}
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			if err != nil {
				t.Errorf("%s %s: %v", version, path, err)
			}
			return answer{res, string(text)}, true
		}
		want := func(what string, ok bool, a answer) {
			t.Helper()
			if !ok {
				t.Errorf("%s %s: %s %v %q, trailers %v", version, what, a.Status, a.Header, a.Body, a.Trailer)
			}
		}
		if a, ok := do(t.Context(), "HEAD", "/head", nil); ok {
			want("HEAD", a.StatusCode == 200 && a.ContentLength == 12345 && a.Body == "" && a.Header.Get("X-Method") == "HEAD", a)
		}
		if a, ok := do(t.Context(), "GET", "/head", nil); ok {
			want("GET", a.StatusCode == 200 && a.ContentLength == 12345 && len(a.Body) == 12345, a)
		}
		if a, ok := do(t.Context(), "GET", "/204", nil); ok {
			want("204", a.StatusCode == 204 && a.Body == "" && a.Header.Get("X-Left") == "12" && a.Header["Content-Length"] == nil, a)
		}
		if a, ok := do(t.Context(), "GET", "/304", nil, `If-None-Match: "abc"`); ok {
			want("304", a.StatusCode == 304 && a.Body == "" && a.Header.Get("Etag") == `"abc"`, a)
		}
		if a, ok := do(t.Context(), "GET", "/range", nil, "Range: bytes=2-4"); ok {
			want("206", a.StatusCode == 206 && a.Body == "234" && a.Header.Get("Content-Range") == "bytes 2-4/10", a)
		}
		if a, ok := do(t.Context(), "GET", "/gzip", nil, "Accept-Encoding: br"); ok {
			want("encodings", a.Header.Get("Content-Encoding") == "gzip" && a.Body == "[br]", a)
		}
		if a, ok := do(t.Context(), "GET", "/refresh", nil); ok {
			want("redirect", a.StatusCode == 302 && a.Header.Get("Location") == "/elsewhere?x=%2F", a)
		}
		if a, ok := do(t.Context(), "GET", "/teapot", nil); ok {
			want("headers", a.StatusCode == 418 && a.Header.Get("Server") == "legacy/1.0" && fmt.Sprint(a.Header["X-Two"]) == "[a b]" && a.Header["X-Hop"] == nil && a.reason() == "", a)
		}
		var mu sync.Mutex
		var hints []string
		traced := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			hints = append(hints, fmt.Sprint(code, " ", h))
			return nil
		}})
		if a, ok := do(traced, "GET", "/hints", nil); ok {
			want("hints", a.StatusCode == 200 && a.Body == "final" && a.Header.Get("X-Final") == "yes" && a.Header["Link"] == nil, a)
			mu.Lock()
			expected := "[103 map[Link:[</style.css>; rel=preload]] 103 map[Link:[</script.js>; rel=preload]]]"
			if version == "h2" {
				expected = "[]" // the server's HTTP/2 cannot send them safely; see writer.WriteHeader
			}
			if fmt.Sprint(hints) != expected {
				t.Errorf("%s hints: %v", version, hints)
			}
			mu.Unlock()
		}
		if a, ok := do(t.Context(), "GET", "/trailers", nil); ok {
			want("trailers", len(a.Body) == 2000 && a.Trailer.Get("X-Sum") == "2000" && a.Trailer.Get("X-Unannounced") == "too" && a.Header["X-Sum"] == nil, a)
		}
		if a, ok := do(t.Context(), "POST", "/chunked", onlyReader{strings.NewReader("a,b,c")}); ok {
			want("chunked both ways", a.Body == "abc|[chunked] -1 <nil> map[]" && a.ContentLength == -1, a)
		}
		if a, ok := do(t.Context(), "POST", "/chunked", strings.NewReader("a,b,c")); ok {
			want("with a length", a.Body == "abc|[] 5 <nil> map[]", a)
		}
		if a, ok := do(t.Context(), "GET", "/empty", nil); ok {
			want("GET without a body", a.Body == "[] 0 []", a)
		}
		if a, ok := do(t.Context(), "POST", "/empty", http.NoBody); ok {
			want("POST without a body", a.Body == `[] 0 ["0"]`, a)
		}
	}
}

// TestExpectContinue covers clients that ask before they send a large body: the
// answer is the upstream's, or the refusal.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/unwanted" {
			w.WriteHeader(http.StatusConflict)
			return
		}
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v %q", body, err, r.Header["Expect"])
	}))
	t.Cleanup(app.Close)
	g := serving(t, guarded(idp, "routes: [{name: open, path: /open/, upstream: %[1]q, auth: none}, {name: unwanted, path: /unwanted, upstream: %[1]q, auth: none}, {name: all, upstream: %[1]q}]\n", app.URL))
	for _, c := range []struct {
		path      string
		goesAhead bool
		status    int
	}{
		{"/open/", true, 200},
		{"/unwanted", false, 409},
		{"/secret", false, 401},
	} {
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 6\r\n\r\n", c.path)
		from := bufio.NewReader(conn)
		if c.goesAhead {
			line, err := from.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
				t.Errorf("%s: %q, %v; want 100", c.path, line, err)
				conn.Close()
				continue
			}
			from.ReadString('\n')
			io.WriteString(conn, "a body")
		}
		a := readAnswer(t, from, "POST") // without the body having been sent, where it does not go ahead
		if a.StatusCode != c.status || c.goesAhead && !strings.HasPrefix(a.Body, "a body <nil>") {
			t.Errorf("%s: %s %q, want %d", c.path, a.Status, a.Body, c.status)
		}
		conn.Close()
	}
}

// TestMaxBody covers a route's limit on request bodies, announced or not.
func TestMaxBody(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none, max_body: 1KiB}]\n", app.URL))
	for _, version := range []string{"http/1.1", "h2"} {
		for _, chunked := range []bool{false, true} {
			for size, want := range map[int64]int{1024: 200, 1025: 413, 4 << 20: 413} {
				req, err := http.NewRequestWithContext(t.Context(), "POST", g.url("/"), &zeroes{size})
				if err != nil {
					t.Fatal(err)
				}
				req.ContentLength = size
				if chunked {
					req.ContentLength = -1
				}
				res, err := speaking(t, version, nil).Do(req)
				if err != nil {
					t.Errorf("%s, %d bytes, chunked %v: %v", version, size, chunked, err)
					continue
				}
				res.Body.Close()
				if res.StatusCode != want || want == 413 && res.Header.Get("Durward-Reason") != "too_large" {
					t.Errorf("%s, %d bytes, chunked %v: %s, want %d", version, size, chunked, res.Status, want)
				}
			}
		}
	}
	for _, got := range app.requests() {
		if len(got.Body) > 1024 {
			t.Errorf("the upstream received %d bytes", len(got.Body))
		}
	}
}

// TestRefusedBeforeItsBody covers clients that announce a body and never send it:
// they get their refusal, and hold nothing for longer than the limit says.
func TestRefusedBeforeItsBody(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, "limits: {idle_timeout: 1s}\nroutes: [{name: all, upstream: %q}]\n", app.URL))
	for _, framing := range []string{"Content-Length: 1000\r\n\r\n", "Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"} {
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: app.test\r\n%s", framing)
		from := bufio.NewReader(conn)
		if a := readAnswer(t, from, "POST"); a.StatusCode != 401 || a.reason() != "no_token" || !a.Close {
			t.Errorf("%q: %s %s, close %v", framing, a.Status, a.reason(), a.Close)
		}
		if rest, err := io.ReadAll(from); err != nil || len(rest) > 0 {
			t.Errorf("%q: the connection stays: %q, %v", framing, rest, err)
		}
		conn.Close()
	}
	// The twin: with its body the refusal comes at once, and the connection stays.
	conn, err := net.Dial("tcp", g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	from := bufio.NewReader(conn)
	for range 3 {
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nsome")
		if a := readAnswer(t, from, "POST"); a.StatusCode != 401 || a.Close {
			t.Errorf("with its body: %s, close %v", a.Status, a.Close)
		}
	}
}

// TestBodyIsNoRequest has the answer come before the whole body: by an upstream in
// a hurry, or because the token was revoked. What follows on the connection is
// still that body, never another request, or a proxy in front of the gateway that
// shares its connections would hand somebody else the answer to it.
func TestBodyIsNoRequest(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	begun, smuggled := make(chan bool, 16), make(chan string, 1000)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/reads":
			io.ReadFull(r.Body, make([]byte, 4))
			begun <- true
			io.Copy(io.Discard, r.Body)
		default:
			smuggled <- r.URL.Path
		}
	}))
	t.Cleanup(app.Close)
	hasty := literalUpstream(t, map[string]string{"/early": "HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n"})
	g := serving(t, guarded(idp, "limits: {idle_timeout: 1s}\nroutes: [{name: smuggled, path: /smuggled, upstream: %[1]q, auth: none}, {name: early, path: /early, upstream: \"http://%[2]s\"}, {name: all, upstream: %[1]q}]\n", app.URL, hasty))
	for _, framing := range []string{"Content-Length: 200000\r\n\r\nsome", "Content-Length: 1000000\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"} {
		for path, want := range map[string]string{"/early": "409 ", "/reads": "401 revoked"} {
			jti := fmt.Sprintf("body-%d", jtis.Add(1))
			conn, err := net.Dial("tcp", g.public[0])
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer %s\r\n%s", path, idp.token(map[string]any{"jti": jti}), framing)
			if path == "/reads" {
				<-begun
				if status, text := g.call("POST", "/revocations", fmt.Sprintf(`{"jti":%q}`, jti)); status != 200 {
					t.Fatal(status, text)
				}
			}
			from := bufio.NewReader(conn)
			a := readAnswer(t, from, "POST")
			if got := fmt.Sprint(a.StatusCode, " ", a.reason()); got != want {
				t.Errorf("%s, %q: %s, want %s", path, framing[:22], got, want)
			}
			ended := make(chan []byte, 1)
			go func() {
				rest, _ := io.ReadAll(from)
				ended <- rest
			}()
			eventually(t, 10*time.Second, "the gateway closes the connection", func() bool {
				io.WriteString(conn, "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
				select {
				case rest := <-ended:
					if len(rest) > 0 {
						t.Errorf("%s, %q: the body was answered: %.100q", path, framing[:22], rest)
					}
					return true
				default:
					return false
				}
			})
			conn.Close()
		}
	}
	select {
	case path := <-smuggled:
		t.Errorf("the upstream received %s", path)
	default:
	}
	// The twin: a body that was read to its end leaves a connection of use.
	conn, err := net.Dial("tcp", g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	from := bufio.NewReader(conn)
	raw := idp.token(nil)
	for range 3 {
		fmt.Fprintf(conn, "POST /reads HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer %s\r\nContent-Length: 4\r\n\r\nsome", raw)
		if a := readAnswer(t, from, "POST"); a.StatusCode != 200 || a.Close {
			t.Errorf("whole body: %s, close %v", a.Status, a.Close)
		}
	}
}

// TestManyWebSockets holds five thousand of them, each of which has echoed something,
// and ends them all by one revocation.
func TestManyWebSockets(t *testing.T) {
	if testing.Short() {
		t.Skip("opens 5,000 connections; run without -short")
	}
	const many, each = 5_000, 64 << 10
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < 2*many+500 {
		lack(t, fmt.Sprintf("a process may have %d files open here; this needs %d (ulimit -Hn)", limit.Max, 2*many+500))
	}
	app := accepting(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
		io.Copy(onlyWriter{conn}, onlyReader{in}) // without pipes, of which each has two files
	})
	idp := newIssuer(t)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q}]\n", "http://"+app))
	token := idp.token(nil)
	frame := append([]byte{0x81, 0x80 | 5, 0, 0, 0, 0}, "hello"...)
	before := g.memory("VmRSS")
	var sockets [many]net.Conn
	defer func() {
		for _, conn := range sockets {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	inParallel(20, func(n int) {
		for i := n; i < many; i += 20 {
			conn, err := net.Dial("tcp", g.public[0])
			if err != nil {
				t.Error(err)
				return
			}
			sockets[i] = conn
			conn.SetDeadline(time.Now().Add(2 * time.Minute))
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", token)
			in := bufio.NewReader(conn)
			res, err := http.ReadResponse(in, nil)
			if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
				t.Errorf("socket %d: %v %v", i, res, err)
				return
			}
			conn.Write(frame)
			back := make([]byte, len(frame))
			if _, err := io.ReadFull(in, back); err != nil || !bytes.Equal(back, frame) {
				t.Errorf("socket %d: %q came back, %v", i, back, err)
				return
			}
		}
	})
	if t.Failed() {
		return
	}
	took := g.memory("VmRSS") - before
	t.Logf("%d WebSockets take %d KiB each", many, took/many>>10)
	if took > many*each {
		t.Errorf("%d WebSockets took %d MiB", many, took>>20)
	}
	began := time.Now()
	g.revoke(`{"sub":"alice","before":%d}`, time.Now().Unix())
	var last atomic.Int64
	inParallel(20, func(n int) {
		for i := n; i < many; i += 20 {
			end, err := io.ReadAll(sockets[i])
			if want := "\x88\x09\x03\xf0revoked"; err != nil || string(end) != want {
				t.Errorf("socket %d ended with %q, %v; want %q", i, end, err, want)
				return
			}
			sockets[i].Close()
			last.Store(max(last.Load(), int64(time.Since(began))))
		}
	})
	t.Logf("all were ended %v after one revocation", time.Duration(last.Load()).Round(time.Millisecond))
}
