package proxy

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"durward/decision"
	"durward/token"
)

// A Session is the endpoint through which pages hand in and give up their token,
// so that it lives in an HttpOnly cookie and never in a page's storage.
type Session struct {
	Path   string // "" for no endpoint
	Cookie string // name of the session cookie; "" for none
}

// maxCookie is how long a cookie browsers keep: name, value and attributes (RFC
// 6265 section 6.1).
const maxCookie = 4096

// decideOwn decides about the gateway's own paths.
func (s *Snapshot) decideOwn(r *http.Request, rec *decision.Record, p *Passage) {
	switch {
	case p.own == KeysPath:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			rec.Remedy = &decision.Remedy{Methods: []string{http.MethodGet, http.MethodHead}}
			rec.Refuse(decision.MethodNotAllowed, "public keys can only be read")
			return
		}
		rec.Allow(decision.Public)
	case s.Session.Path != "" && p.own == s.Session.Path:
		s.decideSession(r, rec, p)
	default:
		rec.Refuse(decision.NoRoute, "the gateway has nothing at this path")
	}
}

// decideSession judges POST, which reads the bearer token alone, and DELETE,
// which reads the cookie alone: neither can be made to act on a credential that
// the browser adds by itself to the other.
func (s *Snapshot) decideSession(r *http.Request, rec *decision.Record, p *Passage) {
	var finder token.Finder
	switch r.Method {
	case http.MethodPost:
		finder.Bearer = true
	case http.MethodDelete:
		finder.Cookie = s.Session.Cookie
	default:
		rec.Remedy = &decision.Remedy{Methods: []string{http.MethodPost, http.MethodDelete}}
		rec.Refuse(decision.MethodNotAllowed, "the session endpoint takes POST and DELETE")
		return
	}
	if err := crossSite(r, p, http.NewCrossOriginProtection(), nil); err != nil {
		rec.Refuse(decision.CrossSite, err.Error())
		return
	}
	cred, problem := finder.Find(r.Header)
	if problem == nil && cred.Raw == "" {
		problem = &token.Error{Reason: decision.NoToken, Detail: "no credential of the kind that this method reads"}
	}
	if problem == nil {
		p.cred = cred
		p.claims, problem = s.Tokens.Verify(r.Context(), cred.Raw, nil, rec.Time, rec.Trace)
	}
	switch {
	case problem != nil && problem.Reason == decision.TokenExpired && finder.Cookie != "":
		rec.Allow(decision.Allowed) // nothing left to revoke; the cookie goes
	case problem != nil:
		rec.Refuse(problem.Reason, problem.Detail)
	case finder.Cookie != "":
		rec.Allow(decision.Allowed) // also while the denylist is stale: revoking is always safe
	case s.checkDenied(rec, p.claims, false):
		if len(s.sessionCookie(cred.Raw, p.claims.Expiry, rec.Time).String()) > maxCookie {
			rec.Refuse(decision.TooLarge, "the token is too long for a cookie")
			return
		}
		rec.Allow(decision.Allowed)
	}
}

// serveOwn answers an allowed request for one of the gateway's own paths.
func (h *Handler) serveOwn(s *Snapshot, rw *writer, r *http.Request, rec *decision.Record, p *Passage) {
	rw.skipBody(r) // nothing here reads one
	header := rw.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	if p.own == KeysPath {
		header.Set("Content-Type", "application/jwk-set+json")
		header.Set("Cache-Control", "public, max-age=300")
		rw.Write(s.publicKeys)
		return
	}
	header.Set("Cache-Control", "no-store")
	if r.Method == http.MethodPost {
		header.Add("Set-Cookie", s.sessionCookie(p.cred.Raw, p.claims.Expiry, rec.Time).String())
		rw.WriteHeader(http.StatusNoContent)
		return
	}
	header.Add("Set-Cookie", clearCookie(s.Session.Cookie).String())
	if p.claims != nil {
		if err := h.Revoke(r.Context(), p.claims); err != nil {
			rec.Refuse(decision.Internal, "revoke the session: "+err.Error())
			s.refuse(rw, r, rec, p)
			return
		}
	}
	rw.WriteHeader(http.StatusNoContent)
}

// sessionCookie carries the token with the attributes that RFC 6265bis has for
// such a cookie; with the __Host- prefix browsers insist on Secure, Path=/ and no
// Domain, so that no other host can plant it.
func (s *Snapshot) sessionCookie(raw string, expiry, now time.Time) *http.Cookie {
	c := clearCookie(s.Session.Cookie)
	c.Value = raw
	c.MaxAge = max(1, int(expiry.Sub(now)/time.Second))
	return c
}

func clearCookie(name string) *http.Cookie {
	return &http.Cookie{Name: name, Path: "/", MaxAge: -1, HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode}
}

// checkCookies goes through an upstream's Set-Cookie fields. The session cookie
// passes only from the login service and only if its value verifies, with our
// attributes; from anybody else, or in a spelling that only resembles it, it is
// dropped and counted.
func (h *Handler) checkCookies(s *Snapshot, res *http.Response, ctx context.Context, rec *decision.Record, p *Passage) {
	var kept []string
	dropped := uint64(0)
	for _, line := range res.Header["Set-Cookie"] {
		if !resembles(line, s.cookies) {
			kept = append(kept, line)
			continue
		}
		if cookie := s.issued(line, ctx, p); cookie != nil {
			kept = append(kept, cookie.String())
			continue
		}
		dropped++
	}
	if dropped > 0 {
		h.cookiesDropped.Add(dropped)
		h.Log.Warn("dropped a session cookie from an upstream", "id", rec.ID, "route", rec.Route, "upstream", rec.Upstream, "times", dropped)
	}
	if res.Header["Set-Cookie"] = kept; kept == nil {
		delete(res.Header, "Set-Cookie")
	}
}

// resembles tells whether the line sets one of the cookies, or one that would be
// taken for a look-alike when it comes back, and lock the user out.
func resembles(line string, names []string) bool {
	pair, _, _ := strings.Cut(line, ";")
	return slices.ContainsFunc(names, func(name string) bool { return token.Resembles(pair, name) })
}

// issued is the session cookie as it may pass, nil if it may not. A cleared
// cookie always may.
func (s *Snapshot) issued(line string, ctx context.Context, p *Passage) *http.Cookie {
	c, err := http.ParseSetCookie(line)
	name := s.Routes[p.route.Index].Finder.Cookie
	if err != nil || !p.route.IssuesSession || name == "" || c.Name != name {
		return nil
	}
	now := time.Now()
	if c.Value == "" || c.MaxAge < 0 || !c.Expires.IsZero() && c.Expires.Before(now) {
		return clearCookie(name)
	}
	claims, problem := s.Tokens.Verify(ctx, c.Value, p.route.Issuers, now, nil)
	if problem != nil || s.Denied.Check(claims, now) != 0 {
		return nil
	}
	cookie := s.sessionCookie(c.Value, claims.Expiry, now)
	cookie.Name = name
	return cookie
}
