package main

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"durward/denylist"
	"durward/policy"
	"durward/proxy"
	"durward/token"
)

// A built is what one configuration stands for: complete, checked and tested
// against its own policy tests, but doing nothing yet.
type built struct {
	config    *Config
	level     slog.Level
	issuers   []*token.Issuer
	upstreams []*proxy.Upstream
	cache     *token.Cache
	limits    denylist.Issuers
	snapshot  *proxy.Snapshot
	warnings  []problem
	notes     []problem
	coverage  []routeCoverage // what the policy tests touch
	tests     int             // how many there are

	signing    ed25519.PrivateKey // nil: what this gateway publishes is not signed
	sourceKeys denylist.Keys
	hubToken   string         // that followers must send; "" for none
	hubClients *x509.CertPool // who signs the followers' certificates; nil: none are asked for
}

// A world is what outlives a configuration, and what a new one is built in.
type world struct {
	generation uint64                    // of the configuration to be built
	prev       *built                    // nil at start
	list       *denylist.List            // the one of the process
	history    map[string][]token.Limits // by issuer URL, from the state directory
	now        time.Time
}

// buildFile reads the file and builds all that it stands for, or returns every
// problem there is. Nothing outside the result has changed when it returns, and
// what is expensive and unchanged is carried over from the previous one.
func buildFile(path string, w world) (*built, []problem) {
	f, err := parseFile(path)
	if err != nil {
		return nil, []problem{{File: path, Message: err.Error()}}
	}
	if f.garbled {
		return nil, f.sorted()
	}
	b := builder{configFile: f, world: w, out: &built{config: &f.Config}}
	b.build()
	if f.problems != nil {
		if w.prev == nil {
			b.out.cache.Close()
		}
		return nil, f.sorted()
	}
	return b.out, nil
}

// A builder goes through the configuration part by part and collects problems.
type builder struct {
	*configFile
	world
	out *built
}

func (b *builder) problem(place, format string, args ...any) {
	b.add(place, fmt.Errorf(format, args...))
}

func (b *builder) warn(place, format string, args ...any) {
	b.out.warnings = append(b.out.warnings, b.finding(warning, place, fmt.Sprintf(format, args...)))
}

// note says what is true and may well be meant: check tells it, serve does not.
func (b *builder) note(place, format string, args ...any) {
	b.out.notes = append(b.out.notes, b.finding(note, place, fmt.Sprintf(format, args...)))
}

func (b *builder) build() {
	s := &proxy.Snapshot{Generation: b.generation, Denied: b.list, LoginURL: b.LoginURL, HideReasons: b.HideReasons}
	b.out.snapshot = s
	b.listeners()
	b.log()
	b.tracing(s)
	b.credentials(s)
	b.denylist()
	b.issuers()
	tokenBytes := b.limits(s)
	b.streams(s)
	var err error
	s.Proxies, err = proxy.ParseTrustedProxies(b.TrustedProxies, b.ForwardedHost)
	b.add("", err)
	b.login()
	b.cache()
	b.routes(s)
	if b.problems != nil {
		return
	}
	s.Tokens = token.NewVerifier(b.out.issuers, b.out.cache, tokenBytes)
	s.Prepare()
	b.tests(s)
}

// defaultAdmin is where the operators' interface listens if nothing is said.
const defaultAdmin = "127.0.0.1:9901"

func (b *builder) listeners() {
	if len(b.Listen) == 0 {
		b.problem("listen", "is missing; write the address to serve, such as 127.0.0.1:8080")
	}
	for i, address := range b.Listen {
		checkAddress(address, true, func(format string, args ...any) { b.problem(fmt.Sprintf("listen[%d]", i), format, args...) })
	}
	if b.Admin == "" {
		b.Admin = defaultAdmin
	}
	checkAddress(b.Admin, false, func(format string, args ...any) { b.problem("admin", format, args...) })
	if b.Health != "" {
		checkAddress(b.Health, false, func(format string, args ...any) { b.problem("health", format, args...) })
	}
	if b.TLS != nil {
		if _, err := tls.LoadX509KeyPair(b.TLS.CertFile, b.TLS.KeyFile); err != nil {
			b.problem("tls", "%v; cert_file and key_file must be a PEM certificate chain and its private key", err)
		}
	}
	if b.Shutdown.Drain == 0 {
		b.Shutdown.Drain = 20 * time.Second
	}
	if b.Shutdown.Grace == nil {
		grace := time.Second
		b.Shutdown.Grace = &grace
	}
	if b.Shutdown.Drain < 0 || *b.Shutdown.Grace < 0 {
		b.problem("shutdown", "a duration is negative")
	}
	if b.Instance == "" {
		b.Instance, _ = os.Hostname() // "" is a name too
	}
	if len(b.Instance) > 200 {
		b.problem("instance", "is longer than 200 bytes")
	}
	if b.StateDir == "" {
		b.StateDir = defaultStateDir(b.dir)
	} else if !canMake(b.StateDir) {
		b.problem("state_dir", "%s is not a writable directory, and none can be made there", b.StateDir)
	}
	if b.StateDir == "" {
		b.warn("state_dir", "there is none ($STATE_DIRECTORY is not set and %s cannot be made): revoking through this gateway is off", filepath.Join(b.dir, "durward-state"))
		return
	}
	if b.AdminTokenFile == "" {
		b.AdminTokenFile = filepath.Join(b.StateDir, "admin.token")
	} else if _, err := os.Stat(b.AdminTokenFile); err != nil {
		b.problem("admin_token_file", "%v", err)
	}
}

func checkAddress(address string, unixToo bool, problem func(string, ...any)) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && unixToo {
		if path == "" {
			problem("%q names no socket; write unix:/run/durward/durward.sock", address)
		}
		return
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		problem("%q is not host:port: %v", address, err)
		return
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		problem("%q has a bad port", address)
	}
	if _, err := policy.ReadHost(host); host != "" && err != nil && net.ParseIP(host) == nil {
		problem("%q: %v", address, err)
	}
}

func (b *builder) log() {
	if b.Log.Level == "" {
		b.Log.Level = "info"
	}
	if err := b.out.level.UnmarshalText([]byte(b.Log.Level)); err != nil {
		b.problem("log.level", "%q is not known; write debug, info, warn or error", b.Log.Level)
	}
	if b.Log.Format == "" {
		b.Log.Format = "json"
	}
	if b.Log.Format != "json" && b.Log.Format != "text" {
		b.problem("log.format", "%q is not known; write json or text", b.Log.Format)
	}
	if b.Log.Refusals == 0 {
		b.Log.Refusals = 100
	}
	if b.Log.Refusals < 0 {
		b.problem("log.refusals", "is negative")
	}
	if b.Log.Sample == nil {
		all := 1.0
		b.Log.Sample = &all
	}
	if s := *b.Log.Sample; !(s >= 0 && s <= 1) {
		b.problem("log.sample", "%v is no share; write a number from 0 to 1, such as 0.01", s)
	}
	if b.Log.Audit && *b.Log.Sample < 1 {
		b.warn("log.sample", "does nothing with audit, which logs no request that passes; remove one of them")
	}
}

func (b *builder) tracing(s *proxy.Snapshot) {
	if b.Tracing == nil {
		return
	}
	if err := b.Tracing.Check(); err != nil {
		b.add("tracing", err)
		return
	}
	if b.Tracing.PlainOffLoopback() {
		b.warn("tracing.otlp", "spans travel in the clear; use https, or a collector on this machine")
	}
	s.Tracing = proxy.Tracing{On: true, Sample: *b.Tracing.Sample}
}

func (b *builder) credentials(s *proxy.Snapshot) {
	c := &b.Credentials
	if c.Cookie == nil {
		name := "__Host-session"
		c.Cookie = &name
	}
	if c.Bearer == nil {
		yes := true
		c.Bearer = &yes
	}
	b.cookieName("credentials.cookie", *c.Cookie)
	if *c.Cookie == "" && !*c.Bearer {
		b.warn("credentials", "cookie and bearer are both off: no token is read, save on routes with credentials of their own")
	}
	if c.SessionEndpoint == "" {
		return
	}
	const place = "credentials.session_endpoint"
	path, err := policy.ReadPath(c.SessionEndpoint)
	switch {
	case err != nil:
		b.problem(place, "%q: %v; write a path such as /.durward/session", c.SessionEndpoint, err)
	case path.Escaped() != c.SessionEndpoint || c.SessionEndpoint == "/" || c.SessionEndpoint == proxy.KeysPath:
		b.problem(place, "%q cannot be the endpoint; write a plain path such as /.durward/session", c.SessionEndpoint)
	case *c.Cookie == "":
		b.problem(place, "sets the session cookie, but credentials.cookie is off; name one")
	case b.StateDir == "":
		b.problem(place, "revokes tokens, which needs a state_dir to be durable; give one")
	}
	s.Session = proxy.Session{Path: c.SessionEndpoint, Cookie: *c.Cookie}
}

func (b *builder) cookieName(place, name string) {
	if name == "" {
		return
	}
	if err := (&http.Cookie{Name: name, Value: "x", Path: "/", Secure: true}).Valid(); err != nil || strings.ContainsAny(name, "\"") {
		b.problem(place, "%q is not a cookie name", name)
	}
	if !strings.HasPrefix(name, "__Host-") {
		b.warn(place, "%q lacks the prefix __Host-, without which other hosts of the domain can plant the cookie; name it __Host-%s", name, strings.TrimPrefix(name, "__Secure-"))
	}
}

func (b *builder) denylist() {
	d := &b.Denylist
	if d.Lease == 0 {
		d.Lease = 5 * time.Second
	}
	if d.Lease < time.Second {
		b.problem("denylist.lease", "%s is shorter than a second; feeds give a sign of life about that often", d.Lease)
	}
	if d.OnStale != "" && d.OnStale != "deny" && d.OnStale != "allow" {
		b.problem("denylist.on_stale", "%q is not known; write deny or allow", d.OnStale)
		d.OnStale = "" // else each route would repeat it
	}
	if d.OnStale == "allow" {
		b.warn("denylist.on_stale", "allow lets revoked tokens pass everywhere while a feed is lost; say so on single routes instead")
	}
	if d.OnUnenforceable != "" && d.OnUnenforceable != "accept" && d.OnUnenforceable != "reject" {
		b.problem("denylist.on_unenforceable", "%q is not known; write accept or reject", d.OnUnenforceable)
	}
	if d.MaxEntries == 0 {
		d.MaxEntries = 10_000_000
	}
	if d.MaxEntries < 0 {
		b.problem("denylist.max_entries", "is negative")
	}
	if d.Feeds != nil && len(d.Feeds) == 0 {
		b.problem("denylist.feeds", "is empty; leave the key out to have none")
	}
	b.fleetConfig()
	seen := map[string]bool{}
	for i, feed := range d.Feeds {
		place := fmt.Sprintf("denylist.feeds[%d]", i)
		if feed.Name == "" || seen[feed.Name] {
			b.problem(place+".name", "%q is missing or taken; metrics and logs tell feeds apart by it", feed.Name)
		}
		seen[feed.Name] = true
		b.feedConfig(place, feed)
	}
}

func (b *builder) issuers() {
	if len(b.Issuers) == 0 {
		b.problem("issuers", "is missing: no token could be verified; add one with name, issuer and audiences")
	}
	names, urls := map[string]bool{}, map[string]bool{}
	for i, cfg := range b.Issuers {
		place := fmt.Sprintf("issuers[%d]", i)
		if names[cfg.Name] && cfg.Name != "" {
			b.problem(place+".name", "%q is taken; names must differ", cfg.Name)
		}
		if urls[cfg.Issuer] && cfg.Issuer != "" {
			b.problem(place+".issuer", "%q is configured twice; a token's iss must lead to one issuer", cfg.Issuer)
		}
		names[cfg.Name], urls[cfg.Issuer] = true, true
		var prev *token.Issuer
		if b.prev != nil {
			if j := slices.IndexFunc(b.prev.issuers, func(o *token.Issuer) bool { return o.URL() == cfg.Issuer }); j >= 0 {
				prev = b.prev.issuers[j]
			}
		}
		issuer, err := token.NewIssuer(cfg, cfg.NextLimits(b.history[cfg.Issuer], b.now), prev)
		if err != nil {
			b.add(place, err)
			continue
		}
		b.out.issuers = append(b.out.issuers, issuer)
		full := issuer.Config()
		b.out.limits = append(b.out.limits, denylist.IssuerLimits{URL: full.Issuer, MaxLifetime: full.MaxLifetime, Leeway: *full.Leeway, Skew: *full.Skew})
		source := full.JWKSURL
		if source == "" && full.JWKSFile == "" {
			source = full.Issuer
		}
		if u, err := url.Parse(source); err == nil && u.Scheme == "http" && u.Hostname() != "localhost" && !net.ParseIP(u.Hostname()).IsLoopback() {
			b.warn(place, "keys come over plain http from %s: whoever is between can replace them; use https", u.Host)
		}
	}
}

func (b *builder) limits(s *proxy.Snapshot) (tokenBytes int) {
	size := func(field string, value policy.Size, fallback int) int {
		n, err := value.Bytes()
		if err == nil && n > math.MaxInt32 {
			err = fmt.Errorf("%q is too much; memory for it is set aside per request", string(value))
		}
		b.add("limits."+field, err)
		if n == 0 {
			return fallback
		}
		return int(n)
	}
	l := &b.Limits
	s.Limits.HeaderBytes = size("header_bytes", l.HeaderBytes, 32<<10)
	s.Limits.CookieBytes = size("cookie_bytes", l.CookieBytes, 16<<10)
	tokenBytes = size("token_bytes", l.TokenBytes, 8<<10)
	for _, d := range []struct {
		field    string
		value    *time.Duration
		fallback time.Duration
	}{{"header_timeout", &l.HeaderTimeout, 10 * time.Second}, {"idle_timeout", &l.IdleTimeout, 2 * time.Minute}} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
		if *d.value < 0 {
			b.problem("limits."+d.field, "is negative")
		}
	}
	if l.HeaderFields == 0 {
		l.HeaderFields = 128
	}
	if l.HeaderFields < 0 {
		b.problem("limits.header_fields", "is negative")
	}
	s.Limits.HeaderFields, s.Limits.HeaderTimeout, s.Limits.IdleTimeout = l.HeaderFields, l.HeaderTimeout, l.IdleTimeout
	return tokenBytes
}

func (b *builder) streams(s *proxy.Snapshot) {
	c := b.Streams
	switch {
	case c.OnExpiry != "" && c.OnExpiry != "cut" && c.OnExpiry != "keep":
		b.problem("streams.on_expiry", "%q is not known; write cut or keep", c.OnExpiry)
	case c.OnExpiry == "keep" && c.MaxAge == 0:
		b.problem("streams.on_expiry", "keep needs max_age: a stream would outlive its token without end")
	}
	if c.Grace < 0 || c.MaxAge < 0 {
		b.problem("streams", "a duration is negative")
	}
	s.Streams = proxy.Streams{Grace: c.Grace, MaxAge: c.MaxAge, KeepExpired: c.OnExpiry == "keep"}
}

func (b *builder) login() {
	if b.LoginURL == "" {
		return
	}
	u, err := url.Parse(strings.ReplaceAll(b.LoginURL, "{url}", "x"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		b.problem("login_url", "%q is not an absolute http or https URL", b.LoginURL)
	}
}

func (b *builder) cache() {
	n, err := b.TokenCache.MaxBytes.Bytes()
	b.add("token_cache.max_bytes", err)
	if n == 0 {
		n = 64 << 20
	}
	if b.prev != nil {
		b.out.cache = b.prev.cache // it lives as long as the process
		return
	}
	b.out.cache, err = token.NewCache(n)
	b.add("token_cache", err)
}

// routes resolves what each route refers to, and compiles the policy.
func (b *builder) routes(s *proxy.Snapshot) {
	r := resolver{builder: b, named: map[string]*proxy.Upstream{}, used: map[string]bool{}}
	for _, name := range slices.Sorted(maps.Keys(b.Upstreams)) {
		r.named[name] = r.upstream("upstreams."+name, name, b.Upstreams[name])
	}
	general, err := r.identity("identity", b.Identity)
	b.add("identity", err)
	var policies []policy.RouteConfig
	for i := range b.Routes {
		rc := &b.Routes[i]
		place := fmt.Sprintf("routes[%d]", i)
		route := proxy.Route{Upstream: r.reference(place, rc), Identity: general, Finder: b.finder(place, rc.Credentials)}
		if !reflect.DeepEqual(rc.Identity, proxy.IdentityConfig{}) {
			route.Identity, err = r.identity(place+".identity", mergeIdentity(b.Identity, rc.Identity))
			b.add(place+".identity", err)
		}
		if rc.OnStale == "" {
			rc.OnStale = b.Denylist.OnStale
		}
		rc.FoldCase = route.Upstream != nil && route.Upstream.FoldCase()
		if rc.IssuesSession && route.Finder.Cookie == "" {
			b.problem(place+".issues_session", "sets the session cookie, but the cookie is off here; name one in credentials")
		}
		policies = append(policies, rc.RouteConfig)
		s.Routes = append(s.Routes, route)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Upstreams)) {
		if !r.used[name] {
			b.warn("upstreams."+name, "no route uses it; name it in a route, or remove it")
		}
	}
	names := make([]string, len(b.Issuers))
	for i, issuer := range b.Issuers {
		names[i] = issuer.Name
	}
	s.Policy, err = policy.Compile(policies, names)
	b.add("", err)
	if s.Policy != nil {
		for _, w := range s.Policy.Warnings() {
			b.warn(w.Field, "%v", w.Err)
		}
		b.lint(s)
	}
}

func (b *builder) finder(place string, c CredentialsConfig) token.Finder {
	if c.SessionEndpoint != "" {
		b.problem(place+".credentials.session_endpoint", "is one for all routes; move it to credentials at the top")
	}
	f := token.Finder{Cookie: *b.Credentials.Cookie, Bearer: *b.Credentials.Bearer}
	if c.Cookie != nil {
		b.cookieName(place+".credentials.cookie", *c.Cookie)
		f.Cookie = *c.Cookie
	}
	if c.Bearer != nil {
		f.Bearer = *c.Bearer
	}
	return f
}
