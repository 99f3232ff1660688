package denylist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"durward/token"
)

const (
	// MaxLine is the longest line of a feed or a journal, in bytes without its end.
	MaxLine = 64 << 10
	// MaxAhead is how far ahead a cutoff may lie. What is further is clamped: a
	// slip in a feed must not lock a user out for years.
	MaxAhead = 60 * time.Second
	// MaxExcept is how many exceptions one cutoff may have.
	MaxExcept = 8

	// loginAge is how long after a login its session may still obtain tokens: a
	// cutoff by auth_time covers tokens issued that much later, and so does the denial
	// of a session, whose issuer may go on refreshing it.
	loginAge = 30 * 24 * time.Hour

	year9999 = 253370764800 // 9999-01-01T00:00:00Z; times from here on are taken for milliseconds
)

// Errors of Parse that say more than that the line is wrong wrap these.
var (
	ErrUnknownMember = errors.New("unknown member")
	ErrUnknownIssuer = errors.New("is not a configured issuer")
)

// A Revocation is one line of a feed, parsed and valid. Only [Parse], the
// journal, and code that holds a verified token make one.
type Revocation struct {
	Issuer string     // iss, byte for byte; never ""
	Kind   token.Kind // what is named
	Value  string     // the jti, sid, sub or client; "" for the whole issuer

	// Before makes it a cutoff: what was issued in this second or earlier is
	// refused. Zero makes it a denial (a jti, or a sid without before).
	Before time.Time
	// ByAuthTime compares the time of the login in place of the time of issue, so
	// that a refreshed token does not escape. Tokens without auth_time are judged
	// by their iat.
	ByAuthTime bool
	// Except names what a cutoff leaves alone, "sid:…" or "jti:…", sorted, at most
	// MaxExcept.
	Except []string

	Expiry time.Time // exp: keep the entry at least until then; it never shortens what is needed. May be zero
	Reason string    // for the log

	// Clamped is what before said where that was more than MaxAhead ahead; else
	// zero. It is for the log, and no part of the line.
	Clamped time.Time
}

// Denial is whether it refuses by identity alone, whenever the token was issued.
func (r Revocation) Denial() bool { return r.Before.IsZero() }

// identity is whether the kind can be denied without a cutoff.
func (r Revocation) identity() bool {
	return r.Kind == token.KindToken || r.Kind == token.KindSession
}

// IssuerLimits are what lines are judged against and retention is computed from.
type IssuerLimits struct {
	URL         string        // iss
	MaxLifetime time.Duration // of its tokens, exp − iat; 0: not known, entries are kept for ever
	Leeway      time.Duration // for exp
	Skew        time.Duration // how far ahead iat may be
}

// Issuers are the configured issuers.
type Issuers []IssuerLimits

func (is Issuers) find(url string) (IssuerLimits, bool) {
	for _, i := range is {
		if i.URL == url {
			return i, true
		}
	}
	if url == canaryIssuer {
		return IssuerLimits{URL: url, MaxLifetime: canaryLasts}, true
	}
	return IssuerLimits{}, false
}

// Parse reads one line. It is strict: exactly one JSON object of known members,
// each once and of its type. The issuer must be a configured one; it may be left
// out where there is only one. Where fill is set, the line comes from somebody
// who means "now": the missing before of a sub or client becomes now plus the
// issuer's skew. A before too far ahead is clamped, see Revocation.Clamped.
//
// Errors are for the one who wrote the line: they say what is wrong and what
// would do.
func Parse(line []byte, issuers Issuers, now time.Time, fill bool) (Revocation, error) {
	r, err := read(line)
	if err != nil {
		return Revocation{}, err
	}
	if r.Issuer == "" {
		if r.Kind == token.KindIssuer {
			return Revocation{}, errors.New("it names no jti, sid, sub or client; to revoke a whole issuer give its iss and before")
		}
		if len(issuers) != 1 {
			return Revocation{}, fmt.Errorf("iss is missing; it may be left out only where one issuer is configured, here are %d", len(issuers))
		}
		r.Issuer = issuers[0].URL
	}
	limits, ok := issuers.find(r.Issuer)
	if !ok {
		return Revocation{}, fmt.Errorf("iss %q %w; it must equal one byte for byte", r.Issuer, ErrUnknownIssuer)
	}
	if r.Denial() && !r.identity() {
		if !fill || r.Kind == token.KindIssuer {
			return Revocation{}, fmt.Errorf("before is missing; a %s line revokes what was issued at or before a time, in seconds", r.Kind)
		}
		r.Before = wall(now.Add(limits.Skew))
	}
	if limit := wall(now.Add(MaxAhead)); r.Before.After(limit) {
		r.Clamped, r.Before = r.Before, limit
	}
	// A line that lacked iss, before or exp grows by them, and some characters are
	// escaped that need not be. What would not fit a journal is refused while
	// somebody is there to hear it. 96 bytes hold the longest before and exp.
	if len(line) > MaxLine/4 && len(r.Line())+96 > MaxLine {
		return Revocation{}, fmt.Errorf("longer than %d bytes when written in full", MaxLine)
	}
	return r, nil
}

// wall is a time as a line can carry it: without a monotonic reading, in
// milliseconds, which is more than matching looks at.
func wall(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// members are the names that a line may have, in the order in which Line writes them.
func members() [10]string {
	return [...]string{"iss", "jti", "sid", "sub", "client", "before", "by", "except", "exp", "reason"}
}

// read reads the shape of a line: everything that can be said without knowing
// the configuration or the time.
func read(line []byte) (Revocation, error) {
	if len(line) > MaxLine {
		return Revocation{}, fmt.Errorf("longer than %d bytes", MaxLine)
	}
	c, err := object(line)
	if err != nil {
		return Revocation{}, err
	}
	names := members()
	var seen [len(names)]bool
	var by string
	r := Revocation{Kind: token.KindIssuer}
	for {
		name, more, err := c.next()
		if err != nil {
			return Revocation{}, fmt.Errorf("the name of a member %w", err)
		}
		if !more {
			break
		}
		i := slices.Index(names[:], name)
		if i < 0 {
			return Revocation{}, fmt.Errorf("%w %q; known are %s", ErrUnknownMember, name, strings.Join(names[:], ", "))
		}
		if seen[i] {
			return Revocation{}, fmt.Errorf("%s is given twice", name)
		}
		seen[i] = true
		switch name {
		case "before":
			r.Before, err = c.time()
		case "exp":
			r.Expiry, err = c.time()
		case "except":
			r.Except, err = c.exceptions()
		case "iss":
			r.Issuer, err = c.value()
		case "by":
			if by, err = c.value(); err == nil && by != "iat" && by != "auth_time" {
				err = fmt.Errorf("is %q; it must be iat or auth_time", by)
			}
			r.ByAuthTime = by == "auth_time"
		case "reason":
			r.Reason, err = c.value()
		default:
			if r.Kind != token.KindIssuer {
				return Revocation{}, fmt.Errorf("both %s and %s are given; write a line for each", r.Kind, name)
			}
			r.Kind = kindOf(name)
			r.Value, err = c.value()
		}
		if err != nil {
			return Revocation{}, fmt.Errorf("%s %w", name, err)
		}
	}
	if r.Kind == token.KindToken && !r.Denial() {
		return Revocation{}, errors.New("before does not go with jti; a token is denied whenever it was issued")
	}
	if r.identity() && r.Denial() && (by != "" || r.Except != nil) {
		return Revocation{}, fmt.Errorf("by and except need a before; without one the whole %s is denied", r.Kind)
	}
	return r, nil
}

func kindOf(member string) token.Kind {
	for k := token.Kind(1); int(k) <= token.Kinds; k++ {
		if k.String() == member {
			return k
		}
	}
	return 0
}

// value reads a string that says something.
func (c *cursor) value() (string, error) {
	s, err := c.text()
	if err == nil && s == "" {
		err = errors.New("is empty; leave it out or give its value")
	}
	return s, err
}

// exceptions reads an except list into its canonical form.
func (c *cursor) exceptions() ([]string, error) {
	all, err := c.texts()
	if err != nil {
		return nil, err
	}
	if len(all) == 0 || len(all) > MaxExcept {
		return nil, fmt.Errorf("has %d entries; give 1 to %d, or leave it out", len(all), MaxExcept)
	}
	for _, e := range all {
		if _, _, ok := exception(e); !ok {
			return nil, fmt.Errorf("has the entry %q; it must be sid: or jti: and a value", e)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// exception splits "sid:…" or "jti:…".
func exception(s string) (token.Kind, string, bool) {
	name, value, _ := strings.Cut(s, ":")
	kind := kindOf(name)
	return kind, value, value != "" && (kind == token.KindSession || kind == token.KindToken)
}

// time reads a NumericDate (RFC 7519 section 2): seconds since 1970, fractions
// allowed. It is exact to the nanosecond, as the same number must give the same
// time on every gateway.
func (c *cursor) time() (time.Time, error) {
	n, err := c.number()
	if err != nil {
		return time.Time{}, err
	}
	if sec, err := strconv.ParseInt(n, 10, 64); err == nil && sec > 0 && sec < year9999 {
		return time.Unix(sec, 0).UTC(), nil
	}
	// The float tells whether the number is in range: only then is it safe to
	// expand its exponent. Nobody writes a time in more than 64 characters, and
	// reading thousands of digits takes milliseconds.
	if f, err := strconv.ParseFloat(n, 64); err == nil && f > 0 && f < year9999 && len(n) <= 64 {
		if exact, ok := new(big.Rat).SetString(n); ok {
			second := big.NewInt(int64(time.Second))
			nanos := new(big.Int).Mul(exact.Num(), second)
			nanos.Quo(nanos, exact.Denom())
			sec, nsec := new(big.Int).QuoRem(nanos, second, new(big.Int))
			if nanos.Sign() > 0 { // what is smaller than a nanosecond is 0 after all
				return time.Unix(sec.Int64(), nsec.Int64()).UTC(), nil
			}
		}
	}
	return time.Time{}, fmt.Errorf("is %.40s; it must be seconds since 1970, above 0, before the year 9999 (are these milliseconds?) and in at most 64 characters", n)
}

// Line is the revocation as a canonical JSON line, without its end. Parsing it
// gives the revocation back.
func (r Revocation) Line() []byte {
	var names [token.Kinds + 1]string
	names[r.Kind] = r.Value
	by := ""
	if r.ByAuthTime {
		by = "auth_time"
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	// Strings and numbers of our own making: encoding them cannot fail.
	_ = e.Encode(struct {
		Issuer  string      `json:"iss"`
		Token   string      `json:"jti,omitempty"`
		Session string      `json:"sid,omitempty"`
		Subject string      `json:"sub,omitempty"`
		Client  string      `json:"client,omitempty"`
		Before  json.Number `json:"before,omitempty"`
		By      string      `json:"by,omitempty"`
		Except  []string    `json:"except,omitempty"`
		Expiry  json.Number `json:"exp,omitempty"`
		Reason  string      `json:"reason,omitempty"`
	}{
		r.Issuer, names[token.KindToken], names[token.KindSession], names[token.KindSubject], names[token.KindClient],
		seconds(r.Before), by, r.Except, seconds(r.Expiry), r.Reason,
	})
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// seconds spells a time as a NumericDate, "" for none.
func seconds(t time.Time) json.Number {
	if t.IsZero() {
		return ""
	}
	s := strconv.FormatInt(t.Unix(), 10)
	if ns := t.Nanosecond(); ns != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%09d", ns), "0")
	}
	return json.Number(s)
}
