package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestExampleConfiguration loads config.example.yaml, as a copy: what is kept
// beside a configuration must not be kept in the repository.
func TestExampleConfiguration(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "durward.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, errOut := durward(t, "check", "-config", path)
	if status != 0 || !regexp.MustCompile(`: good: \d+ issuers, \d+ routes, [1-9]\d* tests passed\n\nROUTE +TESTS +GRANTS\n`).MatchString(out) {
		t.Errorf("exit status %d: %s%s", status, out, errOut)
	}
	for line := range strings.Lines(errOut) {
		if !strings.HasPrefix(line, path+":") || !strings.HasSuffix(line, " (warning)\n") && !strings.HasSuffix(line, " (note)\n") {
			t.Errorf("stderr: %s", line)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("check left behind %v (%v)", left, err)
	}
}

// TestCheckWarns of what is allowed and often not meant.
func TestCheckWarns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "durward.yaml")
	for _, c := range []struct{ name, config, want string }{
		{"nothing", `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: "https://idp.test", audiences: [app]}]
routes: [{name: app, upstream: "http://127.0.0.1:3000"}]
`, ""},
		{"a public part, and an optional rest", `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: "https://idp.test", audiences: [app]}]
routes:
  - {name: assets, path: /static/, upstream: "http://127.0.0.1:3000", auth: none, allow: [{methods: [GET]}]}
  - {name: app, upstream: "http://127.0.0.1:3000", auth: optional}
  - {name: api, path: /api/, upstream: "http://127.0.0.1:3000", allow: [{methods: [GET, POST, PUT, PATCH, DELETE, OPTIONS], scopes: [read]}, {scopes: [write]}]}
`, ":5: routes[0].auth: anybody may GET without a token at /static/; leave auth out if that is not meant (note)\n" +
			":6: routes[1].auth: anybody may do anything without a token at /; leave auth out if that is not meant (note)\n"},
		{"a host that lacks a route", `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: "https://idp.test", audiences: [app]}]
routes:
  - {name: shop, host: shop.test, upstream: "http://127.0.0.1:3000"}
  - {name: admin, host: "*", path: /admin/, upstream: "http://127.0.0.1:3000"}
`, `:5: routes[0].host: host "shop.test" has routes of its own, so these routes of host "*" do not hold there: admin; repeat the ones that should (warning)` + "\n"},
		{"keys and identity in the clear", `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: "http://idp.test", audiences: [app]}]
routes: [{name: app, upstream: "http://app.test:3000"}]
`, ":3: issuers[0]: keys come over plain http from idp.test: whoever is between can replace them; use https (warning)\n" +
			":4: routes[0].upstream: identity headers travel in the clear to http://app.test:3000; use https, or keep it on this machine (warning)\n"},
		{"what nobody uses, and what weakens", `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: "https://idp.test", audiences: [app]}]
credentials: {cookie: session}
denylist: {on_stale: allow}
upstreams: {old: {url: "http://127.0.0.1:3000"}}
routes: [{name: app, upstream: "http://127.0.0.1:3000"}]
`, `:4: credentials.cookie: "session" lacks the prefix __Host-, without which other hosts of the domain can plant the cookie; name it __Host-session (warning)` + "\n" +
			":5: denylist.on_stale: allow lets revoked tokens pass everywhere while a feed is lost; say so on single routes instead (warning)\n" +
			":6: upstreams.old: no route uses it; name it in a route, or remove it (warning)\n"},
	} {
		if err := os.WriteFile(path, []byte(c.config), 0o600); err != nil {
			t.Fatal(err)
		}
		status, out, errOut := durward(t, "check", "-config", path)
		if status != 0 || !strings.HasPrefix(out, path+": good: 1 issuers, ") || strings.ReplaceAll(errOut, path, "") != c.want {
			t.Errorf("%s: exit status %d: %s\ngot:\n%s\nwant:\n%s", c.name, status, out, errOut, c.want)
		}
	}
}

// TestCommandLines are the right and the wrong ones.
func TestCommandLines(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "durward.yaml")
	if err := os.WriteFile(path, []byte(`
listen: 127.0.0.1:0
admin: 127.0.0.1:1
issuers:
  - {name: corp, issuer: "http://127.0.0.1:1", audiences: [app]}
  - {name: partner, issuer: "http://127.0.0.1:2", audiences: [app]}
routes: [{name: app, upstream: "http://127.0.0.1:3000", issuers: [corp]}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := "-config=" + path
	for _, l := range []struct {
		args string // separated by blanks
		exit int
		out  string // on stdout, or on stderr where stdout is empty
	}{
		{"", 2, "Usage:"},
		{"help", 0, "Usage:"},
		{"-h", 0, "Usage:"},
		{"explian", 2, `durward: unknown command "explian"`},
		{"version", 0, "durward "},
		{"--version", 0, "durward "},
		{"check -" + c, 0, path + ": good: 2 issuers"},
		{"health " + c, 1, "durward health: is the gateway running? "},
		{"health -address 127.0.0.1:1", 1, "durward health: is the gateway running? "},
		{"health -address nowhere", 1, "durward health: admin: address nowhere: missing port in address"},
		{"help exit-codes", 0, "0   done."},
		{"version 1", 2, "durward version: takes 0 arguments after its flags (none), not 1"},
		{"check " + c, 0, path + ": good: 2 issuers, 1 routes, 0 tests passed"},
		{"check -h", 0, "Usage:"},
		{"check -confg x", 2, "flag provided but not defined: -confg"},
		{"check " + c + " more", 2, "durward check: takes 0 arguments after its flags (none), not 1"},
		{"check -config /nowhere/durward.yaml", 1, "/nowhere/durward.yaml: open /nowhere/durward.yaml: no such file or directory"},
		{"serve " + c + " more", 2, "durward serve: takes 0 arguments after its flags (none), not 1"},

		{"explain " + c + " -claims {} GET https://app.test/", 0, "request "},
		{"explain " + c + " -claims {} -iss partner GET https://app.test/", 0, "request "},
		{"explain " + c + " GET https://app.test/", 0, "request "},
		{"explain " + c + " -claims {} DELETE https://app.test/%2e%2e/", 0, "request     ✗ "},
		{"explain " + c + " -admin=127.0.0.1:1 GET https://app.test/", 1, "durward explain: admin token: "},
		{"explain " + c + " GET", 2, "durward explain: takes 2 arguments after its flags (METHOD URL), not 1"},
		{"explain " + c + " GET /x", 2, `durward explain: "/x" is not an absolute http or https URL`},
		{"explain " + c + " -claims [] GET https://app.test/", 2, "durward explain: -claims is not a JSON object"},
		{"explain " + c + " -claims null GET https://app.test/", 2, "durward explain: -claims is not a JSON object"},
		{"explain " + c + ` -claims {"a":1}{ GET https://app.test/`, 2, "durward explain: -claims is not a JSON object"},
		{"explain " + c + ` -claims {"exp":"soon"} GET https://app.test/`, 2, "durward explain: claims: exp "},
		{"explain " + c + " -claims {} -iss nobody GET https://app.test/", 2, `durward explain: "nobody" is neither the name nor the URL of a configured issuer`},
		{"explain " + c + " -claims {} -token-file x GET https://app.test/", 2, "durward explain: -token-file brings a token and -claims supposes one; give one of them"},
		{"explain " + c + " -token-file /nowhere/token GET https://app.test/", 1, "durward explain: open /nowhere/token: no such file or directory"},
		{"explain " + c + " -header Accept GET https://app.test/", 2, `invalid value "Accept" for flag -header: write 'Name: value'`},

		{"revoke " + c, 2, "durward revoke: give exactly one of -jti, -sid, -sub, -client and -all"},
		{"revoke " + c + " -jti a -sid b", 2, "durward revoke: give exactly one of -jti, -sid, -sub, -client and -all"},
		{"revoke " + c + " -all", 2, "durward revoke: -all needs -iss: several issuers are configured"},
		{"revoke " + c + " -sub alice -before yesterday", 2, `durward revoke: -before: "yesterday" is neither seconds since 1970 nor RFC 3339, such as 2026-01-31T12:00:00Z`},
		{"revoke " + c + " -jti a -exp never", 2, `durward revoke: -exp: "never" is neither `},
		{"revoke " + c + " -iss http://127.0.0.1:1 -jti a", 1, "durward revoke: admin token: "},
		{"revoke -config /nowhere/durward.yaml -jti a", 1, "durward revoke: open /nowhere/durward.yaml: no such file or directory"},
	} {
		status, out, errOut := durward(t, strings.Fields(l.args)...)
		text := out
		if out == "" {
			text = errOut
		}
		if status != l.exit || !strings.HasPrefix(text, l.out) {
			t.Errorf("durward %s: exit status %d, want %d\ngot:  %s%s\nwant: %s", l.args, status, l.exit, out, errOut, l.out)
		}
		if status == 2 && out != "" {
			t.Errorf("durward %s: a wrong command line left something on stdout: %s", l.args, out)
		}
	}
}

// TestHealth asks a gateway that is alive and not ready, then ready, then gone, the
// configuration named by DURWARD_CONFIG.
func TestHealth(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	idp.down.Store(true)
	config := fmt.Sprintf("listen: 127.0.0.1:0\nadmin: %s\n%%sissuers: [{name: corp, issuer: %q, audiences: [app]}]\nroutes: [{name: app, upstream: %q}]\n", freeAddress(t), idp.URL, app.URL)
	g := startGateway(t, fmt.Sprintf(config, ""))
	ask := func(args ...string) (status int, text string) {
		t.Helper()
		cmd := exec.Command(binary, append([]string{"health"}, args...)...)
		cmd.Env = append(os.Environ(), "DURWARD_CONFIG="+g.config)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if status, text := ask(); status != 0 || text != "ok\n" {
		t.Errorf("alive: exit status %d: %s", status, text)
	}
	if status, text := ask("-ready"); status != 1 || !strings.Contains(text, "answered 503 Service Unavailable: ") {
		t.Errorf("not ready: exit status %d: %s", status, text)
	}
	idp.down.Store(false)
	g.waitReady()
	if status, text := ask("-ready"); status != 0 || !strings.Contains(text, `"status": "ready"`) {
		t.Errorf("ready: exit status %d: %s", status, text)
	}
	g.stop()
	if status, text := ask(); status != 1 || !strings.Contains(text, "is the gateway running?") {
		t.Errorf("gone: exit status %d: %s", status, text)
	}
	// The health address goes before the admin address.
	g.write(fmt.Sprintf(config, "health: "+freeAddress(t)+"\n"))
	g.start()
	text, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.config, []byte(regexp.MustCompile(`(?m)^admin: .*`).ReplaceAllString(string(text), "admin: 127.0.0.1:1")), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, text := ask(); status != 0 || text != "ok\n" {
		t.Errorf("by the health address: exit status %d: %s", status, text)
	}
}

// freeAddress is one that nobody listens on at the moment.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestRevokeCommand ends a token, a session, and all of a subject, a client and an
// issuer, each through the command line alone, and leaves the others.
func TestRevokeCommand(t *testing.T) {
	t.Parallel()
	idp, other, app := newIssuer(t), newIssuer(t), newUpstream(t)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
admin: %s
issuers:
  - {name: corp, issuer: %q, audiences: [app]}
  - {name: partner, issuer: %q, audiences: [app]}
routes: [{name: app, upstream: %q, issuers: [corp, partner]}]
`, freeAddress(t), idp.URL, other.URL, app.URL))
	reason := func(token string) string {
		t.Helper()
		a := send(t, "GET", g.url("/"), "", bearing(token))
		if (a.StatusCode == 200) != (a.reason() == "") {
			t.Errorf("%s with reason %q", a.Status, a.reason())
		}
		return a.reason()
	}
	now := time.Now()
	of := func(i *issuer, jti, sid, sub, client string, age time.Duration) string {
		return i.token(jwt.MapClaims{"jti": jti, "sid": sid, "sub": sub, "client_id": client, "iat": now.Add(-age).Unix()})
	}
	bystander := of(idp, "j0", "s0", "zoe", "web", time.Minute)
	for _, c := range []struct {
		args    []string // -iss is added
		token   string   // revoked by them
		spared  string   // not revoked, though it comes close
		printed string   // part of the line that was sent
	}{
		{[]string{"-jti", "j1"}, of(idp, "j1", "s1", "ann", "web", 0), of(idp, "J1", "s1", "ann", "web", 0), `"jti":"j1"`},
		{[]string{"-sid", "s2"}, of(idp, "j2", "s2", "ann", "web", 0), of(idp, "s2", "S2", "ann", "web", 0), `"sid":"s2"`},
		{[]string{"-sub", "bob"}, of(idp, "j3", "s3", "bob", "web", 0), of(other, "j3", "s3", "bob", "web", 0), `"sub":"bob"`},
		{[]string{"-client", "app"}, of(idp, "j4", "s4", "ann", "app", 0), of(idp, "j4b", "s4", "app", "App", 0), `"client":"app"`},
		{[]string{"-sub", "cid", "-before", now.Add(-time.Minute).Format(time.RFC3339)}, of(idp, "j5", "s5", "cid", "web", 2*time.Minute), of(idp, "j5b", "s5", "cid", "web", 0), `"before":`},
		{[]string{"-sid", "s6", "-before", fmt.Sprint(now.Add(-time.Minute).Unix()), "-reason", "a lost laptop"}, of(idp, "j6", "s6", "ann", "web", 2*time.Minute), of(idp, "j6b", "s6", "ann", "web", 0), `"reason":"a lost laptop"`},
		{[]string{"-jti", "j7", "-exp", now.Add(time.Hour).Format(time.RFC3339)}, of(idp, "j7", "s7", "ann", "web", 0), of(idp, "j7b", "s7", "ann", "web", 0), `"exp":`},
	} {
		for _, token := range []string{c.token, c.spared, bystander} {
			if got := reason(token); got != "" {
				t.Errorf("before revoke %q: %s", c.args, got)
			}
		}
		status, out, errOut := durward(t, slices.Concat([]string{"revoke", "-config", g.config, "-iss", idp.URL}, c.args)...)
		if status != 0 || !strings.HasPrefix(out, "revoked: {") || !strings.Contains(out, c.printed) || errOut != "" {
			t.Errorf("revoke %q: exit status %d: %s%s", c.args, status, out, errOut)
		}
		if got := reason(c.token); got != "revoked" {
			t.Errorf("after revoke %q: %q", c.args, got)
		}
		for _, token := range []string{c.spared, bystander} {
			if got := reason(token); got != "" {
				t.Errorf("after revoke %q, a token that it does not cover: %s", c.args, got)
			}
		}
	}

	partner := of(other, "p1", "p1", "ann", "web", time.Minute)
	if got := reason(partner); got != "" {
		t.Errorf("the partner's token: %s", got)
	}
	ahead := other.token(jwt.MapClaims{"sub": "bob", "jti": "p2", "iat": time.Now().Unix() + 2}) // by its issuer's clock
	if got := reason(ahead); got != "" {
		t.Errorf("the partner's token of the near future: %s", got)
	}
	if status, out, errOut := durward(t, "revoke", "-config", g.config, "-iss", other.URL, "-all"); status != 0 || !strings.Contains(out, `"before":`) {
		t.Errorf("revoke -all: exit status %d: %s%s", status, out, errOut)
	}
	for _, token := range []string{partner, ahead} {
		if got := reason(token); got != "revoked" {
			t.Errorf("after revoke -all: %q", got)
		}
	}
	if got := reason(bystander); got != "" {
		t.Errorf("after revoke -all of another issuer: %s", got)
	}

	// What the gateway refuses, the command tells; what it cannot reach, too.
	if status, out, errOut := durward(t, "revoke", "-config", g.config, "-jti", "j9"); status != 1 || out != "" || !strings.Contains(errOut, "400 Bad Request") {
		t.Errorf("without issuer: exit status %d: %s%s", status, out, errOut)
	}
	if status, _, errOut := durward(t, "revoke", "-config", g.config, "-iss", "https://nobody.test", "-jti", "j9"); status != 1 || !strings.Contains(errOut, "400 Bad Request") {
		t.Errorf("an unknown issuer: exit status %d: %s", status, errOut)
	}
	g.kill()
	g.start()
	g.waitReady()
	for _, token := range []string{partner, of(idp, "j1", "s1", "ann", "web", 0)} {
		if got := reason(token); got != "revoked" {
			t.Errorf("after a restart: %q", got)
		}
	}
	if got := reason(bystander); got != "" {
		t.Errorf("after a restart, a token that was not revoked: %s", got)
	}
	g.stop()
	if status, out, errOut := durward(t, "revoke", "-config", g.config, "-iss", idp.URL, "-jti", "j9"); status != 1 || out != "" || !strings.HasPrefix(errOut, "durward revoke: is the gateway running? ") {
		t.Errorf("nobody listens: exit status %d: %s%s", status, out, errOut)
	}
}

// TestTwoServes: the second gateway with the same state directory or address does
// not start.
func TestTwoServes(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	address := freeAddress(t)
	g := serving(t, fmt.Sprintf(`
listen: %s
issuers: [{name: corp, issuer: %q, audiences: [app]}]
routes: [{name: app, upstream: %q}]
`, address, idp.URL, app.URL))
	if status, _, errOut := durward(t, "serve", "-config", g.config); status != 1 || !strings.Contains(errOut, "durward-state") {
		t.Errorf("the same state directory: exit status %d: %s", status, errOut)
	}
	text, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "durward.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, errOut := durward(t, "serve", "-config", path); status != 1 || !strings.Contains(errOut, "listen on "+address+": ") {
		t.Errorf("the same address: exit status %d: %s", status, errOut)
	}
	if a := send(t, "GET", g.url("/"), "", bearing(idp.token(nil))); a.StatusCode != 200 {
		t.Errorf("the first gateway: %s %s", a.Status, a.reason())
	}
}

// TestImports keeps the house's rule of who may import whom: what decides knows
// no sockets, and each dependency has one home.
func TestImports(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "list", "-json=ImportPath,Imports,Module", "-deps", "../...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	type pkg struct {
		ImportPath string
		Imports    []string
		Module     *struct{ Path string }
	}
	module := map[string]string{} // of each package; "" for the standard library
	var house []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.Module != nil {
			module[p.ImportPath] = p.Module.Path
			if p.Module.Path == "durward" {
				house = append(house, p)
			}
		}
	}
	inside := map[string][]string{
		"durward/decision":   {},
		"durward/token":      {"durward/decision"},
		"durward/denylist":   {"durward/decision", "durward/token"},
		"durward/policy":     {"durward/decision", "durward/token"},
		"durward/proxy":      {"durward/decision", "durward/token", "durward/denylist", "durward/policy"},
		"durward/tracing":    {"durward/decision", "durward/token"},
		"durward/metrics":    {"durward/decision", "durward/token", "durward/denylist"},
		"durward/test":       {},
		"durward/test/bench": {},
	}
	home := map[string][]string{ // of each dependency: a package, or the folder of the feeds
		"github.com/golang-jwt/jwt/v5":                                    {"durward/token", "durward/proxy", "durward/cmd/durward", "durward/test/bench"}, // verified, signed for upstreams, signed by the issuers of demo and benchmark
		"github.com/MicahParks/keyfunc/v3":                                {"durward/token"},
		"github.com/MicahParks/jwkset":                                    {"durward/token"},
		"github.com/dgraph-io/ristretto/v2":                               {"durward/token"},
		"github.com/prometheus/client_golang":                             {"durward/metrics"},
		"gopkg.in/yaml.v3":                                                {"durward/cmd/durward"},
		"go.opentelemetry.io/otel":                                        {"durward/tracing"},
		"go.opentelemetry.io/otel/sdk":                                    {"durward/tracing"},
		"go.opentelemetry.io/otel/trace":                                  {"durward/tracing"},
		"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp": {"durward/tracing"},
		"github.com/nats-io/nats.go":                                      {"durward/denylist/"},
		"github.com/redis/go-redis/v9":                                    {"durward/denylist/"},
		"github.com/coreos/go-systemd/v22":                                {"durward/cmd/durward"},
	}
	for _, p := range house {
		allowed, known := inside[p.ImportPath]
		feed := strings.HasPrefix(p.ImportPath, "durward/denylist/")
		switch {
		case feed:
			allowed = append(slices.Clone(inside["durward/denylist"]), "durward/denylist")
		case !known && p.ImportPath != "durward/cmd/durward":
			t.Errorf("%s is not in the house's plan", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			switch dependency := module[imported]; dependency {
			case "durward":
				if p.ImportPath != "durward/cmd/durward" && !slices.Contains(allowed, imported) {
					t.Errorf("%s imports %s", p.ImportPath, imported)
				}
			case "":
				if (p.ImportPath == "durward/policy" || p.ImportPath == "durward/decision") && (imported == "net" || imported == "os" || imported == "crypto/tls") {
					t.Errorf("%s imports %s: it knows nothing of sockets", p.ImportPath, imported)
				}
			case "golang.org/x/sync", "golang.org/x/time":
			default:
				if !slices.ContainsFunc(home[dependency], func(place string) bool {
					return place == p.ImportPath || feed && place == "durward/denylist/"
				}) {
					t.Errorf("%s imports %s of %s, whose home is %q", p.ImportPath, imported, dependency, home[dependency])
				}
			}
		}
	}
	if len(house) < len(inside) {
		t.Errorf("go list found %d packages", len(house))
	}
}
