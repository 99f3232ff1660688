package test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// guarded is a configuration with one listener and this one issuer; the rest is
// as given.
func guarded(idp *issuer, rest string, args ...any) string {
	return fmt.Sprintf("listen: 127.0.0.1:0\nissuers: [{name: corp, issuer: %q, audiences: [app]}]\n", idp.URL) + fmt.Sprintf(rest, args...)
}

// serving starts a gateway with this configuration and waits until it is ready.
func serving(t testing.TB, config string) *gateway {
	t.Helper()
	g := startGateway(t, config)
	g.waitReady()
	return g
}

// exchange sends literal bytes over a connection of its own and reads one
// response to a request with this method.
func exchange(t *testing.T, network, address, method, text string) answer {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, bufio.NewReader(conn), method)
}

func readAnswer(t *testing.T, from *bufio.Reader, method string) answer {
	t.Helper()
	res, err := http.ReadResponse(from, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res, string(body)}
}

// soleRecord waits for the record of the request with this path, then makes sure
// that there is no second one.
func (g *gateway) soleRecord(path string) map[string]any {
	g.t.Helper()
	of := func(path string) (found []map[string]any) {
		for _, line := range g.log.lines("request") {
			if rec := line["decision"].(map[string]any); rec["path"] == path {
				found = append(found, rec)
			}
		}
		return found
	}
	eventually(g.t, 10*time.Second, "a record of "+path, func() bool { return len(of(path)) > 0 })
	// A record that follows shows that whatever precedes it was written.
	after := fmt.Sprintf("/.durward/nothing-%d", jtis.Add(1))
	for _, address := range g.public {
		if conn, err := net.Dial("tcp", address); err == nil && g.plain() {
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n", after)
			io.Copy(io.Discard, conn)
			conn.Close()
			eventually(g.t, 10*time.Second, "the record that follows", func() bool { return len(of(after)) > 0 })
			break
		}
	}
	found := of(path)
	if len(found) != 1 {
		g.t.Errorf("%d records of %s, want one: %v", len(found), path, found)
	}
	return found[0]
}

// plain tells whether the listeners speak without TLS.
func (g *gateway) plain() bool {
	text, err := os.ReadFile(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	return !strings.Contains(string(text), "\ntls:")
}

// An authority issues certificates for 127.0.0.1, ::1 and localhost.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate, PEM
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// issue writes a certificate and its key over these files.
func (a *authority) issue(t *testing.T, serial int64, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", pkcs8(t, key))
}

// pair issues a certificate into a folder of its own.
func (a *authority) pair(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	a.issue(t, time.Now().UnixNano(), certFile, keyFile)
	return certFile, keyFile
}

// certificate is a fresh key pair for a server in this process.
func (a *authority) certificate(t *testing.T) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(a.pair(t))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	tmp := file + ".new"
	if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, file); err != nil {
		t.Fatal(err)
	}
}

// speaking is a client of its own that speaks one version of HTTP: "http/1.1" or
// "h2", over TLS if an authority is given, else in the clear (for h2 with prior
// knowledge, RFC 9113 section 3.3).
func speaking(t *testing.T, version string, a *authority) *http.Client {
	t.Helper()
	transport := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(version == "http/1.1")
	transport.Protocols.SetHTTP2(version == "h2" && a != nil)
	transport.Protocols.SetUnencryptedHTTP2(version == "h2" && a == nil)
	if a != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: a.pool()}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// recorded is an upstream like newUpstream's, not yet started.
func recorded(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		u.mu.Lock()
		u.seen = append(u.seen, seen{r, body})
		u.mu.Unlock()
		io.WriteString(w, "hello from the upstream")
	}))
	t.Cleanup(u.Close)
	return u
}

// TestUpstreamKinds forwards to every kind of upstream, and to those that must
// not be believed.
func TestUpstreamKinds(t *testing.T) {
	t.Parallel()
	idp, ca, foreign := newIssuer(t), newAuthority(t), newAuthority(t)

	plain := newUpstream(t)
	secure := recorded(t)
	secure.EnableHTTP2 = true
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{ca.certificate(t)}, ClientCAs: ca.pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	secure.StartTLS()
	h2c := recorded(t)
	h2c.Config.Protocols = new(http.Protocols)
	h2c.Config.Protocols.SetUnencryptedHTTP2(true)
	h2c.Start()
	socket := recorded(t)
	path := filepath.Join(shortDir(t), "app.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	socket.Listener.Close()
	socket.Listener = listener
	socket.Start()

	cert, key := ca.pair(t)
	strangersCert, strangersKey := foreign.pair(t)
	g := serving(t, guarded(idp, `
upstreams:
  http: {url: %[1]q}
  https: {url: %[2]q, tls: {ca_file: %[4]q, cert_file: %[5]q, key_file: %[6]q}}
  h2c: {url: %[3]q}
  unix: {url: "unix:%[7]s"}
  stranger: {url: %[2]q, tls: {ca_file: %[4]q, cert_file: %[8]q, key_file: %[9]q}}
  no-client-cert: {url: %[2]q, tls: {ca_file: %[4]q}}
  wrong-ca: {url: %[2]q, tls: {ca_file: %[10]q, cert_file: %[5]q, key_file: %[6]q}}
  system-ca: {url: %[2]q, tls: {cert_file: %[5]q, key_file: %[6]q}}
  plain-to-tls: {url: "http://%[11]s"}
routes:
  - {name: http, path: /http, upstream: http}
  - {name: https, path: /https, upstream: https}
  - {name: h2c, path: /h2c, upstream: h2c}
  - {name: unix, path: /unix, upstream: unix}
  - {name: stranger, path: /stranger, upstream: stranger}
  - {name: no-client-cert, path: /no-client-cert, upstream: no-client-cert}
  - {name: wrong-ca, path: /wrong-ca, upstream: wrong-ca}
  - {name: system-ca, path: /system-ca, upstream: system-ca}
`, plain.URL, secure.URL, strings.Replace(h2c.URL, "http:", "h2c:", 1), ca.file, cert, key, path, strangersCert, strangersKey, foreign.file, secure.Listener.Addr()))

	bearer := "Authorization: Bearer " + idp.token(nil)
	for _, c := range []struct {
		path  string
		app   *upstream
		proto string // what the upstream was spoken to with
	}{
		{"/http", plain, "HTTP/1.1"},
		{"/https", secure, "HTTP/2.0"},
		{"/h2c", h2c, "HTTP/2.0"},
		{"/unix", socket, "HTTP/1.1"},
	} {
		a := send(t, "POST", g.url(c.path)+"?q=1", "a body", bearer)
		if a.StatusCode != 200 || a.Body != "hello from the upstream" {
			t.Errorf("%s: %s %s %q", c.path, a.Status, a.reason(), a.Body)
			continue
		}
		got := c.app.last(t)
		if got.Proto != c.proto || got.RequestURI != c.path+"?q=1" || string(got.Body) != "a body" || got.Host != g.public[0] || got.Header.Get("X-Forwarded-User") != "alice" {
			t.Errorf("%s: the upstream received %s %s, host %s, body %q, %v", c.path, got.Proto, got.RequestURI, got.Host, got.Body, got.Header)
		}
	}
	for _, path := range []string{"/stranger", "/no-client-cert", "/wrong-ca", "/system-ca"} {
		if a := send(t, "GET", g.url(path), "", bearer); a.StatusCode != 502 || a.reason() != "upstream_unreachable" {
			t.Errorf("%s: %s %s, want 502", path, a.Status, a.reason())
		}
	}
	if n := len(secure.requests()); n != 1 {
		t.Errorf("the TLS upstream received %d requests, want the one that was convincing", n)
	}
}

// shortDir is a folder whose path leaves room for a socket's name: unix(7) allows
// 108 bytes, and the name of a test can be long.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestHostForwarded covers what the upstream reads as Host.
func TestHostForwarded(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	own := strings.TrimPrefix(app.URL, "http://")
	g := serving(t, guarded(idp, `
upstreams:
  default: {url: %[1]q}
  preserve: {url: %[1]q, host: preserve}
  upstream: {url: %[1]q, host: upstream}
  literal: {url: %[1]q, host: legacy.internal:8080}
routes:
  - {name: a, path: /default, upstream: default, auth: none}
  - {name: b, path: /preserve, upstream: preserve, auth: none}
  - {name: c, path: /upstream, upstream: upstream, auth: none}
  - {name: d, path: /literal, upstream: literal, auth: none}
`, app.URL))
	for _, c := range []struct{ path, sent, host, forwarded string }{
		{"/default", "Shop.Example.COM.", "shop.example.com", "shop.example.com"},
		{"/preserve", "shop.example.com:8443", "shop.example.com:8443", "shop.example.com:8443"},
		{"/preserve", "[::1]:80", "[::1]:80", "[::1]:80"},
		{"/upstream", "shop.example.com", own, "shop.example.com"},
		{"/literal", "shop.example.com", "legacy.internal:8080", "shop.example.com"},
	} {
		if a := send(t, "GET", g.url(c.path), "", "Host: "+c.sent, "X-Forwarded-Host: evil.example"); a.StatusCode != 200 {
			t.Errorf("%s, host %s: %s %s", c.path, c.sent, a.Status, a.reason())
			continue
		}
		got := app.last(t)
		if got.Host != c.host || got.Header.Get("X-Forwarded-Host") != c.forwarded {
			t.Errorf("%s, host %s: the upstream read host %q and X-Forwarded-Host %q", c.path, c.sent, got.Host, got.Header["X-Forwarded-Host"])
		}
	}
}

// TestForwardedHeaders covers what a gateway believes of the proxies in front of
// it, and what it tells its upstream: never more than somebody trusted vouches for.
func TestForwardedHeaders(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	socket := filepath.Join(shortDir(t), "front.sock")
	const routes = `
routes:
  - {name: one, host: one.test, upstream: %[1]q, auth: none}
  - {name: two, host: two.test, upstream: %[1]q, auth: none}
`
	gateways := map[string]*gateway{
		"nobody":  serving(t, guarded(idp, routes, app.URL)),
		"proxies": serving(t, guarded(idp, "trusted_proxies: [127.0.0.0/8, 10.0.0.0/8, \"2001:db8::/32\"]"+routes, app.URL)),
		"host":    serving(t, guarded(idp, "trusted_proxies: [127.0.0.1]\nforwarded_host: true"+routes, app.URL)),
		"unix":    serving(t, strings.Replace(guarded(idp, "trusted_proxies: [unix]"+routes, app.URL), "127.0.0.1:0", "unix:"+socket, 1)),
		"socket":  serving(t, strings.Replace(guarded(idp, routes, app.URL), "127.0.0.1:0", "unix:"+socket+"2", 1)),
	}
	for _, c := range []struct {
		trusting string
		headers  string // sent, "|" between the lines
		client   string // in the record
		chain    string // X-Forwarded-For; "" for none
		proto    string
		host     string
		refused  bool // 400
	}{
		{"nobody", "", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"nobody", "X-Forwarded-For: 203.0.113.9", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"nobody", "X-Forwarded-Proto: https|X-Forwarded-Host: two.test", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"nobody", "X-Forwarded-Proto: gopher|X-Forwarded-Proto: https", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"nobody", "X-Real-IP: 203.0.113.9|Forwarded: for=203.0.113.9|X_Forwarded_For: 203.0.113.9", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"proxies", "", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: 203.0.113.9", "203.0.113.9", "203.0.113.9, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: 203.0.113.9:4711", "203.0.113.9", "203.0.113.9, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: 2001:db8::7, 2001:db9::1, 10.1.1.1", "2001:db9::1", "2001:db9::1, 10.1.1.1, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.1.1", "203.0.113.9", "203.0.113.9, 10.1.1.1, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: 6.6.6.6|X-Forwarded-For: 203.0.113.9|X-Forwarded-For: 10.1.1.1", "203.0.113.9", "203.0.113.9, 10.1.1.1, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: 10.9.9.9, 203.0.113.9", "203.0.113.9", "203.0.113.9, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: 203.0.113.9, unknown, 10.1.1.1", "10.1.1.1", "10.1.1.1, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: <script>", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-For: ::ffff:203.0.113.9", "203.0.113.9", "203.0.113.9, 127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-Proto: https", "127.0.0.1", "127.0.0.1", "https", "one.test", false},
		{"proxies", "X-Forwarded-Proto: http", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"proxies", "X-Forwarded-Proto: gopher", "", "", "", "", true},
		{"proxies", "X-Forwarded-Proto: https|X-Forwarded-Proto: http", "", "", "", "", true},
		{"proxies", "X-Forwarded-Host: two.test", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"host", "X-Forwarded-Host: two.test", "127.0.0.1", "127.0.0.1", "http", "two.test", false},
		{"host", "", "127.0.0.1", "127.0.0.1", "http", "one.test", false},
		{"host", "X-Forwarded-Host: two.test, one.test", "", "", "", "", true},
		{"host", "X-Forwarded-Host: two.test|X-Forwarded-Host: one.test", "", "", "", "", true},
		{"host", "X-Forwarded-Host: two.test/evil", "", "", "", "", true},
		{"unix", "", "", "", "http", "one.test", false},
		{"unix", "X-Forwarded-For: 6.6.6.6, 203.0.113.9|X-Forwarded-Proto: https", "203.0.113.9", "203.0.113.9", "https", "one.test", false},
		{"socket", "X-Forwarded-For: 203.0.113.9|X-Forwarded-Proto: https", "", "", "http", "one.test", false},
	} {
		g := gateways[c.trusting]
		network := "tcp"
		if c.trusting == "unix" || c.trusting == "socket" {
			network = "unix"
		}
		path := fmt.Sprintf("/%d", jtis.Add(1))
		name := c.trusting + " " + c.headers
		lines := ""
		if c.headers != "" {
			lines = strings.ReplaceAll(c.headers, "|", "\r\n") + "\r\n"
		}
		before := len(app.requests())
		a := exchange(t, network, g.public[0], "GET", "GET "+path+" HTTP/1.1\r\nHost: one.test\r\n"+lines+"\r\n")
		if c.refused {
			if a.StatusCode != 400 || a.reason() != "ambiguous_request" || len(app.requests()) != before {
				t.Errorf("%s: %s %s, want 400", name, a.Status, a.reason())
			}
			continue
		}
		if a.StatusCode != 200 {
			t.Errorf("%s: %s %s", name, a.Status, a.reason())
			continue
		}
		got := app.last(t).Header
		if s := strings.Join(got["X-Forwarded-For"], " and "); s != c.chain {
			t.Errorf("%s: X-Forwarded-For %q, want %q", name, s, c.chain)
		}
		if s := strings.Join(got["X-Forwarded-Proto"], " and "); s != c.proto {
			t.Errorf("%s: X-Forwarded-Proto %q, want %q", name, s, c.proto)
		}
		if s := strings.Join(got["X-Forwarded-Host"], " and "); s != c.host || app.last(t).Host != c.host {
			t.Errorf("%s: X-Forwarded-Host %q, Host %q, want %q", name, s, app.last(t).Host, c.host)
		}
		for _, forged := range []string{"X-Real-Ip", "Forwarded", "X_forwarded_for"} {
			if got[forged] != nil {
				t.Errorf("%s: the upstream received %s: %q", name, forged, got[forged])
			}
		}
		if rec := g.soleRecord(path); fmt.Sprint(rec["client"]) != c.client && (rec["client"] != nil || c.client != "") {
			t.Errorf("%s: the record names the client %v, want %q", name, rec["client"], c.client)
		}
	}
}

// TestRequestID covers who may name a request.
func TestRequestID(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	const route = "\nroutes: [{name: all, upstream: %q, auth: none}]\n"
	trusting := serving(t, guarded(idp, "trusted_proxies: [127.0.0.1]"+route, app.URL))
	other := serving(t, guarded(idp, route, app.URL))
	for _, c := range []struct {
		g    *gateway
		sent string
		kept bool
	}{
		{trusting, "req-1.a_B", true},
		{trusting, "", false},
		{trusting, "two words", false},
		{trusting, strings.Repeat("x", 129), false},
		{other, "req-1.a_B", false},
	} {
		send(t, "GET", c.g.url("/"), "", "X-Request-Id: "+c.sent)
		if got := app.last(t).Header["X-Request-Id"]; len(got) != 1 || got[0] == "" || (got[0] == c.sent) != c.kept {
			t.Errorf("sent %q: the upstream received %q; kept should be %v", c.sent, got, c.kept)
		}
	}
}

// TestTargetForwarded sends request targets that other proxies rewrite. What
// stands in a query is nobody's business; a path is forwarded as it was judged.
func TestTargetForwarded(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, `
routes:
  - {name: slashes, path: /files/, upstream: %[1]q, auth: none, encoded_slash: allow}
  - {name: all, upstream: %[1]q, auth: none}
`, app.URL))
	h2 := speaking(t, "h2", nil)
	for _, c := range []struct{ sent, want string }{ // want "": the same; "400": refused; "unparsed": refused by net/http, before any decision
		{"/", ""},
		{"/a/b", ""},
		{"/a/b/", ""},
		{"/a%20b", ""},
		{"/a+b", ""},
		{"/a;v=1/b;w=2", ""},
		{"/a=b&c=d,e", ""},
		{"/$!*'()@:", ""},
		{"/[x]", ""},
		{"/caf%C3%A9", ""},
		{"/caf%c3%a9", ""},
		{"/%E2%82%AC", ""},
		{"/%25", ""},
		{"/100%25", ""},
		{"/%3Fnot-a-query", ""},
		{"/%23not-a-fragment", ""},
		{"/%22%3C%3E", ""},
		{"/~user/-._~", ""},
		{"/%7Euser/%41%2d", "/~user/A-"}, // RFC 3986 section 6.2.2.2: nobody tells these apart
		{"/caf\xc3\xa9", "/caf%C3%A9"},
		{"/{id}|x", "/%7Bid%7D%7Cx"},
		{"/files/a%2Fb", ""},
		{"/files/a%2fb%2Fc", ""},
		{"/files/a%2Fb?c%2Fd", ""},
		{"/?", ""},
		{"/a?", ""},
		{"/a?b", ""},
		{"/a?a=1;b", ""},
		{"/a?a=1&b=2&a=3", ""},
		{"/a?%zz%", ""},
		{"/a?..%2f..%2f&x=/../", ""},
		{"/a?b?c??", ""},
		{"/a?q=%20+%2B", ""},
		{"/a?q=caf\xc3\xa9", ""},
		{"/a?q=\"<>{}|^`\\", ""},
		{"/a?=&&=", ""},
		{"/other/a%2Fb", "400"},
		{"/files/a%2F..%2Fb", "400"},
		{"/files/..%2Fb", "400"},
		{"/a//b", "400"},
		{"/a/../b", "400"},
		{"/a/%2e%2e/b", "400"},
		{"/a%5Cb", "400"},
		{"/a%00b", "400"},
		{"/%252e", "400"},
		{"/caf%E9", "400"},
		{"/a%zz", "unparsed"},
		{"/a?b#c", "400"},
		{"http://app.test/a", "400"},
	} {
		check := func(over string, a answer, before int) {
			t.Helper()
			switch {
			case c.want == "unparsed":
				if a.StatusCode != 400 || len(app.requests()) != before {
					t.Errorf("%s %q: %s, want 400", over, c.sent, a.Status)
				}
			case c.want == "400":
				if a.StatusCode != 400 || a.reason() != "ambiguous_request" || len(app.requests()) != before {
					t.Errorf("%s %q: %s %s, want 400", over, c.sent, a.Status, a.reason())
				}
			case a.StatusCode != 200:
				t.Errorf("%s %q: %s %s", over, c.sent, a.Status, a.reason())
			default:
				want := c.want
				if want == "" {
					want = c.sent
				}
				if got := app.last(t).RequestURI; got != want {
					t.Errorf("%s %q: the upstream was asked for %q, want %q", over, c.sent, got, want)
				}
			}
		}
		before := len(app.requests())
		check("HTTP/1.1", exchange(t, "tcp", g.public[0], "GET", "GET "+c.sent+" HTTP/1.1\r\nHost: app.test\r\n\r\n"), before)

		// The same over HTTP/2, where the client can say it.
		u, err := url.Parse("http://" + g.public[0] + c.sent)
		if err != nil || u.RequestURI() != c.sent {
			continue
		}
		before = len(app.requests())
		res, err := h2.Do(&http.Request{Method: "GET", URL: u, Host: "app.test"})
		if err != nil {
			t.Errorf("HTTP/2 %q: %v", c.sent, err)
			continue
		}
		res.Body.Close()
		check("HTTP/2", answer{res, ""}, before)
	}
}

// forgeries are spellings of headers by which an application might believe that
// somebody was authenticated. Every value contains "mallory".
var forgeries = []string{
	"X-Forwarded-User", "x-forwarded-user", "X_Forwarded_User", "X.Forwarded.User", "X-Forwarded_User", "X~Forwarded~User", "XForwardedUser", "X--Forwarded--User", "X-FORWARDED-USER",
	"X-Corp-Identity", "X_Corp_Identity", "x.corp.identity", "XCORPIDENTITY", "X-Corp-Identity-", "-X-Corp-Identity", "X|Corp|Identity",
	"X-Forwarded-Email", "X_forwarded_groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token", "X-Forwarded-Prefix", "X-Forwarded-Uri", "X-Forwarded-Port",
	"X-Identity-Assertion", "X_Identity_Assertion", "Durward-User", "durward_reason",
	"Remote-User", "REMOTE_USER", "X-Remote-User", "X_Remote.User", "X-User", "X.User", "x_user", "X-Auth-Request-User", "X-Auth-User", "X-Email", "X-Groups", "X-Roles",
	"X-Webauth-User", "X-Authenticated-User", "X-Authentik-Username", "X-Pomerium-Jwt-Assertion", "X-Goog-Iap-Jwt-Assertion", "X-Amzn-Oidc-Identity", "Cf-Access-Authenticated-User-Email",
	"X-Ms-Client-Principal-Name", "Tailscale-User-Login", "X-Client-Cert", "Ssl-Client-Verify", "Client-Cert",
	"X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "X-Original-Host", "X-Real-Ip", "Proxy-Authorization", "Proxy", "X-Script-Name",
}

// TestIdentityIsOurs sends forged identity in every spelling to every kind of
// route: none reaches an upstream.
func TestIdentityIsOurs(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := recorded(t)
	plain := app.Config.Handler
	app.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			plain.ServeHTTP(w, r)
			return
		}
		app.mu.Lock()
		app.seen = append(app.seen, seen{r, nil})
		app.mu.Unlock()
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		conn.Close()
	})
	app.Start()
	key := filepath.Join(t.TempDir(), "assertion.pem")
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, key, "PRIVATE KEY", pkcs8(t, private))
	g := serving(t, guarded(idp, `
identity: {headers: {X-Corp-Identity: sub}, assertion: {header: X-Identity-Assertion, key_file: %[2]q}}
routes:
  - {name: open, path: /open, upstream: %[1]q, auth: none}
  - {name: optional, path: /optional, upstream: %[1]q, auth: optional}
  - {name: shadow, path: /shadow, upstream: %[1]q, shadow: true, allow: [{scopes: [never]}]}
  - {name: preflight, path: /preflight, upstream: %[1]q, preflight: forward}
  - {name: protected, path: /protected, upstream: %[1]q}
`, app.URL, key))

	bearer := "Authorization: Bearer " + idp.token(nil) + "\r\n"
	var forged strings.Builder
	for i, name := range forgeries {
		fmt.Fprintf(&forged, "%s: mallory-%d\r\n", name, i)
	}
	const webSocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, c := range []struct {
		name, method, path, headers, body string
		user                              string // X-Corp-Identity at the upstream
	}{
		{"open", "GET", "/open", "", "", ""},
		{"open, with a token", "GET", "/open", bearer, "", ""},
		{"open, WebSocket", "GET", "/open", webSocket, "", ""},
		{"optional, without", "GET", "/optional", "", "", ""},
		{"optional, with a token", "GET", "/optional", bearer, "", "alice"},
		{"optional, WebSocket", "GET", "/optional", webSocket, "", ""},
		{"shadow", "GET", "/shadow", bearer, "", "alice"},
		{"preflight", "OPTIONS", "/preflight", "Origin: https://app.test\r\nAccess-Control-Request-Method: PUT\r\n" + bearer, "", ""},
		{"protected", "GET", "/protected", bearer, "", "alice"},
		{"protected, WebSocket", "GET", "/protected", bearer + webSocket, "", "alice"},
		{"named in Connection", "GET", "/protected", bearer + "Connection: X-Corp-Identity, X-Identity-Assertion, X-Forwarded-For, X-Request-Id\r\n", "", "alice"},
		{"trailers", "POST", "/protected", bearer + "Trailer: X-Corp-Identity, X_User\r\nTransfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\nX-Corp-Identity: mallory\r\nX_User: mallory\r\n\r\n", "alice"},
	} {
		before := len(app.requests())
		// The Trailer field itself names what is forged; it is no forgery.
		a := exchange(t, "tcp", g.public[0], c.method, c.method+" "+c.path+" HTTP/1.1\r\nHost: app.test\r\nX-Harmless: kept\r\n"+forged.String()+c.headers+"\r\n"+c.body)
		if a.StatusCode != 200 && a.StatusCode != 101 {
			t.Errorf("%s: %s %s", c.name, a.Status, a.reason())
			continue
		}
		if len(app.requests()) != before+1 {
			t.Errorf("%s: the upstream received nothing", c.name)
			continue
		}
		got := app.last(t)
		for _, h := range []http.Header{got.Header, got.Trailer} {
			for name, values := range h {
				if strings.Contains(strings.Join(values, " "), "mallory") {
					t.Errorf("%s: the upstream received %s: %q", c.name, name, values)
				}
			}
		}
		if len(got.Trailer) > 0 {
			t.Errorf("%s: the upstream received trailers %v", c.name, got.Trailer)
		}
		if got.Header.Get("X-Harmless") != "kept" {
			t.Errorf("%s: a harmless header was lost", c.name)
		}
		if user := strings.Join(got.Header["X-Corp-Identity"], " and "); user != c.user {
			t.Errorf("%s: X-Corp-Identity is %q, want %q", c.name, user, c.user)
		}
		if has := got.Header["X-Identity-Assertion"] != nil; has != (c.user != "") {
			t.Errorf("%s: assertion sent: %v", c.name, has)
		}
		if got.Header["Authorization"] != nil {
			t.Errorf("%s: the upstream received the credential", c.name)
		}
		if got.Header.Get("X-Forwarded-For") != "127.0.0.1" || got.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: X-Forwarded-For %q, X-Request-Id %q", c.name, got.Header["X-Forwarded-For"], got.Header["X-Request-Id"])
		}
	}
}

// TestIdentityValues covers how claims become header values.
func TestIdentityValues(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, `
identity: {headers: {X-Who: sub, X-Name: name, X-Groups: groups, X-Roles: {claim: realm.roles, separator: "|"}, X-Level: level, X-Staff: staff}}
routes:
  - {name: default, path: /default, upstream: %[1]q, identity: {headers: {X-Forwarded-User: sub, X-Forwarded-Email: email}}}
  - {name: all, upstream: %[1]q}
`, app.URL))
	list := func(s ...any) []any { return s }
	for _, c := range []struct {
		name   string
		claims jwt.MapClaims
		header string
		want   string // decoded; "" for absent
		plain  bool   // sent as it is
	}{
		{"ascii", jwt.MapClaims{"sub": "alice"}, "X-Who", "alice", true},
		{"blank inside", jwt.MapClaims{"name": "Alice Archer"}, "X-Name", "Alice Archer", true},
		{"other script", jwt.MapClaims{"name": "Zoë Müller"}, "X-Name", "Zoë Müller", false},
		{"long other script", jwt.MapClaims{"name": strings.Repeat("漢字", 60)}, "X-Name", strings.Repeat("漢字", 60), false},
		{"line break", jwt.MapClaims{"name": "a\r\nX-Who: admin"}, "X-Name", "a\r\nX-Who: admin", false},
		{"blank at the end", jwt.MapClaims{"name": "admin "}, "X-Name", "admin ", false},
		{"looks encoded", jwt.MapClaims{"name": "=?utf-8?q?admin?="}, "X-Name", "=?utf-8?q?admin?=", false},
		{"missing", nil, "X-Name", "", true},
		{"empty", jwt.MapClaims{"name": ""}, "X-Name", "", true},
		{"null", jwt.MapClaims{"groups": nil}, "X-Groups", "", true},
		{"number", jwt.MapClaims{"level": 7}, "X-Level", "7", true},
		{"boolean", jwt.MapClaims{"staff": true}, "X-Staff", "true", true},
		{"object", jwt.MapClaims{"staff": map[string]any{"a": 1}}, "X-Staff", "", true},
		{"array", jwt.MapClaims{"groups": list("ops", "sre")}, "X-Groups", "ops,sre", true},
		{"array of one", jwt.MapClaims{"groups": list("ops")}, "X-Groups", "ops", true},
		{"empty array", jwt.MapClaims{"groups": list()}, "X-Groups", "", true},
		{"separator in an element", jwt.MapClaims{"groups": list("ops", "a,admin", "sre")}, "X-Groups", "ops,sre", true},
		{"all elements with the separator", jwt.MapClaims{"groups": list("a,admin")}, "X-Groups", "", true},
		{"other separator", jwt.MapClaims{"realm": map[string]any{"roles": list("a,b", "c|admin", "d")}}, "X-Roles", "a,b|d", true},
		{"mixed array", jwt.MapClaims{"groups": list("ops", 7, false, nil, list("x"), "")}, "X-Groups", "ops,7,false", true},
	} {
		if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+idp.token(c.claims), "X-Groups: mallory", "X-Name: mallory", "X-Staff: mallory", "X_Level: mallory", "X.Roles: mallory"); a.StatusCode != 200 {
			t.Errorf("%s: %s %s", c.name, a.Status, a.reason())
			continue
		}
		got := app.last(t).Header
		value := strings.Join(got[c.header], " and ")
		if (got[c.header] == nil) != (c.want == "") {
			t.Errorf("%s: %s is %q, want %q", c.name, c.header, got[c.header], c.want)
			continue
		}
		decoded, err := new(mime.WordDecoder).DecodeHeader(value)
		if err != nil || decoded != c.want || (value == c.want) != c.plain {
			t.Errorf("%s: %s is %q, decoded %q, %v; want %q", c.name, c.header, value, decoded, err, c.want)
		}
	}
	// The route's own map replaces the general one, and the names of both stay protected.
	send(t, "GET", g.url("/default"), "", "Authorization: Bearer "+idp.token(jwt.MapClaims{"email": "a@example.com"}), "X-Who: mallory", "X-Name: mallory")
	got := app.last(t).Header
	if got.Get("X-Forwarded-User") != "alice" || got.Get("X-Forwarded-Email") != "a@example.com" || got["X-Who"] != nil || got["X-Name"] != nil {
		t.Errorf("override: %v", got)
	}
	if n := metric(t, g, "durward_identity_elements_omitted_total"); n != 3 {
		t.Errorf("%v elements were counted as omitted, want 3", n)
	}
}

// metric reads one unlabelled, or exactly so labelled, value of /metrics.
func metric(t testing.TB, g *gateway, name string) (value float64) {
	t.Helper()
	found := false
	for line := range strings.Lines(send(t, "GET", g.admin+"/metrics", "").Body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			found = true
			fmt.Sscan(rest, &value)
		}
	}
	if !found {
		t.Errorf("there is no metric %s", name)
	}
	return value
}

// TestAssertion verifies the signed identity as an application would: with the
// keys that the gateway publishes, and nothing else.
func TestAssertion(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"ES256": newKey("").key, "EdDSA": ed} {
		file := filepath.Join(t.TempDir(), "assertion.pem")
		writePEM(t, file, "PRIVATE KEY", pkcs8(t, key))
		g := serving(t, guarded(idp, `
identity: {assertion: {header: X-Identity-Assertion, key_file: %[2]q, ttl: 30s}}
upstreams: {legacy: {url: %[1]q}}
routes: [{name: all, upstream: legacy}]
`, app.URL, file))
		send(t, "GET", g.url("/"), "", "Authorization: Bearer "+idp.token(jwt.MapClaims{"groups": []string{"ops"}, "sid": "s1"}), "X-Identity-Assertion: mallory")
		raw := app.last(t).Header["X-Identity-Assertion"]
		if len(raw) != 1 {
			t.Fatalf("%s: the upstream received %q", name, raw)
		}
		res := send(t, "GET", g.url("/.well-known/durward/jwks.json"), "")
		var set struct{ Keys []map[string]string }
		if err := json.Unmarshal([]byte(res.Body), &set); err != nil || len(set.Keys) != 1 || res.Header.Get("Content-Type") != "application/jwk-set+json" {
			t.Fatalf("%s: key set %s %q", name, res.Body, res.Header)
		}
		if set.Keys[0]["d"] != "" {
			t.Fatalf("%s: the private key is published", name)
		}
		claims := jwt.MapClaims{}
		parser := jwt.NewParser(jwt.WithValidMethods([]string{name}), jwt.WithIssuer("durward"), jwt.WithAudience("legacy"), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
		if _, err := parser.ParseWithClaims(raw[0], claims, func(tok *jwt.Token) (any, error) {
			if tok.Header["kid"] != set.Keys[0]["kid"] {
				return nil, fmt.Errorf("kid %v is not published", tok.Header["kid"])
			}
			return publicKey(set.Keys[0])
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		iat, _ := claims.GetIssuedAt()
		exp, _ := claims.GetExpirationTime()
		if claims["sub"] != "alice" || claims["idp"] != idp.URL || claims["sid"] != "s1" || fmt.Sprint(claims["groups"]) != "[ops]" || exp.Sub(iat.Time) != 30*time.Second {
			t.Errorf("%s: claims %v", name, claims)
		}
		// What the gateway signed is not a token that it would take.
		if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+raw[0]); a.StatusCode != 401 || a.reason() != "token_issuer" {
			t.Errorf("%s: the assertion as a bearer token: %s %s", name, a.Status, a.reason())
		}
		if a := send(t, "POST", g.url("/.well-known/durward/jwks.json"), ""); a.StatusCode != 405 || a.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: POST to the key set: %s, Allow %q", name, a.Status, a.Header.Get("Allow"))
		}
	}
}

func publicKey(jwk map[string]string) (any, error) {
	x, err := base64.RawURLEncoding.DecodeString(jwk["x"])
	if err != nil || jwk["kty"] == "OKP" {
		return ed25519.PublicKey(x), err
	}
	y, err := base64.RawURLEncoding.DecodeString(jwk["y"])
	if err != nil {
		return nil, err
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
}

// TestCredentialsStay covers what an upstream may see of credentials: its own
// cookies always, the token only where it is asked for.
func TestCredentialsStay(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, `
routes:
  - {name: open, path: /open, upstream: %[1]q, auth: none}
  - {name: webhook, path: /webhook, upstream: %[1]q, auth: none, pass_authorization: true}
  - {name: token, path: /token, upstream: %[1]q, identity: {forward_token: true}}
  - {name: optional, path: /optional, upstream: %[1]q, auth: optional, identity: {forward_token: true}}
  - {name: all, upstream: %[1]q}
`, app.URL))
	raw := idp.token(nil)
	for _, c := range []struct{ path, authorization, cookie, wantAuthorization, wantCookie string }{
		{"/", "Bearer " + raw, "", "", ""},
		{"/", "Bearer " + raw, "theme=dark; lang=de", "", "theme=dark; lang=de"},
		{"/", "", "theme=dark; __Host-session=" + raw + "; lang=de", "", "theme=dark; lang=de"},
		{"/", "", "__Host-session=" + raw, "", ""},
		{"/", "Basic eDp5", "a=1; __Host-session=" + raw, "", "a=1"},
		{"/open", "Bearer " + raw, "__Host-session=" + raw + "; a=1", "", "a=1"},
		{"/open", "Basic eDp5", "__HOST-SESSION=x; a=1", "", "a=1"},
		{"/open", "", "b=2 __Host-session=x; a=1; __Host%2dsession=y; c=d,__Host-session=z; __Host-session[0]=v", "", "a=1"},
		{"/webhook", "Basic eDp5", "__Host-session=" + raw + "; a=1", "Basic eDp5", "a=1"},
		{"/token", "", "__Host-session=" + raw + "; a=1", "Bearer " + raw, "a=1"},
		{"/token", "Bearer " + raw, "", "Bearer " + raw, ""},
		{"/optional", "", "a=1", "", "a=1"},
		{"/optional", "Bearer " + raw, "a=1", "Bearer " + raw, "a=1"},
	} {
		var headers []string
		if c.authorization != "" {
			headers = append(headers, "Authorization: "+c.authorization)
		}
		if c.cookie != "" {
			headers = append(headers, "Cookie: "+c.cookie)
		}
		if a := send(t, "GET", g.url(c.path), "", headers...); a.StatusCode != 200 {
			t.Errorf("%v: %s %s", c, a.Status, a.reason())
			continue
		}
		got := app.last(t).Header
		gotCookie := strings.TrimSpace(strings.Join(got["Cookie"], " and "))
		if strings.Join(got["Authorization"], " and ") != c.wantAuthorization || gotCookie != c.wantCookie {
			t.Errorf("%s, %q, %q: the upstream received Authorization %q, Cookie %q", c.path, c.authorization, c.cookie, got["Authorization"], got["Cookie"])
		}
	}
	if strings.Contains(g.log.String(), raw) || strings.Contains(g.log.String(), raw[strings.LastIndexByte(raw, '.'):]) {
		t.Error("the token stands in the log")
	}
}

// TestUpstreamsCookies covers who may set the session cookie: the login service,
// a good one, with the gateway's attributes. Other cookies are the upstream's affair.
func TestUpstreamsCookies(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for line := range strings.Lines(string(body)) {
			w.Header().Add("Set-Cookie", strings.TrimSpace(line))
		}
		w.Header().Set("Durward-Reason", "forged")
	}))
	t.Cleanup(app.Close)
	g := serving(t, guarded(idp, `
routes:
  - {name: login, path: /login, upstream: %[1]q, auth: none, issues_session: true}
  - {name: app, path: /app, upstream: %[1]q, auth: none}
`, app.URL))
	good, expired := idp.token(nil), idp.token(jwt.MapClaims{"iat": time.Now().Add(-time.Hour).Unix(), "exp": time.Now().Add(-time.Minute).Unix()})
	revoked := idp.token(jwt.MapClaims{"jti": "gone"})
	if status, text := g.call("POST", "/revocations", `{"jti":"gone"}`); status != 200 {
		t.Fatal(status, text)
	}
	dropped := 0.0
	for _, c := range []struct{ name, path, set, want string }{
		{"another cookie", "/app", "theme=dark; Domain=example.com", "theme=dark; Domain=example.com"},
		{"the session from a stranger", "/app", "__Host-session=" + good + "; Path=/; Secure", ""},
		{"cleared by a stranger", "/app", "__Host-session=; Max-Age=0", ""},
		{"another case", "/app", "__host-Session=" + good, ""},
		{"a blank before the name", "/app", " __Host-session =" + good, ""},
		{"without a name", "/app", "=__Host-session=" + good, ""},
		{"the session from the login service", "/login", "__Host-session=" + good, "session"},
		{"with other attributes", "/login", "__Host-session=" + good + "; Domain=example.com; Path=/login; SameSite=None; Max-Age=99999999", "session"},
		{"another cookie from there", "/login", "csrf=1; Path=/login", "csrf=1; Path=/login"},
		{"no token", "/login", "__Host-session=hello", ""},
		{"an expired token", "/login", "__Host-session=" + expired, ""},
		{"a revoked token", "/login", "__Host-session=" + revoked, ""},
		{"cleared", "/login", "__Host-session=; Path=/login; Max-Age=0", "__Host-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax"},
	} {
		a := send(t, "POST", g.url(c.path), c.set)
		if a.StatusCode != 200 || a.reason() != "" {
			t.Errorf("%s: %s, Durward-Reason %q", c.name, a.Status, a.reason())
		}
		got := strings.Join(a.Header["Set-Cookie"], " and ")
		switch c.want {
		case "session":
			wantSessionCookie(t, c.name, a, good)
		default:
			if got != c.want {
				t.Errorf("%s: the client received %q, want %q", c.name, got, c.want)
			}
			if c.want == "" {
				dropped++
			}
		}
	}
	if a := send(t, "POST", g.url("/app"), "a=1\n__Host-session="+good+"\nb=2"); strings.Join(a.Header["Set-Cookie"], " and ") != "a=1 and b=2" {
		t.Errorf("between two others: %q", a.Header["Set-Cookie"])
	}
	if n := metric(t, g, "durward_session_cookies_dropped_total"); n != dropped+1 {
		t.Errorf("%v cookies were counted as dropped, want %v", n, dropped+1)
	}
}

// wantSessionCookie checks that the answer sets the session cookie to this token,
// with the attributes that the gateway promises, for as long as the token lives.
func wantSessionCookie(t *testing.T, name string, a answer, raw string) {
	t.Helper()
	lines := a.Header["Set-Cookie"]
	if len(lines) != 1 {
		t.Errorf("%s: Set-Cookie %q", name, lines)
		return
	}
	c, err := http.ParseSetCookie(lines[0])
	if err != nil || c.Name != "__Host-session" || c.Value != raw || c.Path != "/" || c.Domain != "" || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("%s: Set-Cookie %q, %v", name, lines[0], err)
		return
	}
	if c.MaxAge < 540 || c.MaxAge > 600 {
		t.Errorf("%s: Max-Age %d for a token that lives ten minutes", name, c.MaxAge)
	}
}

// TestPreflight covers CORS preflights, which carry no credential and must not
// become a way around one.
func TestPreflight(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, guarded(idp, `
routes:
  - {name: forward, path: /forward, upstream: %[1]q, preflight: forward}
  - {name: deny, path: /deny, upstream: %[1]q}
`, app.URL))
	raw := idp.token(nil)
	origin, method := "Origin: https://spa.test", "Access-Control-Request-Method: PUT"
	if a := send(t, "OPTIONS", g.url("/forward"), "a body", origin, method, "Cookie: __Host-session="+raw+"; a=1", "Authorization: Bearer "+raw); a.StatusCode != 200 {
		t.Errorf("preflight: %s %s", a.Status, a.reason())
	}
	if got := app.last(t); got.Header["Cookie"] != nil || got.Header["Authorization"] != nil || got.Header["X-Forwarded-User"] != nil || len(got.Body) != 0 || got.Header.Get("Origin") != "https://spa.test" {
		t.Errorf("preflight: the upstream received %v, body %q", got.Header, got.Body)
	}
	for name, headers := range map[string][]string{"without a method": {origin}, "without an origin": {method}} {
		if a := send(t, "OPTIONS", g.url("/forward"), "", headers...); a.StatusCode != 401 || a.reason() != "no_token" {
			t.Errorf("%s: %s %s", name, a.Status, a.reason())
		}
	}
	if a := send(t, "OPTIONS", g.url("/deny"), "", origin, method); a.StatusCode != 401 || a.reason() != "no_token" {
		t.Errorf("not asked for: %s %s", a.Status, a.reason())
	}
	if a := send(t, "PUT", g.url("/forward"), "", origin, method); a.StatusCode != 401 || a.reason() != "no_token" {
		t.Errorf("another method: %s %s", a.Status, a.reason())
	}
}

// TestUpstreamFaults covers upstreams that refuse, dawdle or break off.
func TestUpstreamFaults(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" || r.URL.Path == "/slow-body" {
			io.Copy(io.Discard, r.Body)
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		io.WriteString(w, "at last")
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(release) })
	broken := literalUpstream(t, map[string]string{
		"/short":     "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789",
		"/chunked":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n",
		"/silent":    "",
		"/half":      "HTTP/1.1 200 OK\r\nContent-Le",
		"/garbage":   "SSH-2.0-OpenSSH_9.9\r\n",
		"/endless":   "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("x", 300<<10) + "\r\n\r\n",
		"/upgrade":   "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"/zero":      "HTTP/1.1 000 None\r\nContent-Length: 0\r\n\r\n",
		"/below":     "HTTP/1.1 099 Below\r\nContent-Length: 0\r\n\r\n",
		"/above":     "HTTP/1.1 1000 Above\r\nContent-Length: 0\r\n\r\n",
		"/complete":  "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
		"/forgetful": "HTTP/1.0 200 OK\r\n\r\n0123456789",
	})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	g := serving(t, guarded(idp, `
upstreams:
  slow: {url: %q, timeout: {response_header: 200ms}}
routes:
  - {name: slow, path: /slow, upstream: slow, auth: none}
  - {name: slow body, path: /slow-body, upstream: slow, auth: none}
  - {name: fast, path: /fast, upstream: slow, auth: none}
  - {name: refused, path: /refused, upstream: "http://%s", auth: none}
  - {name: unresolved, path: /unresolved, upstream: "http://nowhere.invalid", auth: none}
  - {name: no socket, path: /no-socket, upstream: "unix:/nowhere/app.sock", auth: none}
  - {name: broken, upstream: "http://%s", auth: none}
`, slow.URL, gone.Addr(), broken))

	for _, c := range []struct {
		method, path, body string
		status             int
		reason             string
	}{
		{"GET", "/fast", "", 200, ""},
		{"GET", "/slow", "", 504, "upstream_timeout"},
		{"POST", "/slow-body", "x", 504, "upstream_timeout"},
		{"GET", "/refused", "", 502, "upstream_unreachable"},
		{"POST", "/refused", "x", 502, "upstream_unreachable"},
		{"GET", "/unresolved", "", 502, "upstream_unreachable"},
		{"GET", "/no-socket", "", 502, "upstream_unreachable"},
		{"GET", "/silent", "", 502, "upstream_unreachable"},
		{"GET", "/half", "", 502, "upstream_unreachable"},
		{"GET", "/garbage", "", 502, "upstream_unreachable"},
		{"GET", "/endless", "", 502, "upstream_unreachable"},
		{"GET", "/upgrade", "", 502, "upstream_unreachable"}, // 101 to a request that did not ask for it
		{"GET", "/zero", "", 502, "upstream_unreachable"},
		{"POST", "/zero", "x", 502, "upstream_unreachable"},
		{"GET", "/below", "", 502, "upstream_unreachable"},
		{"POST", "/below", "x", 502, "upstream_unreachable"},
		{"GET", "/above", "", 502, "upstream_unreachable"},
		{"GET", "/complete", "", 200, ""},
		{"GET", "/forgetful", "", 200, ""},
	} {
		a := send(t, c.method, g.url(c.path), c.body)
		if a.StatusCode != c.status || a.reason() != c.reason {
			t.Errorf("%s: %s %s, want %d %s", c.path, a.Status, a.reason(), c.status, c.reason)
		}
		if c.reason != "" && (a.Header.Get("Cache-Control") != "no-store" || strings.Contains(a.Body, "127.0.0.1") || strings.Contains(a.Body, "dial")) {
			t.Errorf("%s: %v %s", c.path, a.Header, a.Body)
		}
	}

	// The client has its status by then; all that can be said is that it is not the end.
	for _, version := range []string{"http/1.1", "h2"} {
		c := speaking(t, version, nil)
		for _, kind := range []string{"/short", "/chunked"} {
			path := kind + "?" + version
			res, err := c.Get(g.url(path))
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err == nil || res.StatusCode != 200 || string(body) != "0123456789" {
				t.Errorf("%s: status %d, body %q, %v; the client must see the break", path, res.StatusCode, body, err)
			}
		}
	}
	eventually(t, 10*time.Second, "the records of four responses that broke off", func() bool {
		n := 0
		for _, line := range g.log.lines("request") {
			if rec := line["decision"].(map[string]any); rec["path"] == "/short" || rec["path"] == "/chunked" {
				n++
				if rec["status"] != 200.0 || rec["bytes"] != 10.0 || rec["reason"] != "public" {
					t.Errorf("record %v", rec)
				}
			}
		}
		if n > 4 {
			t.Errorf("%d records of four requests", n)
		}
		return n >= 4
	})
	if rec := g.soleRecord("/silent"); rec["status"] != 502.0 || rec["reason"] != "upstream_unreachable" {
		t.Errorf("record %v", rec)
	}
}

// literalUpstream answers each path with these bytes and closes the connection.
func literalUpstream(t *testing.T, answers map[string]string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				io.WriteString(conn, answers[r.URL.Path])
			}()
		}
	}()
	return listener.Addr().String()
}

// TestClientGone covers clients that do not wait for the answer.
func TestClientGone(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	arrived, cancelled := make(chan string, 8), make(chan string, 8)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path
		switch {
		case strings.HasPrefix(name, "/upload"):
			io.ReadFull(r.Body, make([]byte, 1))
			arrived <- name
			io.Copy(io.Discard, r.Body)
		case strings.HasPrefix(name, "/download"):
			w.Write(make([]byte, 1))
			http.NewResponseController(w).Flush() // and the client says that it arrived
		default:
			arrived <- name
		}
		<-r.Context().Done()
		cancelled <- name
	}))
	t.Cleanup(app.Close)
	g := serving(t, guarded(idp, "routes: [{name: all, upstream: %q, auth: none}]\n", app.URL))
	for _, version := range []string{"http/1.1", "h2"} {
		for _, c := range []struct {
			method, path, reason string
			status               float64
		}{
			{"GET", "/wait", "client_gone", 499},
			{"POST", "/upload", "client_gone", 499},
			{"GET", "/download", "public", 200}, // it had its answer; the bytes say how much of it
		} {
			path := c.path + "-" + strings.ReplaceAll(version, "/", "")
			ctx, leave := context.WithCancel(t.Context())
			var body io.Reader
			hangUp := leave
			if c.method == "POST" {
				pr, pw := io.Pipe()
				go pw.Write(make([]byte, 10))
				body = pr
				hangUp = func() {
					leave()
					pw.CloseWithError(io.ErrUnexpectedEOF) // net/http's client waits for its reader
				}
			}
			req, err := http.NewRequestWithContext(ctx, c.method, g.url(path), body)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				if res, err := speaking(t, version, nil).Do(req); err == nil {
					if c.path == "/download" {
						arrived <- path
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
			}()
			heard(t, "under way", path, arrived)
			hangUp()
			<-done
			heard(t, "cancelled at the upstream", path, cancelled)
			if rec := g.soleRecord(path); rec["reason"] != c.reason || rec["status"] != c.status {
				t.Errorf("%s: record %v, want %s %v", path, rec, c.reason, c.status)
			}
		}
	}
	eventually(t, 5*time.Second, "no request is counted as in progress", func() bool { return metric(t, g, "durward_inflight_requests") == 0 })
}

// TestProxyOfEnvironment: HTTP_PROXY is for clients, and sends no request of a
// gateway, with somebody's identity in it, anywhere else (M22).
func TestProxyOfEnvironment(t *testing.T) {
	idp, app, elsewhere := newIssuer(t), newUpstream(t), newUpstream(t)
	for _, name := range []string{"HTTP_PROXY", "http_proxy"} {
		t.Setenv(name, elsewhere.URL)
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers: [%s]
routes:
  - {name: away, path: /away/, upstream: "http://app.invalid:8080"} # a loopback address would never be proxied
  - {name: app, upstream: %q}
`, corp(idp), app.URL))
	if a := send(t, "GET", g.url("/away/x"), "", bearing(idp.token(nil))); a.StatusCode != 502 || a.reason() != "upstream_unreachable" {
		t.Errorf("an upstream that cannot be reached: %s %s", a.Status, a.reason())
	}
	if n := len(elsewhere.requests()); n != 0 {
		t.Errorf("the proxy received %d requests", n)
	}
	if a := send(t, "GET", g.url("/x"), "", bearing(idp.token(nil))); a.StatusCode != 200 || len(app.requests()) != 1 {
		t.Errorf("the twin: %s %s", a.Status, a.reason())
	}
}
