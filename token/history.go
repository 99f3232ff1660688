package token

import (
	"slices"
	"time"
)

// NextLimits is the history after a start or reload with this configuration; see
// the function of that name. NewIssuer takes it.
func (cfg IssuerConfig) NextLimits(history []Limits, now time.Time) []Limits {
	lifetime, leeway := cfg.MaxLifetime, defaultLeeway
	if lifetime == 0 {
		lifetime = defaultMaxLifetime
	}
	if cfg.Leeway != nil {
		leeway = *cfg.Leeway
	}
	return NextLimits(history, lifetime, leeway, now)
}

// History is the history of limits that the issuer holds its tokens to. It is to
// be kept for the next start.
func (i *Issuer) History() []Limits { return slices.Clone(i.history) }
