package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"durward/token"
)

var base64Std = base64.StdEncoding

// An AssertionConfig adds a JWT by which the upstream can verify, instead of
// trust, what the gateway says.
type AssertionConfig struct {
	// Header that carries the JWT, such as X-Identity-Assertion. Required.
	Header string `yaml:"header"`
	// KeyFile is a PEM private key (PKCS #8): P-256 for ES256, or Ed25519 for
	// EdDSA. Its public half is served at /.well-known/durward/jwks.json. Required.
	KeyFile string `yaml:"key_file"`
	// TTL is how long the JWT is valid. Default 60s.
	TTL time.Duration `yaml:"ttl"`
}

// An Assertion signs the identity of each request for its upstream.
type Assertion struct {
	header string
	ttl    time.Duration
	method jwt.SigningMethod
	key    crypto.Signer
	kid    string
	jwk    map[string]string
}

// NewAssertion reads the key. The error joins all problems, each a
// *token.FieldError.
func NewAssertion(cfg AssertionConfig) (*Assertion, error) {
	a := &Assertion{header: cfg.Header, ttl: cfg.TTL}
	var errs []error
	problem := func(field string, err error) {
		errs = append(errs, &token.FieldError{Field: field, Err: err})
	}
	if err := checkHeaderName(cfg.Header); err != nil {
		problem("header", err)
	}
	if cfg.TTL == 0 {
		a.ttl = time.Minute
	} else if cfg.TTL < time.Second {
		problem("ttl", errors.New("is shorter than a second, the resolution of a JWT's times"))
	}
	if err := a.readKey(cfg.KeyFile); err != nil {
		problem("key_file", err)
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return a, nil
}

func (a *Assertion) readKey(file string) error {
	if file == "" {
		return errors.New("is missing; make one with: openssl genpkey -algorithm ed25519 -out assertion.pem")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fmt.Errorf("%s is not PEM", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if ec, ecErr := x509.ParseECPrivateKey(block.Bytes); err != nil && ecErr == nil {
		key, err = ec, nil
	}
	if err != nil {
		return fmt.Errorf("%s is not a PKCS #8 private key: %w", file, err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	var thumbprint string // RFC 7638: the required members in lexical order
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return fmt.Errorf("%s holds a key on %s; ES256 needs P-256", file, k.Curve.Params().Name)
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		x, y := b64(point[1:33]), b64(point[33:])
		a.method, a.key = jwt.SigningMethodES256, k
		a.jwk = map[string]string{"kty": "EC", "crv": "P-256", "x": x, "y": y}
		thumbprint = fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, x, y)
	case ed25519.PrivateKey:
		x := b64(k.Public().(ed25519.PublicKey))
		a.method, a.key = jwt.SigningMethodEdDSA, k
		a.jwk = map[string]string{"kty": "OKP", "crv": "Ed25519", "x": x}
		thumbprint = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":%q}`, x)
	default:
		return fmt.Errorf("%s holds a %T; use P-256 or Ed25519", file, key)
	}
	sum := sha256.Sum256([]byte(thumbprint))
	a.kid = b64(sum[:])
	a.jwk["kid"], a.jwk["use"], a.jwk["alg"] = a.kid, "sig", a.method.Alg()
	return nil
}

// Header is the name of the header that carries the assertion.
func (a *Assertion) Header() string { return a.header }

// sign states who is asking, for one upstream: iss durward, aud the upstream's
// name, and the claims that an application asks for most.
func (a *Assertion) sign(c *token.Claims, upstream, id string, now time.Time) (string, error) {
	claims := jwt.MapClaims{
		"iss": "durward", "aud": upstream, "jti": id,
		"iat": now.Unix(), "exp": now.Add(a.ttl).Unix(), "idp": c.Issuer.URL(),
	}
	for _, name := range [...]string{"sub", "email", "groups", "name", "preferred_username", "acr", "auth_time"} {
		if v := c.Value(name); v != nil {
			claims[name] = v
		}
	}
	if c.Session != "" {
		claims["sid"] = c.Session
	}
	if c.Client != "" {
		claims["client_id"] = c.Client
	}
	if c.Scopes != nil {
		claims["scope"] = c.Scopes
	}
	t := jwt.NewWithClaims(a.method, claims)
	t.Header["kid"] = a.kid
	return t.SignedString(a.key)
}

// publicKeys is the JWK set (RFC 7517) of the assertions' keys.
func publicKeys(assertions []*Assertion) []byte {
	keys := []map[string]string{}
	seen := map[string]bool{}
	for _, a := range assertions {
		if a != nil && !seen[a.kid] {
			seen[a.kid] = true
			keys = append(keys, a.jwk)
		}
	}
	// Maps of strings always marshal.
	b, _ := json.Marshal(map[string]any{"keys": keys})
	return b
}
