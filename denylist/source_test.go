package denylist

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

func TestZeroStateIsCold(t *testing.T) {
	var s State
	if s != Cold || s.String() != "cold" {
		t.Errorf("the zero state is %v", s)
	}
}

func TestSourceStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newList(10)
		if got := l.State("", time.Now()); got != Live {
			t.Errorf("without a source: %v, want live", got)
		}
		s := l.Source("f", 5*time.Second)
		expect := func(when string, want State) {
			t.Helper()
			if got := s.State(time.Now()); got != want {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
			if got := l.State("", time.Now()); got != want {
				t.Errorf("%s: the list is %v, want %v", when, got, want)
			}
		}
		expect("registered", Cold)
		if st := s.Status(time.Now()); st.Age >= 0 || st.Synced || st.State != Cold || st.Name != "f" {
			t.Errorf("registered: %+v", st)
		}
		s.Failed(errors.New("no such file"))
		expect("failed at once", Cold)
		s.Begin()
		expect("begun", Syncing)
		time.Sleep(time.Minute)
		expect("begun long ago", Syncing)
		s.Synced(time.Now())
		expect("in step", Live)
		time.Sleep(5 * time.Second)
		expect("at the end of the lease", Live)
		time.Sleep(time.Nanosecond)
		expect("after it", Stale)
		s.Failed(errors.New("gone"))
		if st := s.Status(time.Now()); st.Age != 5*time.Second+1 || !st.Synced || st.Error != "gone" {
			t.Errorf("stale: %+v", st)
		}
		s.Begin()
		expect("begun again", Stale)
		s.Synced(time.Now())
		expect("in step again", Live)
		if st := s.Status(time.Now()); st.Error != "" {
			t.Errorf("in step again: %+v", st)
		}
		s.Refused(2, errors.New("line 7: not UTF-8"))
		expect("lines were refused", Live)
		if st := s.Status(time.Now()); st.Refused != 2 || st.Error != "line 7: not UTF-8" {
			t.Errorf("lines were refused: %+v", st)
		}

		time.Sleep(2 * time.Second)
		s.SetLease(time.Second)
		expect("with a shorter lease", Stale)
		s.SetLease(time.Minute)
		expect("with a longer lease", Live)

		// A machine that slept: only the wall clock went on.
		if got := s.State(time.Now().Round(0).Add(time.Hour)); got != Stale {
			t.Errorf("after a sleep: %v, want stale", got)
		}
	})
}

func TestWorstSourceCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newList(10)
		a, b := l.Source("a", time.Second), l.Source("b", time.Minute)
		a.Synced(time.Now())
		b.Synced(time.Now())
		if got := l.State("", time.Now()); got != Live {
			t.Errorf("both live: %v", got)
		}
		time.Sleep(2 * time.Second)
		if got := l.State("", time.Now()); got != Stale {
			t.Errorf("one stale: %v", got)
		}
		// A route that lets pass while stale must not let pass while one feed never came.
		c := l.Source("c", time.Minute)
		if got := l.State("", time.Now()); got != Cold {
			t.Errorf("one stale, one cold: %v", got)
		}
		c.Begin()
		if got := l.State("", time.Now()); got != Syncing {
			t.Errorf("one stale, one syncing: %v", got)
		}
		l.Remove(c)
		l.Remove(a)
		if got := l.State("", time.Now()); got != Live {
			t.Errorf("those removed: %v", got)
		}
		if got := l.Sources(); len(got) != 1 || got[0] != b || b.Name() != "b" {
			t.Errorf("left are %v", got)
		}
	})
}

func TestFullIsStaleUntilReadAgain(t *testing.T) {
	l := newList(1)
	s := l.Source("f", time.Minute)
	now := time.Now()
	rs := parse(t, `{"jti":"a"}`, `{"jti":"b"}`)
	expect := func(when string, want State) {
		t.Helper()
		if got := s.State(now); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	s.Begin()
	if _, err := s.Apply(rs[:1], now); err != nil {
		t.Fatal(err)
	}
	s.Synced(now)
	expect("while it fits", Live)
	if _, err := s.Apply(rs, now); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want %v", err, ErrFull)
	}
	expect("full", Stale)
	if st := s.Status(now); st.Applied != 2 || st.Error == "" {
		t.Errorf("full: %+v", st)
	}
	s.Synced(now)
	expect("a sign of life does not make room", Stale)
	if _, err := s.Apply(rs[:1], now); err != nil {
		t.Fatal(err)
	}
	s.Synced(now)
	expect("nor do other lines", Stale)
	s.Begin()
	expect("while it reads again", Stale)
	if _, err := s.Apply(rs, now); err == nil {
		t.Fatal("there is room")
	}
	s.Synced(now)
	expect("read again in vain", Stale)
	l.SetMaxEntries(2)
	s.Begin()
	if _, err := s.Apply(rs, now); err != nil {
		t.Fatal(err)
	}
	expect("until it is through", Stale)
	s.Synced(now)
	expect("read again", Live)
}

// What never was in step does not get past a policy for stale lists by being full.
func TestFullBeforeInStepIsSyncing(t *testing.T) {
	l := newList(0)
	s := l.Source("f", time.Minute)
	s.Begin()
	_, _ = s.Apply(parse(t, `{"jti":"a"}`), time.Now())
	s.Synced(time.Now())
	if got := s.State(time.Now()); got != Syncing {
		t.Errorf("got %v, want syncing", got)
	}
}

// A candidate's word counts at once, its silence only once it has joined.
func TestCandidate(t *testing.T) {
	l := newList(10)
	now := time.Now()
	s := l.Candidate("f", time.Minute)
	if got := l.State("", now); got != Live {
		t.Errorf("with a cold candidate: %v, want live", got)
	}
	if _, err := s.Apply(parse(t, `{"jti":"a"}`), now); err != nil {
		t.Fatal(err)
	}
	if l.Check(tokens(t, corp)(map[string]any{"jti": "a"}), now) == 0 {
		t.Error("what a candidate told is not enforced")
	}
	l.Join(s)
	if got := l.State("", now); got != Cold {
		t.Errorf("joined before it is in step: %v, want cold", got)
	}
	s.Synced(now)
	if got := l.State("", now); got != Live {
		t.Errorf("joined and in step: %v, want live", got)
	}
}

// A source that revoked something in a way that this version does not know cannot
// vouch for that issuer, and for no other reason for another.
func TestMarkedIssuer(t *testing.T) {
	l := newList(10)
	now := time.Now()
	s, other := l.Source("f", time.Minute), l.Source("g", time.Minute)
	s.Begin()
	other.Synced(now)
	s.MarkIssuer(corp, true)
	expect := func(when string, corps, partners, whole State) {
		t.Helper()
		for issuer, want := range map[string]State{corp: corps, partner: partners, "": whole} {
			if got := l.State(issuer, now); got != want {
				t.Errorf("%s: %q is %v, want %v", when, issuer, got, want)
			}
		}
	}
	expect("marked while it syncs", Syncing, Syncing, Syncing)
	s.Synced(now)
	expect("in step", Stale, Live, Stale)
	if got := s.Status(now); got.State != Live || len(got.Marked) != 1 || got.Marked[0] != corp {
		t.Errorf("in step: %+v", got)
	}
	s.MarkIssuer(corp, true)
	s.MarkIssuer(partner, false)
	s.MarkIssuer(corp, false)
	expect("no more", Live, Live, Live)
	s.MarkIssuer(partner, true)
	if n := testing.AllocsPerRun(100, func() { l.State(partner, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	expect("the other one", Live, Stale, Stale)
	l.Remove(s)
	expect("without the source", Live, Live, Live)
}

// stepped is a time at which the wall clock was set by so many seconds, while the
// monotonic clock went on as ever. No method of a time can say so.
func stepped(t *testing.T, now time.Time, seconds int64) time.Time {
	t.Helper()
	then := now
	const secondsFrom = 30 // see time.Time: in its first word, above the nanoseconds
	*(*uint64)(unsafe.Pointer(&then)) += uint64(seconds) << secondsFrom
	if then.Sub(now) != 0 || then.Round(0).Sub(now.Round(0)) != time.Duration(seconds)*time.Second {
		t.Fatalf("%v is not %v with its wall clock set by %d s", then, now, seconds)
	}
	return then
}

// A sign of life is worth one lease from when it came, and not more than a lease
// and a second from when it was made, whatever either wall clock does.
func TestVouched(t *testing.T) {
	const lease, never = 5 * time.Second, -1
	// All times are seconds after the start, by true time. A sign of life comes at
	// a time, and was made at another by a clock that is ahead by so much; the own
	// wall clock is ahead by so much when it comes, and when the state is asked.
	type sign struct {
		came, made, makerAhead float64
		ownAhead               int64
	}
	tests := []struct {
		name     string
		signs    []sign
		ownAhead int64 // from then on
		last     float64
	}{
		{"at once", []sign{{0, 0, 0, 0}}, 0, 5},
		{"within the skew", []sign{{1, 0, 0, 0}}, 0, 6},
		{"delayed", []sign{{4, 0, 0, 0}}, 0, 6},
		{"delayed for longer than it is worth", []sign{{7, 0, 0, 0}}, 0, never},
		{"one after the other", []sign{{0, 0, 0, 0}, {1, 1, 0, 0}, {2, 2, 0, 0}}, 0, 7},
		{"replayed", []sign{{0, 0, 0, 0}, {4, 0, 0, 0}}, 0, 6},
		{"replayed again and again", []sign{{0, 0, 0, 0}, {4, 0, 0, 0}, {5, 0, 0, 0}, {6, 0, 0, 0}}, 0, 6},
		{"replayed when it is over", []sign{{0, 0, 0, 0}, {60, 0, 0, 0}}, 0, never},
		{"a delayed one after a fresh one", []sign{{10, 10, 0, 0}, {11, 6, 0, 0}}, 0, 15},
		{"maker ahead", []sign{{0, 0, 600, 0}}, 0, 5},
		{"maker a little behind", []sign{{0, 0, -1, 0}}, 0, 5},
		{"maker behind", []sign{{0, 0, -3, 0}}, 0, 3},
		{"maker far behind", []sign{{0, 0, -600, 0}}, 0, never},
		{"maker set ahead", []sign{{0, 0, 0, 0}, {1, 1, 600, 0}}, 0, 6},
		{"maker set back", []sign{{0, 0, 0, 0}, {1, 1, -600, 0}}, 0, 5},
		{"maker set right from ahead", []sign{{0, 0, 600, 0}, {1, 1, 0, 0}}, 0, 6},
		{"maker set right from behind", []sign{{0, 0, -600, 0}, {1, 1, 0, 0}}, 0, 6},
		{"own clock set ahead", []sign{{0, 0, 0, 0}}, 600, never},
		{"own clock set back", []sign{{0, 0, 0, 0}}, -600, 5},
		{"own clock ahead", []sign{{0, 0, 0, 600}}, 600, never},
		{"own clock behind", []sign{{0, 0, 0, -600}}, -600, 5},
		{"own clock set right from ahead", []sign{{0, 0, 0, 600}}, 0, never}, // it said nothing when it came
		{"own clock set right from ahead, and the next one", []sign{{0, 0, 0, 600}, {1, 1, 0, 0}}, 0, 6},
		{"own clock set right from behind", []sign{{0, 0, 0, -600}}, 0, never},
		{"both behind alike", []sign{{0, 0, -600, -600}}, -600, 5},
		{"own clock set back, and it is replayed", []sign{{0, 0, 0, 0}, {4, 0, 0, -600}}, -600, 9},
	}
	for _, tt := range tests {
		start := time.Now()
		at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
		l := newList(10)
		s := l.Source("f", lease)
		came := 0.0
		for _, sign := range tt.signs {
			came = sign.came
			s.Vouched(stepped(t, at(came), sign.ownAhead), at(sign.made+sign.makerAhead).Round(0))
		}
		live := func(s float64) bool { return l.State("", stepped(t, at(s), tt.ownAhead)) == Live }
		if tt.last == never {
			if live(came) || live(came+0.5) || live(came+4.9) {
				t.Errorf("%s: live", tt.name)
			}
			continue
		}
		if !live(came) || !live(tt.last) || live(tt.last+0.001) || live(tt.last+3600) {
			t.Errorf("%s: live is %v when it came, %v at %v and %v after; want true, true, false", tt.name, live(came), live(tt.last), tt.last, live(tt.last+0.001))
		}
	}
}

// A machine that slept knows nothing, even if its clock and its maker's disagree.
func TestVouchedAfterSleep(t *testing.T) {
	now := time.Now()
	s := newList(10).Source("f", 5*time.Second)
	s.Vouched(now, now.Add(time.Hour))
	if got := s.State(now.Round(0).Add(6 * time.Second)); got != Stale {
		t.Errorf("after a sleep: %v, want stale", got)
	}
	// Vouching does not hide that entries did not fit, as Synced does not.
	full := newList(0).Source("f", time.Minute)
	full.Begin()
	_, _ = full.Apply(parse(t, `{"jti":"a"}`), now)
	full.Vouched(now, now)
	if got := full.State(now); got != Syncing {
		t.Errorf("full: %v, want syncing", got)
	}
}
