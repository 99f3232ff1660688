package test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A waiting upstream tells who has come to /wait/…, and answers when it is told to, or
// tells that the client has gone. Everybody else is answered at once.
type waiting struct {
	*httptest.Server
	came, gone chan string
	answer     chan bool
}

func newWaiting(t *testing.T) *waiting {
	t.Helper()
	w := &waiting{came: make(chan string, 8), gone: make(chan string, 8), answer: make(chan bool)}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // before that, net/http does not notice who goes
		if path := r.URL.Path; strings.HasPrefix(path, "/wait/") {
			w.came <- path
			select {
			case <-w.answer:
			case <-r.Context().Done():
				w.gone <- path
				return
			}
		}
		io.WriteString(rw, r.URL.Path)
	}))
	t.Cleanup(func() { close(w.answer); w.Close() })
	return w
}

// reply has one request at /wait/… answered.
func (w *waiting) reply(t *testing.T) {
	t.Helper()
	select {
	case w.answer <- true:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody waits for an answer any more")
	}
}

// TestClientGoneBehind: a client that leaves ends its request, by whichever way that
// goes and whatever the client has sent behind it; one that waits is answered.
func TestClientGoneBehind(t *testing.T) {
	t.Parallel()
	idp, app, ca := newIssuer(t), newWaiting(t), newAuthority(t)
	cert, key := ca.pair(t)
	for front, config := range map[string]string{"plain": "", "TLS": fmt.Sprintf("tls: {cert_file: %q, key_file: %q}\n", cert, key)} {
		g := serving(t, guarded(idp, "%sroutes: [{name: all, upstream: %q, auth: none}]\n", config, app.URL))
		n := 0
		for way, field := range map[string]string{"relayed": "", "through ReverseProxy": "TE: trailers\r\n", "from a body": "Content-Length: 2\r\n\r\nok"} {
			for behind, text := range map[string]string{"nothing": "", "a request": "GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n", "half a request": "GET /next HT"} {
				ask := func() (net.Conn, string) {
					var conn net.Conn
					var err error
					if conn, err = net.Dial("tcp", g.public[0]); err == nil && front == "TLS" {
						conn = tls.Client(conn, &tls.Config{RootCAs: ca.pool(), ServerName: "127.0.0.1"})
					}
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { conn.Close() })
					n++
					path, method, end := fmt.Sprintf("/wait/%s/%d", front, n), "GET", "\r\n"
					if way == "from a body" {
						method, end = "POST", ""
					}
					fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: a.test\r\n%s%s%s", method, path, field, end, text)
					heard(t, front+", "+way+", behind it "+behind, path, app.came)
					return conn, path
				}
				leaving, path := ask()
				leaving.Close()
				heard(t, front+", "+way+", behind it "+behind+": the upstream hears that nobody waits", path, app.gone)
				conn, path := ask()
				app.reply(t)
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				in := bufio.NewReader(conn)
				for _, want := range map[string][]string{"nothing": {path}, "a request": {path, "/next"}, "half a request": {path}}[behind] {
					if res, err := http.ReadResponse(in, nil); err != nil {
						t.Errorf("%s, %s, behind it %s: %v", front, way, behind, err)
					} else if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != want {
						t.Errorf("%s, %s, behind it %s: %s %q, want %s", front, way, behind, res.Status, body, want)
					}
				}
			}
		}
	}
}

// TestLongAnswer: an answer may take longer than a client may be silent or a header take
// to arrive; what was sent meanwhile is answered behind it; and then both limits hold.
func TestLongAnswer(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newWaiting(t)
	g := serving(t, guarded(idp, "limits: {header_timeout: 300ms, idle_timeout: 600ms}\nroutes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	dial := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn, bufio.NewReader(conn)
	}
	answered := func(in *bufio.Reader, want string) {
		t.Helper()
		if res, err := http.ReadResponse(in, nil); err != nil {
			t.Fatalf("%s: %v", want, err)
		} else if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != want {
			t.Fatalf("%s %q, want %s", res.Status, body, want)
		}
	}
	silent := func(in *bufio.Reader) {
		t.Helper()
		if b, err := in.ReadByte(); err != io.EOF {
			t.Fatalf("a silent client: byte %q, %v, want the end", b, err)
		}
	}
	conn, in := dial()
	for range 2 { // the second time on a connection that is used again
		io.WriteString(conn, "GET /wait/1 HTTP/1.1\r\nHost: a.test\r\n\r\n")
		heard(t, "a slow request", "/wait/1", app.came)
		io.WriteString(conn, "GET /behind HTTP/1.1\r\nHost: a.test\r\n\r\nGET /half")
		other, otherIn := dial() // both limits pass meanwhile
		io.WriteString(other, "GET /other HTTP/1.1\r\nHost: a.test\r\n\r\n")
		answered(otherIn, "/other")
		silent(otherIn)
		app.reply(t)
		answered(in, "/wait/1")
		answered(in, "/behind")
		io.WriteString(conn, " HTTP/1.1\r\nHost: a.test\r\n\r\n")
		answered(in, "/half")
	}
	silent(in)
	conn, in = dial()
	io.WriteString(conn, "GET /first HTTP/1.1\r\nHost: a.test\r\n\r\nGET /second HTTP/1.1\r\nHost: a.t")
	answered(in, "/first")
	silent(in)
}
