package denylist

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"durward/token"
)

// ErrFull is what errors of Add and Apply wrap when the list has no room for an
// entry. The list never makes room by forgetting one.
var ErrFull = errors.New("the denylist is full")

const sweepEvery = time.Minute

// A List is everything that is revoked. One lives as long as the process, across
// reloads. Only [New] makes one. All methods may be called at any time by anybody.
type List struct {
	start time.Time
	floor time.Time // see LastRun; zero: not known

	// By kind: Check skips the kinds of which there are none.
	denials, cutoffs [token.Kinds + 1]set
	total, max       atomic.Int64 // entries that are held, and that fit

	issuers atomic.Pointer[Issuers]
	sources atomic.Pointer[[]*Source]
	joining sync.Mutex // held to change sources

	version atomic.Uint64 // how often something may have been added
	changed chan struct{} // holds one when something was added and nobody looked yet
}

// New is an empty list that takes at most maxEntries entries. Its state is Live:
// with no source, there is nothing to be out of step with.
func New(maxEntries int) *List {
	l := &List{start: time.Now(), changed: make(chan struct{}, 1)}
	random := make([]byte, 8)
	rand.Read(random)
	key := binary.LittleEndian.Uint64(random) | 1 // a product by an odd number loses nothing
	for kind := range l.denials {
		l.denials[kind].key, l.cutoffs[kind].key = key, key
	}
	l.SetMaxEntries(maxEntries)
	l.SetIssuers(nil)
	l.sources.Store(&[]*Source{})
	return l
}

// LastRun says when this list's owner is known to have run before, by a clock that
// was believed then. Forgetting goes by this time and how long the process has
// run, if that is earlier than what the clock says: a machine that starts with its
// clock ahead forgets nothing. To be called before anything is added; without it,
// everything is kept for longer.
func (l *List) LastRun(t time.Time) { l.floor = t.Round(0) }

// SetIssuers says which issuers are configured from now on. What is held for an
// issuer that is not among them stays.
func (l *List) SetIssuers(issuers Issuers) {
	issuers = slices.Clone(issuers)
	l.issuers.Store(&issuers)
}

// Issuers are the configured issuers. The slice is shared; nobody changes it.
func (l *List) Issuers() Issuers { return *l.issuers.Load() }

// SetMaxEntries changes how many entries fit. A lower limit forgets nothing.
func (l *List) SetMaxEntries(n int) { l.max.Store(int64(n)) }

// Check finds a rule that refuses the token and says of which kind it is, 0 if
// there is none. It takes no lock and allocates nothing. It asks no clock: what is held is enforced, be it past its
// retention or not. Claims without an issuer, which nothing verified, are refused.
func (l *List) Check(c *token.Claims, _ time.Time) token.Kind {
	if _, ok := c.ID(token.KindIssuer); !ok {
		return token.KindIssuer
	}
	// From what is refused at large to the single token: the answer is the rule
	// that a person would name.
	for _, kind := range [...]token.Kind{token.KindIssuer, token.KindClient, token.KindSubject, token.KindSession, token.KindToken} {
		denials, cutoffs := &l.denials[kind], &l.cutoffs[kind]
		if denials.empty() && cutoffs.empty() {
			continue
		}
		id, ok := c.ID(kind)
		if !ok {
			continue
		}
		if denials.has(id) {
			return kind
		}
		if held := cutoffs.cutoff(id); held != nil && held.refuse(c) {
			return kind
		}
	}
	return 0
}

// An Entry is what the list holds for one identity.
type Entry struct {
	Kind   token.Kind
	Before time.Time // the latest cutoff, in whole seconds; zero if the identity itself is denied
	Until  time.Time // when it may be forgotten
}

// Lookup is what the list holds under a name, for an operator who asks. It does
// not say what other rules would refuse: a token's session or subject may be
// revoked where the token is not.
func (l *List) Lookup(kind token.Kind, issuer, value string) (Entry, bool) {
	id := token.Identify(kind, issuer, value)
	until, denied := l.denials[kind].until(id)
	e := Entry{Kind: kind}
	if held := l.cutoffs[kind].cutoff(id); held != nil {
		until = max(until, held.Until)
		if !denied {
			e.Before = time.Unix(held.latest(), 0).UTC()
		}
	} else if !denied {
		return Entry{}, false
	}
	e.Until = time.Unix(int64(until), 0).UTC()
	return e, true
}

// Add adds what this gateway itself accepted. Once it returns, no request with
// such a token passes. An error wraps ErrFull: what fits was added all the same,
// and entries that are held already can always be raised.
//
// The news are those that others may not know: they refuse what was not refused
// before, or their own Expiry keeps what is held for longer. Saying a thing again
// later, which by itself keeps it longer too, is no news, lest gateways that pass
// on their news to each other never come to rest.
func (l *List) Add(rs []Revocation, now time.Time) (news []Revocation, err error) {
	news, _, err = l.apply(rs, now, false)
	return news, err
}

// apply adds revocations and counts those that did not fit. What a clock said that
// nobody can vouch for here is no reason to forget: foreign ones were made by
// others, and where it is not known when this list's owner last ran, this clock may
// have been wrong since its start. Then each is kept for as long as if it had been
// made now, so that no token that it covers can be left whatever time it is.
func (l *List) apply(rs []Revocation, now time.Time, foreign bool) (news []Revocation, left int, err error) {
	past, anew := l.past(now), foreign || l.floor.IsZero()
	defer l.tell()
	for i := range rs {
		until := saturate(l.retention(rs[i], now, anew))
		if until < past {
			continue // nothing that it covers can be accepted any more
		}
		fresh, ok := l.put(&rs[i], until)
		switch {
		case !ok:
			left++
		case fresh:
			news = append(news, rs[i])
		}
	}
	return news, left, l.fit(left, len(rs))
}

// fit is the error of having left out some.
func (l *List) fit(left, of int) error {
	if left == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d of %d revocations do not fit beside the %d entries held; raise denylist.max_entries (%d)",
		ErrFull, left, of, l.total.Load(), l.max.Load())
}

// Changed delivers something after revocations were added, for one reader: several
// additions may count as one. What it was, the reader finds out with Check.
func (l *List) Changed() <-chan struct{} { return l.changed }

// Version is another number after something was added.
func (l *List) Version() uint64 { return l.version.Load() }

func (l *List) tell() {
	l.version.Add(1)
	select {
	case l.changed <- struct{}{}:
	default: // it was told and has not looked yet
	}
}

// put stores one revocation. It is fresh if it is news, and not ok if it does not
// fit.
func (l *List) put(r *Revocation, until uint32) (fresh, ok bool) {
	id := token.Identify(r.Kind, r.Issuer, r.Value)
	var held uint32
	if r.Denial() {
		held, fresh, ok = l.deny(r.Kind, id, until)
	} else {
		held, fresh, ok = l.cut(r.Kind, id, until, newCutoff(r))
	}
	return fresh || ok && saturate(r.Expiry) > held, ok
}

// deny stores a denial, and says until when one was held already.
func (l *List) deny(kind token.Kind, id token.ID, until uint32) (before uint32, fresh, ok bool) {
	s := &l.denials[kind]
	hash := s.hash(id)
	sh := s.shard(hash)
	sh.write.Lock()
	defer sh.write.Unlock()
	return l.place(s, sh, pending{hash, id, until}, 0)
}

// place is deny for who holds the shard's mutex, and knows how many others follow.
func (l *List) place(s *set, sh *shard, p pending, follow int) (before uint32, fresh, ok bool) {
	t := sh.table.Load()
	if slot, old := t.find(p.hash, p.id.Low); old {
		before = t.until[slot]
		if p.until > before {
			t.raise(slot, p.until)
		}
		return before, false, true
	}
	if !l.reserve(s) {
		return 0, false, false
	}
	s.put(p.hash, p.id, p.until, nil, follow)
	return 0, true, true
}

// cut stores cutoffs, and says until when others were held already. It is fresh
// if they refuse what those do not.
func (l *List) cut(kind token.Kind, id token.ID, until uint32, more ...ExceptedCutoff) (before uint32, fresh, ok bool) {
	s := &l.cutoffs[kind]
	hash := s.hash(id)
	sh := s.shard(hash)
	sh.write.Lock()
	defer sh.write.Unlock()
	t := sh.table.Load()
	slot, old := t.find(hash, id.Low)
	c := Cutoff{Kind: kind, ID: id}
	if old {
		c = *t.cutoffs[slot].Load()
	} else if !l.reserve(s) {
		return 0, false, false
	}
	before = c.Until
	c.Until = max(before, until)
	for _, m := range more {
		if !c.cover(m) {
			c, fresh = c.with(m), true
		}
	}
	if !old {
		s.put(hash, id, until, &c, 0)
		return 0, true, true
	}
	if fresh || until > before {
		s.bytes.Add(c.bytes() - t.cutoffs[slot].Load().bytes())
		t.cutoffs[slot].Store(&c)
		t.raise(slot, c.Until)
	}
	return before, fresh, true
}

// reserve takes room for one entry and counts it.
func (l *List) reserve(s *set) bool {
	for {
		n := l.total.Load()
		if n >= l.max.Load() {
			return false
		}
		if l.total.CompareAndSwap(n, n+1) {
			s.held.Add(1)
			return true
		}
	}
}

// Retention is when the revocation may be forgotten: when no token that it covers
// can be accepted any more, or at its Expiry if that is later. Whoever appends to
// the journal sets Expiry to it first, so that a replay keeps the entry as long
// whatever the configuration says by then. For an issuer whose limits are not
// known and without Expiry that is as late as can be.
func (l *List) Retention(r Revocation, now time.Time) time.Time { return l.retention(r, now, false) }

// retention is Retention, or with anew at least that of a denial made now.
func (l *List) retention(r Revocation, now time.Time, anew bool) time.Time {
	limits, ok := l.Issuers().find(r.Issuer)
	_, from := l.clocks(now)
	if !ok || limits.MaxLifetime <= 0 {
		if ok || r.Expiry.IsZero() {
			return time.Unix(math.MaxUint32, 0).UTC()
		}
		if least := from.Add(l.Issuers().longest()); anew && least.After(r.Expiry) {
			return least
		}
		return r.Expiry
	}
	// The denial of a token speaks of one that may be issued up to now, by whichever
	// clock is ahead: a clock set back must not shorten the time until it is set right.
	switch {
	case !r.Denial():
		before := r.Before
		if r.ByAuthTime {
			before = before.Add(loginAge)
		}
		if !anew || before.After(from) {
			from = before
		}
	case r.Kind == token.KindSession:
		from = from.Add(loginAge)
	}
	// One second more, as iat is often cut to whole seconds.
	until := from.Add(limits.MaxLifetime).Add(limits.Leeway).Add(limits.Skew).Add(time.Second)
	if r.Expiry.After(until) {
		return r.Expiry
	}
	return wall(until)
}

// clocks are the present time by two clocks, the earlier one first: the wall
// clock, which may be stepped, and the process's start plus the time it has run,
// which is only as right as the start was. Forgetting asks the earlier one, so
// that no step revives what is revoked.
func (l *List) clocks(now time.Time) (earlier, later time.Time) {
	ran := time.Since(l.start)
	now, steady := now.Round(0), l.start.Round(0).Add(ran)
	earlier, later = steady, now
	if now.Before(steady) {
		earlier, later = now, steady
	}
	if last := l.floor.Add(ran); !l.floor.IsZero() && last.Before(earlier) {
		earlier = last
	}
	return earlier, later
}

// past is what retention must not lie before, in seconds since 1970.
func (l *List) past(now time.Time) uint32 {
	earlier, _ := l.clocks(now)
	return uint32(min(max(earlier.Unix(), 0), math.MaxUint32))
}

// saturate is a time in seconds since 1970, rounded up; past 2106 it is the
// largest number, which Sweep takes for never.
func saturate(t time.Time) uint32 {
	s := t.Unix()
	if t.Nanosecond() > 0 {
		s++
	}
	return uint32(min(max(s, 0), math.MaxUint32))
}

// Sweep drops what may be forgotten and counts it. What makes less than an eighth
// of its part of the list is left, and still enforced, until it makes one or room
// is short. Readers do not wait for it.
func (l *List) Sweep(now time.Time) (dropped int) {
	past, short := l.past(now), l.Near()
	for kind := range l.denials {
		dropped += l.denials[kind].sweep(past, short) + l.cutoffs[kind].sweep(past, short)
	}
	l.total.Add(-int64(dropped))
	return dropped
}

// Run sweeps once a minute until the context ends, and returns nil.
func (l *List) Run(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			l.Sweep(now)
		}
	}
}

// Stats says how much is held.
type Stats struct {
	Entries [token.Kinds + 1]int // by token.Kind; a session that is denied and has a cutoff counts twice
	Total   int
	Max     int   // entries that fit
	Bytes   int64 // the memory they take
	Flat    int64 // of these, what holds no pointers
}

// Stats says how much is held.
func (l *List) Stats() Stats {
	st := Stats{Total: int(l.total.Load()), Max: int(l.max.Load())}
	for kind := range st.Entries {
		denials, cutoffs := &l.denials[kind], &l.cutoffs[kind]
		st.Entries[kind] = int(denials.held.Load() + cutoffs.held.Load())
		st.Flat += denials.bytes.Load()
		st.Bytes += denials.bytes.Load() + cutoffs.bytes.Load()
	}
	return st
}

// Near is whether so much of the room is taken, four fifths, that somebody should
// raise the limit before the list is full.
func (l *List) Near() bool {
	limit := l.max.Load()
	return l.total.Load() >= limit-limit/5
}

// Source registers a feed, which then has a say in State: until it is in step the
// list is not Live.
func (l *List) Source(name string, lease time.Duration) *Source {
	s := l.Candidate(name, lease)
	l.Join(s)
	return s
}

// Candidate is a source that has no say yet: what it tells is enforced, but State
// does not wait for it. A feed that a reload adds is followed as a candidate until
// it is in step, so that the reload refuses nobody.
func (l *List) Candidate(name string, lease time.Duration) *Source {
	s := &Source{list: l, name: name}
	s.now.Store(&vitals{lease: lease})
	return s
}

// Join gives a candidate its say in State.
func (l *List) Join(s *Source) {
	l.joining.Lock()
	defer l.joining.Unlock()
	joined := append(slices.Clone(l.Sources()), s)
	l.sources.Store(&joined)
}

// Remove takes away a feed's say in State. What it told stays.
func (l *List) Remove(s *Source) {
	l.joining.Lock()
	defer l.joining.Unlock()
	left := slices.DeleteFunc(slices.Clone(l.Sources()), func(o *Source) bool { return o == s })
	l.sources.Store(&left)
}

// Sources are the registered feeds, oldest first. The slice is shared; nobody
// changes it.
func (l *List) Sources() []*Source { return *l.sources.Load() }

// State is how far the list may be trusted to know what was revoked for the
// issuer, "" for all of them: the state of the source that vouches for the least;
// Live without one. A live source that cannot vouch for the issuer counts as Stale.
// It takes no lock and allocates nothing.
func (l *List) State(issuer string, now time.Time) State {
	worst := Live
	for _, s := range l.Sources() {
		if state := s.now.Load().stateFor(issuer, now); state.worse(worst) {
			worst = state
		}
	}
	return worst
}
