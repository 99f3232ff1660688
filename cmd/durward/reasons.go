package main

import "durward/decision"

// about says of a reason when it is given and what to do about it, for operators.
func about(reason decision.Reason) (when, remedy string) {
	switch reason {
	case decision.Public:
		return "the route asks for no token, or has nothing to ask of one", "nothing; say auth: required if that is not meant"
	case decision.Allowed:
		return "the token is good and a grant lets it in", "nothing"
	case decision.AmbiguousRequest:
		return "path, host, method or framing can be read in two ways", "let the client spell the request in the one way that all servers read alike; for %2F the route can say encoded_slash: allow"
	case decision.AmbiguousCredentials:
		return "there is more than one credential, or one with two readings", "send the token in the cookie or in Authorization, once; clear cookies of a similar name"
	case decision.TooLarge:
		return "headers, cookies or body are over a limit", "send less, or raise limits, or max_body of the route"
	case decision.Overloaded:
		return "more signatures wait to be verified than the machine can verify", "see whether somebody floods the gateway with tokens; give it more processors"
	case decision.NoRoute:
		return "no route matches host and path", "add a route, or see whether its host or path is misspelt"
	case decision.NoToken:
		return "the route asks for a token and the request brings none", "log in; see that the client sends the cookie or Authorization: Bearer, and that its name is the configured one"
	case decision.TokenMalformed:
		return "the token is no compact JWT of one reading", "see what the client sends as a token: an opaque access token, a quoted or cut one"
	case decision.TokenType:
		return "the token's typ is none of the issuer's token_types", "send an access token; or add its typ to token_types if such tokens are meant for this application"
	case decision.TokenIssuer:
		return "iss is no configured issuer, or one that the route does not take", "compare iss with issuers byte for byte, a slash at the end included, and with issuers of the route"
	case decision.TokenAudience:
		return "aud holds none of the issuer's audiences", "have the issuer put the audience into its tokens for this application, or correct audiences"
	case decision.TokenExpired:
		return "exp is past, leeway included", "log in again or refresh the token; see that the clocks agree"
	case decision.TokenNotYetValid:
		return "nbf or iat is in the future", "see that the clocks of issuer and gateway agree; leeway and skew forgive a little"
	case decision.TokenLifetime:
		return "exp lies further from iat than max_lifetime", "have the issuer make tokens that live shorter, or raise max_lifetime"
	case decision.TokenAlgorithm:
		return "alg is not among the issuer's algorithms", "add the algorithm to algorithms if the issuer uses it; HS256 and none do not exist here"
	case decision.TokenSignature:
		return "the signature does not verify, or no key has the token's kid", "see that the token is whole, and that jwks_url is that of the issuer who made it"
	case decision.TokenClaims:
		return "a claim is missing, of the wrong type, or says that this is no access token", "have the issuer add the claim that is named; for tokens without jti say require_jti: false or map another claim"
	case decision.KeysUnavailable:
		return "there are no usable keys of the issuer", "see what /readyz says of the issuer: its address, its certificate, the way there"
	case decision.Revoked:
		return "the token, its session, subject, client or issuer was revoked", "log in again; GET /revocations/check says what is held"
	case decision.DenylistStale:
		return "a revocation feed is not live, so nobody knows what was revoked", "see what /readyz says of the feed that is not live; on_stale: allow lets a route go on while one is stale"
	case decision.CrossSite:
		return "another site made a browser send its cookie with an unsafe request", "if the other site is yours, name it in cross_site.trusted_origins of the route"
	case decision.MethodNotAllowed:
		return "no grant of the route speaks of the method", "add a grant for the method if it is to pass"
	case decision.StepUp:
		return "a grant would hold after a stronger or more recent login", "log in again, with the acr or within the max_age that the grant asks for"
	case decision.InsufficientScope:
		return "a grant would hold with more scopes", "have the client ask the issuer for the scope that is lacking"
	case decision.Forbidden:
		return "no grant for the method holds", "give the user what a grant asks for, or add a grant"
	case decision.ClientGone:
		return "the client went away before the answer", "nothing here; see whether the application is slow"
	case decision.UpstreamUnreachable:
		return "the application cannot be reached, or broke off before it answered", "see that the application runs and that the url of its upstream is right"
	case decision.UpstreamTimeout:
		return "the application did not answer in time", "see what the application does; timeout.response_header of the upstream says how long it may take"
	}
	return "a bug: nobody decided, or something failed that cannot", "see the log for the request id, and report it"
}
