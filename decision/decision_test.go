package decision

import (
	"slices"
	"testing"
)

func TestZeroDenies(t *testing.T) {
	var v Verdict
	if v != Deny || v.String() != "deny" {
		t.Errorf("zero verdict is %v", v)
	}
	var r Record
	if r.Verdict != Deny {
		t.Errorf("zero record says %v", r.Verdict)
	}
	if got := Unset.Verdict(); got != Deny {
		t.Errorf("no reason gives %v", got)
	}
	if got := Unset.Status(); got != 500 {
		t.Errorf("no reason gives status %d", got)
	}
	if got := Reason("made up").Verdict(); got != Deny {
		t.Errorf("an unknown reason gives %v", got)
	}
}

func TestOnlyTwoReasonsAllow(t *testing.T) {
	for _, reason := range Reasons() {
		var r Record
		r.Allow(reason)
		want := reason == Public || reason == Allowed
		if got := r.Verdict == Allow; got != want {
			t.Errorf("Allow(%s): allowed is %v, want %v", reason, got, want)
		}
		r = Record{Verdict: Allow, Reason: Allowed}
		r.Refuse(reason, "")
		if r.Verdict == Allow {
			t.Errorf("Refuse(%s) allows", reason)
		}
		if (reason.Status() == 401) != (reason.Verdict() == Challenge) {
			t.Errorf("%s: status %d with verdict %v", reason, reason.Status(), reason.Verdict())
		}
	}
}

func TestTrace(t *testing.T) {
	trace := &Trace{}
	trace.Add("request", "GET %s", "/")
	trace.Pass("route", "%q", "app")
	trace.Fail("grant", "lacks a scope")
	want := []Step{{"request", Plain, "GET /"}, {"route", Passed, `"app"`}, {"grant", Failed, "lacks a scope"}}
	if got := trace.Steps(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var none *Trace
	none.Add("nobody", "listens")
	none.Pass("nobody", "listens")
	none.Fail("nobody", "listens")
	if none.Steps() != nil {
		t.Error("a nil trace collected a step")
	}
}
