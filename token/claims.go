package token

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"durward/decision"
)

// Claims are the claims of a token. Outside of tests and hypothetical questions
// (Issuer.Suppose), only Verifier.Verify makes them: whoever holds *Claims holds
// a token whose signature, issuer, audience and times were checked. They are
// shared between requests and never change.
type Claims struct {
	Issuer   *Issuer
	Subject  string // "" if the token has none
	TokenID  string // jti; for a token without one, "sha256:" and the hex SHA-256 of its signing input
	Session  string // "" if the token has none
	Client   string // "" if the token has none
	ACR      string // authentication context class; "" if the token has none
	Scopes   []string
	IssuedAt time.Time
	Expiry   time.Time // exp as the token has it, without leeway
	AuthTime time.Time // zero if the token has none

	ids       [Kinds]ID   // by kind, from 1; the zero ID where the token lacks the claim
	notBefore time.Time   // nbf without leeway; zero if the token has none
	hasJTI    bool        // else TokenID is a digest
	rendered  atomic.Bool // there was a Rendering

	// What keep keeps: the payload's JSON, and of what it says the claims that are asked
	// for. Tens of thousands of decoded payloads would have the garbage collector walk
	// through dozens of objects for each.
	text   string
	known  []claim
	beside int // bytes of the claims above that do not stand in text as they are

	rendering atomic.Pointer[Rendering]
	few       [4]string // what Scopes are a slice of, mostly: one object less to look at
}

// A Rendering is what somebody makes of the claims of a token again and again, as a
// route does of its identity headers. One is kept with each token, the latest: one
// object to look at where the claims are a dozen, each of which is in no processor's
// cache if there are many tokens.
type Rendering struct {
	Of      any // who made it; compared with ==
	Values  []string
	Omitted uint64 // how many elements of lists were left out
}

// Rendering is what was kept of this maker, or nil. Like the claims it never changes.
func (c *Claims) Rendering(of any) *Rendering {
	if r := c.rendering.Load(); r != nil && r.Of == of {
		return r
	}
	return nil
}

// KeepRendering keeps it in place of another, unless it is the token's first: many
// tokens are used but once, and would only be more for the garbage collector to walk
// through.
func (c *Claims) KeepRendering(r *Rendering) {
	if c.rendered.Swap(true) {
		c.rendering.Store(r)
	}
}

// A claim is what Claims.Value returns for a name.
type claim struct {
	name  string
	value any
}

// digestPrefix begins the TokenID of a token without jti.
const digestPrefix = "sha256:"

// IsDigest tells whether a TokenID is that of a token without jti, which has no
// other name.
func IsDigest(tokenID string) bool { return strings.HasPrefix(tokenID, digestPrefix) }

// ID is the identity by which a revocation of this kind would name the token,
// and whether the token has one.
func (c *Claims) ID(kind Kind) (ID, bool) {
	if kind < 1 || int(kind) > Kinds {
		return ID{}, false
	}
	id := c.ids[kind-1]
	return id, id != ID{}
}

// Until is when the token is no longer accepted: its exp, and the leeway that it is
// held to.
func (c *Claims) Until() time.Time {
	_, leeway := c.Issuer.limits(c.IssuedAt)
	return c.Expiry.Add(leeway)
}

// Value is the claim that the issuer's claims mapping keeps under this logical
// name, else the one at this dotted path (see ParsePath). It is nil if the token
// lacks it, else a string, json.Number, bool, []any or map[string]any, which the
// caller must not change.
func (c *Claims) Value(name string) any {
	for i := range c.known {
		if c.known[i].name == name {
			return c.known[i].value
		}
	}
	payload, err := decodeObject([]byte(c.text))
	if err != nil {
		return nil // it was decoded before
	}
	c.Issuer.ask(name)
	return c.Issuer.value(payload, name)
}

// keep keeps what there is to say about a token that is authentic: what it costs to do
// so is not for whoever sends garbage to choose. text is what the payload was decoded
// from. Nobody else has the claims yet.
func (c *Claims) keep(payload map[string]any, text []byte) {
	c.text = string(text)
	// A claim mostly stands in the text as it is, unless something in it is escaped, and
	// need not be kept twice.
	share := func(s *string) {
		if at := strings.Index(c.text, *s); at >= 0 {
			*s = c.text[at : at+len(*s)]
		} else {
			c.beside += len(*s)
		}
	}
	for _, s := range [...]*string{&c.Subject, &c.TokenID, &c.Session, &c.Client, &c.ACR} {
		share(s)
	}
	for i := range c.Scopes {
		share(&c.Scopes[i])
	}
	if n := len(c.Scopes); 0 < n && n <= len(c.few) {
		copy(c.few[:], c.Scopes)
		c.Scopes = c.few[:n:n]
	}
	asked := *c.Issuer.asked.Load()
	c.known = make([]claim, len(asked))
	for n, name := range asked {
		c.known[n] = claim{name, c.Issuer.value(payload, name)}
	}
}

// renewed are the same claims with all that is asked for by now; c if they know it.
func (c *Claims) renewed() *Claims {
	if len(c.known) == len(*c.Issuer.asked.Load()) {
		return c
	}
	payload, err := decodeObject([]byte(c.text))
	if err != nil {
		return c
	}
	all, refusal := c.Issuer.read(payload, "")
	if refusal != nil {
		return c // it was read before
	}
	all.TokenID, all.hasJTI, all.ids = c.TokenID, c.hasJTI, c.ids // of a token without jti they are not in the payload
	all.keep(payload, []byte(c.text))
	return all
}

// value is Claims.Value of a payload.
func (i *Issuer) value(payload map[string]any, name string) any {
	if path, mapped := i.paths[name]; mapped {
		return lookup(payload, path)
	}
	if !strings.ContainsAny(name, `.\`) {
		return payload[name]
	}
	path, err := ParsePath(name)
	if err != nil {
		return nil
	}
	return lookup(payload, path)
}

// maxAsked is how many names are remembered. They come from the configuration, and are
// a handful.
const maxAsked = 256

// ask remembers that a claim is asked for, so that it is looked up in the next token
// while that is decoded anyway. Names are never forgotten.
func (i *Issuer) ask(name string) {
	for {
		asked := i.asked.Load()
		if slices.Contains(*asked, name) || len(*asked) == maxAsked {
			return
		}
		more := append(slices.Clip(*asked), name)
		if i.asked.CompareAndSwap(asked, &more) {
			return
		}
	}
}

func lookup(object map[string]any, path []string) any {
	for _, name := range path[:len(path)-1] {
		inner, ok := object[name].(map[string]any)
		if !ok {
			return nil
		}
		object = inner
	}
	return object[path[len(path)-1]]
}

// ParsePath splits a claim path at its dots, which reach inside objects. "\." is
// a dot and "\\" a backslash inside a name; a path with "://" in it is one name,
// as claims named by a URL are (https://example.com/groups).
func ParsePath(s string) ([]string, error) {
	if s == "" {
		return nil, errors.New("the claim path is empty")
	}
	if strings.Contains(s, "://") {
		return []string{s}, nil
	}
	var path []string
	var name strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '.':
			path = append(path, name.String())
			name.Reset()
		case '\\':
			if i++; i == len(s) || s[i] != '.' && s[i] != '\\' {
				return nil, fmt.Errorf(`claim path %q: a backslash stands before a dot or another backslash only`, s)
			}
			name.WriteByte(s[i])
		default:
			name.WriteByte(c)
		}
	}
	path = append(path, name.String())
	if slices.Contains(path, "") {
		return nil, fmt.Errorf(`claim path %q has an empty name; write "\." for a dot inside a name`, s)
	}
	return path, nil
}

// read makes Claims of a payload whose issuer and audience were checked. It
// refuses what it cannot be sure about: a jti, session, subject or client of the
// wrong type would be a token that no revocation can name. signed is the signing
// input, which identifies a token without a jti; unlike the whole token it has
// one spelling only, however its signature is written. Claims.keep completes it.
func (i *Issuer) read(payload map[string]any, signed string) (*Claims, *Error) {
	r := claimReader{paths: i.paths, payload: payload}
	c := &Claims{
		Issuer:    i,
		IssuedAt:  r.time("iat", true),
		Expiry:    r.time("exp", true),
		notBefore: r.time("nbf", false),
		AuthTime:  r.time("auth_time", false),
		TokenID:   r.text("jti"),
		Subject:   r.text("sub"),
		Session:   r.text("session"),
		Client:    r.text("client"),
		ACR:       r.text("acr"),
		Scopes:    r.scopes(),
	}
	if value := lookup(payload, i.paths["jti"]); value == "" || value == nil && *i.cfg.RequireJTI {
		r.refuse("jti is missing or empty")
	}
	// Security event and logout tokens are signed by the same keys and say nothing
	// about what their bearer may do (RFC 8417 section 4.1, OpenID Connect
	// Back-Channel Logout section 2.4).
	if _, event := payload["events"]; event {
		r.refuse("events: a security event or logout token is no access token")
	}
	// A sender-constrained token (RFC 7800) without the proof is a stolen one.
	if _, bound := payload["cnf"]; bound {
		r.refuse("cnf: the token is bound to a key, and this gateway does not verify the binding")
	}
	if r.err != nil {
		return nil, r.err
	}
	if c.hasJTI = c.TokenID != ""; !c.hasJTI {
		sum := sha256.Sum256([]byte(signed))
		c.TokenID = digestPrefix + hex.EncodeToString(sum[:])
	}
	identify := func(kind Kind, value string) {
		if value != "" {
			c.ids[kind-1] = Identify(kind, i.cfg.Issuer, value)
		}
	}
	identify(KindToken, c.TokenID)
	identify(KindSession, c.Session)
	identify(KindSubject, c.Subject)
	identify(KindClient, c.Client)
	c.ids[KindIssuer-1] = Identify(KindIssuer, i.cfg.Issuer, "")
	return c, nil
}

// A claimReader reads typed claims and keeps the first refusal.
type claimReader struct {
	paths   map[string][]string
	payload map[string]any
	err     *Error
}

func (r *claimReader) refuse(format string, args ...any) {
	if r.err == nil {
		r.err = &Error{decision.TokenClaims, fmt.Sprintf(format, args...)}
	}
}

// path is where the claim of a logical name stands.
func (r *claimReader) path(name string) []string {
	if path, mapped := r.paths[name]; mapped {
		return path
	}
	return []string{name}
}

// text is the claim under a logical name, "" if the token lacks it.
func (r *claimReader) text(name string) string {
	path := r.path(name)
	v := lookup(r.payload, path)
	if v == nil && !present(r.payload, path) {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		r.refuse("%s is not a string", strings.Join(path, "."))
	}
	return s
}

// scopes reads "read write" (RFC 8693 section 4.2) as well as ["read", "write"].
func (r *claimReader) scopes() []string {
	path := r.paths["scopes"]
	switch v := lookup(r.payload, path).(type) {
	case string:
		return strings.FieldsFunc(v, func(c rune) bool { return c == ' ' })
	case []any:
		scopes, err := textOrList(v)
		if err != nil {
			r.refuse("%s %v", strings.Join(path, "."), err)
		}
		return scopes
	default:
		if v != nil || present(r.payload, path) {
			r.refuse("%s is neither a string nor an array of strings", strings.Join(path, "."))
		}
	}
	return nil
}

// present tells a claim that is null, or below something that is no object, which
// have the wrong type, from one that is not there.
func present(object map[string]any, path []string) bool {
	for _, name := range path[:len(path)-1] {
		outer, ok := object[name]
		if !ok {
			return false
		}
		if object, ok = outer.(map[string]any); !ok {
			return true
		}
	}
	_, ok := object[path[len(path)-1]]
	return ok
}

// latest is the first second of the year 10000, where RFC 3339 ends.
const latest = 253402300800

// time reads the NumericDate (RFC 7519 section 2) under a logical name: seconds,
// fractions allowed. The
// range is checked before the conversion, because a float64 beyond int64 wraps
// into the far past, which made 1e308 a valid nbf elsewhere. Microseconds are
// kept, what a float64 can tell apart.
func (r *claimReader) time(name string, required bool) time.Time {
	path := r.path(name)
	v := lookup(r.payload, path)
	if v == nil && !present(r.payload, path) {
		if required {
			r.refuse("%s is missing", name)
		}
		return time.Time{}
	}
	number, ok := v.(json.Number)
	if !ok {
		r.refuse("%s is not a number", name)
		return time.Time{}
	}
	seconds, err := strconv.ParseFloat(string(number), 64)
	if err != nil || !(seconds > 0 && seconds < latest) {
		r.refuse("%s is out of range: %s", name, clip(string(number)))
		return time.Time{}
	}
	return time.UnixMicro(int64(seconds * 1e6))
}
