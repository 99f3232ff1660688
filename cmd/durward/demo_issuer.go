package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A demoIssuer is the smallest thing that deserves the name: it knows three
// users, believes whoever says to be one of them, and signs that.
type demoIssuer struct {
	url  string // its iss
	key  *ecdsa.PrivateKey
	page *template.Template
}

// A demoUser is somebody to log in as.
type demoUser struct {
	Name, About, FullName, Scope string
	Groups                       []string
}

func demoUsers() []demoUser {
	return []demoUser{
		{"alice", "may read orders", "Alice Ward", "orders:read", nil},
		{"bob", "may read and place orders", "Bob Keeper", "orders:read orders:write", nil},
		{"carol", "may do that, and is an administrator", "Carol Bar", "orders:read orders:write", []string{"admin"}},
	}
}

func newDemoIssuer(url string) (*demoIssuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	page, err := template.ParseFS(demoFiles, "demo/login.html")
	return &demoIssuer{url: url, key: key, page: page}, err
}

// handler serves the login under /login/, where the gateway's route leads, and
// the public key where only the gateway looks.
func (i *demoIssuer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jwks", i.serveKeys)
	mux.HandleFunc("GET /login/{$}", i.serveForm)
	mux.HandleFunc("POST /login/{$}", i.serveLogin)
	mux.HandleFunc("GET /login/token", i.serveToken)
	// The gateway does not judge an auth: none route; without this another site
	// could log its visitors in here as somebody else.
	return http.NewCrossOriginProtection().Handler(mux)
}

func (i *demoIssuer) serveForm(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; frame-ancestors 'none'")
	w.Header().Set("Cache-Control", "no-store")
	i.page.Execute(w, map[string]any{"ReturnTo": localPath(r.FormValue("return_to")), "Users": demoUsers()})
}

// serveLogin answers with the session cookie and the way back. The gateway
// verifies the token before it lets the cookie pass, and rewrites its attributes;
// they are right here all the same, for a login service should not rely on that.
func (i *demoIssuer) serveLogin(w http.ResponseWriter, r *http.Request) {
	raw, ok := i.token(w, r)
	if !ok {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	http.SetCookie(w, &http.Cookie{Name: "__Host-session", Value: raw, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, localPath(r.FormValue("return_to")), http.StatusSeeOther)
}

// serveToken gives the token itself, for curl.
func (i *demoIssuer) serveToken(w http.ResponseWriter, r *http.Request) {
	if raw, ok := i.token(w, r); ok {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Write([]byte(raw))
	}
}

// token signs an access token (RFC 9068) for the user that the request names, or
// answers that there is none. Each is a session of its own.
func (i *demoIssuer) token(w http.ResponseWriter, r *http.Request) (raw string, ok bool) {
	name := r.FormValue("user")
	for _, u := range demoUsers() {
		if u.Name != name {
			continue
		}
		now := time.Now()
		claims := jwt.MapClaims{
			"iss": i.url, "aud": "demo", "sub": u.Name, "client_id": "demo", "jti": rand.Text(), "sid": rand.Text(),
			"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
			"scope": u.Scope, "name": u.FullName, "email": u.Name + "@example.com",
		}
		if u.Groups != nil {
			claims["groups"] = u.Groups
		}
		token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
		token.Header["typ"], token.Header["kid"] = "at+jwt", "demo"
		raw, err := token.SignedString(i.key)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return raw, err == nil
	}
	http.Error(w, "no such user; there are alice, bob and carol", http.StatusBadRequest)
	return "", false
}

// serveKeys publishes the key as a JWK set (RFC 7517, RFC 7518 section 6.2.1).
func (i *demoIssuer) serveKeys(w http.ResponseWriter, _ *http.Request) {
	point, err := i.key.PublicKey.Bytes() // 4, x, y: SEC 1 section 2.3.3
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	encode := base64.RawURLEncoding.EncodeToString
	writeJSON(w, http.StatusOK, map[string]any{"keys": []map[string]string{{
		"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:]), "use": "sig", "alg": "ES256", "kid": "demo",
	}}})
}

// localPath is where to go after the login: the path if it stays on this host,
// else the first page. Browsers read //host and /\host as other hosts, so both
// are refused; control characters, which they skip, url.Parse refuses.
func localPath(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.Contains(to, `\`) {
		return "/"
	}
	return to
}
