package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// A side is one of two configurations that differ in everything that a request
// meets: its route, its upstream and the header that names its user.
type side struct {
	name   string
	config string
}

// arrival is what an upstream says of a request that it received.
type arrival struct {
	Upstream string
	Alpha    []string // X-Alpha-User
	Beta     []string // X-Beta-User
	ID       string
}

// A turnstile holds requests until each gets its ticket, or all may go.
type turnstile struct {
	waiting atomic.Int64
	tickets chan bool
	open    chan bool
	once    sync.Once
}

func (s *turnstile) pass() {
	s.waiting.Add(1)
	select {
	case <-s.tickets:
	case <-s.open:
	}
	s.waiting.Add(-1)
}

// letGo lets so many go.
func (s *turnstile) letGo(n int) {
	for range n {
		select {
		case s.tickets <- true:
		case <-s.open:
		}
	}
}

func (s *turnstile) letAllGo() { s.once.Do(func() { close(s.open) }) }

// sides makes two upstreams that answer each request when the turnstile lets it go,
// and a configuration for each.
func sides(t *testing.T, idp *issuer) (two [2]side, stile *turnstile) {
	t.Helper()
	stile = &turnstile{tickets: make(chan bool), open: make(chan bool)}
	for i, name := range []string{"alpha", "beta"} {
		app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			stile.pass()
			json.NewEncoder(w).Encode(arrival{name, r.Header["X-Alpha-User"], r.Header["X-Beta-User"], r.Header.Get("X-Request-Id")})
		}))
		t.Cleanup(app.Close)
		two[i] = side{name, guarded(idp, `
identity: {headers: {X-%[1]s-User: sub}}
upstreams: {%[1]s-app: {url: %[2]q}}
routes: [{name: %[1]s-route, upstream: %[1]s-app}]
`, name, app.URL)}
	}
	t.Cleanup(stile.letAllGo)
	return two, stile
}

// brokenConfigs are files that must not come into force. The first is for
// fmt.Sprintf with a good one.
var brokenConfigs = []string{
	"%s\nunknown_key: 1\n",
	"listen: [",
	"",
	"%s\n---\nlisten: 127.0.0.1:0\n",
	"%s\ntests: [{name: fails, request: 'GET http://app.test/', want: allow}]\n",
	"listen: 127.0.0.1:0\nroutes: [{name: open, auth: none, upstream: 'http://127.0.0.1:1'}]\n",
}

// TestReloadUnderLoad changes the configuration fifty times while a thousand
// requests are in flight, half of the times to a file that is broken. No request is
// lost, and none meets two configurations.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	const clients, reloads, churn = 1000, 50, 200
	idp := newIssuer(t)
	two, stile := sides(t, idp)
	g := serving(t, two[0].config)
	raw := idp.token(nil)

	many := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true}, Timeout: 2 * time.Minute}
	defer many.CloseIdleConnections()
	var over atomic.Bool
	var mu sync.Mutex
	var arrivals []arrival
	var lost []string
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for !over.Load() {
				a, err := arrive(many, g.url("/"), raw)
				mu.Lock()
				if err != nil {
					lost = append(lost, err.Error())
				} else {
					arrivals = append(arrivals, a)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	defer running.Wait()
	finish := func() {
		over.Store(true)
		stile.letAllGo()
	}
	defer finish()

	// sideOf tells which of the two each generation was built from. A file that the
	// gateway saw change by itself and that it was told to reload makes two.
	sideOf, generation := map[float64]string{1: two[0].name}, 1.0
	for i := range reloads {
		eventually(t, 30*time.Second, "a thousand requests in flight", func() bool {
			mu.Lock()
			defer mu.Unlock()
			if lost != nil {
				t.Fatalf("%d requests were lost, the first: %s", len(lost), lost[0])
			}
			return stile.waiting.Load() == clients
		})
		var letting sync.WaitGroup
		letting.Go(func() { stile.letGo(churn) })
		next := two[(i/2+1)%2]
		if i%2 == 0 {
			broken := brokenConfigs[i/2%len(brokenConfigs)]
			if strings.Contains(broken, "%s") {
				broken = fmt.Sprintf(broken, next.config)
			}
			g.write(broken)
		} else {
			g.write(next.config)
		}
		status, answer := g.call("POST", "/reload", "")
		var said struct {
			Generation float64
			Problems   []string
		}
		json.Unmarshal([]byte(answer), &said)
		switch {
		case i%2 == 0 && (status != 422 || len(said.Problems) == 0):
			t.Errorf("reload %d of a broken file: %d %s", i, status, answer)
		case i%2 == 1 && (status != 200 || said.Generation <= generation):
			t.Errorf("reload %d of a good file: %d %s", i, status, answer)
		case i%2 == 1:
			for generation < said.Generation {
				generation++
				sideOf[generation] = next.name
			}
		}
		letting.Wait()
	}
	finish()
	running.Wait()

	if lost != nil {
		t.Fatalf("%d requests were lost, the first: %s", len(lost), lost[0])
	}
	if len(arrivals) < reloads*churn {
		t.Errorf("%d requests were answered, want at least %d", len(arrivals), reloads*churn)
	}
	records := map[string]map[string]any{}
	eventually(t, 10*time.Second, "a record of each request", func() bool {
		if strings.Count(g.log.String(), `"msg":"request"`) < len(arrivals) {
			return false
		}
		for _, line := range g.log.lines("request") {
			rec := line["decision"].(map[string]any)
			records[rec["id"].(string)] = rec
		}
		return true
	})
	met := map[string]int{}
	for _, a := range arrivals {
		rec := records[a.ID]
		user, other := a.Alpha, a.Beta
		if a.Upstream == "beta" {
			user, other = other, user
		}
		consistent := len(user) == 1 && user[0] == "alice" && other == nil && rec != nil &&
			sideOf[rec["generation"].(float64)] == a.Upstream && rec["route"] == a.Upstream+"-route" && rec["upstream"] == a.Upstream+"-app" && rec["status"] == 200.0
		if !consistent {
			t.Fatalf("a request met two configurations: %+v, record %v, generations %v", a, rec, sideOf)
		}
		met[a.Upstream]++
	}
	if len(records) != len(arrivals) || met["alpha"] < clients || met["beta"] < clients {
		t.Errorf("%d records of %d requests; %v", len(records), len(arrivals), met)
	}
	if n := len(g.log.lines("the configuration was not reloaded; the old one stays")); n < reloads/2 {
		t.Errorf("%d complaints about %d broken files", n, reloads/2)
	}
}

func arrive(client *http.Client, url, raw string) (a arrival, err error) {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return a, err
	}
	req.Header.Set("Authorization", "Bearer "+raw)
	res, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	if res.StatusCode != 200 {
		return a, fmt.Errorf("%s: %s", res.Status, text)
	}
	return a, json.Unmarshal(text, &a)
}

// TestReloadMechanisms reloads by each of the ways there are, a good file and a
// broken one.
func TestReloadMechanisms(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	two, stile := sides(t, idp)
	stile.letAllGo()
	g := serving(t, two[0].config)
	raw := idp.token(nil)
	is := func(name string) bool {
		t.Helper()
		a, err := arrive(client, g.url("/"), raw)
		if err != nil {
			t.Fatal(err)
		}
		return a.Upstream == name
	}
	const kept = "the configuration was not reloaded; the old one stays"
	for i, mechanism := range []struct {
		name string
		do   func() // nil: the gateway finds out by itself
	}{
		{"POST /reload", func() { g.call("POST", "/reload", "") }},
		{"SIGHUP", func() { g.cmd.Process.Signal(syscall.SIGHUP) }},
		{"the file changed", nil},
	} {
		from, to := two[i%2], two[(i+1)%2]
		complaints := func() (n int) {
			for _, line := range g.log.lines(kept) {
				if strings.Contains(line["problems"].(string), "unknown key") && strings.Contains(line["problems"].(string), g.config+":") {
					n++
				}
			}
			return n
		}
		before := complaints()
		g.write(to.config + "\nunknown_key: " + fmt.Sprint(i) + "\n")
		if mechanism.do != nil {
			mechanism.do()
		}
		eventually(t, 10*time.Second, mechanism.name+" complains", func() bool { return complaints() > before })
		if !is(from.name) || metric(t, g, "durward_config_last_reload_successful") != 0 {
			t.Errorf("%s: the broken file came into force", mechanism.name)
		}
		g.write(to.config)
		if mechanism.do != nil {
			mechanism.do()
		}
		eventually(t, 10*time.Second, mechanism.name+" brings the new configuration into force", func() bool { return is(to.name) })
		eventually(t, 10*time.Second, "the metric says so", func() bool { return metric(t, g, "durward_config_last_reload_successful") == 1 })
	}
	// What cannot change is refused, with everything else in that file.
	g.write(strings.Replace(two[0].config, "127.0.0.1:0", "127.0.0.1:1", 1))
	if status, text := g.call("POST", "/reload", ""); status != 422 || !strings.Contains(text, "listen: cannot change while the gateway runs") || !is("beta") {
		t.Errorf("another listen: %d %s", status, text)
	}
	os.Remove(g.config)
	if status, text := g.call("POST", "/reload", ""); status != 422 || !is("beta") {
		t.Errorf("no file: %d %s", status, text)
	}
	g.write(two[0].config)
	if status, text := g.call("POST", "/reload", ""); status != 200 || !is("alpha") {
		t.Errorf("and back: %d %s", status, text)
	}
}

// TestReloadKeepsStreams reloads under an open WebSocket, whose upstream is not
// even configured any more.
func TestReloadKeepsStreams(t *testing.T) {
	t.Parallel()
	idp, before, after := newIssuer(t), echo(t), newUpstream(t)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q}]\n", before.URL))
	header := http.Header{"Authorization": {"Bearer " + idp.token(nil)}}
	conn, _, err := websocket.Dial(t.Context(), g.url("/"), &websocket.DialOptions{HTTPHeader: header})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	talks := func(word string) {
		t.Helper()
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(word)); err != nil {
			t.Fatal(err)
		}
		if _, back, err := conn.Read(t.Context()); err != nil || string(back) != word {
			t.Fatalf("%q came back, %v", back, err)
		}
	}
	talks("before")
	g.write(guarded(idp, "routes: [{name: all, upstream: %q}]\n", after.URL))
	if status, text := g.call("POST", "/reload", ""); status != 200 {
		t.Fatal(status, text)
	}
	if a := send(t, "GET", g.url("/"), "", "Authorization: "+header.Get("Authorization")); a.Body != "hello from the upstream" {
		t.Errorf("after the reload: %s %q", a.Status, a.Body)
	}
	talks("after")
}

// drained waits for the process to end and returns its exit status.
func (g *gateway) drained(within time.Duration) int {
	g.t.Helper()
	select {
	case <-g.ended:
	case <-time.After(within):
		g.t.Fatalf("the process did not end within %v:\n%s", within, g.log)
	}
	return g.cmd.ProcessState.ExitCode()
}

// held is an upstream whose answers to /held… begin at once and end when released;
// its other answers are immediate.
func held(t *testing.T) (app *httptest.Server, release func()) {
	t.Helper()
	gate := make(chan bool)
	var once sync.Once
	release = func() { once.Do(func() { close(gate) }) }
	sockets := echo(t)
	app = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Upgrade") != "":
			sockets.Config.Handler.ServeHTTP(w, r)
			return
		case strings.HasPrefix(r.URL.Path, "/held"):
			if r.URL.Path == "/held-body" {
				io.WriteString(w, "first half, ")
				http.NewResponseController(w).Flush()
			}
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
		io.WriteString(w, "done")
	}))
	t.Cleanup(app.Close)
	t.Cleanup(release)
	return app, release
}

func (g *gateway) phase() (status int, text string) {
	res, err := http.Get(g.admin + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	var said struct{ Status string }
	json.NewDecoder(res.Body).Decode(&said)
	return res.StatusCode, said.Status
}

// TestDrain ends a gateway with work in progress: it takes no more, finishes what
// it has, and goes.
func TestDrain(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app, release := held(t)
	g := serving(t, guarded(idp, "shutdown: {grace: 1s, drain: 30s}\nroutes: [{name: all, upstream: %q}]\n", app.URL))
	bearer := "Bearer " + idp.token(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, g.url("/socket"), &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {bearer}}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()

	type outcome struct {
		body string
		err  error
	}
	done := make(chan outcome, 20)
	kinds := []struct{ version, path, body string }{{"http/1.1", "/held", "done"}, {"h2", "/held", "done"}, {"http/1.1", "/held-body", "first half, done"}, {"h2", "/held-body", "first half, done"}}
	const each = 5
	for _, k := range kinds {
		client := speaking(t, k.version, nil)
		for range each {
			go func() {
				req, err := http.NewRequestWithContext(ctx, "GET", g.url(k.path), nil)
				if err != nil {
					done <- outcome{"", err}
					return
				}
				req.Header.Set("Authorization", bearer)
				res, err := client.Do(req)
				if err != nil {
					done <- outcome{"", err}
					return
				}
				defer res.Body.Close()
				text, err := io.ReadAll(res.Body)
				if err == nil && (res.StatusCode != 200 || string(text) != k.body) {
					err = fmt.Errorf("%s %q", res.Status, text)
				}
				done <- outcome{string(text), err}
			}()
		}
	}
	eventually(t, 10*time.Second, "all in flight", func() bool {
		return metric(t, g, "durward_inflight_requests") == float64(len(kinds)*each+1)
	})

	g.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, 10*time.Second, "not ready any more", func() bool { status, _ := g.phase(); return status != 200 })
	// Balancers need the grace to notice; until then requests are still served.
	if status, text := g.phase(); status != 503 || text != "draining" {
		t.Errorf("readyz: %d %q", status, text)
	}
	if a := send(t, "GET", g.url("/quick"), "", "Authorization: "+bearer); a.StatusCode != 200 {
		t.Errorf("during the grace: %s", a.Status)
	}
	eventually(t, 10*time.Second, "no new connections", func() bool {
		conn, err := net.Dial("tcp", g.public[0])
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if status, text := g.phase(); status != 503 || text != "draining" {
		t.Errorf("readyz while it drains: %d %q", status, text)
	}
	if err := conn.Write(ctx, websocket.MessageText, []byte("still there?")); err != nil {
		t.Error(err)
	}
	if _, back, err := conn.Read(ctx); err != nil || string(back) != "still there?" {
		t.Errorf("the WebSocket: %q %v", back, err)
	}
	release()
	for range len(kinds) * each {
		if o := <-done; o.err != nil {
			t.Errorf("a request in flight: %v", o.err)
		}
	}
	select {
	case <-g.ended:
		t.Error("the process ended under an open WebSocket")
	default:
	}
	conn.Close(websocket.StatusNormalClosure, "")
	if status := g.drained(10 * time.Second); status != 0 {
		t.Errorf("exit status %d:\n%s", status, g.log)
	}
	if n := len(g.log.lines("requests were cut at the end")); n != 0 {
		t.Errorf("something was cut:\n%s", g.log)
	}
}

// TestDrainDeadline ends a gateway whose work does not end by itself.
func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app, _ := held(t)
	g := serving(t, guarded(idp, "shutdown: {grace: 0s, drain: 500ms}\nroutes: [{name: open, path: /held-body, upstream: %[1]q, auth: none}, {name: all, upstream: %[1]q}]\n", app.URL))
	raw := idp.token(nil)
	conn, _, err := websocket.Dial(t.Context(), g.url("/socket"), &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + raw}}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	cut := make(chan error, 2)
	for _, credential := range []string{"", "Authorization: Bearer " + raw + "\r\n"} { // with a token and without
		held, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		held.SetDeadline(time.Now().Add(20 * time.Second))
		path := map[bool]string{true: "/held-body", false: "/held"}[credential == ""]
		fmt.Fprintf(held, "GET %s HTTP/1.1\r\nHost: app.test\r\n%s\r\n", path, credential)
		go func() {
			res, err := http.ReadResponse(bufio.NewReader(held), nil)
			if err == nil {
				_, err = io.ReadAll(res.Body)
				if err == nil && res.StatusCode == 200 {
					cut <- errors.New("it ended as if it were complete")
					return
				}
			}
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				cut <- err
				return
			}
			cut <- nil
		}()
	}
	eventually(t, 10*time.Second, "all in flight", func() bool { return metric(t, g, "durward_inflight_requests") == 3 })
	g.cmd.Process.Signal(syscall.SIGTERM)
	if status := g.drained(10 * time.Second); status != 0 {
		t.Errorf("exit status %d:\n%s", status, g.log)
	}
	for range 2 {
		if err := <-cut; err != nil {
			t.Errorf("a request that was cut: %v", err)
		}
	}
	if _, _, err := conn.Read(t.Context()); err == nil {
		t.Error("the WebSocket lives on")
	}
	if n := len(g.log.lines("requests were cut at the end")); n != 1 {
		t.Errorf("the cut is not in the log:\n%s", g.log)
	}
	if n := len(g.log.lines("request")); n != 3 {
		t.Errorf("%d records of three requests:\n%s", n, g.log)
	}
}

// TestSecondSignal ends a draining gateway at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app, _ := held(t)
	for _, first := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		g := serving(t, guarded(idp, "shutdown: {grace: 0s, drain: 5m}\nroutes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
		conn, err := net.Dial("tcp", g.public[0])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET /held HTTP/1.1\r\nHost: app.test\r\n\r\n")
		eventually(t, 10*time.Second, "in flight", func() bool { return metric(t, g, "durward_inflight_requests") == 1 })
		g.cmd.Process.Signal(first)
		eventually(t, 10*time.Second, "draining", func() bool { _, text := g.phase(); return text == "draining" })
		eventually(t, 5*time.Second, "the end", func() bool {
			g.cmd.Process.Signal(syscall.SIGTERM) // one sent at the very moment of the first counts as the same
			select {
			case <-g.ended:
				return true
			default:
				return false
			}
		})
		if g.cmd.ProcessState.ExitCode() == 0 {
			t.Error("a process that was made to end without finishing says that all is well")
		}
	}
	// Without work in progress the first is enough.
	g := serving(t, guarded(idp, "shutdown: {grace: 0s, drain: 5m}\nroutes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	send(t, "GET", g.url("/"), "")
	g.cmd.Process.Signal(syscall.SIGTERM)
	if status := g.drained(10 * time.Second); status != 0 {
		t.Errorf("idle: exit status %d:\n%s", status, g.log)
	}
}
