package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestLogLine is what the log says of a request: its id, under which the client and
// the upstream know it too, its trace, and neither credential nor query string; as
// JSON and as text.
func TestLogLine(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, format := range []string{"json", "text"} {
		admin := freeAddress(t)
		public := freeAddress(t)
		g := startLogging(t, fmt.Sprintf("listen: %s\nadmin: %s\nlog: {format: %s}\ntrusted_proxies: [127.0.0.1]\nissuers: [%s]\nroutes: [{name: app, upstream: %q}]\n", public, admin, format, corp(idp), app.URL))
		token := idp.token(nil)
		a := send(t, "GET", "http://"+public+"/x?secret-query=1", "", bearing(token), "X-Request-Id: from-the-proxy", "Traceparent: "+traceparent, "Tracestate: vendor=1")
		if a.StatusCode != 200 || a.Header.Get("X-Request-Id") != "from-the-proxy" || len(a.Header["X-Request-Id"]) != 1 {
			t.Errorf("%s: %s with id %q", format, a.Status, a.Header["X-Request-Id"])
		}
		got := app.last(t)
		if got.Header.Get("X-Request-Id") != "from-the-proxy" || got.Header.Get("Traceparent") != traceparent || got.Header.Get("Tracestate") != "vendor=1" {
			t.Errorf("%s: the upstream received %v", format, got.Header)
		}
		refused := send(t, "GET", "http://"+public+"/y?secret-query=1", "", "Traceparent: nonsense")
		id := refused.Header.Get("X-Request-Id")
		eventually(t, 5*time.Second, format+": both lines", func() bool { return strings.Contains(g.log.String(), id) })
		text := g.log.String()
		for _, secret := range append(strings.Split(token, "."), "secret-query", "nonsense") {
			if strings.Contains(text, secret) {
				t.Errorf("%s: the log contains %q", format, secret)
			}
		}
		want := []string{`"id":"from-the-proxy","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"`, `"path":"/x"`, `"reason":"no_token"`}
		if format == "text" {
			want = []string{"decision.id=from-the-proxy decision.trace_id=4bf92f3577b34da6a3ce929d0e0e4736", "decision.path=/x", "decision.reason=no_token"}
		}
		for _, w := range want {
			if strings.Count(text, w) != 1 {
				t.Errorf("%s: %q is not there once:\n%s", format, w, text)
			}
		}
		send(t, "GET", "http://"+public+"/z", "", bearing(token), "Traceparent: nonsense", "Tracestate: vendor=1")
		if got := app.last(t); got.Header["Traceparent"] != nil || got.Header["Tracestate"] != nil {
			t.Errorf("%s: a wrong traceparent is passed on: %v", format, got.Header)
		}
	}
}

// startLogging starts a gateway whose log need not tell that it serves.
func startLogging(t *testing.T, config string) *gateway {
	t.Helper()
	g := &gateway{t: t, dir: t.TempDir()}
	g.config = filepath.Join(g.dir, "durward.yaml")
	g.write(config)
	g.conforms()
	g.launch()
	find := func(key string) string {
		return regexp.MustCompile(`(?m)^` + key + `: (.*)$`).FindStringSubmatch(config)[1]
	}
	g.public, g.admin = []string{find("listen")}, "http://"+find("admin")
	eventually(t, 20*time.Second, "the gateway is ready", func() bool {
		res, err := http.Get(g.admin + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return g
}

// TestLogSample logs a part of what passes, and all that does not.
func TestLogSample(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	config := "listen: 127.0.0.1:0\nlog: {sample: %s}\ntrusted_proxies: [127.0.0.1]\nissuers: [" + corp(idp) + "]\nroutes: [{name: app, upstream: \"" + app.URL + "\"}]\n"
	const requests, refusals = 400, 20
	for _, c := range []struct {
		sample   string
		low, top int
	}{{"0", 0, 0}, {"0.25", 50, 150}, {"1", requests, requests}} {
		g := serving(t, fmt.Sprintf(config, c.sample))
		bearer := bearing(idp.token(nil))
		for i := range requests {
			send(t, "GET", g.url("/"), "", bearer, fmt.Sprintf("X-Request-Id: request-%d", i))
		}
		for range refusals {
			send(t, "GET", g.url("/"), "")
		}
		passed := 0
		eventually(t, 5*time.Second, "all refusals are logged", func() bool {
			refused := 0
			passed = 0
			for _, line := range g.log.lines("request") {
				if line["level"] == "WARN" {
					refused++
				} else {
					passed++
				}
			}
			return refused == refusals
		})
		if passed < c.low || passed > c.top {
			t.Errorf("sample %s: %d of %d requests are logged", c.sample, passed, requests)
		}
	}
}

// TestLogAudit logs refusals, cuts and revocations, and of the rest what is a warning.
func TestLogAudit(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	feed := filepath.Join(t.TempDir(), "revoked.jsonl")
	if err := os.WriteFile(feed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := startLogging(t, fmt.Sprintf("listen: %s\nadmin: %s\nlog: {audit: true, level: error}\nissuers: [%s]\ndenylist: {lease: 1s, feeds: [{name: local, file: %q}]}\nroutes: [{name: app, upstream: %q}]\n", freeAddress(t), freeAddress(t), corp(idp), feed, app.URL))
	token := idp.token(jwt.MapClaims{"jti": "audited"})
	if a := send(t, "GET", g.url("/"), "", bearing(token)); a.StatusCode != 200 {
		t.Fatal(a.Status)
	}
	if status, out := g.call("POST", "/revocations", fmt.Sprintf(`{"iss":%q,"jti":"audited"}`, idp.URL)); status != 200 {
		t.Fatal(status, out)
	}
	if a := send(t, "GET", g.url("/"), "", bearing(token)); a.StatusCode != 401 {
		t.Fatal(a.Status)
	}
	eventually(t, 5*time.Second, "the refusal is logged", func() bool { return len(g.log.lines("request")) > 0 })
	lines := strings.Split(strings.TrimSpace(g.log.String()), "\n")
	if len(lines) != 2 || len(g.log.lines("revoked")) != 1 || len(g.log.lines("request")) != 1 {
		t.Errorf("the log has %d lines: %s", len(lines), g.log)
	}
}

// TestEventsOnce: what is lost is told once, and once that it is back.
func TestEventsOnce(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	idp.down.Store(true)
	feed := filepath.Join(t.TempDir(), "revoked.jsonl")
	if err := os.WriteFile(feed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, fmt.Sprintf("listen: 127.0.0.1:0\nissuers: [%s]\ndenylist: {lease: 1s, feeds: [{name: local, file: %q}]}\nroutes: [{name: app, upstream: %q}]\n", corp(idp), feed, app.URL))
	count := func(msg string, want int) {
		t.Helper()
		eventually(t, 10*time.Second, msg, func() bool { return len(g.log.lines(msg)) >= want })
		if n := len(g.log.lines(msg)); n != want {
			t.Errorf("%q is logged %d times", msg, n)
		}
	}
	const keysLost, keysBack = "keys lost: the last good ones stay in use until jwks_max_age", "keys are back"
	eventually(t, 20*time.Second, "three fetches", func() bool { return idp.fetches.Load() >= 3 })
	count(keysLost, 1)
	idp.down.Store(false)
	g.waitReady()
	count(keysBack, 1)

	const feedLost, feedBack = "the revocation file is not followed; what it said so far stays in force", "the revocation file is followed again"
	for round := 1; round <= 2; round++ {
		if err := os.Remove(feed); err != nil {
			t.Fatal(err)
		}
		count(feedLost, round)
		eventually(t, 10*time.Second, "the feed is stale", func() bool {
			return send(t, "GET", g.url("/"), "", bearing(idp.token(nil))).reason() == "denylist_stale"
		})
		count(feedLost, round)
		if err := os.WriteFile(feed, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		count(feedBack, round)
	}

	const reloaded, refused = "the configuration was reloaded", "the configuration was not reloaded; the old one stays"
	good, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	g.write(string(good) + "zebra: 1\n")
	count(refused, 1)
	g.write(string(good))
	count(reloaded, 1)
	count(refused, 1)
	count(keysLost, 1)
	count(keysBack, 1)
}
