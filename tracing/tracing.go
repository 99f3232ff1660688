// Package tracing makes OpenTelemetry spans of decision records and sends them over
// OTLP/HTTP.
//
//	proxy     takes over or begins the trace, and tells the upstream the span
//	   │      (rec.TraceID, SpanID, ParentID, Sampled)
//	   ▼
//	record ──► Observe ──► span, with its children ──► batch ──► collector
//
// The spans are made when the request is over, from the record that log and metrics
// read, so that the request's walk knows nothing of the SDK, and no trace can say
// what the log does not. They hold no credential, no query string and no subject.
package tracing

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"durward/decision"
	"durward/token"
)

// Config says where spans go. It is the member tracing of the configuration file.
type Config struct {
	// OTLP is the collector's address, such as http://127.0.0.1:4318; without a path,
	// spans go to /v1/traces there. Headers that it asks for are read from the
	// environment, OTEL_EXPORTER_OTLP_HEADERS. Required.
	OTLP string `yaml:"otlp"`
	// Sample is the share of requests that are recorded, from 0 to 1, where no trusted
	// proxy has decided about the trace. Default 1.
	Sample *float64 `yaml:"sample"`
}

// Check fills the defaults in. The error joins a *token.FieldError for every problem
// there is.
func (c *Config) Check() error {
	var problems []error
	u, err := url.Parse(c.OTLP)
	switch {
	case c.OTLP == "":
		problems = append(problems, &token.FieldError{Field: "otlp", Err: errors.New("is missing; write the collector's address, such as http://127.0.0.1:4318")})
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		problems = append(problems, &token.FieldError{Field: "otlp", Err: fmt.Errorf("%q is not an http or https URL; write one, such as http://127.0.0.1:4318", c.OTLP)})
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		problems = append(problems, &token.FieldError{Field: "otlp", Err: errors.New("carries credentials, a query or a fragment; use OTEL_EXPORTER_OTLP_HEADERS for what the collector asks for")})
	}
	if c.Sample == nil {
		all := 1.0
		c.Sample = &all
	}
	if s := *c.Sample; !(s >= 0 && s <= 1) {
		problems = append(problems, &token.FieldError{Field: "sample", Err: fmt.Errorf("%v is no share; write a number from 0 to 1, such as 0.01", s)})
	}
	return errors.Join(problems...)
}

// PlainOffLoopback is whether spans travel in the clear to another machine.
func (c *Config) PlainOffLoopback() bool {
	u, err := url.Parse(c.OTLP)
	return err == nil && u.Scheme == "http" && u.Hostname() != "localhost" && !isLoopback(u.Hostname())
}

// Spans sends what it observes. Only [New] makes one.
type Spans struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// New makes Spans that go where a good configuration says, in batches, from a queue
// of bounded length; what does not fit is dropped. It logs once when the collector
// cannot be reached and once when it is back. Shutdown ends what it starts.
func New(ctx context.Context, c Config, version string, log *slog.Logger) (*Spans, error) {
	u, err := url.Parse(c.OTLP)
	if err != nil {
		return nil, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(5*time.Second),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: 500 * time.Millisecond, MaxInterval: 2 * time.Second, MaxElapsedTime: 4 * time.Second}))
	if err != nil {
		return nil, err
	}
	about := resource.NewSchemaless(attribute.String("service.name", "durward"), attribute.String("service.version", version))
	// What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before.
	if about, err = resource.Merge(about, resource.Environment()); err != nil {
		return nil, err
	}
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(&collector{SpanExporter: exporter, log: log, address: u.Host}, sdk.WithBatchTimeout(time.Second)),
		sdk.WithIDGenerator(ids{}), sdk.WithSampler(sdk.AlwaysSample()), sdk.WithResource(about))
	return &Spans{provider, provider.Tracer("durward")}, nil
}

// Shutdown sends what waits, as long as the context lasts.
func (s *Spans) Shutdown(ctx context.Context) error { return s.provider.Shutdown(ctx) }

// Observe makes the spans of a request that is over, if its trace is recorded: one
// for the gateway's part, and below it one for the decision and one for the time
// until the upstream answered.
func (s *Spans) Observe(rec *decision.Record) {
	if !rec.Sampled {
		return
	}
	traceID, err := trace.TraceIDFromHex(rec.TraceID)
	spanID, spanErr := trace.SpanIDFromHex(rec.SpanID)
	if err != nil || spanErr != nil {
		return
	}
	ctx := context.WithValue(context.Background(), recordIDs{}, own{traceID, spanID})
	if parent, err := trace.SpanIDFromHex(rec.ParentID); err == nil {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: parent, TraceFlags: trace.FlagsSampled, Remote: true}))
	}
	name := rec.Method
	if rec.Route != "" {
		name += " " + rec.Route
	}
	ctx, span := s.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(rec.Time), trace.WithAttributes(attributes(rec)...))
	if rec.Status >= 500 {
		span.SetStatus(codes.Error, string(rec.Reason))
	}
	ctx = context.WithValue(ctx, recordIDs{}, nil) // the children have ids of their own
	decided := rec.Time.Add(rec.Decided)
	_, child := s.tracer.Start(ctx, "decide", trace.WithTimestamp(rec.Time))
	child.End(trace.WithTimestamp(decided))
	if rec.Waited > 0 {
		_, child := s.tracer.Start(ctx, "upstream "+rec.Upstream, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(decided))
		child.End(trace.WithTimestamp(decided.Add(rec.Waited)))
	}
	span.End(trace.WithTimestamp(rec.Time.Add(rec.Took)))
}

// attributes are named by OpenTelemetry's conventions for HTTP as far as they reach.
// Whose token it was is not among them: traces are read by more people than logs.
func attributes(rec *decision.Record) []attribute.KeyValue {
	as := []attribute.KeyValue{
		attribute.String("http.request.method", rec.Method),
		attribute.Int("http.response.status_code", rec.Status),
		attribute.String("durward.verdict", rec.Verdict.String()),
		attribute.String("durward.reason", string(rec.Reason)),
		attribute.String("durward.request_id", rec.ID),
		attribute.Int64("durward.generation", int64(rec.Generation)),
	}
	add := func(key, value string) {
		if value != "" {
			as = append(as, attribute.String(key, value))
		}
	}
	add("server.address", rec.Host)
	add("url.path", rec.Path)
	add("durward.route", rec.Route)
	add("durward.grant", rec.Grant)
	add("durward.issuer", rec.Issuer)
	add("durward.shadow", string(rec.Shadow))
	add("durward.cut", rec.Cut)
	if rec.Client.IsValid() {
		add("client.address", rec.Client.String())
	}
	return as
}

// ids gives a request's span the ids that its record has, which the upstream was
// told already, and other spans random ones.
type ids struct{}

type recordIDs struct{} // context key

type own struct {
	trace trace.TraceID
	span  trace.SpanID
}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if o, ok := ctx.Value(recordIDs{}).(own); ok {
		return o.trace, o.span
	}
	return randomTrace(), randomSpan()
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if o, ok := ctx.Value(recordIDs{}).(own); ok {
		return o.span
	}
	return randomSpan()
}

// A collector logs once that spans are lost, and once that they arrive again.
// Nothing is told to OpenTelemetry's global error handler, which would log each.
type collector struct {
	sdk.SpanExporter
	log     *slog.Logger
	address string
	lost    atomic.Bool
}

// ExportSpans sends a batch. What cannot be sent is dropped.
func (c *collector) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	switch was := c.lost.Swap(err != nil); {
	case err != nil && !was:
		c.log.Warn("spans are lost: the collector does not take them", "collector", c.address, "error", err)
	case err == nil && was:
		c.log.Info("the collector takes spans again", "collector", c.address)
	}
	return nil
}
func randomTrace() (id trace.TraceID) {
	rand.Read(id[:])
	return id
}

func randomSpan() (id trace.SpanID) {
	rand.Read(id[:])
	return id
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
