package proxy

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"durward/decision"
	"durward/denylist"
	"durward/policy"
	"durward/token"
)

// serve runs a handler with one open route to the upstream, and returns the
// address and a function that waits for the next record.
func serve(t *testing.T, upstream string, change func(*policy.RouteConfig)) (*Handler, string, func() *decision.Record) {
	t.Helper()
	rc := policy.RouteConfig{Name: "all", Auth: "none"}
	if change != nil {
		change(&rc)
	}
	p, err := policy.Compile([]policy.RouteConfig{rc}, []string{"corp"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := NewUpstream("app", UpstreamConfig{URL: upstream}, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(IdentityConfig{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &Snapshot{
		Generation: 1, Policy: p, Tokens: token.NewVerifier([]*token.Issuer{testIssuer(t)}, nil, 8<<10), Denied: denylist.New(10),
		Routes: []Route{{Upstream: u, Identity: id, Finder: token.Finder{Cookie: "__Host-session", Bearer: true}}},
		Limits: Limits{HeaderBytes: 32 << 10, HeaderFields: 128, CookieBytes: 16 << 10, IdleTimeout: time.Minute},
	}
	s.Prepare()
	records := make(chan *decision.Record, 16)
	h := &Handler{Observe: func(rec *decision.Record) { records <- rec }, Log: slog.New(slog.DiscardHandler)}
	h.Use(s)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return h, server.URL, func() *decision.Record {
		t.Helper()
		select {
		case rec := <-records:
			return rec
		case <-time.After(10 * time.Second):
			t.Fatal("no record")
			return nil
		}
	}
}

// A panic is a bug, and a bug denies.
func TestPanicDenies(t *testing.T) {
	reached := false
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached = true }))
	defer app.Close()
	h, url, next := serve(t, app.URL, nil)
	if res, err := http.Get(url); err != nil || res.StatusCode != 200 || next().Reason != decision.Public {
		t.Fatalf("the twin: %v, %v", res, err)
	}
	reached = false
	broken := *h.Current()
	broken.Routes = nil
	h.Use(&broken)
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	rec := next()
	if res.StatusCode != 500 || rec.Reason != decision.Internal || rec.Verdict != decision.Deny || rec.ID == "" || reached {
		t.Errorf("got %s, record %+v, upstream reached %v", res.Status, rec, reached)
	}
	if strings.Contains(string(body), "index out of range") {
		t.Errorf("the answer tells too much: %s", body)
	}
}

// An upstream that breaks off in the middle leaves one complete record, and the
// client sees the break.
func TestUpstreamBreaksOff(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer app.Close()
	_, url, next := serve(t, app.URL, nil)
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("the client took %q for the whole", body)
	}
	res.Body.Close()
	if rec := next(); rec.Status != 200 || rec.Bytes != 4 || rec.Reason != decision.Public {
		t.Errorf("got %+v", rec)
	}
}

func TestMaxBody(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		io.WriteString(w, strings.Repeat("x", int(n)))
	}))
	defer app.Close()
	_, url, next := serve(t, app.URL, func(rc *policy.RouteConfig) { rc.MaxBody = "10" })
	for _, c := range []struct {
		name   string
		body   io.Reader
		status int
		reason decision.Reason
	}{
		{"fits", strings.NewReader("0123456789"), 200, decision.Public},
		{"announced", strings.NewReader("0123456789a"), 413, decision.TooLarge},
		{"fits, chunked", io.MultiReader(strings.NewReader("0123456789")), 200, decision.Public},
		{"chunked", io.MultiReader(strings.NewReader("0123456789a")), 413, decision.TooLarge},
	} {
		res, err := http.Post(url, "text/plain", c.body)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		res.Body.Close()
		if rec := next(); res.StatusCode != c.status || rec.Reason != c.reason {
			t.Errorf("%s: got %s, %s", c.name, res.Status, rec.Reason)
		}
	}
}

// Decide never allows what was not asked, and never panics, whatever comes.
func FuzzDecide(f *testing.F) {
	p, err := policy.Compile([]policy.RouteConfig{{Name: "closed", Path: "/"}}, []string{"corp"})
	if err != nil {
		f.Fatal(err)
	}
	issuer, err := token.NewIssuer(token.IssuerConfig{Name: "corp", Issuer: "https://corp.test", Audiences: []string{"app"}}, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	id, err := NewIdentity(IdentityConfig{}, nil)
	if err != nil {
		f.Fatal(err)
	}
	s := &Snapshot{
		Policy: p, Tokens: token.NewVerifier([]*token.Issuer{issuer}, nil, 8<<10), Denied: denylist.New(10),
		Routes: []Route{{Upstream: &Upstream{}, Identity: id, Finder: token.Finder{Cookie: "__Host-session", Bearer: true}}},
		Limits: Limits{HeaderBytes: 32 << 10, HeaderFields: 128, CookieBytes: 16 << 10},
	}
	s.Prepare()
	f.Add("GET", "app.test", "/", "Bearer x.y.z", "__Host-session=a.b.c", "websocket")
	f.Add("OPTIONS", "[::1]:80", "/a?b", "Basic x", "", "h2c")
	f.Fuzz(func(t *testing.T, method, host, target, authorization, cookie, upgrade string) {
		r := &http.Request{Method: method, Host: host, RequestURI: target, RemoteAddr: "192.0.2.1:1", ProtoMajor: 1,
			Header: http.Header{"Authorization": {authorization}, "Cookie": {cookie}, "Upgrade": {upgrade}}}
		rec := &decision.Record{Time: time.Now()}
		s.Decide(r, rec)
		if rec.Verdict == decision.Allow || rec.Reason == decision.Unset {
			t.Fatalf("%v (%s) without any key", rec.Verdict, rec.Reason)
		}
	})
}
