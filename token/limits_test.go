package token

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestNextLimits(t *testing.T) {
	const h = time.Hour
	at := func(n int) time.Time { return testNow.Add(time.Duration(n) * h) }
	seg := func(n int, life, leeway time.Duration) Limits { return Limits{at(n), life, leeway, 0} }
	skewed := func(n int, life time.Duration) Limits { return Limits{at(n), life, h, h} }
	for _, c := range []struct {
		name         string
		history      []Limits
		life, leeway time.Duration
		now          int
		want         []Limits
	}{
		{"first start", nil, 24 * h, h, 0, []Limits{seg(0, 24*h, h)}},
		{"nothing changed", []Limits{seg(0, 24*h, h)}, 24 * h, h, 99, []Limits{seg(0, 24*h, h)}},
		{"raised", []Limits{seg(0, 2*h, h)}, 24 * h, h, 5, []Limits{seg(0, 2*h, h), seg(5, 24*h, h)}},
		{"raised, old tokens live", []Limits{seg(0, 2*h, h), seg(5, 24*h, h)}, 24 * h, h, 29, []Limits{seg(0, 2*h, h), seg(5, 24*h, h)}},
		{"raised, old tokens gone", []Limits{seg(0, 2*h, h), seg(5, 24*h, h)}, 24 * h, h, 30, []Limits{seg(5, 24*h, h)}},
		{"lowered", []Limits{seg(0, 24*h, h)}, 2 * h, h, 5, []Limits{seg(5, 2*h, h)}},
		{"leeway raised", []Limits{seg(0, 2*h, h)}, 2 * h, 2 * h, 5, []Limits{seg(0, 2*h, h), seg(5, 2*h, 2*h)}},
		{"one raised, one lowered", []Limits{seg(0, 2*h, 2*h)}, 24 * h, h, 5, []Limits{seg(0, 2*h, 2*h), seg(5, 24*h, h)}},
		{"lowered and raised again", []Limits{seg(5, 2*h, h)}, 24 * h, h, 6, []Limits{seg(5, 2*h, h), seg(6, 24*h, h)}},
		{"raised twice", []Limits{seg(0, h, h), seg(1, 2*h, h)}, 3 * h, h, 2, []Limits{seg(0, h, h), seg(1, 2*h, h), seg(2, 3*h, h)}},
		{"raised twice, first gone", []Limits{seg(0, h, h), seg(1, 2*h, h), seg(3, 3*h, h)}, 3 * h, h, 4, []Limits{seg(1, 2*h, h), seg(3, 3*h, h)}},
		{"skew raised", []Limits{seg(0, 2*h, h)}, 2 * h, h, 5, []Limits{skewed(5, 2*h)}},
		{"skew lowered", []Limits{skewed(0, 2*h)}, 2 * h, h, 5, []Limits{skewed(0, 2*h), seg(5, 2*h, h)}},
		{"with skew, old tokens live", []Limits{skewed(0, 2*h), skewed(5, 24*h)}, 24 * h, h, 30, []Limits{skewed(0, 2*h), skewed(5, 24*h)}},
		{"with skew, old tokens gone", []Limits{skewed(0, 2*h), skewed(5, 24*h)}, 24 * h, h, 31, []Limits{skewed(5, 24*h)}},
		{"clock set back", []Limits{seg(0, 2*h, h)}, 24 * h, h, -5, []Limits{seg(0, 2*h, h), seg(0, 24*h, h)}},
	} {
		before := append([]Limits(nil), c.history...)
		current := Limits{at(c.now), c.life, c.leeway, c.want[len(c.want)-1].Skew}
		got := NextLimits(c.history, current)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
		if !reflect.DeepEqual(c.history, before) {
			t.Errorf("%s: changed its argument", c.name)
		}
		if again := NextLimits(got, current); !reflect.DeepEqual(again, got) {
			t.Errorf("%s: a second call changes it to %v", c.name, again)
		}
	}
}

// A token is held to the strictest limits since it was issued, so that one that
// was revoked and forgotten under old limits does not come back under new ones.
func TestLimitsOfToken(t *testing.T) {
	const m = time.Minute
	at := func(n int) time.Time { return testNow.Add(time.Duration(n) * m) }
	cfg := testConfig(t)
	cfg.MaxLifetime, cfg.Leeway = 60*m, deref(5*m)
	history := []Limits{{at(-300), 30 * m, 2 * m, 0}, {at(-20), 10 * m, m, 2 * m}, {at(-10), 60 * m, 5 * m, 0}}
	text, err := json.Marshal(history)
	if err != nil {
		t.Fatal(err)
	}
	var stored []Limits
	if err := json.Unmarshal(text, &stored); err != nil {
		t.Fatal(err)
	}
	i, err := NewIssuer(cfg, stored, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		iat, exp int // minutes from now
		want     string
	}{
		{-5, 55, "accepted"},         // issued under the present limits
		{-7, 53, "accepted"},         //
		{-7, 54, "token_lifetime"},   //
		{-7, -4, "accepted"},         // leeway 5m
		{-7, -5, "token_expired"},    //
		{-8, 3, "token_lifetime"},    // 2m after the change, which was the skew before it: the old ones
		{-10, 1, "token_lifetime"},   // in the very moment of the change: the old ones
		{-11, -1, "token_expired"},   // leeway 1m
		{-11, 0, "token_lifetime"},   // 11m, and 10m was the limit
		{-7, 0, "accepted"},          //
		{-9, 2, "token_lifetime"},    // it could have been accepted before the change
		{-9, 0, "accepted"},          // and under both
		{-30, -5, "token_expired"},   // issued before, lived through the strict time
		{-30, 0, "token_lifetime"},   // 30m was fine when it was issued
		{-1000, 0, "token_lifetime"}, //
	} {
		claims, err := i.Suppose(object{"iat": at(c.iat).Unix(), "exp": at(c.exp).Unix()}, testNow)
		if err != nil {
			t.Fatal(err)
		}
		if got := reason(i.checkTimes(claims, testNow)); got != c.want {
			t.Errorf("issued at %d, expires at %d: got %s, want %s", c.iat, c.exp, got, c.want)
		}
	}
}
