package denylist

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"durward/token"
)

// holds is all that a list holds, by identity.
func holds(l *List) (map[token.ID]Denial, map[token.ID]Cutoff) {
	denials, cutoffs := map[token.ID]Denial{}, map[token.ID]Cutoff{}
	for d := range l.Denials() {
		denials[d.ID] = d
	}
	for c := range l.Cutoffs() {
		cutoffs[c.ID] = c
	}
	return denials, cutoffs
}

// What a list gives, another takes, and then refuses the same.
func TestContents(t *testing.T) {
	now := time.Now()
	before := func(d int64) string { return fmt.Sprintf(`,"before":%d`, now.Unix()+d) }
	l := newList(100)
	add(t, l, `{"jti":"a"}`, `{"jti":"b","exp":`+fmt.Sprint(now.Unix()+1e6)+`}`, `{"sid":"a"}`, `{"sid":"a"`+before(0)+`}`,
		`{"sub":"a"`+before(-5)+`}`, `{"sub":"a"`+before(-9)+`,"by":"auth_time"}`, `{"sub":"a"`+before(0)+`,"except":["sid:x","jti:y"]}`,
		`{"sub":"a"`+before(0)+`,"by":"auth_time","except":["sid:z"]}`, `{"client":"c"`+before(0)+`}`, `{"iss":"`+corp+`"`+before(-100)+`}`)
	if _, err := l.Add([]Revocation{{Issuer: "https://gone.example", Kind: token.KindToken, Value: "never"}}, now); err != nil {
		t.Fatal(err)
	}
	denials, cutoffs := holds(l)
	if len(denials) != 4 || len(cutoffs) != 4 || len(cutoffs[token.Identify(token.KindSubject, corp, "a")].Excepted) != 2 {
		t.Fatalf("held are %v and %+v", denials, cutoffs)
	}
	if d := denials[token.Identify(token.KindToken, "https://gone.example", "never")]; d.Until != math.MaxUint32 {
		t.Errorf("what is never forgotten is kept until %d", d.Until)
	}

	again := newList(8)
	for range 2 { // the second time changes nothing
		if err := errors.Join(again.RestoreDenials(len(denials), maps.Values(denials)), again.RestoreCutoffs(maps.Values(cutoffs))); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-again.Changed():
	default:
		t.Error("nobody was told")
	}
	if d, c := holds(again); !maps.Equal(d, denials) || !reflect.DeepEqual(c, cutoffs) {
		t.Errorf("restored are\n%v and %+v, want\n%v and %+v", d, c, denials, cutoffs)
	}
	if a, b := l.Stats(), again.Stats(); a.Entries != b.Entries || a.Total != b.Total {
		t.Errorf("restored are %+v, want %+v", b, a)
	}

	// A union: what is held already is kept if it is kept longer, or refuses more.
	more := newList(100)
	add(t, more, `{"sub":"a"`+before(-2)+`}`, `{"sub":"a"`+before(-20)+`,"by":"auth_time"}`, `{"jti":"a","exp":`+fmt.Sprint(now.Unix()+1e7)+`}`, `{"jti":"z"}`)
	if err := errors.Join(more.RestoreDenials(0, l.Denials()), more.RestoreCutoffs(l.Cutoffs())); err != nil {
		t.Fatal(err)
	}
	d, c := holds(more)
	subject := c[token.Identify(token.KindSubject, corp, "a")]
	if subject.IssuedAt != now.Unix()-2 || subject.AuthTime != now.Unix()-9 || len(subject.Excepted) != 2 {
		t.Errorf("the subject's cutoffs are %+v", subject)
	}
	if until := int64(d[token.Identify(token.KindToken, corp, "a")].Until); len(d) != 5 || until != now.Unix()+1e7 {
		t.Errorf("%d denials, one until %d", len(d), until)
	}
}

func TestRestoreKeepsTheRules(t *testing.T) {
	later := uint32(time.Now().Unix() + 1000)
	denial := func(n uint64) Denial { return Denial{token.KindToken, identity(n), later} }
	cutoff := func(n uint64) Cutoff {
		return Cutoff{Kind: token.KindSubject, ID: identity(n), IssuedAt: 5, Until: later}
	}

	l := newList(3)
	err := l.RestoreDenials(2, slices.Values([]Denial{denial(1), denial(2)}))
	if err != nil {
		t.Fatal(err)
	}
	err = l.RestoreCutoffs(slices.Values([]Cutoff{cutoff(3), cutoff(4), cutoff(3)}))
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "1 of 3 revocations do not fit beside the 3 entries held") {
		t.Errorf("cutoffs beyond the limit: %v", err)
	}
	err = l.RestoreDenials(9, slices.Values([]Denial{denial(5), denial(1), denial(6)}))
	if !errors.Is(err, ErrFull) || l.Stats().Total != 3 {
		t.Errorf("denials beyond the limit: %v, %+v", err, l.Stats())
	}

	l = newList(10)
	expired, never := denial(1), denial(2)
	expired.Until, never.Until = 1, math.MaxUint32
	if err := l.RestoreDenials(2, slices.Values([]Denial{expired, never})); err != nil || l.Stats().Total != 1 || !l.denials[token.KindToken].has(never.ID) {
		t.Errorf("one that expired and one that never will: %v, %+v", err, l.Stats())
	}
	past := cutoff(1)
	past.Until = 1
	if err := l.RestoreCutoffs(slices.Values([]Cutoff{past})); err != nil || l.Stats().Total != 1 {
		t.Errorf("a cutoff that expired: %v, %+v", err, l.Stats())
	}
	for _, kind := range []token.Kind{0, token.KindSubject, token.KindIssuer, 200} {
		if err := l.RestoreDenials(1, slices.Values([]Denial{{kind, identity(9), later}})); err == nil {
			t.Errorf("a denial of kind %d is taken", kind)
		}
	}
	for _, kind := range []token.Kind{0, token.KindToken, 200} {
		if err := l.RestoreCutoffs(slices.Values([]Cutoff{{Kind: kind, ID: identity(9), IssuedAt: 5, Until: later}})); err == nil {
			t.Errorf("a cutoff of kind %d is taken", kind)
		}
	}
	if l.Stats().Total != 1 {
		t.Errorf("left are %+v", l.Stats())
	}
}

// A walk misses nothing that was there when it began, while others add, raise,
// rebuild and sweep.
func TestWalkBesideWriters(t *testing.T) {
	const n = 20_000
	l := New(math.MaxInt)
	s := &l.denials[token.KindToken]
	for i := range uint64(n) {
		l.deny(token.KindToken, identity(i), math.MaxUint32-1)
		l.cut(token.KindSubject, identity(i), math.MaxUint32, ExceptedCutoff{Before: 1})
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := uint64(n); ; i++ {
			select {
			case <-stop:
				return
			default:
				l.deny(token.KindToken, identity(i), uint32(i))
				l.deny(token.KindToken, identity(i%n), math.MaxUint32)
				l.cut(token.KindSubject, identity(i), uint32(i), ExceptedCutoff{Before: 1})
				rebuild(s, int(i%shards), int(i%50))
				s.sweep(uint32(i), true)
				l.cutoffs[token.KindSubject].sweep(uint32(i), true)
			}
		}
	}()
	for range 5 {
		denials, cutoffs := holds(l)
		for i := range uint64(n) {
			if d, ok := denials[identity(i)]; !ok || d.Until < math.MaxUint32-1 || d.Kind != token.KindToken {
				t.Fatalf("%d came as %+v, %v", i, d, ok)
			}
			if c, ok := cutoffs[identity(i)]; !ok || c.IssuedAt != 1 {
				t.Fatalf("the cutoff %d came as %+v, %v", i, c, ok)
			}
		}
	}
	close(stop)
	<-done
	for range l.Denials() {
		break // stopping early is no harm
	}
	for range l.Cutoffs() {
		break
	}
}

// News are what others may not know.
func TestNews(t *testing.T) {
	now := time.Now()
	at := func(d int64) string { return fmt.Sprint(now.Unix() + d) }
	day := int64(24 * 3600)
	l := newList(100)
	s := l.Source("f", time.Minute)
	steps := []struct {
		name  string
		lines []string
		later time.Duration
		want  int // how many of the first lines are news
	}{
		{"a new jti", []string{`{"jti":"a"}`}, 0, 1},
		{"again", []string{`{"jti":"a"}`}, 0, 0},
		{"again and later, so that it is kept longer", []string{`{"jti":"a"}`}, time.Hour, 0},
		{"with an exp that is over by then", []string{`{"jti":"a","exp":` + at(3600) + `}`}, 0, 0},
		{"with an exp beyond", []string{`{"jti":"a","exp":` + at(3*day) + `}`}, 0, 1},
		{"with that exp again", []string{`{"jti":"a","exp":` + at(3*day) + `}`}, 0, 0},
		{"two of one", []string{`{"jti":"b"}`, `{"jti":"b"}`}, 0, 1},
		{"a session", []string{`{"sid":"a"}`}, 0, 1},
		{"a session's cutoff beside its denial", []string{`{"sid":"a","before":` + at(0) + `}`}, 0, 1},
		{"a cutoff", []string{`{"sub":"a","before":` + at(0) + `}`}, 0, 1},
		{"a lower one", []string{`{"sub":"a","before":` + at(-1) + `}`}, 0, 0},
		{"in the same second", []string{`{"sub":"a","before":` + at(0) + `.9}`}, 0, 0},
		{"a higher one", []string{`{"sub":"a","before":` + at(1) + `}`}, 0, 1},
		{"by login, which keeps it longer", []string{`{"sub":"a","before":` + at(0) + `,"by":"auth_time"}`}, 0, 1},
		{"with exceptions, of what is cut anyway", []string{`{"sub":"a","before":` + at(1) + `,"except":["sid:x"]}`}, 0, 0},
		{"with exceptions", []string{`{"sub":"a","before":` + at(5) + `,"except":["sid:x"]}`}, 0, 1},
		{"with more exceptions", []string{`{"sub":"a","before":` + at(5) + `,"except":["sid:x","sid:y"]}`}, 0, 0},
		{"with others", []string{`{"sub":"a","before":` + at(5) + `,"except":["sid:y"]}`}, 0, 1},
		{"without exceptions", []string{`{"sub":"a","before":` + at(5) + `}`}, 0, 1},
		{"an exp that keeps a cutoff", []string{`{"sub":"a","before":` + at(5) + `,"exp":` + at(100*day) + `}`}, 0, 1},
		{"expired", []string{`{"sub":"old","before":` + at(-2*day) + `}`}, 0, 0},
		{"expired, with exp", []string{`{"sub":"old","before":` + at(-2*day) + `,"exp":` + at(-day) + `}`}, 0, 0},
	}
	for _, step := range steps {
		rs := parse(t, step.lines...)
		news, err := s.Apply(rs, now.Add(step.later))
		if err != nil {
			t.Fatal(err)
		}
		if len(news) != step.want || step.want > 0 && !reflect.DeepEqual(news, rs[:step.want]) {
			t.Errorf("%s: news are %+v, want the first %d", step.name, news, step.want)
		}
	}
	l.SetMaxEntries(l.Stats().Total + 1)
	news, err := l.Add(parse(t, `{"jti":"a"}`, `{"jti":"y"}`, `{"jti":"z"}`), now)
	if !errors.Is(err, ErrFull) || len(news) != 1 || news[0].Value != "y" {
		t.Errorf("full: news are %+v, %v", news, err)
	}
}

func TestNear(t *testing.T) {
	l := newList(10)
	for i := range 9 {
		if got, want := l.Near(), i >= 8; got != want {
			t.Errorf("near with %d of 10 is %v", i, got)
		}
		add(t, l, fmt.Sprintf(`{"jti":"%d"}`, i))
	}
	if l.SetMaxEntries(math.MaxInt); l.Near() {
		t.Error("near without a limit")
	}
}
