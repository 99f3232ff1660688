package test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// overHTTP2 starts a server that speaks HTTP/2 without TLS, and returns its
// address; its counterpart is a client that speaks nothing else.
func overHTTP2(t *testing.T, h http.HandlerFunc) (address string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func clientOverHTTP2() *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// paused is a gateway with three seconds' patience for clients, which is more than a busy
// machine keeps them from sending, and this much for its upstream.
func paused(t *testing.T, idp *issuer, upstream, patience string) *gateway {
	t.Helper()
	return serving(t, guarded(idp, "limits: {idle_timeout: 3s}\nupstreams: {app: {url: %q, timeout: {response_header: %s}}}\nroutes: [{name: all, upstream: app}]\n", upstream, patience))
}

// TestUpstreamPauses has an upstream stop reading for longer than a client may stop
// sending: the upload is as good as before.
func TestUpstreamPauses(t *testing.T) {
	t.Parallel()
	const size = 60 << 20
	idp := newIssuer(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, _ := io.CopyN(io.Discard, r.Body, 1000)
		time.Sleep(4 * time.Second) // the pause is what is tested
		rest, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, first+rest, err)
	}))
	t.Cleanup(app.Close)
	g := paused(t, idp, app.URL, "20s")
	for version, c := range map[string]*http.Client{"HTTP/1": {Timeout: 30 * time.Second}, "HTTP/2": clientOverHTTP2()} {
		req, err := http.NewRequest("POST", g.url("/"), io.LimitReader(zeros{}, size))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = size
		req.Header.Set("Authorization", "Bearer "+idp.token(nil))
		res, err := c.Do(req)
		if err != nil {
			t.Errorf("%s: %v", version, err)
			continue
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if want := fmt.Sprint(int64(size), nil); res.StatusCode != 200 || string(body) != want || err != nil {
			t.Errorf("%s: %s %q, %v; want %q", version, res.Status, body, err, want)
		}
	}
}

// TestClientListens has a client be silent for longer than it may stop sending,
// while the upstream speaks, as in a gRPC call that watches something.
func TestClientListens(t *testing.T) {
	t.Parallel()
	const ticks = 8
	idp := newIssuer(t)
	g := paused(t, idp, "h2c://"+overHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		for range ticks {
			io.WriteString(w, "tick\n")
			http.NewResponseController(w).Flush()
			time.Sleep(500 * time.Millisecond)
		}
		w.Header().Set("Grpc-Status", "0")
	}), "5s")
	subscription, client := io.Pipe()
	defer client.Close()
	req, err := http.NewRequest("POST", g.url("/"), subscription)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+idp.token(nil))
	go io.WriteString(client, "subscribe\n")
	res, err := clientOverHTTP2().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if n := strings.Count(string(body), "\n"); n != ticks || err != nil || res.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%d ticks, %v, trailers %v", n, err, res.Trailer)
	}
}

// TestUpstreamTakesNothing has an upstream over HTTP/2 neither read nor answer:
// flow control stops the upload, and the request is given up.
func TestUpstreamTakesNothing(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	g := paused(t, idp, "h2c://"+overHTTP2(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "1s")
	req, err := http.NewRequest("POST", g.url("/"), io.LimitReader(zeros{}, 50<<20))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+idp.token(nil))
	began := time.Now()
	if res, err := client.Do(req); err == nil {
		res.Body.Close()
		if reason := res.Header.Get("Durward-Reason"); res.StatusCode != 504 || reason != "upstream_timeout" {
			t.Errorf("%s %s", res.Status, reason)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("after %v", took)
	}
	eventually(t, 10*time.Second, "the record is there", func() bool { return strings.Contains(g.log.String(), `"reason":"upstream_timeout"`) })
}
