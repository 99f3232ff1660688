package test

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// A collector receives spans over OTLP/HTTP.
type collector struct {
	*httptest.Server
	down  atomic.Bool
	mu    sync.Mutex
	spans []*tracepb.Span
	names map[string]bool // service.name of what sent them
	text  strings.Builder // everything that came
}

func newCollector(t *testing.T) *collector {
	c := &collector{names: map[string]bool{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var in collectorpb.ExportTraceServiceRequest
		switch {
		case c.down.Load():
			http.Error(w, "down", http.StatusBadRequest) // which is not tried again
			return
		case r.Method != "POST" || r.URL.Path != "/v1/traces" || err != nil || proto.Unmarshal(body, &in) != nil:
			http.Error(w, "no spans", http.StatusNotFound)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		fmt.Fprint(&c.text, &in)
		for _, rs := range in.ResourceSpans {
			for _, kv := range rs.Resource.Attributes {
				if kv.Key == "service.name" {
					c.names[kv.Value.GetStringValue()] = true
				}
			}
			for _, ss := range rs.ScopeSpans {
				c.spans = append(c.spans, ss.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(c.Close)
	return c
}

// of are the spans of a trace, by name.
func (c *collector) of(trace string) map[string]*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := map[string]*tracepb.Span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) == trace {
			found[s.Name] = s
		}
	}
	return found
}

func attributesOf(s *tracepb.Span) map[string]string {
	as := map[string]string{}
	for _, kv := range s.Attributes {
		if as[kv.Key] = kv.Value.GetStringValue(); as[kv.Key] == "" {
			as[kv.Key] = fmt.Sprint(kv.Value.GetIntValue())
		}
	}
	return as
}

// TestSpans follows a request from the client's trace through the gateway to the
// upstream, and a refused one that begins a trace.
func TestSpans(t *testing.T) {
	t.Parallel()
	idp, app, spans := newIssuer(t), newUpstream(t), newCollector(t)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
tracing: {otlp: %q}
issuers: [%s]
routes: [{name: app, upstream: %q}]
`, spans.URL, corp(idp), app.URL))
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	token := idp.token(nil)
	a := send(t, "GET", g.url("/x?secret-query=1"), "", bearing(token), "Traceparent: 00-"+trace+"-"+parent+"-01", "Tracestate: vendor=1")
	got := app.last(t).Header
	passed := strings.Split(got.Get("Traceparent"), "-")
	if len(passed) != 4 || passed[1] != trace || passed[2] == parent || passed[3] != "01" || got.Get("Tracestate") != "vendor=1" {
		t.Fatalf("the upstream received %q with state %q", got["Traceparent"], got["Tracestate"])
	}
	eventually(t, 20*time.Second, "the spans arrive", func() bool { return len(spans.of(trace)) == 3 })
	all := spans.of(trace)
	server, decide, upstream := all["GET app"], all["decide"], all["upstream "+app.URL]
	if server == nil || decide == nil || upstream == nil {
		t.Fatalf("the spans are %v", all)
	}
	if hex.EncodeToString(server.SpanId) != passed[2] || hex.EncodeToString(server.ParentSpanId) != parent || server.Kind != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("the gateway's span is %v", server)
	}
	for _, child := range []*tracepb.Span{decide, upstream} {
		if string(child.ParentSpanId) != string(server.SpanId) || string(child.SpanId) == string(server.SpanId) || child.StartTimeUnixNano < server.StartTimeUnixNano || child.EndTimeUnixNano > server.EndTimeUnixNano || child.EndTimeUnixNano < child.StartTimeUnixNano {
			t.Errorf("the child %v is not inside of %v", child, server)
		}
	}
	as := attributesOf(server)
	for key, want := range map[string]string{"http.request.method": "GET", "http.response.status_code": "200", "url.path": "/x", "durward.route": "app", "durward.verdict": "allow", "durward.reason": "allowed", "durward.issuer": "corp", "durward.request_id": a.Header.Get("X-Request-Id"), "client.address": "127.0.0.1"} {
		if as[key] != want {
			t.Errorf("%s is %q, want %q", key, as[key], want)
		}
	}

	refused := send(t, "POST", g.url("/y?secret-query=1"), "")
	var id string
	eventually(t, 10*time.Second, "the refusal is logged", func() bool {
		for _, line := range g.log.lines("request") {
			if rec := line["decision"].(map[string]any); rec["id"] == refused.Header.Get("X-Request-Id") {
				id, _ = rec["trace_id"].(string)
			}
		}
		return id != ""
	})
	eventually(t, 20*time.Second, "its spans arrive", func() bool { return len(spans.of(id)) == 2 })
	if s := spans.of(id)["POST app"]; s == nil || len(s.ParentSpanId) != 0 || attributesOf(s)["durward.reason"] != "no_token" || attributesOf(s)["http.response.status_code"] != "401" {
		t.Errorf("the refusal's span is %v", s)
	}
	// A trace that is not recorded is passed on all the same.
	unrecorded := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
tracing: {otlp: %q, sample: 0}
issuers: [%s]
routes: [{name: app, upstream: %q}]
`, spans.URL, corp(idp), app.URL))
	send(t, "GET", unrecorded.url("/"), "", bearing(token), "Traceparent: 00-"+strings.Replace(trace, "4", "5", 1)+"-"+parent+"-01")
	if got := app.last(t).Header.Get("Traceparent"); !strings.HasPrefix(got, "00-5bf9") || !strings.HasSuffix(got, "-00") || strings.Contains(got, parent) {
		t.Errorf("not recorded: the upstream received %q", got)
	}
	unrecorded.stop() // and sends what waits
	if n := len(spans.of(strings.Replace(trace, "4", "5", 1))); n != 0 {
		t.Errorf("%d spans of a trace that is not recorded", n)
	}
	spans.mu.Lock()
	defer spans.mu.Unlock()
	for _, secret := range append(strings.Split(token, "."), "secret-query", "alice") {
		if strings.Contains(spans.text.String(), secret) {
			t.Errorf("the spans contain %q", secret)
		}
	}
	if !spans.names["durward"] {
		t.Errorf("the services are %v", spans.names)
	}
}

// TestCollectorAway: requests do not wait for a collector that is away, the log says
// so once, and what waits at the end is sent.
func TestCollectorAway(t *testing.T) {
	t.Parallel()
	idp, app, spans := newIssuer(t), newUpstream(t), newCollector(t)
	spans.down.Store(true)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
tracing: {otlp: "%s/v1/traces"}
issuers: [%s]
routes: [{name: app, upstream: %q}]
`, spans.URL, corp(idp), app.URL))
	bearer := bearing(idp.token(nil))
	const lost, back = "spans are lost: the collector does not take them", "the collector takes spans again"
	send(t, "GET", g.url("/"), "", bearer)
	eventually(t, 20*time.Second, lost, func() bool { return len(g.log.lines(lost)) == 1 })
	send(t, "GET", g.url("/"), "", bearer)
	spans.down.Store(false)
	eventually(t, 20*time.Second, back, func() bool {
		send(t, "GET", g.url("/"), "", bearer)
		return len(g.log.lines(back)) == 1
	})
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	send(t, "GET", g.url("/"), "", bearer, "Traceparent: 00-"+trace+"-00f067aa0ba902b7-01")
	g.stop()
	if len(spans.of(trace)) != 3 {
		t.Errorf("the last spans are %v", spans.of(trace))
	}
	if n, m := len(g.log.lines(lost)), len(g.log.lines(back)); n != 1 || m != 1 {
		t.Errorf("lost is logged %d times, back %d times", n, m)
	}
}
