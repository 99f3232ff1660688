package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"durward/decision"
)

// A sampler keeps floods of refusals out of the log. Each second it lets the first
// lines of each reason pass, and then says how many it left out; every one of them
// is in the metrics.
type sampler struct {
	mu     sync.Mutex
	second int64 // of the Unix time
	seen   map[decision.Reason]int
	left   map[decision.Reason]int // of those seen, not logged
}

// pass tells whether a refusal at this time is among the first of its reason.
func (s *sampler) pass(reason decision.Reason, now time.Time, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if second := now.Unix(); second != s.second || s.seen == nil {
		s.second, s.seen = second, map[decision.Reason]int{}
	}
	if s.seen[reason]++; s.seen[reason] <= most {
		return true
	}
	if s.left == nil {
		s.left = map[decision.Reason]int{}
	}
	s.left[reason]++
	return false
}

// leftOut is how many were not logged since it was asked last.
func (s *sampler) leftOut() map[decision.Reason]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.left
	s.left = nil
	return left
}

// run says each second what was left out, until the context ends, and then once
// more.
func (s *sampler) run(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = true
		}
		for reason, count := range s.leftOut() {
			log.Warn("refusals were left out of the log", "reason", reason, "count", count)
		}
	}
}
