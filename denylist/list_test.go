package denylist

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"durward/token"
)

// tokens makes claims as a verified token would have them.
func tokens(t testing.TB, url string) func(claims map[string]any) *token.Claims {
	t.Helper()
	iss, err := token.NewIssuer(token.IssuerConfig{Name: "test", Issuer: url, Audiences: []string{"here"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return func(claims map[string]any) *token.Claims {
		t.Helper()
		c, err := iss.Suppose(claims, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func newList(maxEntries int) *List {
	l := New(maxEntries)
	l.LastRun(time.Now())
	l.SetIssuers(Issuers{limits(), {URL: partner, MaxLifetime: time.Hour}})
	return l
}

// parse reads lines that must be good; iss is corp unless they say otherwise.
func parse(t testing.TB, lines ...string) []Revocation {
	t.Helper()
	var rs []Revocation
	for _, line := range lines {
		r, err := Parse([]byte(line), Issuers{limits()}, time.Now(), false)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		rs = append(rs, r)
	}
	return rs
}

func add(t testing.TB, l *List, lines ...string) {
	t.Helper()
	if _, err := l.Add(parse(t, lines...), time.Now()); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		claims := map[string]any{"jti": "j1", "sid": "s1", "sub": "alice", "client_id": "app", "iat": now - 10, "auth_time": now - 100}
		at := func(d int64) string { return fmt.Sprint(now + d) }
		tests := []struct {
			name string
			line string
			want token.Kind
		}{
			{"its jti", `{"jti":"j1"}`, token.KindToken},
			{"another jti", `{"jti":"j2"}`, 0},
			{"a jti is exact", `{"jti":"J1"}`, 0},
			{"its session as a jti", `{"jti":"s1"}`, 0},
			{"its jti as a session", `{"sid":"j1"}`, 0},
			{"its session", `{"sid":"s1"}`, token.KindSession},
			{"another session", `{"sid":"s2"}`, 0},
			{"its session, cut after it", `{"sid":"s1","before":` + at(-9) + `}`, token.KindSession},
			{"its session, cut before it", `{"sid":"s1","before":` + at(-11) + `}`, 0},
			{"its subject", `{"sub":"alice","before":` + at(0) + `}`, token.KindSubject},
			{"its subject, cut before it", `{"sub":"alice","before":` + at(-11) + `}`, 0},
			{"another subject", `{"sub":"bob","before":` + at(0) + `}`, 0},
			{"its client", `{"client":"app","before":` + at(0) + `}`, token.KindClient},
			{"another client", `{"client":"alice","before":` + at(0) + `}`, 0},
			{"its issuer", `{"iss":"` + corp + `","before":` + at(0) + `}`, token.KindIssuer},
			{"its issuer, cut before it", `{"iss":"` + corp + `","before":` + at(-11) + `}`, 0},
			{"login before the cut", `{"sub":"alice","before":` + at(-50) + `,"by":"auth_time"}`, token.KindSubject},
			{"login after the cut", `{"sub":"alice","before":` + at(-101) + `,"by":"auth_time"}`, 0},
			{"its session is excepted", `{"sub":"alice","before":` + at(0) + `,"except":["sid:s1"]}`, 0},
			{"it is excepted", `{"sub":"alice","before":` + at(0) + `,"except":["jti:j1"]}`, 0},
			{"others are excepted", `{"sub":"alice","before":` + at(0) + `,"except":["sid:j1","jti:s1"]}`, token.KindSubject},
		}
		for _, tt := range tests {
			l := newList(10)
			add(t, l, tt.line)
			if got := l.Check(tokens(t, corp)(claims), time.Now()); got != tt.want {
				t.Errorf("%s: %s refuses by %v, want %v", tt.name, tt.line, got, tt.want)
			}
			// Issuers cannot revoke each other's tokens.
			if got := l.Check(tokens(t, partner)(claims), time.Now()); got != 0 {
				t.Errorf("%s: %s refuses another issuer's token by %v", tt.name, tt.line, got)
			}
			// Nothing may match a claim that is not there.
			if got := l.Check(tokens(t, corp)(map[string]any{"iat": now - 5}), time.Now()); got != 0 && got != token.KindIssuer {
				t.Errorf("%s: %s refuses a token without claims by %v", tt.name, tt.line, got)
			}
		}
	})
}

func TestUnverifiedClaimsAreRefused(t *testing.T) {
	if got := newList(10).Check(&token.Claims{}, time.Now()); got == 0 {
		t.Error("claims that nothing verified pass")
	}
	if got := newList(10).Check(tokens(t, corp)(nil), time.Now()); got != 0 {
		t.Errorf("an empty list refuses by %v", got)
	}
}

// Most iat are whole seconds, so that a token of the second of the cutoff may be
// from before it or from after it: it is refused.
func TestSameSecond(t *testing.T) {
	const T = 1790000000
	tests := []struct {
		iat, authTime any
		before, by    string
		refused       bool
	}{
		{T - 1, T - 1, "1790000000", "iat", true},
		{T, T, "1790000000", "iat", true},
		{T + 0.2, T, "1790000000", "iat", true},
		{T + 0.9, T, "1790000000", "iat", true},
		{T + 1, T, "1790000000", "iat", false},
		{T, T, "1790000000.5", "iat", true},
		{T + 0.2, T, "1790000000.5", "iat", true},
		{T + 0.9, T, "1790000000.5", "iat", true},
		{T + 1, T, "1790000000.5", "iat", false},
		{T + 1, T, "1790000000.999", "iat", false},
		{T - 1, T - 1, "1790000000", "auth_time", true},
		{T + 1, T, "1790000000", "auth_time", true},
		{T + 1, T + 0.2, "1790000000", "auth_time", true},
		{T + 1, T + 0.9, "1790000000.5", "auth_time", true},
		{T + 1, T + 1, "1790000000.5", "auth_time", false},
		{T, nil, "1790000000", "auth_time", true},
		{T + 0.9, nil, "1790000000", "auth_time", true},
		{T + 1, nil, "1790000000", "auth_time", false},
	}
	for _, tt := range tests {
		l := newList(10)
		r, err := Parse([]byte(`{"sub":"alice","before":`+tt.before+`,"by":"`+tt.by+`"}`), Issuers{limits()}, unix(T), false)
		if err != nil {
			t.Fatal(err)
		}
		l.apply([]Revocation{r}, unix(T), false)
		l.put(&r, 1<<31) // however long ago T is when this runs
		claims := map[string]any{"sub": "alice", "iat": tt.iat}
		if tt.authTime != nil {
			claims["auth_time"] = tt.authTime
		}
		if got := l.Check(tokens(t, corp)(claims), unix(T)) != 0; got != tt.refused {
			t.Errorf("iat %v, auth_time %v, cut %s by %s: refused is %v, want %v", tt.iat, tt.authTime, tt.before, tt.by, got, tt.refused)
		}
	}
}

// Whatever the order, every cutoff that was ever given holds.
func TestCutoffsAreORed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		mint := tokens(t, corp)
		rule := func(before int64, more string) string {
			return fmt.Sprintf(`{"sub":"alice","before":%d%s}`, now+before, more)
		}
		keepX, keepY, keepXY, login := `,"except":["sid:x"]`, `,"except":["sid:y"]`, `,"except":["sid:x","sid:y"]`, `,"by":"auth_time"`
		var nine []string
		for i := range int64(9) {
			nine = append(nine, rule(-100-i, fmt.Sprintf(`,"except":["sid:x","sid:%d"]`, i)))
		}
		tests := []struct {
			name    string
			rules   []string
			sid     string
			iat     int64
			refused bool
			pairs   int // with exceptions that are kept
		}{
			{"a later one with exceptions does not hide an earlier one", []string{rule(-100, ""), rule(-80, keepX)}, "x", -100, true, 1},
			{"and lets the excepted pass behind it", []string{rule(-100, ""), rule(-80, keepX)}, "x", -99, false, 1},
			{"and refuses the others", []string{rule(-100, ""), rule(-80, keepX)}, "z", -80, true, 1},
			{"a later one without exceptions covers it", []string{rule(-100, keepX), rule(-80, "")}, "x", -80, true, 0},
			{"fewer exceptions cover more", []string{rule(-100, keepXY), rule(-100, keepX)}, "y", -100, true, 1},
			{"more exceptions do not cover fewer", []string{rule(-100, keepX), rule(-80, keepXY)}, "y", -100, true, 2},
			{"other exceptions are ORed", []string{rule(-100, keepX), rule(-100, keepY)}, "x", -100, true, 2},
			{"times only rise", []string{rule(-80, ""), rule(-100, "")}, "z", -80, true, 0},
			{"the same twice is one", []string{rule(-80, keepX), rule(-80, keepX)}, "x", -80, false, 1},
			{"by login does not cover by issue", []string{rule(-90, keepX), rule(-80, login)}, "z", -90, true, 1},
			{"eight keep their exceptions", nine[:8], "x", -108, false, 8},
			{"nine lose them", nine, "x", -100, true, 0},
			{"nine lose them, and take no more", nine, "x", -99, false, 0},
		}
		for _, tt := range tests {
			for _, order := range []string{"as given", "reversed"} {
				l := newList(10)
				for i := range tt.rules {
					if order == "reversed" {
						i = len(tt.rules) - 1 - i
					}
					add(t, l, tt.rules[i])
				}
				c := mint(map[string]any{"sub": "alice", "sid": tt.sid, "iat": now + tt.iat, "auth_time": now - 10})
				if got := l.Check(c, time.Now()) != 0; got != tt.refused {
					t.Errorf("%s (%s): refused is %v, want %v", tt.name, order, got, tt.refused)
				}
				cs := l.cutoffs[token.KindSubject].cutoff(token.Identify(token.KindSubject, corp, "alice"))
				if len(cs.Excepted) != tt.pairs {
					t.Errorf("%s (%s): %d cutoffs with exceptions are kept, want %d", tt.name, order, len(cs.Excepted), tt.pairs)
				}
			}
		}
	})
}

func TestRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, now := newList(10), time.Now()
		after := 24*time.Hour + 33*time.Second // max_lifetime + leeway + skew, and the second
		exp := func(d time.Duration) string { return fmt.Sprintf(`,"exp":%d}`, now.Add(d).Unix()) }
		tests := []struct {
			line string
			want time.Duration
		}{
			{`{"jti":"a"}`, after},
			{`{"sid":"a"}`, 30*24*time.Hour + after}, // its issuer may go on refreshing it
			{`{"jti":"a"` + exp(-time.Hour), after},
			{`{"jti":"a"` + exp(time.Hour), after},
			{`{"jti":"a"` + exp(48*time.Hour), 48 * time.Hour},
			{fmt.Sprintf(`{"sub":"a","before":%d}`, now.Unix()), after},
			{fmt.Sprintf(`{"sub":"a","before":%d}`, now.Unix()-3600), after - time.Hour},
			{fmt.Sprintf(`{"sub":"a","before":%d,"by":"auth_time"}`, now.Unix()-3600), 30*24*time.Hour + after - time.Hour},
			{fmt.Sprintf(`{"sub":"a","before":%d`, now.Unix()-3600) + exp(time.Minute), after - time.Hour},
			{fmt.Sprintf(`{"sub":"a","before":%d`, now.Unix()-3600) + exp(90*time.Hour), 90 * time.Hour},
		}
		for _, tt := range tests {
			if got := l.Retention(parse(t, tt.line)[0], now).Sub(now); got != tt.want {
				t.Errorf("%s is kept for %v, want %v", tt.line, got, tt.want)
			}
		}
		never := unix(1<<32 - 1)
		if got := l.Retention(Revocation{Issuer: "gone", Kind: token.KindToken, Value: "a"}, now); !got.Equal(never) {
			t.Errorf("of an unknown issuer: until %v, want %v", got, never)
		}
		if got := l.Retention(Revocation{Issuer: "gone", Kind: token.KindToken, Value: "a", Expiry: now}, now); !got.Equal(now) {
			t.Errorf("of an unknown issuer with exp: until %v, want %v", got, now)
		}
		l.SetIssuers(Issuers{{URL: corp}})
		if got := l.Retention(parse(t, `{"jti":"a"}`)[0], now); !got.Equal(never) {
			t.Errorf("without limits: until %v, want %v", got, never)
		}
	})
}

// An entry leaves when both clocks say so: a step of the wall clock, whichever
// way, revives no token.
func TestForgetting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newList(10)
		now := time.Now()
		add(t, l, `{"jti":"a"}`, `{"sid":"a"}`, fmt.Sprintf(`{"sid":"a","before":%d}`, now.Unix()), fmt.Sprintf(`{"sub":"a","before":%d}`, now.Unix()))
		steps := []struct {
			name    string
			pass    time.Duration // of real time
			stepped time.Duration // what the wall clock shows beyond it
			left    int
		}{
			{"at once", 0, 0, 4},
			{"set ten years ahead", 0, 87600 * time.Hour, 4},
			{"set ten years back", 0, -87600 * time.Hour, 4},
			{"in the last second", 24*time.Hour + 33*time.Second, 0, 4},
			{"later, but set back a day", 2 * time.Second, -24 * time.Hour, 4},
			{"later", 0, 0, 1}, // the denial of the session, which may still obtain tokens
			{"a month later", 30 * 24 * time.Hour, 0, 0},
		}
		for _, s := range steps {
			time.Sleep(s.pass)
			dropped := l.Sweep(time.Now().Add(s.stepped))
			if st := l.Stats(); st.Total != s.left || dropped != 0 && s.left > 1 {
				t.Errorf("%s: %d left, %d dropped; want %d left", s.name, st.Total, dropped, s.left)
			}
		}
		if st := l.Stats(); st.Bytes != 0 || st.Entries != [token.Kinds + 1]int{} {
			t.Errorf("an empty list counts %+v", st)
		}
	})
}

// A denial that comes while the wall clock is set back must last until the tokens
// expire by the clock that is right.
func TestDenialWhileClockIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newList(10)
		back := time.Now().Add(-20 * time.Hour)
		if _, err := l.Add(parse(t, `{"jti":"a"}`), back); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		if n := l.Sweep(time.Now()); n != 0 {
			t.Error("forgotten while the token can still be accepted")
		}
	})
}

func TestRaisedEntriesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newList(10)
		add(t, l, `{"jti":"a"}`)
		time.Sleep(23 * time.Hour)
		add(t, l, `{"jti":"a"}`)
		time.Sleep(23 * time.Hour)
		if n := l.Sweep(time.Now()); n != 0 {
			t.Error("forgotten although it was revoked again")
		}
		if e, ok := l.Lookup(token.KindToken, corp, "a"); !ok || time.Until(e.Until) < time.Hour {
			t.Errorf("held is %v, %+v", ok, e)
		}
	})
}

func TestPastRetentionIsNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newList(10)
		s := l.Source("f", time.Second)
		now := time.Now()
		rs := parse(t, fmt.Sprintf(`{"sub":"a","before":%d}`, now.Unix()-100000), fmt.Sprintf(`{"sub":"b","before":%d}`, now.Unix()-1000))
		if _, err := s.Apply(rs, now); err != nil {
			t.Fatal(err)
		}
		if st := l.Stats(); st.Total != 1 {
			t.Errorf("%d entries, want 1", st.Total)
		}
		if st := s.Status(now); st.Applied != 2 {
			t.Errorf("%d applied, want 2", st.Applied)
		}
	})
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newList(10)
		add(t, l, `{"jti":"a"}`)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		time.Sleep(24 * time.Hour)
		if l.Stats().Total != 1 {
			t.Error("forgotten early")
		}
		time.Sleep(3 * time.Minute)
		if l.Stats().Total != 0 {
			t.Error("not forgotten")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFullNeverEvicts(t *testing.T) {
	l := newList(2)
	now := time.Now()
	c := tokens(t, corp)(map[string]any{"sub": "alice", "jti": "c", "iat": now.Unix() - 5})
	_, err := l.Add(parse(t, `{"jti":"a"}`, fmt.Sprintf(`{"sub":"alice","before":%d}`, now.Unix()-10), `{"jti":"c"}`, `{"jti":"d"}`), now)
	if !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want %v", err, ErrFull)
	}
	want := "the denylist is full: 2 of 4 revocations do not fit beside the 2 entries held; raise denylist.max_entries (2)"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if got := l.Check(c, now); got != 0 {
		t.Errorf("refused by %v before it is revoked", got)
	}
	// What is held can be raised, and is all still there.
	add(t, l, `{"jti":"a"}`, fmt.Sprintf(`{"sub":"alice","before":%d}`, now.Unix()-1))
	if got := l.Check(c, now); got != token.KindSubject {
		t.Errorf("refused by %v, want sub", got)
	}
	if _, ok := l.Lookup(token.KindToken, corp, "a"); !ok {
		t.Error("the first entry is gone")
	}
	l.SetMaxEntries(1)
	if st := l.Stats(); st.Total != 2 || st.Max != 1 || st.Entries[token.KindToken] != 1 || st.Entries[token.KindSubject] != 1 || st.Bytes == 0 {
		t.Errorf("after lowering the limit: %+v", st)
	}
	l.SetMaxEntries(3)
	add(t, l, `{"jti":"c"}`)
	if _, err := New(0).Add(parse(t, `{"jti":"a"}`), now); !errors.Is(err, ErrFull) {
		t.Errorf("a list without room: %v", err)
	}
}

func TestLookup(t *testing.T) {
	l := newList(10)
	now := time.Now().Unix()
	add(t, l, `{"jti":"a"}`, fmt.Sprintf(`{"sub":"a","before":%d.5}`, now), fmt.Sprintf(`{"sid":"a","before":%d}`, now))
	if e, ok := l.Lookup(token.KindToken, corp, "a"); !ok || e.Kind != token.KindToken || !e.Before.IsZero() {
		t.Errorf("jti: %+v, %v", e, ok)
	}
	if e, ok := l.Lookup(token.KindSubject, corp, "a"); !ok || e.Before.Unix() != now || e.Until.Unix() != now+24*3600+34 {
		t.Errorf("sub: %+v, %v", e, ok)
	}
	if e, ok := l.Lookup(token.KindSession, corp, "a"); !ok || e.Before.IsZero() {
		t.Errorf("sid: %+v, %v", e, ok)
	}
	add(t, l, `{"sid":"a"}`)
	if e, ok := l.Lookup(token.KindSession, corp, "a"); !ok || !e.Before.IsZero() {
		t.Errorf("sid that is denied: %+v, %v", e, ok)
	}
	for _, kind := range []token.Kind{token.KindClient, token.KindIssuer} {
		if e, ok := l.Lookup(kind, corp, "a"); ok {
			t.Errorf("%v: %+v", kind, e)
		}
	}
	if _, ok := l.Lookup(token.KindToken, partner, "a"); ok {
		t.Error("found under another issuer")
	}
}

// What Add returned for is found, while others add, check and sweep.
func TestNoFalseNegatives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writers, each = 4, 3000
		l := newList(1_000_000)
		mint := tokens(t, corp)
		now := time.Now()
		good := mint(map[string]any{"jti": "good", "sid": "good", "sub": "good"})
		var added [writers]atomic.Int64
		var work, churn sync.WaitGroup
		stop := make(chan struct{})
		name := func(w, i int64) string { return fmt.Sprintf("%d-%d", w, i) }
		for w := range int64(writers) {
			work.Go(func() {
				for i := range int64(each) {
					v := name(w, i)
					rs := []Revocation{
						{Issuer: corp, Kind: token.KindToken, Value: v},
						{Issuer: corp, Kind: token.KindSession, Value: v},
						{Issuer: corp, Kind: token.KindSubject, Value: v, Before: now},
						// Passing entries, which the sweeps take away meanwhile.
						{Issuer: partner, Kind: token.KindToken, Value: v},
						{Issuer: partner, Kind: token.KindSubject, Value: v, Before: now},
					}
					if _, err := l.Add(rs, now); err != nil {
						t.Error(err)
						return
					}
					added[w].Store(i + 1)
				}
			})
			work.Go(func() {
				var seed [8]byte
				for i := range int64(each) {
					n := added[w].Load()
					if n == 0 {
						continue
					}
					binary.LittleEndian.PutUint64(seed[:], uint64(i)*0x9e3779b97f4a7c15)
					v := name(w, int64(binary.LittleEndian.Uint64(seed[:])%uint64(n)))
					for _, claim := range []string{"jti", "sid", "sub"} {
						if l.Check(mint(map[string]any{claim: v, "iat": now.Unix()}), now) == 0 {
							t.Errorf("%s %q passes after it was revoked", claim, v)
						}
					}
					if got := l.Check(good, now); got != 0 {
						t.Errorf("a good token is refused by %v", got)
					}
				}
			})
		}
		churn.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					// As far ahead as takes the other issuer's entries and none of ours.
					for kind := range l.denials {
						past := uint32(now.Add(2 * time.Hour).Unix())
						l.total.Add(-int64(l.denials[kind].sweep(past, false) + l.cutoffs[kind].sweep(past, false)))
					}
				}
			}
		})
		work.Wait()
		close(stop)
		churn.Wait()
		time.Sleep(2 * time.Hour)
		l.Sweep(time.Now())
		if st := l.Stats(); st.Total < writers*each*3 || st.Total > writers*each*3*5/4 {
			t.Errorf("%d entries are left, want %d and few more", st.Total, writers*each*3)
		}
		for w := range int64(writers) {
			for i := range int64(each) {
				if l.Check(mint(map[string]any{"jti": name(w, i)}), now) == 0 {
					t.Fatalf("%s is gone", name(w, i))
				}
			}
		}
	})
}

func TestCheckAllocatesNothing(t *testing.T) {
	l := newList(10)
	now := time.Now()
	at := now.Unix() - 100
	add(t, l, `{"jti":"a"}`, `{"sid":"a"}`, fmt.Sprintf(`{"sub":"a","before":%d,"except":["sid:x"]}`, at), fmt.Sprintf(`{"client":"a","before":%d}`, at), fmt.Sprintf(`{"iss":"%s","before":%d}`, corp, at))
	for _, jti := range []string{"a", "b"} {
		c := tokens(t, corp)(map[string]any{"jti": jti, "sid": "b", "sub": "a", "client_id": "a"})
		if want := jti == "a"; (l.Check(c, now) != 0) != want {
			t.Errorf("jti %q: refused is %v", jti, !want)
		}
		if n := testing.AllocsPerRun(100, func() { l.Check(c, now) }); n != 0 {
			t.Errorf("jti %q: %v allocations", jti, n)
		}
	}
}
