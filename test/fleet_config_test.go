package test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFleetConfigurations gives configurations of fleets to check: what would let
// somebody read, hold back or write revocations is refused and says what helps.
func TestFleetConfigurations(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	cert, key := a.pair(t)
	private, public := sourceKey(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fill := strings.NewReplacer(
		"TOKEN", file("hub.token", hubToken), "EMPTY", file("empty.token", "\n"), "SHORT", file("short.token", "secret"),
		"CERT", cert, "KEY", key, "CA", a.file, "PRIVATE", private, "PUBLIC", public, "NOWHERE", filepath.Join(dir, "nowhere"),
	)
	for _, c := range []struct {
		denylist string
		want     string // what is refused; "" for nothing
		warning  string
	}{
		// A hub.
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: TOKEN}", "", ""},
		{"serve_feed: {listen: 127.0.0.1:9300}", "", "without token_file anybody on this machine can read who was revoked"},
		{"serve_feed: {listen: 0.0.0.0:9300, token_file: TOKEN}", "is plain http off loopback, where anybody between could hold revocations back; give it tls, or sign the records (signing_key_file)", ""},
		{"serve_feed: {listen: 192.0.2.1:9300, token_file: TOKEN}", "is plain http off loopback", ""},
		{"serve_feed: {listen: '[::]:9300', token_file: TOKEN}", "is plain http off loopback", ""},
		{"serve_feed: {listen: hub.example.com:9300, token_file: TOKEN}", "is plain http off loopback", ""},
		{"serve_feed: {listen: 0.0.0.0:9300, token_file: TOKEN}, signing_key_file: PRIVATE", "", ""},
		{"serve_feed: {listen: 0.0.0.0:9300, token_file: TOKEN, tls: {cert_file: CERT, key_file: KEY}}", "", ""},
		{"serve_feed: {listen: 0.0.0.0:9300, tls: {cert_file: CERT, key_file: KEY}}", "anybody could read who was revoked; give it a token_file, or tls with a client_ca_file", ""},
		{"serve_feed: {listen: 0.0.0.0:9300}, signing_key_file: PRIVATE", "anybody could read who was revoked", ""},
		{"serve_feed: {listen: 0.0.0.0:9300, tls: {cert_file: CERT, key_file: KEY, client_ca_file: CA}}", "", ""},
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: EMPTY}", "is empty; put a long random token there", ""},
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: NOWHERE}", "no such file or directory", ""},
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: SHORT}", "", "holds fewer than 16 characters, which can be guessed"},
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: TOKEN, tls: {cert_file: KEY, key_file: CERT}}", "cert_file and key_file must be a PEM certificate chain and its private key", ""},
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: TOKEN, tls: {cert_file: CERT, key_file: KEY, client_ca_file: TOKEN}}", "holds no PEM certificate", ""},
		{"signing_key_file: KEY", "holds another kind of key than Ed25519", ""},
		{"signing_key_file: PUBLIC", "make one with: openssl genpkey -algorithm ed25519", ""},
		{"signing_key_file: NOWHERE", "make one with: openssl genpkey -algorithm ed25519", ""},
		{"source_keys: {hub: PRIVATE}", "make one with: openssl pkey -in ed25519.pem -pubout", ""},
		{"source_keys: {}", "is empty; leave the key out to follow unsigned records", ""},
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: TOKEN}, source_keys: {hub: PUBLIC}", "give this gateway a signing_key_file whose public key its followers know", ""},
		{"serve_feed: {listen: 127.0.0.1:9300, token_file: TOKEN}, feeds: [{name: hub, http: {urls: [https://hub.example.com]}}]", "", "what is revoked here does not come to them"},
		// A follower.
		{"feeds: [{name: hub, http: {urls: [http://127.0.0.1:9300], token_file: TOKEN}}]", "", ""},
		{"feeds: [{name: hub, http: {urls: [http://localhost:9300], token_file: TOKEN}}]", "", ""},
		{"feeds: [{name: hub, http: {urls: ['http://[::1]:9300'], token_file: TOKEN}}]", "", ""},
		{"feeds: [{name: hub, http: {urls: [https://hub.example.com], token_file: TOKEN}}]", "", ""},
		{"feeds: [{name: hub, http: {urls: [http://hub.example.com], token_file: TOKEN}}]", "is plain http off loopback, where anybody between could hold revocations back; use https, or signed records (source_keys)", ""},
		{"feeds: [{name: hub, http: {urls: [https://hub.example.com, http://192.0.2.1:9300], token_file: TOKEN}}]", `"http://192.0.2.1:9300" is plain http off loopback`, ""},
		{"feeds: [{name: hub, http: {urls: [http://localhost.example.com], token_file: TOKEN}}]", "is plain http off loopback", ""},
		{"feeds: [{name: hub, http: {urls: [http://hub.example.com], token_file: TOKEN}}], source_keys: {hub: PUBLIC}", "", ""},
		{"feeds: [{name: hub, http: {urls: []}}]", "urls is missing", ""},
		// An engine.
		{"feeds: [{name: bus, nats: {url: nats://127.0.0.1:4222, stream: revs}}]", "", ""},
		{"feeds: [{name: bus, nats: {url: tls://nats.example.com:4222, stream: revs}}]", "", ""},
		{"feeds: [{name: bus, nats: {url: nats://nats.example.com:4222, stream: revs}}]", "is in the open off loopback, where anybody between could hold revocations back; use tls:// or ca_file, or signed records (source_keys)", ""},
		{"feeds: [{name: bus, nats: {url: nats://nats.example.com:4222, stream: revs, ca_file: CA}}]", "", ""},
		{"feeds: [{name: bus, nats: {url: nats://nats.example.com:4222, stream: revs}}], source_keys: {hub: PUBLIC}", "", ""},
		{"feeds: [{name: bus, nats: {url: nats://nats.example.com:4222, stream: revs}, forward_revocations: true}], source_keys: {hub: PUBLIC}", "others would refuse what this gateway writes: it needs a signing_key_file whose public key is one of source_keys", ""},
		{"feeds: [{name: bus, nats: {url: nats://nats.example.com:4222, stream: revs}, forward_revocations: true}], source_keys: {hub: PUBLIC}, signing_key_file: PRIVATE", "", ""},
		{"feeds: [{name: bus, nats: {url: nats.example.com:4222, stream: revs}}]", "is not the address of a NATS server", ""},
		{"feeds: [{name: bus, nats: {url: 'tls://user:pass@nats.example.com', stream: revs}}]", "use creds_file or nkey_file", ""},
		{"feeds: [{name: bus, nats: {stream: revs}}]", "url is missing", ""},
		{"feeds: [{name: bus, nats: {url: nats://127.0.0.1:4222, stream: a.b}}]", "is not the name of a stream", ""},
		{"feeds: [{name: bus, nats: {url: nats://127.0.0.1:4222, stream: A, creds_file: NOWHERE}}]", "creds_file: open", ""},
		{"feeds: [{name: bus, nats: {url: nats://127.0.0.1:4222, stream: A, nkey_file: TOKEN}}]", "nkey_file: ", ""},
		{"feeds: [{name: bus, nats: {url: nats://127.0.0.1:4222, stream: A, ca_file: TOKEN}}]", "holds no PEM certificate", ""},
		{"lease: 1s, feeds: [{name: bus, nats: {url: nats://127.0.0.1:4222, stream: A}}]", "is too short for feed", ""},
		{"feeds: [{name: cache, redis: {url: redis://127.0.0.1:6379/0, stream: revocations}}]", "", ""},
		{"feeds: [{name: cache, redis: {url: rediss://redis.example.com:6379/0, stream: revocations, ca_file: CA}}]", "", ""},
		{"feeds: [{name: cache, redis: {url: redis://redis.example.com:6379/0, stream: revocations}}]", "is in the open off loopback", ""},
		{"feeds: [{name: cache, redis: {url: redis://redis.example.com:6379/0, stream: revocations}}], source_keys: {hub: PUBLIC}", "", ""},
		{"feeds: [{name: cache, redis: {url: 'redis://:pass@127.0.0.1:6379', stream: revocations}}]", "use username and password_file", ""},
		{"feeds: [{name: cache, redis: {url: 127.0.0.1:6379, stream: revocations}}]", "is not the address of a Redis server", ""},
		{"feeds: [{name: cache, redis: {url: redis://127.0.0.1:6379, stream: '{a}'}}]", "is not the key of a stream", ""},
		{"feeds: [{name: cache, redis: {url: redis://127.0.0.1:6379, stream: a, password_file: EMPTY}}]", "is empty", ""},
		{"feeds: [{name: cache, redis: {url: redis://127.0.0.1:6379, stream: a, ca_file: CA}}]", "are for TLS, which the url does not ask for; write rediss://", ""},
		{"feeds: [{name: cache, redis: {url: redis://127.0.0.1:6379, stream: a, keep: 1m}}]", "is too short", ""},
		{"feeds: [{name: cache, redis: {url: redis://127.0.0.1:6379, stream: a}, file: revoked.jsonl}]", "has file and redis; give it one, and the other a feed of its own", ""},
		{"feeds: [{name: a, redis: {url: redis://127.0.0.1:6379, stream: a}, forward_revocations: true}, {name: b, redis: {url: redis://127.0.0.1:6379, stream: b}, forward_revocations: true}]", `feed "a" has it already`, ""},
		{"feeds: [{name: hub, http: {urls: [hub.example.com]}}]", "is not the address of a hub", ""},
		{"feeds: [{name: hub, http: {urls: ['https://user:pass@hub.example.com']}}]", "is not the address of a hub", ""},
		{"feeds: [{name: hub, http: {urls: [https://hub.example.com], token_file: EMPTY}}]", "is empty", ""},
		{"feeds: [{name: hub, http: {urls: [https://hub.example.com], token_file: NOWHERE}}]", "no such file or directory", ""},
		{"feeds: [{name: hub, http: {urls: [https://hub.example.com], ca_file: TOKEN}}]", "holds no PEM certificate", ""},
		{"feeds: [{name: hub, http: {urls: [https://hub.example.com], cert_file: CERT}}]", "cert_file and key_file", ""},
		{"feeds: [{name: hub, file: a.jsonl, http: {urls: [https://hub.example.com]}}]", "has file and http", ""},
		{"feeds: [{name: hub, file: a.jsonl, forward_revocations: true}]", "forward_revocations and mass are for feeds that come from elsewhere", ""},
	} {
		path := file("durward.yaml", "listen: 127.0.0.1:0\nissuers: [{name: corp, issuer: https://idp.test, audiences: [app]}]\nroutes: [{name: app, upstream: 'http://127.0.0.1:3000'}]\ndenylist: {"+fill.Replace(c.denylist)+"}\n")
		status, stdout, stderr := durward(t, "check", "-config", path)
		text := stdout + stderr
		switch {
		case (status == 0) != (c.want == "") || !strings.Contains(text, c.want):
			t.Errorf("%s: exit status %d, want %q in\n%s", c.denylist, status, c.want, text)
		case c.want != "" && !strings.Contains(text, "durward.yaml:4: denylist"):
			t.Errorf("%s: no place in\n%s", c.denylist, text)
		case !strings.Contains(text, c.warning):
			t.Errorf("%s: want the warning %q in\n%s", c.denylist, c.warning, text)
		}
	}
}

// TestFleetCertificates has a hub that knows its followers by their certificates.
func TestFleetCertificates(t *testing.T) {
	t.Parallel()
	f := &fleet{t: t, idp: newIssuer(t), app: newUpstream(t), address: freePort(t)}
	a, stranger := newAuthority(t), newAuthority(t)
	cert, key := a.pair(t)
	f.hub = startGateway(t, f.config(fmt.Sprintf("serve_feed: {listen: %q, tls: {cert_file: %q, key_file: %q, client_ca_file: %q}}", f.address, cert, key, a.file)))
	f.hub.waitReady()
	follow := func(ca *authority, more string) *gateway {
		return startGateway(t, f.config(fmt.Sprintf("lease: %v, feeds: [{name: hub, forward_revocations: true, http: {urls: [\"https://%s\"], ca_file: %q%s}}]", fleetLease, f.address, ca.file, more)))
	}
	mine, mineKey := a.pair(t)
	theirs, theirsKey := stranger.pair(t)
	g := follow(a, fmt.Sprintf(", cert_file: %q, key_file: %q", mine, mineKey))
	none := follow(a, "")
	other := follow(a, fmt.Sprintf(", cert_file: %q, key_file: %q", theirs, theirsKey))
	deceived := follow(stranger, fmt.Sprintf(", cert_file: %q, key_file: %q", mine, mineKey)) // it would not know the hub
	g.waitReady()
	b, good := f.idp.bearer(), f.idp.bearer()
	f.hub.revokes(b)
	refusedAt(t, b.text, g)
	forwarded := f.idp.bearer()
	if scope := g.revokes(forwarded); scope != "fleet" {
		t.Errorf("scope %q, want fleet", scope)
	}
	f.hub.says(forwarded, "/", 401, "revoked")
	g.says(good, "/", 200, "")
	for name, g := range map[string]*gateway{"without a certificate": none, "with another's certificate": other, "that does not know the hub": deceived} {
		eventually(t, 5*time.Second, name+": the feed's problem is told", func() bool {
			text := send(t, "GET", g.admin+"/status", "").Body
			return strings.Contains(text, "tls: ") && strings.Contains(text, "certificate")
		})
		g.answers(5*time.Second, good, "/", 503, "denylist_stale")
		if g.isReady() {
			t.Errorf("a follower %s is ready", name)
		}
		if scope := g.revokes(f.idp.bearer()); scope != "local" {
			t.Errorf("a follower %s revoked for the fleet: %q", name, scope)
		}
	}
	// The same by hand: the handshake fails, with either version of TLS.
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		ask := func(certificates ...tls.Certificate) (int, error) {
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.pool(), Certificates: certificates, MaxVersion: version}}
			defer transport.CloseIdleConnections()
			res, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("https://" + f.address + "/revlog/v1/head")
			if err != nil {
				return 0, err
			}
			res.Body.Close()
			return res.StatusCode, nil
		}
		if status, err := ask(); err == nil {
			t.Errorf("%s without a certificate: %d", tls.VersionName(version), status)
		}
		if status, err := ask(stranger.certificate(t)); err == nil {
			t.Errorf("%s with another's certificate: %d", tls.VersionName(version), status)
		}
		if status, err := ask(a.certificate(t)); status != 200 {
			t.Errorf("%s with a certificate: %d %v", tls.VersionName(version), status, err)
		}
	}
}

// TestFleetToken asks a hub with a token for everything that it has.
func TestFleetToken(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 0, "", "")
	b := f.idp.bearer()
	for _, path := range []string{"GET /revlog/v1/head", "GET /revlog/v1/log", "GET /revlog/v1/stream", "GET /revlog/v1/snapshot", "POST /revlog/v1/revocations"} {
		method, path, _ := strings.Cut(path, " ")
		for _, header := range []string{"X-None: none", "Authorization: Bearer wrong", "Authorization: Bearer", "Authorization: Basic " + hubToken, "Authorization: Bearer " + f.hub.adminToken()} {
			if a := send(t, method, "http://"+f.address+path, linesOf([]bearer{b}), header); a.StatusCode != 401 {
				t.Errorf("%s %s with %q: %s", method, path, header, a.Status)
			}
		}
	}
	f.hub.says(b, "/", 200, "")
	if a := send(t, "GET", "http://"+f.address+"/revlog/v1/head", "", "Authorization: Bearer "+hubToken); a.StatusCode != 200 {
		t.Errorf("head with the token: %s", a.Status)
	}
	if a := send(t, "POST", "http://"+f.address+"/revlog/v1/revocations", linesOf([]bearer{b}), "Authorization: Bearer "+hubToken); a.StatusCode != 200 {
		t.Errorf("revocations with the token: %s %s", a.Status, a.Body)
	}
	f.hub.says(b, "/", 401, "revoked")
}
