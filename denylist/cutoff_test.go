package denylist

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"durward/token"
)

// The same second, in full: a token minted in the second of the cutoff or before
// is refused, whatever the fractions, the time that is compared and what is named,
// unless it is excepted.
func TestSameSecondMatrix(t *testing.T) {
	const T = 1790000000
	mint := tokens(t, corp)
	mints := []struct {
		at      any
		refused bool
	}{{T - 1, true}, {T, true}, {T + 0.2, true}, {T + 0.9, true}, {T + 1, false}}
	for _, kind := range []token.Kind{token.KindSubject, token.KindClient, token.KindSession, token.KindIssuer} {
		for _, by := range []string{"iat", "auth_time"} {
			for _, fraction := range []time.Duration{0, time.Millisecond, 500 * time.Millisecond, 999 * time.Millisecond} {
				for _, except := range [][]string{nil, {"sid:other", "jti:other"}, {"jti:j"}, {"jti:other", "sid:a"}} {
					r := Revocation{Issuer: corp, Kind: kind, Value: "a", Before: unix(T).Add(fraction), ByAuthTime: by == "auth_time", Except: except}
					if kind == token.KindIssuer {
						r.Value = ""
					}
					l := newList(10)
					l.put(&r, 1<<31) // however long ago T is when this runs
					excepted := len(except) == 1 || slices.Contains(except, "sid:a")
					for _, m := range mints {
						claims := map[string]any{"sub": "a", "client_id": "a", "sid": "a", "jti": "j", "iat": T + 100}
						claims[by] = m.at
						want := token.Kind(0)
						if m.refused && !excepted {
							want = kind
						}
						if got := l.Check(mint(claims), unix(T)); got != want {
							t.Errorf("%v cut at T+%v by %s except %v, minted at %v: refused by %v, want %v", kind, fraction, by, except, m.at, got, want)
						}
					}
				}
			}
		}
	}
}

// refuses is what a revocation means, without a list.
func refuses(r Revocation, c *token.Claims) bool {
	if id, ok := c.ID(r.Kind); !ok || id != token.Identify(r.Kind, r.Issuer, r.Value) {
		return false
	}
	if r.Denial() {
		return true
	}
	at := c.IssuedAt
	if r.ByAuthTime && !c.AuthTime.IsZero() {
		at = c.AuthTime
	}
	excepted := slices.Contains(r.Except, "sid:"+c.Session) || slices.Contains(r.Except, "jti:"+c.TokenID)
	return at.Unix() <= r.Before.Unix() && !excepted
}

// anyOf is what the list must answer.
func anyOf(rs []Revocation, c *token.Claims) bool {
	return slices.ContainsFunc(rs, func(r Revocation) bool { return refuses(r, c) })
}

// variety is tokens of all sorts, issued within ten seconds of a time.
func variety(t testing.TB, base int64) (all []*token.Claims) {
	t.Helper()
	mint := tokens(t, corp)
	for _, sid := range []string{"", "x", "z"} {
		for _, jti := range []string{"j", "k"} {
			for iat := base; iat < base+9; iat++ {
				for _, login := range []int64{0, base + 2, base + 5} {
					claims := map[string]any{"sub": "a", "client_id": "a", "jti": jti, "iat": iat}
					if sid != "" {
						claims["sid"] = sid
					}
					if login > 0 {
						claims["auth_time"] = login
					}
					all = append(all, mint(claims))
				}
			}
		}
	}
	return all
}

// Any order and repetition of the same revocations gives the same answers: those
// that each of them gives alone, ORed. And what a list holds, restored in the
// place of some of them, changes none.
func FuzzOrder(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7}, uint64(1))
	f.Add([]byte{0x42, 0x13, 0x82, 0x55, 0xc2, 0x36, 0x02, 0x70}, uint64(2))
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 3))
		b := make([]byte, 2+random.IntN(40))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		f.Add(b, seed)
	}
	now := time.Now()
	base := now.Unix() - 10
	all := variety(f, base)
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		var rs []Revocation
		for ; len(b) >= 2 && len(rs) < 100; b = b[2:] {
			r := Revocation{Issuer: corp, Value: "a", Kind: token.Kind(b[0]%5 + 1)}
			switch r.Kind {
			case token.KindToken:
				r.Value = []string{"j", "i"}[b[0]>>6&1]
			case token.KindSession:
				r.Value = []string{"x", "y"}[b[0]>>6&1]
			case token.KindIssuer:
				r.Value = ""
			}
			if r.Kind != token.KindToken && (r.Kind != token.KindSession || b[0]>>7 == 0) {
				r.Before = unix(base + int64(b[1]%8))
				r.ByAuthTime = b[1]>>3&1 == 1
				r.Except = [][]string{nil, {"sid:x"}, {"jti:j"}, {"jti:j", "sid:x"}}[b[1]>>4&3] // few enough to be kept
			}
			rs = append(rs, r)
		}
		random := rand.New(rand.NewPCG(seed, 4))
		given, shuffled, restored := newList(1000), newList(1000), newList(1000)
		news, err := given.Add(rs, now)
		if err != nil {
			t.Fatal(err)
		}
		again := slices.Concat(rs, rs)
		random.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
		for len(again) > 0 {
			n := 1 + random.IntN(len(again))
			if _, err := shuffled.Add(again[:n], now); err != nil {
				t.Fatal(err)
			}
			again = again[n:]
		}
		if _, err := restored.Add(rs[:random.IntN(len(rs)+1)], now); err != nil {
			t.Fatal(err)
		}
		if err := restored.RestoreCutoffs(given.Cutoffs()); err != nil {
			t.Fatal(err)
		}
		if err := restored.RestoreDenials(random.IntN(100), shuffled.Denials()); err != nil {
			t.Fatal(err)
		}
		told := newList(1000)
		if _, err := told.Add(news, now); err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			want := anyOf(rs, c)
			for name, l := range map[string]*List{"as given": given, "shuffled": shuffled, "restored": restored, "by the news alone": told} {
				if got := l.Check(c, now) != 0; got != want {
					t.Fatalf("%s: a token issued at %d with sid %q, jti %q and login %v: refused is %v, want %v, of %+v", name, c.IssuedAt.Unix()-base, c.Session, c.TokenID, c.AuthTime, got, want, rs)
				}
			}
		}
		if news, _ := given.Add(rs, now); len(news) != 0 {
			t.Fatalf("the same again is news: %+v", news)
		}
	})
}

// More cutoffs with exceptions than are kept, in any order: nothing that they
// refuse passes, nothing later than all of them is refused, and memory is bounded.
func TestManyExceptions(t *testing.T) {
	now := time.Now()
	base := now.Unix() - 10
	all := variety(t, base)
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var rs []Revocation
		latest := int64(0)
		for i := range maxExcepted + 1 + random.IntN(10) {
			before := base + random.Int64N(8)
			latest = max(latest, before)
			rs = append(rs, Revocation{Issuer: corp, Kind: token.KindSubject, Value: "a", Before: unix(before), Except: []string{fmt.Sprintf("jti:%d", i), "sid:x"}})
		}
		l := newList(10)
		for _, r := range rs {
			if _, err := l.Add([]Revocation{r}, now); err != nil {
				t.Fatal(err)
			}
			if n := len(l.cutoffs[token.KindSubject].cutoff(token.Identify(r.Kind, corp, "a")).Excepted); n > maxExcepted {
				t.Fatalf("%d cutoffs with exceptions are kept", n)
			}
		}
		for _, c := range all {
			got := l.Check(c, now) != 0
			if anyOf(rs, c) && !got || got && c.IssuedAt.Unix() > latest {
				t.Fatalf("issued at %d, sid %q: refused is %v of %+v", c.IssuedAt.Unix()-base, c.Session, got, rs)
			}
		}
	}
}
