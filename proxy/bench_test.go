package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"durward/decision"
	"durward/denylist"
	"durward/policy"
	"durward/token"
)

// warm is a snapshot and a request whose token is in the cache.
func warm(b testing.TB) (*Snapshot, *http.Request) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		b.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	file := filepath.Join(b.TempDir(), "keys.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":%q,"y":%q}]}`, b64(point[1:33]), b64(point[33:])), 0o600); err != nil {
		b.Fatal(err)
	}
	issuer, err := token.NewIssuer(token.IssuerConfig{Name: "corp", Issuer: "https://corp.test", Audiences: []string{"app"}, JWKSFile: file}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	p, err := policy.Compile([]policy.RouteConfig{
		{Name: "static", Path: "/static/", Auth: "none"},
		{Name: "orders", Path: "/api/orders/", Allow: []policy.GrantConfig{{Methods: []string{"GET"}, Scopes: []string{"orders:read"}}}},
		{Name: "all", Path: "/"},
	}, []string{"corp"})
	if err != nil {
		b.Fatal(err)
	}
	id, err := NewIdentity(IdentityConfig{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	cache, err := token.NewCache(64 << 20)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cache.Close)
	route := Route{Upstream: &Upstream{Name: "app"}, Identity: id, Finder: token.Finder{Cookie: "__Host-session", Bearer: true}}
	s := &Snapshot{
		Policy: p, Tokens: token.NewVerifier([]*token.Issuer{issuer}, cache, 8<<10), Denied: denylist.New(1000), Routes: []Route{route, route, route},
		Limits: Limits{HeaderBytes: 32 << 10, HeaderFields: 128, CookieBytes: 16 << 10},
	}
	s.Prepare()
	now := time.Now()
	t := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": "https://corp.test", "aud": "app", "sub": "alice", "jti": "1",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "scope": "orders:read orders:write"})
	t.Header["kid"] = "k"
	raw, err := t.SignedString(key)
	if err != nil {
		b.Fatal(err)
	}
	r := &http.Request{Method: "GET", Host: "app.test", RequestURI: "/api/orders/7?x=1", RemoteAddr: "192.0.2.1:1", ProtoMajor: 1, Header: http.Header{
		"Authorization": {"Bearer " + raw}, "Accept": {"*/*"}, "User-Agent": {"bench"}, "Accept-Encoding": {"gzip"}}}
	for hits, _ := cache.Stats(); hits == 0; hits, _ = cache.Stats() { // the cache takes tokens in its own time
		s.Decide(r, &decision.Record{Time: time.Now()})
	}
	return s, r
}

// BenchmarkDecide is the whole decision about a request whose token is in the
// cache: canonical request, route, credential, cache, denylist, grants.
func BenchmarkDecide(b *testing.B) {
	s, r := warm(b)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		rec := decision.Record{Time: now}
		if s.Decide(r, &rec); rec.Verdict != decision.Allow {
			b.Fatal(rec.Reason, rec.Detail)
		}
	}
}

// TestDecideAllocates: what a decision allocates is what http.ServeMux does to find a
// pattern, and what it is asked with.
func TestDecideAllocates(t *testing.T) {
	s, r := warm(t)
	rec := decision.Record{Time: time.Now()}
	if n := testing.AllocsPerRun(1000, func() {
		if s.Decide(r, &rec); rec.Verdict != decision.Allow {
			t.Fatal(rec.Reason, rec.Detail)
		}
	}); n > 4+underRace {
		t.Errorf("a decision allocates %v times", n)
	}
}
