//go:build linux

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	issuer   = "https://idp.example.com/realms/bench"
	audience = "bench"
)

// keys are an issuer's, one of each kind.
type keys struct {
	rsa     *rsa.PrivateKey
	ec      *ecdsa.PrivateKey
	ed      ed25519.PrivateKey
	started time.Time
}

// make makes the keys and writes the public ones: all as a JWK set, that of RSA as PEM too.
func (k *keys) make(jwks, pemFile string) (err error) {
	k.started = time.Now()
	if k.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return err
	}
	if k.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	if _, k.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return err
	}
	point, err := k.ec.PublicKey.Bytes()
	if err != nil {
		return err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	set, err := json.Marshal(map[string]any{"keys": []map[string]string{
		{"kty": "RSA", "kid": "RS256", "alg": "RS256", "n": b64(k.rsa.N.Bytes()), "e": b64(big.NewInt(int64(k.rsa.E)).Bytes())},
		{"kty": "EC", "kid": "ES256", "alg": "ES256", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])},
		{"kty": "OKP", "kid": "EdDSA", "alg": "EdDSA", "crv": "Ed25519", "x": b64(k.ed.Public().(ed25519.PublicKey))},
	}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(jwks, set, 0o600); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&k.rsa.PublicKey)
	if err != nil {
		return err
	}
	return os.WriteFile(pemFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
}

// time is how long a signature check of crypto/rsa takes by itself.
func (k *keys) time() time.Duration {
	sum := sha256.Sum256([]byte("bench"))
	signature, err := rsa.SignPKCS1v15(rand.Reader, k.rsa, crypto.SHA256, sum[:])
	if err != nil {
		panic(err) // the key was just made
	}
	const n = 2000
	began := time.Now()
	for range n {
		if rsa.VerifyPKCS1v15(&k.rsa.PublicKey, crypto.SHA256, sum[:], signature) != nil {
			panic("the signature does not verify")
		}
	}
	return time.Since(began) / n
}

// token signs what a usual issuer says of user number i, some 800 bytes.
func (k *keys) token(alg string, i int) string {
	t := jwt.NewWithClaims(jwt.GetSigningMethod(alg), jwt.MapClaims{
		"iss": issuer, "aud": audience, "sub": fmt.Sprintf("user-%08d", i), "jti": fmt.Sprintf("d0a1c6f4-5b0e-4a3f-9c70-%012d", i),
		"sid": fmt.Sprintf("5e0c8a1d-77b2-4d1c-8a55-%012d", i), "iat": k.started.Unix(), "exp": k.started.Add(4 * time.Hour).Unix(),
		"scope": "openid profile read write", "client_id": "shop", "email": fmt.Sprintf("user-%08d@example.com", i), "groups": []string{"staff", "sales", "emea"},
	})
	t.Header["kid"] = alg
	key := map[string]any{"RS256": k.rsa, "ES256": k.ec, "EdDSA": k.ed}[alg]
	signed, err := t.SignedString(key)
	if err != nil {
		panic(err) // the keys were just made
	}
	return signed
}

// requests are requests with so many different tokens, from number from on.
func (k *keys) requests(alg string, from, n int) [][]byte {
	all := make([][]byte, n)
	var workers sync.WaitGroup
	for w := range runtime.NumCPU() {
		workers.Go(func() {
			for i := w; i < n; i += runtime.NumCPU() {
				all[i] = get("/", k.token(alg, from+i))
			}
		})
	}
	workers.Wait()
	return all
}

// get is a request as a client sends it; "" for no token.
func get(path, token string) []byte {
	credential := ""
	if token != "" {
		credential = "Authorization: Bearer " + token + "\r\n"
	}
	return []byte("GET " + path + " HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\n" + credential + "\r\n")
}
