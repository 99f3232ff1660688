package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A scripted upstream answers the requests of each of its connections with raw
// bytes, and closes the connection when nothing is left to say.
type scripted struct {
	address     string
	connections atomic.Int32
	requests    atomic.Int32
	closed      chan struct{} // one for each connection that the gateway closed
}

// hangUp, as an answer, closes the connection; hold says nothing until the gateway closes it.
const hangUp, hold = "\x00hang up", "\x00hold"

func script(t testing.TB, connections ...[]string) *scripted {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{address: l.Addr().String(), closed: make(chan struct{}, 100)}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { l.Close() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n := int(s.connections.Add(1)) - 1
			all.Go(func() {
				defer conn.Close()
				if n < len(connections) {
					s.serve(conn, connections[n])
				}
			})
		}
	})
	return s
}

func (s *scripted) serve(conn net.Conn, answers []string) {
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(conn)
	for _, answer := range answers {
		if _, err := http.ReadRequest(r); err != nil {
			s.closed <- struct{}{}
			return
		}
		s.requests.Add(1)
		switch answer {
		case hangUp:
			return
		case hold:
			io.Copy(io.Discard, r)
			s.closed <- struct{}{}
			return
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			s.closed <- struct{}{}
			return
		}
	}
}

// waitClosed waits until the gateway has closed a connection.
func (s *scripted) waitClosed(t testing.TB, what string) {
	t.Helper()
	select {
	case <-s.closed:
	case <-time.After(10 * time.Second):
		t.Errorf("%s: the connection was not closed", what)
	}
}

// transports are the direct one and the standard one that it must not fall behind.
func transports(t testing.TB, address string, patience time.Duration) map[string]http.RoundTripper {
	t.Helper()
	all := map[string]http.RoundTripper{}
	for _, name := range []string{"direct", "standard"} {
		u, err := NewUpstream("app", UpstreamConfig{URL: "http://" + address, Timeout: UpstreamTimeouts{ResponseHeader: patience}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(u.Close)
		if all[name] = u.transport; name == "standard" {
			all[name] = u.transport.(*direct).standard
		}
	}
	return all
}

// get asks, and says what came as "status body trailer", or "error" with what came before it.
func get(ctx context.Context, rt http.RoundTripper, method, url string) string {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err.Error()
	}
	res, err := rt.RoundTrip(req)
	if err != nil {
		return "error"
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	said := fmt.Sprint(res.StatusCode, " ", string(body))
	for name := range res.Trailer {
		said += " " + name + "=" + res.Trailer.Get(name)
	}
	if err != nil {
		said += " error"
	}
	return said
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// TestHostileUpstreams asks upstreams that misbehave, through the direct transport
// and the standard one: what comes of it is the same, and no answer is ever given
// to another request than its own.
func TestHostileUpstreams(t *testing.T) {
	evil := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	good := []string{ok, ok, ok}
	for _, c := range []struct {
		name        string
		method      string     // GET if empty
		script      [][]string // by connection
		want        []string   // of each request, in order
		connections int32
		onlyDirect  bool // that it is stricter is the point
	}{
		{"kept alive", "", [][]string{good}, []string{"200 ok", "200 ok", "200 ok"}, 1, false},
		{"HEAD", "HEAD", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", ok[:len(ok)-2]}}, []string{"200 ", "200 ", "200 "}, 1, false},
		{"OPTIONS", "OPTIONS", [][]string{good}, []string{"200 ok", "200 ok"}, 1, false},
		{"chunked, with a trailer", "", [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", ok}}, []string{"200 ok X-Sum=1", "200 ok"}, 1, false},
		{"to the end of the connection", "", [][]string{{"HTTP/1.1 200 OK\r\n\r\nok"}, good}, []string{"200 ok", "200 ok"}, 2, false},
		{"HTTP/1.0", "", [][]string{{"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", evil}, good}, []string{"200 ok", "200 ok"}, 2, false},
		{"HTTP/1.0 kept alive", "", [][]string{{"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", ok}}, []string{"200 ok", "200 ok"}, 1, false},
		{"Connection: close", "", [][]string{{"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", evil}, good}, []string{"200 ok", "200 ok"}, 2, false},
		{"204", "", [][]string{{"HTTP/1.1 204 No Content\r\n\r\n", ok}}, []string{"204 ", "200 ok"}, 1, false},
		{"304", "", [][]string{{"HTTP/1.1 304 Not Modified\r\n\r\n", ok}}, []string{"304 ", "200 ok"}, 1, false},
		{"informational first", "", [][]string{{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, ok}}, []string{"200 ok", "200 ok"}, 1, false},
		{"informational without end", "", [][]string{{strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 20_000) + ok}}, []string{"error"}, 1, false},
		{"closed after the answer", "", [][]string{{ok}, good}, []string{"200 ok", "200 ok"}, 2, false},
		{"closed at the next request", "", [][]string{{ok, hangUp}, good}, []string{"200 ok", "200 ok"}, 2, false},
		{"never answers, closes", "", [][]string{{hangUp}, good}, []string{"error", "200 ok"}, 2, false},
		{"closes in the middle of a header", "", [][]string{{ok, "HTTP/1.1 200 OK\r\nConte"}, good}, []string{"200 ok", "error", "200 ok"}, 2, false},
		{"closes in the middle of a body", "", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"}, good}, []string{"200 ok error", "200 ok"}, 2, false},
		{"closes in the middle of a chunk", "", [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok"}, good}, []string{"200 ok error", "200 ok"}, 2, false},
		{"closes before the last chunk", "", [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"}, good}, []string{"200 ok error", "200 ok"}, 2, false},
		{"silent", "", [][]string{{hold}, good}, []string{"error", "200 ok"}, 2, false},
		{"silent on a used connection", "", [][]string{{ok, hold}, good}, []string{"200 ok", "error", "200 ok"}, 2, false},
		{"no HTTP", "", [][]string{{"SSH-2.0-OpenSSH_9.2\r\n"}, good}, []string{"error", "200 ok"}, 2, false},
		{"a status that is none", "", [][]string{{"HTTP/1.1 20 OK\r\n\r\n"}, {"HTTP/1.1 2000 OK\r\n\r\n"}, {"HTTP/1.1 -20 OK\r\n\r\n"}}, []string{"error", "error", "error"}, 3, false},
		{"a header without colon", "", [][]string{{"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"}, good}, []string{"error", "200 ok"}, 2, false},
		{"a blank before the colon", "", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"}, good}, []string{"200 ok", "200 ok"}, 2, false}, // to the end of the connection
		{"lengths that differ", "", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\nok"}, good}, []string{"error", "200 ok"}, 2, false},
		{"lengths that are none", "", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"}, {"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"}, {"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok"}}, []string{"error", "error", "error"}, 3, false},
		{"length and chunks", "", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ok}, good}, []string{"200 ok", "200 ok"}, 1, false},
		{"an encoding that is not known", "", [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"}, good}, []string{"error", "200 ok"}, 2, false},
		{"a chunk's size that is none", "", [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n"}, good}, []string{"200  error", "200 ok"}, 2, false},
		{"a header too large", "", [][]string{{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 70<<10) + "\r\nContent-Length: 2\r\n\r\nok"}, good}, []string{"error", "200 ok"}, 2, false},
		{"a large header", "", [][]string{{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 60<<10) + "\r\nContent-Length: 2\r\n\r\nok", ok}}, []string{"200 ok", "200 ok"}, 1, false},
		{"two answers to one request", "", [][]string{{ok + evil, evil}, good}, []string{"200 ok", "200 ok"}, 2, true},
		{"an answer behind 204", "", [][]string{{"HTTP/1.1 204 No Content\r\n\r\n" + evil, evil}, good}, []string{"204 ", "200 ok"}, 2, true},
		{"a body behind HEAD", "HEAD", [][]string{{ok + evil, evil}, good}, []string{"200 ", "200 "}, 2, true},
		{"an answer behind chunks", "", [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + evil, evil}, good}, []string{"200 ok", "200 ok"}, 2, true},
		{"a status below 100", "", [][]string{{"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n"}, {"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"}, good}, []string{"error", "error", "200 ok"}, 3, true},
		{"switches protocols unasked", "", [][]string{{"HTTP/1.1 101 Switching Protocols\r\n\r\n"}, good}, []string{"error", "200 ok"}, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, name := range []string{"direct", "standard"} {
				if c.onlyDirect && name == "standard" {
					continue
				}
				up := script(t, c.script...)
				rt := transports(t, up.address, 300*time.Millisecond)[name]
				for i, want := range c.want {
					method := c.method
					if method == "" {
						method = "GET"
					}
					if got := get(t.Context(), rt, method, fmt.Sprintf("http://%s/%d", up.address, i)); got != want {
						t.Errorf("%s, request %d: %q, want %q", name, i, got, want)
					}
				}
				if n := up.connections.Load(); n != c.connections {
					t.Errorf("%s: %d connections, want %d", name, n, c.connections)
				}
			}
		})
	}
}

// TestUnsolicitedAnswer: what an upstream says on a connection that is not in use is
// no answer to whoever uses it next.
func TestUnsolicitedAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	said := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(conn)
			go func() {
				defer conn.Close()
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					io.WriteString(conn, ok)
					if first && req.URL.Path == "/first" {
						<-said // the answer was read, and the connection is idle
						io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
						said <- struct{}{}
					}
				}
			}()
		}
	}()
	rt := transports(t, l.Addr().String(), time.Second)["direct"]
	if got := get(t.Context(), rt, "GET", "http://"+l.Addr().String()+"/first"); got != "200 ok" {
		t.Fatal(got)
	}
	d := rt.(*direct)
	if len(d.idle) != 1 {
		t.Fatalf("%d connections are idle, want 1", len(d.idle))
	}
	said <- struct{}{}
	<-said
	if got := get(t.Context(), rt, "GET", "http://"+l.Addr().String()+"/second"); got != "200 ok" {
		t.Errorf("the second request got %q", got)
	}
}

// TestEndedByClient: a request that ends before its answer does ends the connection
// too, at once, whatever the upstream is doing.
func TestEndedByClient(t *testing.T) {
	for _, c := range []struct{ name, answer string }{
		{"before the answer", hold},
		{"in the header", "HTTP/1.1 200 OK\r\nConte"},
		{"in the body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"},
	} {
		up := script(t, []string{c.answer, hold}, []string{ok})
		rt := transports(t, up.address, 10*time.Second)["direct"]
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+up.address+"/", nil)
		go func() {
			for up.requests.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		res, err := rt.RoundTrip(req)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want that the request was cancelled", c.name, err)
		}
		up.waitClosed(t, c.name)
		if got := get(t.Context(), rt, "GET", "http://"+up.address+"/"); got != "200 ok" {
			t.Errorf("%s: the next request got %q", c.name, got)
		}
	}
	// A body that nobody reads to its end, and requests that end behind theirs.
	up := script(t, []string{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", hold}, []string{ok, ok, ok})
	rt := transports(t, up.address, 10*time.Second)["direct"]
	for i, want := range []int32{1, 2, 2, 2} {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+up.address+"/", nil)
		res, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			io.ReadAll(res.Body)
		}
		res.Body.Close()
		cancel()
		if n := up.connections.Load(); n != want {
			t.Errorf("request %d came over connection %d, want %d", i, n, want)
		}
	}
}

// TestIdleUpstream: connections that are not used, or that the upstream closes, are
// given back, also if no request comes; and all of them with the upstream.
func TestIdleUpstream(t *testing.T) {
	idle := func(d *direct) int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.idle)
	}
	until := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within ten seconds", what)
			}
		}
	}
	for _, c := range []struct {
		name    string
		answers []string
		idle    time.Duration
	}{{"closed by the upstream", []string{ok}, time.Minute}, {"not used", []string{ok, ok}, 10 * time.Millisecond}} {
		up := script(t, c.answers)
		u, err := NewUpstream("app", UpstreamConfig{URL: "http://" + up.address, Timeout: UpstreamTimeouts{Idle: c.idle}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		d := u.transport.(*direct)
		if got := get(t.Context(), d, "GET", "http://"+up.address+"/"); got != "200 ok" || idle(d) != 1 {
			t.Fatalf("%s: %q, %d connections are idle", c.name, got, idle(d))
		}
		until(c.name, func() bool { return idle(d) == 0 })
		u.Close()
	}
	up := script(t, []string{ok, ok}, []string{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", hold})
	u, err := NewUpstream("app", UpstreamConfig{URL: "http://" + up.address}, nil)
	if err != nil {
		t.Fatal(err)
	}
	get(t.Context(), u.transport, "GET", "http://"+up.address+"/")
	u.Close()
	up.waitClosed(t, "idle at the end")
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+up.address+"/", nil)
	res, err := u.transport.RoundTrip(req) // of a request that began before a reload
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); string(body) != "ok" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
	up.waitClosed(t, "in use at the end")
}

// TestNobodyElsesAnswer has many ask at once an upstream that closes connections
// whenever it likes: each gets the answer to its own request, or an error.
func TestNobodyElsesAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer l.Close()
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					text := req.URL.Path + strings.Repeat(".", rand.IntN(9000))
					switch rand.IntN(12) {
					case 0:
						return
					case 1:
						fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
						return
					case 2:
						fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text)+1, text) // one byte is missing
						return
					case 3, 4, 5:
						fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(text), text)
					case 6: // and what nobody asked for, in the same packet or later
						fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s", len(text), text, ok)
					default:
						fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
					}
				}
			})
		}
	})
	u, err := NewUpstream("app", UpstreamConfig{URL: "http://" + l.Addr().String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	var good, failed atomic.Int32
	var askers sync.WaitGroup
	for asker := range 32 {
		askers.Go(func() {
			for i := range 200 {
				path := fmt.Sprintf("/%d/%d", asker, i)
				ctx, cancel := context.WithCancel(t.Context())
				if rand.IntN(20) == 0 {
					time.AfterFunc(time.Duration(rand.IntN(300))*time.Microsecond, cancel)
				}
				switch got := get(ctx, u.transport, "GET", "http://"+l.Addr().String()+path); {
				case strings.HasSuffix(got, "error"):
					failed.Add(1)
				case strings.TrimRight(got, ".") == "200 "+path:
					good.Add(1)
				default:
					t.Errorf("the answer to %s is %.60q", path, got)
				}
				cancel()
			}
		})
	}
	askers.Wait()
	if good.Load() < 32*200/2 {
		t.Errorf("%d were answered, %d failed", good.Load(), failed.Load())
	}
}

// TestHints: informational responses reach the request's trace, whose error ends it.
func TestHints(t *testing.T) {
	up := script(t, []string{"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, "HTTP/1.1 103 Early Hints\r\n\r\n" + ok})
	rt := transports(t, up.address, time.Second)["direct"]
	var links []string
	no := errors.New("no more")
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		if links = append(links, fmt.Sprint(code, h.Get("Link"))); len(links) > 1 {
			return no
		}
		return nil
	}})
	for _, want := range []string{"200 ok", "error"} {
		if got := get(ctx, rt, "GET", "http://"+up.address+"/"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if fmt.Sprint(links) != "[103</a> 103]" {
		t.Errorf("hints: %q", links)
	}
}

// TestHead: what is sent is what http.Transport sends, name by name, and nothing that
// could be read as another request.
func TestHead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan *http.Request, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r })}
	go srv.Serve(l)
	defer srv.Close()
	all := transports(t, l.Addr().String(), time.Second)
	for _, h := range []http.Header{
		{"User-Agent": {""}, "X-A": {"1", "2"}, "Cookie": {"a=b"}, "Te": {"trailers"}},
		{"User-Agent": {"curl"}, "X-Ä": nil, "X-Latin": {"caf\xe9"}, "X-Tab": {"a\tb"}, "X-Empty": {""}, "Content-Length": {"0"}},
	} {
		var got []string
		for _, name := range []string{"direct", "standard"} {
			req, _ := http.NewRequest("GET", "http://"+l.Addr().String()+"/a%2Fb/?q=%20&&", nil)
			req.Header, req.Host = h.Clone(), "app.test:8080"
			if name == "standard" || h["X-Ä"] == nil {
				delete(req.Header, "X-Ä")
			}
			res, err := all[name].RoundTrip(req)
			if err != nil {
				t.Fatal(name, err)
			}
			res.Body.Close()
			r := <-seen
			got = append(got, fmt.Sprint(r.Method, r.RequestURI, r.Host, r.Header, r.ContentLength))
		}
		if got[0] != got[1] {
			t.Errorf("the direct transport sent\n%s, the standard one\n%s", got[0], got[1])
		}
	}
	for _, bad := range []func(*http.Request){
		func(r *http.Request) { r.Header["X-A"] = []string{"1\r\nX-B: 2"} },
		func(r *http.Request) { r.Header["X-A"] = []string{"1\n"} },
		func(r *http.Request) { r.Header["X-A"] = []string{"\x00"} },
		func(r *http.Request) { r.Header["X-A: 1\r\nX-B"] = []string{"2"} },
		func(r *http.Request) { r.Header[""] = []string{"2"} },
		func(r *http.Request) { r.Header["X A"] = []string{"2"} },
		func(r *http.Request) { r.Host = "app.test\r\nX-B: 2" },
		func(r *http.Request) { r.URL.Opaque = "/a b" },
		func(r *http.Request) { r.URL.RawQuery = "a b" },
		func(r *http.Request) { r.URL.RawQuery = "a\r\nb" },
	} {
		req, _ := http.NewRequest("GET", "http://"+l.Addr().String()+"/", nil)
		req.Header = http.Header{}
		bad(req)
		if _, err := all["direct"].RoundTrip(req); err == nil {
			t.Errorf("%q was sent with %v to %q", req.URL, req.Header, req.Host)
			<-seen
		}
	}
}

// TestLongRequest: a request that does not fit into what the system holds for the
// connection is sent to its end before an answer is waited for.
func TestLongRequest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{MaxHeaderBytes: 64 << 20, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, len(r.Header.Get("X-Long"))) })}
	go srv.Serve(l)
	defer srv.Close()
	rt := transports(t, l.Addr().String(), 10*time.Second)["direct"]
	for _, size := range []int{16 << 20, 1, 16 << 20} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+"/", nil)
		req.Header["X-Long"] = []string{strings.Repeat("x", size)}
		res, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if res.Body.Close(); string(body) != fmt.Sprint(size) || err != nil {
			t.Errorf("%d bytes: the upstream got %s, %v", size, body, err)
		}
	}
}
