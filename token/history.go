package token

import (
	"slices"
	"time"
)

// NextLimits is the history after a start or reload with this configuration; see
// the function of that name. NewIssuer takes it.
func (cfg IssuerConfig) NextLimits(history []Limits, now time.Time) []Limits {
	current := Limits{Since: now, MaxLifetime: cfg.MaxLifetime, Leeway: defaultLeeway, Skew: DefaultSkew}
	if current.MaxLifetime == 0 {
		current.MaxLifetime = defaultMaxLifetime
	}
	if cfg.Leeway != nil {
		current.Leeway = *cfg.Leeway
	}
	if cfg.Skew != nil {
		current.Skew = *cfg.Skew
	}
	return NextLimits(history, current)
}

// History is the history of limits that the issuer holds its tokens to. It is to
// be kept for the next start.
func (i *Issuer) History() []Limits { return slices.Clone(i.history) }
