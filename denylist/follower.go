package denylist

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a feed does about these, when Take returns them: after ErrGap it
// asks again for what comes after the places that it is at; after ErrLost that will
// not help, and it takes a snapshot.
var (
	ErrGap  = errors.New("records are missing")
	ErrLost = errors.New("the chain cannot be followed from here; a snapshot is needed")
)

const (
	maxChains   = 64                     // that one feed may have
	remembered  = 4096                   // hashes of a chain's latest records, to tell a repetition from a fork
	maxOrdered  = 4096                   // as maxChains, in a log where each start of each writer is a source
	recalled    = 64                     // as remembered, in a log, which does not repeat itself much
	patience    = 800 * time.Millisecond // of one heartbeat with the next
	clocksApart = 3 * time.Second        // how much the clocks of a fleet may differ before somebody is told
	recordAhead = time.Hour              // how far a record's time is believed over the clock here
)

// An Event is something about a feed that is worth counting.
type Event uint8

const (
	Applied   Event = iota // a record was applied
	Duplicate              // a record came again
	Gap                    // records were missing
	Fork                   // a source wrote two records of one number
	Rewind                 // a source went back
	Renewed                // a source began a new chain
	Forged                 // a record was not signed by one of the keys, or not by its source's
	Garbled                // a record could not be read
	Resynced               // a snapshot was loaded
)

// Events is how many kinds there are.
const Events = int(Resynced) + 1

// String is the event as metric labels spell it.
func (e Event) String() string {
	return [...]string{"applied", "duplicate", "gap", "fork", "rewind", "renewed", "forged", "garbled", "resynced"}[e]
}

// FollowerConfig is what a Follower works with.
type FollowerConfig struct {
	List   *List
	Source *Source // of the feed
	Keys   Keys    // that records must be signed with; empty: none need be
	// Mass lets the feed revoke whole issuers and clients.
	Mass bool
	// Ordered is whether the feed is one log of all sources, read from end to end: a
	// heartbeat in it vouches for all that was said before it, by whom ever. Only
	// where records are signed, each source must be heard itself.
	Ordered bool
	// Learn is given what enforces the operations of a record, to do so and to hand
	// on what is news; nil: nobody is told.
	Learn func(enforce func() (news []Revocation, err error)) error
	// Log takes what is followed, to be handed on; nil hands nothing on.
	Log *Log
	// Delay is told how long each record took from its making to its enforcement.
	Delay func(time.Duration)
	// Canary is told how long each canary took from its making until it was found here.
	Canary func(time.Duration)
	// Lines is told what is wrong with operations and records: log lines.
	Lines *slog.Logger
}

// A Follower follows the chains of one feed's sources: it verifies each record,
// applies it, and knows whether anything is missing. Transport is the feed's: it
// calls Take with what arrives, from as many connections as it likes, and asks
// After where to go on.
//
// Order and repetition do not matter to what is revoked, as everything is a union.
// The chains are there for completeness: a record that was dropped, held back or
// forged shows, whoever carries it.
type Follower struct {
	cfg    FollowerConfig
	events [Events]atomic.Uint64
	doubts atomic.Uint64

	mu      sync.Mutex
	chains  map[string]*chain
	issuers Issuers // that operations were judged against
	holes   int     // operations were refused that others, or a later configuration, may take; not those in quarantine
	// quarantined is what waits for an operator, by the name of the key that said it.
	quarantined map[string]*quarantine
	marked      []string
	silent      time.Time // until when complaints are not logged, so that a flood is not one of log lines
}

// A chain is how far one source was followed.
type chain struct {
	Place
	made   time.Time // of the record there; zero: not known
	hashes []Hash    // of the latest records, by number modulo their number
	oldest uint64    // the first number whose hash is held
	lost   bool      // Place means nothing: only a snapshot, or the chain from its beginning, helps

	beatMade time.Time // of the latest heartbeat that agreed with the chain, by the source's clock
	beatCame time.Time // when it came
	behind   time.Time // since when heartbeats speak of records that have not come; zero: they do not
	heard    time.Time // when anything of it came last
}

func (f *Follower) most() (chains, hashes int) {
	if f.cfg.Ordered {
		return maxOrdered, recalled
	}
	return maxChains, remembered
}

func (f *Follower) newChain() *chain {
	_, hashes := f.most()
	return &chain{hashes: make([]Hash, hashes)}
}

// NewFollower follows a feed from its beginning.
func NewFollower(cfg FollowerConfig) *Follower {
	return &Follower{cfg: cfg, chains: map[string]*chain{}, issuers: cfg.List.Issuers(), quarantined: map[string]*quarantine{}}
}

// Count is how often an event happened.
func (f *Follower) Count(e Event) uint64 { return f.events[e].Load() }

func (f *Follower) count(e Event) { f.events[e].Add(1) }

// complain logs what is wrong with what came, at most once a second.
func (f *Follower) complain(text string, args ...any) {
	if now := time.Now(); now.After(f.silent) {
		f.silent = now.Add(time.Second)
		f.cfg.Lines.Warn(text, append([]any{"feed", f.cfg.Source.Name()}, args...)...)
	}
}

// After is where the feed goes on: the places that it is at. A source that is not
// among them is to be followed from its beginning, or by a snapshot.
func (f *Follower) After() []Head {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	var heads []Head
	for _, c := range f.chains {
		if !c.lost {
			heads = append(heads, c.Head)
		}
	}
	slices.SortFunc(heads, func(a, b Head) int { return cmp.Compare(a.Source, b.Source) })
	return heads
}

// look forgets how far everything was followed if other issuers are configured
// now: what was refused for the sake of an unknown issuer may have to be taken.
func (f *Follower) look() {
	issuers := f.cfg.List.Issuers()
	if slices.Equal(issuers, f.issuers) {
		return
	}
	known := func(l IssuerLimits) bool {
		return slices.ContainsFunc(f.issuers, func(o IssuerLimits) bool { return o.URL == l.URL })
	}
	if f.holes > 0 && slices.ContainsFunc(issuers, func(l IssuerLimits) bool { return !known(l) }) {
		f.lose()
	}
	f.issuers = issuers
}

// lose makes every chain's place unknown.
func (f *Follower) lose() {
	for _, c := range f.chains {
		c.lost = true
	}
}

// Take takes what one connection brought, in order: records, and heartbeats of all
// the sources that whoever serves there vouches for. If those are fresh, and after
// the records nothing is missing, that is a sign of life of the feed.
//
// An error other than ErrGap and ErrLost does not exist: what cannot be read, or is
// forged, is counted and dropped, and disturbs nobody. The lines are kept.
func (f *Follower) Take(lines [][]byte, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	var beats []*Record
	var broken error
	for _, raw := range lines {
		r := f.parse(raw)
		switch {
		case r == nil:
		case r.Heartbeat():
			beats = append(beats, r)
		default:
			// Others may still be good after one that is not, and what they revoke need
			// not wait.
			if err := f.record(r, now); err != nil && broken != ErrLost {
				broken = err
			}
		}
	}
	if broken != nil || len(beats) == 0 {
		return broken
	}
	return f.beats(beats, now)
}

func (f *Follower) record(r *Record, now time.Time) error {
	hash := hashOf(r.Raw)
	c := f.chains[r.Source]
	switch {
	case c == nil || c.lost:
		if r.Number != 1 || r.From != (Head{}) {
			f.apply(r, now) // it cannot harm, and what it revokes need not wait for the snapshot
			return ErrLost
		}
		if c == nil {
			if !f.room() {
				f.count(Forged)
				most, _ := f.most()
				f.complain("a record of one source too many was dropped", "source", r.Source, "most", most)
				return nil
			}
			f.doubts.Add(1)
			c = f.newChain()
			f.chains[r.Source] = c
		}
		c.begin(r)
	case r.Epoch > c.Epoch:
		f.count(Renewed)
		if r.Number != 1 || r.From != (Head{}) && (r.From.Epoch != c.Epoch || r.From.Number > c.Number) {
			f.apply(r, now)
			f.lost(c)
			return ErrLost
		}
		f.cfg.Lines.Info("a source of revocations began a new chain; nothing that it said before is lifted", "feed", f.cfg.Source.Name(), "source", r.Source, "epoch", r.Epoch)
		c.begin(r)
	case r.Epoch < c.Epoch:
		f.count(Duplicate)
		f.apply(r, now)
		return nil
	case r.Number > c.Number+1:
		f.count(Gap)
		f.apply(r, now)
		return ErrGap
	case r.Number <= c.Number:
		if held, ok := c.hashAt(r.Number); ok && held != hash {
			return f.forked(c, r, now)
		} else if !ok {
			f.apply(r, now)
		}
		f.count(Duplicate)
		return nil
	case r.Previous != c.Hash:
		return f.forked(c, r, now)
	}
	if !f.apply(r, now) {
		c.lost = true
		return ErrLost
	}
	f.count(Applied)
	c.Number, c.Hash, c.made, c.heard = r.Number, hash, r.Made, now
	c.hashes[r.Number%uint64(len(c.hashes))] = hash
	if f.cfg.Log != nil {
		f.cfg.Log.keep(r, hash)
	}
	if f.cfg.Delay != nil {
		f.cfg.Delay(max(0, now.Sub(r.Made)))
	}
	return nil
}

// begin makes c stand before the first record of a chain.
func (c *chain) begin(r *Record) {
	if r.Epoch != c.Epoch { // heartbeats of another chain say nothing about this one
		c.beatMade, c.beatCame, c.behind = time.Time{}, time.Time{}, time.Time{}
	}
	c.Place, c.made, c.lost, c.oldest = Place{Head: Head{r.Source, r.Epoch, 0}, Signer: r.Signer}, time.Time{}, false, 1
}

// hashAt is the hash of the record of this number, if it is remembered.
func (c *chain) hashAt(number uint64) (Hash, bool) {
	if number > c.Number || number < c.oldest || c.Number-number >= uint64(len(c.hashes)) {
		return Hash{}, false
	}
	return c.hashes[number%uint64(len(c.hashes))], true
}

// parse reads and verifies what came; nil if it is to be dropped. A key speaks for
// the sources that it spoke for first.
func (f *Follower) parse(raw []byte) *Record {
	r, err := ParseRecord(raw, f.cfg.Keys)
	if err != nil {
		event := Garbled
		if len(f.cfg.Keys) > 0 {
			event = Forged
		}
		f.count(event)
		f.cfg.Source.Refused(1, fmt.Errorf("a record is %w", err))
		f.complain("a record was dropped", "error", err)
		return nil
	}
	if c := f.chains[r.Source]; c != nil && c.Signer != r.Signer {
		f.count(Forged)
		f.cfg.Source.Refused(1, fmt.Errorf("a record of source %q is signed by %q, not by %q as before", r.Source, r.Signer, c.Signer))
		f.complain("a record of a source was signed by another's key and was dropped", "source", r.Source, "signer", r.Signer, "expected", c.Signer)
		return nil
	}
	return r
}

func (f *Follower) forked(c *chain, r *Record, now time.Time) error {
	f.count(Fork)
	f.cfg.Lines.Error("a source of revocations said two things under one number: it was rolled back, or somebody writes in its name; both are enforced, and a snapshot is taken",
		"feed", f.cfg.Source.Name(), "source", r.Source, "epoch", r.Epoch, "number", r.Number)
	f.apply(r, now)
	f.lost(c)
	return ErrLost
}

// lost notes that a source does not go on from where it was followed to: it may
// not hold any more what it was told.
func (f *Follower) lost(c *chain) {
	f.doubts.Add(1)
	c.lost = true
}

// Doubts is another number after a source appeared, was lost or went back, and so
// may not hold what was handed to it before.
func (f *Follower) Doubts() uint64 { return f.doubts.Load() }

// apply enforces the operations of a record; false if not all of what they say could
// be enforced, so that the record does not count as taken.
func (f *Follower) apply(r *Record, now time.Time) bool {
	// An operation's before was held against its maker's clock already; a gateway
	// whose clock is a little behind must not lower it.
	at, believed := now, true
	if ahead := r.Made.Sub(now.Round(0)); ahead >= recordAhead {
		believed = false
	} else if ahead > 0 {
		at = r.Made
	}
	lowered := false
	rs := make([]Revocation, 0, len(r.Ops))
	for i, op := range r.Ops {
		rev, err := Parse(op, f.issuers, at, false)
		if err == nil && !f.cfg.Mass && isMass(rev.Kind) {
			err = errMass
		}
		if key, known := f.cfg.Keys[r.Signer]; known && err != nil {
			err = key.Grant.excuses(op, err)
		}
		if err != nil {
			f.refuse(r, i, op, err)
			continue
		}
		if !f.within(r, i, op, rev, now) {
			continue
		}
		if !rev.Clamped.IsZero() {
			f.complain("a revocation's before lies too far ahead and was clamped", "source", r.Source, "number", r.Number, "operation", i, "before", rev.Clamped)
			lowered = lowered || !believed // one of the clocks is wrong, and it may be this one
		}
		rs = append(rs, rev)
	}
	// Kept for as long as the later of the two clocks asks for, and not forgotten for
	// either being ahead.
	enforce := func() ([]Revocation, error) { return f.cfg.Source.apply(rs, at, true) }
	var err error
	if f.cfg.Learn != nil {
		err = f.cfg.Learn(enforce)
	} else {
		_, err = enforce()
	}
	if err != nil {
		f.complain("the denylist is full", "error", err)
	}
	f.sing(rs, r.Made)
	return err == nil && !lowered
}

var errMass = errors.New("it revokes a whole issuer or client, and this feed may not (mass: false)")

// refuse drops one operation. One of a kind that this version does not know may
// revoke anything of its issuer's: until somebody knows it, nothing here can vouch
// for that issuer.
func (f *Follower) refuse(r *Record, i int, op []byte, err error) {
	where := fmt.Errorf("record %s, operation %d: %w", r.Head, i, err)
	f.cfg.Source.Refused(1, where)
	f.complain("an operation was refused", "error", where)
	switch {
	case errors.Is(err, ErrUnknownMember):
		f.holes++
		issuer := issuerOf(op)
		if issuer == "" && len(f.issuers) == 1 {
			issuer = f.issuers[0].URL
		}
		if _, known := f.issuers.find(issuer); known && !slices.Contains(f.marked, issuer) {
			f.marked = append(f.marked, issuer)
			f.cfg.Source.MarkIssuer(issuer, true)
			f.cfg.Lines.Error("a kind of revocation is not known to this version: what it revokes is not enforced, so the issuer counts as stale; upgrade durward",
				"feed", f.cfg.Source.Name(), "issuer", issuer, "error", err)
		}
	case errors.Is(err, ErrUnknownIssuer) || errors.Is(err, errMass):
		f.holes++
	}
}

// beats holds the heartbeats that came together against the chains.
func (f *Follower) beats(beats []*Record, now time.Time) error {
	inStep := true
	sources := make([]string, 0, len(beats))
	for _, r := range beats {
		sources = append(sources, r.Source)
		c := f.chains[r.Source]
		if c == nil || c.lost {
			return ErrLost
		}
		ok, err := f.beat(c, r, now)
		if err != nil {
			return err
		}
		inStep = inStep && ok
	}
	switch {
	case f.cfg.Ordered:
		for _, c := range f.chains {
			switch {
			case len(f.cfg.Keys) > 0 && f.superseded(c):
			case c.lost:
				return ErrLost
			case len(f.cfg.Keys) > 0:
				sources = append(sources, c.Source)
			}
		}
	case len(f.cfg.Keys) > 0:
		// Where sources sign, whoever carries their records need not be trusted, and
		// must not be able to leave one out.
		for _, c := range f.chains {
			if !slices.Contains(sources, c.Source) && !f.superseded(c) {
				inStep = false
			}
		}
	}
	slices.Sort(sources)
	sources = slices.Compact(sources)
	if !inStep {
		return nil
	}
	var came, made time.Time
	for _, source := range sources {
		c := f.chains[source]
		if c.beatMade.IsZero() {
			return nil
		}
		if came.IsZero() || c.beatCame.Before(came) {
			came = c.beatCame
		}
		if made.IsZero() || c.beatMade.Before(made) {
			made = c.beatMade
		}
	}
	if off := now.Round(0).Sub(made); off.Abs() > clocksApart {
		f.complain("heartbeats do not come when they were made: clocks are apart, or something holds them back", "made", made, "came", now, "seconds", off.Seconds())
	}
	f.cfg.Source.Begin() // every record of these chains was taken, so what did not fit once has come again
	f.cfg.Source.Vouched(came, made)
	if f.cfg.Log != nil {
		f.cfg.Log.list(f.cfg.Source.Name(), sources)
		for _, source := range sources {
			f.cfg.Log.hold(f.chains[source].Place)
		}
	}
	return nil
}

// superseded is whether the same key wrote a chain that began later, under another
// name: a source that lost its state, name included.
func (f *Follower) superseded(c *chain) bool {
	for _, o := range f.chains {
		if o != c && o.Signer == c.Signer && o.Epoch > c.Epoch {
			return true
		}
	}
	return false
}

// beat holds a heartbeat against the chain; false if it shows that something is
// missing or is too old to say anything.
func (f *Follower) beat(c *chain, r *Record, now time.Time) (bool, error) {
	switch {
	case r.Epoch == c.Epoch && r.Number <= c.Number:
		if held, ok := c.hashAt(r.Number); ok && held != r.Previous {
			return false, f.forked(c, r, now)
		}
		if r.Number < c.Number {
			if !r.Made.After(c.made) {
				return false, nil // made before the record that is held: an older one, or late
			}
			return false, f.rewound(c, r, now)
		}
	case r.Epoch < c.Epoch:
		if !r.Made.After(c.beatMade) || !r.Made.After(c.made) {
			return false, nil // replayed
		}
		return false, f.rewound(c, r, now)
	default: // records are on their way, or held back
		if !c.persists(now) {
			return false, nil
		}
		f.count(Gap)
		f.complain("heartbeats speak of records that do not come", "source", r.Source, "have", c.Head, "want", r.Head)
		return false, ErrGap
	}
	c.behind, c.heard = time.Time{}, now
	if r.Made.After(c.beatMade) {
		c.beatMade, c.beatCame = r.Made, now
		f.heard(r, now)
		if f.cfg.Log != nil {
			f.cfg.Log.beat(r)
		}
	}
	return true, nil
}

// persists is whether heartbeats have disagreed with the chain for so long that it
// is not for what is on its way, on this connection or another.
func (c *chain) persists(now time.Time) bool {
	if c.behind.IsZero() {
		c.behind = now
	}
	if now.Sub(c.behind) < patience {
		return false
	}
	c.behind = time.Time{}
	return true
}

func (f *Follower) rewound(c *chain, r *Record, now time.Time) error {
	if !c.persists(now) {
		return nil
	}
	f.count(Rewind)
	f.cfg.Lines.Error("a source of revocations went back: it was restored from an old copy; nothing that it said before is lifted, and a snapshot is taken",
		"feed", f.cfg.Source.Name(), "source", r.Source, "have", c.Head, "it has", r.Head)
	f.lost(c)
	return ErrLost
}

// Places are the ends of the chains that were followed without a hole, for the next
// start; with Number 0, of those that only a snapshot helps. Nil if the next start
// must begin anew.
func (f *Follower) Places() []Place {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.whole() {
		return nil
	}
	var all []Place
	for _, c := range f.chains {
		p := c.Place
		if c.lost { // not where it was, but that it was
			p.Number, p.Hash = 0, Hash{}
		}
		all = append(all, p)
	}
	return all
}

// Whole is whether everything that came was taken, so that a snapshot of the list
// holds all of it.
func (f *Follower) Whole() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whole()
}

// whole counts what waits for an operator as not taken, too: until it is released,
// nobody may take this gateway's word for what was said.
func (f *Follower) whole() bool { return f.holes == 0 && len(f.waiting()) == 0 }

// Lost is whether only a snapshot, or a chain from its beginning, would help.
func (f *Follower) Lost() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	for _, c := range f.chains {
		if c.lost {
			return true
		}
	}
	return false
}

// Resume makes the follower stand where an earlier one did, whose list was restored.
func (f *Follower) Resume(places []Place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var sources []string
	for _, p := range places {
		f.stand(p)
		sources = append(sources, p.Source)
	}
	if f.cfg.Log != nil {
		f.cfg.Log.list(f.cfg.Source.Name(), sources)
	}
}

// room makes room for one more chain if there is none: it forgets one of which
// nothing came for longest, and where sources sign, only one that is superseded.
// False if there is no such chain.
func (f *Follower) room() bool {
	if most, _ := f.most(); len(f.chains) < most {
		return true
	}
	var oldest *chain
	for _, c := range f.chains {
		if len(f.cfg.Keys) > 0 && !f.superseded(c) {
			continue
		}
		if oldest == nil || c.last(f.cfg.Ordered).Before(oldest.last(f.cfg.Ordered)) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	delete(f.chains, oldest.Source)
	return true
}

// last is when a chain was known to be needed: outside a log, only a heartbeat says so.
func (c *chain) last(ordered bool) time.Time {
	if ordered {
		return c.heard
	}
	return c.beatCame
}

// stand puts a chain at a place. How fresh its heartbeats were is not forgotten,
// so that old ones do not pass for new.
func (f *Follower) stand(p Place) {
	old := f.chains[p.Source]
	if _, trusted := f.cfg.Keys[p.Signer]; !trusted && len(f.cfg.Keys) > 0 || old == nil && !f.room() {
		return
	}
	if len(f.cfg.Keys) == 0 {
		p.Signer = "" // as in all records, whose signatures are not looked at
	}
	if old == nil {
		f.doubts.Add(1)
	}
	c := f.newChain()
	c.Place, c.oldest, c.lost = p, p.Number, p.Number == 0
	c.hashes[p.Number%uint64(len(c.hashes))] = p.Hash
	if old != nil && old.Epoch == p.Epoch {
		c.beatMade, c.beatCame = old.beatMade, old.beatCame
	}
	f.chains[p.Source] = c
	if f.cfg.Log != nil && !c.lost {
		f.cfg.Log.jump(p)
	}
}
