package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"durward/token"
)

// An IdentityConfig says how the upstream learns who is asking. On a route it
// overrides the general one, member by member.
type IdentityConfig struct {
	// Headers maps header names to claims. Default: X-Forwarded-User: sub,
	// X-Forwarded-Email: email, X-Forwarded-Groups: groups. A map replaces it.
	Headers map[string]HeaderConfig `yaml:"headers"`
	// Assertion adds a short-lived signed JWT. Optional.
	Assertion *AssertionConfig `yaml:"assertion"`
	// ForwardToken passes the verified token on as Authorization: Bearer. Default false.
	ForwardToken *bool `yaml:"forward_token"`
}

// A HeaderConfig is a claim path, or a mapping of claim and separator.
type HeaderConfig struct {
	// Claim is a name from the issuer's claims, or a dotted path.
	Claim string `yaml:"claim"`
	// Separator joins the elements of an array. Default ",". An element that
	// contains it is left out and counted.
	Separator string `yaml:"separator"`
}

// UnmarshalYAML takes a claim path or a mapping.
func (h *HeaderConfig) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&h.Claim) == nil {
		return nil
	}
	type plain HeaderConfig // without this method
	return unmarshal((*plain)(h))
}

// DefaultHeaders is what identity.headers is when it is not given.
func DefaultHeaders() map[string]HeaderConfig {
	return map[string]HeaderConfig{
		"X-Forwarded-User":   {Claim: "sub"},
		"X-Forwarded-Email":  {Claim: "email"},
		"X-Forwarded-Groups": {Claim: "groups"},
	}
}

// An Identity sets the identity headers of a route.
type Identity struct {
	headers      []identityHeader
	assertion    *Assertion
	forwardToken bool
	omitted      atomic.Uint64
}

type identityHeader struct{ name, claim, separator string }

// NewIdentity checks the configuration. The error joins all problems, each a
// *token.FieldError.
func NewIdentity(cfg IdentityConfig, assertion *Assertion) (*Identity, error) {
	id := &Identity{assertion: assertion, forwardToken: cfg.ForwardToken != nil && *cfg.ForwardToken}
	headers := cfg.Headers
	if headers == nil {
		headers = DefaultHeaders()
	}
	var errs []error
	folded := map[string]string{}
	if assertion != nil {
		folded[foldName(assertion.header)] = assertion.header
	}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		h := headers[name]
		problem := func(format string, args ...any) {
			errs = append(errs, &token.FieldError{Field: "headers." + name, Err: fmt.Errorf(format, args...)})
		}
		if err := checkHeaderName(name); err != nil {
			problem("%v", err)
		}
		if other, taken := folded[foldName(name)]; taken {
			problem("is the same as %s to a server that folds names; choose another", other)
		}
		folded[foldName(name)] = name
		if _, err := token.ParsePath(h.Claim); err != nil {
			problem("%v", err)
		}
		if h.Separator == "" {
			h.Separator = ","
		}
		if len(h.Separator) != 1 || !strings.Contains(",;| ", h.Separator) {
			problem("separator %q is not one of comma, semicolon, bar and blank", h.Separator)
		}
		id.headers = append(id.headers, identityHeader{textproto.CanonicalMIMEHeaderKey(name), h.Claim, h.Separator})
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return id, nil
}

// checkHeaderName refuses what no identity can be sent in.
func checkHeaderName(name string) error {
	for i := 0; i < len(name); i++ {
		if c := name[i]; !(isAlphanumeric(c) || c == '-') {
			return fmt.Errorf("%q is no portable header name; use letters, digits and hyphens", name)
		}
	}
	switch foldName(name) {
	case "":
		return errors.New("the header name is empty")
	case "host", "connection", "contentlength", "contenttype", "transferencoding", "trailer", "te", "upgrade", "cookie", "setcookie",
		"authorization", "expect", "keepalive", "origin", "forwarded", "xforwardedfor", "xforwardedproto", "xforwardedhost":
		return fmt.Errorf("%s has a meaning of its own in HTTP; choose another name", name)
	}
	return nil
}

// Omitted counts the array elements left out because they contained the separator.
func (id *Identity) Omitted() uint64 { return id.omitted.Load() }

// names are the header names that this identity sets.
func (id *Identity) names() []string {
	var names []string
	for _, h := range id.headers {
		names = append(names, h.name)
	}
	if id.assertion != nil {
		names = append(names, id.assertion.header)
	}
	return names
}

// set writes the headers. Each is absent where the claim is missing or empty. All
// requests with the token share the values: who wants others sets others.
func (id *Identity) set(h http.Header, c *token.Claims) {
	r := c.Rendering(id)
	if r == nil {
		r = id.render(c)
		c.KeepRendering(r)
	}
	if r.Omitted > 0 {
		id.omitted.Add(r.Omitted)
	}
	for i := range id.headers {
		if r.Values[i] != "" {
			h[id.headers[i].name] = r.Values[i : i+1 : i+1]
		}
	}
}

func (id *Identity) render(c *token.Claims) *token.Rendering {
	r := &token.Rendering{Of: id, Values: make([]string, len(id.headers))}
	for i, ih := range id.headers {
		var omitted uint64
		r.Values[i], omitted = headerValue(c.Value(ih.claim), ih.separator)
		r.Omitted += omitted
	}
	all := strings.Join(r.Values, "") // side by side
	for i, v := range r.Values {
		r.Values[i], all = all[:len(v)], all[len(v):]
	}
	return r
}

// headerValue is a claim as the value of a header, and how many elements of a list were
// left out.
func headerValue(claim any, separator string) (value string, omitted uint64) {
	list, ok := claim.([]any)
	if !ok {
		return encodeValue(scalar(claim)), 0
	}
	var elements []string
	for _, e := range list {
		text := scalar(e)
		encoded := encodeValue(text)
		switch {
		case text == "":
		case strings.Contains(text, separator) || strings.Contains(encoded, separator):
			omitted++
		default:
			elements = append(elements, encoded)
		}
	}
	return strings.Join(elements, separator), omitted
}

// scalar is the text of a string, number or boolean; nothing else has one.
func scalar(claim any) string {
	switch v := claim.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		if v {
			return "true"
		}
		return "false"
	}
	return ""
}

// encodeValue makes a claim safe to be a header value. Printable ASCII stays as
// it is; all else becomes RFC 2047 encoded words: other scripts, controls, blanks
// at the ends (which a receiver would cut off, making " admin" admin), and text
// that already looks like an encoded word (which a receiver would decode).
func encodeValue(s string) string {
	plain := s == strings.TrimSpace(s) && !strings.Contains(s, "=?")
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return s
	}
	if !utf8.ValidString(s) {
		return "" // the token parser lets no such text in
	}
	// WordEncoder leaves pure ASCII alone, so that is forced by hand.
	if encoded := mime.BEncoding.Encode("utf-8", s); encoded != s {
		return encoded
	}
	return "=?utf-8?b?" + base64Std.EncodeToString([]byte(s)) + "?="
}

// protectedElsewhere are identity names that other gateways own. An application
// may still believe one of them, so none is ever passed on from a client.
// Compared by foldName; what begins with one of protectedFamilies is not repeated.
var protectedElsewhere = [...]string{
	// CGI, Apache, nginx, IIS
	"Remote-User", "Remote-Groups", "Remote-Email", "Remote-Name", "Auth-User", "Auth-Type",
	"X-User", "X-Username", "X-User-Id", "X-User-Name", "X-User-Email", "X-Email", "X-Groups", "X-Roles",
	// forward-auth and API gateways
	"X-Auth-User", "X-Auth-Email", "X-Auth-Groups", "X-Auth-Roles", "X-Auth-Name", "X-Auth-Subject", "X-Auth-Token-Claims",
	"X-Grafana-User", "X-Credential-Identifier", "X-Anonymous-Consumer", "X-Serverless-Authorization", "Gap-Auth",
	"X-Userinfo", "X-Endpoint-Api-Userinfo", "X-Apigateway-Api-Userinfo", "X-Jwt-Assertion", "X-Id-Token",
	// client certificates
	"X-Client-Verify", "X-Client-Dn", "Client-Cert", "Client-Cert-Chain", "X-Arr-Clientcert", "X-Amzn-Mtls-Clientcert-Subject",
	// addresses and URLs that are not the judged ones
	"X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Fastly-Client-Ip", "X-Originating-Ip",
	"Client-Ip", "Proxy-Client-Ip", "Wl-Proxy-Client-Ip", "X-Azure-Clientip", "X-Azure-Socketip", "X-Appengine-User-Ip",
	"X-Request-Id", // set anew; X_Request_Id would stand beside ours
	"X-Override-Url", "X-Http-Path-Override",
	"X-Envoy-External-Address", "X-Host", "X-Http-Host-Override", "X-Http-Method", "X-Http-Method-Override", "X-Method-Override",
	"X-Url-Scheme", "X-Scheme", "X-Script-Name", "Script-Name", "X-Accel-Redirect", "X-Sendfile", "Front-End-Https", "Proxy", "Proxy-Authorization", "Forwarded",
}

// protectedFamilies begin the names of which other gateways own all, as far as
// anybody knows them, in the spelling of foldName.
var protectedFamilies = [...]string{
	"durward", "xforwarded",
	"xauthrequest", "xvouch", "xauthentik", "xpomerium", "xwebauth", "xremote", "xauthenticated", "xconsumer", // forward-auth
	"xgoogiap", "xgoogauthenticateduser", "xamznoidc", "xmsclientprincipal", "xmstoken", "cfaccess", "tailscale", // clouds
	"oidcclaim", "oidcaccesstoken", "oidcidtoken", "mellon", "shib", "smuser", "smuniversalid", "ivuser", "ivgroup", "ivcred", // modules of Apache, older products
	"xsslclient", "sslclient", "xclientcert", // client certificates
	"xoriginal", "xrewrite", "xenvoyoriginal", // what was asked for before somebody rewrote it
}

// framingNames have one spelling. A field that only a folding server would take
// for one of them makes a request with two readings.
var framingNames = map[string]string{
	"contentlength": "Content-Length", "transferencoding": "Transfer-Encoding", "host": "Host", "connection": "Connection",
	"authorization": "Authorization", "cookie": "Cookie", "upgrade": "Upgrade", "expect": "Expect", "te": "Te", "trailer": "Trailer",
}

// A nameSet is a set of header names by their folded spelling.
type nameSet map[string]bool

// newNameSet unites the identity names of all routes with those of elsewhere.
func newNameSet(identities []*Identity) nameSet {
	set := nameSet{}
	add := func(names ...string) {
		for _, name := range names {
			set[foldName(name)] = true
		}
	}
	add(protectedElsewhere[:]...)
	for name := range DefaultHeaders() {
		add(name)
	}
	for _, id := range identities {
		add(id.names()...)
	}
	return set
}

// strip deletes every field whose name is protected in any spelling. CGI, WSGI
// and many frameworks take X_User and X.User for X-User, so names are compared
// without case and without anything but letters and digits.
func (set nameSet) strip(h http.Header) {
	var buf [64]byte
	for name := range h {
		folded := appendFolded(buf[:0], name)
		if set[string(folded)] || inFamily(folded) {
			delete(h, name)
		}
	}
}

func inFamily(folded []byte) bool {
	for _, family := range protectedFamilies {
		if len(folded) >= len(family) && folded[0] == family[0] && string(folded[:len(family)]) == family { // most differ in the first letter
			return true
		}
	}
	return false
}

func foldName(name string) string { return string(appendFolded(nil, name)) }

func appendFolded(dst []byte, name string) []byte {
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case 'A' <= c && c <= 'Z':
			dst = append(dst, c|0x20)
		case isAlphanumeric(c):
			dst = append(dst, c)
		}
	}
	return dst
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
