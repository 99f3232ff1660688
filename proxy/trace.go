package proxy

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"math"
	"net/http"
	"strings"

	"durward/decision"
)

// Tracing says whether requests get spans of their own.
type Tracing struct {
	On     bool
	Sample float64 // the share of requests that are recorded where no trusted proxy decided
}

// trace takes over the trace that the request belongs to (W3C Trace Context), or
// begins one. Anybody may name a trace, as that gives no right; whether it is
// recorded only a trusted proxy may say, as that costs.
func (t Tracing) trace(r *http.Request, trusted bool, rec *decision.Record) {
	trace, parent, sampled := readTraceparent(r.Header["Traceparent"])
	rec.TraceID = trace
	if !t.On {
		return
	}
	var random [24]byte
	rand.Read(random[:])
	if rec.TraceID == "" {
		random[0] |= 1 // all zeros are no id
		rec.TraceID = hex.EncodeToString(random[:16])
	}
	random[16] |= 1
	rec.ParentID, rec.SpanID = parent, hex.EncodeToString(random[16:])
	if trusted && parent != "" {
		rec.Sampled = sampled
		return
	}
	// By the trace's own randomness, so that all gateways agree.
	part, _ := hex.DecodeString(rec.TraceID[16:])
	rec.Sampled = float64(binary.BigEndian.Uint64(part)) < t.Sample*math.MaxUint64 || t.Sample >= 1
}

// passTrace tells the upstream the trace: the gateway's span as the parent if it
// has one, else what came, and nothing of what came in a wrong form.
func passTrace(h http.Header, rec *decision.Record) {
	if rec.TraceID == "" || rec.SpanID != "" && rec.ParentID == "" {
		delete(h, "Tracestate") // that of no trace
	}
	switch {
	case rec.SpanID != "":
		flags := "00"
		if rec.Sampled {
			flags = "01"
		}
		h["Traceparent"] = []string{"00-" + rec.TraceID + "-" + rec.SpanID + "-" + flags}
	case rec.TraceID == "":
		delete(h, "Traceparent")
	}
}

// readTraceparent reads the field (W3C Trace Context section 3.2.2). Of a wrong one,
// or of several, nothing is believed.
func readTraceparent(fields []string) (trace, parent string, sampled bool) {
	const length = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if len(fields) != 1 || len(fields[0]) < length {
		return "", "", false
	}
	s := fields[0]
	version := s[:2]
	trace, parent, flags := s[3:35], s[36:52], s[53:55]
	switch {
	case s[2] != '-' || s[35] != '-' || s[52] != '-':
		return "", "", false
	case !isHex(version) || version == "ff" || !isHex(trace) || !isHex(parent) || !isHex(flags):
		return "", "", false
	case strings.Trim(trace, "0") == "" || strings.Trim(parent, "0") == "":
		return "", "", false
	case len(s) > length && (version == "00" || s[length] != '-'): // later versions may say more
		return "", "", false
	}
	bits, _ := hex.DecodeString(flags)
	return trace, parent, bits[0]&1 == 1
}

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}
