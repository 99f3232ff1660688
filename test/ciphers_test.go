package test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// HTTP/2 is not spoken with a cipher suite that RFC 9113 section 9.2.2 prohibits; with
// another one it is, and HTTP/1 with either.
func TestCiphersOfHTTP2(t *testing.T) {
	t.Parallel()
	idp, app, ca := newIssuer(t), newUpstream(t), newAuthority(t)
	cert, key := ca.pair(t)
	g := serving(t, guarded(idp, "tls: {cert_file: %q, key_file: %q}\nroutes: [{name: open, upstream: %q, auth: none}]\n", cert, key, app.URL))
	for _, c := range []struct {
		suite    uint16
		protocol string
		spoken   bool
	}{
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "h2", true},
		{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "h2", true},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, "h2", false},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "http/1.1", true},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, "http/1.1", true},
	} {
		conn, err := tls.Dial("tcp", g.public[0], &tls.Config{RootCAs: ca.pool(), MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{c.suite}, NextProtos: []string{c.protocol}})
		if err != nil {
			t.Errorf("%s: %v", tls.CipherSuiteName(c.suite), err)
			continue
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		spoken := false
		if c.protocol == "h2" {
			io.WriteString(conn, http2.ClientPreface)
			framer := http2.NewFramer(conn, conn)
			framer.WriteSettings()
			frame, err := framer.ReadFrame()
			spoken = err == nil && frame.Header().Type == http2.FrameSettings
		} else {
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			spoken = err == nil && res.StatusCode == 200
		}
		conn.Close()
		if spoken != c.spoken {
			t.Errorf("%s with %s: spoken %v", c.protocol, tls.CipherSuiteName(c.suite), spoken)
		}
	}
}
