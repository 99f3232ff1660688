// Package token finds the JWT of a request, verifies it, and says what is in it.
//
//	Finder.Find ──► raw text ──► Verifier.Verify ──► *Claims ──► denylist, policy, identity headers
//	                                │      ▲
//	                                ▼      │ by iss, exactly
//	                              Cache   Issuer ──► KeySet ◄── URL, discovery or file
//
// A token is an attacker's text until its last check. So the cheap and local
// checks come first, and garbage causes no fetch and no signature check; JSON and
// base64url are read by decoders that refuse what has two readings, because
// golang-jwt's parser accepts duplicate and case-folded members, missing exp, line
// breaks inside of segments and much else. Of the libraries only the arithmetic is
// used: golang-jwt verifies a signature with one key, jwkset makes a key of a JWK.
//
// Keys belong to one issuer. A token is verified with its issuer's keys or not at
// all, and its identity for revocation is (issuer, claim), so that issuers cannot
// speak for each other.
//
// The zero value of everything here refuses.
package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sync/singleflight"

	"durward/decision"
)

// A Verifier verifies tokens of its issuers. It never changes; a reload makes a
// new one with the same Cache.
type Verifier struct {
	issuers  []*Issuer
	byURL    map[string]*Issuer
	cache    *Cache
	maxBytes int
	capacity *capacity
	flights  singleflight.Group // by digest of the token
	headers  headers
}

// NewVerifier makes a Verifier for issuers whose names and URLs differ; where two
// have the same URL, its tokens are refused. A nil cache remembers nothing.
// Tokens longer than maxTokenBytes are refused.
func NewVerifier(issuers []*Issuer, cache *Cache, maxTokenBytes int) *Verifier {
	v := &Verifier{
		issuers:  slices.Clone(issuers),
		byURL:    make(map[string]*Issuer, len(issuers)),
		cache:    cache,
		maxBytes: maxTokenBytes,
		capacity: newCapacity(),
	}
	for _, i := range issuers {
		if _, twice := v.byURL[i.URL()]; twice {
			v.byURL[i.URL()] = nil
			continue
		}
		v.byURL[i.URL()] = i
	}
	return v
}

// Issuers are the issuers whose tokens are verified.
func (v *Verifier) Issuers() []*Issuer { return slices.Clone(v.issuers) }

// Accepts is whether tokens of an issuer, told by its URL, are accepted at all. The
// issuer may be another configuration's.
func (v *Verifier) Accepts(i *Issuer) bool { return v.byURL[i.URL()] != nil }

// Verify checks the token and returns its claims, or says why not; exactly one of
// the two is nil. accept are the names of the issuers that the route accepts; nil
// means all, and an empty list none. now is the time of the request's arrival. It
// may wait for a key that the issuer has just begun to use, for at most 3 s, and
// for its turn to check a signature, for at most 1 s.
//
// With a trace the cache is not asked, so that every step can be told. Revocation
// is the caller's next question, after a cached answer as after a fresh one.
func (v *Verifier) Verify(ctx context.Context, raw string, accept []string, now time.Time, trace *decision.Trace) (*Claims, *Error) {
	if len(raw) > v.maxBytes {
		return refuse(trace, &Error{decision.TokenMalformed, fmt.Sprintf("the token has %d bytes, more than %d", len(raw), v.maxBytes)})
	}
	// Hashed in place: a copy would be the only allocation of a cached answer.
	digest := sha256.Sum256(unsafe.Slice(unsafe.StringData(raw), len(raw)))
	if trace == nil {
		c := v.recall(&digest, now)
		v.cache.count(c != nil)
		if c != nil {
			if err := v.recheck(c, accept, now); err != nil {
				return nil, err
			}
			return c, nil
		}
	}

	t, err := parse(raw, &v.headers)
	if err != nil {
		return refuse(trace, &Error{decision.TokenMalformed, err.Error()})
	}
	if trace != nil {
		trace.Pass("form", "%d bytes of at most %d, one spelling; alg %q, typ %q, kid %q", len(raw), v.maxBytes, clip(t.alg), clip(t.typ), clip(t.kid))
	}
	issuer, refused := v.check(t, accept, trace)
	if refused != nil {
		return refuse(trace, refused)
	}
	c, refused := issuer.read(t.payload, t.signed)
	if refused != nil {
		return refuse(trace, refused)
	}
	if trace != nil {
		trace.Pass("claims", "sub %q, jti %q, sid %q, client %q, scopes %q", clip(c.Subject), clip(c.TokenID), clip(c.Session), clip(c.Client), clip(strings.Join(c.Scopes, " ")))
	}
	if refused := issuer.checkTimes(c, now); refused != nil {
		return refuse(trace, refused)
	}
	if trace != nil {
		life, leeway := issuer.limits(c.IssuedAt)
		trace.Pass("times", "issued %v, expires %v, leeway %v; it lives for %v of at most %v", relative(c.IssuedAt, now), relative(c.Expiry, now), leeway, c.Expiry.Sub(c.IssuedAt), life)
	}
	if trace != nil { // a question about a token is no use of it
		if _, refused := v.authenticate(ctx, t, issuer, now, trace); refused != nil {
			return refuse(trace, refused)
		}
		c.keep(t.payload, t.text)
		return c, nil
	}
	if refused := v.first(ctx, &digest, t, c, now); refused != nil {
		return nil, refused
	}
	return c, nil
}

// first authenticates a token that the cache does not know, once for all requests
// that bring the same one meanwhile; what is the same, the digest of its whole text
// says, as in the cache. Whoever comes first does it in its own name: a client that
// leaves takes its place in the queue with it, and the next of those who wait begins
// anew. singleflight.DoChan was refused, with which each would wait in its own name:
// a panic in there ends the process.
func (v *Verifier) first(ctx context.Context, digest *[sha256.Size]byte, t *parsed, c *Claims, now time.Time) *Error {
	type outcome struct {
		refused *Error
		left    bool // who did it is gone, and that may be why
	}
	for {
		done, _, _ := v.flights.Do(string(digest[:]), func() (any, error) {
			keys, refused := v.authenticate(ctx, t, c.Issuer, now, nil)
			if refused != nil {
				return outcome{refused, ctx.Err() != nil}, nil
			}
			v.headers.add(t)
			c.keep(t.payload, t.text)
			c.Issuer.census.count(c, now)
			v.cache.set(&entry{*digest, c, keys.generation}, c.Until().Sub(now))
			return outcome{}, nil
		})
		o := done.(outcome)
		if o.refused == nil && c.text == "" { // another request's claims are in the cache
			c.keep(t.payload, t.text)
		}
		if !o.left || ctx.Err() != nil {
			return o.refused
		}
	}
}

// refuse tells the trace which comparison failed.
func refuse(trace *decision.Trace, e *Error) (*Claims, *Error) {
	if trace != nil {
		trace.Fail(stage(e.Reason), "%s", e.Detail)
	}
	return nil, e
}

// stage is the comparison that a refusal comes from, as a trace calls it.
func stage(reason decision.Reason) string {
	switch reason {
	case decision.TokenMalformed:
		return "form"
	case decision.TokenType:
		return "type"
	case decision.TokenIssuer:
		return "issuer"
	case decision.TokenAudience:
		return "audience"
	case decision.TokenExpired, decision.TokenNotYetValid, decision.TokenLifetime:
		return "times"
	case decision.TokenAlgorithm:
		return "algorithm"
	case decision.KeysUnavailable:
		return "keys"
	case decision.TokenSignature, decision.Overloaded:
		return "signature"
	}
	return "claims"
}

// recall is what the cache knows of the token, if the same keys would verify it
// again: its issuer is still one of ours as it was, with the same key set.
func (v *Verifier) recall(digest *[sha256.Size]byte, now time.Time) *Claims {
	e := v.cache.get(digest)
	if e == nil || v.byURL[e.claims.Issuer.URL()] != e.claims.Issuer {
		return nil
	}
	keys := e.claims.Issuer.keys.usable(now)
	if keys == nil || keys.generation != e.generation {
		return nil
	}
	c := e.claims.renewed()
	if c != e.claims {
		v.cache.set(&entry{*digest, c, e.generation}, c.Until().Sub(now))
	}
	return c
}

// recheck repeats what depends on the route and the time.
func (v *Verifier) recheck(c *Claims, accept []string, now time.Time) *Error {
	if err := accepted(c.Issuer, accept); err != nil {
		return err
	}
	return c.Issuer.checkTimes(c, now)
}

func accepted(i *Issuer, accept []string) *Error {
	if accept != nil && !slices.Contains(accept, i.Name()) {
		return &Error{decision.TokenIssuer, fmt.Sprintf("the route accepts %q, not issuer %q", accept, i.Name())}
	}
	return nil
}

// check compares typ, iss and aud.
func (v *Verifier) check(t *parsed, accept []string, trace *decision.Trace) (*Issuer, *Error) {
	iss, isString := t.payload["iss"].(string)
	issuer := v.byURL[iss]
	typ := typeName(t.typ)
	takes := func(i *Issuer) bool { return slices.Contains(i.types, typ) }
	switch {
	case issuer != nil && !takes(issuer), issuer == nil && !slices.ContainsFunc(v.issuers, takes):
		return nil, &Error{decision.TokenType, fmt.Sprintf("typ %q is not accepted", clip(t.typ))}
	case !isString:
		return nil, &Error{decision.TokenIssuer, "iss is missing or not a string"}
	case issuer == nil:
		return nil, &Error{decision.TokenIssuer, fmt.Sprintf("iss %q is no configured issuer", clip(iss))}
	}
	if trace != nil {
		trace.Pass("type", "typ %q is among %q", clip(t.typ), issuer.cfg.TokenTypes)
	}
	if err := accepted(issuer, accept); err != nil {
		return nil, err
	}
	if trace != nil {
		trace.Pass("issuer", "iss %q is issuer %q", iss, issuer.Name())
	}
	audience, err := textOrList(t.payload["aud"])
	if err != nil {
		return nil, &Error{decision.TokenAudience, "aud " + err.Error()}
	}
	if !slices.ContainsFunc(audience, func(a string) bool { return slices.Contains(issuer.cfg.Audiences, a) }) {
		return nil, &Error{decision.TokenAudience, fmt.Sprintf("aud %s has none of %q", clip(fmt.Sprintf("%q", audience)), issuer.cfg.Audiences)}
	}
	if trace != nil {
		trace.Pass("audience", "aud %s has one of %q", clip(fmt.Sprintf("%q", audience)), issuer.cfg.Audiences)
	}
	return issuer, nil
}

// checkTimes compares the token's times with now and with the limits it is held to.
func (i *Issuer) checkTimes(c *Claims, now time.Time) *Error {
	life, leeway := i.limits(c.IssuedAt)
	switch {
	case !now.Before(c.Expiry.Add(leeway)):
		return &Error{decision.TokenExpired, fmt.Sprintf("expired %v, leeway %v", relative(c.Expiry, now), leeway)}
	case !c.notBefore.IsZero() && now.Before(c.notBefore.Add(-leeway)):
		return &Error{decision.TokenNotYetValid, fmt.Sprintf("not valid before %v, leeway %v", relative(c.notBefore, now), leeway)}
	case c.IssuedAt.After(now.Add(*i.cfg.Skew)):
		return &Error{decision.TokenNotYetValid, fmt.Sprintf("issued %v, skew %v", relative(c.IssuedAt, now), *i.cfg.Skew)}
	// A login that has not happened would be fresh enough for every max_age, and
	// later than every cutoff.
	case c.AuthTime.After(now.Add(*i.cfg.Skew)):
		return &Error{decision.TokenNotYetValid, fmt.Sprintf("the login (auth_time) is %v, skew %v", relative(c.AuthTime, now), *i.cfg.Skew)}
	case c.Expiry.Sub(c.IssuedAt) > life:
		return &Error{decision.TokenLifetime, fmt.Sprintf("lives for %v, more than max_lifetime %v", c.Expiry.Sub(c.IssuedAt), life)}
	}
	return nil
}

// relative is a time as a person compares it.
func relative(t, now time.Time) string {
	text, d := t.UTC().Format(time.RFC3339), t.Sub(now).Round(time.Millisecond)
	if d < 0 {
		return fmt.Sprintf("%s (%v ago)", text, -d)
	}
	return fmt.Sprintf("%s (in %v)", text, d)
}

// authenticate holds the token against the issuer's algorithms and keys, and
// returns the set whose key verified it. The payload is not looked at.
func (v *Verifier) authenticate(ctx context.Context, t *parsed, issuer *Issuer, now time.Time, trace *decision.Trace) (*snapshot, *Error) {
	if !slices.Contains(issuer.cfg.Algorithms, t.alg) {
		return nil, &Error{decision.TokenAlgorithm, fmt.Sprintf("alg %q is not among %q", clip(t.alg), issuer.cfg.Algorithms)}
	}
	if trace != nil {
		trace.Pass("algorithm", "%s is among %q", t.alg, issuer.cfg.Algorithms)
	}
	key, keys, refused := issuer.keys.key(ctx, t, now)
	if refused != nil {
		return nil, refused
	}
	if trace != nil {
		trace.Pass("keys", "kid %q is a key of %q, %s, refreshed %v ago", clip(key.kid), issuer.Name(), key.describe(), keys.age(now).Round(time.Second))
	}
	if refused := v.checkSignature(ctx, t, key); refused != nil {
		return nil, refused
	}
	if trace != nil {
		trace.Pass("signature", "%s verifies", t.alg)
	}
	return keys, nil
}

// checkSignature is the only expensive step.
func (v *Verifier) checkSignature(ctx context.Context, t *parsed, key *jwk) *Error {
	if refused := v.capacity.take(ctx); refused != nil {
		return refused
	}
	verified, began := false, time.Now()
	defer func() { v.capacity.give(verified, time.Since(began)) }()
	err := signingMethod(t.alg).Verify(t.signed, t.signature, key.public)
	if verified = err == nil; !verified {
		return &Error{decision.TokenSignature, fmt.Sprintf("%s with kid %q: the signature does not verify", t.alg, clip(key.kid))}
	}
	return nil
}

// parsed is a token of good form, of which nothing is believed yet.
type parsed struct {
	joseHeader
	text      []byte // of the payload
	payload   map[string]any
	signed    string // the signing input: header, dot, payload
	signature []byte
}

// A joseHeader is what counts of a token's header (RFC 7515 section 4).
type joseHeader struct {
	alg, typ string // as written; typ JWT if it is missing
	kid      string
	named    bool // it has a kid
}

// headers remembers the headers of tokens that verified, by their spelling: an issuer
// writes the same one into all tokens that it signs with a key, as a rule. Only so
// many, in case it does not.
type headers struct {
	sync.RWMutex
	held map[string]joseHeader
}

const maxHeaders = 256

// get is the header that is spelled so. No headers hold none.
func (h *headers) get(spelling string) (known joseHeader, ok bool) {
	if h == nil {
		return joseHeader{}, false
	}
	h.RLock()
	defer h.RUnlock()
	known, ok = h.held[spelling]
	return known, ok
}

func (h *headers) add(t *parsed) {
	spelling, _, _ := strings.Cut(t.signed, ".")
	if _, known := h.get(spelling); known {
		return
	}
	h.Lock()
	defer h.Unlock()
	if h.held == nil {
		h.held = map[string]joseHeader{}
	}
	if len(h.held) < maxHeaders {
		h.held[strings.Clone(spelling)] = t.joseHeader // it would hold the whole token
	}
}

// parse takes a token apart. There is one spelling only of each, up to its
// signature. Headers that are known need not be read again.
func parse(raw string, known *headers) (*parsed, error) {
	t, err := open(raw, known)
	if err != nil {
		return nil, err
	}
	if t.payload, err = decodeObject(t.text); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return t, nil
}

// open takes a compact JWS (RFC 7515 section 7.1) of any payload apart.
func open(raw string, known *headers) (t *parsed, err error) {
	head, rest, _ := strings.Cut(raw, ".")
	middle, tail, two := strings.Cut(rest, ".")
	if !two || strings.Contains(tail, ".") {
		return nil, errors.New("not three segments")
	}
	t = &parsed{signed: raw[:len(head)+1+len(middle)]}
	var ok bool
	if t.joseHeader, ok = known.get(head); !ok {
		text, err := decodeSegment(head)
		if err == nil {
			t.joseHeader, err = readHeader(text)
		}
		if err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
	}
	if t.text, err = decodeSegment(middle); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if t.signature, err = decodeSegment(tail); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return t, nil
}

// readHeader takes over what counts of the header.
func readHeader(text []byte) (h joseHeader, err error) {
	members, err := decodeObject(text)
	if err != nil {
		return h, err
	}
	// Extensions that must be understood (RFC 7515 section 4.1.11), an unencoded
	// payload (RFC 7797), compression, a token inside of a token: none is, and each
	// would change what the signature says. jwk, jku, x5c and x5u are ignored: keys
	// that a token brings along prove nothing.
	for _, name := range []string{"crit", "b64", "zip", "cty"} {
		if _, ok := members[name]; ok {
			return h, fmt.Errorf("%s is not supported", name)
		}
	}
	var isString bool
	if h.alg, isString = members["alg"].(string); !isString {
		return h, errors.New("alg is missing or not a string")
	}
	h.typ = "JWT"
	if typ, ok := members["typ"]; ok {
		if h.typ, isString = typ.(string); !isString {
			return h, errors.New("typ is not a string")
		}
	}
	if kid, ok := members["kid"]; ok {
		if h.kid, h.named = kid.(string); !h.named {
			return h, errors.New("kid is not a string")
		}
	}
	return h, nil
}

// textOrList reads a string or an array of strings.
func textOrList(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, len(v))
		for i, member := range v {
			s, ok := member.(string)
			if !ok {
				return nil, errors.New("has a member that is not a string")
			}
			list[i] = s
		}
		return list, nil
	}
	return nil, errors.New("is missing, or neither a string nor an array of strings")
}
