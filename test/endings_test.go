package test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// tunnel answers 101 to everything and echoes what follows; idle keeps the
// connection and reads nothing at all.
func tunnel(t *testing.T, idle bool) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	t.Cleanup(func() { listener.Close(); close(stop) })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if idle {
					<-stop
					return
				}
				from := bufio.NewReader(conn)
				r, err := http.ReadRequest(from)
				if err != nil {
					return
				}
				if r.Header.Get("Upgrade") == "" {
					fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nplain")
					return
				}
				fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n", r.Header.Get("Upgrade"), webSocketAccept)
				io.Copy(conn, from)
				<-stop // the client's end is nothing to it
			}()
		}
	}()
	return listener.Addr().String()
}

// A preflight passes without credential; it must not become a tunnel.
func TestPreflightOpensNoTunnel(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := tunnel(t, false)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: \"http://%s\", preflight: forward}]\n", app))
	const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	const preflight = "OPTIONS /ws HTTP/1.1\r\nHost: app.test\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: GET\r\n"
	if a := exchange(t, "tcp", g.public[0], "OPTIONS", preflight+upgrade+"\r\n"); a.StatusCode != 200 || a.Body != "plain" {
		t.Errorf("preflight with upgrade: %s %q", a.Status, a.Body)
	}
	if a := exchange(t, "tcp", g.public[0], "OPTIONS", preflight+"\r\n"); a.StatusCode != 200 || a.Body != "plain" {
		t.Errorf("preflight: %s %q", a.Status, a.Body)
	}
	bearer := "Authorization: Bearer " + idp.token(nil) + "\r\n"
	if a := exchange(t, "tcp", g.public[0], "POST", "POST /ws HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0\r\n"+bearer+upgrade+"\r\n"); a.StatusCode != 200 {
		t.Errorf("POST with upgrade: %s", a.Status)
	}
	conn, err := net.Dial("tcp", g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: app.test\r\n"+bearer+upgrade+"\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: "GET"})
	if err != nil || res.StatusCode != 101 {
		t.Errorf("the twin, a handshake with a token: %v, %v", res, err)
	}
}

// A WebSocket whose client has gone does not stay because the upstream takes no
// notice.
func TestClientLeavesWebSocket(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := tunnel(t, false)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: \"http://%s\", auth: none}]\n", app))
	conn, err := net.Dial("tcp", g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "101") {
		t.Fatalf("%q, %v", line, err)
	}
	open := func(n int) func() bool {
		return func() bool {
			return strings.Contains(send(t, "GET", g.admin+"/metrics", "").Body, fmt.Sprintf("durward_streams_open %d\n", n))
		}
	}
	eventually(t, 5*time.Second, "the stream is open", open(1))
	conn.Close()
	eventually(t, 15*time.Second, "no stream is open", open(0))
}

// An upstream that accepts and reads nothing is not waited for without end.
func TestUpstreamReadsNothing(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := tunnel(t, true)
	g := serving(t, guarded(idp, "upstreams: {idle: {url: \"http://%s\", timeout: {response_header: 1s}}}\nroutes: [{name: all, upstream: idle, auth: none}]\n", app))
	began := time.Now()
	res, err := client.Post(g.url("/"), "application/octet-stream", io.LimitReader(zeros{}, 64<<20))
	if err == nil {
		res.Body.Close()
		if reason := res.Header.Get("Durward-Reason"); res.StatusCode != 504 || reason != "upstream_timeout" {
			t.Errorf("%s %s", res.Status, reason)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("after %v", took)
	}
	eventually(t, 10*time.Second, "the record is there", func() bool { return strings.Contains(g.log.String(), `"reason":"upstream_timeout"`) })
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// What an upstream may not say in its header it may not say behind its body.
func TestResponseTrailers(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Set-Cookie, X-Checksum")
		io.WriteString(w, "body")
		w.Header().Set("Set-Cookie", "__Host-session=evil; Path=/; Secure")
		w.Header().Set("X-Checksum", "42")
		w.Header().Set(http.TrailerPrefix+"Durward-Reason", "forged")
		w.Header().Set(http.TrailerPrefix+"X-Late", "fine")
	}))
	defer app.Close()
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	a := send(t, "GET", g.url("/"), "")
	if a.Body != "body" || a.Trailer.Get("X-Checksum") != "42" || a.Trailer.Get("X-Late") != "fine" {
		t.Errorf("the twin: %q, trailers %v", a.Body, a.Trailer)
	}
	if a.Trailer["Set-Cookie"] != nil || a.Trailer["Durward-Reason"] != nil {
		t.Errorf("trailers %v", a.Trailer)
	}
}

// The gateway's own paths have one spelling, and no other is ever forwarded.
func TestOwnPaths(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, "credentials: {session_endpoint: /.durward/session}\nroutes: [{name: all, upstream: %q, auth: none, encoded_slash: allow}]\n", app.URL))
	for _, path := range []string{"/.durward", "/.durward/", "/.durward/x", "/.DURWARD/session", "/.durward;x/session", "/.durward%3bx/y", "/.durward%2fsession", "/.durward%2Fx",
		"/.well-known/durward/x", "/.well-known;a/durward/jwks.json", "/.well-known%2fdurward/jwks.json", "/.Well-Known/durward/jwks.json"} {
		if a := exchange(t, "tcp", g.public[0], "GET", "GET "+path+" HTTP/1.1\r\nHost: app.test\r\n\r\n"); a.StatusCode != 404 || a.reason() != "no_route" {
			t.Errorf("%s: %s %s", path, a.Status, a.reason())
		}
	}
	if a := send(t, "GET", g.url("/.well-known/durward/jwks.json"), ""); a.StatusCode != 200 || a.Body != `{"keys":[]}` {
		t.Errorf("the twin: %s %q", a.Status, a.Body)
	}
	if n := len(app.requests()); n != 0 {
		t.Errorf("%d requests were forwarded", n)
	}
	if a := send(t, "GET", g.url("/.well-known/other"), ""); a.StatusCode != 200 {
		t.Errorf("another well-known path: %s", a.Status)
	}
}

// Versions of HTTP/1: what would be taken for the body by one and for another
// request by the next is never answered.
func TestVersions(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	for _, version := range []string{"1.2", "1.9"} {
		if a := exchange(t, "tcp", g.public[0], "GET", "GET / HTTP/"+version+"\r\nHost: app.test\r\n\r\n"); a.StatusCode != 400 {
			t.Errorf("HTTP/%s: %s", version, a.Status)
		}
	}
	conn, err := net.Dial("tcp", g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "POST /x HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n")
	answers, err := io.ReadAll(conn)
	if n := strings.Count(string(answers), "HTTP/1."); err != nil || n != 1 {
		t.Errorf("%d answers, %v: %q", n, err, answers)
	}
	for _, r := range app.requests() {
		if r.URL.Path == "/smuggled" {
			t.Error("a body was answered as a request")
		}
	}
	if a := exchange(t, "tcp", g.public[0], "GET", "GET / HTTP/1.0\r\nHost: app.test\r\n\r\n"); a.StatusCode != 200 {
		t.Errorf("the twin: %s", a.Status)
	}
}

// Shutting down writes a record for every WebSocket that it cuts.
func TestRecordsOfCutStreams(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), endless(t)
	g := serving(t, "shutdown: {grace: 0s, drain: 1s}\n"+guarded(idp, "routes: [{name: all, upstream: %q}]\n", app.URL))
	const sockets = 200
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	header := http.Header{"Authorization": {"Bearer " + idp.token(nil)}}
	for range sockets {
		c, _, err := websocket.Dial(ctx, g.url("/socket"), &websocket.DialOptions{HTTPHeader: header})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
	}
	g.stop()
	if n := strings.Count(g.log.String(), `"cut":"shutdown"`); n != sockets {
		t.Errorf("%d records of %d WebSockets", n, sockets)
	}
}
