// Package policy decides who may do what: it reads a request's path and host in
// the one way they can be read, finds the route, and judges the route's grants.
//
//	method, target, host ──ReadPath, ReadHost──► one reading, or refused
//	host  ──► table (exact, else wildcard, else "*")
//	path  ──► route in that table, and nowhere else; a method never picks one
//	grants──► allowed, or the reason that would do most for the client
//
// A Policy is compiled once, never changed, and swapped whole. Everything here is
// pure: no clock, no socket, no log. (net/http is imported for the pattern
// matcher of ServeMux and the origin check, which touch neither.)
package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"durward/decision"
	"durward/token"
)

// A Policy holds the routes by host and path. It is immutable.
type Policy struct {
	routes   []*Route
	exact    map[string]*table // by host name
	wildcard map[string]*table // by what follows the first label: "example.com"
	other    *table            // "*", or the only table there is; nil: none
	methods  map[string]bool   // that any route may speak of
	warnings []token.FieldError
}

// Auth says what a route asks of a request. Its zero value asks for a token.
type Auth uint8

const (
	Required Auth = iota // a valid token, and a grant
	Optional             // a valid token or none at all, never a bad one
	None                 // nothing; credentials and identity are stripped all the same
)

// A Route is a compiled RouteConfig.
type Route struct {
	Name  string
	Index int // in the configuration
	Auth  Auth
	// Issuers are the names of those accepted; nil accepts every configured one.
	Issuers           []string
	AllowStale        bool
	CrossSite         *http.CrossOriginProtection // nil: not checked
	TrustedOrigins    []string
	Preflight         bool
	EncodedSlash      bool
	MaxBody           int64 // 0: no limit
	IssuesSession     bool
	PassAuthorization bool
	Shadow            bool

	pattern string
	grants  []grant // nil: any valid token
}

// Pattern is the path pattern, as configured.
func (rt *Route) Pattern() string { return rt.pattern }

// Routes are all routes in the order of the configuration.
func (p *Policy) Routes() []*Route { return p.routes }

// Warnings are what a careful reader would ask about; they refuse nothing.
func (p *Policy) Warnings() []token.FieldError { return p.warnings }

// CheckMethod refuses what has no single meaning for a gateway: CONNECT and
// TRACE (which no upstream may see from here), a method in other case, and any
// that neither the standard nor a grant speaks of.
func (p *Policy) CheckMethod(method string) error {
	if !p.methods[method] {
		return errors.New("the method is neither a standard one nor named in any grant")
	}
	return nil
}

// CheckMethod refuses a method that neither the standard nor a grant of this route
// names: that another route takes it says nothing about what this one's upstream
// makes of it. A grant without methods speaks of those that are left.
func (rt *Route) CheckMethod(method string) error {
	if slices.Contains(standardMethods[:], method) || slices.ContainsFunc(rt.grants, func(g grant) bool { return slices.Contains(g.methods, method) }) {
		return nil
	}
	return errors.New("the method is neither a standard one nor named in any grant of the route")
}

// Find picks the route for a request, nil if none matches. An error says that
// two readings of the path lead to different routes.
func (p *Policy) Find(host Host, path Path, trace *decision.Trace) (*Route, error) {
	t := p.table(host.Name, trace)
	if t == nil {
		if trace != nil {
			trace.Fail("host", "no route speaks of %q; there are routes for %s", host.Name, strings.Join(p.hosts(), ", "))
		}
		return nil, nil
	}
	if trace != nil {
		t.explainHost(host.Name, p, trace)
	}
	ascii := path
	if t.fold {
		ascii, path = path.lower(), path.folded()
	}
	rt := t.find(path)
	if ascii.decoded != path.decoded && t.find(ascii) != rt {
		return nil, errors.New("the path leads to another route where letters beyond ASCII keep their case")
	}
	if path.parameters {
		// A server that cuts path parameters off would look here instead.
		bare := path.withoutParameters()
		if t.find(bare) != rt || t.fold && t.find(bare.trimmed()) != rt {
			return nil, errors.New("the path leads to another route without its parameters")
		}
	}
	if t.fold && t.find(path.trimmed()) != rt {
		// And Windows here.
		return nil, errors.New("the path leads to another route without the dots and blanks at the end of a name")
	}
	if rt == nil {
		if trace != nil {
			trace.Fail("route", "no route of host %q matches %q; its patterns are %s", t.host, path.decoded, t.patterns())
		}
		return nil, nil
	}
	if trace != nil {
		t.explainRoute(rt, path, trace)
	}
	if path.encodedSlash && !rt.EncodedSlash {
		return rt, errors.New("the path contains %2F, which the route does not allow")
	}
	return rt, nil
}

func (p *Policy) table(name string, trace *decision.Trace) *table {
	if t := p.exact[name]; t != nil {
		return t
	}
	if _, rest, ok := strings.Cut(name, "."); ok {
		if t := p.wildcard[rest]; t != nil {
			return t
		}
	}
	return p.other
}

// hosts are those that have a table, "*" last.
func (p *Policy) hosts() []string {
	hosts := slices.Sorted(maps.Keys(p.exact))
	for _, suffix := range slices.Sorted(maps.Keys(p.wildcard)) {
		hosts = append(hosts, "*."+suffix)
	}
	if p.other != nil {
		hosts = append(hosts, "*")
	}
	return hosts
}

// explainHost says why this table and no other is asked.
func (t *table) explainHost(name string, p *Policy, trace *decision.Trace) {
	switch {
	case t == p.other && len(p.exact)+len(p.wildcard) == 0:
		trace.Pass("host", "%q: no route asks for a host", name)
	case t == p.other:
		trace.Pass("host", `%q is named by no route, so those of "*" are asked`, name)
	case t.host == name:
		trace.Pass("host", "%q is named by routes, and only these are asked", name)
	default:
		trace.Pass("host", "%q falls under %q, and only the routes of that are asked", name, t.host)
	}
}

// explainRoute says which patterns match and why one of them wins.
func (t *table) explainRoute(rt *Route, path Path, trace *decision.Trace) {
	var losers []string
	for _, o := range t.routes {
		alone := newTable(t.host, t.fold, []*Route{o}, func(*Route, error) {})
		if o != rt && alone.find(path) != nil {
			losers = append(losers, fmt.Sprintf("%s of %q", o.pattern, o.Name))
		}
	}
	if losers == nil {
		trace.Pass("route", "%q: pattern %s of host %q is the only one that matches %q", rt.Name, rt.pattern, t.host, path.decoded)
		return
	}
	trace.Pass("route", "%q: pattern %s of host %q is more specific for %q than %s", rt.Name, rt.pattern, t.host, path.decoded, few(losers))
}

// patterns are those of the table, for a person.
func (t *table) patterns() string {
	var all []string
	for _, rt := range t.routes {
		all = append(all, rt.pattern)
	}
	return few(all)
}

// few names the first of many.
func few(all []string) string {
	const most = 6
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}

// Named tells whether the host is one that a route names; with no host named
// anywhere, none is.
func (p *Policy) Named(host Host) bool {
	t := p.table(host.Name, nil)
	return t != nil && t != p.other
}

// A table holds the routes of one host.
type table struct {
	host   string
	fold   bool // match without regard to ASCII case
	muxes  *muxes
	depths depths // of the patterns
	routes []*Route
}

// An entry is what a pattern leads to. It is an http.Handler only because that
// is what a ServeMux holds; nobody serves with it.
type entry struct {
	route   *Route
	subtree bool // the pattern ends in "/" or "{name...}"
	depth   int  // of the pattern, in slashes
}

// ServeHTTP refuses: a table is asked with Handler, never served.
func (entry) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusInternalServerError)
}

// find matches the path. A subtree's root without its slash and a literal path
// with an added one belong to the same route, unless another pattern matches
// them exactly: "/admin" must not slip past the rule for "/admin/".
func (t *table) find(path Path) *Route {
	e, ok := t.match(path.decoded, path.escaped)
	if ok && e.exact(path.escaped) {
		return e.route
	}
	slashes, n := strings.Count(path.escaped, "/"), len(path.escaped)
	var decoded, escaped string
	switch {
	case n == 1:
		return e.route // "/" has no other spelling
	case path.escaped[n-1] == '/':
		if !t.depths.has(slashes - 1) {
			return e.route
		}
		decoded, escaped = strings.TrimSuffix(path.decoded, "/"), path.escaped[:n-1]
	default:
		if !t.depths.has(slashes + 1) {
			return e.route
		}
		decoded, escaped = path.decoded+"/", path.escaped+"/"
	}
	if o, found := t.match(decoded, escaped); found && o.exact(escaped) {
		return o.route
	}
	return e.route
}

func (t *table) match(decoded, escaped string) (entry, bool) {
	e, ok := t.muxes.handler(decoded, escaped).(entry)
	return e, ok
}

// A depths is a set of numbers of slashes that patterns have. Only a pattern with as
// many as the path can name it exactly.
type depths uint64

func (d *depths) add(n int) { *d |= 1 << min(n, 63) }

func (d depths) has(n int) bool { return d>>min(n, 63)&1 != 0 }

// exact tells whether the path is the one that the pattern names, and not some
// path below it.
func (e entry) exact(escaped string) bool {
	return !e.subtree || strings.HasSuffix(escaped, "/") && strings.Count(escaped, "/") == e.depth
}

// newTable compiles the patterns; bad and conflicting ones are reported through
// problem, by route.
func newTable(host string, fold bool, routes []*Route, problem func(*Route, error)) *table {
	patterns := make([]string, len(routes))
	for i, rt := range routes {
		if patterns[i] = rt.pattern; fold {
			patterns[i] = foldPath(rt.pattern)
		}
	}
	t := &table{host: host, fold: fold, muxes: newMuxes(patterns)}
	for i, rt := range routes {
		pattern := patterns[i]
		if pattern == "" {
			continue // it was refused already
		}
		e := entry{
			route:   rt,
			subtree: strings.HasSuffix(pattern, "/") || strings.HasSuffix(pattern, "...}"),
			depth:   strings.Count(pattern, "/"),
		}
		if err := t.muxes.register(pattern, e); err != nil {
			for _, earlier := range t.routes {
				if earlier.pattern == rt.pattern {
					err = fmt.Errorf("%s is also the path of route %q; give one of them another path or host", rt.pattern, earlier.Name)
					break
				}
				if conflict(earlier.pattern, pattern) {
					err = fmt.Errorf("conflicts with %s of route %q: neither is more specific for every path; make one of them so", earlier.pattern, earlier.Name)
					break
				}
			}
			problem(rt, err)
			continue
		}
		t.routes = append(t.routes, rt)
		t.depths.add(e.depth)
	}
	return t
}

// register turns the panic with which ServeMux reports a bad pattern into an error.
func register(mux *http.ServeMux, pattern string, e entry) (err error) {
	defer func() {
		if v := recover(); v != nil {
			text := fmt.Sprint(v)
			if i := strings.LastIndex(text, "): "); i >= 0 {
				text = text[i+3:]
			}
			err = fmt.Errorf("pattern %q: %s", pattern, text)
		}
	}()
	mux.Handle(pattern, e)
	return nil
}

func conflict(a, b string) bool {
	alone, both := http.NewServeMux(), http.NewServeMux()
	return register(alone, b, entry{}) == nil && register(both, a, entry{}) == nil && register(both, b, entry{}) != nil
}

// missing lists the patterns of the "*" table that this one lacks: a request for
// this host does not fall back to them.
func (t *table) missing(other *table) []string {
	var names []string
	for _, rt := range other.routes {
		if !slices.ContainsFunc(t.routes, func(own *Route) bool { return own.pattern == rt.pattern }) {
			names = append(names, rt.Name)
		}
	}
	return names
}
