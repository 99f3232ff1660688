package denylist

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"durward/token"
)

// A machine that starts with its clock three days ahead forgets nothing: not of what
// its journal, its files and its snapshot say, if it is not known that it is ahead,
// and nothing of what others tell it even if its own clock vouches for it. It has all
// of that still when the clock is set right, a day and what tokens live later.
func TestClockAheadAtStart(t *testing.T) {
	const idp, ahead = "https://idp.test", 72 * time.Hour
	issuers := Issuers{{URL: idp, MaxLifetime: time.Hour, Leeway: time.Minute, Skew: time.Second}}
	at := func(now time.Time) []Revocation { // all made a moment before now
		before := now.Add(-time.Second)
		return []Revocation{
			{Issuer: idp, Kind: token.KindToken, Value: "a", Expiry: now.Add(time.Minute)},
			{Issuer: idp, Kind: token.KindSubject, Value: "a", Before: before},
			{Issuer: idp, Kind: token.KindSubject, Value: "excepted", Before: before, Except: []string{"sid:x"}},
			{Issuer: idp, Kind: token.KindIssuer, Before: before},
			{Issuer: "https://removed.test", Kind: token.KindToken, Value: "b", Expiry: now.Add(time.Hour)},
		}
	}
	for _, c := range []struct {
		name     string
		known    bool // when it last ran
		deceived bool // it ran with its clock ahead before
		take     func(t *testing.T, l *List, rs []Revocation, made, now time.Time)
		held     int
	}{
		{"the journal", false, false, func(t *testing.T, l *List, rs []Revocation, _, now time.Time) { l.Add(rs, now) }, 5},
		{"the journal, and it has run before", true, false, func(t *testing.T, l *List, rs []Revocation, _, now time.Time) { l.Add(rs, now) }, 5 - 1}, // an exp has passed
		{"a file", false, false, func(t *testing.T, l *List, rs []Revocation, _, now time.Time) {
			l.Source("file", time.Minute).Apply(rs, now)
		}, 5},
		{"a file, and the clock is believed", true, true, func(t *testing.T, l *List, rs []Revocation, _, now time.Time) {
			l.Source("file", time.Minute).Apply(rs, now)
		}, 1}, // the denial of the known issuer; what else could be believed?
		{"the snapshot", false, false, func(t *testing.T, l *List, rs []Revocation, made, _ time.Time) {
			last := New(10)
			last.LastRun(made)
			last.SetIssuers(issuers)
			last.Add(rs, made)
			if _, err := snapshotOf(t, last, SnapshotHeader{}, nil, nil).Restore(l, true); err != nil {
				t.Fatal(err)
			}
		}, 5},
		{"a record", false, false, followed, 5 - 1},
		{"a record, and the clock is believed", true, true, followed, 5 - 1}, // of the issuer that is not configured nobody tells
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				made := time.Now()
				rs := at(made)
				time.Sleep(ahead) // this is how the clock shows it; nothing happens meanwhile
				wrong := time.Now()
				l := New(10)
				if c.deceived {
					l.LastRun(wrong)
				} else if c.known {
					l.LastRun(made)
				}
				l.SetIssuers(issuers)
				c.take(t, l, rs, made, wrong)
				l.Sweep(wrong)
				// Until the last token has expired, by whichever clock.
				time.Sleep(time.Hour + time.Minute)
				l.Sweep(time.Now())
				l.Sweep(time.Now().Add(-ahead))
				if held := l.Stats().Total; held != c.held {
					t.Errorf("%d of %d are held", held, len(rs))
				}
				// Not for ever, though, where nobody asked for that.
				time.Sleep(ahead + loginAge)
				if l.Sweep(time.Now()); l.Stats().Total != 0 {
					t.Errorf("%d are held at the end", l.Stats().Total)
				}
			})
		})
	}
}

// followed takes revocations as a record of a hub whose clock is right.
func followed(t *testing.T, l *List, rs []Revocation, made, now time.Time) {
	t.Helper()
	log := NewLog()
	NewWriter(log, nil, Head{Source: "hub"}, false, made).Publish(rs, made)
	reading, _, _ := log.Read(nil, 1<<20)
	f := NewFollower(FollowerConfig{List: l, Source: l.Source("hub", time.Minute), Mass: true, Lines: slog.New(slog.DiscardHandler)})
	if err := f.Take(reading.Records, now); err != nil {
		t.Fatal(err)
	}
}

// What is written to a journal that somebody removed is not durable, and the
// answer says so.
func TestJournalRemoved(t *testing.T) {
	dir := t.TempDir()
	j, _, err := OpenJournal(dir, slog.New(slog.DiscardHandler), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	r := []Revocation{{Issuer: "https://idp.test", Kind: token.KindToken, Value: "a", Expiry: time.Now().Add(time.Hour)}}
	if err := j.Append(r); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, journalFile)); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(r); err == nil {
		t.Error("said to be durable")
	}
}
