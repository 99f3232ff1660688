package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"durward/denylist"
)

// A forwarder is a feed that takes what is revoked here for the whole fleet.
type forwarder interface {
	Forward(ctx context.Context, lines [][]byte, via []string) ([]denylist.Refusal, error)
	Doubts() uint64
}

// forwarder is nil if nothing is to be forwarded there.
func (f *feed) forwarder() forwarder {
	switch {
	case !f.config.ForwardRevocations:
	case f.http != nil:
		return f.http
	case f.stream != nil:
		return f.stream
	}
	return nil
}

// A forwarding hands what was revoked here to a hub, sooner or later.
type forwarding struct {
	log *slog.Logger

	mu      sync.Mutex
	feed    forwarder           // nil: nothing is forwarded
	pending [][]byte            // lines that no hub has taken yet, oldest first
	queued  map[string]struct{} // the same lines
	refused int                 // lines that the hub did not take and never will
	problem string              // of the last of them
}

const (
	// maxPending bounds what waits for a hub; what is more is in the journal, and is
	// forwarded at the next start.
	maxPending = 1_000_000
	// One request takes as many lines, and about as many bytes.
	forwardLines, forwardBytes = 1000, 4 << 20
)

// stream is where revocations are forwarded to, if that is the log of an engine.
func (f *forwarding) stream() *denylist.Stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, _ := f.feed.(*denylist.Stream)
	return s
}

func (f *forwarding) use(feed forwarder) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.feed = feed
}

// now forwards revocations, or leaves them for later. It is false if no hub is
// configured. An error says why they do not hold for the fleet.
func (f *forwarding) now(ctx context.Context, rs []denylist.Revocation, via []string) (configured bool, err error) {
	f.mu.Lock()
	feed := f.feed
	f.mu.Unlock()
	if feed == nil {
		return false, nil
	}
	for all := lines(rs); len(all) > 0; {
		part := first(all)
		all = all[len(part):]
		refused, failed := feed.Forward(ctx, part, via)
		if failed != nil {
			f.later(part)
			err = errors.Join(err, fmt.Errorf("forwarded once a hub takes it: %w", failed))
		}
		if len(refused) > 0 {
			f.refuse(refused)
			err = errors.Join(err, fmt.Errorf("the hub refused %d: %s", len(refused), refused[0].Problem))
		}
	}
	return true, err
}

// first is as much of the lines as one request takes; at least one.
func first(all [][]byte) [][]byte {
	size := 0
	for i, line := range all {
		if size += len(line); i == forwardLines || i > 0 && size > forwardBytes {
			return all[:i]
		}
	}
	return all
}

func lines(rs []denylist.Revocation) [][]byte {
	all := make([][]byte, len(rs))
	for i, r := range rs {
		all[i] = r.Line()
	}
	return all
}

// later leaves lines to run, each once.
func (f *forwarding) later(lines [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, line := range lines {
		if _, waits := f.queued[string(line)]; waits {
			continue
		}
		if len(f.pending) >= maxPending {
			f.log.Error("more revocations wait for a hub than are kept; the rest is in the journal, and is forwarded at the next start", "left_out", len(lines)-i)
			return
		}
		f.pending, f.queued[string(line)] = append(f.pending, line), struct{}{}
	}
}

// refuse sets aside what the hub will not take: it must not hold up the rest.
func (f *forwarding) refuse(refused []denylist.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused += len(refused)
	f.problem = refused[len(refused)-1].Problem
	f.log.Error("a hub refuses what was revoked here; it holds here alone", "lines", len(refused), "problem", refused[0].Problem)
}

// warning is what an operator should know; "" for nothing.
func (f *forwarding) warning() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refused == 0 {
		return ""
	}
	return fmt.Sprintf("the hub refused %d revocations that were made here, which hold here alone; the last: %s", f.refused, f.problem)
}

// run forwards what was left for later, until the context ends. A hub that lost
// its state, or went back, may have lost what it was told: then all that the
// journal holds is told again.
func (f *forwarding) run(ctx context.Context, journal func() [][]byte) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var told forwarder
	var doubts uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		f.mu.Lock()
		feed := f.feed
		f.mu.Unlock()
		if feed == nil {
			continue
		}
		if n := feed.Doubts(); feed != told || n != doubts {
			told, doubts = feed, n
			f.later(journal())
		}
		f.mu.Lock()
		part := slices.Clone(first(f.pending))
		f.mu.Unlock()
		if len(part) == 0 {
			continue
		}
		refused, err := feed.Forward(ctx, part, nil)
		if err != nil {
			f.log.Debug("revocations are not forwarded yet", "pending", len(part), "error", err)
			continue
		}
		if len(refused) > 0 {
			f.refuse(refused)
		}
		f.mu.Lock()
		f.pending = slices.Clone(f.pending[len(part):])
		for _, line := range part {
			delete(f.queued, string(line))
		}
		left := len(f.pending)
		f.mu.Unlock()
		f.log.Info("revocations that no hub had taken were forwarded", "forwarded", len(part)-len(refused), "left", left)
		t.Reset(10 * time.Millisecond)
		if left == 0 {
			t.Reset(time.Second)
		}
	}
}

// journaled are the lines of the journal.
func (f *fleet) journaled() [][]byte {
	if f.journal == "" {
		return nil
	}
	held, err := denylist.ReadJournal(f.journal, slog.New(slog.DiscardHandler)) // what is wrong with it was said at the start
	if err != nil {
		f.log.Error("the journal cannot be read to be forwarded", "error", err)
	}
	return lines(held)
}
