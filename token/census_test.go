package token

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"durward/decision"
)

// shares are the issuer's, as "carried/tokens" by claim.
func shares(i *Issuer) map[string]string {
	m := map[string]string{}
	for _, s := range i.Shares() {
		m[s.Claim] = fmt.Sprintf("%d/%d", s.Carried, s.Tokens)
	}
	return m
}

// TestCensus counts tokens once their signature verifies, and no others: not those
// of the cache, not those that are refused, not those that somebody only asks about.
func TestCensus(t *testing.T) {
	cfg := testConfig(t)
	cfg.RequireJTI = deref(false)
	issuer := newIssuer(t, cfg)
	v := NewVerifier([]*Issuer{issuer}, newCache(t), 8<<10)
	verify := func(raw string, trace *decision.Trace) *Error {
		_, err := v.Verify(context.Background(), raw, nil, time.Now(), trace)
		return err
	}
	want := func(what string, m map[string]string) {
		t.Helper()
		for claim, w := range m {
			if got := shares(issuer)[claim]; got != w {
				t.Errorf("%s: %s is carried by %s, want %s", what, claim, got, w)
			}
		}
	}
	want("before any token", map[string]string{"jti": "0/0", "sid": "0/0", "auth_time": "0/0"})
	full := with(goodClaims(), object{"jti": "a", "sid": "s", "sub": "u", "client_id": "c", "auth_time": time.Now().Unix()})
	bare := with(goodClaims(), object{"jti": nil, "sid": nil, "sub": nil, "client_id": nil, "auth_time": nil})
	once := es256(full)
	for range 20 { // the cache takes it in its own time
		if err := verify(once, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	seen := issuer.Shares()[0].Tokens
	for range 20 {
		verify(once, nil)
	}
	want("a cached token", map[string]string{"jti": fmt.Sprintf("%d/%d", seen, seen)})
	if err := verify(es256(bare), nil); err != nil {
		t.Fatal(err)
	}
	carried, all := fmt.Sprintf("%d/%d", seen, seen+1), seen+1
	want("a token without any", map[string]string{"jti": carried, "sid": carried, "sub": carried, "client": carried, "auth_time": carried})
	forged := es256(with(full, object{"jti": "b"}))
	if err := verify(forged[:len(forged)-10]+"AAAAAAAAAA", nil); err == nil {
		t.Error("a forged token passes")
	}
	if err := verify(es256(with(bare, object{"sub": "asked"})), &decision.Trace{}); err != nil {
		t.Error(err)
	}
	want("forged and hypothetical ones", map[string]string{"jti": carried})
	for _, s := range issuer.Shares() {
		if s.Complete() {
			t.Errorf("%s: %d of %d count as all", s.Claim, s.Carried, s.Tokens)
		}
	}
	// 99 % are as good as all.
	for s := issuer.Shares()[1]; s.Carried*100 < s.Tokens*99; s = issuer.Shares()[1] {
		if s.Complete() {
			t.Fatalf("%d of %d count as all", s.Carried, s.Tokens)
		}
		all++
		if err := verify(es256(with(full, object{"jti": fmt.Sprint("t", all)})), nil); err != nil {
			t.Fatal(err)
		}
	}
	if s := issuer.Shares()[1]; !s.Complete() || s.Part() < .99 || s.Part() >= 1 {
		t.Errorf("%d of %d do not count as all; %v", s.Carried, s.Tokens, s.Part())
	}
}

// TestCensusFades: an hour and the last one before it that had tokens are counted.
func TestCensusFades(t *testing.T) {
	issuer := newIssuer(t, testConfig(t))
	at := time.Unix(1_000_000*3600, 0)
	c := func(claims object) *Claims {
		t.Helper()
		c, err := issuer.Suppose(claims, at)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	with, without := c(object{"sid": "s"}), c(object{})
	for _, step := range []struct {
		after  time.Duration
		claims *Claims
		want   string
	}{
		{0, without, "0/1"}, {59 * time.Minute, without, "0/2"},
		{time.Hour, with, "1/3"}, {119 * time.Minute, with, "2/4"},
		{2 * time.Hour, with, "3/3"},  // the first hour has faded
		{10 * time.Hour, with, "2/2"}, // nothing came for long: the last that is known counts
		{11 * time.Hour, without, "1/2"}, {12 * time.Hour, without, "0/2"},
		{5 * time.Hour, with, "1/2"}, // the clock was set back
	} {
		issuer.census.count(step.claims, at.Add(step.after))
		if got := shares(issuer)["sid"]; got != step.want {
			t.Errorf("after %v: %s, want %s", step.after, got, step.want)
		}
	}
}

// TestCensusReload: a reload that keeps the issuer keeps the counts, unless the
// claims are found elsewhere from then on.
func TestCensusReload(t *testing.T) {
	cfg := testConfig(t)
	first := newIssuer(t, cfg)
	c, err := first.Suppose(object{"sid": "s"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	first.census.count(c, time.Now())
	first.MissedBy("client")
	first.MissedBy("no such claim")
	reload := func(change func(*IssuerConfig)) *Issuer {
		t.Helper()
		cfg := testConfig(t)
		cfg.JWKSFile = first.cfg.JWKSFile
		change(&cfg)
		next, err := NewIssuer(cfg, nil, first)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	for name, change := range map[string]func(*IssuerConfig){
		"nothing": func(*IssuerConfig) {}, "leeway": func(c *IssuerConfig) { c.Leeway = deref(time.Second) }, "audiences": func(c *IssuerConfig) { c.Audiences = []string{"another"} },
	} {
		next := reload(change)
		if got := shares(next)["sid"]; got != "1/1" || next.Shares()[3].Missed != 1 {
			t.Errorf("%s changed: %s, %v", name, got, next.Shares())
		}
	}
	for name, change := range map[string]func(*IssuerConfig){
		"claims": func(c *IssuerConfig) { c.Claims = map[string]string{"session": "origin_jti"} }, "issuer": func(c *IssuerConfig) { c.Issuer = "https://other.test" },
	} {
		if got := shares(reload(change))["sid"]; got != "0/0" {
			t.Errorf("%s changed: %s", name, got)
		}
	}
}

// TestCensusAtOnce: nothing is lost at the turn of the hour, whoever counts.
func TestCensusAtOnce(t *testing.T) {
	issuer := newIssuer(t, testConfig(t))
	c, err := issuer.Suppose(object{"sid": "s"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 8, 1000
	at := time.Unix(1_000_000*3600, 0)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for n := range each {
				issuer.census.count(c, at.Add(time.Duration(n/(each/2))*time.Hour))
				for _, s := range issuer.Shares() {
					if s.Carried > s.Tokens {
						t.Errorf("%+v", s)
					}
				}
			}
		})
	}
	wg.Wait()
	if s := issuer.Shares()[1]; s.Tokens != workers*each || s.Carried != s.Tokens {
		t.Errorf("%+v, want %d", s, workers*each)
	}
}
