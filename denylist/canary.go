package denylist

import (
	"crypto/rand"
	"time"

	"durward/token"
)

// A canary is a revocation of a token that nobody has, made every few seconds by
// those who write, only to be looked for: a gateway that finds it revoked, where it
// looks for all others, knows that everything on the way works, and how long it takes.
const (
	canaryIssuer = "urn:durward:canary" // cannot be configured, so no token is of it
	canaryLasts  = time.Minute
	// CanaryEvery is how often somebody who writes makes one.
	CanaryEvery = 5 * time.Second
)

// Canary is a fresh one.
func Canary() Revocation {
	return Revocation{Issuer: canaryIssuer, Kind: token.KindToken, Value: rand.Text()}
}

// sing looks for the canaries among what a record revoked.
func (f *Follower) sing(rs []Revocation, made time.Time) {
	for _, r := range rs {
		if r.Issuer != canaryIssuer {
			continue
		}
		if _, held := f.cfg.List.Lookup(r.Kind, r.Issuer, r.Value); held && f.cfg.Canary != nil {
			f.cfg.Canary(max(0, time.Since(made)))
		}
	}
}

func canaryLine() []byte {
	r := Canary()
	return r.Line()
}
