package token

import (
	"slices"
	"time"
)

// Limits are the bounds on an issuer's tokens that were in force from a moment
// on, until the next of the history.
//
// A denylist entry is forgotten once no token that it covers can be accepted any
// more, by the limits of then. If a raised limit counted for tokens that were
// issued before, a revoked and forgotten one could come back to life: therefore
// a token is held to the strictest limits since it was issued, and the history
// outlives the process.
type Limits struct {
	Since       time.Time     `json:"since"`
	MaxLifetime time.Duration `json:"max_lifetime"` // nanoseconds
	Leeway      time.Duration `json:"leeway"`       // nanoseconds
	// Skew is how far ahead an iat could be: what says that it was issued so soon
	// after the end of these limits could be accepted, revoked and forgotten under them.
	Skew time.Duration `json:"skew"` // nanoseconds
}

func (l Limits) equal(o Limits) bool { return l.Since.Equal(o.Since) && l.same(o) }

// same is whether they bound tokens alike, whenever they were in force.
func (l Limits) same(o Limits) bool {
	return l.MaxLifetime == o.MaxLifetime && l.Leeway == o.Leeway && l.Skew == o.Skew
}

// NextLimits is the history, oldest first, after a start or reload with the current
// limits, whose Since is now: with another segment if something changed, and without
// the oldest ones that no living token can be held to. It leaves the argument as it
// is. The first segment counts for everything before it, too.
func NextLimits(history []Limits, current Limits) []Limits {
	now, next := current.Since, slices.Clone(history)
	if n := len(next); n == 0 {
		next = append(next, current)
	} else if last := next[n-1]; !last.same(current) {
		if now.Before(last.Since) {
			current.Since = last.Since // the clock was set back; the order must hold
		}
		next = append(next, current)
	}
	for len(next) > 1 {
		life, leeway := strictest(next[1:])
		oldest := next[0]
		forgiving := oldest.MaxLifetime >= life && oldest.Leeway >= leeway && oldest.Skew <= next[1].Skew // than what counts anyway
		outlived := !now.Before(oldest.lastIAT(next[1]).Add(life).Add(leeway))                            // whatever was issued under it has expired
		if !forgiving && !outlived {
			break
		}
		next = next[1:]
	}
	return next
}

// lastIAT is the latest iat that a token accepted under l could have, which the
// next segment ended.
func (l Limits) lastIAT(next Limits) time.Time { return next.Since.Add(l.Skew) }

// strictest is the least of each limit; history is not empty.
func strictest(history []Limits) (maxLifetime, leeway time.Duration) {
	maxLifetime, leeway = history[0].MaxLifetime, history[0].Leeway
	for _, l := range history[1:] {
		maxLifetime, leeway = min(maxLifetime, l.MaxLifetime), min(leeway, l.Leeway)
	}
	return maxLifetime, leeway
}

// limits are those that a token issued at iat is held to: the strictest in force
// at any time since, the present ones included.
func (i *Issuer) limits(iat time.Time) (maxLifetime, leeway time.Duration) {
	maxLifetime, leeway = i.cfg.MaxLifetime, *i.cfg.Leeway
	for n := len(i.history) - 1; n >= 0; n-- {
		if n+1 < len(i.history) && i.history[n].lastIAT(i.history[n+1]).Before(iat) {
			continue // this one ended before the token was issued; an earlier one may have let iat be further ahead
		}
		maxLifetime, leeway = min(maxLifetime, i.history[n].MaxLifetime), min(leeway, i.history[n].Leeway)
	}
	return maxLifetime, leeway
}
