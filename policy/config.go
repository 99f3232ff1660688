package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A RouteConfig is one entry of routes: in the configuration file.
type RouteConfig struct {
	// Name is the route's name in logs, metrics and explain. Required, unique.
	Name string `yaml:"name"`
	// Host is one host name or a list: "shop.example.com"; "*.example.com" stands
	// for one label; "*" for any host that no other route names. Either all routes
	// have it or none.
	Host Strings `yaml:"host"`
	// Path is a net/http.ServeMux path pattern. Default "/": everything.
	Path string `yaml:"path"`
	// Auth is required (default), optional or none.
	Auth string `yaml:"auth"`
	// Issuers are the names of the issuers whose tokens may come here. Required
	// where several are configured; otherwise the only one.
	Issuers []string `yaml:"issuers"`
	// Allow is an unordered union of grants: any one is enough. Without it any
	// valid token of the route's issuers will do.
	Allow []GrantConfig `yaml:"allow"`
	// OnStale is deny or allow: what to do while a revocation feed is stale.
	// Default: denylist.on_stale.
	OnStale string `yaml:"on_stale"`
	// CrossSite is "allow", or the origins that may send unsafe requests and
	// WebSocket handshakes with the session cookie. Default: the same site alone.
	CrossSite CrossSite `yaml:"cross_site"`
	// Preflight is deny (default) or forward: whether CORS preflight requests
	// pass, without credential, body or identity.
	Preflight string `yaml:"preflight"`
	// EncodedSlash is deny (default) or allow: whether %2F may stand in a segment.
	EncodedSlash string `yaml:"encoded_slash"`
	// MaxBody is the largest request body, such as 10MiB. Default: no limit.
	MaxBody Size `yaml:"max_body"`
	// IssuesSession says that this upstream is the login service, whose session
	// cookie passes if its value verifies.
	IssuesSession bool `yaml:"issues_session"`
	// PassAuthorization leaves the Authorization field on, for webhooks and Basic
	// authentication. Only with auth: none.
	PassAuthorization bool `yaml:"pass_authorization"`
	// Shadow judges and records the grants but lets the request pass.
	Shadow bool `yaml:"shadow"`

	// FoldCase is set by whoever resolves the upstream: path_case: insensitive.
	FoldCase bool `yaml:"-"`
}

// A GrantConfig is one entry of allow:. Everything in it must hold.
type GrantConfig struct {
	// Methods that the grant speaks of; GET covers HEAD. Default: every standard one,
	// and those that other grants of the route name.
	Methods []string `yaml:"methods"`
	// Scopes that the token must have, all of them.
	Scopes []string `yaml:"scopes"`
	// Claims that the token must have, each with any of the values given, compared
	// by exact value and type; an array claim must contain one of them.
	Claims map[string]Values `yaml:"claims"`
	// ACR: the token's acr must be one of these (RFC 9470).
	ACR []string `yaml:"acr"`
	// MaxAge is how long ago, at most, the user may have logged in (auth_time). More than 0.
	MaxAge *time.Duration `yaml:"max_age"`
	// Issuers: the token must come from one of these.
	Issuers []string `yaml:"issuers"`
}

// A TestConfig is one entry of tests: a question to the policy and the answer
// that its author expects. The token counts as verified and not revoked.
type TestConfig struct {
	// Name of the test. Required.
	Name string `yaml:"name"`
	// Request is a method and an absolute URL.
	Request string `yaml:"request"`
	// Issuer is the name of the issuer of the claims. Default: the first.
	Issuer string `yaml:"issuer"`
	// Claims of the token. Without them the request carries no credential.
	Claims map[string]any `yaml:"claims"`
	// Want is allow, deny or challenge.
	Want string `yaml:"want"`
	// Reason is the expected reason. Optional.
	Reason string `yaml:"reason"`
}

// Strings is a list that may be written as a single string.
type Strings []string

// UnmarshalYAML takes a string or a list of strings. It uses the form of the
// method that keeps the decoder's strictness.
func (s *Strings) UnmarshalYAML(unmarshal func(any) error) error {
	var one string
	if unmarshal(&one) == nil {
		*s = Strings{one}
		return nil
	}
	return unmarshal((*[]string)(s))
}

// Values is a list of strings, numbers and booleans that may be written as a
// single one. Compile refuses other elements.
type Values []any

// UnmarshalYAML takes anything.
func (v *Values) UnmarshalYAML(unmarshal func(any) error) error {
	var raw any
	if err := unmarshal(&raw); err != nil {
		return err
	}
	list, ok := raw.([]any)
	if !ok {
		list = []any{raw}
	}
	*v = list
	return nil
}

// CrossSite is the value of cross_site:, a word or a mapping.
type CrossSite struct {
	// Word is "allow" to switch the check off, else empty.
	Word string `yaml:"-"`
	// TrustedOrigins are origins such as https://app.example.com.
	TrustedOrigins []string `yaml:"trusted_origins"`
}

// UnmarshalYAML takes a word or a mapping.
func (c *CrossSite) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&c.Word) == nil {
		return nil
	}
	type plain CrossSite // without this method
	return unmarshal((*plain)(c))
}

// Size is a number of bytes as it is written in the configuration: 1048576,
// 64KiB, 10MiB, 2GiB. The empty Size is none given.
type Size string

// Bytes is the size as a number, 0 for the empty Size.
func (s Size) Bytes() (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits, shift := strings.ReplaceAll(string(s), "_", ""), 0
	for i, unit := range [...]string{"KiB", "MiB", "GiB"} {
		if rest, ok := strings.CutSuffix(digits, unit); ok {
			digits, shift = strings.TrimSpace(rest), 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size; write a positive number of bytes, or 64KiB, 10MiB, 2GiB", string(s))
	}
	return n << shift, nil
}
