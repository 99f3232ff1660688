package token

import (
	"slices"
	"sync/atomic"
	"time"
)

// named is how many claims there are by which revocations find a token, or compare it.
const named = 5

// namedClaims are these claims as lines and metrics spell them.
func namedClaims() [named]string { return [...]string{"jti", "sid", "sub", "client", "auth_time"} }

// A census counts which of these claims an issuer's tokens carry, whenever a
// signature was verified. A revocation by a claim that they lack is a promise that
// nothing keeps: whoever makes one is told. The hour at hand and the last one before
// it that had tokens are counted apart, so that old shares fade.
type census struct {
	present, previous atomic.Pointer[hour]
	missed            [named]atomic.Uint64 // revocations that did not reach all
}

type hour struct {
	number  int64 // since 1970
	tokens  atomic.Uint64
	carried [named]atomic.Uint64
}

func (s *census) count(c *Claims, now time.Time) {
	number := now.Unix() / 3600
	h := s.present.Load()
	// Who arrived in the hour that has just ended counts for the next.
	if h == nil || number > h.number || number < h.number-1 {
		next := &hour{number: number}
		if s.present.CompareAndSwap(h, next) {
			s.previous.Store(h)
			h = next
		} else {
			h = s.present.Load() // somebody else began the hour
		}
	}
	// The token last: one that is being counted must not look as if it lacked something.
	for i, carried := range [...]bool{c.hasJTI, c.Session != "", c.Subject != "", c.Client != "", !c.AuthTime.IsZero()} {
		if carried {
			h.carried[i].Add(1)
		}
	}
	h.tokens.Add(1)
}

// A Share is how many of an issuer's tokens carry a claim.
type Share struct {
	Claim   string // jti, sid, sub, client or auth_time, wherever the issuer keeps it
	Tokens  uint64 // verified in this hour and the last one before it that had any
	Carried uint64 // of these, with the claim
	Missed  uint64 // revocations by the claim that MissedBy counted
}

// Complete tells whether a revocation by the claim reaches the issuer's tokens:
// 99 % of them, or no token was seen yet.
func (s Share) Complete() bool { return s.Carried*100 >= s.Tokens*99 }

// Part is the share as a number from 0 to 1; 0 if no token was seen yet.
func (s Share) Part() float64 {
	if s.Tokens == 0 {
		return 0
	}
	return float64(s.Carried) / float64(s.Tokens)
}

// Percent is the share in whole percent, rounded down.
func (s Share) Percent() uint64 { return 100 * s.Carried / max(s.Tokens, 1) }

// Shares are those of all claims that revocations go by.
func (i *Issuer) Shares() []Share {
	var shares []Share
	for n, claim := range namedClaims() {
		s := Share{Claim: claim, Missed: i.census.missed[n].Load()}
		for _, h := range [...]*hour{i.census.present.Load(), i.census.previous.Load()} {
			if h != nil {
				s.Tokens += h.tokens.Load()
				s.Carried += h.carried[n].Load()
			}
		}
		s.Carried = min(s.Carried, s.Tokens) // see count
		shares = append(shares, s)
	}
	return shares
}

// MissedBy counts a revocation by a claim that not all of the issuer's tokens carry.
func (i *Issuer) MissedBy(claim string) {
	claims := namedClaims()
	if n := slices.Index(claims[:], claim); n >= 0 {
		i.census.missed[n].Add(1)
	}
}
