package denylist

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"durward/token"
)

// What is learned from others is kept for as long as it is needed here, whatever
// their clocks and limits said, now or when it was revoked.
func TestRetentionOfOthers(t *testing.T) {
	one := []Revocation{{Issuer: corp, Kind: token.KindToken, Value: "X"}}
	life := limits().MaxLifetime
	kept := func(t *testing.T, l *List) {
		t.Helper()
		e, ok := l.Lookup(token.KindToken, corp, "X")
		if !ok || time.Until(e.Until) < life {
			t.Errorf("kept: %t, for %v of %v", ok, time.Until(e.Until), life)
		}
	}
	follower := func(l *List) *Follower {
		return NewFollower(FollowerConfig{List: l, Source: l.Source("feed", lease), Mass: true, Lines: slog.New(slog.DiscardHandler)})
	}
	for _, tt := range []struct {
		name   string
		before func(hub *List)
		passes time.Duration // by the follower's clock, between the revocation and the snapshot
	}{
		{"as it is here", func(*List) {}, 0},
		{"the hub's clock is behind", func(*List) {}, time.Hour},
		{"the follower's clock is so far ahead that it would be over", func(*List) {}, life + 2*time.Hour},
		{"the hub's limit was lower then", func(hub *List) { hub.SetIssuers(Issuers{{URL: corp, MaxLifetime: time.Hour}}) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newList(100)
				tt.before(hub)
				if _, err := hub.Add(one, time.Now()); err != nil {
					t.Fatal(err)
				}
				hub.SetIssuers(Issuers{limits()})
				s := snapshotOf(t, hub, SnapshotHeader{Made: time.Now()}, nil, nil)
				time.Sleep(tt.passes)
				here := newList(100)
				here.LastRun(time.Now())
				if err := follower(here).Load(s); err != nil {
					t.Fatal(err)
				}
				kept(t, here)
			})
		})
	}
	t.Run("a record from a clock that is right, and this one is behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			right := time.Now().Add(30 * time.Minute)
			log := NewLog()
			w := NewWriter(log, nil, Head{Source: "hub"}, false, right)
			w.Publish(one, right)
			here := newList(100)
			reading, _, _ := log.Read(nil, 1<<20)
			if err := follower(here).Take(reading.Records, time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Minute)
			next := newList(100)
			if _, err := snapshotOf(t, here, SnapshotHeader{}, nil, nil).Restore(next, true); err != nil {
				t.Fatal(err)
			}
			kept(t, next)
		})
	})
}

// Whoever carries signed records can make a chain be lost, but not forgotten: not
// by a snapshot of another source, and not across a restart.
func TestLostSourceStaysNeeded(t *testing.T) {
	a, b := record("a", key(1), Head{}, 5, begin().Add(-time.Minute)), record("b", key(2), Head{}, 5, begin())
	again := record("a", key(1), Head{"a", a.writer.head.Epoch, 5}, 3, begin())
	now := time.Now()
	r := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
	r.take("both", now, nil, slices.Concat(a.records[1:], b.records[1:], [][]byte{a.beats[5], b.beats[5]})...)
	r.take("the first record of the new chain is held back", now, ErrLost, again.records[2])
	without := snapshotOf(t, newList(100), SnapshotHeader{Places: []Place{b.writer.Place()}}, key(2), public(1, 2))
	if err := r.Load(without); err != nil {
		t.Fatal(err)
	}
	later := now.Add(20 * time.Second)
	b.writer.Beat(later)
	alone := b.log.chains["b"].beat
	r.take("the other source alone", later, nil, alone)
	if r.list.State("", later) == Live {
		t.Error("live without a source that was followed")
	}

	next := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
	next.Resume(r.Places())
	next.take("the other source alone, after a restart", later, nil, alone)
	if state := next.list.State("", later); state == Live {
		t.Error("after a restart it is live without a source that was followed")
	}
	// With a snapshot that speaks of it, all is well.
	with := snapshotOf(t, newList(100), SnapshotHeader{Places: []Place{again.writer.Place(), b.writer.Place()}}, key(1), public(1, 2))
	if err := next.Load(with); err != nil {
		t.Fatal(err)
	}
	again.writer.Beat(later)
	next.take("both again", later, nil, again.log.chains["a"].beat, alone)
	next.state("both again", later, Live)
}

// A hub that has no state is a new source at each start; its followers bear that
// for ever.
func TestManyHubs(t *testing.T) {
	r := newReader(t, FollowerConfig{Mass: true})
	for i := range maxChains + 10 {
		now := time.Now()
		log := NewLog()
		w := NewWriter(log, nil, Head{Source: fmt.Sprint("hub-", i)}, false, now)
		w.Beat(now)
		if err := r.Load(snapshotOf(t, newList(10), SnapshotHeader{Places: log.Places()}, nil, nil)); err != nil {
			t.Fatal(err)
		}
		reading, _, ok := log.Read([]Head{w.Place().Head}, 1<<20)
		if !ok {
			t.Fatal("the end of the chain is not known")
		}
		r.take(fmt.Sprint("hub ", i), now, nil, reading.Beats...)
	}
	if n := len(r.Places()); n > maxChains {
		t.Errorf("%d places are kept", n)
	}
}
