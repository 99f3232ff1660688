package denylist

import (
	"slices"
	"unsafe"

	"durward/token"
)

// maxExcepted is how many cutoffs with exceptions one key keeps.
const maxExcepted = 8

// A Cutoff is all cutoffs of one identity, ORed. Times are whole seconds since
// 1970, because most iat are: a token of the very second of the cutoff is refused.
// Readers use one while writers replace the whole, so the slices are never changed
// once stored.
type Cutoff struct {
	Kind     token.Kind
	ID       token.ID
	IssuedAt int64 // what was issued then or earlier is refused; 0: none is
	AuthTime int64 // the same by the time of the login
	Excepted []ExceptedCutoff
	Until    uint32 // when all of them may be forgotten; math.MaxUint32 is never
}

// An ExceptedCutoff is a cutoff with exceptions. It cannot be merged by taking the
// higher time: {120 except X} must not hide an earlier {100}, or X's tokens from
// before 100 come back to life. One is only superfluous next to another that is at
// least as late and excepts nothing that it does not except itself.
type ExceptedCutoff struct {
	Before     int64
	ByAuthTime bool
	Except     []token.ID // sessions and tokens that it leaves alone
}

// newCutoff is the cutoff of a revocation that is one.
func newCutoff(r *Revocation) ExceptedCutoff {
	c := ExceptedCutoff{Before: r.Before.Unix(), ByAuthTime: r.ByAuthTime}
	for _, e := range r.Except {
		kind, value, _ := exception(e)
		c.Except = append(c.Except, token.Identify(kind, r.Issuer, value))
	}
	return c
}

// latest is the highest of the cutoffs, whatever they compare and except.
func (c *Cutoff) latest() int64 {
	latest := max(c.IssuedAt, c.AuthTime)
	for _, o := range c.Excepted {
		latest = max(latest, o.Before)
	}
	return latest
}

// cover is whether they refuse everything that n does.
func (c *Cutoff) cover(n ExceptedCutoff) bool {
	if n.ByAuthTime && n.Before <= c.AuthTime || !n.ByAuthTime && n.Before <= c.IssuedAt {
		return true
	}
	return slices.ContainsFunc(c.Excepted, func(o ExceptedCutoff) bool { return o.covers(n) })
}

// with is c and one more cutoff that it does not cover.
func (c Cutoff) with(n ExceptedCutoff) Cutoff {
	c.Excepted = slices.DeleteFunc(slices.Clone(c.Excepted), n.covers)
	if len(n.Except) == 0 {
		c.raise(n)
		return c
	}
	c.Excepted = append(c.Excepted, n)
	if len(c.Excepted) > maxExcepted { // the stricter reading costs a login, the looser one would cost a revocation
		for _, o := range c.Excepted {
			c.raise(o)
		}
		c.Excepted = nil
	}
	return c
}

// bytes is the memory that it takes.
func (c *Cutoff) bytes() int64 {
	n := unsafe.Sizeof(*c)
	for _, o := range c.Excepted {
		n += unsafe.Sizeof(o) + uintptr(len(o.Except))*unsafe.Sizeof(c.ID)
	}
	return int64(n)
}

// raise takes a cutoff as if it had no exceptions.
func (c *Cutoff) raise(n ExceptedCutoff) {
	if n.ByAuthTime {
		c.AuthTime = max(c.AuthTime, n.Before)
	} else {
		c.IssuedAt = max(c.IssuedAt, n.Before)
	}
}

// covers is whether n refuses everything that o does.
func (n ExceptedCutoff) covers(o ExceptedCutoff) bool {
	return n.ByAuthTime == o.ByAuthTime && n.Before >= o.Before &&
		!slices.ContainsFunc(n.Except, func(id token.ID) bool { return !slices.Contains(o.Except, id) })
}

// refuse is whether one of them covers the token.
func (c *Cutoff) refuse(t *token.Claims) bool {
	iat := t.IssuedAt.Unix()
	authTime := iat
	if !t.AuthTime.IsZero() {
		authTime = t.AuthTime.Unix()
	}
	if iat <= c.IssuedAt || authTime <= c.AuthTime {
		return true
	}
	for i := range c.Excepted {
		o := &c.Excepted[i]
		at := iat
		if o.ByAuthTime {
			at = authTime
		}
		if at <= o.Before && !o.excepts(t) {
			return true
		}
	}
	return false
}

func (c *ExceptedCutoff) excepts(t *token.Claims) bool {
	for _, kind := range [...]token.Kind{token.KindSession, token.KindToken} {
		if id, ok := t.ID(kind); ok && slices.Contains(c.Except, id) {
			return true
		}
	}
	return false
}
