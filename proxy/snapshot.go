package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"durward/decision"
	"durward/denylist"
	"durward/policy"
	"durward/token"
)

// ownPaths begin the paths on the public listener that are the gateway's own and
// are never forwarded.
var ownPaths = [...]string{"/.durward/", "/.well-known/durward/"}

// OwnPaths are what the gateway's own paths begin with.
func OwnPaths() []string { return ownPaths[:] }

// KeysPath is where the public keys of the signed assertions are.
const KeysPath = "/.well-known/durward/jwks.json"

// A Snapshot is everything that a decision depends on: built whole, never
// changed, and loaded once per request, so that no decision mixes two
// configurations. Only what it points to lives on: keys, denylist, connections.
type Snapshot struct {
	Generation uint64
	Policy     *policy.Policy
	Tokens     *token.Verifier
	Denied     *denylist.List
	Routes     []Route // by policy.Route.Index
	Session    Session
	Proxies    TrustedProxies
	LoginURL   string // with {url}; "" for none
	// HideReasons leaves the header Durward-Reason and the reason member out.
	HideReasons bool
	Limits      Limits
	Streams     Streams
	Tracing     Tracing

	cookies    []string // session cookie names of all routes, to be stripped
	protected  nameSet
	publicKeys []byte
}

// A Route is what the proxy knows of a route beside its policy.
type Route struct {
	Upstream *Upstream
	Finder   token.Finder
	Identity *Identity
}

// Limits bound what a request may bring.
type Limits struct {
	HeaderBytes   int // of the header section, names and values
	HeaderFields  int
	CookieBytes   int           // of all Cookie fields
	HeaderTimeout time.Duration // for the header section to arrive
	IdleTimeout   time.Duration // between requests, and for a body to make progress in either direction
}

// Prepare completes a snapshot whose exported fields are set.
func (s *Snapshot) Prepare() {
	var identities []*Identity
	var assertions []*Assertion
	for _, rt := range s.Routes {
		identities = append(identities, rt.Identity)
		assertions = append(assertions, rt.Identity.assertion)
		if name := rt.Finder.Cookie; name != "" && !slices.Contains(s.cookies, name) {
			s.cookies = append(s.cookies, name)
		}
	}
	if name := s.Session.Cookie; name != "" && !slices.Contains(s.cookies, name) {
		s.cookies = append(s.cookies, name)
	}
	s.protected = newNameSet(identities)
	s.publicKeys = publicKeys(assertions)
}

// A Passage is what a decision found out that forwarding needs. It is complete
// only if the record says Allow.
type Passage struct {
	peer      peer
	host      policy.Host
	path      policy.Path
	query     string // raw, with its question mark; "" for none
	route     *policy.Route
	own       string // the gateway's own path; "" for a route
	cred      token.Credential
	claims    *token.Claims
	preflight bool
}

// Decide walks a request through the policy and writes the outcome into rec,
// whose Time is the time of every check. It sends nothing and changes nothing,
// so that explain and tests ask the very code that serves.
func (s *Snapshot) Decide(r *http.Request, rec *decision.Record) Passage {
	p, ok := s.enter(r, rec)
	if !ok {
		return p
	}
	if p.own != "" {
		s.decideOwn(r, rec, &p)
		return p
	}
	rt := p.route
	switch {
	case rt.Preflight && isPreflight(r):
		rec.Trace.Pass("preflight", "a CORS preflight passes without credential, body or identity")
		p.preflight = true
		rec.Allow(decision.Public)
	case rt.Auth == policy.None:
		rec.Trace.Pass("auth", "none: the route asks for no token")
		rt.Decide(r.Method, nil, rec)
	default:
		if !s.authenticate(r, rec, &p) || !checkCrossSite(r, rec, &p) {
			return p
		}
		rt.Decide(r.Method, p.claims, rec)
	}
	if rec.Verdict == decision.Allow && rt.MaxBody > 0 && r.ContentLength > rt.MaxBody {
		rec.Trace.Fail("body", "%d bytes; max_body is %d", r.ContentLength, rt.MaxBody)
		rec.Refuse(decision.TooLarge, fmt.Sprintf("a body of %d bytes; the route takes %d", r.ContentLength, rt.MaxBody))
	}
	return p
}

// Suppose answers what would happen to a request whose token had these claims
// and counted as verified and not revoked (steps 4 to 6 of the walk); nil claims
// are no credential. Policy tests and explain -claims ask it.
func (s *Snapshot) Suppose(r *http.Request, claims *token.Claims, rec *decision.Record) {
	p, ok := s.enter(r, rec)
	if !ok {
		return
	}
	if p.own != "" {
		rec.Refuse(decision.NoRoute, "the path is the gateway's own")
		return
	}
	if claims != nil && p.route.Auth != policy.None && !accepts(p.route.Issuers, claims.Issuer) {
		rec.Refuse(decision.TokenIssuer, fmt.Sprintf("the route takes no token of issuer %q", claims.Issuer.Name()))
		return
	}
	if finder := s.Routes[p.route.Index].Finder; finder == (token.Finder{}) {
		claims = nil // whatever a request brings, it is not read
	}
	p.route.Decide(r.Method, claims, rec)
}

func accepts(names []string, issuer *token.Issuer) bool {
	return names == nil || slices.Contains(names, issuer.Name())
}

// enter takes the steps before any credential is looked at: limits, the one
// reading of method, host and path, and the route.
func (s *Snapshot) enter(r *http.Request, rec *decision.Record) (p Passage, ok bool) {
	// Until they are judged, what came stands in the record, cut to size.
	rec.Method, rec.Host = clip(r.Method), clip(r.Host)
	refuse := func(reason decision.Reason, detail string) (Passage, bool) {
		if rec.Trace != nil && reason != decision.NoRoute { // which Find explains
			rec.Trace.Fail("request", "%s", detail)
		}
		rec.Refuse(reason, detail)
		return p, false
	}
	if r.Header[FrontField] != nil {
		return refuse(refused(r, rec))
	}
	if err := s.Limits.check(r.Header); err != nil {
		rec.Status = http.StatusRequestHeaderFieldsTooLarge
		return refuse(decision.TooLarge, err.Error())
	}
	if r.ProtoMajor == 1 && r.ProtoMinor > 1 {
		return refuse(decision.AmbiguousRequest, "there is no HTTP/1 version above 1.1")
	}
	if err := s.Policy.CheckMethod(r.Method); err != nil {
		return refuse(decision.AmbiguousRequest, err.Error())
	}
	if err := checkNames(r); err != nil {
		return refuse(decision.AmbiguousRequest, err.Error())
	}
	var err error
	if p.peer, err = s.Proxies.peer(r); err != nil {
		return refuse(decision.AmbiguousRequest, err.Error())
	}
	rec.Client = p.peer.client
	if p.host, err = policy.ReadHost(p.peer.host); err != nil {
		return refuse(decision.AmbiguousRequest, err.Error())
	}
	rec.Host = p.host.Name
	if p.path, p.query, err = policy.ReadTarget(r.RequestURI); err != nil {
		target, _, _ := strings.Cut(r.RequestURI, "?")
		rec.Path = clip(target)
		return refuse(decision.AmbiguousRequest, err.Error())
	}
	rec.Path = clip(p.path.Decoded())
	if rec.Trace != nil {
		rec.Trace.Pass("request", "%s, host %q, path %q, client %s", r.Method, p.host.Name, p.path.Escaped(), p.peer.client)
	}
	for _, own := range ownPaths {
		if p.path.Under(own) {
			p.own = p.path.Escaped()
			rec.Trace.Add("route", "the path is the gateway's own")
			return p, true
		}
	}
	if s.Session.Path != "" && p.path.Escaped() == s.Session.Path {
		p.own = s.Session.Path
		return p, true
	}
	if p.route, err = s.Policy.Find(p.host, p.path, rec.Trace); p.route != nil {
		rec.Route, rec.Upstream = p.route.Name, s.Routes[p.route.Index].Upstream.Name
	}
	if err != nil {
		return refuse(decision.AmbiguousRequest, err.Error())
	}
	if p.route == nil {
		return refuse(decision.NoRoute, "no route is configured for this host and path")
	}
	if err := p.route.CheckMethod(r.Method); err != nil {
		return refuse(decision.AmbiguousRequest, err.Error())
	}
	return p, true
}

func clip(s string) string {
	const most = 1024
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// check refuses a header section that is too large. One that is much larger never
// gets here: the front, and the server for HTTP/2, stop at twice the limit.
func (l Limits) check(h http.Header) error {
	fields, size, cookies := 0, 0, 0
	for name, values := range h {
		fields += len(values)
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
			if name == "Cookie" {
				cookies += len(v)
			}
		}
	}
	switch {
	case fields > l.HeaderFields:
		return fmt.Errorf("%d header fields; the limit is %d (limits.header_fields)", fields, l.HeaderFields)
	case cookies > l.CookieBytes:
		return fmt.Errorf("%d bytes of cookies; the limit is %d (limits.cookie_bytes)", cookies, l.CookieBytes)
	case size > l.HeaderBytes:
		return fmt.Errorf("%d bytes of headers; the limit is %d (limits.header_bytes)", size, l.HeaderBytes)
	}
	return nil
}

// checkNames refuses fields that a folding server takes for one that frames or
// routes the request, an HTTP/2 host field that contradicts :authority, lengths on
// HTTP/2 that the front would refuse on HTTP/1, and an Expect that only some servers
// take for 100-continue.
func checkNames(r *http.Request) error {
	var buf [64]byte
	for name, values := range r.Header {
		if canonical, frames := framingNames[string(appendFolded(buf[:0], name))]; frames && name != canonical {
			return fmt.Errorf("the header field %q is another spelling of %s", clip(name), canonical)
		}
		if name == "Host" && (len(values) != 1 || values[0] != r.Host) {
			return errors.New("the host field differs from :authority")
		}
		// HTTP/2 goes by the first, and takes one that is no number for 0.
		if name == "Content-Length" {
			if _, err := strconv.ParseUint(values[0], 10, 63); err != nil || len(values) != 1 {
				return errors.New("a Content-Length that is no number, or more than one")
			}
		}
		// net/http answers "y 100-continue" with 100 and passes it on as it came.
		if name == "Expect" && (len(values) != 1 || !strings.EqualFold(values[0], "100-continue")) {
			return errors.New("an Expect other than 100-continue")
		}
	}
	return nil
}

// authenticate takes steps 3 to 5: credential, token, denylist. It leaves
// p.claims nil only where the route lets a request without credential go on.
func (s *Snapshot) authenticate(r *http.Request, rec *decision.Record, p *Passage) bool {
	rt := p.route
	finder := s.Routes[rt.Index].Finder
	cred, problem := finder.Find(r.Header)
	if problem != nil {
		if rec.Trace != nil {
			rec.Trace.Fail("credential", "%s", problem.Detail)
		}
		rec.Refuse(problem.Reason, problem.Detail)
		return false
	}
	if cred.Raw == "" {
		if rt.Auth == policy.Optional {
			rec.Trace.Pass("credential", "none, and the route goes on without")
			return true
		}
		if rec.Trace != nil {
			rec.Trace.Fail("credential", "none: looked for %s", places(finder))
		}
		rec.Refuse(decision.NoToken, "neither session cookie nor bearer token")
		return false
	}
	p.cred = cred
	if rec.Trace != nil {
		rec.Trace.Pass("credential", "found in %s", map[bool]string{true: "the session cookie", false: "the Authorization header"}[cred.Cookie])
	}
	p.claims, problem = s.Tokens.Verify(r.Context(), cred.Raw, rt.Issuers, rec.Time, rec.Trace)
	if problem != nil {
		rec.Refuse(problem.Reason, problem.Detail)
		return false
	}
	return s.checkDenied(rec, p.claims, rt.AllowStale)
}

// checkDenied asks the denylist, after every verification and every cache hit.
func (s *Snapshot) checkDenied(rec *decision.Record, c *token.Claims, allowStale bool) bool {
	rec.Issuer, rec.Subject, rec.Session, rec.TokenID = c.Issuer.Name(), clip(c.Subject), clip(c.Session), clip(c.TokenID)
	if kind := s.Denied.Check(c, rec.Time); kind != 0 {
		if rec.Trace != nil {
			rec.Trace.Fail("denylist", "%s", s.revocation(kind, c))
			s.explainFeeds(rec, c.Issuer.URL())
		}
		rec.Refuse(decision.Revoked, "revoked by "+kind.String())
		return false
	}
	state := s.Denied.State(c.Issuer.URL(), rec.Time)
	passes := state == denylist.Live || state == denylist.Stale && allowStale
	if rec.Trace != nil {
		held := s.Denied.Stats().Total
		switch {
		case !passes:
			rec.Trace.Fail("denylist", "none of %d entries matches, but the list is %s and may not know everything", held, state)
		case state != denylist.Live:
			rec.Trace.Pass("denylist", "none of %d entries matches; the list is %s, and the route goes on all the same (on_stale: allow)", held, state)
		default:
			rec.Trace.Pass("denylist", "none of %d entries matches; the list is %s", held, state)
		}
		s.explainFeeds(rec, c.Issuer.URL())
	}
	if passes {
		return true
	}
	rec.Refuse(decision.DenylistStale, fmt.Sprintf("a revocation feed is %s", state))
	return false
}

// places says where a credential would have been found.
func places(f token.Finder) string {
	var all []string
	if f.Cookie != "" {
		all = append(all, fmt.Sprintf("the cookie %q", f.Cookie))
	}
	if f.Bearer {
		all = append(all, "Authorization: Bearer")
	}
	if all == nil {
		return "nothing: cookie and bearer are both off here"
	}
	return strings.Join(all, " and ")
}

// revocation is the rule that refuses the token, for an operator.
func (s *Snapshot) revocation(kind token.Kind, c *token.Claims) string {
	value := map[token.Kind]string{token.KindToken: c.TokenID, token.KindSession: c.Session, token.KindSubject: c.Subject, token.KindClient: c.Client}[kind]
	text := fmt.Sprintf("revoked by %s %q", kind, clip(value))
	if kind == token.KindIssuer {
		text = fmt.Sprintf("revoked with all tokens of issuer %q", c.Issuer.Name())
	}
	entry, ok := s.Denied.Lookup(kind, c.Issuer.URL(), value)
	switch {
	case !ok:
	case entry.Before.IsZero():
		text += ", whenever issued"
	default:
		text += fmt.Sprintf(", for what was issued at or before %s; this one was at %s", entry.Before.Format(time.RFC3339), c.IssuedAt.UTC().Format(time.RFC3339))
	}
	if ok {
		text += "; remembered until " + entry.Until.Format(time.RFC3339)
	}
	return text
}

// explainFeeds says who vouches for the denylist, and how freshly.
func (s *Snapshot) explainFeeds(rec *decision.Record, issuer string) {
	const most = 8
	sources := s.Denied.Sources()
	if len(sources) == 0 {
		rec.Trace.Add("feed", "none is configured: only what is revoked through this gateway is known")
	}
	for i, source := range sources {
		if i == most {
			rec.Trace.Add("feed", "and %d more", len(sources)-most)
			return
		}
		st := source.Status(rec.Time)
		heard := "never heard from"
		if st.Age >= 0 {
			heard = fmt.Sprintf("heard from %s ago", st.Age.Round(time.Millisecond))
		}
		text := fmt.Sprintf("%q is %s, %s, brought %d revocations", st.Name, st.State, heard, st.Applied)
		if slices.Contains(st.Marked, issuer) {
			text += "; it cannot vouch for this issuer"
		}
		if st.Error != "" {
			text += "; " + clip(strings.ReplaceAll(st.Error, "\n", "; "))
		}
		if st.State == denylist.Live && !slices.Contains(st.Marked, issuer) {
			rec.Trace.Pass("feed", "%s", text)
		} else {
			rec.Trace.Fail("feed", "%s", text)
		}
	}
}

// checkCrossSite is step 6: a request that the browser of a signed-in user was
// made to send by another site. A bearer token does not come by itself.
func checkCrossSite(r *http.Request, rec *decision.Record, p *Passage) bool {
	if !p.cred.Cookie || p.route.CrossSite == nil {
		return true
	}
	if err := crossSite(r, p, p.route.CrossSite, p.route.TrustedOrigins); err != nil {
		if rec.Trace != nil {
			rec.Trace.Fail("cross-site", "%v; Origin %q, Sec-Fetch-Site %q, host %q", err, clip(r.Header.Get("Origin")), clip(r.Header.Get("Sec-Fetch-Site")), p.host)
		}
		rec.Refuse(decision.CrossSite, err.Error())
		return false
	}
	rec.Trace.Pass("cross-site", "the request comes from the same site, or is safe")
	return true
}

// crossSite checks unsafe methods by Fetch Metadata and Origin, and WebSocket
// handshakes, which are GET and bring no Fetch Metadata, by Origin. The host
// compared with is the judged one, and a page that came without TLS, which anybody
// on its way can write, is another site to a request with it.
func crossSite(r *http.Request, p *Passage, protection *http.CrossOriginProtection, trusted []string) error {
	if len(r.Header["Origin"]) > 1 || len(r.Header["Sec-Fetch-Site"]) > 1 {
		return errors.New("the field Origin or Sec-Fetch-Site stands twice")
	}
	host := p.host.String()
	judged := http.Request{Method: r.Method, Header: r.Header, Host: host, URL: &url.URL{}}
	if err := protection.Check(&judged); err != nil {
		return err
	}
	origins, webSocket := r.Header["Origin"], isWebSocket(r.Header)
	if len(origins) == 0 || slices.Contains(trusted, origins[0]) || isSafe(r.Method) && !webSocket {
		return nil
	}
	origin, err := url.Parse(origins[0])
	switch {
	case webSocket && (err != nil || origin.Host == "" || origin.Host != host):
		return errors.New("a WebSocket handshake from another origin")
	case p.peer.https && err == nil && origin.Scheme == "http":
		return errors.New("a request with TLS from a page without it")
	}
	return nil
}

// isSafe is whether a method changes nothing (RFC 9110 section 9.2.1), of those that
// are known to be so; asking twice does no harm either.
func isSafe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// isWebSocket tells whether a request asks to become a WebSocket (RFC 6455
// section 4.1); isOnlyWebSocket, whether it asks for nothing else.
func isWebSocket(h http.Header) bool {
	for _, field := range h["Upgrade"] {
		for protocol := range strings.SplitSeq(field, ",") {
			if strings.EqualFold(strings.TrimSpace(protocol), "websocket") {
				return true
			}
		}
	}
	return false
}

func isOnlyWebSocket(h http.Header) bool {
	up := h["Upgrade"]
	return len(up) == 1 && strings.EqualFold(up[0], "websocket")
}

// A Hypothetical builds the request that a method and an absolute URL describe,
// as if it had come over the wire: nothing in the URL is normalised.
func Hypothetical(method, rawURL string, header http.Header) (*http.Request, error) {
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok || scheme != "http" && scheme != "https" {
		return nil, fmt.Errorf("%q is not an absolute http or https URL", rawURL)
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	r := &http.Request{Method: method, Host: rest[:end], RequestURI: rest[end:], Header: header, ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: "127.0.0.1:0"}
	if r.RequestURI == "" {
		r.RequestURI = "/"
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
		r.Header.Del("Host")
	}
	if n, err := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		r.ContentLength = n
	}
	if scheme == "https" {
		r.TLS = &tls.ConnectionState{}
	}
	return r, nil
}
