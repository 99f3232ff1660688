package proxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"durward/decision"
)

// refuse answers a request that is not allowed: the status, a short fixed text
// and the request id. The record's detail stays here.
func (s *Snapshot) refuse(rw *writer, r *http.Request, rec *decision.Record, p *Passage) {
	status := rec.Reason.Status()
	if rec.Status != 0 {
		status = rec.Status // 431 in place of 413
	}
	rw.skipBody(r)
	h := rw.Header()
	for name := range h {
		if name != "Set-Cookie" { // what ReverseProxy had begun to answer
			delete(h, name)
		}
	}
	values := []string{"no-store", "nosniff", rec.ID, string(rec.Reason)} // one array for four headers
	h["Cache-Control"] = values[0:1:1]
	h["X-Content-Type-Options"] = values[1:2:2]
	h["X-Request-Id"] = values[2:3:3]
	if !s.HideReasons {
		h["Durward-Reason"] = values[3:4:4]
	}
	if p.cred.Cookie && (rec.Reason == decision.TokenExpired || rec.Reason == decision.Revoked || p.own != "") {
		// Else a dead cookie would lock its owner out of routes with auth: optional;
		// and who asks to be signed out is to be rid of it in any case.
		h.Add("Set-Cookie", clearCookie(s.cookieName(p)).String())
	}
	s.remedy(h, status, rec)
	if location := s.loginLocation(r, rec, p); location != "" {
		h.Set("Location", location)
		h.Del("WWW-Authenticate")
		rw.WriteHeader(http.StatusFound)
		return
	}
	writeRefusal(rw, r, status, rec, s.HideReasons)
}

func (s *Snapshot) cookieName(p *Passage) string {
	if p.route != nil {
		return s.Routes[p.route.Index].Finder.Cookie
	}
	return s.Session.Cookie
}

// remedy says in the header what the client could come back with.
func (s *Snapshot) remedy(h http.Header, status int, rec *decision.Record) {
	remedy := rec.Remedy
	if remedy == nil {
		remedy = &decision.Remedy{}
	}
	switch {
	case rec.Reason == decision.NoToken:
		h.Set("WWW-Authenticate", "Bearer") // RFC 6750 section 3.1: no error without a credential
	case rec.Reason == decision.StepUp:
		challenge := `Bearer error="insufficient_user_authentication"`
		if remedy.ACR != nil {
			challenge += `, acr_values="` + quoted(strings.Join(remedy.ACR, " ")) + `"`
		}
		if remedy.MaxAge > 0 {
			challenge += `, max_age="` + seconds(remedy.MaxAge) + `"`
		}
		h.Set("WWW-Authenticate", challenge)
	case rec.Reason == decision.InsufficientScope:
		h.Set("WWW-Authenticate", `Bearer error="insufficient_scope", scope="`+quoted(strings.Join(remedy.Scopes, " "))+`"`)
	case rec.Reason == decision.AmbiguousCredentials:
		h.Set("WWW-Authenticate", `Bearer error="invalid_request"`)
	case status == http.StatusUnauthorized && s.HideReasons:
		h.Set("WWW-Authenticate", `Bearer error="invalid_token"`)
	case status == http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer error="invalid_token", error_description="`+text(rec.Reason)+`"`)
	case status == http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	case status == http.StatusMethodNotAllowed:
		h.Set("Allow", strings.Join(remedy.Methods, ", "))
	}
}

func quoted(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// loginLocation is where a browser goes that only needs to log in: a top-level
// GET navigation without a token, or with one that is no longer good. Empty for
// everybody else.
func (s *Snapshot) loginLocation(r *http.Request, rec *decision.Record, p *Passage) string {
	switch rec.Reason {
	case decision.NoToken, decision.TokenExpired, decision.Revoked, decision.StepUp:
	default:
		return ""
	}
	if s.LoginURL == "" || p.route == nil || r.Method != http.MethodGet || !isNavigation(r.Header) {
		return ""
	}
	// Only the path goes along unless the host is one that a route names:
	// otherwise a forged Host would send the user on to it after the login.
	back := p.path.Escaped() + p.query
	if s.Policy.Named(p.host) {
		back = p.peer.proto() + "://" + p.host.String() + back
	}
	location := strings.ReplaceAll(s.LoginURL, "{url}", url.QueryEscape(back))
	if rec.Reason == decision.StepUp && rec.Remedy != nil {
		extra := url.Values{}
		if rec.Remedy.ACR != nil {
			extra.Set("acr_values", strings.Join(rec.Remedy.ACR, " "))
		}
		if rec.Remedy.MaxAge > 0 {
			extra.Set("max_age", seconds(rec.Remedy.MaxAge))
		}
		separator := "?"
		if strings.Contains(location, "?") {
			separator = "&"
		}
		location += separator + extra.Encode()
	}
	return location
}

// isNavigation tells whether a browser asked for a page to show by itself.
func isNavigation(h http.Header) bool {
	if mode := h.Get("Sec-Fetch-Mode"); mode != "" {
		dest := h.Get("Sec-Fetch-Dest")
		return mode == "navigate" && (dest == "" || dest == "document")
	}
	return acceptsHTML(h)
}

func acceptsHTML(h http.Header) bool {
	return strings.Contains(strings.Join(h["Accept"], ","), "text/html")
}

// text is what a client may know about a reason.
func text(reason decision.Reason) string {
	switch reason {
	case decision.AmbiguousRequest:
		return "The request can be understood in more than one way."
	case decision.AmbiguousCredentials:
		return "The request carries more than one credential, or one that can be read in more than one way."
	case decision.TooLarge:
		return "The request is larger than this service accepts."
	case decision.NoRoute:
		return "There is nothing at this address."
	case decision.NoToken:
		return "You need to sign in first."
	case decision.TokenExpired:
		return "Your session has expired. Sign in again."
	case decision.TokenNotYetValid:
		return "Your session is not valid yet. Try again in a moment."
	case decision.Revoked:
		return "Your session was ended. Sign in again."
	case decision.StepUp:
		return "This needs a stronger or more recent sign-in."
	case decision.CrossSite:
		return "The request came from another site."
	case decision.MethodNotAllowed:
		return "This address does not support the method."
	case decision.InsufficientScope, decision.Forbidden:
		return "You are signed in, but you may not do this."
	case decision.Overloaded, decision.KeysUnavailable, decision.DenylistStale:
		return "The service cannot check your session right now. Try again in a moment."
	case decision.UpstreamUnreachable:
		return "The application does not answer right now. Try again in a moment."
	case decision.UpstreamTimeout:
		return "The application took too long to answer."
	case decision.Internal:
		return "Something went wrong here."
	}
	return "The session is not valid. Sign in again."
}

// A problem is an application/problem+json document (RFC 9457).
type problem struct {
	Title     string          `json:"title"`
	Status    int             `json:"status"`
	Detail    string          `json:"detail"`
	Reason    decision.Reason `json:"reason,omitempty"`
	RequestID string          `json:"request_id"`
}

// writeRefusal sends a page to browsers and problem+json to everybody else.
func writeRefusal(rw *writer, r *http.Request, status int, rec *decision.Record, hideReasons bool) {
	doc := problem{http.StatusText(status), status, text(rec.Reason), rec.Reason, rec.ID}
	if hideReasons {
		doc.Reason = ""
	}
	h := rw.Header()
	var body []byte
	contentType := "application/problem+json"
	if acceptsHTML(r.Header) {
		contentType = "text/html; charset=utf-8"
		h.Set("Content-Security-Policy", "default-src 'none'; style-src '"+pageStyleHash+"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		var text bytes.Buffer
		page.Execute(&text, doc) // into memory, from a fixed template: cannot fail
		body = text.Bytes()
	} else {
		body, _ = json.Marshal(doc) // of texts and a number: cannot fail
		body = append(body, '\n')
	}
	values := []string{contentType, strconv.Itoa(len(body))}
	h["Content-Type"] = values[0:1:1]
	h["Content-Length"] = values[1:2:2]
	rw.WriteHeader(status)
	if r.Method != http.MethodHead {
		rw.Write(body)
	}
}

// pageStyle is allowed by its hash, so that nothing else can be.
const pageStyle = `:root{color-scheme:light dark}body{font:1.0625rem/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;place-items:center}main{max-width:32rem;padding:1.5rem}h1{font-size:1.5rem;margin:0 0 .5rem}p{margin:.5rem 0}small{opacity:.7;overflow-wrap:anywhere}`

var pageStyleHash = func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "sha256-" + base64Std.EncodeToString(sum[:])
}()

var page = template.Must(template.New("page").Parse(fmt.Sprintf(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Status}} {{.Title}}</title>
<style>%s</style>
</head>
<body>
<main>
<h1>{{.Title}}</h1>
<p>{{.Detail}}</p>
<p><small>Status {{.Status}}, request {{.RequestID}}</small></p>
</main>
</body>
</html>
`, pageStyle)))
