package test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"durward/token"
)

// withIssuers is a configuration with these issuers (YAML mappings) and one route
// that takes any valid token, followed by what is given in more.
func withIssuers(app *upstream, more string, issuers ...string) string {
	return fmt.Sprintf("listen: 127.0.0.1:0\nissuers:\n  - %s\nroutes:\n  - {name: app, upstream: %s}\n%s\n",
		strings.Join(issuers, "\n  - "), app.URL, more)
}

// corp is the mapping of an issuer with discovery, followed by what is given.
func corp(idp *issuer, more ...string) string {
	return fmt.Sprintf("{%s}", strings.Join(append([]string{"name: corp", "issuer: " + idp.URL, "audiences: [app]"}, more...), ", "))
}

// bearing is the header that carries the token.
func bearing(token string) string { return "Authorization: Bearer " + token }

// wantAnswer compares status and reason; reason is "" for what was forwarded.
func wantAnswer(t testing.TB, what string, a answer, status int, reason string) {
	t.Helper()
	if a.StatusCode != status || a.reason() != reason {
		t.Errorf("%s: %d %q, want %d %q", what, a.StatusCode, a.reason(), status, reason)
	}
}

// signedBy is a good token of the issuer, but signed by this key.
func (i *issuer) signedBy(k issuerKey, changes jwt.MapClaims) string {
	return sign(jwt.SigningMethodES256, k.key, map[string]any{"kid": k.kid, "typ": "at+jwt"}, i.claims(changes))
}

// A readiness is what /readyz says.
type readiness struct {
	Status  string
	Issuers []struct {
		Name    string
		Ready   bool
		Keys    int
		Left    int `json:"keys_left_out"`
		Problem string
	}
	Feeds []struct {
		Name, State, Problem string
		Age                  float64 `json:"age_seconds"`
		Applied, Refused     int
	}
}

func (g *gateway) readiness() (status int, r readiness) {
	g.t.Helper()
	res, err := http.Get(g.admin + "/readyz")
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&r); err != nil {
		g.t.Fatal(err)
	}
	return res.StatusCode, r
}

// A keyServer answers for a key set's address in whatever way it is told.
type keyServer struct {
	*httptest.Server
	handler atomic.Pointer[http.HandlerFunc]
	served  atomic.Int64 // answers given or broken off
}

func newKeyServer(t *testing.T) *keyServer {
	t.Helper()
	s := &keyServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.served.Add(1)
		(*s.handler.Load())(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) answer(h http.HandlerFunc) { s.handler.Store(&h) }

func (s *keyServer) text(text string) {
	s.answer(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
}

// TestIssuerDownAtStart: the gateway starts without keys, says so, refuses with
// 503 what it cannot verify, and needs nobody's help when the issuer comes back.
func TestIssuerDownAtStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		down http.HandlerFunc
	}{
		{"answers 503", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) }},
		{"breaks off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"an HTML page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Welcome</html>") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			idp, app, keys := newIssuer(t), newUpstream(t), newKeyServer(t)
			keys.answer(c.down)
			g := startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - %s
routes:
  - {name: open, path: /open/, upstream: %[2]s, auth: none}
  - {name: app, upstream: %[2]s}
`, corp(idp, "jwks_url: "+keys.URL), app.URL))
			eventually(t, 5*time.Second, "a fetch", func() bool { return keys.served.Load() > 0 })
			eventually(t, 5*time.Second, "the failure is told", func() bool { _, r := g.readiness(); return r.Issuers[0].Problem != "" })
			status, r := g.readiness()
			if status != 503 || r.Status != "not ready" || r.Issuers[0].Name != "corp" || r.Issuers[0].Ready || !strings.Contains(r.Issuers[0].Problem, keys.URL) {
				t.Errorf("readyz while the issuer is down: %d %+v", status, r)
			}
			bearer := bearing(idp.token(nil))
			a := send(t, "GET", g.url("/"), "", bearer)
			wantAnswer(t, "issuer down", a, 503, "keys_unavailable")
			if a.Header.Get("Retry-After") == "" {
				t.Error("issuer down: no Retry-After")
			}
			wantAnswer(t, "open route while the issuer is down", send(t, "GET", g.url("/open/"), ""), 200, "")
			wantAnswer(t, "no token while the issuer is down", send(t, "GET", g.url("/"), ""), 401, "no_token")

			keys.text(string(idp.jwks()))
			back := time.Now()
			eventually(t, 10*time.Second, "ready", func() bool { status, _ := g.readiness(); return status == 200 })
			if took := time.Since(back); took > 3*time.Second {
				t.Errorf("ready %v after the issuer came back", took)
			}
			wantAnswer(t, "issuer back", send(t, "GET", g.url("/"), "", bearer), 200, "")
			if len(app.requests()) != 2 {
				t.Errorf("the upstream received %d requests, want 2", len(app.requests()))
			}
		})
	}
}

// TestReturnIsNoticedByRequests: after a long outage the pauses between fetches
// are long; requests that come end them.
func TestReturnIsNoticedByRequests(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	idp.down.Store(true)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	// Five failures: the next pause is some 4 to 8 seconds.
	eventually(t, 20*time.Second, "five failed fetches", func() bool { return idp.fetches.Load() >= 5 })
	idp.down.Store(false)
	back := time.Now()
	bearer := bearing(idp.token(nil))
	eventually(t, 20*time.Second, "the token passes", func() bool { return send(t, "GET", g.url("/"), "", bearer).StatusCode == 200 })
	if took := time.Since(back); took > 2*time.Second {
		t.Errorf("noticed %v after the issuer came back", took)
	}
}

// TestWithdrawnKey: a key that the issuer withdraws verifies nothing any more
// after token.RefreshInterval and a fetch, in warm caches too, and nobody has to
// do anything for it.
func TestWithdrawnKey(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	old, next := newKey("old"), newKey("next")
	idp.setKeys(old, next)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	cached, kept := bearing(idp.signedBy(old, nil)), bearing(idp.signedBy(next, nil))
	wantAnswer(t, "before", send(t, "GET", g.url("/"), "", cached), 200, "")
	idp.setKeys(next)
	withdrawn := time.Now()
	for {
		// A fresh token each time shows that it is not the cached token alone that dies.
		a, fresh := send(t, "GET", g.url("/"), "", cached), send(t, "GET", g.url("/"), "", bearing(idp.signedBy(old, nil)))
		wantAnswer(t, "the other key", send(t, "GET", g.url("/"), "", kept), 200, "")
		if a.StatusCode != 200 && fresh.StatusCode != 200 {
			wantAnswer(t, "cached token of the withdrawn key", a, 401, "token_signature")
			wantAnswer(t, "fresh token of the withdrawn key", fresh, 401, "token_signature")
			break
		}
		if time.Since(withdrawn) > token.RefreshInterval+time.Second {
			t.Fatalf("still accepted %v after it was withdrawn: %d, %d", time.Since(withdrawn), a.StatusCode, fresh.StatusCode)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("refused %v after it was withdrawn", time.Since(withdrawn))
}

// TestWithdrawnKeyShortcut: any token with an unknown kid makes the gateway look,
// and what was withdrawn meanwhile dies with it.
func TestWithdrawnKeyShortcut(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	old, next := newKey("old"), newKey("next")
	idp.setKeys(old)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	bearer := bearing(idp.signedBy(old, nil))
	wantAnswer(t, "before", send(t, "GET", g.url("/"), "", bearer), 200, "")
	idp.setKeys(next)
	wantAnswer(t, "the first token of the new key", send(t, "GET", g.url("/"), "", bearing(idp.signedBy(next, nil))), 200, "")
	wantAnswer(t, "a cached token of the withdrawn key", send(t, "GET", g.url("/"), "", bearer), 401, "token_signature")
}

// TestNewKeyDuringFlood: 10,000 tokens with junk kids over several connections
// cost one fetch per interval, and do not keep a new key from being noticed.
func TestNewKeyDuringFlood(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	old, next := newKey("old"), newKey("next")
	idp.setKeys(old)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	known := bearing(idp.signedBy(old, nil))
	wantAnswer(t, "before", send(t, "GET", g.url("/"), "", known), 200, "")

	good := strings.Split(idp.signedBy(old, nil), ".")
	junk := func(n int64) string {
		header := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"ES256","kid":"junk-%d"}`, n))
		return strings.Join([]string{header, good[1], good[2]}, ".")
	}
	const total, connections, least = 10_000, 8, 3 * time.Second
	before, began := idp.fetches.Load(), time.Now()
	var sent, passed, odd atomic.Int64
	var flood sync.WaitGroup
	for range connections {
		flood.Go(func() {
			for n := sent.Add(1); n <= total || time.Since(began) < least; n = sent.Add(1) {
				switch a := send(t, "GET", g.url("/"), "", bearing(junk(n))); {
				case a.StatusCode == 200:
					passed.Add(1)
				case a.reason() != "token_signature":
					odd.Add(1)
				}
			}
		})
	}
	eventually(t, 20*time.Second, "the flood runs", func() bool { return sent.Load() > total/10 })
	idp.setKeys(old, next)
	published := time.Now()
	bearer := bearing(idp.signedBy(next, nil))
	var slowest time.Duration
	for send(t, "GET", g.url("/"), "", bearer).StatusCode != 200 {
		asked := time.Now()
		wantAnswer(t, "a known token during the flood", send(t, "GET", g.url("/"), "", known), 200, "")
		slowest = max(slowest, time.Since(asked))
		if time.Since(published) > 10*time.Second {
			t.Fatal("the new key never works")
		}
	}
	if took := time.Since(published); took > time.Second {
		t.Errorf("the new key worked after %v", took)
	}
	during := time.Since(began) < least
	flood.Wait()
	took, fetches := time.Since(began), idp.fetches.Load()-before
	if most := int64(took/token.UnknownKidInterval) + int64(took/token.RefreshInterval) + 2; fetches > most {
		t.Errorf("%d fetches within %v, want at most %d", fetches, took, most)
	}
	if passed.Load() > 0 || odd.Load() > 0 {
		t.Errorf("%d junk tokens passed, %d were refused for another reason", passed.Load(), odd.Load())
	}
	t.Logf("%d junk tokens in %v, %d fetches, the key was rotated during the flood: %v; slowest known token %v", sent.Load(), took, fetches, during, slowest)
}

// TestKeysSurviveBadAnswers: whatever stands at the key set's address, the last
// good set stays in use, and nobody else's keys come in.
func TestKeysSurviveBadAnswers(t *testing.T) {
	t.Parallel()
	idp, app, keys, evil := newIssuer(t), newUpstream(t), newKeyServer(t), newIssuer(t)
	mallory := newKey("mallory")
	evil.setKeys(mallory)
	keys.text(string(idp.jwks()))
	g := startGateway(t, withIssuers(app, "", corp(idp, "jwks_url: "+keys.URL)))
	g.waitReady()

	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	weakKey := fmt.Sprintf(`{"kty":"RSA","kid":"weak","n":"%s","e":"%s"}`, b64(weak.N.Bytes()), b64(big.NewInt(int64(weak.E)).Bytes()))
	huge := strings.TrimSuffix(string(evil.jwks()), "}") + `,"pad":"` + strings.Repeat("x", 2<<20) + `"}`
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }
	}
	for _, c := range []struct {
		name    string
		answer  http.HandlerFunc
		problem string
	}{
		{"http.StatusServiceUnavailable", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, string(evil.jwks()), http.StatusServiceUnavailable)
		}, "503"},
		{"404 with keys", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.Write(evil.jwks()) }, "404"},
		{"204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "204"},
		{"304 unasked", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) }, "304"},
		{"redirect to other keys", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, evil.URL+"/keys", http.StatusFound) }, "redirects are not followed"},
		{"empty body", text(""), "not a JSON object"},
		{"{}", text("{}"), `no array "keys"`},
		{"HTML", text("<!doctype html><title>Sign in</title>"), "not a JSON object"},
		{"no keys", text(`{"keys":[]}`), "no usable key"},
		{"an error in JSON", text(`{"error":"try later"}`), `no array "keys"`},
		{"huge", text(huge), "more than 1048576 bytes"},
		{"half", text(string(evil.jwks())[:60]), "not a JSON object"},
		{"no point of its curve", text(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"x","x":"` + b64(bytes.Repeat([]byte{0xff}, 32)) + `"}]}`), "no usable key"},
		{"symmetric, weak, for encryption", text(`{"keys":[{"kty":"oct","kid":"k1","k":"="},` + weakKey + `,` + strings.Replace(strings.TrimSuffix(strings.TrimPrefix(string(evil.jwks()), `{"keys":[`), "]}"), `"use":"sig"`, `"use":"enc"`, 1) + `]}`), "no usable key"},
		{"no point of its curve", text(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"x","x":"` + b64(bytes.Repeat([]byte{0xff}, 32)) + `"}]}`), "no usable key"},
		{"breaks off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Write([]byte(`{"keys":[`))
			panic(http.ErrAbortHandler)
		}, "EOF"},
	} {
		keys.answer(c.answer)
		before := keys.served.Load()
		eventually(t, 5*time.Second, c.name+": is fetched and refused", func() bool {
			wantAnswer(t, c.name+": junk kid", send(t, "GET", g.url("/"), "", bearing(idp.signedBy(newKey("junk"), nil))), 401, "token_signature")
			_, r := g.readiness()
			return keys.served.Load() > before && strings.Contains(r.Issuers[0].Problem, c.problem)
		})
		wantAnswer(t, c.name+": the old key", send(t, "GET", g.url("/"), "", bearing(idp.token(nil))), 200, "")
		wantAnswer(t, c.name+": the key of others", send(t, "GET", g.url("/"), "", bearing(idp.signedBy(mallory, nil))), 401, "token_signature")
		hmac := sign(jwt.SigningMethodHS256, []byte{}, map[string]any{"kid": "k1"}, idp.claims(nil))
		wantAnswer(t, c.name+": an empty symmetric key", send(t, "GET", g.url("/"), "", bearing(hmac)), 401, "token_algorithm")
		if status, _ := g.readiness(); status != 200 {
			t.Errorf("%s: readyz says %d", c.name, status)
		}
	}
	if evil.fetches.Load() != 0 {
		t.Errorf("the gateway followed a redirect")
	}

	// One good key beside broken ones is taken, and the broken ones are told.
	next := newKey("next")
	idp.setKeys(next)
	keys.text(strings.Replace(string(idp.jwks()), `{"keys":[`, `{"keys":[{"kty":"oct","k":"="},{"kty":"??"},7,`+weakKey+`,`, 1))
	eventually(t, 5*time.Second, "the new key works", func() bool {
		return send(t, "GET", g.url("/"), "", bearing(idp.token(nil))).StatusCode == 200
	})
	if _, r := g.readiness(); r.Issuers[0].Keys != 1 || r.Issuers[0].Left != 4 || r.Issuers[0].Problem != "" {
		t.Errorf("after a half-broken set: %+v", r.Issuers[0])
	}
}

// TestKeysTooOld: keys that could not be refreshed for longer than jwks_max_age
// are not used, however good they were.
func TestKeysTooOld(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp, "jwks_max_age: 1s")))
	g.waitReady()
	bearer := bearing(idp.token(nil))
	eventually(t, 5*time.Second, "the token passes", func() bool { return send(t, "GET", g.url("/"), "", bearer).StatusCode == 200 })
	idp.down.Store(true)
	eventually(t, 5*time.Second, "the keys are too old", func() bool { return send(t, "GET", g.url("/"), "", bearer).StatusCode != 200 })
	wantAnswer(t, "keys too old", send(t, "GET", g.url("/"), "", bearer), 503, "keys_unavailable")
	idp.down.Store(false)
	eventually(t, 5*time.Second, "the keys are back", func() bool { return send(t, "GET", g.url("/"), "", bearer).StatusCode == 200 })
}

// TestSlowIssuer: a fetch that hangs keeps nobody waiting whose key is known, and
// holds the others for a bounded time.
func TestSlowIssuer(t *testing.T) {
	t.Parallel()
	idp, app, keys := newIssuer(t), newUpstream(t), newKeyServer(t)
	keys.text(string(idp.jwks()))
	g := startGateway(t, withIssuers(app, "", corp(idp, "jwks_url: "+keys.URL)))
	g.waitReady()
	hang := make(chan struct{})
	defer close(hang)
	keys.answer(func(http.ResponseWriter, *http.Request) { <-hang })
	var unknown answer
	var waiting sync.WaitGroup
	began := time.Now()
	waiting.Go(func() { unknown = send(t, "GET", g.url("/"), "", bearing(idp.signedBy(newKey("unknown"), nil))) })
	known := time.Now()
	wantAnswer(t, "a known key", send(t, "GET", g.url("/"), "", bearing(idp.token(nil))), 200, "")
	if took := time.Since(known); took > time.Second {
		t.Errorf("a token with a known key waited %v", took)
	}
	waiting.Wait()
	if unknown.Response == nil {
		t.Fatal("the request with an unknown key was not answered")
	}
	wantAnswer(t, "an unknown key", unknown, 401, "token_signature")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a token with an unknown key waited %v", took)
	}
}

// TestIssuersAreApart: keys and revocations belong to one issuer, and a route
// takes the tokens of those that it names.
func TestIssuersAreApart(t *testing.T) {
	t.Parallel()
	a, b, stranger, app := newIssuer(t), newIssuer(t), newIssuer(t), newUpstream(t)
	own := newKey("b-only")
	b.setKeys(newKey("k1"), own) // the same kid as a's key
	g := startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - {name: a, issuer: %s, audiences: [app]}
  - {name: b, issuer: %s, audiences: [app]}
routes:
  - {name: for a, path: /a/, upstream: %[3]s, issuers: [a]}
  - {name: for b, path: /b/, upstream: %[3]s, issuers: [b]}
  - {name: for both, path: /, upstream: %[3]s, issuers: [a, b]}
`, a.URL, b.URL, app.URL))
	g.waitReady()
	shared := a.signedBy(b.keys[0], nil)
	for _, c := range []struct {
		name, path, token string
		status            int
		reason            string
	}{
		{"a's token", "/a/", a.token(nil), 200, ""},
		{"a's token", "/", a.token(nil), 200, ""},
		{"a's token", "/b/", a.token(nil), 401, "token_issuer"},
		{"b's token", "/b/", b.token(nil), 200, ""},
		{"b's token of its other key", "/b/", b.signedBy(own, nil), 200, ""},
		{"b's token", "/", b.token(nil), 200, ""},
		{"b's token", "/a/", b.token(nil), 401, "token_issuer"},
		{"iss a, signed by b's key of the same kid", "/a/", shared, 401, "token_signature"},
		{"the same, where both may come", "/", shared, 401, "token_signature"},
		{"the same, where b may come", "/b/", shared, 401, "token_issuer"},
		{"iss a, signed by b's key of another kid", "/", a.signedBy(own, nil), 401, "token_signature"},
		{"iss b, signed by a's key", "/", b.signedBy(a.keys[0], nil), 401, "token_signature"},
		{"both as iss", "/", a.token(jwt.MapClaims{"iss": []string{a.URL, b.URL}}), 401, "token_issuer"},
		{"a's URL with a slash", "/", a.token(jwt.MapClaims{"iss": a.URL + "/"}), 401, "token_issuer"},
		{"no iss", "/", a.token(jwt.MapClaims{"iss": nil}), 401, "token_issuer"},
		{"somebody else's token", "/", stranger.token(nil), 401, "token_issuer"},
	} {
		for _, cache := range []string{"cold", "warm"} {
			wantAnswer(t, fmt.Sprintf("%s at %s (%s)", c.name, c.path, cache), send(t, "GET", g.url(c.path), "", bearing(c.token)), c.status, c.reason)
		}
	}
	if stranger.fetches.Load() != 0 {
		t.Error("an unknown issuer's keys were fetched")
	}

	same := jwt.MapClaims{"jti": "same", "sub": "same", "sid": "same"}
	ofA, ofB := bearing(a.token(same)), bearing(b.token(same))
	wantAnswer(t, "before the revocation, a", send(t, "GET", g.url("/"), "", ofA), 200, "")
	wantAnswer(t, "before the revocation, b", send(t, "GET", g.url("/"), "", ofB), 200, "")
	for _, line := range []string{`{"jti":"same"}`, `{"sid":"same"}`, `{"sub":"same"}`} {
		if status, text := g.call("POST", "/revocations", line); status != 400 || !strings.Contains(text, "iss is missing") {
			t.Errorf("%s without iss: %d %s", line, status, text)
		}
		line = strings.Replace(line, "{", fmt.Sprintf(`{"iss":%q,`, a.URL), 1)
		if status, text := g.call("POST", "/revocations", line); status != 200 {
			t.Errorf("%s: %d %s", line, status, text)
		}
	}
	wantAnswer(t, "after the revocation, a", send(t, "GET", g.url("/"), "", ofA), 401, "revoked")
	wantAnswer(t, "after the revocation, b", send(t, "GET", g.url("/"), "", ofB), 200, "")
}

// TestKeysFromFile: a jwks_file is read again when it changes, and a broken or
// missing one changes nothing.
func TestKeysFromFile(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	file := filepath.Join(t.TempDir(), "keys.json")
	replace := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	replace(string(idp.jwks()))
	g := startGateway(t, withIssuers(app, "", corp(idp, "jwks_file: "+file)))
	first := bearing(idp.token(nil))
	wantAnswer(t, "at once after the start", send(t, "GET", g.url("/"), "", first), 200, "")

	idp.setKeys(newKey("k2"))
	second := bearing(idp.token(nil))
	wantAnswer(t, "a key that the file lacks", send(t, "GET", g.url("/"), "", second), 401, "token_signature")
	replace(string(idp.jwks()))
	eventually(t, 3*time.Second, "the new key works", func() bool { return send(t, "GET", g.url("/"), "", second).StatusCode == 200 })
	wantAnswer(t, "the key that was replaced", send(t, "GET", g.url("/"), "", first), 401, "token_signature")

	for _, c := range []struct {
		name    string
		spoil   func()
		problem string
	}{
		{"broken", func() { replace(`{"keys":`) }, "not a JSON object"},
		{"empty", func() { replace("") }, "not a JSON object"},
		{"missing", func() { os.Remove(file) }, "no such file"},
		{"a folder", func() { os.Mkdir(file, 0o700) }, "not a regular file"},
	} {
		c.spoil()
		eventually(t, 5*time.Second, c.name+": told", func() bool { _, r := g.readiness(); return strings.Contains(r.Issuers[0].Problem, c.problem) })
		wantAnswer(t, c.name, send(t, "GET", g.url("/"), "", bearing(idp.token(nil))), 200, "")
	}
	os.Remove(file)
	idp.setKeys(newKey("k3"))
	replace(string(idp.jwks()))
	third := bearing(idp.token(nil))
	eventually(t, 5*time.Second, "the restored file is read", func() bool { return send(t, "GET", g.url("/"), "", third).StatusCode == 200 })
	if idp.fetches.Load() != 0 {
		t.Error("the keys were fetched over the network as well")
	}
}

// TestDiscovery: the metadata must be the issuer's own, and is asked again when
// the keys have moved.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	idp, app, keys, evil := newIssuer(t), newUpstream(t), newKeyServer(t), newIssuer(t)
	var metadata, path atomic.Pointer[string]
	serve := func(issuer, at string) {
		text := fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, issuer, keys.URL+at)
		metadata.Store(&text)
		path.Store(&at)
	}
	keys.answer(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprint(w, *metadata.Load())
		case *path.Load():
			w.Write(idp.jwks())
		default:
			http.NotFound(w, r)
		}
	})
	claims := jwt.MapClaims{"iss": keys.URL}
	serve(evil.URL, "/first")
	g := startGateway(t, withIssuers(app, "", fmt.Sprintf("{name: corp, issuer: %q, audiences: [app]}", keys.URL)))
	eventually(t, 5*time.Second, "foreign metadata is refused", func() bool {
		_, r := g.readiness()
		return strings.Contains(r.Issuers[0].Problem, "the document is of issuer")
	})
	wantAnswer(t, "with foreign metadata", send(t, "GET", g.url("/"), "", bearing(idp.token(claims))), 503, "keys_unavailable")
	serve(keys.URL, "/first")
	g.waitReady()
	wantAnswer(t, "with its own metadata", send(t, "GET", g.url("/"), "", bearing(idp.token(claims))), 200, "")

	serve(keys.URL, "/second")
	idp.setKeys(newKey("k2"))
	moved := bearing(idp.token(claims))
	eventually(t, 5*time.Second, "the keys are found at their new place", func() bool { return send(t, "GET", g.url("/"), "", moved).StatusCode == 200 })
}
