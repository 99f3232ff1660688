package main

import (
	"testing"
	"time"

	"durward/decision"
)

func TestSampler(t *testing.T) {
	var s sampler
	start := time.Unix(1_790_000_000, 0)
	passed := map[decision.Reason]int{}
	for i := range 1000 {
		now := start.Add(time.Duration(i) * 2 * time.Millisecond) // two seconds
		for _, reason := range []decision.Reason{decision.NoToken, decision.Revoked} {
			if s.pass(reason, now, 100) {
				passed[reason]++
			}
		}
	}
	if !s.pass(decision.Forbidden, start.Add(2*time.Second), 1) || s.pass(decision.Forbidden, start.Add(2*time.Second), 1) {
		t.Error("one a second")
	}
	left := s.leftOut()
	for _, reason := range []decision.Reason{decision.NoToken, decision.Revoked} {
		if passed[reason] != 200 || left[reason] != 800 {
			t.Errorf("%s: %d passed, %d left out", reason, passed[reason], left[reason])
		}
	}
	if len(left) != 3 || left[decision.Forbidden] != 1 || s.leftOut() != nil {
		t.Errorf("left out: %v", left)
	}
}
