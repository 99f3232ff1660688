package token

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseKeys(t *testing.T) {
	k := keysOnce()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	number := func(n *big.Int) string { return segment(n.Bytes()) }
	big9k := new(big.Int).Lsh(big.NewInt(3), 9000)
	good := public(k.p256, object{"kid": "good"})
	for _, c := range []struct {
		name string
		key  any
		want string // why it is left out, "" if it is not
	}{
		{"EC", public(k.p384, object{"kid": "a"}), ""},
		{"EC with its algorithm", public(k.p521, object{"alg": "ES512"}), ""},
		{"EC with another", public(k.p384, object{"alg": "ES256"}), `no algorithm for a EC key with alg "ES256"`},
		{"EC for encryption by alg", public(k.p256, object{"alg": "ECDH-ES"}), `no algorithm for a EC key with alg "ECDH-ES"`},
		{"EC off its curve", with(public(k.p256, nil), object{"x": segment(make([]byte, 32))}), "not on the specified curve"},
		{"EC with the wrong curve", with(public(k.p256, nil), object{"crv": "P-384"}), "not on the specified curve"},
		{"secp256k1", with(public(k.p256, nil), object{"crv": "secp256k1"}), "unsupported curve"},
		{"RSA", public(k.rsa, nil), ""},
		{"RSA PS384", public(k.rsa, object{"alg": "PS384"}), ""},
		{"RSA for encryption by alg", public(k.rsa, object{"alg": "RSA-OAEP"}), `no algorithm for a RSA key with alg "RSA-OAEP"`},
		{"RSA 1024", public(small, nil), "an RSA modulus of 1024 bits"},
		{"RSA 9002", with(public(k.rsa, nil), object{"n": number(big9k)}), "an RSA modulus of 9002 bits"},
		{"RSA exponent 1", with(public(k.rsa, nil), object{"e": "AQ"}), "out of range"},
		{"RSA exponent 2", with(public(k.rsa, nil), object{"e": "Ag"}), "the RSA exponent is 2"},
		{"RSA exponent 65536", with(public(k.rsa, nil), object{"e": "AQAA"}), "the RSA exponent is 65536"},
		{"RSA exponent 2³¹-1", with(public(k.rsa, nil), object{"e": number(big.NewInt(1<<31 - 1))}), ""},
		{"RSA exponent 2³¹+1", with(public(k.rsa, nil), object{"e": number(big.NewInt(1<<31 + 1))}), "out of range"},
		{"RSA even", with(public(k.rsa, nil), object{"n": number(new(big.Int).Lsh(big.NewInt(1), 2047))}), "the RSA modulus is even"},
		{"Ed25519 of zeros", with(public(k.ed, nil), object{"x": segment(make([]byte, 32))}), "a point of small order"},
		{"Ed25519 too short", with(public(k.ed, nil), object{"x": segment(make([]byte, 31))}), "should be 32 bytes"},
		{"RSA exponent beyond 64 bits", with(public(k.rsa, nil), object{"e": number(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 64), big.NewInt(3)))}), "E in marshal"},
		{"Ed25519", public(k.ed, nil), ""},
		{"Ed25519 by its old name", public(k.ed, object{"alg": "EdDSA"}), ""},
		{"Ed25519 by its new name", public(k.ed, object{"alg": "Ed25519"}), ""},
		{"X25519", object{"kty": "OKP", "crv": "X25519", "x": segment(x25519.PublicKey().Bytes())}, "no algorithm"},
		{"use sig", public(k.p256, object{"use": "sig"}), ""},
		{"use enc", public(k.p256, object{"use": "enc"}), `use is "enc", not sig`},
		{"use empty", public(k.p256, object{"use": ""}), `use is "", not sig`},
		{"use list", public(k.p256, object{"use": []string{"sig"}}), "use is not a string"},
		{"key_ops verify", public(k.p256, object{"key_ops": []string{"x", "verify"}}), ""},
		{"key_ops without verify", public(k.p256, object{"key_ops": []string{"encrypt"}}), "key_ops lack verify"},
		{"key_ops string", public(k.p256, object{"key_ops": "verify"}), "key_ops lack verify"},
		{"symmetric", object{"kty": "oct", "k": "AAAA"}, `has the private or symmetric member "k"`},
		{"symmetric and empty", object{"kty": "oct", "k": "="}, `has the private or symmetric member "k"`},
		{"symmetric without k", object{"kty": "oct"}, "symmetric key"},
		{"private", public(k.p256, object{"d": "AA"}), `has the private or symmetric member "d"`},
		{"kid is a number", public(k.p256, object{"kid": 1}), "kid is not a string"},
		{"kty missing", object{"crv": "P-256"}, "unsupported key"},
		{"names in capitals", object{"KTY": "EC", "CRV": "P-256", "X": good["x"], "Y": good["y"]}, "unsupported key"},
		{"certificate junk, ignored", public(k.p256, object{"x5c": []string{"junk"}, "x5u": "http://127.0.0.1:1/", "x5t": "junk"}), ""},
		{"null", nil, "not a JSON object"},
		{"string", "key", "not a JSON object"},
		{"two kty", rawJSON(`{"kty":"EC","kty":"RSA"}`), `duplicate member "kty"`},
	} {
		keys, rejected, err := parseKeys([]byte(jsonOf(object{"keys": []any{c.key, good}})))
		if err != nil {
			t.Errorf("%s: spoils the set: %v", c.name, err)
			continue
		}
		got := errors.Join(rejected...)
		if (got == nil) != (c.want == "") || got != nil && !strings.Contains(got.Error(), c.want) || len(keys)+len(rejected) != 2 {
			t.Errorf("%s: left out for %v, want %q", c.name, got, c.want)
		}
	}
	for document, want := range map[string]string{
		`{"keys":[` + strings.TrimSuffix(strings.Repeat("{},", 257), ",") + `]}`: "257 keys, more than the 256",
		`{"keys":[]}`:                      "no usable key",
		`{"keys":[{}]}`:                    "no usable key\nkey 1: ",
		`{"keys":{}}`:                      `no array "keys"`,
		`{"Keys":[]}`:                      `no array "keys"`,
		`{}`:                               `no array "keys"`,
		`null`:                             `no array "keys"`,
		`[]`:                               "not a JSON object",
		`<html>`:                           "not a JSON object",
		``:                                 "not a JSON object",
		jsonOf(good):                       `no array "keys"`,
		keySet(good) + keySet(good):        "not a JSON object",
		keySet(good)[:len(keySet(good))-3]: "not a JSON object",
	} {
		if keys, _, err := parseKeys([]byte(document)); err == nil || keys != nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q: got %v, %v, want %s", document, keys, err, want)
		}
	}
}

func TestFindKey(t *testing.T) {
	k := keysOnce()
	a, b := public(k.p256, object{"kid": "k"}), public(k.p384, object{"kid": "k"})
	same := public(k.ed, object{"kid": "k"})
	for _, c := range []struct {
		name  string
		keys  []object
		t     parsed
		found bool
		known bool
	}{
		{"by kid", []object{a}, parsed{joseHeader: joseHeader{alg: "ES256", kid: "k", named: true}}, true, true},
		{"another kid", []object{a}, parsed{joseHeader: joseHeader{alg: "ES256", kid: "K", named: true}}, false, false},
		{"another alg", []object{a}, parsed{joseHeader: joseHeader{alg: "ES384", kid: "k", named: true}}, false, true},
		{"one of two fits", []object{a, b}, parsed{joseHeader: joseHeader{alg: "ES256", kid: "k", named: true}}, true, true},
		{"the other fits", []object{a, b, same}, parsed{joseHeader: joseHeader{alg: "EdDSA", kid: "k", named: true}}, true, true},
		{"both fit", []object{a, with(a, nil)}, parsed{joseHeader: joseHeader{alg: "ES256", kid: "k", named: true}}, false, true},
		{"no kid, one fits", []object{a, b}, parsed{joseHeader: joseHeader{alg: "ES384"}}, true, true},
		{"no kid, two fit", []object{a, with(a, object{"kid": "l"})}, parsed{joseHeader: joseHeader{alg: "ES256"}}, false, true},
		{"no kid, none fits", []object{a}, parsed{joseHeader: joseHeader{alg: "RS256"}}, false, true},
		{"alg of the key", []object{public(k.rsa, object{"kid": "k", "alg": "PS256"})}, parsed{joseHeader: joseHeader{alg: "RS256", kid: "k", named: true}}, false, true},
		{"alg of the key tells two apart", []object{public(k.rsa, object{"kid": "k", "alg": "PS256"}), public(k.rsa2, object{"kid": "k", "alg": "RS256"})}, parsed{joseHeader: joseHeader{alg: "RS256", kid: "k", named: true}}, true, true},
	} {
		keys, _, err := parseKeys([]byte(keySet(c.keys...)))
		if err != nil {
			t.Fatal(err)
		}
		key, known := (&snapshot{keys: keys}).find(&c.t)
		if (key != nil) != c.found || known != c.known || key != nil && !key.fits(c.t.alg) {
			t.Errorf("%s: found %v, known %v", c.name, key, known)
		}
	}
}

// An identity provider that answers as it is told.
func provider(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

func TestFetch(t *testing.T) {
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); io.WriteString(w, body) }
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    string // "" means success
	}{
		{"good", answer(200, allKeys()), ""},
		{"one good key", answer(200, keySet(object{"kty": "oct", "k": "AA"}, public(keysOnce().ed, nil))), ""},
		{"padded to the limit", answer(200, allKeys()+strings.Repeat(" ", maxDocument-len(allKeys()))), ""},
		{"too large", answer(200, allKeys()+strings.Repeat(" ", maxDocument)), "more than 1048576 bytes"},
		{"empty", answer(200, ""), "not a JSON object"},
		{"empty object", answer(200, "{}"), `no array "keys"`},
		{"no keys", answer(200, `{"keys":[]}`), "no usable key"},
		{"an error in JSON", answer(200, `{"error":"x"}`), `no array "keys"`},
		{"HTML", answer(200, "<html>"), "not a JSON object"},
		{"503", answer(503, allKeys()), "503 Service Unavailable"},
		{"204", answer(204, ""), "204 No Content"},
		{"304 unasked", answer(304, ""), "redirects are not followed"},
		{"redirect", http.RedirectHandler("https://evil.example/keys", http.StatusFound).ServeHTTP, `302 Found to "https://evil.example/keys": redirects are not followed`},
		{"broken off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "999999")
			io.WriteString(w, allKeys())
		}, "unexpected EOF"},
	} {
		server := provider(t, c.handler)
		cfg := testConfig(t)
		cfg.JWKSFile, cfg.JWKSURL = "", server.URL+"/keys"
		i := newIssuer(t, cfg)
		v := NewVerifier([]*Issuer{i}, nil, 8192)
		if _, refused := verify(v, es256(goodClaims())); reason(refused) != "keys_unavailable" {
			t.Errorf("%s: before the first fetch: %v", c.name, refused)
		}
		if status := i.Keys().Status(time.Now()); status.Age >= 0 || status.Usable {
			t.Errorf("%s: before the first fetch: %+v", c.name, status)
		}
		err := i.Keys().Refresh(t.Context())
		status := i.Keys().Status(time.Now())
		if c.want == "" {
			if err != nil || !status.Usable || status.Keys == 0 || status.Age < 0 || status.Age > time.Minute || status.Refreshed != 1 || status.Error != "" {
				t.Errorf("%s: got %v, %+v", c.name, err, status)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), server.URL+"/keys") || status.Error != err.Error() {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
		if status.Usable || status.Failed != 1 || status.Age >= 0 {
			t.Errorf("%s: %+v", c.name, status)
		}

		// The same answer later leaves the last good set in use.
		i.keys.current.Store(&snapshot{keys: mustKeys(t, allKeys()), at: time.Now()})
		if err := i.Keys().Refresh(t.Context()); err == nil {
			t.Errorf("%s: no error the second time", c.name)
		}
		if _, refused := verify(v, es256(goodClaims())); refused != nil {
			t.Errorf("%s: the last good set was lost: %v", c.name, refused)
		}
	}
}

func mustKeys(t testing.TB, document string) []jwk {
	t.Helper()
	keys, _, err := parseKeys([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestFetchUnchanged(t *testing.T) {
	var document atomic.Value
	document.Store(allKeys())
	var asked, saved atomic.Int32
	server := provider(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		etag := fmt.Sprintf(`"%d"`, len(document.Load().(string)))
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			saved.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, document.Load().(string))
	})
	cfg := testConfig(t)
	cfg.JWKSFile, cfg.JWKSURL = "", server.URL
	keys := newIssuer(t, cfg).Keys()
	refresh := func(generation uint64, wantSaved int32, wantErr bool) {
		t.Helper()
		before := time.Now()
		if err := keys.Refresh(t.Context()); (err != nil) != wantErr {
			t.Fatal(err)
		}
		s := keys.current.Load()
		if s.generation != generation || saved.Load() != wantSaved || !wantErr && s.at.Before(before) {
			t.Errorf("generation %d, want %d; %d answers saved, want %d", s.generation, generation, saved.Load(), wantSaved)
		}
	}
	refresh(1, 0, false)
	refresh(1, 1, false)
	k := keysOnce()
	document.Store(keySet(public(k.ed, object{"kid": "ed"}), public(k.p256, object{"kid": "es"})))
	refresh(2, 1, false)
	document.Store(keySet(public(k.p256, object{"kid": "es"}), public(k.ed, object{"kid": "ed"})) + " ") // shuffled
	refresh(2, 1, false)
	document.Store("broken")
	refresh(2, 1, true)
	refresh(2, 1, true) // the broken document's etag was not kept
	if status := keys.Status(time.Now()); status.Refreshed != 4 || status.Failed != 2 || status.Keys != 2 || !status.Usable || status.Error == "" {
		t.Errorf("%+v", status)
	}
}

func TestDiscovery(t *testing.T) {
	var metadata atomic.Value
	var discoveries atomic.Int32
	server := provider(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/realm/.well-known/openid-configuration":
			discoveries.Add(1)
			io.WriteString(w, metadata.Load().(string))
		case "/keys":
			io.WriteString(w, allKeys())
		default:
			http.NotFound(w, r)
		}
	})
	at := server.URL + "/realm"
	for _, c := range []struct{ name, issuer, metadata, want string }{
		{"good", at, jsonOf(object{"issuer": at, "jwks_uri": server.URL + "/keys"}), ""},
		{"issuer with a slash", at + "/", jsonOf(object{"issuer": at + "/", "jwks_uri": server.URL + "/keys"}), ""},
		{"issuer without the slash", at + "/", jsonOf(object{"issuer": at, "jwks_uri": server.URL + "/keys"}), "the document is of issuer"},
		{"another issuer", at, jsonOf(object{"issuer": server.URL + "/evil", "jwks_uri": server.URL + "/keys"}), "the document is of issuer"},
		{"Issuer", at, jsonOf(object{"Issuer": at, "jwks_uri": server.URL + "/keys"}), "the document is of issuer"},
		{"no jwks_uri", at, jsonOf(object{"issuer": at}), "no jwks_uri"},
		{"jwks_uri is a file", at, jsonOf(object{"issuer": at, "jwks_uri": "file:///etc/passwd"}), "not an http or https URL"},
		{"HTML", at, "<html>", "not a JSON object"},
		{"no keys there", at, jsonOf(object{"issuer": at, "jwks_uri": server.URL + "/gone"}), "404 Not Found"},
	} {
		metadata.Store(c.metadata)
		cfg := testConfig(t)
		cfg.JWKSFile, cfg.Issuer = "", c.issuer
		keys := newIssuer(t, cfg).Keys()
		err := keys.Refresh(t.Context())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
		before := discoveries.Load()
		keys.Refresh(t.Context())
		if again := discoveries.Load() > before; again != (c.want != "") {
			t.Errorf("%s: discovered again is %v", c.name, again)
		}
	}
}

func TestFetchTLS(t *testing.T) {
	var plain string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/.well-known") {
			io.WriteString(w, jsonOf(object{"issuer": "https://" + r.Host, "jwks_uri": plain}))
			return
		}
		io.WriteString(w, allKeys())
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	ca := write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	cfg := testConfig(t)
	cfg.JWKSFile, cfg.JWKSURL = "", server.URL
	if err := newIssuer(t, cfg).Keys().Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without ca_file: %v", err)
	}
	cfg.CAFile = ca
	if err := newIssuer(t, cfg).Keys().Refresh(t.Context()); err != nil {
		t.Errorf("with ca_file: %v", err)
	}
	cfg.JWKSURL, cfg.Issuer = "", server.URL
	for address, want := range map[string]string{server.URL: "", "http" + strings.TrimPrefix(server.URL, "https"): "is plain http, the issuer is not"} {
		plain = address
		if err := newIssuer(t, cfg).Keys().Refresh(t.Context()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("jwks_uri %s: %v, want %s", address, err, want)
		}
	}
}

func TestFile(t *testing.T) {
	cfg := testConfig(t)
	keys := newIssuer(t, cfg).Keys()
	k := keysOnce()
	expect := func(wantErr bool, generation uint64, n int) {
		t.Helper()
		if err := keys.Refresh(t.Context()); (err != nil) != wantErr {
			t.Fatal(err)
		}
		if s := keys.current.Load(); s.generation != generation || len(s.keys) != n {
			t.Errorf("generation %d with %d keys, want %d with %d", s.generation, len(s.keys), generation, n)
		}
	}
	expect(false, 1, 5)
	rewrite(t, cfg.JWKSFile, keySet(public(k.ed, nil)))
	expect(false, 2, 1)
	rewrite(t, cfg.JWKSFile, "broken")
	expect(true, 2, 1)
	expect(true, 2, 1)
	if err := os.Remove(cfg.JWKSFile); err != nil {
		t.Fatal(err)
	}
	expect(true, 2, 1)
	rewrite(t, cfg.JWKSFile, allKeys())
	expect(false, 3, 5)

	// A file of the same size and time is another one all the same.
	for _, c := range []struct {
		age        time.Duration
		generation uint64
	}{{0, 5}, {time.Hour, 7}} {
		first, second := public(k.ed, object{"kid": "one"}), public(k.p256, object{"kid": "two"})
		texts := []string{keySet(first), keySet(second)}
		longest := max(len(texts[0]), len(texts[1]))
		at := time.Now().Add(-c.age)
		for i, text := range texts {
			text += strings.Repeat(" ", longest-len(text))
			file, err := os.OpenFile(cfg.JWKSFile, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.WriteString(text); err != nil {
				t.Fatal(err)
			}
			file.Close()
			if err := os.Chtimes(cfg.JWKSFile, at, at); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				expect(false, c.generation-1, 1)
			}
		}
		expect(false, c.generation, 1)
	}
}

// A memorySource answers in the time of a synctest bubble, which real sockets
// do not know.
type memorySource struct {
	mu       sync.Mutex
	document string
	err      error
	delay    time.Duration
	reads    []time.Time
}

func (m *memorySource) String() string { return "memory" }
func (m *memorySource) rest()          {}

func (m *memorySource) set(document string, err error, delay time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.document, m.err, m.delay = document, err, delay
}

func (m *memorySource) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.reads)
}

func (m *memorySource) read(ctx context.Context, _ stamp) ([]byte, stamp, error) {
	m.mu.Lock()
	m.reads = append(m.reads, time.Now())
	document, err, delay := m.document, m.err, m.delay
	m.mu.Unlock()
	select {
	case <-time.After(delay):
		return []byte(document), stamp{}, err
	case <-ctx.Done():
		return nil, stamp{}, ctx.Err()
	}
}

// running gives a Verifier whose only issuer's keys come from m, in a bubble.
func running(t *testing.T, m *memorySource) (*Verifier, *KeySet, *bytes.Buffer) {
	cfg := testConfig(t)
	cfg.JWKSFile, cfg.JWKSURL = "", "https://idp.example.com/keys"
	cfg.MaxLifetime = 1000 * time.Hour
	i := newIssuer(t, cfg)
	i.keys.source = m
	log := &bytes.Buffer{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- i.keys.Run(ctx, slog.New(slog.NewTextHandler(log, nil))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return NewVerifier([]*Issuer{i}, nil, 8192), i.keys, log
}

// ask verifies a token with this kid, signed by the P-256 key, now.
func ask(t *testing.T, v *Verifier, kid string) string {
	now := time.Now()
	raw := sign("ES256", keysOnce().p256, fmt.Sprintf(`{"alg":"ES256","kid":%q}`, kid), jsonOf(with(goodClaims(), object{"iat": now.Unix(), "exp": now.Unix() + 60, "auth_time": nil})))
	_, refused := v.Verify(t.Context(), raw, nil, now, nil)
	return reason(refused)
}

func TestRefreshInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memorySource{document: allKeys()}
		v, keys, log := running(t, m)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		for i := 1; i < len(m.reads); i++ {
			if pause := m.reads[i].Sub(m.reads[i-1]); pause < 27*time.Second || pause > RefreshInterval {
				t.Errorf("pause of %v", pause)
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), `"keys changed"`) {
			t.Errorf("logged %s", log)
		}
		if err := keys.Run(t.Context(), slog.New(slog.DiscardHandler)); err == nil {
			t.Error("a second Run was let in")
		}

		// A key that the issuer withdraws verifies nothing after the interval.
		if got := ask(t, v, "es"); got != "accepted" {
			t.Errorf("before: %s", got)
		}
		m.set(keySet(public(keysOnce().ed, nil)), nil, 0)
		time.Sleep(RefreshInterval)
		synctest.Wait()
		if got := ask(t, v, "es"); got != "token_signature" {
			t.Errorf("after: %s", got)
		}
	})
}

func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memorySource{document: allKeys()}
		v, keys, log := running(t, m)
		m.set("", errors.New("connection refused"), 0)
		before := m.count()
		time.Sleep(30*time.Second + 250*time.Millisecond + 500*time.Millisecond + time.Second)
		if n := m.count() - before; n < 3 || n > 6 {
			t.Errorf("%d attempts in the first moments", n)
		}
		time.Sleep(23 * time.Hour)
		if n := m.count() - before; n > 24*60*5 {
			t.Errorf("%d attempts in a day", n)
		}
		if got := ask(t, v, "es"); got != "accepted" {
			t.Errorf("with old keys: %s", got)
		}
		time.Sleep(61 * time.Minute)
		if status := keys.Status(time.Now()); status.Usable || status.Age < 24*time.Hour || status.Keys != 5 || status.Error == "" || status.Failed == 0 {
			t.Errorf("%+v", status)
		}
		if got := ask(t, v, "es"); got != "keys_unavailable" {
			t.Errorf("with too old keys: %s", got)
		}
		m.set(allKeys(), nil, 0)
		ask(t, v, "es") // a request makes the gateway look at once
		time.Sleep(UnknownKidInterval + time.Millisecond)
		synctest.Wait()
		if got := ask(t, v, "es"); got != "accepted" {
			t.Errorf("when the issuer is back: %s", got)
		}
		if got := log.String(); strings.Count(got, "\n") != 3 || strings.Count(got, "keys lost") != 1 || strings.Count(got, "keys are back") != 1 {
			t.Errorf("logged %s", got)
		}
	})
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memorySource{document: allKeys()}
		v, _, _ := running(t, m)
		time.Sleep(time.Second)
		m.set(keySet(public(keysOnce().p256, object{"kid": "new"})), nil, 100*time.Millisecond)
		before, began := m.count(), time.Now()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if got := ask(t, v, "new"); got != "accepted" {
					t.Errorf("the new key: %s", got)
				}
			})
		}
		wg.Wait()
		// A little more than the fetch takes, as those who check signatures pause.
		if n, took := m.count()-before, time.Since(began); n != 1 || took < 100*time.Millisecond || took > 110*time.Millisecond {
			t.Errorf("%d fetches in %v for one new key", n, took)
		}
		if got := ask(t, v, "es"); got != "token_signature" {
			t.Errorf("the old key: %s", got)
		}
	})
}

// A flood of junk kids costs two fetches a second, and does not keep a real
// rotation from being noticed within a second.
func TestUnknownKidFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memorySource{document: allKeys(), delay: 50 * time.Millisecond}
		v, keys, _ := running(t, m)
		time.Sleep(time.Second)
		before := m.count()
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				wg.Go(func() {
					if got := ask(t, v, fmt.Sprint("junk", n)); got != "token_signature" {
						t.Errorf("junk: %s", got)
					}
				})
				time.Sleep(20 * time.Millisecond)
			}
		})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for i := before + 1; i < m.count(); i++ {
			if pause := m.reads[i].Sub(m.reads[i-1]); pause < UnknownKidInterval {
				t.Errorf("two fetches within %v", pause)
			}
		}
		if n := m.count() - before; n < 15 || n > 20 {
			t.Errorf("%d fetches in ten seconds", n)
		}
		m.set(keySet(public(keysOnce().p256, object{"kid": "new"})), nil, 50*time.Millisecond)
		began := time.Now()
		for ask(t, v, "new") != "accepted" {
			if time.Since(began) > time.Second {
				t.Error("the rotation was not noticed")
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		stop()
		wg.Wait()
		synctest.Wait()
		if keys.waiting != 0 || keys.flight != nil {
			t.Errorf("%d are waiting still", keys.waiting)
		}
	})
}

func TestWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memorySource{document: allKeys()}
		v, _, _ := running(t, m)
		time.Sleep(time.Second)
		m.set(keySet(public(keysOnce().p256, object{"kid": "new"})), nil, 2*time.Second)
		results := make(chan string, maxWaiters)
		for range maxWaiters {
			go func() { results <- ask(t, v, "new") }()
		}
		synctest.Wait()
		began := time.Now()
		if got := ask(t, v, "new"); got != "token_signature" || time.Since(began) != 0 {
			t.Errorf("one too many: %s after %v", got, time.Since(began))
		}
		for range maxWaiters {
			if got := <-results; got != "accepted" {
				t.Errorf("a waiter: %s", got)
			}
		}

		// A client that leaves does not take the fetch with it, and none waits for ever.
		time.Sleep(time.Second)
		m.set(allKeys(), nil, 9*time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); cancel() }()
		began = time.Now()
		now := time.Now()
		raw := sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es"}`, jsonOf(with(goodClaims(), object{"iat": now.Unix(), "exp": now.Unix() + 60, "auth_time": nil})))
		if _, refused := v.Verify(ctx, raw, nil, now, nil); reason(refused) != "token_signature" || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), refused)
		}
		if got := ask(t, v, "es"); got != "token_signature" || time.Since(began) != time.Second+kidTimeout {
			t.Errorf("after %v: %s", time.Since(began), got)
		}
		time.Sleep(6 * time.Second)
		if got := ask(t, v, "es"); got != "accepted" {
			t.Errorf("after the fetch: %s", got)
		}
	})
}

// An issuer that takes connections and says nothing costs a fetch ten seconds,
// and requests nothing.
func TestSlowIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memorySource{document: allKeys(), delay: time.Hour}
		v, keys, _ := running(t, m)
		began := time.Now()
		if got := ask(t, v, "es"); got != "keys_unavailable" || time.Since(began) != 0 {
			t.Errorf("%s after %v", got, time.Since(began))
		}
		time.Sleep(fetchTimeout)
		synctest.Wait()
		if status := keys.Status(time.Now()); status.Failed != 1 || !strings.Contains(status.Error, "deadline") {
			t.Errorf("%+v", status)
		}
		m.set(allKeys(), nil, 0)
		time.Sleep(fetchTimeout + time.Second)
		if got := ask(t, v, "es"); got != "accepted" {
			t.Errorf("at last: %s", got)
		}
	})
}

func TestRefreshShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memorySource{document: allKeys(), delay: time.Second}
		cfg := testConfig(t)
		keys := newKeySet(cfg, nil)
		keys.source = m
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := keys.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if m.count() != 1 {
			t.Errorf("%d fetches", m.count())
		}
		go keys.Refresh(t.Context())
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := keys.Refresh(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("who does not want to wait got %v", err)
		}
		time.Sleep(time.Minute)
	})
}

// Where nobody runs the KeySet, nobody waits for it.
func TestNotRunning(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, nil, 8192)
	began := time.Now()
	if got := ask(t, v, "unknown"); got != "token_signature" || time.Since(began) > time.Second {
		t.Errorf("%s after %v", got, time.Since(began))
	}
}

func TestAge(t *testing.T) {
	now := time.Now()
	s := &snapshot{at: now}
	for _, c := range []struct {
		now  time.Time
		want time.Duration
	}{
		{now, 0},
		{now.Add(time.Hour), time.Hour},
		{now.Add(-time.Hour), 0}, // a request that came before the keys
		{now.Round(0).Add(time.Hour), time.Hour},
	} {
		if got := s.age(c.now); got != c.want {
			t.Errorf("at %v: %v, want %v", c.now, got, c.want)
		}
	}
}
