package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"durward/policy"
	"durward/proxy"
	"durward/token"
)

// lint says what is allowed in a configuration and may surprise its author.
func (b *builder) lint(s *proxy.Snapshot) {
	b.lintIssuers(s)
	for _, rt := range s.Policy.Routes() {
		b.lintRoute(fmt.Sprintf("routes[%d]", rt.Index), rt)
	}
}

func (b *builder) lintRoute(place string, rt *policy.Route) {
	methods, open := rt.Open()
	if open {
		who := "anybody may " + strings.Join(methods, ", ") + " without a token"
		if methods == nil {
			who = "anybody may do anything without a token"
		}
		if rt.Pattern() == "/" && rt.Auth == policy.None {
			b.warn(place+".auth", "%s wherever no other route matches; give the route a narrower path, or leave auth out", who)
		} else {
			b.note(place+".auth", "%s at %s; leave auth out if that is not meant", who, rt.Pattern())
		}
	}
	if missing := rt.Uncovered(); missing != nil && !open {
		b.note(place+".allow", "no grant speaks of %s: they get 405; add a grant if they are to pass", strings.Join(missing, ", "))
	}
	own := slices.ContainsFunc(proxy.OwnPaths(), func(p string) bool { return strings.HasPrefix(rt.Pattern(), p) })
	if own || b.Credentials.SessionEndpoint != "" && rt.Pattern() == b.Credentials.SessionEndpoint {
		b.warn(place+".path", "no request reaches the route: %s is the gateway's own; choose another path", rt.Pattern())
	}
}

func (b *builder) lintIssuers(s *proxy.Snapshot) {
	for i, cfg := range b.Issuers {
		place := fmt.Sprintf("issuers[%d]", i)
		if !slices.ContainsFunc(s.Policy.Routes(), func(rt *policy.Route) bool {
			return rt.Auth != policy.None && (rt.Issuers == nil || slices.Contains(rt.Issuers, cfg.Name))
		}) {
			b.warn(place, "no route takes tokens of %q; name it in the issuers of a route, or remove it", cfg.Name)
		}
		for j, audience := range cfg.Audiences {
			if who := commonAudience(cfg, audience); who != "" {
				b.warn(fmt.Sprintf("%s.audiences[%d]", place, j), "%q separates nothing: %s, so that tokens made for other applications are good here; give the gateway an audience of its own", audience, who)
			}
		}
		if cfg.RequireJTI != nil && !*cfg.RequireJTI {
			b.warn(place+".require_jti", "a token without jti can be revoked by its session, subject and client, but by itself only under the hash of its signing input; leave require_jti out if the issuer can add a jti")
		}
		for _, kind := range [...]string{"jti", "session", "client"} {
			if _, mapped := cfg.Claims[kind]; mapped {
				continue
			}
			if text := lacking(cfg.Issuer, kind); text != "" && !(kind == "jti" && cfg.RequireJTI != nil && !*cfg.RequireJTI) {
				b.warn(place+".claims", "%s", text)
			}
		}
	}
}

// commonAudience says who makes tokens with an audience for everybody, "" if
// nothing is known against it.
func commonAudience(cfg token.IssuerConfig, audience string) string {
	base := strings.TrimSuffix(cfg.Issuer, "/")
	switch {
	case audience == "account":
		return "Keycloak puts it into the tokens of every client"
	case audience == "api://default":
		return "every application of Okta's default authorization server has it"
	case audience == "authenticated":
		return "Supabase puts it into the tokens of every user"
	case audience == base+"/userinfo":
		return "Auth0 puts it into the tokens of every application that asks for openid"
	case strings.TrimSuffix(audience, "/") == base, audience == base+"/resources":
		return "it is the issuer's own name"
	case audience == "*":
		return "it is compared byte for byte, and a token whose audience is everybody would have it"
	}
	return ""
}

// lacking says which revocations do not reach the tokens of a well-known issuer
// unless it is told, or the gateway where to look; "" if nothing is known.
func lacking(issuer, kind string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return ""
	}
	host := u.Hostname()
	switch {
	case strings.HasSuffix(host, ".auth0.com"):
		return map[string]string{
			"jti":     "tokens of Auth0's default profile carry no jti, and are refused; choose the RFC 9068 profile for the API, or say require_jti: false",
			"session": "Auth0's access tokens carry no sid, so that revoking a session reaches none; add one with an Action, or revoke by sub",
			"client":  "tokens of Auth0's default profile carry the client as azp; write claims: {client: azp}, or choose the RFC 9068 profile",
		}[kind]
	case host == "login.microsoftonline.com" || host == "sts.windows.net":
		return map[string]string{
			"jti":    "Entra's tokens carry their id as uti, and are refused without jti; write claims: {jti: uti}",
			"client": "Entra's tokens carry the client as azp (v2) or appid (v1); write claims: {client: azp}",
		}[kind]
	case host == "accounts.google.com":
		return map[string]string{
			"jti":     "Google's ID tokens often carry no jti, and are refused then; say require_jti: false",
			"session": "Google's ID tokens carry no session, so that revoking one reaches none; use revocations by sub",
			"client":  "Google's ID tokens carry the client as azp; write claims: {client: azp}",
		}[kind]
	case strings.HasPrefix(host, "cognito-idp."):
		return map[string]string{
			"session": "Cognito's tokens carry their sign-in as origin_jti; write claims: {session: origin_jti}",
		}[kind]
	case strings.Contains(u.Path, "/realms/"):
		return map[string]string{
			"client": "Keycloak's tokens carry the client as azp, so that revoking a client reaches none; write claims: {client: azp}",
		}[kind]
	}
	return ""
}
