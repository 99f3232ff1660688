package denylist

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"durward/token"
)

// A Grant is what the holder of a key may revoke. Every gateway holds each operation
// against it, not only who takes it in: a stolen key must not do more than its grant
// wherever its records come from.
type Grant struct {
	Issuers   []string     // whose tokens, by URL; nil: all issuers'
	Kinds     []token.Kind // by what; nil: all kinds, but see NoMass
	NoMass    bool         // no revocations of whole issuers and clients
	PerMinute int          // how many operations a minute; what is more waits for an operator; 0: no limit
}

// limited is whether it is less than everything. Only keys with an unlimited grant
// may sign snapshots, which say everything.
func (g *Grant) limited() bool {
	return g.Issuers != nil || g.Kinds != nil || g.NoMass || g.PerMinute > 0
}

var errGrant = errors.New("the grant of its key does not cover it")

// covers is nil if the operation is within the grant.
func (g *Grant) covers(r Revocation) error {
	switch {
	case g.Issuers != nil && !slices.Contains(g.Issuers, r.Issuer):
		return fmt.Errorf("%w: it may not revoke tokens of this issuer", errGrant)
	case g.Kinds != nil && !slices.Contains(g.Kinds, r.Kind):
		return fmt.Errorf("%w: it may not revoke by %s", errGrant, r.Kind)
	case g.NoMass && isMass(r.Kind):
		return fmt.Errorf("%w: it may not revoke all of an issuer or client", errGrant)
	}
	return nil
}

// excuses is what an operation that could not be read is refused for: nothing is owed
// to what its key may not say anyway, and so nobody's tokens are refused for it.
func (g *Grant) excuses(op []byte, err error) error {
	if g.Issuers != nil && !slices.Contains(g.Issuers, issuerOf(op)) {
		return fmt.Errorf("%w: it may not revoke tokens of this issuer; and it is %w", errGrant, errors.New(err.Error()))
	}
	return err
}

// maxQuarantined is how many operations of one key wait for an operator. What is more
// is counted and left out, and a gateway that was restarted reads it again.
const maxQuarantined = 100_000

// A quarantine is what one key said over its budget. The budget fills by the times
// of its records, which rise: what was said long ago, and is read again, must not
// be taken for a flood. But the key's holder writes these times. They do not count
// beyond the time here, nor before a heartbeat that said how far it was then.
type quarantine struct {
	left    float64   // operations that are left of the budget
	filled  time.Time // when, by the key's clock
	waits   []Revocation
	leftOut int
	sang    time.Time // when the key's latest canary was made, by its clock
}

// fill adds to the budget what has come in up to a time.
func (q *quarantine) fill(g *Grant, until time.Time) {
	if q.filled.IsZero() {
		q.left, q.filled = float64(g.PerMinute), until
	}
	if until.After(q.filled) {
		q.left = min(float64(g.PerMinute), q.left+until.Sub(q.filled).Minutes()*float64(g.PerMinute))
		q.filled = until
	}
}

// take is whether one more operation, of a record made then, is within the budget.
func (q *quarantine) take(g *Grant, made, now time.Time) bool {
	q.fill(g, earlier(made, now))
	if q.left < 1 {
		return false
	}
	q.left--
	return true
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// latest is the present time by the clock that is ahead: one that was set back must
// not take for a flood what is none.
func (f *Follower) latest(now time.Time) time.Time {
	_, later := f.cfg.Source.list.clocks(now)
	return later
}

// quarantine is where what the key says waits.
func (f *Follower) quarantine(key Key) *quarantine {
	q := f.quarantined[key.Name]
	if q == nil {
		q = &quarantine{}
		f.quarantined[key.Name] = q
	}
	return q
}

// heard notes that all that a key has said up to the heartbeat was read.
func (f *Follower) heard(beat *Record, now time.Time) {
	if key, known := f.cfg.Keys[beat.Signer]; known && key.Grant.PerMinute > 0 {
		f.quarantine(key).fill(&key.Grant, earlier(beat.Made, f.latest(now)))
	}
}

// within takes out what the signer may not say, or not so fast. What is over the
// budget waits; what the grant does not cover is refused.
func (f *Follower) within(r *Record, i int, op []byte, rev Revocation, now time.Time) bool {
	key, known := f.cfg.Keys[r.Signer]
	if !known || !key.Grant.limited() {
		return true
	}
	q := f.quarantine(key)
	if rev.Issuer == canaryIssuer { // within every grant, but not so many that they fill the list
		if r.Made.Sub(q.sang) < CanaryEvery/5 {
			return false
		}
		q.sang = r.Made
		return true
	}
	if err := key.Grant.covers(rev); err != nil {
		f.refuse(r, i, op, err)
		return false
	}
	if key.Grant.PerMinute == 0 {
		return true
	}
	if q.take(&key.Grant, r.Made, f.latest(now)) {
		return true
	}
	if len(q.waits)+q.leftOut == 0 {
		f.cfg.Lines.Error("a source revokes more than its budget: what is over it is not enforced and waits for an operator (durward feed release)",
			"feed", f.cfg.Source.Name(), "key", key.Name, "per_minute", key.Grant.PerMinute, "record", r.Head.String())
	}
	if len(q.waits) < maxQuarantined {
		q.waits = append(q.waits, rev)
	} else {
		q.leftOut++
	}
	return false
}

// Quarantined is how many operations wait for an operator, by the name of the key
// that said them.
func (f *Follower) Quarantined() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waiting()
}

func (f *Follower) waiting() map[string]int {
	all := map[string]int{}
	for name, q := range f.quarantined {
		if n := len(q.waits) + q.leftOut; n > 0 {
			all[name] = n
		}
	}
	return all
}

// Release enforces what waits of a key, or drops it, and counts it. An error wraps
// ErrFull, and what did not fit waits on.
func (f *Follower) Release(key string, drop bool, now time.Time) (released int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := f.quarantined[key]
	if q == nil {
		return 0, nil
	}
	if !drop {
		enforce := func() ([]Revocation, error) { return f.cfg.Source.apply(q.waits, now, true) }
		if f.cfg.Learn != nil {
			err = f.cfg.Learn(enforce)
		} else {
			_, err = enforce()
		}
		if err != nil {
			return 0, err
		}
	}
	released = len(q.waits) + q.leftOut
	if q.leftOut > 0 && !drop { // to be read again
		f.lose()
	}
	q.waits, q.leftOut = nil, 0
	q.left = float64(0)
	return released, nil
}
