package denylist

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"durward/token"
)

// A machine that starts with its clock three days ahead forgets nothing, and
// enforces what its clock takes for long past.
func TestLastRun(t *testing.T) {
	ahead := time.Now()
	lastRun := ahead.Add(-72 * time.Hour) // the time that it is in truth
	line := Revocation{Issuer: "https://idp.test", Kind: token.KindToken, Value: "a", Expiry: lastRun.Add(time.Hour)}
	for _, c := range []struct {
		name string
		last time.Time
		held bool
	}{{"known", lastRun, true}, {"not known", time.Time{}, false}} {
		l := New(10)
		l.LastRun(c.last)
		l.SetIssuers(Issuers{{URL: "https://other.test", MaxLifetime: time.Hour}})
		if _, err := l.Add([]Revocation{line}, ahead); err != nil {
			t.Fatal(err)
		}
		l.Sweep(ahead)
		if _, held := l.Lookup(token.KindToken, line.Issuer, line.Value); held != c.held {
			t.Errorf("%s: held is %v", c.name, held)
		}
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
