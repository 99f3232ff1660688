package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"durward/denylist/httpfeed"
	"durward/denylist/natsfeed"
	"durward/denylist/redisfeed"
	"durward/policy"
	"durward/proxy"
	"durward/token"
	"durward/tracing"
)

// Config is the configuration file. Each part belongs to the package that uses
// it; config.example.yaml shows every option with its reason.
type Config struct {
	// Listen is one address or a list: host:port, or unix:/path/to/socket. Required.
	Listen policy.Strings `yaml:"listen"`
	// TLS makes the host:port listeners speak TLS. Optional.
	TLS *TLSConfig `yaml:"tls"`
	// Admin is the address of the operators' interface. Default 127.0.0.1:9901.
	Admin string `yaml:"admin"`
	// AdminTokenFile holds the token that the operators' interface asks for.
	// Default: admin.token in state_dir, made at first start.
	AdminTokenFile string `yaml:"admin_token_file"`
	// Health is an address that serves healthz, readyz and metrics alone. Optional.
	Health string `yaml:"health"`
	// Instance is this gateway's name among those of its fleet, for people. Default: the
	// name of the host.
	Instance string `yaml:"instance"`
	// StateDir keeps what must outlive the process. Default: $STATE_DIRECTORY, else
	// durward-state beside this file.
	StateDir string `yaml:"state_dir"`
	// TrustedProxies are the addresses and CIDR blocks whose X-Forwarded-For and
	// -Proto are believed; unix for peers on a unix socket. Default: none.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// ForwardedHost lets X-Forwarded-Host from them decide the host. Default false.
	ForwardedHost bool `yaml:"forwarded_host"`
	// LoginURL is where a browser without a token is sent; {url} in it becomes the
	// address that it wanted. Optional.
	LoginURL string `yaml:"login_url"`
	// HideReasons leaves the header Durward-Reason out of refusals. Default false.
	HideReasons bool `yaml:"hide_reasons"`
	// Log says how much is logged, and how.
	Log LogConfig `yaml:"log"`
	// Tracing sends OpenTelemetry spans to a collector. Optional.
	Tracing *tracing.Config `yaml:"tracing"`
	// Issuers are those whose tokens are believed. At least one.
	Issuers []token.IssuerConfig `yaml:"issuers"`
	// Credentials say where the token stands in a request.
	Credentials CredentialsConfig `yaml:"credentials"`
	// Denylist says what is revoked, and how fresh that knowledge must be.
	Denylist DenylistConfig `yaml:"denylist"`
	// Identity says how upstreams learn who is asking.
	Identity proxy.IdentityConfig `yaml:"identity"`
	// Upstreams are the applications, by name.
	Upstreams map[string]proxy.UpstreamConfig `yaml:"upstreams"`
	// Routes say who may do what, and where it goes. At least one.
	Routes []RouteConfig `yaml:"routes"`
	// Limits bound what a request may bring.
	Limits LimitsConfig `yaml:"limits"`
	// Streams say how long a request in progress outlives what let it in.
	Streams StreamsConfig `yaml:"streams"`
	// TokenCache remembers verified tokens.
	TokenCache TokenCacheConfig `yaml:"token_cache"`
	// Shutdown says how the process ends.
	Shutdown ShutdownConfig `yaml:"shutdown"`
	// Tests are run by check and before every reload; one that fails refuses the file.
	Tests []policy.TestConfig `yaml:"tests"`
	// TestFiles hold more of them, a list each. They are read whenever this file is.
	TestFiles []string `yaml:"test_files"`

	path string // of the file, as given
	dir  string // that relative paths are relative to
}

// TLSConfig names the listeners' certificate. The files are read again when they
// change.
type TLSConfig struct {
	CertFile string `yaml:"cert_file"` // PEM certificate chain
	KeyFile  string `yaml:"key_file"`  // PEM private key
}

// LogConfig says how much is logged, and how.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info (default), warn or error
	Format string `yaml:"format"` // json (default) or text
	// Refusals is how many refused requests of each reason are logged a second; the
	// number of the others is. Default 100.
	Refusals int `yaml:"refusals"`
	// Sample is the share of allowed requests that are logged, from 0 to 1. Default 1.
	// Refused requests, and those that were cut, do not depend on it.
	Sample *float64 `yaml:"sample"`
	// Audit logs refused requests, requests that were cut, and revocations, whatever
	// level says, and beside them warnings and errors alone. Default false.
	Audit bool `yaml:"audit"`
}

// CredentialsConfig says where the token stands in a request. On a route it
// overrides the general one, member by member; the session endpoint is one for all.
type CredentialsConfig struct {
	// Cookie is the session cookie's name. Default __Host-session; "" turns it off.
	Cookie *string `yaml:"cookie"`
	// Bearer reads the Authorization header. Default true.
	Bearer *bool `yaml:"bearer"`
	// SessionEndpoint is the path at which pages hand in their token and give it
	// up. Default "": none.
	SessionEndpoint string `yaml:"session_endpoint"`
}

// DenylistConfig says what is revoked, and how fresh that knowledge must be.
type DenylistConfig struct {
	// Lease is how long a feed may give no sign of life. Default 5s.
	Lease time.Duration `yaml:"lease"`
	// OnStale is deny (default) or allow: what happens past the lease. A route may
	// say otherwise.
	OnStale string `yaml:"on_stale"`
	// OnUnenforceable is accept (default) or reject: what happens to a line of the
	// operators' interface that goes by a claim which the issuer's tokens lack. It is
	// told in either case; what feeds say, and other gateways hand on, is accepted.
	OnUnenforceable string `yaml:"on_unenforceable"`
	// MaxEntries is the memory budget. Full is an error, never an eviction. Default 10 million.
	MaxEntries int `yaml:"max_entries"`
	// Feeds bring revocations; several are a union, and each must be live.
	Feeds []FeedConfig `yaml:"feeds"`
	// ServeFeed makes this gateway a hub that others follow. Optional.
	ServeFeed *ServeFeedConfig `yaml:"serve_feed"`
	// SourceKeys are files with PEM public keys (Ed25519), by name. If there are any,
	// the records of all feeds but files must be signed by one of them. Optional.
	SourceKeys map[string]SourceKeyConfig `yaml:"source_keys"`
	// SigningKeyFile is a PEM private key (Ed25519) that signs what this gateway
	// publishes. Optional.
	SigningKeyFile string `yaml:"signing_key_file"`
}

// FeedConfig is one feed of revocations: a file, HTTP, NATS or Redis.
type FeedConfig struct {
	// Name of the feed in logs and metrics. Required, unique.
	Name string `yaml:"name"`
	// File holds one JSON revocation a line. It is read again when it changes.
	File string `yaml:"file"`
	// HTTP follows other gateways that serve a feed, or files on a web server.
	HTTP *httpfeed.Config `yaml:"http"`
	// NATS follows a stream of NATS JetStream.
	NATS *natsfeed.Config `yaml:"nats"`
	// Redis follows a stream of Redis or Valkey.
	Redis *redisfeed.Config `yaml:"redis"`
	// ForwardRevocations hands what is revoked here to the feed's hub first, or writes
	// it to the stream, to which this gateway then also gives signs of life. One feed
	// at most has it. Default false.
	ForwardRevocations bool `yaml:"forward_revocations"`
	// Mass is whether the feed may revoke whole issuers and clients. Default true.
	Mass *bool `yaml:"mass"`
}

// SourceKeyConfig is the public key of one who may write records, and what it may
// say there: a file, or a mapping.
type SourceKeyConfig struct {
	// File holds the public key (Ed25519, PEM). Required.
	File string `yaml:"file"`
	// Issuers are the names of those whose tokens it may revoke. Default: all.
	Issuers []string `yaml:"issuers"`
	// Kinds are by what it may revoke: jti, sid, sub, client, iss. Default: all.
	Kinds []string `yaml:"kinds"`
	// PerMinute is how many operations it may write a minute. What is more is not
	// enforced and waits for an operator (durward feed release). Default 0: no limit.
	PerMinute int `yaml:"per_minute"`
	// Mass is whether it may revoke whole issuers and clients. Default true.
	Mass *bool `yaml:"mass"`
}

// UnmarshalYAML takes a string or a mapping.
func (k *SourceKeyConfig) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&k.File) == nil {
		return nil
	}
	type plain SourceKeyConfig
	return unmarshal((*plain)(k))
}

// ServeFeedConfig says where others follow this gateway.
type ServeFeedConfig struct {
	// Listen is the hub's address, host:port. Required.
	Listen string `yaml:"listen"`
	// TokenFile holds the token that followers must send. Required off loopback
	// unless client certificates are asked for.
	TokenFile string `yaml:"token_file"`
	// TLS is the hub's certificate. Required off loopback unless records are signed.
	TLS *ServeFeedTLSConfig `yaml:"tls"`
}

// ServeFeedTLSConfig is the hub's certificate, and who may come.
type ServeFeedTLSConfig struct {
	TLSConfig `yaml:",inline"`
	// ClientCAFile says who signs the certificates that followers must show. Optional.
	ClientCAFile string `yaml:"client_ca_file"`
}

// RouteConfig is a route: its policy, and what its upstream is told.
type RouteConfig struct {
	policy.RouteConfig `yaml:",inline"`
	// Upstream is the name of an upstream, a URL, or a mapping like those of upstreams. Required.
	Upstream UpstreamRef `yaml:"upstream"`
	// Identity overrides the general identity, member by member.
	Identity proxy.IdentityConfig `yaml:"identity"`
	// Credentials override the general credentials, member by member.
	Credentials CredentialsConfig `yaml:"credentials"`
}

// UpstreamRef is the name of an upstream, its URL, or the whole upstream.
type UpstreamRef struct {
	Ref                  string `yaml:"-"`
	proxy.UpstreamConfig `yaml:",inline"`
}

// UnmarshalYAML takes a string or a mapping.
func (u *UpstreamRef) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&u.Ref) == nil {
		return nil
	}
	return unmarshal(&u.UpstreamConfig)
}

// LimitsConfig bounds what a request may bring.
type LimitsConfig struct {
	HeaderBytes   policy.Size   `yaml:"header_bytes"`   // of the header section; default 32KiB
	HeaderFields  int           `yaml:"header_fields"`  // number of fields; default 128
	CookieBytes   policy.Size   `yaml:"cookie_bytes"`   // of all cookies; default 16KiB
	TokenBytes    policy.Size   `yaml:"token_bytes"`    // of the token; default 8KiB
	HeaderTimeout time.Duration `yaml:"header_timeout"` // for the header section to arrive; default 10s
	IdleTimeout   time.Duration `yaml:"idle_timeout"`   // between requests, and for a body to make progress; default 120s
}

// StreamsConfig says how long a request in progress outlives what let it in.
type StreamsConfig struct {
	// Grace is the time between a revocation and the cut. Default 0s.
	Grace time.Duration `yaml:"grace"`
	// MaxAge is the longest life of a request with a token. Default 0s: no limit.
	MaxAge time.Duration `yaml:"max_age"`
	// OnExpiry is cut (default) or keep: what happens when the token expires. To
	// keep needs MaxAge.
	OnExpiry string `yaml:"on_expiry"`
}

// TokenCacheConfig remembers verified tokens.
type TokenCacheConfig struct {
	MaxBytes policy.Size `yaml:"max_bytes"` // default 64MiB
}

// ShutdownConfig says how the process ends.
type ShutdownConfig struct {
	// Grace is how long requests are still accepted after readyz says no, so that
	// balancers notice. Default 1s.
	Grace *time.Duration `yaml:"grace"`
	// Drain is how long requests in progress may then take. Default 20s.
	Drain time.Duration `yaml:"drain"`
}

// A configFile is a parsed configuration together with the places of its keys.
type configFile struct {
	Config
	root     *yaml.Node
	problems []problem
	broken   map[int]bool // lines whose YAML could not be read
	garbled  bool         // too little could be read for the rest to be judged
}

// parseFile reads the file strictly: unknown and duplicate keys, values of the wrong
// type, empty values and second documents are problems. What could be read is
// returned beside them, so that later checks can add theirs; only an unreadable
// file is an error.
func parseFile(path string) (*configFile, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	f := &configFile{Config: Config{path: path, dir: dir}, root: &yaml.Node{}, broken: map[int]bool{}}
	f.decode(text, &f.Config)
	f.makeAbsolute()
	return f, nil
}

// decode reads the text into what the file stands for, strictly.
func (f *configFile) decode(text []byte, into any) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		f.addYAML(err)
	}
	// The tree tells where each key stands. Decoding through it was refused: that
	// loses KnownFields.
	if err := yaml.Unmarshal(text, f.root); err == nil {
		f.findEmpty(f.root)
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		f.problems = append(f.problems, problem{File: f.path, Line: second.Line, Column: second.Column, Message: "a second YAML document (---): only one is read, so the rest would be ignored; merge them"})
	} else if !errors.Is(err, io.EOF) && f.problems == nil {
		f.addYAML(err)
	}
}

var (
	yamlLine    = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	yamlUnknown = regexp.MustCompile(`^field (.*) not found in type (\S+)$`)
	yamlType    = regexp.MustCompile("^cannot unmarshal !!(\\S+)(?: `(.*)`)? into (\\S+)$")
	yamlParser  = regexp.MustCompile(`^did not find expected (?:<|node content|key$|'-' indicator|',' or)`)
	// What yaml.v3 finds without keeping its place.
	yamlAnywhere = regexp.MustCompile(`^(?:control characters are not allowed|(?:invalid|incomplete|unexpected) .*|!!binary value .*|unknown anchor .*|anchor '.*|document contains excessive aliasing|map merge requires .*)`)
	yamlTwice    = regexp.MustCompile(`^mapping key "(.*)" already defined at line (\d+)$`)
)

// addYAML turns the decoder's errors into problems that name the remedy.
func (f *configFile) addYAML(err error) {
	if errors.Is(err, io.EOF) {
		f.problems = append(f.problems, problem{File: f.path, Message: "the file is empty; start from config.example.yaml"})
		f.garbled = true
		return
	}
	lines := []string{err.Error()}
	var typeError *yaml.TypeError
	if errors.As(err, &typeError) {
		lines = typeError.Errors
	} else {
		f.garbled = true
	}
	for _, text := range lines {
		p := problem{File: f.path, Message: strings.TrimPrefix(text, "yaml: ")}
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			p.Line, _ = strconv.Atoi(m[1])
			p.Message = m[2]
		} else if !yamlAnywhere.MatchString(p.Message) && !yamlParser.MatchString(p.Message) {
			p.Line = 1 // yaml.v3 names no line where it is the first
		}
		if yamlParser.MatchString(p.Message) {
			p.Line++ // yaml.v3 counts the lines of these from zero, unlike all others
		}
		if m := yamlUnknown.FindStringSubmatch(p.Message); m != nil {
			p.Message = fmt.Sprintf("unknown key %q", m[1])
			if near := nearest(m[1], knownKeys(reflect.TypeFor[Config](), m[2])); near != "" {
				p.Message += fmt.Sprintf("; did you mean %q?", near)
			}
		} else if m := yamlType.FindStringSubmatch(p.Message); m != nil {
			p.Message = wrongType(m[1], m[2], m[3])
		} else if m := yamlTwice.FindStringSubmatch(p.Message); m != nil {
			p.Message = fmt.Sprintf("key %q is given twice, first in line %s; keep one", m[1], m[2])
			f.garbled = true // the mapping around it was not read: all in it would seem to be missing
		}
		f.broken[p.Line] = true
		f.problems = append(f.problems, p)
	}
}

func wrongType(kind, value, want string) string {
	found := map[string]string{"map": "a mapping", "seq": "a list"}[kind]
	if found == "" {
		found = strconv.Quote(value)
	}
	switch {
	case want == "time.Duration":
		return found + " is not a duration; write a number with a unit, such as 250ms, 30s or 24h"
	case want == "bool":
		return found + " is not a boolean; write true or false"
	case want == "int":
		return found + " is not a whole number; write one, such as 128"
	case strings.HasPrefix(want, "[]"):
		return found + " stands where a list is wanted; write [one, two]"
	case want == "string" || want == "policy.Size":
		return found + " stands where a string is wanted"
	}
	return found + " stands where a mapping is wanted"
}

// knownKeys lists the keys of the struct that yaml names in its message.
func knownKeys(t reflect.Type, name string) (keys []string) {
	seen := map[reflect.Type]bool{}
	var visit func(reflect.Type)
	visit = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		seen[t] = true
		inlined := false
		for i := range t.NumField() {
			field := t.Field(i)
			key, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
			inlined = options == "inline"
			if t.String() == name && key != "" && key != "-" {
				keys = append(keys, key)
			}
			if t.String() == name && inlined {
				keys = append(keys, knownKeys(field.Type, field.Type.String())...)
			}
			visit(field.Type)
		}
	}
	visit(t)
	return keys
}

// nearest is the known key that was probably meant, "" if none is close.
func nearest(key string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		if d := distance(key, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost = 1 + min(diagonal, row[j], row[j-1])
			}
			diagonal, row[j] = row[j], cost
		}
	}
	return row[len(b)]
}

// findEmpty reports keys without a value. An allow: whose grants were all
// commented out must not come to mean "no allow".
func (f *configFile) findEmpty(n *yaml.Node) {
	null := func(n *yaml.Node) bool {
		if n.Kind == yaml.AliasNode { // what it stands for may be a key, of which nobody else complains
			n = n.Alias
		}
		return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
	}
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if null(key) {
				f.problems = append(f.problems, problem{File: f.path, Line: key.Line, Column: key.Column, Message: "a key has no name; give it one or remove it"})
			} else if null(value) {
				f.problems = append(f.problems, problem{File: f.path, Line: key.Line, Column: key.Column, Message: fmt.Sprintf("%s has no value; give it one or remove the key", key.Value)})
			}
		}
	}
	for _, child := range n.Content {
		if n.Kind == yaml.SequenceNode && null(child) {
			f.problems = append(f.problems, problem{File: f.path, Line: child.Line, Column: child.Column, Message: "a list element has no value; give it one or remove it"})
		}
		f.findEmpty(child)
	}
}

// add records an error under a place such as issuers[0]: errors joined are taken
// apart, and a *token.FieldError names the place below it. An error where the
// YAML itself is at fault is that fault's consequence and is left out.
func (f *configFile) add(place string, err error) {
	if err == nil {
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			f.add(place, e)
		}
		return
	}
	var field *token.FieldError
	if errors.As(err, &field) {
		if place != "" {
			place += "."
		}
		place, err = place+field.Field, field.Err
	}
	p := f.finding(refusal, place, err.Error())
	var failed *testFailure
	if errors.As(err, &failed) {
		p.Diff = failed.diff
	}
	if !f.broken[p.Line] {
		f.problems = append(f.problems, p)
	}
}

// finding is a message about a place.
func (f *configFile) finding(severity severity, place, message string) problem {
	line, column := position(f.root, place)
	return problem{File: f.path, Line: line, Column: column, Place: place, Severity: severity, Message: strings.TrimPrefix(place+": "+message, ": ")}
}

// sorted are the problems in the order of the file, each once; those of files of
// tests come after.
func (f *configFile) sorted() []problem {
	slices.SortStableFunc(f.problems, func(a, b problem) int {
		if a.File == b.File {
			return a.Line - b.Line
		}
		return cmp.Compare(f.rank(a.File), f.rank(b.File))
	})
	return slices.Compact(f.problems)
}

func (f *configFile) rank(file string) int { return slices.Index(f.TestFiles, file) }

// position finds where a place such as routes[2].allow[0].scopes stands; for one
// that is missing, it is that of the nearest place around it.
func position(n *yaml.Node, place string) (line, column int) {
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	line, column = n.Line, n.Column
	for place != "" {
		place = strings.TrimPrefix(place, ".")
		var next *yaml.Node
		rest := ""
		if index, after, ok := strings.Cut(strings.TrimPrefix(place, "["), "]"); ok && place[0] == '[' {
			if i, err := strconv.Atoi(index); err == nil && n.Kind == yaml.SequenceNode && i < len(n.Content) {
				next, rest = n.Content[i], after
				line, column = next.Line, next.Column
			}
		} else if n.Kind == yaml.MappingNode {
			longest := -1 // claims' keys have dots in them
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := n.Content[i].Value
				after, ok := strings.CutPrefix(place, key)
				if ok && len(key) > longest && (after == "" || after[0] == '.' || after[0] == '[') {
					longest, next, rest = len(key), n.Content[i+1], after
					line, column = n.Content[i].Line, n.Content[i].Column
				}
			}
		}
		if next == nil {
			break
		}
		if next.Kind == yaml.AliasNode {
			next = next.Alias
		}
		n, place = next, rest
	}
	return line, column
}

// makeAbsolute resolves every path against the configuration file's folder.
func (f *configFile) makeAbsolute() {
	abs := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(f.dir, *path)
		}
	}
	socket := func(address *string) {
		if path, ok := strings.CutPrefix(*address, "unix:"); ok && path != "" && !strings.HasPrefix(path, "//") {
			abs(&path)
			*address = "unix:" + path
		}
	}
	upstream := func(u *proxy.UpstreamConfig) {
		socket(&u.URL)
		abs(&u.TLS.CAFile)
		abs(&u.TLS.CertFile)
		abs(&u.TLS.KeyFile)
	}
	for i, path := range f.TestFiles {
		if !filepath.IsAbs(path) {
			f.TestFiles[i] = filepath.Join(filepath.Dir(f.path), path) // as the configuration is named in messages
		}
	}
	for i := range f.Listen {
		socket(&f.Listen[i])
	}
	if f.TLS != nil {
		abs(&f.TLS.CertFile)
		abs(&f.TLS.KeyFile)
	}
	abs(&f.AdminTokenFile)
	abs(&f.StateDir)
	for i := range f.Issuers {
		abs(&f.Issuers[i].JWKSFile)
		abs(&f.Issuers[i].CAFile)
	}
	d := &f.Denylist
	for i := range d.Feeds {
		abs(&d.Feeds[i].File)
		if h := d.Feeds[i].HTTP; h != nil {
			abs(&h.TokenFile)
			abs(&h.CAFile)
			abs(&h.CertFile)
			abs(&h.KeyFile)
		}
		if n := d.Feeds[i].NATS; n != nil {
			abs(&n.CredsFile)
			abs(&n.NKeyFile)
			abs(&n.CAFile)
			abs(&n.CertFile)
			abs(&n.KeyFile)
		}
		if r := d.Feeds[i].Redis; r != nil {
			abs(&r.PasswordFile)
			abs(&r.CAFile)
			abs(&r.CertFile)
			abs(&r.KeyFile)
		}
	}
	if s := d.ServeFeed; s != nil {
		abs(&s.TokenFile)
		if s.TLS != nil {
			abs(&s.TLS.CertFile)
			abs(&s.TLS.KeyFile)
			abs(&s.TLS.ClientCAFile)
		}
	}
	abs(&d.SigningKeyFile)
	for name, key := range d.SourceKeys {
		abs(&key.File)
		d.SourceKeys[name] = key
	}
	for name, u := range f.Upstreams {
		upstream(&u)
		f.Upstreams[name] = u
	}
	identities := []*proxy.IdentityConfig{&f.Identity}
	for i := range f.Routes {
		upstream(&f.Routes[i].Upstream.UpstreamConfig)
		socket(&f.Routes[i].Upstream.Ref)
		identities = append(identities, &f.Routes[i].Identity)
	}
	for _, id := range identities {
		if id.Assertion != nil {
			abs(&id.Assertion.KeyFile)
		}
	}
}
