package test

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// A provider is a running oidc-provider, an OpenID provider that nobody here
// wrote; node/idp.mjs says what it knows.
type provider struct {
	t   *testing.T
	url string
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	node := need(t, "node", "apt-get install nodejs npm")
	if _, err := os.Stat("node/node_modules/oidc-provider"); err != nil {
		lack(t, "oidc-provider is missing; install it with: npm ci --prefix test/node")
	}
	cmd := exec.Command(node, "idp.mjs")
	cmd.Dir = "node"
	warnings := &logBuffer{}
	cmd.Stderr = warnings
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		t.Fatalf("the provider said %q, %v\n%s", line, err, warnings)
	}
	return &provider{t, url}
}

// A login is what the provider gives to a user who logged in.
type login struct {
	Access string `json:"access_token"`
	ID     string `json:"id_token"`
	Scope  string `json:"scope"`
}

// login walks through the authorization code flow with PKCE (RFC 7636) as a
// browser would, in a session of its own; extra parameters go to /auth.
func (p *provider) login(user string, extra ...string) login {
	p.t.Helper()
	jar, _ := cookiejar.New(nil)
	const verifier, callback = "a-verifier-of-at-least-forty-three-characters-0", "http://127.0.0.1/callback"
	browser := &http.Client{Jar: jar, Timeout: 30 * time.Second, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	challenge := sha256.Sum256([]byte(verifier))
	query := url.Values{
		"client_id": {"tests"}, "response_type": {"code"}, "redirect_uri": {callback}, "scope": {"openid orders:read orders:write"}, "login_hint": {user},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
	}
	for _, e := range extra {
		name, value, _ := strings.Cut(e, "=")
		query.Set(name, value)
	}
	res, err := browser.Get(p.url + "/auth?" + query.Encode())
	if err != nil {
		p.t.Fatal(err)
	}
	res.Body.Close()
	back, err := url.Parse(res.Header.Get("Location"))
	if err != nil || back.Query().Get("code") == "" {
		p.t.Fatalf("the login of %s ended with %s at %s, %q", user, res.Status, res.Request.URL, res.Header.Get("Location"))
	}
	res, err = browser.PostForm(p.url+"/token", url.Values{
		"grant_type": {"authorization_code"}, "client_id": {"tests"}, "code": {back.Query().Get("code")}, "redirect_uri": {callback}, "code_verifier": {verifier},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	var l login
	if err := json.NewDecoder(res.Body).Decode(&l); err != nil || l.Access == "" {
		p.t.Fatalf("the token endpoint answered %s, %v", res.Status, err)
	}
	return l
}

// claimsOf reads the payload of a token without verifying it.
func claimsOf(t *testing.T, token string) (c struct {
	Jti, Sid, Sub, Acr string
	Iat                int64
	AuthTime           int64 `json:"auth_time"`
}) {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// rotate makes a new signing key and withdraws all but the newest.
func (p *provider) rotate(keep int) (kids []string) {
	p.t.Helper()
	res, err := http.Post(fmt.Sprintf("%s/test/rotate-keys?keep=%d", p.url, keep), "", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&kids); err != nil {
		p.t.Fatal(err)
	}
	return kids
}

// TestForeignProvider tells the whole story with real at+jwt tokens: read, be
// refused a write, log in as somebody else, write, be revoked, be refused.
func TestForeignProvider(t *testing.T) {
	t.Parallel()
	idp, app := newProvider(t), newUpstream(t)
	g := startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - {name: idp, issuer: %s, audiences: ["https://orders.test/"]}
identity:
  headers: {X-Forwarded-User: sub, X-Forwarded-Email: email, X-Forwarded-Name: name, X-Forwarded-Groups: groups}
routes:
  - name: orders
    path: /orders/
    upstream: %[2]s
    allow:
      - {methods: [GET], scopes: [orders:read]}
      - {methods: [POST], scopes: [orders:write]}
  - name: admin
    path: /admin/
    upstream: %[2]s
    allow: [{claims: {groups: [admin]}}]
  - name: safe
    path: /safe/
    upstream: %[2]s
    allow: [{acr: [mfa]}]
`, idp.url, app.URL))
	g.waitReady()
	get := func(what, path, token string, status int, reason string) answer {
		t.Helper()
		a := send(t, "GET", g.url(path), "", bearing(token))
		wantAnswer(t, what, a, status, reason)
		return a
	}
	post := func(what, token string, status int, reason string) answer {
		t.Helper()
		a := send(t, "POST", g.url("/orders/7"), "an order", bearing(token))
		wantAnswer(t, what, a, status, reason)
		return a
	}
	identity := func(header, want string) {
		t.Helper()
		if got := app.last(t).Header[header]; !slices.Equal(got, []string{want}) && !(want == "" && got == nil) {
			t.Errorf("the upstream received %s: %q, want %q", header, got, want)
		}
	}

	alice := idp.login("alice")
	get("alice reads", "/orders/7", alice.Access, 200, "")
	identity("X-Forwarded-User", "alice")
	identity("X-Forwarded-Email", "alice@example.test")
	identity("X-Forwarded-Groups", "")
	refused := post("alice writes", alice.Access, 403, "insufficient_scope")
	if challenge := refused.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, `error="insufficient_scope"`) || !strings.Contains(challenge, `scope="orders:write"`) {
		t.Errorf("alice writes: the challenge is %q", challenge)
	}
	get("alice at the admins'", "/admin/", alice.Access, 403, "forbidden")
	// The client is the ID token's audience; before that is looked at, nothing
	// tells it apart.
	get("alice's ID token", "/orders/7", alice.ID, 401, "token_audience")

	bob := idp.login("bob")
	get("bob reads", "/orders/7", bob.Access, 200, "")
	post("bob writes", bob.Access, 200, "")
	if got := app.last(t); string(got.Body) != "an order" || got.Header.Get("X-Forwarded-User") != "bob" {
		t.Errorf("the upstream received %q from %q", got.Body, got.Header["X-Forwarded-User"])
	}

	carol := idp.login("carol")
	get("carol at the admins'", "/admin/", carol.Access, 200, "")
	identity("X-Forwarded-Groups", "admin")
	identity("X-Forwarded-Name", "=?utf-8?b?Q2Fyb2wgw4Zyw7g=?=") // "Carol Ærø"

	stepUp := get("carol without a second factor", "/safe/", carol.Access, 401, "step_up")
	if challenge := stepUp.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, `error="insufficient_user_authentication"`) || !strings.Contains(challenge, `acr_values="mfa"`) {
		t.Errorf("carol without a second factor: the challenge is %q", challenge)
	}
	get("carol with one", "/safe/", idp.login("carol", "acr_values=mfa").Access, 200, "")

	// One session of two.
	again := idp.login("alice")
	first, second := claimsOf(t, alice.Access), claimsOf(t, again.Access)
	if first.Sid == "" || first.Sid == second.Sid {
		t.Fatalf("the sessions are %q and %q", first.Sid, second.Sid)
	}
	if status, text := g.call("POST", "/revocations", fmt.Sprintf(`{"sid":%q}`, first.Sid)); status != 200 {
		t.Fatalf("revoke a session: %d %s", status, text)
	}
	get("alice's revoked session", "/orders/7", alice.Access, 401, "revoked")
	get("alice's other session", "/orders/7", again.Access, 200, "")

	// All that a subject has now, and nothing that it gets later.
	if status, text := g.call("POST", "/revocations", fmt.Sprintf(`{"sub":"bob","before":%d}`, claimsOf(t, bob.Access).Iat)); status != 200 {
		t.Fatalf("revoke a subject: %d %s", status, text)
	}
	post("bob after his revocation", bob.Access, 401, "revoked")
	get("alice after bob's revocation", "/orders/7", again.Access, 200, "")
	eventually(t, 10*time.Second, "bob logs in anew", func() bool {
		return send(t, "POST", g.url("/orders/7"), "", bearing(idp.login("bob").Access)).StatusCode == 200
	})
	post("bob's old token after his login", bob.Access, 401, "revoked")

	// A rotation that keeps the old key, then one that withdraws all older ones.
	idp.rotate(2)
	rotated := time.Now()
	next := idp.login("carol")
	get("a token of the new key", "/orders/7", next.Access, 200, "")
	if took := time.Since(rotated); took > 2*time.Second {
		t.Errorf("the new key worked %v after the rotation, login included", took)
	}
	get("a token of the key before", "/orders/7", carol.Access, 200, "")
	idp.rotate(1)
	last := idp.login("carol")
	eventually(t, 2*time.Second, "the newest key works", func() bool {
		return send(t, "GET", g.url("/orders/7"), "", bearing(last.Access)).StatusCode == 200
	})
	get("a token of the first key, withdrawn", "/orders/7", carol.Access, 401, "token_signature")
	get("a token of the second key, withdrawn", "/orders/7", next.Access, 401, "token_signature")
}
