package decision

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"
)

// A Record is everything about one request: begun on arrival, filled in by the
// walk, completed after the last byte, and read once by each of log, metrics and
// traces. It holds no credential and no query string.
type Record struct {
	Time       time.Time // of arrival; every check of this request uses it
	ID         string    // request id
	Generation uint64    // of the configuration that decided

	TraceID  string // W3C Trace Context, in hex; "" without a trace
	SpanID   string // of the gateway's own span; "" without tracing
	ParentID string // the span that the client named; "" for none
	Sampled  bool   // the span is to be recorded

	Method, Host, Path string     // as judged; as received where they could not be judged
	Client             netip.Addr // the client, as far as trusted proxies vouch for it

	Route, Grant                      string // names; the grant by its place, "allow[1]"
	Issuer, Subject, Session, TokenID string // of the verified token, if any

	Verdict Verdict
	Reason  Reason
	Shadow  Reason  // what a route under trial (shadow: true) would have answered
	Detail  string  // for the operator; never sent to the client
	Remedy  *Remedy // what would do instead; nil where nothing can be said

	Upstream string
	Status   int    // sent to the client; 499 if it was gone
	Bytes    int64  // of response body sent
	Cut      string // why a request in progress was ended; "" if it was not
	Decided  time.Duration
	Waited   time.Duration // for the upstream's response header
	Took     time.Duration

	Trace *Trace // nil unless somebody asked why
}

// A Remedy says what the client could come back with.
type Remedy struct {
	Methods []string      // for Allow (RFC 9110 section 10.2.1)
	Scopes  []string      // RFC 6750 section 3
	ACR     []string      // RFC 9470 section 3
	MaxAge  time.Duration // RFC 9470 section 3; 0: not asked for
}

// Refuse sets the verdict that goes with the reason. The detail is for the
// operator alone. Refusing overrides whatever was said before.
func (r *Record) Refuse(reason Reason, detail string) {
	if reason.Verdict() == Allow || reason == Unset {
		reason, detail = Internal, fmt.Sprintf("refused for %q: %s", reason, detail)
	}
	r.Verdict, r.Reason, r.Detail = reason.Verdict(), reason, detail
}

// Allow lets the request through. The reason is Public or Allowed; any other is
// a bug, and refuses.
func (r *Record) Allow(reason Reason) {
	if reason.Verdict() != Allow {
		r.Refuse(Internal, fmt.Sprintf("allowed for %q", reason))
		return
	}
	r.Verdict, r.Reason, r.Detail = Allow, reason, ""
}

// LogValue is the record as one log line: no credential, no query string, and
// only the members that say something.
func (r *Record) LogValue() slog.Value {
	as := make([]slog.Attr, 0, 25)
	str := func(key, value string) {
		if value != "" {
			as = append(as, slog.String(key, value))
		}
	}
	str("id", r.ID)
	str("trace_id", r.TraceID)
	as = append(as, slog.Uint64("generation", r.Generation))
	str("method", r.Method)
	str("host", r.Host)
	str("path", r.Path)
	if r.Client.IsValid() {
		as = append(as, slog.String("client", r.Client.String()))
	}
	str("route", r.Route)
	str("grant", r.Grant)
	str("issuer", r.Issuer)
	str("subject", r.Subject)
	str("session", r.Session)
	str("token_id", r.TokenID)
	str("verdict", r.Verdict.String())
	str("reason", string(r.Reason))
	str("shadow", string(r.Shadow))
	str("detail", r.Detail)
	str("upstream", r.Upstream)
	str("cut", r.Cut)
	as = append(as,
		slog.Int("status", r.Status),
		slog.Int64("bytes", r.Bytes),
		slog.Duration("decided", r.Decided),
		slog.Duration("waited", r.Waited),
		slog.Duration("took", r.Took))
	return slog.GroupValue(as...)
}

// AppendJSON appends what LogValue says, as JSON: there is a line for each request,
// and putting it together out of attributes costs several times as much.
func (r *Record) AppendJSON(b []byte) []byte {
	b = append(b, '{')
	b = appendMember(b, "id", r.ID)
	b = appendMember(b, "trace_id", r.TraceID)
	b = strconv.AppendUint(appendName(b, "generation"), r.Generation, 10)
	b = appendMember(b, "method", r.Method)
	b = appendMember(b, "host", r.Host)
	b = appendMember(b, "path", r.Path)
	if r.Client.IsValid() {
		b = append(r.Client.AppendTo(append(appendName(b, "client"), '"')), '"')
	}
	b = appendMember(b, "route", r.Route)
	b = appendMember(b, "grant", r.Grant)
	b = appendMember(b, "issuer", r.Issuer)
	b = appendMember(b, "subject", r.Subject)
	b = appendMember(b, "session", r.Session)
	b = appendMember(b, "token_id", r.TokenID)
	b = appendMember(b, "verdict", r.Verdict.String())
	b = appendMember(b, "reason", string(r.Reason))
	b = appendMember(b, "shadow", string(r.Shadow))
	b = appendMember(b, "detail", r.Detail)
	b = appendMember(b, "upstream", r.Upstream)
	b = appendMember(b, "cut", r.Cut)
	b = strconv.AppendInt(appendName(b, "status"), int64(r.Status), 10)
	b = strconv.AppendInt(appendName(b, "bytes"), r.Bytes, 10)
	b = strconv.AppendInt(appendName(b, "decided"), int64(r.Decided), 10)
	b = strconv.AppendInt(appendName(b, "waited"), int64(r.Waited), 10)
	b = strconv.AppendInt(appendName(b, "took"), int64(r.Took), 10)
	return append(b, '}')
}

func appendName(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	return append(append(append(b, '"'), name...), `":`...)
}

// appendMember leaves empty strings out.
func appendMember(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = appendName(b, name)
	for i := 0; i < len(value); i++ {
		if c := value[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			quoted, err := json.Marshal(value)
			if err != nil {
				panic(err) // no string fails
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), value...), '"')
}

// A Trace collects the steps of one decision. A nil Trace collects nothing, so
// that the walk can speak without asking whether anybody listens; where making
// the arguments costs something, ask first.
type Trace struct{ steps []Step }

// A Step is one comparison that the walk made: the stage, and what was found.
type Step struct {
	Name string `json:"step"`
	Mark Mark   `json:"mark,omitempty"`
	Text string `json:"found"`
}

// A Mark says how a comparison went.
type Mark string

const (
	Plain  Mark = ""   // a fact, nothing was asked of it
	Passed Mark = "ok" // what was asked for is there
	Failed Mark = "no" // it is not
)

// Add appends a fact. It does nothing on a nil Trace.
func (t *Trace) Add(name, format string, args ...any) { t.add(name, Plain, format, args) }

// Pass appends a comparison that went well. It does nothing on a nil Trace.
func (t *Trace) Pass(name, format string, args ...any) { t.add(name, Passed, format, args) }

// Fail appends a comparison that did not. It does nothing on a nil Trace.
func (t *Trace) Fail(name, format string, args ...any) { t.add(name, Failed, format, args) }

func (t *Trace) add(name string, mark Mark, format string, args []any) {
	if t != nil {
		t.steps = append(t.steps, Step{name, mark, fmt.Sprintf(format, args...)})
	}
}

// Steps are the steps so far, in order.
func (t *Trace) Steps() []Step {
	if t == nil {
		return nil
	}
	return t.steps
}
