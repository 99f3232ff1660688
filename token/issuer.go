package token

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// An IssuerConfig says whose tokens are believed, and within which limits. The
// fields are those of an entry of issuers in the configuration file.
type IssuerConfig struct {
	// Name is how routes, logs and metrics call the issuer. Required.
	Name string `yaml:"name"`
	// Issuer is compared byte for byte with a token's iss. Required; an http or
	// https URL if the keys are discovered.
	Issuer string `yaml:"issuer"`
	// Audiences: a token's aud must contain one of them. Required: without it a
	// token that the issuer made for another application would be good here.
	Audiences []string `yaml:"audiences"`

	// JWKSURL is where the keys are fetched. Excludes JWKSFile; without either, the
	// address is discovered from the issuer (OpenID Connect Discovery section 4).
	JWKSURL string `yaml:"jwks_url"`
	// JWKSFile holds the keys; it is read again when it changes. Excludes JWKSURL.
	JWKSFile string `yaml:"jwks_file"`

	// Algorithms are the signature algorithms that tokens may use, of RS256, RS384,
	// RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA (Ed25519). Default
	// RS256, ES256, EdDSA. Symmetric ones and none do not exist here.
	Algorithms []string `yaml:"algorithms"`
	// TokenTypes are the values that typ may have, without regard to case and to a
	// leading "application/". A token without typ counts as JWT. Default at+jwt, JWT.
	TokenTypes []string `yaml:"token_types"`

	// MaxLifetime is the longest exp − iat of a token. It also bounds how long a
	// revocation must be remembered. Default 24h.
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	// Leeway forgives clocks that differ, for exp and nbf. Default 30s.
	Leeway *time.Duration `yaml:"leeway"`
	// Skew is how far in the future iat may be. Default 2s.
	Skew *time.Duration `yaml:"skew"`
	// JWKSMaxAge: keys that could not be refreshed for longer are not used.
	// Default 24h.
	JWKSMaxAge time.Duration `yaml:"jwks_max_age"`

	// CAFile holds the PEM certificates that the key server's must lead to, in place
	// of the system's. Read at load.
	CAFile string `yaml:"ca_file"`
	// RequireJTI refuses tokens without jti. Default true; without a jti a token's
	// identity is the SHA-256 of its signing input.
	RequireJTI *bool `yaml:"require_jti"`
	// Claims maps logical names (scopes, session, client, groups, email, …) to the
	// paths where this issuer keeps them; see ParsePath. Default scopes: scope,
	// session: sid, client: client_id; a name without an entry is a path itself. iss,
	// aud, exp, nbf and iat cannot be mapped.
	Claims map[string]string `yaml:"claims"`
}

// A FieldError is one problem of a configuration, and where it is.
type FieldError struct {
	Field string // the path inside of what was configured, such as "audiences" or "claims.groups"
	Err   error
}

// Error is the field and what is wrong with it.
func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap is what is wrong with the field.
func (e *FieldError) Unwrap() error { return e.Err }

// An Issuer is a configuration that was found good, the issuer's keys, and a count
// of what its tokens carry. Apart from the keys, which refresh themselves, the
// count, and the names of the claims that are asked for, it never changes.
type Issuer struct {
	cfg     IssuerConfig // with the defaults filled in
	ca      []byte       // content of ca_file
	types   []string     // token types, as typeName spells them
	paths   map[string][]string
	history []Limits
	keys    *KeySet
	census  *census
	asked   atomic.Pointer[[]string] // by Claims.Value
}

// DefaultSkew is Config.Skew where nothing else is configured.
const DefaultSkew = 2 * time.Second

const (
	defaultMaxLifetime = 24 * time.Hour
	defaultLeeway      = 30 * time.Second
	longest            = 10 * 365 * 24 * time.Hour // that a duration may be; times are computed with it
)

// defaultPaths are the logical names that this package reads itself.
func defaultPaths() map[string]string {
	return map[string]string{"scopes": "scope", "session": "sid", "client": "client_id", "sub": "sub", "jti": "jti"}
}

// NewIssuer checks a configuration and makes an Issuer of it. The error joins a
// *FieldError for every problem there is.
//
// limits is the history of max_lifetime and leeway, as NextLimits keeps it; nil
// means that what is configured was always in force. prev is the same issuer
// before a reload, or nil: an equal configuration gives prev itself, so that
// cached tokens stay valid, and keys that come from the same place are kept.
// A jwks_file is read here, so its keys can be used at once; keys from the
// network are there after the first KeySet.Run or Refresh.
func NewIssuer(cfg IssuerConfig, limits []Limits, prev *Issuer) (*Issuer, error) {
	var problems []error
	problem := func(field, format string, args ...any) {
		problems = append(problems, &FieldError{field, fmt.Errorf(format, args...)})
	}

	if cfg.Name == "" {
		problem("name", "missing: routes and metrics call the issuer by it")
	}
	if cfg.Issuer == "" {
		problem("issuer", "missing: it is compared with iss")
	}
	if len(cfg.Audiences) == 0 {
		problem("audiences", "missing: without it tokens made for other applications would be good here; name the audience that the issuer puts into tokens for this one")
	}
	if slices.Contains(cfg.Audiences, "") {
		problem("audiences", "an audience is empty")
	}

	switch {
	case cfg.JWKSURL != "" && cfg.JWKSFile != "":
		problem("jwks_file", "excludes jwks_url: keep one of them")
	case cfg.JWKSURL != "":
		if err := checkURL(cfg.JWKSURL); err != nil {
			problem("jwks_url", "%w", err)
		}
	case cfg.JWKSFile == "" && cfg.Issuer != "":
		if err := checkURL(cfg.Issuer); err != nil {
			problem("issuer", "its keys cannot be discovered: %w; give jwks_url or jwks_file", err)
		} else if strings.ContainsAny(cfg.Issuer, "?#") {
			problem("issuer", "%q: keys cannot be discovered from a URL with a query; give jwks_url or jwks_file", cfg.Issuer)
		}
	}

	if cfg.Algorithms == nil {
		cfg.Algorithms = []string{"RS256", "ES256", "EdDSA"}
	}
	if len(cfg.Algorithms) == 0 {
		problem("algorithms", "empty: no token could be verified; leave it out for the default")
	}
	for _, alg := range cfg.Algorithms {
		switch {
		case signingMethod(alg) != nil:
		case len(alg) > 2 && strings.EqualFold(alg[:2], "HS"):
			problem("algorithms", "%s is symmetric: whoever can verify a token could make one; use RS256, ES256 or EdDSA", clip(alg))
		case strings.EqualFold(alg, "none"):
			problem("algorithms", "none is no signature; use RS256, ES256 or EdDSA")
		default:
			problem("algorithms", "%q is unknown; there are RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA", alg)
		}
	}

	if cfg.TokenTypes == nil {
		cfg.TokenTypes = []string{"at+jwt", "JWT"}
	}
	if len(cfg.TokenTypes) == 0 {
		problem("token_types", "empty: no token could be accepted; leave it out for the default")
	}
	if slices.Contains(cfg.TokenTypes, "") {
		problem("token_types", "a type is empty; a token without typ counts as JWT")
	}

	duration := func(field string, d *time.Duration, fallback time.Duration) {
		if *d == 0 {
			*d = fallback
		}
		if *d < 0 || *d > longest {
			problem(field, "%v is not between 0 and %v", *d, longest)
		}
	}
	duration("max_lifetime", &cfg.MaxLifetime, defaultMaxLifetime)
	duration("jwks_max_age", &cfg.JWKSMaxAge, 24*time.Hour)
	optional := func(field string, d **time.Duration, fallback time.Duration) {
		if *d == nil {
			*d = &fallback
		}
		if **d < 0 || **d > longest {
			problem(field, "%v is not between 0 and %v", **d, longest)
		}
	}
	optional("leeway", &cfg.Leeway, defaultLeeway)
	optional("skew", &cfg.Skew, DefaultSkew)
	if cfg.RequireJTI == nil {
		required := true
		cfg.RequireJTI = &required
	}

	claims := defaultPaths()
	maps.Copy(claims, cfg.Claims)
	cfg.Claims = claims
	paths := make(map[string][]string, len(claims))
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		switch name {
		case "iss", "aud", "exp", "nbf", "iat":
			problem("claims."+name, "%s is fixed and cannot be mapped", name)
			continue
		}
		path, err := ParsePath(claims[name])
		if err != nil {
			problem("claims."+name, "%w", err)
		}
		paths[name] = path
	}

	i := &Issuer{cfg: cfg, paths: paths, history: slices.Clone(limits), census: &census{}}
	i.asked.Store(&[]string{})
	for _, t := range cfg.TokenTypes {
		i.types = append(i.types, typeName(t))
	}

	var pool *x509.CertPool
	if cfg.CAFile != "" {
		ca, err := os.ReadFile(cfg.CAFile)
		pool = x509.NewCertPool()
		switch {
		case err != nil:
			problem("ca_file", "%w", err)
		case !pool.AppendCertsFromPEM(ca):
			problem("ca_file", "%q holds no PEM certificate", cfg.CAFile)
		}
		i.ca = ca
	}
	if i.keys = newKeySet(cfg, pool); cfg.JWKSFile != "" {
		if err := i.keys.load(); err != nil {
			if text := err.Error(); strings.Contains(text, noUsableKey) {
				err = fmt.Errorf("%s; put the issuer's public keys there, of RSA, EC or Ed25519", strings.ReplaceAll(text, "\n", ", "))
			}
			problem("jwks_file", "%w", err)
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return i.carryOver(prev), nil
}

// carryOver keeps of the previous issuer what is the same.
func (i *Issuer) carryOver(prev *Issuer) *Issuer {
	if prev != nil && i.cfg.Issuer == prev.cfg.Issuer && maps.Equal(i.cfg.Claims, prev.cfg.Claims) {
		i.census = prev.census // what was counted is called the same
	}
	if prev == nil || !bytes.Equal(i.ca, prev.ca) {
		return i
	}
	// A pruned history allows nothing that the longer one refuses among the tokens
	// that still live, so prev is as strict as the new issuer would be.
	pruned := !slices.ContainsFunc(i.history, func(l Limits) bool { return !slices.ContainsFunc(prev.history, l.equal) })
	if pruned && reflect.DeepEqual(i.cfg, prev.cfg) {
		return prev
	}
	a, b := i.cfg, prev.cfg
	if a.Issuer != b.Issuer || a.JWKSURL != b.JWKSURL || a.JWKSFile != b.JWKSFile || a.CAFile != b.CAFile {
		return i
	}
	if a.JWKSMaxAge == b.JWKSMaxAge {
		i.keys = prev.keys
	} else if i.keys.current.Load() == nil {
		i.keys.current.Store(prev.keys.current.Load()) // the same keys with another patience
	}
	return i
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("not a URL") // url.Error would repeat it, password and all
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("%q is not an http or https URL", shown(s))
	case u.User != nil:
		return fmt.Errorf("%q has credentials in it, which end up in logs", shown(s))
	}
	return nil
}

// Name is how routes, logs and metrics call the issuer.
func (i *Issuer) Name() string { return i.cfg.Name }

// URL is the issuer's iss, byte for byte.
func (i *Issuer) URL() string { return i.cfg.Issuer }

// Config is the configuration with its defaults filled in: no pointer is nil.
// The caller must not change what it points to.
func (i *Issuer) Config() IssuerConfig { return i.cfg }

// Keys are the issuer's keys.
func (i *Issuer) Keys() *KeySet { return i.keys }

// Suppose makes the claims of a token that nobody signed, for policy tests and
// explain. What is missing of exp, iat and jti is filled in; times are not
// compared with now, and neither is aud with the audiences. An error says which
// claim no token of this issuer could have.
func (i *Issuer) Suppose(claims map[string]any, now time.Time) (*Claims, error) {
	claims = maps.Clone(claims)
	if claims == nil {
		claims = map[string]any{}
	}
	if iss, ok := claims["iss"]; ok && iss != i.cfg.Issuer {
		return nil, fmt.Errorf("iss %q is not that of issuer %q, %q; leave it out", iss, i.cfg.Name, i.cfg.Issuer)
	}
	claims["iss"] = i.cfg.Issuer
	fill := func(name string, value any) {
		if _, ok := claims[name]; !ok {
			claims[name] = value
		}
	}
	fill("aud", i.cfg.Audiences[0])
	fill("iat", now.Unix())
	fill("exp", now.Add(i.cfg.MaxLifetime).Unix())

	// Through JSON, so that numbers and lists have the types that a token's have.
	text, err := json.Marshal(claims)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	payload, err := decodeObject(text)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	if path := i.paths["jti"]; !present(payload, path) {
		place(payload, path, "hypothetical")
		if text, err = json.Marshal(payload); err != nil {
			return nil, fmt.Errorf("claims: %w", err)
		}
	}
	c, refused := i.read(payload, "")
	if refused != nil {
		return nil, fmt.Errorf("claims: %s", refused.Detail)
	}
	c.keep(payload, text)
	return c, nil
}

// place sets the value at a path that is not there, unless something else stands
// in its way.
func place(object map[string]any, path []string, value any) {
	for _, name := range path[:len(path)-1] {
		if _, ok := object[name]; !ok {
			object[name] = map[string]any{}
		}
		inner, ok := object[name].(map[string]any)
		if !ok {
			return
		}
		object = inner
	}
	object[path[len(path)-1]] = value
}

// typeName is a media type as RFC 7515 section 4.1.9 lets it be shortened, in
// lower case.
func typeName(typ string) string {
	return strings.TrimPrefix(foldASCII(typ), "application/")
}
