// Package decision holds what the gateway found out about one request: the
// verdict, the reason for it, and the record that log, metrics, traces, tests
// and explain all read. It decides nothing and imports only the standard library.
//
// The zero value of everything here refuses: a verdict that nobody set is Deny,
// and a reason that nobody set is a counted bug (Internal).
package decision

import "net/http" // for the names of the status codes alone

// A Verdict is the outcome of a decision. Its zero value is Deny, so that a
// forgotten assignment, a missing branch or a panic lets nobody through.
type Verdict uint8

const (
	Deny      Verdict = iota // refused; the zero value
	Challenge                // refused with 401: another credential may do
	Allow                    // forwarded
)

// String is the verdict as logs, metrics and policy tests spell it.
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Challenge:
		return "challenge"
	}
	return "deny"
}

// A Reason says why. It is one of the fixed set below: the metric label, the log
// field and the value of the response header Durward-Reason.
type Reason string

// The reasons. Unset is a bug: whoever meets it answers Internal.
const (
	Unset Reason = ""

	Public  Reason = "public"  // the route asks for no identity, or has none to ask for
	Allowed Reason = "allowed" // the token and a grant allow it

	AmbiguousRequest     Reason = "ambiguous_request"
	AmbiguousCredentials Reason = "ambiguous_credentials"
	TooLarge             Reason = "too_large"
	Overloaded           Reason = "overloaded"
	NoRoute              Reason = "no_route"
	NoToken              Reason = "no_token"

	TokenMalformed   Reason = "token_malformed"
	TokenType        Reason = "token_type"
	TokenIssuer      Reason = "token_issuer"
	TokenAudience    Reason = "token_audience"
	TokenExpired     Reason = "token_expired"
	TokenNotYetValid Reason = "token_not_yet_valid"
	TokenLifetime    Reason = "token_lifetime"
	TokenAlgorithm   Reason = "token_algorithm"
	TokenSignature   Reason = "token_signature"
	TokenClaims      Reason = "token_claims"
	KeysUnavailable  Reason = "keys_unavailable"

	Revoked       Reason = "revoked"
	DenylistStale Reason = "denylist_stale"

	CrossSite         Reason = "cross_site"
	MethodNotAllowed  Reason = "method_not_allowed"
	StepUp            Reason = "step_up"
	InsufficientScope Reason = "insufficient_scope"
	Forbidden         Reason = "forbidden"

	ClientGone          Reason = "client_gone"
	UpstreamUnreachable Reason = "upstream_unreachable"
	UpstreamTimeout     Reason = "upstream_timeout"
	Internal            Reason = "internal"
)

// Reasons lists every reason but Unset, in the order of the walk.
func Reasons() []Reason {
	return []Reason{
		Public, Allowed, AmbiguousRequest, AmbiguousCredentials, TooLarge, Overloaded, NoRoute, NoToken,
		TokenMalformed, TokenType, TokenIssuer, TokenAudience, TokenExpired, TokenNotYetValid, TokenLifetime,
		TokenAlgorithm, TokenSignature, TokenClaims, KeysUnavailable, Revoked, DenylistStale, CrossSite,
		MethodNotAllowed, StepUp, InsufficientScope, Forbidden, ClientGone, UpstreamUnreachable, UpstreamTimeout, Internal,
	}
}

// Status is the HTTP status that a refusal for this reason is answered with.
// It is 0 for the two reasons that refuse nothing; TooLarge is 413, and a
// caller that refuses the header section instead of the body says 431 itself
// (RFC 6585 section 5).
func (r Reason) Status() int {
	switch r {
	case Public, Allowed:
		return 0
	case AmbiguousRequest, AmbiguousCredentials:
		return http.StatusBadRequest
	case TooLarge:
		return http.StatusRequestEntityTooLarge
	case NoRoute:
		return http.StatusNotFound
	case NoToken, TokenMalformed, TokenType, TokenIssuer, TokenAudience, TokenExpired, TokenNotYetValid,
		TokenLifetime, TokenAlgorithm, TokenSignature, TokenClaims, Revoked, StepUp:
		return http.StatusUnauthorized
	case CrossSite, InsufficientScope, Forbidden:
		return http.StatusForbidden
	case MethodNotAllowed:
		return http.StatusMethodNotAllowed
	case Overloaded, KeysUnavailable, DenylistStale:
		return http.StatusServiceUnavailable
	case ClientGone:
		return 499 // nginx's number for a client that closed the connection; never sent
	case UpstreamUnreachable:
		return http.StatusBadGateway
	case UpstreamTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// Verdict is the verdict that goes with the reason: Challenge for every 401,
// Allow for the two that let pass, Deny for all else.
func (r Reason) Verdict() Verdict {
	switch r.Status() {
	case 0:
		return Allow
	case http.StatusUnauthorized:
		return Challenge
	}
	return Deny
}
