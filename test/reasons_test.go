package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"durward/decision"
)

// A question is one request, as it goes over the wire: a client library would
// tidy up what some of them are about.
type question struct {
	method, target, host string
	headers              []string // "Name: value"
	body                 string   // framed by the headers
}

// asking is a request to app.test, the host that the routes name.
func asking(method, target string, headers ...string) question {
	return question{method, target, "app.test", headers, ""}
}

func (q question) to(host string) question { q.host = host; return q }

func (q question) carrying(body string) question { q.body = body; return q }

func (q question) with(headers ...string) question {
	q.headers = slices.Concat(q.headers, headers)
	return q
}

func (q question) wire() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", q.method, q.target, q.host)
	for _, h := range q.headers {
		b.WriteString(h + "\r\n")
	}
	return b.String() + "\r\n" + q.body
}

// secrets are the pieces of the question that may appear nowhere else: the
// segments of its tokens, and its query.
func (q question) secrets() (pieces []string) {
	for _, h := range q.headers {
		for _, mark := range []string{"Authorization: Bearer ", "Cookie: __Host-session="} {
			if value, ok := strings.CutPrefix(h, mark); ok {
				for segment := range strings.SplitSeq(value, ".") {
					if len(segment) > 20 {
						pieces = append(pieces, segment[:20], segment[len(segment)-20:])
					}
				}
			}
		}
	}
	if _, query, ok := strings.Cut(q.target, "?"); ok && len(query) > 4 {
		pieces = append(pieces, query)
	}
	return pieces
}

func inCookie(token string) string { return "Cookie: __Host-session=" + token }

// A reasonRow is a request that must get this reason, and its twin: the same
// request without the fault, which must get 200.
type reasonRow struct {
	name   string
	reason decision.Reason
	route  string // in record and metrics; "" for none
	fault  question
	twin   question

	on          *gateway // default: the main one
	status      int      // default: that of the reason, 200 for the two that let pass
	twinStatus  int      // default: 200
	says        string   // a header that the refusal must carry; default: what follows from the status
	spoil       func()   // makes the fault, where it is not in the request: the twin comes first
	mend        func()   // takes such a fault away: the twin comes after
	late        bool     // found out after forwarding began: explain says allowed
	hangsUp     bool     // the client does not wait for the answer
	unspeakable string   // why no URL and headers can describe the request to explain
}

// elsewhere are the reasons that no request brings about by itself, and why.
func elsewhere() map[decision.Reason]string {
	return map[decision.Reason]string{
		decision.Overloaded: "it takes a flood: see TestOverloaded",
	}
}

// TestEveryReason sends every request of the table, and compares answer, log,
// metrics and both kinds of explain.
func TestEveryReason(t *testing.T) {
	t.Parallel()
	w := newReasonWorld(t)
	rows := slices.Concat(w.openRows(), w.requestRows(), w.tokenRows(), w.stateRows(), w.grantRows(), w.upstreamRows())
	seen := map[decision.Reason]bool{}
	for _, row := range rows {
		seen[row.reason] = true
		if row.on == nil {
			row.on = w.main
		}
		if row.status == 0 {
			if row.status = row.reason.Status(); row.status == 0 {
				row.status = http.StatusOK
			}
		}
		if row.twinStatus == 0 {
			row.twinStatus = http.StatusOK
		}
		t.Run(row.name, func(t *testing.T) { w.walk(t, row) })
	}
	for _, reason := range decision.Reasons() {
		_, elsewhere := elsewhere()[reason]
		if seen[reason] == elsewhere {
			t.Errorf("%s: in the table %v, elsewhere %v", reason, seen[reason], elsewhere)
		}
	}
	if len(w.told) < 20 {
		t.Errorf("explain was asked in words about %d reasons to refuse", len(w.told))
	}
	for _, g := range []*gateway{w.main, w.stale, w.broken} {
		text := g.log.String()
		for _, secret := range w.secrets {
			if strings.Contains(text, secret) {
				t.Errorf("the log contains %q", secret)
			}
		}
	}
}

// walk asks one question of the running gateway, as an API client and as a
// browser, then of explain, and then its twin.
func (w *reasonWorld) walk(t *testing.T, row reasonRow) {
	if row.spoil != nil {
		w.passes(t, row)
		row.spoil()
	}
	g := row.on
	w.secrets = append(w.secrets, row.fault.secrets()...)
	counted, logged := requestsCounted(t, g, row), g.requestLines()
	times := 1
	switch {
	case row.hangsUp:
		w.hangUp(t, row)
	case row.reason.Verdict() == decision.Allow:
		if a := exchange(t, "tcp", g.public[0], row.fault.method, row.fault.wire()); a.StatusCode != row.status || a.reason() != "" {
			t.Errorf("got %s %q: %s", a.Status, a.reason(), a.Body)
		}
	default:
		times = 2
		w.checkRefusal(t, row, exchange(t, "tcp", g.public[0], row.fault.method, row.fault.wire()), false)
		w.checkRefusal(t, row, exchange(t, "tcp", g.public[0], row.fault.method, row.fault.with("Accept: text/html,*/*;q=0.8").wire()), true)
	}

	eventually(t, 5*time.Second, "one line in the log for each request", func() bool { return len(g.log.lines("request")) >= logged+times })
	records := g.log.lines("request")[logged:]
	if len(records) != times {
		t.Errorf("%d lines in the log for %d requests", len(records), times)
	}
	for _, line := range records {
		checkRecord(t, row, line)
	}
	if after := requestsCounted(t, g, row); after != counted+times {
		t.Errorf("requests_total went from %d to %d after %d requests", counted, after, times)
	}
	w.explained(t, row)

	if row.mend != nil {
		row.mend()
		eventually(t, 10*time.Second, "the twin passes", func() bool {
			time.Sleep(20 * time.Millisecond) // of more refusals a second the log has a sample alone
			return exchange(t, "tcp", g.public[0], row.twin.method, row.twin.wire()).StatusCode == row.twinStatus
		})
	}
	if row.spoil == nil && row.reason.Verdict() != decision.Allow {
		w.passes(t, row)
	}
}

// passes sends the twin.
func (w *reasonWorld) passes(t *testing.T, row reasonRow) {
	t.Helper()
	if row.twin.method == "" {
		t.Fatal("the row has no twin")
	}
	w.secrets = append(w.secrets, row.twin.secrets()...)
	logged := row.on.requestLines()
	a := exchange(t, "tcp", row.on.public[0], row.twin.method, row.twin.wire())
	if a.StatusCode != row.twinStatus || a.reason() != "" {
		t.Errorf("without the fault: %s %q: %s", a.Status, a.reason(), a.Body)
	}
	eventually(t, 5*time.Second, "the twin's record", func() bool { return len(row.on.log.lines("request")) > logged })
}

// checkRefusal compares an answer with what the reason asks for.
func (w *reasonWorld) checkRefusal(t *testing.T, row reasonRow, a answer, browser bool) {
	t.Helper()
	if a.StatusCode != row.status || a.reason() != string(row.reason) {
		t.Errorf("got %s %q, want %d %q", a.Status, a.reason(), row.status, row.reason)
	}
	says := row.says
	if says == "" {
		switch {
		case row.reason == decision.NoToken:
			says = "Www-Authenticate: Bearer"
		case row.status == http.StatusUnauthorized:
			says = `Www-Authenticate: Bearer error="invalid_token", error_description="` + problemOf(t, row, a, browser) + `"`
		case row.status == http.StatusServiceUnavailable:
			says = "Retry-After: 1"
		}
	}
	for _, name := range []string{"Www-Authenticate", "Retry-After", "Allow"} {
		want := ""
		if value, ok := strings.CutPrefix(says, name+": "); ok {
			want = value
		}
		if got := strings.Join(a.Header[name], " | "); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := a.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: %q", got)
	}
	if a.Header.Get("X-Request-Id") == "" || !strings.Contains(a.Body, a.Header.Get("X-Request-Id")) {
		t.Errorf("request id %q is not in the answer", a.Header.Get("X-Request-Id"))
	}
	problemOf(t, row, a, browser)
	for _, secret := range row.fault.secrets() {
		if strings.Contains(a.Body, secret) || strings.Contains(fmt.Sprint(a.Header), secret) {
			t.Errorf("the answer contains %q", secret)
		}
	}
}

// problemOf reads the answer's form: problem+json (RFC 9457) for programs, a page
// for people. It returns the text, for programs, that the challenge repeats.
func problemOf(t *testing.T, row reasonRow, a answer, browser bool) string {
	t.Helper()
	contentType := a.Header.Get("Content-Type")
	if browser {
		csp := a.Header.Get("Content-Security-Policy")
		if contentType != "text/html; charset=utf-8" || !strings.HasPrefix(csp, "default-src 'none'") || !strings.HasPrefix(a.Body, "<!doctype html>") {
			t.Errorf("a browser got %q with policy %q: %s", contentType, csp, a.Body)
		}
		_, description, _ := strings.Cut(a.Header.Get("Www-Authenticate"), `error_description="`)
		return strings.TrimSuffix(description, `"`) // compared with problem+json's before
	}
	var problem struct {
		Title, Detail, Reason string
		Status                int
		RequestID             string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(a.Body), &problem); err != nil || contentType != "application/problem+json" {
		t.Errorf("a program got %q: %s (%v)", contentType, a.Body, err)
	}
	if problem.Status != row.status || problem.Reason != string(row.reason) || problem.Title == "" || problem.Detail == "" || problem.RequestID != a.Header.Get("X-Request-Id") {
		t.Errorf("the problem is %+v", problem)
	}
	return problem.Detail
}

// checkRecord compares a line of the log.
func checkRecord(t *testing.T, row reasonRow, line map[string]any) {
	t.Helper()
	rec := line["decision"].(map[string]any)
	text := func(key string) string { s, _ := rec[key].(string); return s }
	level := map[bool]string{true: "INFO", false: "WARN"}[row.reason.Verdict() == decision.Allow]
	if row.reason == decision.Internal {
		level = "ERROR"
	}
	if text("verdict") != row.reason.Verdict().String() || text("reason") != string(row.reason) || text("route") != row.route || line["level"] != level {
		t.Errorf("the record is %v at %v, want %s (%s) on route %q", rec, line["level"], row.reason.Verdict(), row.reason, row.route)
	}
	if rec["status"] != float64(row.status) || text("id") == "" || text("method") != row.fault.method || text("client") == "" && row.route != "" {
		t.Errorf("the record is incomplete: %v", rec)
	}
	if (text("detail") == "") != (row.reason.Verdict() == decision.Allow) {
		t.Errorf("the detail is %q", text("detail"))
	}
	if strings.ContainsAny(text("path"), "?") {
		t.Errorf("the record has a query: %q", text("path"))
	}
}

// requestsCounted reads requests_total for the row's route, verdict and reason.
func requestsCounted(t *testing.T, g *gateway, row reasonRow) int {
	t.Helper()
	route := row.route
	if route == "" {
		route = "-"
	}
	series := fmt.Sprintf("durward_requests_total{reason=%q,route=%q,verdict=%q} ", row.reason, route, row.reason.Verdict())
	for line := range strings.Lines(send(t, "GET", g.admin+"/metrics", "").Body) {
		if value, ok := strings.CutPrefix(line, series); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// A reasonWorld holds the servers that the table needs.
type reasonWorld struct {
	t                *testing.T
	idp, other, dark *issuer // dark has no keys until somebody lights it
	p384             *ecdsa.PrivateKey
	main             *gateway
	stale            *gateway // follows a file that gets lost
	feed             string
	broken           *gateway      // cannot write its journal after a while
	stalls           atomic.Bool   // the slow upstream does not answer
	arrived          chan struct{} // something reached it while it stalls
	socket           string        // of an upstream that ends
	endUpstream      func()
	secrets          []string                 // that no log may contain
	told             map[decision.Reason]bool // what explain was asked about in words
}

func newReasonWorld(t *testing.T) *reasonWorld {
	w := &reasonWorld{t: t, idp: newIssuer(t), other: newIssuer(t), dark: newIssuer(t), arrived: make(chan struct{}, 16), told: map[decision.Reason]bool{}}
	var err error
	if w.p384, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	w.dark.down.Store(true)
	app := newUpstream(t)
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if w.stalls.Load() {
			w.arrived <- struct{}{}
			<-r.Context().Done()
		}
	}))
	t.Cleanup(slow.Close)
	w.socket = filepath.Join(shortDir(t), "app.sock")
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	mortal := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go mortal.Serve(l)
	t.Cleanup(func() { mortal.Close() })
	w.endUpstream = func() { mortal.Close() }

	w.main = startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
log: {level: debug}
issuers:
  - {name: corp, issuer: %q, audiences: [app]}
  - {name: partner, issuer: %q, audiences: [app]}
  - {name: dark, issuer: %q, audiences: [app]}
upstreams:
  app: {url: %q}
  impatient: {url: %q, timeout: {response_header: 200ms}}
  patient: {url: %[5]q}
  mortal: {url: "unix:%[6]s"}
routes:
  - {name: open, host: app.test, path: /open/, upstream: app, auth: none}
  - {name: optional, host: app.test, path: /optional/, upstream: app, auth: optional, issuers: [corp]}
  - {name: app, host: app.test, path: /app/, upstream: app, issuers: [corp]}
  - {name: both, host: app.test, path: /both/, upstream: app, issuers: [corp, partner]}
  - {name: dark, host: app.test, path: /dark/, upstream: app, issuers: [dark]}
  - {name: small, host: app.test, path: /small/, upstream: app, issuers: [corp], max_body: "16"}
  - name: orders
    host: app.test
    path: /orders/
    upstream: app
    issuers: [corp]
    allow:
      - {methods: [GET], scopes: [orders:read]}
      - {methods: [POST], scopes: [orders:write, orders:read]}
  - {name: staff, host: app.test, path: /staff/, upstream: app, issuers: [corp], allow: [{claims: {groups: [ops]}}]}
  - {name: vault, host: app.test, path: /vault/, upstream: app, issuers: [corp], allow: [{acr: [mfa], max_age: 15m}]}
  - {name: impatient, host: app.test, path: /impatient/, upstream: impatient, issuers: [corp]}
  - {name: patient, host: app.test, path: /patient/, upstream: patient, issuers: [corp]}
  - {name: mortal, host: app.test, path: /mortal/, upstream: mortal, issuers: [corp]}
`, w.idp.URL, w.other.URL, w.dark.URL, app.URL, slow.URL, w.socket))

	w.feed = filepath.Join(t.TempDir(), "revoked.jsonl")
	if err := os.WriteFile(w.feed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.stale = startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
log: {level: debug}
issuers: [{name: corp, issuer: %q, audiences: [app]}]
denylist: {lease: 1s, feeds: [{name: local, file: %q}]}
routes:
  - {name: strict, path: /, upstream: %q}
  - {name: tolerant, path: /tolerant/, upstream: %[3]q, on_stale: allow}
`, w.idp.URL, w.feed, app.URL))

	w.broken = startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
log: {level: debug}
issuers: [{name: corp, issuer: %q, audiences: [app]}]
credentials: {session_endpoint: /.durward/session}
routes: [{name: all, upstream: %q}]
`, w.idp.URL, app.URL))

	w.stale.waitReady()
	w.broken.waitReady()
	eventually(t, 10*time.Second, "keys of two issuers", func() bool {
		return exchange(t, "tcp", w.main.public[0], "GET", asking("GET", "/app/", bearing(w.idp.token(nil))).wire()).StatusCode == 200 &&
			exchange(t, "tcp", w.main.public[0], "GET", asking("GET", "/both/", bearing(w.other.token(nil))).wire()).StatusCode == 200
	})
	return w
}

// good is a token of corp with these changes, as bearer token.
func (w *reasonWorld) good(changes jwt.MapClaims) string { return bearing(w.idp.token(changes)) }

// openRows let pass.
func (w *reasonWorld) openRows() []reasonRow {
	return []reasonRow{
		{name: "an open route", reason: decision.Public, route: "open", fault: asking("GET", "/open/x?secret-query=1")},
		{name: "an open route with a bad token", reason: decision.Public, route: "open", fault: asking("GET", "/open/x", bearing("x.y.z"))},
		{name: "an optional route without token", reason: decision.Public, route: "optional", fault: asking("GET", "/optional/")},
		{name: "an optional route with a token", reason: decision.Allowed, route: "optional", fault: asking("GET", "/optional/", w.good(nil))},
		{name: "the public keys", reason: decision.Public, fault: asking("GET", "/.well-known/durward/jwks.json")},
		{name: "a bearer token", reason: decision.Allowed, route: "app", fault: asking("GET", "/app/x?secret-query=2", w.good(nil))},
		{name: "a cookie", reason: decision.Allowed, route: "app", fault: asking("GET", "/app/x", inCookie(w.idp.token(nil)))},
		{name: "the partner's token", reason: decision.Allowed, route: "both", fault: asking("GET", "/both/", bearing(w.other.token(nil)))},
	}
}

// requestRows are refused before any token is verified.
func (w *reasonWorld) requestRows() []reasonRow {
	good := w.good(nil)
	token := w.idp.token(nil)
	fine := asking("GET", "/app/x?secret-query=3", good)
	ambiguous := func(name string, fault question) reasonRow {
		return reasonRow{name: name, reason: decision.AmbiguousRequest, fault: fault, twin: fine}
	}
	slash := ambiguous("an escaped slash", asking("GET", "/app/x%2fy?secret-query=4", good))
	slash.route = "app"
	absolute := ambiguous("an absolute target", asking("GET", "http://app.test/app/x", good))
	absolute.unspeakable = "the URL looks the same"
	asterisk := ambiguous("an asterisk", asking("OPTIONS", "*", good))
	asterisk.unspeakable = "it has no URL"
	many := make([]string, 129)
	for i := range many {
		many[i] = fmt.Sprintf("X-Many-%d: 1", i)
	}
	const credentials = `Www-Authenticate: Bearer error="invalid_request"`
	return []reasonRow{
		ambiguous("a dot segment", asking("GET", "/app/../staff/?secret-query=5", good)),
		ambiguous("an escaped dot segment", asking("GET", "/app/%2e%2e/staff/", good)),
		ambiguous("a twice escaped dot segment", asking("GET", "/app/%252e%252e/staff/", good)),
		ambiguous("an empty segment", asking("GET", "//app/x", good)),
		ambiguous("a backslash", asking("GET", `/app\x`, good)),
		ambiguous("path parameters that hide a route", asking("GET", "/app;x/y", good)),
		ambiguous("a fragment in the query", asking("GET", "/app/x?a#secret", good)),
		ambiguous("a host with an empty label", fine.to("app..test")),
		ambiguous("a host with a bad port", fine.to("app.test:99999")),
		ambiguous("an unknown method", asking("BREW", "/app/x", good)),
		ambiguous("a method in lower case", asking("get", "/app/x", good)),
		ambiguous("TRACE", asking("TRACE", "/app/x", good)),
		ambiguous("another spelling of a framing field", fine.with("Content_Length: 5")),
		slash, absolute, asterisk,

		{name: "two bearer tokens", reason: decision.AmbiguousCredentials, route: "app", says: credentials,
			fault: asking("GET", "/app/x", good, w.good(nil)), twin: asking("GET", "/app/x", good)},
		{name: "cookie and bearer token differ", reason: decision.AmbiguousCredentials, route: "app", says: credentials,
			fault: asking("GET", "/app/x", good, inCookie(token)), twin: asking("GET", "/app/x", bearing(token), inCookie(token))},
		{name: "two session cookies", reason: decision.AmbiguousCredentials, route: "app", says: credentials,
			fault: asking("GET", "/app/x", inCookie(token), inCookie(w.idp.token(nil))), twin: asking("GET", "/app/x", inCookie(token))},

		{name: "too many header fields", reason: decision.TooLarge, status: 431, fault: asking("GET", "/app/x", good).with(many...), twin: asking("GET", "/app/x", good).with(many[:100]...)},
		{name: "too large a header section", reason: decision.TooLarge, status: 431,
			fault: asking("GET", "/app/x", good, "X-Large: "+strings.Repeat("x", 33<<10)), twin: asking("GET", "/app/x", good, "X-Large: "+strings.Repeat("x", 30<<10))},
		{name: "too many cookies", reason: decision.TooLarge, status: 431,
			fault: asking("GET", "/app/x", good, "Cookie: a="+strings.Repeat("x", 17<<10)), twin: asking("GET", "/app/x", good, "Cookie: a="+strings.Repeat("x", 15<<10))},
		{name: "too long a body", reason: decision.TooLarge, route: "small",
			fault: asking("POST", "/small/", good, "Content-Length: 17").carrying(strings.Repeat("x", 17)), twin: asking("POST", "/small/", good, "Content-Length: 16").carrying(strings.Repeat("x", 16))},
		{name: "a body that turns out too long", reason: decision.TooLarge, route: "small", late: true,
			fault: asking("POST", "/small/", good, "Transfer-Encoding: chunked").carrying("11\r\n" + strings.Repeat("x", 17) + "\r\n0\r\n\r\n"),
			twin:  asking("POST", "/small/", good, "Transfer-Encoding: chunked").carrying("10\r\n" + strings.Repeat("x", 16) + "\r\n0\r\n\r\n")},

		{name: "a host without routes", reason: decision.NoRoute, fault: fine.to("other.test"), twin: fine.to("APP.test.:80")},
		{name: "a path without route", reason: decision.NoRoute, fault: asking("GET", "/apps/x", good), twin: asking("GET", "/app/x", good)},
		{name: "nothing of the gateway's own", reason: decision.NoRoute, fault: asking("GET", "/.durward/x", good), twin: asking("GET", "/.well-known/durward/jwks.json", good)},

		{name: "no token", reason: decision.NoToken, route: "app", fault: asking("GET", "/app/x"), twin: asking("GET", "/app/x", good)},
		{name: "another scheme", reason: decision.NoToken, route: "app", fault: asking("GET", "/app/x", "Authorization: Basic YWxpY2U6c2VjcmV0"), twin: asking("GET", "/app/x", good)},
		{name: "another cookie", reason: decision.NoToken, route: "app", fault: asking("GET", "/app/x", "Cookie: session="+token), twin: asking("GET", "/app/x", inCookie(token))},
	}
}

// tokenRows carry a token with one fault.
func (w *reasonWorld) tokenRows() []reasonRow {
	now := time.Now().Unix()
	good := w.idp.token(nil)
	claims := func(reason decision.Reason, name string, changes jwt.MapClaims) reasonRow {
		return w.tokenRow(reason, name, w.idp.token(changes))
	}
	header := func(reason decision.Reason, name string, member string, value any) reasonRow {
		h := map[string]any{"kid": "k1", "typ": "at+jwt"}
		h[member] = value
		return w.tokenRow(reason, name, sign(jwt.SigningMethodES256, w.idp.keys[0].key, h, w.idp.claims(nil)))
	}
	broken, middle := []byte(good), len(good)-20
	if broken[middle] = 'A'; good[middle] == 'A' {
		broken[middle] = 'B'
	}
	rows := []reasonRow{
		w.tokenRow(decision.TokenMalformed, "two segments", good[:strings.LastIndexByte(good, '.')]),
		w.tokenRow(decision.TokenMalformed, "padding", good+"="),
		w.tokenRow(decision.TokenMalformed, "an empty token", ""),
		w.tokenRow(decision.TokenMalformed, "too long a token", w.idp.token(jwt.MapClaims{"more": strings.Repeat("x", 8<<10)})),
		header(decision.TokenMalformed, "crit", "crit", []string{"exp"}),
		header(decision.TokenMalformed, "a kid that is a number", "kid", 1),
		header(decision.TokenType, "a logout token", "typ", "logout+jwt"),
		claims(decision.TokenIssuer, "an unknown issuer", jwt.MapClaims{"iss": w.idp.URL + "/"}),
		claims(decision.TokenIssuer, "no issuer", jwt.MapClaims{"iss": nil}),
		w.tokenRow(decision.TokenIssuer, "an issuer of other routes", w.other.token(nil)),
		claims(decision.TokenAudience, "another audience", jwt.MapClaims{"aud": "application"}),
		claims(decision.TokenAudience, "an audience that is a number", jwt.MapClaims{"aud": []any{"app", 1}}),
		claims(decision.TokenClaims, "no exp", jwt.MapClaims{"exp": nil}),
		claims(decision.TokenClaims, "no jti", jwt.MapClaims{"jti": nil}),
		claims(decision.TokenClaims, "exp as text", jwt.MapClaims{"exp": fmt.Sprint(now + 600)}),
		claims(decision.TokenClaims, "a security event", jwt.MapClaims{"events": map[string]any{}}),
		claims(decision.TokenClaims, "a key to be proved", jwt.MapClaims{"cnf": map[string]any{"jkt": "x"}}),
		claims(decision.TokenExpired, "expired", jwt.MapClaims{"iat": now - 700, "exp": now - 60}),
		claims(decision.TokenNotYetValid, "nbf in the future", jwt.MapClaims{"nbf": now + 120}),
		claims(decision.TokenNotYetValid, "iat in the future", jwt.MapClaims{"iat": now + 120}),
		claims(decision.TokenLifetime, "too long a life", jwt.MapClaims{"exp": now + 25*3600}),
		w.tokenRow(decision.TokenAlgorithm, "an algorithm that is off", sign(jwt.SigningMethodES384, w.p384, map[string]any{"kid": "k1", "typ": "at+jwt"}, w.idp.claims(nil))),
		w.tokenRow(decision.TokenAlgorithm, "HS256", sign(jwt.SigningMethodHS256, []byte(w.idp.jwks()), map[string]any{"kid": "k1", "typ": "at+jwt"}, w.idp.claims(nil))),
		w.tokenRow(decision.TokenAlgorithm, "none", sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, map[string]any{"kid": "k1", "typ": "at+jwt"}, w.idp.claims(nil))+"AAAA"),
		w.tokenRow(decision.TokenSignature, "a broken signature", string(broken)),
		w.tokenRow(decision.TokenSignature, "another issuer's key", w.idp.signedBy(w.other.keys[0], nil)),
		w.tokenRow(decision.TokenSignature, "an unknown key", w.idp.signedBy(newKey("k2"), nil)),
	}
	expired := w.idp.token(jwt.MapClaims{"iat": now - 700, "exp": now - 60})
	return append(rows, reasonRow{name: "expired, in the cookie", reason: decision.TokenExpired, route: "app",
		fault: asking("GET", "/app/x", inCookie(expired)), twin: asking("GET", "/app/x", inCookie(good))})
}

func (w *reasonWorld) tokenRow(reason decision.Reason, name, token string) reasonRow {
	return reasonRow{name: fmt.Sprintf("%s: %s", reason, name), reason: reason, route: "app",
		fault: asking("GET", "/app/x?secret-query=6", bearing(token)), twin: asking("GET", "/app/x?secret-query=6", w.good(nil))}
}

// stateRows are refused for what the gateway knows or does not know.
func (w *reasonWorld) stateRows() []reasonRow {
	fine := w.idp.token(nil)
	revoked := w.idp.token(jwt.MapClaims{"jti": "revoked-in-the-table"})
	session := w.idp.token(jwt.MapClaims{"sid": "session-in-the-table"})
	revoke := func(line string) func() {
		return func() {
			if status, out := w.main.call("POST", "/revocations", line); status != 200 {
				w.t.Fatalf("revoke: %d %s", status, out)
			}
		}
	}
	return []reasonRow{
		{name: "no keys", reason: decision.KeysUnavailable, route: "dark", mend: func() { w.dark.down.Store(false) },
			fault: asking("GET", "/dark/", bearing(w.dark.token(nil))), twin: asking("GET", "/dark/", bearing(w.dark.token(nil)))},
		{name: "a revoked token", reason: decision.Revoked, route: "app", spoil: revoke(fmt.Sprintf(`{"iss":%q,"jti":"revoked-in-the-table"}`, w.idp.URL)),
			fault: asking("GET", "/app/x", bearing(revoked)), twin: asking("GET", "/app/x", bearing(revoked))},
		{name: "a revoked session, in the cookie", reason: decision.Revoked, route: "app", spoil: revoke(fmt.Sprintf(`{"iss":%q,"sid":"session-in-the-table"}`, w.idp.URL)),
			fault: asking("GET", "/app/x", inCookie(session)), twin: asking("GET", "/app/x", inCookie(session))},
		{name: "a lost feed", reason: decision.DenylistStale, route: "strict", on: w.stale, spoil: w.loseFeed,
			fault: asking("GET", "/x", bearing(fine)), twin: asking("GET", "/x", bearing(fine))},
		{name: "a lost feed that comes back", reason: decision.DenylistStale, route: "strict", on: w.stale, mend: func() { os.WriteFile(w.feed, nil, 0o600) },
			fault: asking("GET", "/x", inCookie(fine)), twin: asking("GET", "/x", inCookie(fine))},
	}
}

// loseFeed takes the feed's file away and waits for the gateway to notice.
func (w *reasonWorld) loseFeed() {
	if err := os.Remove(w.feed); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, 10*time.Second, "the denylist is stale", func() bool {
		var status struct{ Denylist struct{ State string } }
		json.Unmarshal([]byte(send(w.t, "GET", w.stale.admin+"/status", "").Body), &status)
		return status.Denylist.State == "stale"
	})
	if a := send(w.t, "GET", w.stale.url("/tolerant/x"), "", w.good(nil)); a.StatusCode != 200 {
		w.t.Errorf("on_stale: allow: %s %s", a.Status, a.reason())
	}
}

// grantRows are refused for what the user may not do.
func (w *reasonWorld) grantRows() []reasonRow {
	now := time.Now().Unix()
	cookie := inCookie(w.idp.token(nil))
	socket := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	none := "Content-Length: 0"
	reader := w.good(jwt.MapClaims{"scope": "orders:read"})
	writer := w.good(jwt.MapClaims{"scope": "orders:read orders:write"})
	mfa := w.good(jwt.MapClaims{"acr": "mfa", "auth_time": now - 60})
	const stepUp = `Www-Authenticate: Bearer error="insufficient_user_authentication", acr_values="mfa", max_age="900"`
	return []reasonRow{
		{name: "an unsafe method from another site", reason: decision.CrossSite, route: "app",
			fault: asking("POST", "/app/x", cookie, none, "Sec-Fetch-Site: cross-site"), twin: asking("POST", "/app/x", cookie, none, "Sec-Fetch-Site: same-origin")},
		{name: "an unsafe method from another origin", reason: decision.CrossSite, route: "app",
			fault: asking("POST", "/app/x", cookie, none, "Origin: https://evil.test"), twin: asking("POST", "/app/x", cookie, none, "Origin: http://app.test")},
		{name: "a bearer token from another site is fine", reason: decision.Allowed, route: "app",
			fault: asking("POST", "/app/x", w.good(nil), none, "Sec-Fetch-Site: cross-site")},
		{name: "a WebSocket from another origin", reason: decision.CrossSite, route: "app",
			fault: asking("GET", "/app/x", cookie, "Origin: https://evil.test").with(socket...), twin: asking("GET", "/app/x", cookie, "Origin: http://app.test").with(socket...)},

		{name: "a method that no grant speaks of", reason: decision.MethodNotAllowed, route: "orders", says: "Allow: GET, HEAD, POST",
			fault: asking("DELETE", "/orders/7", writer), twin: asking("GET", "/orders/7", writer)},
		{name: "HEAD is covered by GET", reason: decision.Allowed, route: "orders", fault: asking("HEAD", "/orders/7", reader)},

		{name: "no acr", reason: decision.StepUp, route: "vault", says: stepUp, fault: asking("GET", "/vault/", w.good(nil)), twin: asking("GET", "/vault/", mfa)},
		{name: "another acr", reason: decision.StepUp, route: "vault", says: stepUp,
			fault: asking("GET", "/vault/", w.good(jwt.MapClaims{"acr": "pwd", "auth_time": now})), twin: asking("GET", "/vault/", mfa)},
		{name: "too old a login", reason: decision.StepUp, route: "vault", says: stepUp,
			fault: asking("GET", "/vault/", w.good(jwt.MapClaims{"acr": "mfa", "auth_time": now - 1000})), twin: asking("GET", "/vault/", mfa)},

		{name: "too few scopes", reason: decision.InsufficientScope, route: "orders", says: `Www-Authenticate: Bearer error="insufficient_scope", scope="orders:write orders:read"`,
			fault: asking("POST", "/orders/7", reader, none), twin: asking("POST", "/orders/7", writer, none)},
		{name: "no scopes", reason: decision.InsufficientScope, route: "orders", says: `Www-Authenticate: Bearer error="insufficient_scope", scope="orders:read"`,
			fault: asking("GET", "/orders/7", w.good(jwt.MapClaims{"scope": nil})), twin: asking("GET", "/orders/7", reader)},

		{name: "another group", reason: decision.Forbidden, route: "staff",
			fault: asking("GET", "/staff/", w.good(jwt.MapClaims{"groups": []string{"sales", "opsX"}})), twin: asking("GET", "/staff/", w.good(jwt.MapClaims{"groups": []string{"sales", "ops"}}))},
		{name: "no groups", reason: decision.Forbidden, route: "staff", fault: asking("GET", "/staff/", w.good(nil)), twin: asking("GET", "/staff/", w.good(jwt.MapClaims{"groups": "ops"}))},
	}
}

// upstreamRows go wrong after they were allowed.
func (w *reasonWorld) upstreamRows() []reasonRow {
	stall := func() { w.stalls.Store(true) }
	resume := func() { w.stalls.Store(false) }
	cookie := inCookie(w.idp.token(jwt.MapClaims{"jti": "signs-out"}))
	return []reasonRow{
		{name: "an upstream that takes too long", reason: decision.UpstreamTimeout, route: "impatient", late: true, spoil: stall,
			fault: asking("GET", "/impatient/?secret-query=7", w.good(nil)), twin: asking("GET", "/impatient/?secret-query=7", w.good(nil))},
		{name: "a client that goes away", reason: decision.ClientGone, route: "patient", late: true, hangsUp: true, mend: resume,
			fault: asking("GET", "/patient/?secret-query=8", w.good(nil)), twin: asking("GET", "/patient/?secret-query=8", w.good(nil))},
		{name: "an upstream that is gone", reason: decision.UpstreamUnreachable, route: "mortal", late: true, spoil: w.endUpstream,
			fault: asking("GET", "/mortal/", w.good(nil)), twin: asking("GET", "/mortal/", w.good(nil))},
		{name: "a sign-out that cannot be kept", reason: decision.Internal, late: true, on: w.broken, spoil: w.breakJournal, twinStatus: http.StatusNoContent,
			fault: asking("DELETE", "/.durward/session", cookie), twin: asking("DELETE", "/.durward/session", inCookie(w.idp.token(nil)))},
	}
}

// breakJournal lets no file of the process grow any more, as on a full disk.
func (w *reasonWorld) breakJournal() {
	prlimit := need(w.t, "prlimit", "apt-get install util-linux")
	if out, err := exec.Command(prlimit, "--pid", strconv.Itoa(w.broken.cmd.Process.Pid), "--fsize=1").CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// hangUp sends the request, waits until the upstream has it, and goes away.
func (w *reasonWorld) hangUp(t *testing.T, row reasonRow) {
	for len(w.arrived) > 0 {
		<-w.arrived
	}
	conn, err := net.Dial("tcp", row.on.public[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, row.fault.wire()); err != nil {
		t.Fatal(err)
	}
	<-w.arrived
	conn.Close()
}

// What net/http refuses by itself, before any handler, gets no record, but is
// counted.
func TestRefusedByTheServer(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: %q, audiences: [app]}]
routes: [{name: all, upstream: %q}]
`, idp.URL, app.URL))
	const series = "durward_requests_unparsed_total"
	for _, c := range []struct {
		name, request string
		status        int
	}{
		{"a target far over the limit", "GET /" + strings.Repeat("x", 100<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 431},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"a blank in a name", "GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", 400},
	} {
		before := metric(t, g, series)
		if status, reason := rawSend(t, g.public[0], c.request); status != c.status || reason != "" {
			t.Errorf("%s: %d %q, want %d", c.name, status, reason, c.status)
		}
		eventually(t, 5*time.Second, c.name+" is counted", func() bool { return metric(t, g, series) == before+1 })
	}
	if n := len(app.requests()) + len(g.log.lines("request")); n != 0 {
		t.Errorf("%d records or requests at the upstream", n)
	}
	before := metric(t, g, series)
	if a := send(t, "GET", g.url("/"), "", bearing(idp.token(nil))); a.StatusCode != 200 {
		t.Errorf("a good request: %s %s", a.Status, a.reason())
	}
	if after := metric(t, g, series); after != before {
		t.Errorf("a good request was counted as unparsed: %v, then %v", before, after)
	}
}
