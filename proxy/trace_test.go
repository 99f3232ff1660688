package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"durward/decision"
)

const (
	someTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	someParent = "00f067aa0ba902b7"
	someHeader = "00-" + someTrace + "-" + someParent + "-01"
)

func TestTraceparent(t *testing.T) {
	for _, c := range []struct {
		name, field string
		ok, sampled bool
	}{
		{"as it should be", someHeader, true, true},
		{"not sampled", strings.TrimSuffix(someHeader, "1") + "0", true, false},
		{"random flag", strings.TrimSuffix(someHeader, "01") + "02", true, false},
		{"a later version", "01" + someHeader[2:], true, true},
		{"a later version with more", "cc" + someHeader[2:] + "-what-the-future-brings", true, true},
		{"version 00 with more", someHeader + "-more", false, false},
		{"a later version that runs on", "cc" + someHeader[2:] + ".more", false, false},
		{"version ff", "ff" + someHeader[2:], false, false},
		{"upper case", strings.ToUpper(someHeader), false, false},
		{"no trace", "00-" + strings.Repeat("0", 32) + "-" + someParent + "-01", false, false},
		{"no parent", "00-" + someTrace + "-" + strings.Repeat("0", 16) + "-01", false, false},
		{"too short", someHeader[:54], false, false},
		{"no hex", strings.Replace(someHeader, "b", "g", 1), false, false},
		{"other separators", strings.ReplaceAll(someHeader, "-", "_"), false, false},
		{"empty", "", false, false},
	} {
		trace, parent, sampled := readTraceparent([]string{c.field})
		if ok := trace == someTrace && parent == someParent; ok != c.ok || sampled != c.sampled || !ok && trace+parent != "" {
			t.Errorf("%s: %q, %q, %v", c.name, trace, parent, sampled)
		}
	}
	if trace, _, _ := readTraceparent([]string{someHeader, someHeader}); trace != "" {
		t.Error("a field that stands twice is believed")
	}
}

// What is passed on is of the right form, whatever came, and tracing or not.
func FuzzTraceparent(f *testing.F) {
	f.Add(someHeader, true)
	f.Add("cc"+someHeader[2:]+"-x", false)
	f.Add("", true)
	f.Fuzz(func(t *testing.T, field string, on bool) {
		h := http.Header{"Traceparent": {field}, "Tracestate": {"vendor=1"}}
		rec := &decision.Record{}
		Tracing{On: on, Sample: 0.5}.trace(&http.Request{Header: h}, true, rec)
		passTrace(h, rec)
		out := h["Traceparent"]
		trace, parent, sampled := readTraceparent(out)
		came, _, _ := readTraceparent([]string{field})
		switch {
		case on && (trace == "" || parent != rec.SpanID || sampled != rec.Sampled || came != "" && trace != came):
			t.Errorf("%q becomes %q", field, out)
		case !on && came == "" && (out != nil || h["Tracestate"] != nil):
			t.Errorf("%q becomes %q with state %q", field, out, h["Tracestate"])
		case !on && came != "" && fmt.Sprint(out) != "["+field+"]":
			t.Errorf("%q becomes %q", field, out)
		}
		if came != "" && h["Tracestate"] == nil {
			t.Error("the state of a good trace is lost")
		}
	})
}

func TestTraceSampling(t *testing.T) {
	count := func(tracing Tracing, trusted bool, fields ...string) (n int) {
		for range 2000 {
			rec := &decision.Record{}
			h := http.Header{}
			if fields != nil {
				h["Traceparent"] = fields
			}
			tracing.trace(&http.Request{Header: h}, trusted, rec)
			if rec.Sampled {
				n++
			}
		}
		return n
	}
	off := strings.TrimSuffix(someHeader, "1") + "0"
	for _, c := range []struct {
		name     string
		got      int
		low, top int
	}{
		{"all", count(Tracing{true, 1}, false), 2000, 2000},
		{"none", count(Tracing{true, 0}, false), 0, 0},
		{"a fourth", count(Tracing{true, 0.25}, false), 350, 650},
		{"a trusted proxy wants it", count(Tracing{true, 0}, true, someHeader), 2000, 2000},
		{"a trusted proxy does not", count(Tracing{true, 1}, true, off), 0, 0},
		{"a stranger wants it", count(Tracing{true, 0}, false, someHeader), 0, 0},
		{"a stranger does not", count(Tracing{true, 1}, false, off), 2000, 2000},
		{"off", count(Tracing{}, true, someHeader), 0, 0},
	} {
		if c.got < c.low || c.got > c.top {
			t.Errorf("%s: %d of 2000", c.name, c.got)
		}
	}
}
