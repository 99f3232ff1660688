package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"durward/token"
)

// standardMethods are those of RFC 9110 and RFC 5789 that a gateway forwards.
// CONNECT and TRACE are not among them: the first would turn the upstream's
// connection into a tunnel, the second would send credentials back.
var standardMethods = [...]string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut,
	http.MethodPatch, http.MethodDelete, http.MethodOptions,
}

// Compile checks the routes and builds the policy. The issuers are the names of
// all configured ones. The error joins every problem, each a *token.FieldError
// whose field is a path such as routes[2].allow[0].scopes; with an error the
// policy is nil.
func Compile(routes []RouteConfig, issuers []string) (*Policy, error) {
	c := compiler{issuers: issuers}
	p := &Policy{exact: map[string]*table{}, wildcard: map[string]*table{}, methods: map[string]bool{}}
	for _, m := range standardMethods {
		p.methods[m] = true
	}
	if len(routes) == 0 {
		c.problem("routes", "is empty: nothing would be forwarded; add a route with a path and an upstream")
	}
	hosts := map[string][]*Route{}
	folded := map[string]bool{}
	names := map[string]int{}
	withHost := 0
	for i := range routes {
		rc := &routes[i]
		c.at = fmt.Sprintf("routes[%d]", i)
		if first, taken := names[rc.Name]; taken && rc.Name != "" {
			c.problem("name", "%q is also the name of routes[%d]; names must differ, metrics and logs tell routes apart by them", rc.Name, first)
		}
		names[rc.Name] = i
		rt := c.route(rc, i)
		p.routes = append(p.routes, rt)
		for _, g := range rt.grants {
			for _, m := range g.methods {
				p.methods[m] = true
			}
		}
		if rc.Host != nil {
			withHost++
		}
		for _, host := range c.hosts(rc) {
			hosts[host] = append(hosts[host], rt)
			folded[host] = folded[host] || rc.FoldCase
		}
	}
	if withHost > 0 && withHost < len(routes) {
		for i := range routes {
			if routes[i].Host == nil {
				c.at = fmt.Sprintf("routes[%d]", i)
				c.problem("host", `is missing here but given on other routes; give every route a host ("*" for any other), or none`)
			}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		t := newTable(host, folded[host], hosts[host], func(rt *Route, err error) {
			c.at = fmt.Sprintf("routes[%d]", rt.Index)
			c.problem("path", "%v", err)
		})
		switch suffix, wild := strings.CutPrefix(host, "*."); {
		case host == "*":
			p.other = t
		case wild:
			p.wildcard[suffix] = t
		default:
			p.exact[host] = t
		}
	}
	if c.errs != nil {
		return nil, errors.Join(c.errs...)
	}
	p.warn()
	return p, nil
}

// warn notes what is allowed but often not meant.
func (p *Policy) warn() {
	for _, rt := range p.routes {
		p.warnGrants(rt)
	}
	for _, name := range slices.Sorted(maps.Keys(p.exact)) {
		_, rest, _ := strings.Cut(name, ".")
		if wild := p.wildcard[rest]; wild != nil {
			t := p.exact[name]
			if names := t.missing(wild); names != nil {
				p.warnings = append(p.warnings, token.FieldError{
					Field: fmt.Sprintf("routes[%d].host", t.routes[0].Index),
					Err: fmt.Errorf("host %q has routes of its own, so these routes of host %q do not hold there: %s; repeat the ones that should",
						t.host, wild.host, strings.Join(names, ", ")),
				})
			}
		}
	}
	if p.other == nil {
		return
	}
	tables := slices.Concat(slices.Collect(maps.Values(p.exact)), slices.Collect(maps.Values(p.wildcard)))
	slices.SortFunc(tables, func(a, b *table) int { return strings.Compare(a.host, b.host) })
	for _, t := range tables {
		if names := t.missing(p.other); names != nil && t != p.other {
			p.warnings = append(p.warnings, token.FieldError{
				Field: fmt.Sprintf("routes[%d].host", t.routes[0].Index),
				Err: fmt.Errorf("host %q has routes of its own, so these routes of host \"*\" do not hold there: %s; repeat the ones that should",
					t.host, strings.Join(names, ", ")),
			})
		}
	}
}

// warnGrants notes grants that can decide nothing.
func (p *Policy) warnGrants(rt *Route) {
	for j := range rt.grants {
		g := &rt.grants[j]
		at := fmt.Sprintf("routes[%d].%s", rt.Index, g.name)
		if g.issuers != nil && rt.Issuers != nil && !slices.ContainsFunc(g.issuers, func(name string) bool { return slices.Contains(rt.Issuers, name) }) {
			p.warnings = append(p.warnings, token.FieldError{Field: at + ".issuers",
				Err: fmt.Errorf("no token that may come here holds it: the route takes those of %s; name one of these", strings.Join(rt.Issuers, ", "))})
		}
		for i := range rt.grants {
			// Of two that say the same, the later one is named.
			if o := &rt.grants[i]; i != j && o.implied(g) && (i < j || !g.implied(o)) {
				p.warnings = append(p.warnings, token.FieldError{Field: at,
					Err: fmt.Errorf("decides nothing: whoever has it has %s too, which asks for less; remove it, or make %[1]s ask for more", o.name)})
				break
			}
		}
	}
}

// A compiler collects problems while it goes through the routes.
type compiler struct {
	issuers []string
	at      string // the route's place
	errs    []error
}

func (c *compiler) problem(field, format string, args ...any) {
	if c.at != "" {
		field = c.at + "." + field
	}
	c.errs = append(c.errs, &token.FieldError{Field: field, Err: fmt.Errorf(format, args...)})
}

func (c *compiler) route(rc *RouteConfig, index int) *Route {
	rt := &Route{
		Name: rc.Name, Index: index, Issuers: rc.Issuers, pattern: rc.Path,
		IssuesSession: rc.IssuesSession, PassAuthorization: rc.PassAuthorization, Shadow: rc.Shadow,
	}
	if rc.Name == "" {
		c.problem("name", "is missing; logs and metrics call the route by it")
	}
	if rc.Path == "" {
		rt.pattern = "/"
	} else if !strings.HasPrefix(rc.Path, "/") {
		c.problem("path", `%q must begin with "/"; the host has a key of its own, and methods belong in allow`, rc.Path)
		rt.pattern = "" // whether it conflicts with another is no question any more
	} else if err := checkPattern(rc.Path); err != nil {
		c.problem("path", "%q: %v; no request could ever match", rc.Path, err)
		rt.pattern = ""
	}
	rt.Auth = Auth(c.word("auth", rc.Auth, "required", "optional", "none"))
	rt.AllowStale = c.word("on_stale", rc.OnStale, "deny", "allow") == 1
	rt.Preflight = c.word("preflight", rc.Preflight, "deny", "forward") == 1
	rt.EncodedSlash = c.word("encoded_slash", rc.EncodedSlash, "deny", "allow") == 1
	var err error
	if rt.MaxBody, err = rc.MaxBody.Bytes(); err != nil {
		c.problem("max_body", "%v", err)
	}
	c.crossSite(rc, rt)
	if rc.PassAuthorization && rt.Auth != None {
		c.problem("pass_authorization", "is for auth: none alone; elsewhere the Authorization field is ours to read")
	}
	c.knownIssuers("issuers", rc.Issuers)
	if rc.Issuers == nil && rt.Auth != None && len(c.issuers) > 1 {
		c.problem("issuers", "is missing: with several issuers configured each route says whose tokens may come; list those of %s", strings.Join(c.issuers, ", "))
	}
	if rc.Allow != nil && len(rc.Allow) == 0 {
		c.problem("allow", "is empty; leave the key out to let every valid token in, or list grants")
	}
	for i := range rc.Allow {
		rt.grants = append(rt.grants, c.grant(&rc.Allow[i], fmt.Sprintf("allow[%d]", i), rt.Auth))
	}
	return rt
}

// checkPattern refuses literal segments that no canonical path contains.
func checkPattern(pattern string) error {
	segments := strings.Split(pattern, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") {
			segments[i] = "x"
		}
	}
	if segments[len(segments)-1] == "x" && strings.HasSuffix(pattern, "{$}") {
		segments[len(segments)-1] = ""
	}
	p, err := ReadPath(strings.Join(segments, "/"))
	if err == nil && p.parameters {
		err = errors.New("path parameters (;) cannot be part of a pattern")
	}
	return err
}

// word is the index of the value among the words; the first is the default.
func (c *compiler) word(field, value string, words ...string) int {
	if value == "" {
		return 0
	}
	i := slices.Index(words, value)
	if i < 0 {
		c.problem(field, "%q is not known; write %s", value, strings.Join(words, " or "))
		return 0
	}
	return i
}

func (c *compiler) crossSite(rc *RouteConfig, rt *Route) {
	switch cs := rc.CrossSite; {
	case cs.Word == "allow":
		return
	case cs.Word != "":
		c.problem("cross_site", "%q is not known; write allow, or a mapping with trusted_origins", cs.Word)
	case cs.TrustedOrigins != nil && len(cs.TrustedOrigins) == 0:
		c.problem("cross_site.trusted_origins", "is empty; leave cross_site out to trust the same site alone")
	}
	rt.CrossSite = http.NewCrossOriginProtection()
	rt.TrustedOrigins = rc.CrossSite.TrustedOrigins
	for i, origin := range rc.CrossSite.TrustedOrigins {
		if err := rt.CrossSite.AddTrustedOrigin(origin); err != nil {
			c.problem(fmt.Sprintf("cross_site.trusted_origins[%d]", i), "%q is not an origin such as https://app.example.com: %v", origin, err)
		}
	}
}

func (c *compiler) knownIssuers(field string, names []string) {
	if names != nil && len(names) == 0 {
		c.problem(field, "is empty: no token could ever come; name issuers (%s)", strings.Join(c.issuers, ", "))
	}
	for i, name := range names {
		if !slices.Contains(c.issuers, name) {
			c.problem(fmt.Sprintf("%s[%d]", field, i), "%q is not a configured issuer (%s)", name, strings.Join(c.issuers, ", "))
		}
	}
}

func (c *compiler) grant(gc *GrantConfig, name string, auth Auth) grant {
	g := grant{name: name, methods: gc.Methods, scopes: gc.Scopes, acr: gc.ACR, issuers: gc.Issuers}
	if gc.Methods == nil && gc.Scopes == nil && gc.Claims == nil && gc.ACR == nil && gc.MaxAge == nil && gc.Issuers == nil {
		c.problem(name, "is empty and would let everybody do everything; say what it asks for, or leave allow out to let every valid token in")
	}
	for _, list := range []struct {
		field  string
		values []string
	}{{"methods", gc.Methods}, {"scopes", gc.Scopes}, {"acr", gc.ACR}} {
		if list.values != nil && len(list.values) == 0 {
			c.problem(name+"."+list.field, "is empty; leave the key out if the grant does not ask for it")
		}
		for i, v := range list.values {
			if !isToken(v) {
				c.problem(fmt.Sprintf("%s.%s[%d]", name, list.field, i), "%q is empty or contains a blank or control character; write one value per element", v)
			}
		}
	}
	for i, m := range gc.Methods {
		switch {
		case m == http.MethodConnect || m == http.MethodTrace || m == "TRACK" || m == "PRI":
			c.problem(fmt.Sprintf("%s.methods[%d]", name, i), "%s is never forwarded", m)
		case m != strings.ToUpper(m):
			c.problem(fmt.Sprintf("%s.methods[%d]", name, i), "methods are case-sensitive; write %s", strings.ToUpper(m))
		}
	}
	if gc.Claims != nil && len(gc.Claims) == 0 {
		c.problem(name+".claims", "is empty; leave the key out if the grant does not ask for it")
	}
	for _, claim := range slices.Sorted(maps.Keys(gc.Claims)) {
		field := name + ".claims." + claim
		if _, err := token.ParsePath(claim); err != nil {
			c.problem(field, "%v", err)
		}
		values := gc.Claims[claim]
		if len(values) == 0 {
			c.problem(field, "is empty; list the values of which the claim must have one")
		}
		for _, v := range values {
			switch v := v.(type) {
			case string, bool, int, int64, uint64:
			case float64:
				if !(-exact < v && v < exact) {
					c.problem(field, "no number of a token is known to equal %v; quote it if it is meant as text", v)
				}
			default:
				c.problem(field, "%v is no string, number or boolean; quote it if it is meant as text", v)
			}
		}
		g.claims = append(g.claims, claimRule{claim, values})
	}
	if gc.MaxAge != nil {
		if g.maxAge = *gc.MaxAge; g.maxAge <= 0 {
			c.problem(name+".max_age", "%s leaves no time to use a login; write how long ago it may have been, such as 15m", g.maxAge)
		}
	}
	c.knownIssuers(name+".issuers", gc.Issuers)
	if auth == None && !(&grant{scopes: g.scopes, claims: g.claims, acr: g.acr, maxAge: g.maxAge, issuers: g.issuers}).needsNothing() {
		c.problem(name, "asks for a token, but the route has auth: none; a grant there can speak of methods only")
	}
	return g
}

// isToken tells whether s is a non-empty run of printable ASCII without blanks,
// which methods, scopes (RFC 6749 section 3.3) and acr values are.
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

// hosts are the route's hosts in canonical form; "*" if it names none.
func (c *compiler) hosts(rc *RouteConfig) []string {
	if rc.Host == nil {
		return []string{"*"}
	}
	if len(rc.Host) == 0 {
		c.problem("host", `is empty; name a host, or "*" for any other`)
	}
	var hosts []string
	for i, raw := range rc.Host {
		name, canonical := raw, raw
		if suffix, wild := strings.CutPrefix(raw, "*."); wild {
			name = suffix
		}
		if raw != "*" {
			host, err := ReadHost(name)
			if err == nil && host.Port != "" {
				err = errors.New("a port takes no part in routing; leave it out")
			}
			if err != nil {
				c.problem(fmt.Sprintf("host[%d]", i), `%q: %v; write a name, an address, "*.example.com" or "*"`, raw, err)
				continue
			}
			canonical = strings.TrimSuffix(raw, name) + host.Name
		}
		if slices.Contains(hosts, canonical) {
			c.problem(fmt.Sprintf("host[%d]", i), "%q is listed twice", raw)
			continue
		}
		hosts = append(hosts, canonical)
	}
	return hosts
}
