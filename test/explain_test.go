package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"durward/decision"
)

// An explanation is what both kinds of explain answer, as JSON.
type explanation struct {
	Verdict, Reason, Shadow, Detail, Route, Grant string
	Status                                        int
	Steps                                         []struct{ Step, Found string }
}

// explained asks both kinds of explain about the row's question: the running
// gateway with its keys and revocations, and the command with those that it finds
// by itself. What only comes out while forwarding, explain calls allowed.
func (w *reasonWorld) explained(t *testing.T, row reasonRow) {
	t.Helper()
	if row.unspeakable != "" {
		return
	}
	want := row.reason
	if row.late {
		want = decision.Allowed
	}
	check := func(who, text string) {
		t.Helper()
		var got explanation
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s: %v: %s", who, err, text)
			return
		}
		if got.Verdict != want.Verdict().String() || got.Reason != string(want) || got.Route != row.route {
			t.Errorf("%s says %s (%s) on route %q, want %s (%s) on %q: %s", who, got.Verdict, got.Reason, got.Route, want.Verdict(), want, row.route, text)
		}
		if refused := want.Verdict() != decision.Allow; refused && (got.Status != row.status || got.Detail == "") {
			t.Errorf("%s says status %d, want %d; detail %q", who, got.Status, row.status, got.Detail)
		}
		w.silent(t, who, text, row)
	}

	url := "http://" + row.fault.host + row.fault.target
	headers := map[string][]string{}
	args := []string{"explain", "-config", row.on.config, "-json"}
	for _, h := range row.fault.headers {
		name, value, _ := strings.Cut(h, ": ")
		headers[name] = append(headers[name], value)
		args = append(args, "-header", h)
	}
	body, err := json.Marshal(map[string]any{"method": row.fault.method, "url": url, "headers": headers})
	if err != nil {
		t.Fatal(err)
	}
	status, out := row.on.call("POST", "/explain", string(body))
	if status != 200 {
		t.Errorf("POST /explain: %d %s", status, out)
	}
	check("POST /explain", out)

	exit, out, errOut := durward(t, append(args, row.fault.method, url)...)
	if exit != 0 {
		t.Errorf("durward explain: exit status %d: %s", exit, errOut)
	}
	check("durward explain", out)
	w.silent(t, "durward explain, on stderr", errOut, row)
}

// silent makes sure that no piece of a token comes out.
func (w *reasonWorld) silent(t *testing.T, who, text string, row reasonRow) {
	t.Helper()
	for _, secret := range row.fault.secrets() {
		if strings.Contains(text, secret) {
			t.Errorf("%s prints %q: %s", who, secret, text)
		}
	}
}

const explainedConfig = `
listen: 127.0.0.1:0
issuers:
  - {name: corp, issuer: %q, audiences: [app]}
  - {name: partner, issuer: %q, audiences: [app]}
routes:
  - {name: open, host: app.test, path: /open/, upstream: %q, auth: none}
  - {name: app, host: app.test, path: /, upstream: %[3]q, issuers: [corp]}
  - {name: trial, host: app.test, path: /trial/, upstream: %[3]q, issuers: [corp], shadow: true, allow: [{scopes: [pilot]}]}
  - {name: both, host: app.test, path: /both/, upstream: %[3]q, issuers: [corp, partner], allow: [{issuers: [partner], scopes: [read]}]}
`

// TestExplainClaims supposes claims in place of a token: steps 4 to 6 count as passed.
func TestExplainClaims(t *testing.T) {
	t.Parallel()
	idp, other, app := newIssuer(t), newIssuer(t), newUpstream(t)
	g := serving(t, fmt.Sprintf(explainedConfig, idp.URL, other.URL, app.URL))
	before := len(app.requests())
	for _, c := range []struct {
		target, claims, issuer string
		want                   decision.Reason
		shadow                 string
	}{
		{"/x", `{"sub":"alice"}`, "", decision.Allowed, ""},
		{"/x", `{"sub":"alice"}`, "partner", decision.TokenIssuer, ""},
		{"/open/", `{"sub":"alice"}`, "", decision.Public, ""},
		{"/both/", `{"sub":"alice","scope":"read"}`, "partner", decision.Allowed, ""},
		{"/both/", `{"sub":"alice","scope":"read"}`, other.URL, decision.Allowed, ""},
		{"/both/", `{"sub":"alice","scope":"write"}`, "partner", decision.InsufficientScope, ""},
		{"/both/", `{"sub":"alice","scope":"read"}`, "corp", decision.Forbidden, ""},
		{"/trial/", `{"sub":"alice"}`, "", decision.Allowed, "insufficient_scope"},
		{"/trial/", `{"sub":"alice","scope":"pilot"}`, "", decision.Allowed, ""},
		{"/../x", `{"sub":"alice"}`, "", decision.AmbiguousRequest, ""},
		{"/.durward/x", `{"sub":"alice"}`, "", decision.NoRoute, ""},
	} {
		what := fmt.Sprintf("%s %s of %q", c.target, c.claims, c.issuer)
		check := func(who, text string) {
			t.Helper()
			var got explanation
			if err := json.Unmarshal([]byte(text), &got); err != nil || got.Reason != string(c.want) || got.Shadow != c.shadow || got.Verdict != c.want.Verdict().String() {
				t.Errorf("%s: %s says %s, want %s, shadow %q (%v)", what, who, text, c.want, c.shadow, err)
			}
		}
		question := fmt.Sprintf(`{"method":"GET","url":"https://app.test%s","claims":%s,"issuer":%q}`, c.target, c.claims, c.issuer)
		status, out := g.call("POST", "/explain", question)
		if status != 200 {
			t.Errorf("%s: %d %s", what, status, out)
		}
		check("POST /explain", out)
		_, out, _ = durward(t, "explain", "-config", g.config, "-json", "-claims", c.claims, "-iss", c.issuer, "GET", "https://app.test"+c.target)
		check("durward explain", out)
	}
	if n := len(app.requests()) - before; n != 0 {
		t.Errorf("explain forwarded %d requests", n)
	}
	if n := len(g.log.lines("request")); n != 0 {
		t.Errorf("explain left %d records", n)
	}
}

// TestExplainQuestions are asked in a wrong way.
func TestExplainQuestions(t *testing.T) {
	t.Parallel()
	idp, other, app := newIssuer(t), newIssuer(t), newUpstream(t)
	g := serving(t, fmt.Sprintf(explainedConfig, idp.URL, other.URL, app.URL))
	for _, c := range []struct {
		question string
		want     int
	}{
		{`{"method":"GET","url":"https://app.test/"}`, 200},
		{`{"method":"GET","url":"https://app.test/","headers":{"Accept":"text/html"}}`, 200},
		{`{"method":"GET","url":"/"}`, 400},
		{`{"method":"GET","url":"ftp://app.test/"}`, 400},
		{`{"method":"GET","url":"https://app.test/","header":{}}`, 400},
		{`{"method":"GET","url":"https://app.test/","headers":{"Accept":1}}`, 400},
		{`{"method":"GET","url":"https://app.test/","claims":{"iss":"https://elsewhere.test"}}`, 400},
		{`{"method":"GET","url":"https://app.test/","claims":{"sub":"alice"},"issuer":"nobody"}`, 400},
		{`{"method":"GET","url":"https://app.test/","claims":"alice"}`, 400},
		{`[]`, 400},
		{``, 400},
	} {
		if status, out := g.call("POST", "/explain", c.question); status != c.want {
			t.Errorf("%s: %d %s, want %d", c.question, status, out, c.want)
		}
	}
	if a := send(t, "POST", g.admin+"/explain", `{"method":"GET","url":"https://app.test/"}`); a.StatusCode != 401 {
		t.Errorf("without the admin token: %s", a.Status)
	}
}

// TestExplainForPeople is the text that explain prints by default: the steps, then
// the verdict.
func TestExplainForPeople(t *testing.T) {
	t.Parallel()
	idp, other, app := newIssuer(t), newIssuer(t), newUpstream(t)
	dir := t.TempDir()
	config, tokenFile := filepath.Join(dir, "durward.yaml"), filepath.Join(dir, "token")
	token := idp.token(nil)
	for path, text := range map[string]string{config: fmt.Sprintf(explainedConfig, idp.URL, other.URL, app.URL), tokenFile: token + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	exit, out, errOut := durward(t, "explain", "-config", config, "-token-file", tokenFile, "GET", "https://app.test/x?q=1")
	if exit != 0 || !strings.HasPrefix(errOut, "no journal in ") || strings.Count(errOut, "\n") != 1 {
		t.Errorf("exit status %d: %s", exit, errOut)
	}
	at := 0
	for _, step := range []string{
		`request     GET, host "app.test", path "/x"`,
		`route       "app": pattern / of host "app.test"`,
		"credential  found in the Authorization header",
		`token       typ "at+jwt" is accepted; iss "` + idp.URL + `" is issuer "corp"`,
		`token       sub "alice"`,
		"token       issued ",
		`keys        kid "k1" is a key of "corp"`,
		"signature   ES256 verifies",
		"denylist    no rule matches; the list is live",
		"grant       the route has no allow: any valid token will do",
		"verdict     allow (allowed)\n",
	} {
		i := strings.Index(out[at:], step)
		if i < 0 {
			t.Fatalf("%q is missing, or not in its place:\n%s", step, out)
		}
		at += i
	}
	for segment := range strings.SplitSeq(token, ".") {
		if strings.Contains(out+errOut, segment[:20]) {
			t.Errorf("explain prints a piece of the token: %s", segment)
		}
	}
	exit, out, errOut = durward(t, "explain", "-config", config, "GET", "https://app.test/x")
	if exit != 0 || !strings.HasSuffix(out, "verdict     challenge (no_token): neither session cookie nor bearer token\n") {
		t.Errorf("without token: exit status %d: %s%s", exit, out, errOut)
	}
	idp.down.Store(true)
	exit, out, errOut = durward(t, "explain", "-config", config, "-token-file", tokenFile, "GET", "https://app.test/x")
	if exit != 0 || !strings.Contains(errOut, `issuer "corp": `) || !strings.Contains(out, "verdict     deny (keys_unavailable)") {
		t.Errorf("without keys: exit status %d: %s%s", exit, out, errOut)
	}
	if _, err := os.Stat(filepath.Join(dir, "durward-state")); err == nil {
		t.Error("explain made a state directory")
	}
}
