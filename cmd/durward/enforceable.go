package main

import (
	"fmt"
	"slices"
	"strings"

	"durward/denylist"
	"durward/token"
)

// unenforceable says what a revocation does not reach, because not all of its
// issuer's tokens carry the claim that it goes by, and counts it; "" if it reaches
// all that are known.
func (g *gateway) unenforceable(r denylist.Revocation) string {
	issuers := g.current.Load().issuers
	at := slices.IndexFunc(issuers, func(i *token.Issuer) bool { return i.URL() == r.Issuer })
	if at < 0 {
		return ""
	}
	issuer := issuers[at]
	shares := map[string]token.Share{}
	for _, s := range issuer.Shares() {
		shares[s.Claim] = s
	}
	var notes []string
	lacks := func(claim, consequence string) {
		if s, ok := shares[claim]; ok && !s.Complete() {
			issuer.MissedBy(claim)
			notes = append(notes, fmt.Sprintf("only %d %% of the %d tokens of issuer %s seen lately carry %s; %s", s.Percent(), s.Tokens, issuer.Name(), claim, consequence))
		}
	}
	switch {
	case r.Kind == token.KindToken && token.IsDigest(r.Value):
		// The name of a token without jti.
	case r.Kind == token.KindToken:
		lacks("jti", `what lacks it has no name but "sha256:" and the hash of its signing input, and is not revoked; revoke `+wider(r.Kind, shares)+" instead")
	default:
		lacks(r.Kind.String(), "what lacks it is not revoked; revoke "+wider(r.Kind, shares)+" instead")
	}
	if r.ByAuthTime {
		lacks("auth_time", "what lacks it is judged by its iat, so that a refreshed token escapes")
	}
	return strings.Join(notes, "; ")
}

// wider is what reaches the tokens that lack the claim of this kind.
func wider(kind token.Kind, shares map[string]token.Share) string {
	if (kind == token.KindToken || kind == token.KindSession) && shares["sub"].Complete() {
		return "the sub"
	}
	return "all of the issuer's tokens"
}

// claimsStatus is what /status tells of the claims that an issuer's tokens carry:
// how many tokens it goes by, and the share of each.
func claimsStatus(issuer *token.Issuer) (claims map[string]any, warning string) {
	claims = map[string]any{}
	var warnings []string
	for _, s := range issuer.Shares() {
		claims["tokens"] = s.Tokens
		if s.Tokens > 0 {
			claims[s.Claim] = s.Part()
		}
		if s.Missed > 0 {
			warnings = append(warnings, fmt.Sprintf("%d revocations went by %s though not all tokens carry it: now %d %% of the %d seen lately", s.Missed, s.Claim, s.Percent(), s.Tokens))
		}
	}
	return claims, strings.Join(warnings, "; ")
}
