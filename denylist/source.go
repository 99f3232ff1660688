package denylist

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// skew is how far the clock of who vouches for a feed may lag behind this one
// without shortening the lease.
const skew = time.Second

// A State says how far a source, or the whole list, may be trusted to know what
// was revoked. Its zero value is Cold, which no policy lets pass.
type State uint8

const (
	Cold    State = iota // nothing was ever heard
	Syncing              // begun, and not yet in step once
	Live                 // in step, and heard from within the lease
	Stale                // was in step once; silent for longer than the lease, or its entries do not all fit
)

// String is the state as status pages and metric labels spell it.
func (s State) String() string {
	switch s {
	case Syncing:
		return "syncing"
	case Live:
		return "live"
	case Stale:
		return "stale"
	}
	return "cold"
}

// worse orders states by how little they vouch for. A stale source knew
// everything once; one that was never in step knows nothing yet, so that Cold
// and Syncing must not hide behind it.
func (s State) worse(than State) bool {
	rank := func(s State) int {
		switch s {
		case Live:
			return 3
		case Stale:
			return 2
		case Syncing:
			return 1
		}
		return 0
	}
	return rank(s) < rank(than)
}

// A Source is what one feed told the list, and when it was last heard from. Only
// [List.Source] and [List.Candidate] make one. All methods may be called at any time by anybody.
//
// A feed says Begin when it starts to read, Apply for what it reads, and Synced
// when it has read everything there is; again and again, or, once in step, Apply
// and Synced alone.
type Source struct {
	list  *List
	name  string
	write sync.Mutex             // held to change what now points to
	now   atomic.Pointer[vitals] // never nil, never changed: State is asked on every request
}

type vitals struct {
	lease  time.Duration
	begun  bool
	synced bool      // in step once
	last   time.Time // sign of life; says something if synced
	made   time.Time // when it was made, by the clock of its maker; zero if that is not told

	full bool // entries were refused for lack of room and have not been taken since
	lost bool // the same, since the last Begin

	marked []string // issuers that it cannot vouch for; never changed

	applied, refused uint64
	failure, refusal error // the last of each; the failure until the next sign of life
}

func (s *Source) change(f func(*vitals)) {
	s.write.Lock()
	defer s.write.Unlock()
	v := *s.now.Load()
	f(&v)
	s.now.Store(&v)
}

// Name is the feed's name in the configuration.
func (s *Source) Name() string { return s.name }

// SetLease changes how long the source stays live after a sign of life.
func (s *Source) SetLease(lease time.Duration) { s.change(func(v *vitals) { v.lease = lease }) }

// Begin says that the feed starts to read: from its beginning, or from the first
// thing that could not be applied.
func (s *Source) Begin() {
	s.change(func(v *vitals) { v.begun, v.lost = true, false })
}

// Apply adds revocations to the list; once it returns, they are enforced. It
// only ever adds. An error wraps ErrFull: what fits was added all the same, and
// the source is stale until a reading without such an error, Begin to Synced, has
// brought what is missing. The news are those of [List.Add].
func (s *Source) Apply(rs []Revocation, now time.Time) (news []Revocation, err error) {
	return s.apply(rs, now, false)
}

func (s *Source) apply(rs []Revocation, now time.Time, foreign bool) (news []Revocation, err error) {
	news, left, err := s.list.apply(rs, now, foreign)
	s.change(func(v *vitals) {
		v.applied += uint64(len(rs) - left)
		if err != nil {
			v.full, v.lost, v.failure = true, true, err
		}
	})
	return news, err
}

// Synced says that everything there is to know at this time was applied. The
// lease starts anew.
func (s *Source) Synced(now time.Time) { s.Vouched(now, time.Time{}) }

// Vouched is [Source.Synced] on the word of somebody who made it elsewhere, at the
// time made by its own clock. The lease ends one lease after it came, by either
// clock of this machine, or one lease and a second after it was made, whichever
// comes first. So one that was held up or is replayed does not prolong the lease,
// and a step of the wall clock, there or here, at most ends it early. One that
// would end the lease earlier than the last changes nothing: both are true. One
// whose lease had ended before it came shows that the source was in step with what
// was known then, which is not to have been in step.
func (s *Source) Vouched(now, made time.Time) {
	s.change(func(v *vitals) {
		if v.lost {
			return // the feed is in step, the list is not
		}
		n := vitals{lease: v.lease, last: now, made: made}
		if !v.synced && n.left(now) < 0 {
			v.begun = true
			return
		}
		if !v.synced || n.left(now) >= v.left(now) {
			v.last, v.made = n.last, n.made
		}
		v.begun, v.synced, v.full, v.failure = true, true, false, nil
	})
}

// MarkIssuer says whether the source cannot vouch for an issuer, whatever its
// signs of life: it revoked something of the issuer's in a way that this version
// does not know.
func (s *Source) MarkIssuer(url string, stale bool) {
	s.change(func(v *vitals) {
		i := slices.Index(v.marked, url)
		switch {
		case stale && i < 0:
			v.marked = append(slices.Clone(v.marked), url)
		case !stale && i >= 0:
			v.marked = slices.Delete(slices.Clone(v.marked), i, i+1)
		}
	})
}

// Failed remembers for Status why the feed cannot be read. It changes no state:
// what was learned stays valid until the lease ends.
func (s *Source) Failed(err error) { s.change(func(v *vitals) { v.failure = err }) }

// Refused counts lines that were not understood, and remembers why the last one
// was not.
func (s *Source) Refused(n int, err error) {
	s.change(func(v *vitals) {
		v.refused += uint64(n)
		v.refusal = err
	})
}

// State is how fresh the source is; issuers that it cannot vouch for do not count.
func (s *Source) State(now time.Time) State { return s.now.Load().state(now) }

func (v *vitals) state(now time.Time) State {
	switch {
	case !v.begun:
		return Cold
	case !v.synced:
		return Syncing
	case v.full || v.left(now) < 0:
		return Stale
	}
	return Live
}

// stateFor is the state as far as an issuer is concerned, "" for all of them.
func (v *vitals) stateFor(issuer string, now time.Time) State {
	state := v.state(now)
	if len(v.marked) > 0 && state == Live && (issuer == "" || slices.Contains(v.marked, issuer)) {
		return Stale
	}
	return state
}

// left is how much is left of the lease.
func (v *vitals) left(now time.Time) time.Duration {
	left := v.lease - v.age(now)
	if !v.made.IsZero() {
		left = min(left, v.made.Round(0).Add(v.lease+skew).Sub(now.Round(0)))
	}
	return left
}

// age is the time since the last sign of life by the clock that shows more of it:
// the monotonic clock stands still while the machine sleeps, and the wall clock
// may be set back.
func (v *vitals) age(now time.Time) time.Duration {
	return max(now.Sub(v.last), now.Round(0).Sub(v.last.Round(0)))
}

// A SourceStatus describes a source to an operator.
type SourceStatus struct {
	Name    string
	State   State
	Synced  bool          // it has been in step once
	Age     time.Duration // since the last sign of life; negative: there was none
	Applied uint64        // revocations taken, repetitions included
	Refused uint64        // lines not understood
	Marked  []string      // issuers that it cannot vouch for; shared, nobody changes it
	Error   string        // what failed since the last sign of life, or why the last line was refused; "" if all is well
}

// Status describes the source.
func (s *Source) Status(now time.Time) SourceStatus {
	v := s.now.Load()
	st := SourceStatus{Name: s.name, State: v.state(now), Synced: v.synced, Age: -1, Marked: v.marked, Applied: v.applied, Refused: v.refused}
	if v.synced {
		st.Age = max(0, v.age(now))
	}
	if err := errors.Join(v.failure, v.refusal); err != nil {
		st.Error = err.Error()
	}
	return st
}
