package test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCertificateReplaced replaces the certificate under a running gateway, also
// by files that are no good.
func TestCertificateReplaced(t *testing.T) {
	t.Parallel()
	idp, app, ca := newIssuer(t), newUpstream(t), newAuthority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	ca.issue(t, 1, cert, key)
	g := serving(t, guarded(idp, "tls: {cert_file: %q, key_file: %q}\nroutes: [{name: all, upstream: %q, auth: none}]\n", cert, key, app.URL))
	serial := func() int64 {
		t.Helper()
		conn, err := tls.Dial("tcp", g.public[0], &tls.Config{RootCAs: ca.pool()})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	get := func(client *http.Client) {
		t.Helper()
		res, err := client.Get("https://" + g.public[0] + "/")
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != 200 {
			t.Error(res.Status)
		}
	}
	if n := serial(); n != 1 {
		t.Fatalf("certificate %d at the start", n)
	}
	open := speaking(t, "http/1.1", ca)
	get(open)

	ca.issue(t, 2, cert, key)
	eventually(t, 10*time.Second, "the second certificate", func() bool { return serial() == 2 })
	get(open) // a connection from before goes on

	if err := os.WriteFile(cert, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the complaint", func() bool {
		return len(g.log.lines("the new TLS certificate cannot be used; the old one stays")) > 0
	})
	if n := serial(); n != 2 {
		t.Errorf("certificate %d while the file is broken", n)
	}
	ca.issue(t, 3, cert, key)
	eventually(t, 10*time.Second, "the third certificate", func() bool { return serial() == 3 })
	get(open)
	if n := len(g.log.lines("the new TLS certificate cannot be used; the old one stays")); n != 1 {
		t.Errorf("%d complaints about one broken file", n)
	}
}

// throughSocket is a client whose connections all lead to a unix socket.
func throughSocket(t *testing.T, path string) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// TestListeners listens in several places at once: TLS is for the network, a
// socket is plain.
func TestListeners(t *testing.T) {
	t.Parallel()
	idp, app, ca := newIssuer(t), newUpstream(t), newAuthority(t)
	cert, key := ca.pair(t)
	socket := filepath.Join(shortDir(t), "front.sock")
	config := strings.Replace(guarded(idp, "tls: {cert_file: %q, key_file: %q}\nroutes: [{name: all, upstream: %q}]\n", cert, key, app.URL),
		"127.0.0.1:0", fmt.Sprintf("[\"127.0.0.1:0\", \"unix:%s\", \"localhost:0\"]", socket), 1)

	// What a process that died left behind.
	stale, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()

	g := serving(t, config)
	if len(g.public) != 3 || g.public[1] != socket {
		t.Fatalf("it listens on %v", g.public)
	}
	raw := idp.token(nil)
	check := func(name string, client *http.Client, url, proto string) {
		t.Helper()
		for token, want := range map[string]int{raw: 200, "": 401} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			res, err := client.Do(req)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s: %s, want %d", name, res.Status, want)
			}
		}
		if got := app.last(t).Header.Get("X-Forwarded-Proto"); got != proto {
			t.Errorf("%s: X-Forwarded-Proto %q", name, got)
		}
	}
	all := func() {
		t.Helper()
		check("first", speaking(t, "h2", ca), "https://"+g.public[0], "https")
		check("socket", throughSocket(t, socket), "http://app.test", "http")
		check("third", speaking(t, "http/1.1", ca), "https://"+g.public[2], "https")
	}
	all()

	// The socket of a living process is not taken over.
	rival := filepath.Join(t.TempDir(), "rival.yaml")
	if err := os.WriteFile(rival, []byte("admin: 127.0.0.1:0\n"+config), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := durward(t, "serve", "-config", rival); status != 1 || !strings.Contains(stderr, "another process listens on the socket") {
		t.Errorf("a rival: status %d, %s", status, stderr)
	}
	all()

	g.kill()
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("a killed process cannot have removed its socket: %v", err)
	}
	g.start()
	g.waitReady()
	all()
	g.stop()
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left behind by an orderly end")
	}

	// What is not a socket is not removed.
	if err := os.WriteFile(socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := durward(t, "serve", "-config", g.config); status != 1 || !strings.Contains(stderr, "listen on unix:"+socket) {
		t.Errorf("a file in the way: status %d, %s", status, stderr)
	}
	if text, err := os.ReadFile(socket); string(text) != "precious" {
		t.Errorf("the file in the way: %q %v", text, err)
	}
}

// TestListenerInUse refuses to start without all of its addresses.
func TestListenerInUse(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	taken := strings.TrimPrefix(app.URL, "http://")
	for key, config := range map[string]string{
		"listen on " + taken: strings.Replace(guarded(idp, "admin: 127.0.0.1:0\nroutes: [{name: all, upstream: %q}]\n", app.URL), "127.0.0.1:0", "[\"127.0.0.1:0\", \""+taken+"\"]", 1),
		"admin: listen on":   guarded(idp, "admin: %s\nroutes: [{name: all, upstream: %q}]\n", taken, app.URL),
		"health: listen on":  guarded(idp, "admin: 127.0.0.1:0\nhealth: %s\nroutes: [{name: all, upstream: %q}]\n", taken, app.URL),
	} {
		file := filepath.Join(t.TempDir(), "durward.yaml")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, _, stderr := durward(t, "serve", "-config", file); status != 1 || !strings.Contains(stderr, key) || strings.Contains(stderr, "the gateway serves") {
			t.Errorf("%s: status %d, %s", key, status, stderr)
		}
	}
}

// TestOddMethods covers the requests that are none for an application.
func TestOddMethods(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	for _, c := range []struct {
		line   string
		status int // 0: refused by net/http with 400, before any decision
	}{
		{"OPTIONS / HTTP/1.1", 200},
		{"OPTIONS * HTTP/1.1", 400},
		{"GET * HTTP/1.1", 400},
		{"CONNECT app.test:443 HTTP/1.1", 400},
		{"CONNECT / HTTP/1.1", 400},
		{"TRACE / HTTP/1.1", 400},
		{"TRACK / HTTP/1.1", 400},
		{"PRI / HTTP/1.1", 400},
		{"get / HTTP/1.1", 400},
		{"GET / HTTP/1.1", 200},
		{"DELETE / HTTP/1.1", 200},
		{"PATCH / HTTP/1.1", 200},
		{"G\x00T / HTTP/1.1", 0},
		{"GET / HTTP/3.0", 0},
	} {
		before := len(app.requests())
		a := exchange(t, "tcp", g.public[0], strings.Fields(c.line)[0], c.line+"\r\nHost: app.test\r\n\r\n")
		switch {
		case c.status == 200 && (a.StatusCode != 200 || len(app.requests()) != before+1):
			t.Errorf("%q: %s %s", c.line, a.Status, a.reason())
		case c.status == 400 && (a.StatusCode != 400 || a.reason() != "ambiguous_request"):
			t.Errorf("%q: %s %s, want 400", c.line, a.Status, a.reason())
		case c.status == 0 && a.StatusCode/100 == 2:
			t.Errorf("%q: %s", c.line, a.Status)
		}
		if c.status != 200 && len(app.requests()) != before {
			t.Errorf("%q reached the upstream", c.line)
		}
	}
}

// TestOperatorsInterface covers who may ask the admin interface what.
func TestOperatorsInterface(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, "health: 127.0.0.1:0\nroutes: [{name: all, upstream: %q}]\n", app.URL))
	token := "Authorization: Bearer " + g.adminToken()
	info, err := os.Stat(filepath.Join(g.dir, "durward-state", "admin.token"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v %v", info.Mode(), err)
	}
	open := map[string]string{"/healthz": "ok", "/readyz": `"status": "ready"`, "/metrics": "durward_build_info", "/status": `"generation": 1`}
	for path, text := range open {
		for _, headers := range [][]string{nil, {token}, {"Authorization: Bearer wrong"}} {
			if a := send(t, "GET", g.admin+path, "", headers...); a.StatusCode != 200 || !strings.Contains(a.Body, text) {
				t.Errorf("%s: %s %.200s", path, a.Status, a.Body)
			}
		}
		if a := send(t, "POST", g.admin+path, "", token); a.StatusCode == 200 {
			t.Errorf("POST %s: %s", path, a.Status)
		}
	}
	address := strings.TrimPrefix(g.admin, "http://")
	_, port, _ := net.SplitHostPort(address)
	for _, c := range []struct {
		method, path, body string
		allowed            int // status with the token
	}{
		{"POST", "/reload", "", 200},
		{"POST", "/revocations", `{"jti":"x"}`, 200},
		{"GET", "/revocations/check?jti=x", "", 200},
		{"POST", "/explain", `{"method":"GET","url":"http://app.test/"}`, 200},
		{"GET", "/debug/pprof/", "", 200},
		{"GET", "/debug/pprof/cmdline", "", 200},
		{"GET", "/nothing", "", 404},
		{"GET", "/", "", 404},
		{"GET", "/reload", "", 405},
		{"DELETE", "/revocations", "", 405},
	} {
		name := c.method + " " + c.path
		for _, headers := range [][]string{nil, {"Authorization: Bearer"}, {"Authorization: Bearer "}, {"Authorization: Bearer wrong"}, {"Authorization: " + strings.TrimPrefix(token, "Authorization: Bearer ")}, {"Authorization: Bearer " + idp.token(nil)}} {
			if a := send(t, c.method, g.admin+c.path, c.body, headers...); a.StatusCode != 401 || a.Header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("%s with %.40q: %s", name, headers, a.Status)
			}
		}
		for _, headers := range [][]string{{"Host: evil.example"}, {"Host: evil.example:" + port}, {"Host: 127.0.0.1.evil.example"}, {"Origin: https://evil.example"}, {"Origin: null"}, {"Origin: http://localhost:1"},
			{"Sec-Fetch-Site: cross-site"}, {"Sec-Fetch-Site: same-site"}} {
			if a := send(t, c.method, g.admin+c.path, c.body, append(headers, token)...); a.StatusCode != 403 {
				t.Errorf("%s with %q: %s, want 403", name, headers, a.Status)
			}
		}
		for _, headers := range [][]string{nil, {"Host: localhost:" + port}, {"Host: LOCALHOST"}, {"Host: [::1]:" + port}, {"Origin: " + g.admin}, {"Sec-Fetch-Site: same-origin"}, {"Sec-Fetch-Site: none"}} {
			if a := send(t, c.method, g.admin+c.path, c.body, append(headers, token)...); a.StatusCode != c.allowed {
				t.Errorf("%s with %q: %s, want %d; %s", name, headers, a.Status, c.allowed, a.Body)
			}
		}
	}
	for path := range open { // nor are pages of other sites told how the gateway fares
		if a := send(t, "GET", g.admin+path, "", "Host: evil.example"); a.StatusCode != 403 {
			t.Errorf("%s for evil.example: %s", path, a.Status)
		}
	}
	if a := send(t, "POST", g.url("/reload"), "", token); a.StatusCode != 401 || a.reason() != "token_malformed" {
		t.Errorf("the admin token on the public listener: %s %s", a.Status, a.reason())
	}

	health := "http://" + g.log.lines("the gateway serves")[0]["health"].(string)
	for path, text := range open {
		a := send(t, "GET", health+path, "", "Host: whatever.example")
		if path == "/status" {
			if a.StatusCode != 404 {
				t.Errorf("health: %s: %s", path, a.Status)
			}
			continue
		}
		if a.StatusCode != 200 || !strings.Contains(a.Body, text) {
			t.Errorf("health: %s: %s", path, a.Status)
		}
	}
	for _, path := range []string{"/reload", "/revocations", "/explain", "/debug/pprof/", "/"} {
		if a := send(t, "POST", health+path, "{}", token); a.StatusCode != 404 {
			t.Errorf("health: POST %s: %s", path, a.Status)
		}
	}
}

// TestNotReady names what is missing.
func TestNotReady(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	idp.down.Store(true)
	g := startGateway(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	a := send(t, "GET", g.admin+"/readyz", "")
	var said struct {
		Status  string
		Issuers []struct {
			Name  string
			Ready bool
		}
	}
	if err := json.Unmarshal([]byte(a.Body), &said); err != nil || a.StatusCode != 503 || said.Status != "not ready" || len(said.Issuers) != 1 || said.Issuers[0].Name != "corp" || said.Issuers[0].Ready {
		t.Errorf("%s %s %v", a.Status, a.Body, err)
	}
	if a := send(t, "GET", g.admin+"/healthz", ""); a.StatusCode != 200 {
		t.Errorf("it lives: %s", a.Status)
	}
	if a := send(t, "GET", g.url("/"), ""); a.StatusCode != 200 {
		t.Errorf("an open route: %s", a.Status)
	}
	idp.down.Store(false)
	g.waitReady()
	idp.down.Store(true) // it latches
	if a := send(t, "GET", g.admin+"/readyz", ""); a.StatusCode != 200 {
		t.Errorf("later: %s", a.Status)
	}
}

// TestDeafClients: whoever asks the health listener or a hub and reads nothing is
// left after a while.
func TestDeafClients(t *testing.T) {
	t.Parallel()
	health, hub := freeAddress(t), freeAddress(t)
	tokenFile := filepath.Join(t.TempDir(), "hub.token")
	if err := os.WriteFile(tokenFile, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	serving(t, guarded(newIssuer(t), "health: %s\ndenylist: {serve_feed: {listen: %s, token_file: %q}}\nroutes: [{name: all, upstream: %q}]\n", health, hub, tokenFile, newUpstream(t).URL))
	revocation := `{"jti":"some"}`
	admin := freeAddress(t)
	serving(t, guarded(newIssuer(t), "admin: %s\nroutes: [{name: all, upstream: %q}]\n", admin, newUpstream(t).URL))
	for _, c := range []struct{ address, line, body string }{
		{admin, "GET /metrics", ""},
		{health, "GET /healthz", ""},
		{hub, "GET /revlog/v1/head", ""},
		{hub, "POST /revlog/v1/revocations", revocation},
	} {
		t.Run(c.line, func(t *testing.T) {
			t.Parallel()
			address := c.address
			request := fmt.Sprintf("%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer secret\r\nContent-Length: %d\r\n\r\n%s", c.line, address, len(c.body), c.body)
			if status, _ := rawSend(t, address, request); status != 200 {
				t.Fatalf("status %d", status)
			}
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			for err == nil {
				_, err = io.WriteString(conn, strings.Repeat(request, 1000))
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection was kept for a minute")
			}
		})
	}
}
