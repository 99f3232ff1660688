package denylist

import (
	"slices"

	"durward/token"
)

// maxExcepted is how many cutoffs with exceptions one key keeps.
const maxExcepted = 8

// cutoffs are all cutoffs of one key, ORed. Times are whole seconds since 1970,
// because most iat are: a token of the very second of the cutoff is refused. 0
// is none. Readers use a copy while writers replace the whole, so the slices are
// never changed once stored.
type cutoffs struct {
	iat, authTime int64 // the highest without exceptions, by what it compares
	excepted      []cutoff
	until         uint32 // when all of them may be forgotten, in seconds since 1970
	kind          token.Kind
}

// A cutoff with exceptions cannot be merged by taking the higher time: {120 except
// X} must not hide an earlier {100}, or X's tokens from before 100 come back to
// life. One is only superfluous next to another that is at least as late and
// excepts nothing that it does not except itself.
type cutoff struct {
	before     int64
	byAuthTime bool
	except     []token.ID
}

// newCutoff is the cutoff of a revocation that is one.
func newCutoff(r *Revocation) cutoff {
	c := cutoff{before: r.Before.Unix(), byAuthTime: r.ByAuthTime}
	for _, e := range r.Except {
		kind, value, _ := exception(e)
		c.except = append(c.except, token.Identify(kind, r.Issuer, value))
	}
	return c
}

// latest is the highest of the cutoffs, whatever they compare and except.
func (c *cutoffs) latest() int64 {
	latest := max(c.iat, c.authTime)
	for _, o := range c.excepted {
		latest = max(latest, o.before)
	}
	return latest
}

// with is c and one more cutoff.
func (c cutoffs) with(n cutoff) cutoffs {
	if len(n.except) == 0 {
		c.raise(n)
		n.before = 0 // it stands in the maxima; what remains to do is to drop what they cover
	}
	all := slices.Clone(c.excepted)
	if n.before > 0 && !slices.ContainsFunc(all, func(o cutoff) bool { return o.covers(n) }) {
		all = append(slices.DeleteFunc(all, n.covers), n)
	}
	all = slices.DeleteFunc(all, func(o cutoff) bool {
		if o.byAuthTime {
			return o.before <= c.authTime
		}
		return o.before <= c.iat
	})
	if len(all) > maxExcepted { // the stricter reading costs a login, the looser one would cost a revocation
		for _, o := range all {
			c.raise(o)
		}
		all = nil
	}
	c.excepted = all
	return c
}

// raise takes a cutoff as if it had no exceptions.
func (c *cutoffs) raise(n cutoff) {
	if n.byAuthTime {
		c.authTime = max(c.authTime, n.before)
	} else {
		c.iat = max(c.iat, n.before)
	}
}

// covers is whether n refuses everything that o does.
func (n cutoff) covers(o cutoff) bool {
	return n.byAuthTime == o.byAuthTime && n.before >= o.before &&
		!slices.ContainsFunc(n.except, func(id token.ID) bool { return !slices.Contains(o.except, id) })
}

// refuse is whether one of them covers the token.
func (c *cutoffs) refuse(t *token.Claims) bool {
	iat := t.IssuedAt.Unix()
	authTime := iat
	if !t.AuthTime.IsZero() {
		authTime = t.AuthTime.Unix()
	}
	if iat <= c.iat || authTime <= c.authTime {
		return true
	}
	for i := range c.excepted {
		o := &c.excepted[i]
		at := iat
		if o.byAuthTime {
			at = authTime
		}
		if at <= o.before && !o.excepts(t) {
			return true
		}
	}
	return false
}

func (c *cutoff) excepts(t *token.Claims) bool {
	for _, kind := range [...]token.Kind{token.KindSession, token.KindToken} {
		if id, ok := t.ID(kind); ok && slices.Contains(c.except, id) {
			return true
		}
	}
	return false
}
