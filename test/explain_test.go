package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"durward/decision"
)

// An explanation is what both kinds of explain answer, as JSON.
type explanation struct {
	Verdict, Reason, Shadow, Detail, Route, Grant string
	Status                                        int
	Asked                                         string
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
	if want.Verdict() != decision.Allow {
		w.understood(t, row, append(args[:3:3], slices.DeleteFunc(slices.Clone(args[3:]), func(a string) bool { return a == "-json" })...), url)
	}
}

// screen is how many lines a person sees at once.
const screen = 40

// understood asks both kinds of explain once for each reason to refuse, in words:
// the cause is on one screen, and both tell the same steps.
func (w *reasonWorld) understood(t *testing.T, row reasonRow, args []string, url string) {
	t.Helper()
	if w.told[row.reason] {
		return
	}
	w.told[row.reason] = true
	var kinds [2][]string
	for i, admin := range []string{"", "-admin=" + strings.TrimPrefix(row.on.admin, "http://")} {
		all := append(slices.Clone(args), row.fault.method, url)
		if admin != "" {
			all = slices.Insert(all, 1, admin)
		}
		exit, out, errOut := durward(t, all...)
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		verdict := fmt.Sprintf("verdict     ✗ %s (%s): ", row.reason.Verdict(), row.reason)
		if exit != 0 || len(lines) > screen || strings.Count(out, "\n"+verdict)+strings.Count(out[:min(len(out), len(verdict))], verdict) != 1 || !strings.Contains(out, "\nwhat to do  · ") {
			t.Errorf("explain %s: exit status %d, %d lines of at most %d: %s%s", admin, exit, len(lines), screen, out, errOut)
		}
		if !strings.Contains(out, "✗ ") || strings.Contains(out, "\x1b") {
			t.Errorf("explain %s: no step failed, or there are colours where no terminal is: %s", admin, out)
		}
		w.silent(t, "explain "+admin, out+errOut, row)
		for _, line := range lines {
			// Ages, and what each kind knows of its own.
			if name, _, _ := strings.Cut(line, " "); name != "asked" && name != "feed" && name != "times" && name != "keys" && name != "denylist" && row.reason != decision.KeysUnavailable && row.reason != decision.DenylistStale {
				kinds[i] = append(kinds[i], ages.ReplaceAllString(line, "some time"))
			} else {
				kinds[i] = append(kinds[i], name)
			}
		}
	}
	if !slices.Equal(kinds[0], kinds[1]) {
		t.Errorf("%s: the file says\n%s\nand the gateway says\n%s", row.reason, strings.Join(kinds[0], "\n"), strings.Join(kinds[1], "\n"))
	}
}

// ages are what differs between two questions about one request.
var ages = regexp.MustCompile(`\b(?:\d+h)?(?:\d+m)?[\d.]+(?:ms|µs|s)\b`)

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
		`request     ✓ GET, host "app.test", path "/x"`,
		`host        ✓ "app.test" is named by routes, and only these are asked`,
		`route       ✓ "app": pattern / of host "app.test" is the only one that matches "/x"`,
		"credential  ✓ found in the Authorization header",
		"form        ✓ ",
		`type        ✓ typ "at+jwt" is among ["at+jwt" "JWT"]`,
		`issuer      ✓ iss "` + idp.URL + `" is issuer "corp"`,
		`audience    ✓ aud ["app"] has one of ["app"]`,
		`claims      ✓ sub "alice"`,
		"times       ✓ issued ",
		`algorithm   ✓ ES256 is among ["RS256" "ES256" "EdDSA"]`,
		`keys        ✓ kid "k1" is a key of "corp"`,
		"signature   ✓ ES256 verifies",
		"denylist    ✓ none of 0 entries matches; the list is live",
		"feed        · none is configured",
		"grant       ✓ the route has no allow: any valid token will do",
		"verdict     ✓ allow (allowed)\n",
		"asked       · " + config + ", with the keys and revocations that were found now\n",
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
	if exit != 0 || !strings.Contains(out, "\nverdict     ✗ challenge (no_token): neither session cookie nor bearer token\n") {
		t.Errorf("without token: exit status %d: %s%s", exit, out, errOut)
	}
	idp.down.Store(true)
	exit, out, errOut = durward(t, "explain", "-config", config, "-token-file", tokenFile, "GET", "https://app.test/x")
	if exit != 0 || !strings.Contains(errOut, `issuer "corp": `) || !strings.Contains(out, "verdict     ✗ deny (keys_unavailable)") {
		t.Errorf("without keys: exit status %d: %s%s", exit, out, errOut)
	}
	if _, err := os.Stat(filepath.Join(dir, "durward-state")); err == nil {
		t.Error("explain made a state directory")
	}
}

// TestExplainColours: on a terminal there are colours, unless NO_COLOR asks for none.
func TestExplainColours(t *testing.T) {
	t.Parallel()
	script := need(t, "script", "apt-get install bsdutils")
	idp, other, app := newIssuer(t), newIssuer(t), newUpstream(t)
	config := filepath.Join(t.TempDir(), "durward.yaml")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(explainedConfig, idp.URL, other.URL, app.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env  string
		want bool
	}{{"TERM=xterm", true}, {"NO_COLOR=1", false}, {"NO_COLOR=", true}, {"TERM=dumb", false}} {
		cmd := exec.Command(script, "-qec", fmt.Sprintf("%s explain -config %s -claims '{}' GET https://app.test/x", binary, config), "/dev/null")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "NO_COLOR=") || strings.HasPrefix(e, "TERM=") }), c.env)
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "verdict") || strings.Contains(string(out), "\x1b[32m✓\x1b[0m") != c.want {
			t.Errorf("%s: colours %v wanted: %q (%v)", c.env, c.want, out, err)
		}
	}
}
