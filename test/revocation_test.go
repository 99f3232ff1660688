package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// passes and refused ask the gateway about a token, each time as a request.
func (g *gateway) passes(what, token string) {
	g.t.Helper()
	wantAnswer(g.t, what, send(g.t, "GET", g.url("/"), "", bearing(token)), 200, "")
}

func (g *gateway) refused(what, token string) {
	g.t.Helper()
	wantAnswer(g.t, what, send(g.t, "GET", g.url("/"), "", bearing(token)), 401, "revoked")
}

// revoke posts one line that must be applied.
func (g *gateway) revoke(format string, args ...any) {
	g.t.Helper()
	line := fmt.Sprintf(format, args...)
	if status, text := g.call("POST", "/revocations", line); status != 200 {
		g.t.Fatalf("POST /revocations %s: %d %s", line, status, text)
	}
}

// TestRevocationKinds: each kind of line refuses exactly what it names. Every
// token passes before its line is posted, so that what is refused afterwards was
// cached, and what passes is the line's positive twin.
func TestRevocationKinds(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	type c = jwt.MapClaims
	T := time.Now().Unix() - 1000
	for n, tc := range []struct {
		name    string
		line    string // N is the case's number, so that cases do not touch each other
		refused []jwt.MapClaims
		passes  []jwt.MapClaims
	}{
		{"one token", `{"jti":"jN"}`, []c{{"jti": "jN"}, {"jti": "jN", "sub": "other"}}, []c{{"jti": "JN"}, {"jti": "jN "}, {"sub": "jN"}}},
		{"a token named by odd characters", `{"jti":"\u006fdd\u0000/é\\"}`, []c{{"jti": "odd\x00/é\\"}}, []c{{"jti": "odd"}, {"jti": "odd\x00/e\u0301\\"}}},
		{"a session", `{"sid":"sN"}`, []c{{"sid": "sN"}, {"sid": "sN", "sub": "other"}}, []c{{"sid": "tN"}, {"jti": "sN"}, {}}},
		{"a session up to a time", fmt.Sprintf(`{"sid":"sN","before":%d}`, T), []c{{"sid": "sN", "iat": T}, {"sid": "sN", "iat": T - 1}}, []c{{"sid": "sN", "iat": T + 1}, {"iat": T}}},
		{"a subject up to a time, inclusive", fmt.Sprintf(`{"sub":"uN","before":%d}`, T), []c{{"sub": "uN", "iat": T}, {"sub": "uN", "iat": T - 600}}, []c{{"sub": "uN", "iat": T + 1}, {"sub": "vN", "iat": T}}},
		{"a subject up to a fraction", fmt.Sprintf(`{"sub":"uN","before":%d.9}`, T), []c{{"sub": "uN", "iat": T}, {"sub": "uN", "iat": float64(T) + .95}}, []c{{"sub": "uN", "iat": T + 1}}},
		{"a subject up to now", `{"sub":"uN"}`, []c{{"sub": "uN"}, {"sub": "uN", "iat": T}}, []c{{"sub": "vN"}}},
		{"a client up to a time", fmt.Sprintf(`{"client":"cN","before":%d}`, T), []c{{"client_id": "cN", "iat": T}}, []c{{"client_id": "cN", "iat": T + 1}, {"client_id": "dN", "iat": T}, {"sub": "cN", "iat": T}}},
		{"a client up to now", `{"client":"cN"}`, []c{{"client_id": "cN"}}, []c{{"client_id": "dN"}}},
		{"by the time of the login", fmt.Sprintf(`{"sub":"uN","before":%d,"by":"auth_time"}`, T), []c{{"sub": "uN", "auth_time": T}, {"sub": "uN", "auth_time": T - 5000}, {"sub": "uN", "iat": T}}, []c{{"sub": "uN", "auth_time": T + 1}, {"sub": "uN"}}},
		{"by the time of issue", fmt.Sprintf(`{"sub":"uN","before":%d,"by":"iat"}`, T), []c{{"sub": "uN", "iat": T}}, []c{{"sub": "uN", "auth_time": T}}},
		{"all but one session", fmt.Sprintf(`{"sub":"uN","before":%d,"except":["sid:keepN"]}`, T), []c{{"sub": "uN", "iat": T}, {"sub": "uN", "sid": "goN", "iat": T}}, []c{{"sub": "uN", "sid": "keepN", "iat": T}, {"sub": "uN", "sid": "goN", "iat": T + 1}}},
		{"all but one token", fmt.Sprintf(`{"sub":"uN","before":%d,"except":["jti:keepN","sid:x"]}`, T), []c{{"sub": "uN", "iat": T}}, []c{{"sub": "uN", "jti": "keepN", "iat": T}}},
		{"already expired by its own exp", fmt.Sprintf(`{"jti":"jN","exp":%d}`, T), []c{{"jti": "jN"}}, []c{{"jti": "kN"}}},
		{"with a reason", `{"reason":"lost phone","jti":"jN"}`, []c{{"jti": "jN"}}, []c{{"jti": "kN"}}},
		{"the whole issuer up to a time", fmt.Sprintf(`{"iss":%q,"before":%d}`, idp.URL, T-3000), []c{{"iat": T - 3000}, {"iat": T - 9000, "sub": "anybody"}}, []c{{"iat": T - 2999}, {}}},
	} {
		number := strings.NewReplacer("jN", fmt.Sprint("j", n), "kN", fmt.Sprint("k", n), "JN", fmt.Sprint("J", n), "sN", fmt.Sprint("s", n), "tN", fmt.Sprint("t", n),
			"uN", fmt.Sprint("u", n), "vN", fmt.Sprint("v", n), "cN", fmt.Sprint("c", n), "dN", fmt.Sprint("d", n), "keepN", fmt.Sprint("keep", n), "goN", fmt.Sprint("go", n))
		tokens := func(all []jwt.MapClaims) (signed []string) {
			for _, claims := range all {
				for name, value := range claims {
					if s, ok := value.(string); ok {
						claims[name] = number.Replace(s)
					}
				}
				signed = append(signed, idp.token(claims))
			}
			return signed
		}
		refused, passes := tokens(tc.refused), tokens(tc.passes)
		for i, token := range append(append([]string(nil), refused...), passes...) {
			g.passes(fmt.Sprintf("%s: token %d before the line", tc.name, i), token)
		}
		g.revoke("%s", number.Replace(tc.line))
		for i, token := range refused {
			g.refused(fmt.Sprintf("%s: %q", tc.name, tc.refused[i]), token)
		}
		for i, token := range passes {
			g.passes(fmt.Sprintf("%s: %q", tc.name, tc.passes[i]), token)
		}
		if strings.Contains(tc.line, `"uN"`) {
			g.revoke(`{"sub":"u%d","before":%d}`, n, T-100_000)
			g.refused(tc.name+": after a lower cutoff, which lifts nothing", refused[0])
		}
	}
}

// TestRevocationAnswers: POST /revocations says of each line what became of it.
func TestRevocationAnswers(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	batch := &strings.Builder{}
	for n := range 20_000 {
		fmt.Fprintf(batch, "{\"jti\":\"batch-%d\"}\n", n)
	}
	for _, c := range []struct {
		name, body       string
		status           int
		applied, refused int
		lines            string // number and status of each line
		says             string
	}{
		{"one line", `{"jti":"a1"}`, 200, 1, 0, "1 applied", ""},
		{"one object over several lines", "{\n  \"jti\": \"a2\",\n  \"reason\": \"pretty\"\n}\n", 200, 1, 0, "1 applied", ""},
		{"several lines, blank ones between, CRLF", "{\"jti\":\"a3\"}\r\n\r\n\n{\"sid\":\"a4\"}\n", 200, 2, 0, "1 applied, 4 applied", ""},
		{"the same twice", "{\"jti\":\"a5\"}\n{\"jti\":\"a5\"}", 200, 2, 0, "1 applied, 2 applied", ""},
		{"a bad neighbour", "{\"jti\":\"b1\"}\nnot JSON\n{\"jti\":\"b2\"}\n", 207, 2, 1, "1 applied, 2 refused, 3 applied", "not one JSON object"},
		{"an unknown member beside a good line", "{\"jit\":\"b3\"}\n{\"jti\":\"b4\"}", 207, 1, 1, "1 refused, 2 applied", `unknown member \"jit\"`},
		{"an unknown issuer beside a good line", "{\"iss\":\"https://other.test\",\"jti\":\"b5\"}\n{\"jti\":\"b6\"}", 207, 1, 1, "1 refused, 2 applied", "not a configured issuer"},
		{"nothing", "", 400, 0, 0, "", ""},
		{"blank lines", "\n \n", 400, 0, 0, "", ""},
		{"an empty object", "{}", 400, 0, 1, "1 refused", "names no jti, sid, sub or client"},
		{"an array", `[{"jti":"c0"}]`, 400, 0, 1, "1 refused", "not one JSON object"},
		{"null", "null", 400, 0, 1, "1 refused", "not one JSON object"},
		{"two kinds", `{"jti":"c1","sid":"c2"}`, 400, 0, 1, "1 refused", "both jti and sid"},
		{"twice the same member", `{"jti":"c1","jti":"c2"}`, 400, 0, 1, "1 refused", "jti is given twice"},
		{"another case", `{"JTI":"c1"}`, 400, 0, 1, "1 refused", "unknown member"},
		{"a number as jti", `{"jti":7}`, 400, 0, 1, "1 refused", "must be a string"},
		{"an empty jti", `{"jti":""}`, 400, 0, 1, "1 refused", "is empty"},
		{"a jti with before", `{"jti":"c3","before":1}`, 400, 0, 1, "1 refused", "before does not go with jti"},
		{"the issuer without before", fmt.Sprintf(`{"iss":%q}`, idp.URL), 400, 0, 1, "1 refused", "before is missing"},
		{"a before without iss", `{"before":1}`, 400, 0, 1, "1 refused", "give its iss and before"},
		{"milliseconds", `{"sub":"c4","before":1790000000000}`, 400, 0, 1, "1 refused", "milliseconds"},
		{"before as a string", `{"sub":"c5","before":"1790000000"}`, 400, 0, 1, "1 refused", "must be a number"},
		{"invalid UTF-8", "{\"jti\":\"c6\xff\"}", 400, 0, 1, "1 refused", "not UTF-8"},
		{"too far ahead", fmt.Sprintf(`{"sub":"nobody","before":%d}`, time.Now().Unix()+3600), 200, 1, 0, "1 applied", "clamped"},
		{"a large batch", batch.String(), 200, 20_000, 0, "", ""},
	} {
		status, text := g.call("POST", "/revocations", c.body)
		var got struct {
			Applied, Refused int
			Lines            []struct {
				Line                  int
				Status, Problem, Note string
			}
		}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s: %v in %.200s", c.name, err, text)
			continue
		}
		if status != c.status || got.Applied != c.applied || got.Refused != c.refused || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %.300s, want %d, %d applied, %d refused, %q", c.name, status, text, c.status, c.applied, c.refused, c.says)
		}
		var lines []string
		for _, l := range got.Lines {
			lines = append(lines, fmt.Sprint(l.Line, " ", l.Status))
			if (l.Status == "refused") != (l.Problem != "") {
				t.Errorf("%s: line %d is %s with the problem %q", c.name, l.Line, l.Status, l.Problem)
			}
		}
		if all := strings.Join(lines, ", "); c.lines != "" && all != c.lines {
			t.Errorf("%s: the lines are %q, want %q", c.name, all, c.lines)
		}
	}
	for _, jti := range []string{"a1", "a2", "a3", "a5", "b1", "b2", "b4", "b6", "batch-0", "batch-9999", "batch-19999"} {
		g.refused("jti "+jti, idp.token(jwt.MapClaims{"jti": jti}))
	}
	g.refused("sid a4", idp.token(jwt.MapClaims{"sid": "a4"}))
	for _, jti := range []string{"b3", "b5", "c0", "c1", "c3", "batch-20000"} {
		g.passes("jti "+jti, idp.token(jwt.MapClaims{"jti": jti}))
	}

	if status, text := g.call("POST", "/revocations", strings.Repeat("x", 16<<20+1)); status != 413 {
		t.Errorf("17 MiB: %d %.200s", status, text)
	}
	if status, _ := g.call("GET", "/revocations", ""); status != 405 {
		t.Errorf("GET /revocations: %d", status)
	}
	without := send(t, "POST", g.admin+"/revocations", `{"jti":"without"}`)
	wrong := send(t, "POST", g.admin+"/revocations", `{"jti":"without"}`, "Authorization: Bearer "+g.adminToken()+"x")
	if without.StatusCode != 401 || wrong.StatusCode != 401 {
		t.Errorf("without the admin token: %s, with a wrong one: %s", without.Status, wrong.Status)
	}
	g.passes("what was posted without the admin token", idp.token(jwt.MapClaims{"jti": "without"}))
}

// TestRevocationsCheck: an operator can ask what is held.
func TestRevocationsCheck(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	before := time.Now().Unix() - 10
	g.revoke("{\"jti\":\"a b&c\"}\n{\"sid\":\"s\"}\n{\"sub\":\"u\",\"before\":%d}\n{\"client\":\"c\",\"before\":%[1]d}", before)
	for _, c := range []struct {
		query   string
		status  int
		revoked bool
		says    string
	}{
		{"jti=a+b%26c", 200, true, `"until"`},
		{"iss=" + idp.URL + "&jti=a+b%26c", 200, true, `"kind": "jti"`},
		{"iss=https://other.test&jti=a+b%26c", 200, false, ""},
		{"jti=a", 200, false, `"state": "live"`},
		{"sid=s", 200, true, `"kind": "sid"`},
		{"sub=u", 200, true, time.Unix(before, 0).UTC().Format(time.RFC3339)},
		{"client=c", 200, true, `"before"`},
		{"sub=U", 200, false, ""},
		{"iss=" + idp.URL, 200, false, `"kind": "iss"`},
		{"jti=a&sub=u", 400, false, "name one of"},
		{"jti=", 400, false, "name one of"},
	} {
		status, text := g.call("GET", "/revocations/check?"+c.query, "")
		if status != c.status || strings.Contains(text, `"revoked": true`) != c.revoked || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %s, want %d, revoked %v, %q", c.query, status, text, c.status, c.revoked, c.says)
		}
	}
	if a := send(t, "GET", g.admin+"/revocations/check?sub=u", ""); a.StatusCode != 401 {
		t.Errorf("without the admin token: %s", a.Status)
	}
}

// A feedFile is a file of revocations that tests change in every way.
type feedFile struct {
	t    *testing.T
	path string
}

func newFeedFile(t *testing.T) *feedFile {
	return &feedFile{t, filepath.Join(t.TempDir(), "revoked.jsonl")}
}

func (f *feedFile) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *feedFile) write(text string) {
	f.t.Helper()
	f.check(os.WriteFile(f.path, []byte(text), 0o600))
}
func (f *feedFile) remove() { f.t.Helper(); f.check(os.Remove(f.path)) }

func (f *feedFile) append(text string) {
	f.t.Helper()
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_WRONLY, 0)
	f.check(err)
	_, err = file.WriteString(text)
	f.check(err)
	f.check(file.Close())
}

func (g *gateway) feed() (state string, applied, refused int) {
	g.t.Helper()
	_, r := g.readiness()
	return r.Feeds[0].State, r.Feeds[0].Applied, r.Feeds[0].Refused
}

// TestFileFeed: what is appended is refused within a second, and nothing that
// happens to the file afterwards lifts it.
func TestFileFeed(t *testing.T) {
	t.Parallel()
	idp, app, feed := newIssuer(t), newUpstream(t), newFeedFile(t)
	feed.write("")
	g := startGateway(t, withIssuers(app, fmt.Sprintf("denylist: {lease: 30s, feeds: [{name: local, file: %s}]}", feed.path), corp(idp)))
	g.waitReady()
	named := func(jti string) string { return idp.token(jwt.MapClaims{"jti": jti}) }
	within := func(jti string, changed time.Time) {
		t.Helper()
		token := named(jti)
		eventually(t, 10*time.Second, jti+" is refused", func() bool {
			a, err := attempt("GET", g.url("/"), "", bearing(token))
			return err == nil && a.StatusCode == 401
		})
		if took := time.Since(changed); took > time.Second {
			t.Errorf("%s was refused after %v", jti, took)
		}
		g.refused(jti, token)
	}

	first := named("one")
	g.passes("before", first)
	feed.append("{\"jti\":\"one\"}\n")
	within("one", time.Now())
	g.refused("a cached token", first)
	g.passes("another", named("two"))

	// A line is no line until it is ended, unless it is complete.
	_, _, before := g.feed()
	feed.append(`{"jti":"to`)
	appended := time.Now()
	eventually(t, 5*time.Second, "a look at the file", func() bool {
		asked := time.Now()
		_, r := g.readiness()
		return asked.Add(-time.Duration(r.Feeds[0].Age * float64(time.Second))).After(appended)
	})
	if _, _, refused := g.feed(); refused != before {
		t.Error("half a line was counted as refused")
	}
	g.passes("while its line is half written", named("torn"))
	feed.append("rn\"}\n")
	within("torn", time.Now())
	g.passes("what the half line could have named", named("to"))
	feed.append(`{"jti":"unended"}`)
	within("unended", time.Now())

	garbage := "\n{\"jti\":\"before garbage\"}\n\x00\xff\xfe\n{\"jti\":\n[]\n{}\n{\"sub\":\"alice\"}\n{\"iss\":\"https://other.test\",\"jti\":\"x\"}\n" + strings.Repeat("x", 100<<10) + "\n{\"jti\":\"after garbage\"}\n"
	feed.append(garbage)
	within("after garbage", time.Now())
	g.refused("before the garbage", named("before garbage"))
	if _, _, refused := g.feed(); refused-before != 7 {
		t.Errorf("%d lines were counted as refused, want 7", refused-before)
	}
	if res := send(t, "GET", g.admin+"/metrics", ""); !strings.Contains(res.Body, "refused") {
		t.Error("no metric speaks of refused lines")
	}
	if lines := g.log.lines("a line of the revocation file needs a look"); len(lines) == 0 {
		t.Error("the garbage was not logged")
	}
	g.passes("a subject that the garbage named without before", named("alice's"))

	for _, c := range []struct {
		name   string
		change func()
	}{
		{"emptied", func() { feed.write("") }},
		{"with one other line", func() { feed.write("{\"jti\":\"other\"}\n") }},
		{"deleted", func() { feed.remove() }},
		{"recreated empty", func() { feed.write("") }},
		{"recreated by rename", func() {
			feed.check(os.WriteFile(feed.path+".new", []byte("{\"jti\":\"renamed\"}\n"), 0o600))
			feed.check(os.Rename(feed.path+".new", feed.path))
		}},
		{"full of NULs", func() { feed.write(strings.Repeat("\x00", 4096)) }},
	} {
		c.change()
		marker := fmt.Sprint("marker ", c.name)
		if c.name != "deleted" {
			feed.append(fmt.Sprintf("\n{\"jti\":%q}\n", marker))
			within(marker, time.Now()) // so the file was read as it is now
		} else {
			eventually(t, 5*time.Second, "the loss is noticed", func() bool {
				return len(g.log.lines("the revocation file is not followed; what it said so far stays in force")) > 0
			})
		}
		for _, jti := range []string{"one", "torn", "unended", "before garbage", "after garbage"} {
			g.refused(jti+" after the file was "+c.name, named(jti))
		}
		g.passes("another after the file was "+c.name, named("two"))
	}
	within("renamed", time.Now())
}

// TestFileFeedLost: past the lease a lost feed makes requests fail visibly, but
// for routes that say otherwise; and it recovers by itself.
func TestFileFeedLost(t *testing.T) {
	t.Parallel()
	idp, app, feed := newIssuer(t), newUpstream(t), newFeedFile(t)
	feed.write("{\"jti\":\"gone\"}\n")
	g := startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - %s
denylist: {lease: 1s, feeds: [{name: local, file: %s}]}
routes:
  - {name: open, path: /open/, upstream: %[3]s, auth: none}
  - {name: lenient, path: /lenient/, upstream: %[3]s, on_stale: allow}
  - {name: optional, path: /optional/, upstream: %[3]s, auth: optional}
  - {name: app, upstream: %[3]s}
`, corp(idp), feed.path, app.URL))
	g.waitReady()
	good, gone := idp.token(nil), idp.token(jwt.MapClaims{"jti": "gone"})
	g.passes("before", good)
	g.refused("before", gone)

	feed.remove()
	removed := time.Now()
	g.passes("within the lease", good)
	eventually(t, 10*time.Second, "stale", func() bool { return send(t, "GET", g.url("/"), "", bearing(good)).StatusCode != 200 })
	if took := time.Since(removed); took < 500*time.Millisecond || took > 2500*time.Millisecond {
		t.Errorf("stale %v after the file was removed, with a lease of 1s", took)
	}
	a := send(t, "GET", g.url("/"), "", bearing(good))
	wantAnswer(t, "stale", a, 503, "denylist_stale")
	if retry := a.Header.Get("Retry-After"); retry != "1" {
		t.Errorf("stale: Retry-After is %q", retry)
	}
	if a.Header.Get("WWW-Authenticate") != "" || a.Header.Get("Set-Cookie") != "" {
		t.Errorf("stale: the answer sends users to log in: %v", a.Header)
	}
	g.refused("a revoked token while stale", gone)
	wantAnswer(t, "stale, lenient route", send(t, "GET", g.url("/lenient/"), "", bearing(good)), 200, "")
	wantAnswer(t, "stale, lenient route, revoked", send(t, "GET", g.url("/lenient/"), "", bearing(gone)), 401, "revoked")
	wantAnswer(t, "stale, open route", send(t, "GET", g.url("/open/"), "", bearing(good)), 200, "")
	wantAnswer(t, "stale, optional route without a token", send(t, "GET", g.url("/optional/"), ""), 200, "")
	wantAnswer(t, "stale, optional route with a token", send(t, "GET", g.url("/optional/"), "", bearing(good)), 503, "denylist_stale")
	status, r := g.readiness()
	if status != 200 || r.Feeds[0].State != "stale" || !strings.Contains(r.Feeds[0].Problem, "no such file") {
		t.Errorf("readyz while stale: %d %+v", status, r.Feeds)
	}
	if metrics := send(t, "GET", g.admin+"/metrics", "").Body; !strings.Contains(metrics, `durward_denylist_feed_state{feed="local",state="stale"} 1`) {
		t.Error("the metrics do not say that the feed is stale")
	}

	// What is revoked here meanwhile counts at once.
	later := idp.token(jwt.MapClaims{"jti": "later"})
	g.revoke(`{"jti":"later"}`)
	wantAnswer(t, "stale, revoked by hand", send(t, "GET", g.url("/lenient/"), "", bearing(later)), 401, "revoked")

	feed.write("")
	back := time.Now()
	eventually(t, 10*time.Second, "live again", func() bool { return send(t, "GET", g.url("/"), "", bearing(good)).StatusCode == 200 })
	if took := time.Since(back); took > time.Second {
		t.Errorf("live %v after the file came back", took)
	}
	g.refused("after the file came back without the line", gone)
	if state, _, _ := g.feed(); state != "live" {
		t.Errorf("the feed is %s", state)
	}
}

// TestFileFeedMissingAtStart: a gateway that never heard from its feed lets nobody
// in, whatever on_stale says.
func TestFileFeedMissingAtStart(t *testing.T) {
	t.Parallel()
	idp, app, feed := newIssuer(t), newUpstream(t), newFeedFile(t)
	g := startGateway(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers:
  - %s
denylist: {lease: 1s, on_stale: allow, feeds: [{name: local, file: %s}]}
routes:
  - {name: open, path: /open/, upstream: %[3]s, auth: none}
  - {name: app, upstream: %[3]s, on_stale: allow}
`, corp(idp), feed.path, app.URL))
	eventually(t, 5*time.Second, "the issuer's keys", func() bool { _, r := g.readiness(); return r.Issuers[0].Ready })
	good, gone := bearing(idp.token(nil)), bearing(idp.token(jwt.MapClaims{"jti": "gone"}))
	for began := time.Now(); time.Since(began) < 1500*time.Millisecond; time.Sleep(50 * time.Millisecond) { // past the lease, too
		wantAnswer(t, "cold", send(t, "GET", g.url("/"), "", good), 503, "denylist_stale")
	}
	wantAnswer(t, "cold, open route", send(t, "GET", g.url("/open/"), ""), 200, "")
	if status, r := g.readiness(); status != 503 || r.Feeds[0].State == "live" || r.Feeds[0].State == "stale" {
		t.Errorf("readyz while cold: %d %+v", status, r.Feeds)
	}
	feed.write("{\"jti\":\"gone\"}\n")
	g.waitReady()
	wantAnswer(t, "in step", send(t, "GET", g.url("/"), "", good), 200, "")
	wantAnswer(t, "in step, revoked", send(t, "GET", g.url("/"), "", gone), 401, "revoked")
	feed.remove()
	eventually(t, 5*time.Second, "stale", func() bool { state, _, _ := g.feed(); return state == "stale" })
	wantAnswer(t, "stale", send(t, "GET", g.url("/"), "", good), 200, "")
	wantAnswer(t, "stale, revoked", send(t, "GET", g.url("/"), "", gone), 401, "revoked")

	// A restart has forgotten nothing of what it must enforce, and knows nothing
	// of the feed: it is cold again.
	g.kill()
	g.start()
	eventually(t, 5*time.Second, "the issuer's keys", func() bool { _, r := g.readiness(); return r.Issuers[0].Ready })
	wantAnswer(t, "cold after a restart", send(t, "GET", g.url("/"), "", good), 503, "denylist_stale")
}

// TestKillAndRestart: what was answered with 200 is enforced after a power
// failure, whatever the crash left at the journal's end.
func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	iat := time.Now().Unix() - 100
	tokens := map[string]string{}
	for kind, c := range map[string]struct {
		line   string
		claims jwt.MapClaims
	}{
		"jti":     {`{"jti":"j"}`, jwt.MapClaims{"jti": "j"}},
		"odd jti": {`{"jti":"\u0000\n\"\\"}`, jwt.MapClaims{"jti": "\x00\n\"\\"}},
		"sid":     {`{"sid":"s"}`, jwt.MapClaims{"sid": "s"}},
		"sub":     {fmt.Sprintf(`{"sub":"u","before":%d}`, iat), jwt.MapClaims{"sub": "u", "iat": iat}},
		"now":     {`{"sub":"now"}`, jwt.MapClaims{"sub": "now"}},
		"client":  {`{"client":"c"}`, jwt.MapClaims{"client_id": "c"}},
		"login":   {fmt.Sprintf(`{"sub":"l","before":%d,"by":"auth_time"}`, iat), jwt.MapClaims{"sub": "l", "auth_time": iat}},
		"except":  {fmt.Sprintf(`{"sub":"e","before":%d,"except":["sid:keep"]}`, iat), jwt.MapClaims{"sub": "e", "sid": "go", "iat": iat}},
		"issuer":  {fmt.Sprintf(`{"iss":%q,"before":%d}`, idp.URL, iat-1000), jwt.MapClaims{"iat": iat - 1000}},
	} {
		tokens[kind] = idp.token(c.claims)
		g.passes(kind+" before", tokens[kind])
		g.revoke("%s", c.line)
		g.refused(kind, tokens[kind])
	}
	kept := map[string]string{
		"excepted":   idp.token(jwt.MapClaims{"sub": "e", "sid": "keep", "iat": iat}),
		"later":      idp.token(jwt.MapClaims{"sub": "u", "iat": iat + 1}),
		"torn":       idp.token(jwt.MapClaims{"jti": "torn"}),
		"begun":      idp.token(jwt.MapClaims{"jti": "to"}),
		"in between": idp.token(jwt.MapClaims{"iat": iat - 999}),
	}
	journal := filepath.Join(g.dir, "durward-state", "journal.jsonl")
	for _, end := range []string{"", `{"iss":"` + idp.URL + `","jti":"to`, "{", "\x00\x00\x00\x00"} {
		g.kill()
		f := feedFile{t, journal}
		f.append(end)
		g.start()
		g.waitReady()
		for kind, token := range tokens {
			g.refused(fmt.Sprintf("%s after kill -9 with %q at the end of the journal", kind, end), token)
		}
		for kind, token := range kept {
			g.passes(fmt.Sprintf("%s after kill -9 with %q at the end of the journal", kind, end), token)
		}
		if torn := g.log.lines("the last line of the journal was torn by a crash and is dropped; it was never acknowledged"); (len(torn) == 1) != (end != "") {
			t.Errorf("with %q at the end of the journal %d torn lines were logged", end, len(torn))
		}
		jti := fmt.Sprintf("after %q", end)
		g.revoke(`{"jti":%q}`, jti)
		tokens[jti] = idp.token(jwt.MapClaims{"jti": jti})
	}

	// An orderly end keeps as much.
	g.stop()
	g.start()
	g.waitReady()
	for kind, token := range tokens {
		g.refused(kind+" after an orderly restart", token)
	}
}

// TestJournalBrokenInside: a broken line amid good ones is kept and told, and
// its neighbours are enforced.
func TestJournalBrokenInside(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	g.revoke(`{"jti":"before"}`)
	g.kill()
	journal := feedFile{t, filepath.Join(g.dir, "durward-state", "journal.jsonl")}
	journal.append(fmt.Sprintf("garbage\n{\"iss\":%q,\"jti\":\"after\"}\n", idp.URL))
	g.start()
	g.waitReady()
	g.refused("before the broken line", idp.token(jwt.MapClaims{"jti": "before"}))
	g.refused("after the broken line", idp.token(jwt.MapClaims{"jti": "after"}))
	g.passes("another", idp.token(nil))
	if lines := g.log.lines("a line of the journal cannot be read and is kept as it is; what it revoked is not enforced"); len(lines) != 1 {
		t.Errorf("the broken line was logged %d times", len(lines))
	}
	if text, err := os.ReadFile(journal.path); err != nil || !strings.Contains(string(text), "garbage\n") {
		t.Errorf("the journal is now %q, %v", text, err)
	}
}

// TestRaisedMaxLifetime: a denylist entry is forgotten once its tokens are past
// max_lifetime; raising that limit must not bring them back, be it by a reload or
// by a restart.
func TestRaisedMaxLifetime(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	config := func(limits string) string { return withIssuers(app, "", corp(idp, limits)) }
	g := startGateway(t, config("max_lifetime: 1s, leeway: 0s, skew: 0s"))
	g.waitReady()
	long := func() string {
		return idp.token(jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix()})
	}
	outlived := func(what, token string) {
		t.Helper()
		wantAnswer(t, what, send(t, "GET", g.url("/"), "", bearing(token)), 401, "token_lifetime")
	}
	old, revoked := long(), idp.token(jwt.MapClaims{"jti": "revoked", "exp": time.Now().Add(time.Hour).Unix()})
	outlived("a token that lives too long", old)
	g.revoke(`{"jti":"revoked"}`)

	// Once the entry is not needed any more, the limit is raised.
	var entry struct{ Until time.Time }
	if _, text := g.call("GET", "/revocations/check?jti=revoked", ""); json.Unmarshal([]byte(text), &entry) != nil || entry.Until.IsZero() {
		t.Fatalf("the entry is %s", text)
	}
	eventually(t, 10*time.Second, "the entry's end", func() bool { return time.Now().After(entry.Until) })
	g.write(config("max_lifetime: 24h, leeway: 1h, skew: 0s"))
	if status, text := g.call("POST", "/reload", ""); status != 200 {
		t.Fatalf("reload: %d %s", status, text)
	}
	check := func(when string) {
		t.Helper()
		outlived("an old token "+when, old)
		if a := send(t, "GET", g.url("/"), "", bearing(revoked)); a.StatusCode != 401 {
			t.Errorf("a revoked token %s: %s", when, a.Status)
		}
		eventually(t, 5*time.Second, "a token issued "+when+" passes", func() bool { return send(t, "GET", g.url("/"), "", bearing(long())).StatusCode == 200 })
	}
	check("after the reload")
	fresh := long()
	g.passes("a token of now", fresh)
	g.kill()
	g.start()
	g.waitReady()
	check("after a restart")
	g.passes("a token from before the restart", fresh)

	g.kill()
	g.write(config("max_lifetime: 30m"))
	g.start()
	g.waitReady()
	outlived("a token from before the limit was lowered", fresh)
	g.kill()
	g.write(config("max_lifetime: 48h"))
	g.start()
	g.waitReady()
	outlived("the same after the limit was raised again", fresh)
	check("after the limit was raised again")
}

// TestRaisedWithinSkew: a token may be dated a little ahead, so one that says that it
// was issued just after a limit was raised can have been revoked, for the time of the
// old limit, before.
func TestRaisedWithinSkew(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	config := func(limits string) string { return withIssuers(app, "", corp(idp, limits, "leeway: 0s, skew: 2s")) }
	g := serving(t, config("max_lifetime: 1s"))
	now := time.Now().Unix()
	ahead := bearing(idp.token(jwt.MapClaims{"jti": "ahead", "iat": now + 2, "exp": now + 3600}))
	g.revoke(`{"jti":"ahead"}`)
	g.write(config("max_lifetime: 2h"))
	if status, text := g.call("POST", "/reload", ""); status != 200 {
		t.Fatalf("reload: %d %s", status, text)
	}
	eventually(t, 10*time.Second, "a token of now passes", func() bool {
		return send(t, "GET", g.url("/"), "", bearing(idp.token(jwt.MapClaims{"exp": time.Now().Unix() + 3600}))).StatusCode == 200
	})
	wantAnswer(t, "the token from ahead", send(t, "GET", g.url("/"), "", ahead), 401, "token_lifetime")
}

// TestClockIsNotBelieved: a cutoff that is long past its retention by the clock here
// is held all the same where nothing tells that this clock is right: at the first
// start. A gateway that ran before knows better.
func TestClockIsNotBelieved(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	now := time.Now()
	feed := filepath.Join(t.TempDir(), "revoked.jsonl")
	lines := fmt.Sprintf("{\"sub\":\"old\",\"before\":%d}\n{\"sub\":\"new\",\"before\":%d}\n", now.Add(-72*time.Hour).Unix(), now.Add(-time.Hour).Unix())
	if err := os.WriteFile(feed, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	g := serving(t, withIssuers(app, fmt.Sprintf("denylist: {feeds: [{name: local, file: %q}]}", feed), corp(idp)))
	state := filepath.Join(g.dir, "durward-state")
	for _, c := range []struct {
		name string
		ran  time.Time // last; zero: not known
		held bool
	}{
		{"the first start", time.Time{}, true},
		{"it ran an hour ago", now.Add(-time.Hour), false},
		{"by what it knows, that is not long ago", now.Add(-60 * time.Hour), true},
	} {
		if !c.ran.IsZero() {
			g.stop()
			if err := os.Remove(filepath.Join(state, "denylist.snapshot")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(state, "last-run"), []byte(c.ran.UTC().Format(time.RFC3339)), 0o600); err != nil {
				t.Fatal(err)
			}
			g.start()
			g.waitReady()
		}
		for _, sub := range []string{"old", "new"} {
			status, out := g.call("GET", "/revocations/check?sub="+sub, "")
			if want := fmt.Sprintf(`"revoked": %v`, sub == "new" || c.held); status != 200 || !strings.Contains(out, want) {
				t.Errorf("%s: %s: %d %s, want %s", c.name, sub, status, out, want)
			}
		}
	}
}

// TestFileEmptiedBeforeKill: what a file said once is known after the process was
// killed, although the file does not say it any more: within seconds, it is in the
// snapshot.
func TestFileEmptiedBeforeKill(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	feed := filepath.Join(t.TempDir(), "revoked.jsonl")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(feed, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("")
	g := serving(t, withIssuers(app, fmt.Sprintf("denylist: {feeds: [{name: local, file: %q}]}", feed), corp(idp)))
	snapshot := filepath.Join(g.dir, "durward-state", "denylist.snapshot")
	eventually(t, 10*time.Second, "the first snapshot", func() bool { _, err := os.Stat(snapshot); return err == nil })
	victim := idp.token(jwt.MapClaims{"jti": "victim"})
	g.passes("before", victim)
	put("{\"jti\":\"victim\"}\n")
	eventually(t, 10*time.Second, "it is revoked", func() bool { return send(t, "GET", g.url("/"), "", bearing(victim)).StatusCode == 401 })
	known := time.Now()
	put("\n")
	eventually(t, 20*time.Second, "the next snapshot", func() bool {
		info, err := os.Stat(snapshot)
		return err == nil && info.ModTime().After(known)
	})
	g.kill()
	g.start()
	g.waitReady()
	g.refused("after the kill", victim)
	g.passes("another", idp.token(nil))
}

// TestStateDirLocked: two gateways must not share a journal.
func TestStateDirLocked(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	status, out, errOut := durward(t, "serve", "-config", g.config)
	state := filepath.Join(g.dir, "durward-state")
	if status != 1 || !strings.Contains(errOut, "another durward uses") || !strings.Contains(errOut, state) || !strings.Contains(errOut, "state_dir of its own") {
		t.Errorf("the second gateway: %d %s%s", status, out, errOut)
	}
	g.passes("the first gateway", idp.token(nil))
	g.revoke(`{"jti":"still"}`)
	g.refused("the first gateway", idp.token(jwt.MapClaims{"jti": "still"}))
	g.kill() // the lock ends with the process, however it ends
	g.start()
	g.waitReady()
	g.refused("after a restart", idp.token(jwt.MapClaims{"jti": "still"}))
}

// TestNoStateDir: where nothing can be kept, revoking is off and everybody is
// told; verifying and the feeds go on.
func TestNoStateDir(t *testing.T) {
	t.Parallel()
	idp, app, feed := newIssuer(t), newUpstream(t), newFeedFile(t)
	feed.write("{\"jti\":\"by the feed\"}\n")
	g := &gateway{t: t, dir: t.TempDir()}
	g.config = filepath.Join(g.dir, "durward.yaml")
	// A file stands in the way: permissions would not keep root out.
	if err := os.WriteFile(filepath.Join(g.dir, "durward-state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(g.dir, "admin.secret")
	if err := os.WriteFile(secret, []byte("a-secret-of-at-least-16-characters\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.write(withIssuers(app, fmt.Sprintf("admin_token_file: %s\ndenylist: {feeds: [{name: local, file: %s}]}", secret, feed.path), corp(idp)))
	if status, out, errOut := durward(t, "check", "-config", g.config); status != 0 || !strings.Contains(errOut, "revoking through this gateway is off") {
		t.Errorf("check: %d %s%s", status, out, errOut)
	}
	g.start()
	g.waitReady()
	admin := "Authorization: Bearer a-secret-of-at-least-16-characters"
	if a := send(t, "POST", g.admin+"/revocations", `{"jti":"j"}`, admin); a.StatusCode != 503 || !strings.Contains(a.Body, "state_dir") {
		t.Errorf("POST /revocations: %s %s", a.Status, a.Body)
	}
	g.passes("what could not be revoked", idp.token(jwt.MapClaims{"jti": "j"}))
	g.refused("what the feed revoked", idp.token(jwt.MapClaims{"jti": "by the feed"}))
	if a := send(t, "GET", g.admin+"/revocations/check?jti=by+the+feed", "", admin); a.StatusCode != 200 || !strings.Contains(a.Body, `"revoked": true`) {
		t.Errorf("GET /revocations/check: %s %s", a.Status, a.Body)
	}
	if a := send(t, "GET", g.admin+"/status", ""); !strings.Contains(a.Body, `"revoking": false`) || !strings.Contains(a.Body, "revoking through this gateway is off") {
		t.Errorf("/status: %s", a.Body)
	}

	// A state_dir that was asked for and cannot be is an error, not a lesser mode.
	g.kill()
	blocked := filepath.Join(g.dir, "durward-state")
	g.write(withIssuers(app, "state_dir: "+blocked, corp(idp)))
	for _, command := range []string{"check", "serve"} {
		if status, out, errOut := durward(t, command, "-config", g.config); status != 1 || !strings.Contains(errOut, "state_dir: "+blocked+" is not a writable directory") {
			t.Errorf("%s with state_dir %s: %d %s%s", command, blocked, status, out, errOut)
		}
	}
	g.write(withIssuers(app, "state_dir: /proc/durward-state", corp(idp)))
	if status, out, errOut := durward(t, "serve", "-config", g.config); status != 1 || !strings.Contains(errOut, "/proc/durward-state") {
		t.Errorf("serve with state_dir in /proc: %d %s%s", status, out, errOut)
	}
}

// try is send for a request that may be cut: the status is 0 if that happened
// before the answer, and the answer is not whole if it happened in its middle.
func try(t *testing.T, url, header string) (status int, reason string, whole bool) {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Error(err)
		return 0, "", false
	}
	name, value, _ := strings.Cut(header, ": ")
	req.Header.Set(name, value)
	res, err := client.Do(req)
	if err != nil {
		return 0, "", false
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, res.Header.Get("Durward-Reason"), err == nil
}

// TestRevokedUnderLoad: no request that starts after the answer to POST
// /revocations passes, however warm the cache and busy the gateway.
func TestRevokedUnderLoad(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	for round, line := range []string{`{"jti":"r0"}`, `{"sid":"r1"}`, `{"sub":"r2"}`, `{"client":"r3"}`, `{"jti":"r4"}`, `{"jti":"r5"}`, `{"jti":"r6"}`, `{"jti":"r7"}`} {
		name := fmt.Sprint("r", round)
		bearer := bearing(idp.token(jwt.MapClaims{"jti": name, "sid": name, "sub": name, "client_id": name}))
		var answered atomic.Bool // the revocation
		var before, after, late, odd atomic.Int64
		var load sync.WaitGroup
		for range 8 {
			load.Go(func() {
				for after.Load() < 200 {
					started := answered.Load() // read before the request begins
					status, reason, whole := try(t, g.url("/"), bearer)
					switch {
					case !started && status == 200:
						before.Add(1)
					case !started: // it is refused, or cut in the middle
					case status == 200:
						late.Add(1)
						after.Add(1)
					default:
						after.Add(1)
						if reason != "revoked" || !whole {
							odd.Add(1)
						}
					}
				}
			})
		}
		eventually(t, 10*time.Second, "the load runs", func() bool { return before.Load() > 100 })
		g.revoke("%s", line)
		answered.Store(true)
		load.Wait()
		if late.Load() > 0 || odd.Load() > 0 {
			t.Errorf("%s: %d requests passed that started after the answer, %d were not refused as revoked", line, late.Load(), odd.Load())
		}
	}
	g.passes("another token", idp.token(nil))
	if res, err := http.Get(g.admin + "/healthz"); err != nil || res.StatusCode != 200 {
		t.Errorf("healthz: %v %v", res, err)
	}
}

// TestConnectionAfterCut: a proxy in front sends the requests of many users over
// one connection. One that is cut because its token is revoked must not take the
// next user's with it: either the connection goes on, or its end is announced.
func TestConnectionAfterCut(t *testing.T) {
	t.Parallel()
	idp, release := newIssuer(t), make(chan struct{})
	began := make(chan struct{}, 1)
	app := &upstream{Server: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			began <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	}))}
	t.Cleanup(app.Close)
	t.Cleanup(func() { close(release) })
	g := startGateway(t, withIssuers(app, "", corp(idp)))
	g.waitReady()
	alice, bob := idp.token(jwt.MapClaims{"jti": "alice's"}), idp.token(jwt.MapClaims{"sub": "bob"})

	conn, err := net.Dial("tcp", g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(conn)
	ask := func(path, token string) *http.Response {
		t.Helper()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: app.test\r\n%s\r\n\r\n", path, bearing(token))
		if path == "/slow" {
			<-began
			g.revoke(`{"jti":"alice's"}`)
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res
	}
	if res := ask("/", bob); res.StatusCode != 200 || res.Close {
		t.Fatalf("bob before: %s, closed %v", res.Status, res.Close)
	}
	res := ask("/slow", alice)
	if res.StatusCode != 401 || res.Header.Get("Durward-Reason") != "revoked" {
		t.Errorf("alice's request, cut: %s %v", res.Status, res.Header)
	}
	if !res.Close {
		if res := ask("/", bob); res.StatusCode != 200 {
			t.Errorf("bob after alice was cut: %s", res.Status)
		}
	}
	g.passes("bob on another connection", bob)
}
