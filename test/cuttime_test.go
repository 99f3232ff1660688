package test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A cutter is a gateway in front of streams of every kind, and how long they live
// on after what let them in was revoked.
type cutter struct {
	*gateway
	idp  *issuer
	app  *streamer
	grpc *grpc.ClientConn
	n    int // trials
	rude int // WebSockets that ended without a close frame
}

// errRude is a WebSocket that ended in the middle of a frame.
var errRude = errors.New("no close frame came")

func newCutter(t testing.TB) *cutter {
	t.Helper()
	idp, app := newIssuer(t), endless(t)
	service, _, address := serveGRPC(t)
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	go func() {
		for {
			select {
			case <-service.cancelled:
			case <-over:
				return
			}
		}
	}()
	g := serving(t, guarded(idp, `
routes:
  - {name: talk, path: /durward.test.Talk/, upstream: "h2c://%s"}
  - {name: app, upstream: %q}
`, address, app.URL))
	conn, err := grpc.NewClient(g.public[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &cutter{gateway: g, idp: idp, app: app, grpc: conn}
}

// trial opens one stream and revokes what let it in, each time by another kind of
// line. It returns the time from the sending of POST /revocations to the end that
// the client sees.
func (c *cutter) trial(open func(*cutter, string) <-chan error) time.Duration {
	c.t.Helper()
	kinds := [...]string{"jti", "sid", "sub", "client"}
	kind := kinds[c.n%len(kinds)]
	c.n++
	id := fmt.Sprintf("trial-%d", c.n)
	ended := open(c, c.idp.token(jwt.MapClaims{"jti": id, "sid": id, "sub": id, "client_id": id}))
	select {
	case err := <-ended:
		c.t.Fatalf("the stream ended by itself: %v", err)
	default:
	}
	answered := make(chan string, 1)
	sent := time.Now()
	go func() {
		status, text := c.call("POST", "/revocations", fmt.Sprintf(`{%q:%q}`, kind, id))
		answered <- fmt.Sprint(status, " ", text)
	}()
	var took time.Duration
	select {
	case err := <-ended:
		took = time.Since(sent)
		switch {
		case errors.Is(err, errRude):
			c.rude++
		case err != nil:
			c.t.Errorf("revoked by %s: %v", kind, err)
		}
	case <-time.After(10 * time.Second):
		c.t.Fatalf("revoking by %s cut nothing", kind)
	}
	if text := <-answered; !strings.HasPrefix(text, "200 ") {
		c.t.Fatalf("POST /revocations: %s", text)
	}
	return took
}

// cutKinds are the kinds of streams, and how each is opened.
var cutKinds = []struct {
	name string
	open func(*cutter, string) <-chan error
}{
	{"WebSocket", func(c *cutter, token string) <-chan error { return openSocket(c.t, c.gateway, token) }},
	{"busy WebSocket", (*cutter).openBusySocket},
	{"event stream", func(c *cutter, token string) <-chan error { return openEvents(c.t, c.gateway, token) }},
	{"download", func(c *cutter, token string) <-chan error { return openDownload(c.t, c.gateway, token) }},
	{"download, read slowly", func(c *cutter, token string) <-chan error { return c.openSlowDownload(token, true) }},
	{"download, not read", func(c *cutter, token string) <-chan error { return c.openSlowDownload(token, false) }},
	{"gRPC stream", (*cutter).openTalk},
	{"upload", func(c *cutter, token string) <-chan error { return c.app.openUpload(c.t, c.gateway, token) }},
}

// TestCutTimes revokes two hundred streams of each kind. The bound is far from what
// is promised (50 ms), as machines that run tests are busy; the log has the figures.
func TestCutTimes(t *testing.T) {
	const trials, bound = 200, 2 * patience // a reset that was lost on its way shows after patience
	c := newCutter(t)
	for _, kind := range cutKinds {
		took := make([]time.Duration, trials)
		for i := range took {
			took[i] = c.trial(kind.open)
		}
		slices.Sort(took)
		p50, p99 := took[trials/2], took[trials*99/100-1]
		t.Logf("%-22s p50 %6.2f ms   p99 %6.2f ms   worst %6.2f ms", kind.name, milliseconds(p50), milliseconds(p99), milliseconds(took[trials-1]))
		if p99 > bound {
			t.Errorf("%s: p99 %v, more than %v", kind.name, p99, bound)
		}
	}
	if t.Logf("%d of %d busy WebSockets ended without a close frame", c.rude, trials); c.rude > trials/10 {
		t.Errorf("%d of %d busy WebSockets ended without a close frame", c.rude, trials)
	}
}

// BenchmarkCut measures the same, as many times as asked for.
func BenchmarkCut(b *testing.B) {
	c := newCutter(b)
	for _, kind := range cutKinds {
		b.Run(kind.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				took = append(took, c.trial(kind.open))
			}
			slices.Sort(took)
			b.ReportMetric(milliseconds(took[len(took)/2]), "p50-ms")
			b.ReportMetric(milliseconds(took[max(len(took)*99/100-1, 0)]), "p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// openBusySocket reads a WebSocket whose upstream hardly pauses, and speaks all the
// while itself: its close frame must come between frames, and arrive. A client that
// is held up for too long gets none.
func (c *cutter) openBusySocket(token string) <-chan error {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	c.t.Cleanup(cancel)
	ws, _, err := websocket.Dial(ctx, c.url("/flood"), &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(-1)
	for range 10 {
		if _, _, err := ws.Read(ctx); err != nil {
			c.t.Fatal(err)
		}
	}
	go func() {
		for block := make([]byte, 1000); ws.Write(ctx, websocket.MessageBinary, block) == nil; time.Sleep(time.Millisecond) {
		}
	}()
	ended := make(chan error, 1)
	go func() {
		for {
			if _, _, err := ws.Read(ctx); err != nil {
				switch code := websocket.CloseStatus(err); code {
				case websocket.StatusPolicyViolation:
					ended <- nil
				case -1:
					ended <- fmt.Errorf("%w: %w", errRude, err)
				default:
					ended <- fmt.Errorf("closed with %v: %w", code, err)
				}
				return
			}
		}
	}()
	return ended
}

// openSlowDownload reads a little each millisecond, or nothing any more once the
// answer has begun. Who reads nothing sees the end all the same, from the state of
// the connection: what waits in it is dropped, and not kept until it is read.
func (c *cutter) openSlowDownload(token string, reads bool) <-chan error {
	c.t.Helper()
	conn := dialSmall(c.t, c.public[0])
	fmt.Fprintf(conn, "GET /download HTTP/1.1\r\nHost: app.test\r\n%s\r\n\r\n", bearing(token))
	in := bufio.NewReaderSize(conn, 4<<10)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		c.t.Fatalf("the download begins with %q, %v", line, err)
	}
	ended := make(chan error, 1)
	go func() {
		defer conn.Close()
		if !reads {
			ended <- untilReset(conn)
			return
		}
		for block := make([]byte, 16<<10); ; time.Sleep(time.Millisecond) { // this is the slowness
			if _, err := conn.Read(block); err != nil {
				ended <- nil
				return
			}
		}
	}()
	return ended
}

// dialSmall connects with a small receive buffer, so that little is on its way.
func dialSmall(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10)
		}), err)
	}}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// untilReset waits for the connection to be reset, and reads nothing. Where packets
// were lost a reset may be too, as nobody repeats it: then it comes as soon as
// something is sent.
func untilReset(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(200 * time.Microsecond) {
		var state int
		var failed error
		if err := raw.Control(func(fd uintptr) { state, failed = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR) }); err != nil {
			return err
		}
		switch {
		case failed != nil:
			return failed
		case state == int(syscall.ECONNRESET), state == int(syscall.EPIPE): // EPIPE: after a FIN
			return nil
		case state != 0:
			return syscall.Errno(state)
		}
	}
	conn.SetDeadline(time.Now().Add(patience))
	conn.Write([]byte{0})
	n, err := io.Copy(io.Discard, conn)
	if !errors.Is(err, syscall.ECONNRESET) || n > 1<<20 {
		return fmt.Errorf("not reset: %d bytes could still be read, then %w", n, err)
	}
	return nil
}

// patience is how long a reset is waited for.
const patience = time.Second

// openTalk is a gRPC stream: it ends with the status of who is not signed in.
func (c *cutter) openTalk(token string) <-chan error {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token), 20*time.Second)
	c.t.Cleanup(cancel)
	stream, err := c.grpc.NewStream(ctx, &talkService.Streams[0], "/durward.test.Talk/Chat")
	if err != nil {
		c.t.Fatal(err)
	}
	var heard wrapperspb.StringValue
	if err := errors.Join(stream.SendMsg(wrapperspb.String("hello")), stream.RecvMsg(&heard)); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		if err := stream.RecvMsg(&heard); status.Code(err) != codes.Unauthenticated || status.Convert(err).Message() != "cut: revoked" {
			ended <- fmt.Errorf("it ended with %w", err)
			return
		}
		ended <- nil
	}()
	return ended
}

// TestStuckClients has a hundred WebSocket clients read nothing while their upstream
// floods them: the one that is honest is cut no later for it, and all of them with it.
func TestStuckClients(t *testing.T) {
	t.Parallel()
	idp, app, ca := newIssuer(t), endless(t), newAuthority(t)
	cert, key := ca.pair(t)
	routes := fmt.Sprintf("routes: [{name: app, upstream: %q}]\n", app.URL)
	for _, front := range []struct{ name, scheme, config string }{
		{"in the clear", "ws", routes},
		{"over TLS", "wss", fmt.Sprintf("tls: {cert_file: %q, key_file: %q}\n", cert, key) + routes},
	} {
		t.Run(front.name, func(t *testing.T) {
			const stuck = 100
			g := serving(t, guarded(idp, "%s", front.config))
			crew := func() string { return idp.token(jwt.MapClaims{"sub": "crew"}) }
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			var clients []*net.TCPConn
			for range stuck {
				tcp := dialSmall(t, g.public[0])
				conn := net.Conn(tcp)
				if front.scheme == "wss" {
					conn = tls.Client(tcp, &tls.Config{RootCAs: ca.pool(), ServerName: "localhost"})
				}
				fmt.Fprintf(conn, "GET /flood HTTP/1.1\r\nHost: app.test\r\n%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", bearing(crew()))
				if line, err := bufio.NewReaderSize(conn, 256).ReadString('\n'); err != nil || !strings.Contains(line, " 101 ") {
					t.Fatalf("%q, %v", line, err)
				}
				clients = append(clients, tcp)
			}
			eventually(t, 20*time.Second, "nothing flows any more", still(&app.flooded))
			honest, _, err := websocket.Dial(ctx, front.scheme+"://"+g.public[0]+"/socket", &websocket.DialOptions{
				HTTPHeader: http.Header{"Authorization": {"Bearer " + crew()}},
				HTTPClient: speaking(t, "http/1.1", map[bool]*authority{true: ca}[front.scheme == "wss"]),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer honest.CloseNow()
			if err := honest.Write(ctx, websocket.MessageText, []byte("still here?")); err != nil {
				t.Fatal(err)
			}
			if _, text, err := honest.Read(ctx); err != nil || string(text) != "still here?" {
				t.Fatalf("%q, %v", text, err)
			}
			resets := make(chan error, stuck)
			for _, c := range clients {
				go func() { resets <- untilReset(c) }()
			}
			sent := time.Now()
			go g.call("POST", "/revocations", `{"sub":"crew"}`)
			_, _, err = honest.Read(ctx)
			took := time.Since(sent)
			if code := websocket.CloseStatus(err); code != websocket.StatusPolicyViolation {
				t.Errorf("the honest one: %v", err)
			}
			for range clients {
				if err := <-resets; err != nil {
					t.Fatalf("a stuck one: %v", err)
				}
			}
			all := time.Since(sent)
			t.Logf("the honest one was cut after %.2f ms, the last of %d stuck ones after %.2f ms", milliseconds(took), stuck, milliseconds(all))
			if took > time.Second || all > 2*time.Second {
				t.Errorf("the honest one was cut after %v, the last after %v", took, all)
			}
			eventually(t, 5*time.Second, "no stream is open", func() bool { return metric(t, g, "durward_streams_open") == 0 })
		})
	}
}

// TestRefreshCutsNothing: a stream does not end because the token that another one
// of its session replaced is revoked.
func TestRefreshCutsNothing(t *testing.T) {
	t.Parallel()
	c := newCutter(t)
	session := jwt.MapClaims{"sid": "session", "sub": "alice", "jti": "old"}
	old := c.idp.token(session)
	session["jti"] = "new"
	fresh := c.idp.token(session)
	c.passes("the old token", old)
	onOld := openEvents(t, c.gateway, old)
	ws, _, err := websocket.Dial(t.Context(), c.url("/socket"), &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + fresh}}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	answers := func() error {
		if err := ws.Write(t.Context(), websocket.MessageText, []byte("x")); err != nil {
			return err
		}
		_, _, err := ws.Read(t.Context())
		return err
	}
	c.revoke(`{"jti":"old"}`)
	if err := <-onOld; err != nil {
		t.Errorf("the stream of the old token: %v", err)
	}
	c.refused("the old token", old)
	c.passes("the new token", fresh)
	// Several looks later it still goes on.
	for i := range 5 {
		c.revoke(`{"jti":"another-%d"}`, i)
		if err := answers(); err != nil {
			t.Fatalf("the stream of the new token: %v", err)
		}
	}
	c.revoke(`{"sid":"session"}`)
	if err := answers(); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		if _, _, err = ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
			t.Errorf("the twin, the whole session: %v", err)
		}
	}
}

// TestCutoffsCutStreams: each kind of cutoff ends the streams of tokens that were
// issued at or before it, and no other.
func TestCutoffsCutStreams(t *testing.T) {
	t.Parallel()
	corp, partner, app := newIssuer(t), newIssuer(t), endless(t)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - {name: corp, issuer: %q, audiences: [app]}
  - {name: partner, issuer: %q, audiences: [app]}
routes: [{name: app, issuers: [corp, partner], upstream: %q}]
`, corp.URL, partner.URL, app.URL))
	now := time.Now().Unix()
	issued := func(idp *issuer, at int64) <-chan error {
		return openEvents(t, g, idp.token(jwt.MapClaims{"iat": at, "auth_time": at - 1000, "sid": "s", "sub": "alice", "client_id": "c"}))
	}
	for _, tt := range []struct {
		line   string // its issuer comes first
		before int64
		iat    int64 // of the token that it covers
		bears  int64 // iat of one that it does not; 0: there is none
	}{
		{`"sid":"s","before":%d`, now - 500, now - 500, now - 499},
		{`"sub":"alice","before":%d`, now - 400, now - 410, now - 390},
		{`"client":"c","before":%d`, now - 300, now - 310, now - 290},
		{`"sub":"alice","by":"auth_time","before":%d`, now - 1200, now - 200, now - 199},
		{`"before":%d`, now - 100, now - 100, now - 99},
	} {
		line := fmt.Sprintf(`{"iss":%q,`+tt.line+`}`, corp.URL, tt.before)
		covered, twin, foreign := issued(corp, tt.iat), issued(corp, tt.bears), issued(partner, tt.iat)
		g.revoke("%s", line)
		select {
		case err := <-covered:
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s cut nothing", line)
		}
		select {
		case err := <-twin:
			t.Errorf("%s cut the stream of a token issued after it: %v", line, err)
		case err := <-foreign:
			t.Errorf("%s cut the stream of another issuer: %v", line, err)
		default:
		}
	}
	// Lines without before, which cover what was issued until now.
	fresh, foreign := issued(corp, now), issued(partner, now)
	g.revoke(`{"iss":%q,"sub":"alice"}`, corp.URL)
	if err := <-fresh; err != nil {
		t.Error(err)
	}
	select {
	case err := <-foreign:
		t.Errorf("the stream of another issuer ended: %v", err)
	default:
	}
}

// TestGraceAndLeeway: what is revoked goes on for its grace, though nothing new
// begins, and what expires for the leeway; then both end.
func TestGraceAndLeeway(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), endless(t)
	config := func(leeway, rest string) string {
		return fmt.Sprintf("listen: 127.0.0.1:0\nissuers: [{name: corp, issuer: %q, audiences: [app], leeway: %s}]\nroutes: [{name: app, upstream: %q}]\n%s", idp.URL, leeway, app.URL, rest)
	}
	g := serving(t, config("1s", "streams: {grace: 700ms}\n"))

	token := idp.token(jwt.MapClaims{"sub": "leaving"})
	ended := openEvents(t, g, token)
	sent := time.Now()
	g.revoke(`{"sub":"leaving"}`)
	g.refused("a new request", token)
	select {
	case err := <-ended:
		t.Errorf("cut after %v, within its grace: %v", time.Since(sent), err)
	default:
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(sent); took < 700*time.Millisecond || took > 3*time.Second {
		t.Errorf("cut after %v, the grace is 700 ms", took)
	}

	exp := time.Now().Add(2 * time.Second).Truncate(time.Second)
	ended = openEvents(t, g, idp.token(jwt.MapClaims{"exp": exp.Unix()}))
	if err := <-ended; err != nil {
		t.Error(err)
	}
	after := time.Since(exp)
	t.Logf("cut %v after exp, the leeway is 1 s", after.Round(time.Millisecond))
	if after < time.Second || after > 3*time.Second {
		t.Errorf("cut %v after exp, the leeway is 1 s", after)
	}
}

// TestStuckGRPC: a call whose client takes nothing cannot end with a status; it is
// reset.
func TestStuckGRPC(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	gone := make(chan struct{})
	var sent atomic.Int64
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q}]\n", "h2c://"+overHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(gone)
		w.Header().Set("Content-Type", "application/grpc")
		for block := make([]byte, 32<<10); ; sent.Add(1) {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})))
	req, err := http.NewRequestWithContext(t.Context(), "POST", g.url("/"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+idp.token(jwt.MapClaims{"sub": "mallory"}))
	res, err := clientOverHTTP2().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	eventually(t, 10*time.Second, "nothing flows any more", still(&sent))
	g.revoke(`{"sub":"mallory"}`)
	eventually(t, 5*time.Second, "the record says so", func() bool { return strings.Contains(g.log.String(), `"cut":"revoked"`) })
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the upstream goes on")
	}
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Errorf("it ended as if it were complete, trailers %v", res.Trailer)
	}
}

// still tells whether the counter has moved and then not for a while.
func still(n *atomic.Int64) func() bool {
	last, since := int64(0), time.Now()
	return func() bool {
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		}
		return last > 0 && time.Since(since) > 300*time.Millisecond
	}
}

// A unary gRPC call that is cut before its answer is refused with the status of who
// is not signed in; gRPC-Web, whose status is part of the body, never ends as if it
// were complete.
func TestCutGRPCBeforeAnswer(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	arrived := make(chan struct{}, 1)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/web" {
			w.Header().Set("Content-Type", "application/grpc-web+proto")
			io.WriteString(w, "\x00\x00\x00\x00\x00")
			http.NewResponseController(w).Flush()
		}
		io.Copy(io.Discard, r.Body) // a server notices that its client has gone only when nothing is left to read
		arrived <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(app.Close)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q}]\n", app.URL))
	conn, err := grpc.NewClient(g.public[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+idp.token(jwt.MapClaims{"sid": "unary"})), 20*time.Second)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		failed <- conn.Invoke(ctx, "/durward.test.Talk/Say", wrapperspb.String("a"), new(wrapperspb.StringValue))
	}()
	<-arrived
	g.revoke(`{"sid":"unary"}`)
	if err := <-failed; status.Code(err) != codes.Unauthenticated {
		t.Errorf("unary: %v", err)
	}

	req, err := http.NewRequestWithContext(ctx, "POST", g.url("/web"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+idp.token(jwt.MapClaims{"sid": "web"}))
	res, err := clientOverHTTP2().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	<-arrived
	g.revoke(`{"sid":"web"}`)
	if body, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("gRPC-Web ended as if it were complete: %q, %v", body, res.Trailer)
	}
}
