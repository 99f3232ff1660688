package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

// The keys of the tests, made once.
type testKeys struct {
	rsa, rsa2        *rsa.PrivateKey
	p256, p384, p521 *ecdsa.PrivateKey
	ed               ed25519.PrivateKey
}

var keysOnce = sync.OnceValue(func() testKeys {
	var k testKeys
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.rsa2, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.p256, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.p384, _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	k.p521, _ = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	_, k.ed, _ = ed25519.GenerateKey(rand.Reader)
	return k
})

type object = map[string]any

// with is the object with some members changed; nil removes one.
func with(o object, changes object) object {
	o = maps.Clone(o)
	for name, v := range changes {
		if o[name] = v; v == nil {
			delete(o, name)
		}
	}
	return o
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func segment(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// public is the JWK of a key, with further members.
func public(key crypto.Signer, members object) object {
	j, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{})
	if err != nil {
		panic(err)
	}
	var o object
	if err := json.Unmarshal([]byte(jsonOf(j.Marshal())), &o); err != nil {
		panic(err)
	}
	delete(o, "alg")
	return with(o, members)
}

func keySet(keys ...object) string { return jsonOf(object{"keys": keys}) }

// sign makes a token of literal JSON texts.
func sign(alg string, key any, header, payload string) string {
	signed := segment([]byte(header)) + "." + segment([]byte(payload))
	sig, err := jwt.GetSigningMethod(alg).Sign(signed, key)
	if err != nil {
		panic(err)
	}
	return signed + "." + segment(sig)
}

const testIssuer = "https://idp.example.com/realms/corp"

// testNow is the time of the tests: near the real one, as keys age by it.
var testNow = time.Now().Truncate(time.Second)

func goodClaims() object {
	return object{
		"iss": testIssuer, "aud": "intranet", "sub": "alice", "jti": "B70BA622", "sid": "08a5019c",
		"client_id": "shop", "scope": "orders:read orders:write", "acr": "mfa",
		"iat": testNow.Unix() - 60, "exp": testNow.Unix() + 600, "auth_time": testNow.Unix() - 120,
		"realm_access": object{"roles": []string{"ops", "sre"}},
	}
}

// es256 signs the claims with the key that testIssuer's set calls "es".
func es256(claims object) string {
	return sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es","typ":"at+jwt"}`, jsonOf(claims))
}

func allKeys() string {
	k := keysOnce()
	return keySet(
		public(k.rsa, object{"kid": "rs", "use": "sig"}),
		public(k.p256, object{"kid": "es"}),
		public(k.p384, object{"kid": "es384"}),
		public(k.p521, object{"kid": "es512"}),
		public(k.ed, object{"kid": "ed", "key_ops": []string{"verify"}}),
	)
}

func write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testConfig(t testing.TB) IssuerConfig {
	return IssuerConfig{
		Name: "corp", Issuer: testIssuer, Audiences: []string{"intranet"},
		JWKSFile:   write(t, "jwks.json", allKeys()),
		Algorithms: strings.Fields("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA"),
		Claims:     map[string]string{"groups": "realm_access.roles"},
	}
}

func newIssuer(t testing.TB, cfg IssuerConfig) *Issuer {
	t.Helper()
	i, err := NewIssuer(cfg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func newCache(t testing.TB) *Cache {
	t.Helper()
	c, err := NewCache(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func deref[T any](v T) *T { return &v }

func reason(e *Error) string {
	if e == nil {
		return "accepted"
	}
	if e.Detail == "" {
		return fmt.Sprintf("%s without a detail", e.Reason)
	}
	return string(e.Reason)
}

// rewrite changes a file as an administrator's tool does: all at once.
func rewrite(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
