package test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/golang-jwt/jwt/v5"
)

// A streamer says when a request for /slow or /upload has arrived, and how many
// messages it has sent to those who asked for /flood.
type streamer struct {
	*httptest.Server
	arrived chan struct{}
	flooded atomic.Int64
}

// endless answers with streams that only end when they are cut: an event stream,
// a download, an upload that is read for ever, an echoing WebSocket, and an answer
// that never comes. A flood is a WebSocket that is sent messages of all sizes
// without end, and may say what it likes.
func endless(t testing.TB) *streamer {
	t.Helper()
	app := &streamer{arrived: make(chan struct{}, 64)}
	app.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: hello\n\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/download":
			for block := make([]byte, 64<<10); ; {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		case "/upload":
			app.arrived <- struct{}{}
			io.Copy(io.Discard, r.Body)
		case "/socket":
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			defer c.CloseNow()
			for {
				kind, message, err := c.Read(r.Context())
				if err != nil || c.Write(r.Context(), kind, message) != nil {
					return
				}
			}
		case "/flood":
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			defer c.CloseNow()
			c.SetReadLimit(-1)
			go func() {
				for {
					if _, _, err := c.Read(r.Context()); err != nil {
						return
					}
				}
			}()
			for message := make([]byte, 100<<10); ; time.Sleep(time.Millisecond) { // a pause for those who read
				for _, size := range [...]int{10, 1000, 100 << 10, 125, 126, 70_000} {
					if c.Write(r.Context(), websocket.MessageBinary, message[:size]) != nil {
						return
					}
					app.flooded.Add(1)
				}
			}
		case "/slow":
			app.arrived <- struct{}{}
			<-r.Context().Done()
		}
	}))
	t.Cleanup(app.Close)
	return app
}

const endlessConfig = `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: %q, audiences: [app], leeway: 0s}]
routes: [{name: app, upstream: %q}]
%s`

// A revocation ends what is running: each kind of stream, by each kind of rule.
// A stream of another session goes on.
func TestRevocationCutsStreams(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), endless(t)
	g := startGateway(t, fmt.Sprintf(endlessConfig, idp.URL, app.URL, ""))
	g.waitReady()
	other := openEvents(t, g, idp.token(jwt.MapClaims{"sub": "bystander", "sid": "other", "client_id": "other"}))

	n := 0
	for _, open := range []func(testing.TB, *gateway, string) <-chan error{openEvents, openDownload, app.openUpload, openSocket, app.openSlow} {
		for _, rule := range []string{`{"jti":%q}`, `{"sid":%q}`, `{"sub":%q}`, `{"client":%q}`} {
			n++
			id := fmt.Sprintf("id-%d", n)
			ended := open(t, g, idp.token(jwt.MapClaims{"jti": id, "sid": id, "sub": id, "client_id": id}))
			if status, out := g.call("POST", "/revocations", fmt.Sprintf(rule, id)); status != 200 {
				t.Fatal(status, out)
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("%s: %v", fmt.Sprintf(rule, id), err)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s cut nothing", fmt.Sprintf(rule, id))
			}
		}
	}
	select {
	case err := <-other:
		t.Errorf("the bystander's stream ended: %v", err)
	default:
	}
	want := fmt.Sprintf(`durward_streams_cut_total{cause="revoked"} %d`, n)
	if metrics := send(t, "GET", g.admin+"/metrics", "").Body; !strings.Contains(metrics, want) {
		for line := range strings.Lines(metrics) {
			if strings.Contains(line, "streams_cut") || strings.Contains(line, "requests_total") {
				t.Log(line)
			}
		}
		t.Error("not in the metrics: " + want)
	}
}

// A stream ends with its token, unless the configuration keeps it.
func TestExpiryCutsStreams(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), endless(t)
	cut := startGateway(t, fmt.Sprintf(endlessConfig, idp.URL, app.URL, ""))
	keep := startGateway(t, fmt.Sprintf(endlessConfig, idp.URL, app.URL, "streams: {on_expiry: keep, max_age: 4s}"))
	cut.waitReady()
	keep.waitReady()
	short := idp.token(jwt.MapClaims{"exp": time.Now().Add(2 * time.Second).Unix()})
	began := time.Now()
	kept, ended := openEvents(t, keep, short), openEvents(t, cut, short)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	select {
	case err := <-kept:
		t.Errorf("ended with its token in spite of on_expiry: keep: %v", err)
	default:
	}
	if err := <-kept; err != nil {
		t.Error(err)
	}
	if lasted := time.Since(began); lasted < 3*time.Second {
		t.Errorf("max_age cut after %v", lasted)
	}
	eventually(t, 5*time.Second, "the log says so", func() bool {
		return strings.Contains(cut.log.String(), `"cut":"expired"`) && strings.Contains(keep.log.String(), `"cut":"max_age"`)
	})
}

// Each open… starts a stream and returns once it runs. The channel delivers nil
// when it was cut, or what else happened.

// streaming has no time limit.
var streaming = &http.Client{Transport: &http.Transport{DisableCompression: true}}

func streamRequest(t testing.TB, g *gateway, method, path, token string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, g.url(path), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return req
}

func openEvents(t testing.TB, g *gateway, token string) <-chan error {
	t.Helper()
	res, err := streaming.Do(streamRequest(t, g, "GET", "/events", token, nil))
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(res.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "data: hello\n" {
		t.Fatalf("the stream begins with %q, %v", line, err)
	}
	return untilCut(res.Body, lines)
}

func openDownload(t testing.TB, g *gateway, token string) <-chan error {
	t.Helper()
	res, err := streaming.Do(streamRequest(t, g, "GET", "/download", token, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(res.Body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return untilCut(res.Body, res.Body)
}

func untilCut(body io.Closer, r io.Reader) <-chan error {
	ended := make(chan error, 1)
	go func() {
		defer body.Close()
		if _, err := io.Copy(io.Discard, r); err == nil {
			ended <- errors.New("it ended as if it were complete")
			return
		}
		ended <- nil
	}()
	return ended
}

func (app *streamer) openUpload(t testing.TB, g *gateway, token string) <-chan error {
	t.Helper()
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		for block := make([]byte, 64<<10); ; {
			if _, err := writer.Write(block); err != nil {
				return
			}
		}
	}()
	go func() {
		res, err := streaming.Do(streamRequest(t, g, "POST", "/upload", token, reader))
		reader.Close()
		if err == nil {
			res.Body.Close()
			if res.StatusCode < 400 {
				ended <- fmt.Errorf("the upload was answered %s", res.Status)
				return
			}
		}
		ended <- nil
	}()
	app.wait(t)
	return ended
}

func openSocket(t testing.TB, g *gateway, token string) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	c, _, err := websocket.Dial(ctx, g.url("/socket"), &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseNow() })
	if err := c.Write(ctx, websocket.MessageText, []byte(strings.Repeat("x", 300))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, _, err := c.Read(ctx)
		if code := websocket.CloseStatus(err); code != websocket.StatusPolicyViolation {
			ended <- fmt.Errorf("closed with %v: %w", code, err)
			return
		}
		ended <- nil
	}()
	return ended
}

// openSlow is a request that has no answer yet when it is cut: it is refused.
func (app *streamer) openSlow(t testing.TB, g *gateway, token string) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		res, err := streaming.Do(streamRequest(t, g, "GET", "/slow", token, nil))
		if err != nil {
			ended <- err
			return
		}
		res.Body.Close()
		if res.StatusCode != 401 || res.Header.Get("Durward-Reason") != "revoked" {
			ended <- fmt.Errorf("answered %s %s", res.Status, res.Header.Get("Durward-Reason"))
			return
		}
		ended <- nil
	}()
	app.wait(t)
	return ended
}

func (app *streamer) wait(t testing.TB) {
	t.Helper()
	select {
	case <-app.arrived:
	case <-time.After(10 * time.Second):
		t.Fatal("the request does not arrive")
	}
}
