package denylist

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"durward/token"
)

const lease = 5 * time.Second

// key is the private key number i of this test run.
func key(i byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{i}, ed25519.SeedSize))
}

// public are the keys that records must be signed with: those of these numbers.
func public(numbers ...byte) Keys {
	var all []Key
	for _, i := range numbers {
		all = append(all, Key{Name: fmt.Sprint("key-", i), Public: key(i).Public().(ed25519.PublicKey)})
	}
	return NewKeys(all...)
}

// A reader is a gateway that follows.
type reader struct {
	*Follower
	t    testing.TB
	list *List
	log  *Log
	said bytes.Buffer
}

// newReader follows as the configuration says; the list, the source and the log
// are made here.
func newReader(t testing.TB, cfg FollowerConfig) *reader {
	r := &reader{t: t, list: newList(1000), log: NewLog()}
	cfg.List, cfg.Source, cfg.Log = r.list, r.list.Source("feed", lease), r.log
	cfg.Lines = slog.New(slog.NewTextHandler(&r.said, nil))
	cfg.Source.Begin()
	r.Follower = NewFollower(cfg)
	return r
}

// take gives the follower lines and says what must come of it.
func (r *reader) take(when string, now time.Time, want error, lines ...[]byte) {
	r.t.Helper()
	if err := r.Take(lines, now); err != want {
		r.t.Fatalf("%s: %v, want %v", when, err, want)
	}
}

// holds says which jti must be enforced, separated by spaces.
func (r *reader) holds(when, jtis string) {
	r.t.Helper()
	want := strings.Fields(jtis)
	for _, jti := range want {
		if _, ok := r.list.Lookup(token.KindToken, corp, jti); !ok {
			r.t.Errorf("%s: %s is not enforced", when, jti)
		}
	}
	if got := r.list.Stats().Entries[token.KindToken]; got != len(want) {
		r.t.Errorf("%s: %d tokens are denied, want %d (%s)", when, got, len(want), jtis)
	}
}

func (r *reader) state(when string, now time.Time, want State) {
	r.t.Helper()
	if got := r.list.State("", now); got != want {
		r.t.Fatalf("%s: %v, want %v\n%s", when, got, want, r.said.String())
	}
}

// counted says how often each event must have happened; the rest not at all.
func (r *reader) counted(when string, want map[Event]uint64) {
	r.t.Helper()
	for e := range Event(Events) {
		if got := r.Count(e); got != want[e] {
			r.t.Errorf("%s: %v is counted %d times, want %d", when, e, got, want[e])
		}
	}
}

// A tape is what a source said: record n and the heartbeat after it, from 1. Each
// record n but the first, which is empty, denies the jti n, and is made n seconds
// after the tape's start, its heartbeat half a second later.
type tape struct {
	start   time.Time
	records [][]byte
	beats   [][]byte
	log     *Log
	writer  *Writer
}

// record makes a tape of n records.
func record(source string, private ed25519.PrivateKey, from Head, n int, start time.Time) *tape {
	tp := &tape{start: start, log: NewLog(), records: [][]byte{nil}, beats: [][]byte{nil}}
	for i := 1; i <= n; i++ {
		at := start.Add(time.Duration(i) * time.Second)
		if i == 1 {
			from.Source = source
			tp.writer = NewWriter(tp.log, private, from, false, at)
		} else {
			tp.writer.Publish([]Revocation{{Issuer: corp, Kind: token.KindToken, Value: fmt.Sprint(i)}}, at)
		}
		tp.writer.Beat(at.Add(time.Second / 2))
		k := tp.log.chains[source]
		tp.records = append(tp.records, k.records[len(k.records)-1])
		tp.beats = append(tp.beats, k.beat)
	}
	return tp
}

// end is when the last record was made.
func (tp *tape) end() time.Time {
	return tp.start.Add(time.Duration(len(tp.records)-1) * time.Second)
}

// after is a record that follows record n, or claims to, with these operations.
func (tp *tape) after(n int, private ed25519.PrivateKey, ops ...string) []byte {
	head := tp.writer.Place().Head
	head.Number = uint64(n) + 1
	r := &Record{Head: head, Previous: hashOf(tp.records[n]), Made: tp.start.Add(time.Duration(n+1) * time.Second), Ops: [][]byte{}}
	for _, op := range ops {
		r.Ops = append(r.Ops, []byte(op))
	}
	return r.encode(private)
}

// beatAt is a heartbeat that says that the chain ends with record n.
func (tp *tape) beatAt(n int, hash Hash, private ed25519.PrivateKey, made time.Time) []byte {
	head := tp.writer.Place().Head
	head.Number = uint64(n)
	return (&Record{Head: head, Previous: hash, Made: made}).encode(private)
}

func jtiLine(v string) string { return `{"iss":"` + corp + `","jti":"` + v + `"}` }

// begin is a time of start for tapes whose five records end now.
func begin() time.Time { return time.Now().Add(-5 * time.Second) }

// What a Writer writes a Follower takes: every kind of revocation, with and
// without signatures, in as many records as it takes.
func TestFollow(t *testing.T) {
	for _, private := range []ed25519.PrivateKey{nil, key(1)} {
		now := time.Now()
		keys := Keys{}
		if private != nil {
			keys = public(2, 1)
		}
		var delays []time.Duration
		r := newReader(t, FollowerConfig{Keys: keys, Mass: true, Delay: func(d time.Duration) { delays = append(delays, d) }})
		log := NewLog()
		w := NewWriter(log, private, Head{Source: "hub"}, false, now)
		sec := fmt.Sprint(now.Unix())
		rs := parse(t, `{"jti":"t"}`, `{"sid":"s"}`, `{"sid":"s2","before":`+sec+`}`, `{"sub":"u","before":`+sec+`}`,
			`{"sub":"v","before":`+sec+`,"by":"auth_time","except":["sid:keep"]}`, `{"client":"c","before":`+sec+`}`, `{"iss":"`+corp+`","before":`+sec+`}`)
		w.Publish(rs, now)
		var many []Revocation
		for i := range MaxOps + 1 {
			many = append(many, Revocation{Issuer: partner, Kind: token.KindToken, Value: fmt.Sprint(i)})
		}
		w.Publish(nil, now) // says nothing
		w.Publish(many[:900], now)
		w.Publish(many[:MaxOps+1], now) // takes two
		w.Publish([]Revocation{{Issuer: corp, Kind: token.KindToken, Value: strings.Repeat("x", MaxLine-500)}}, now)
		w.Beat(now)

		r.list.SetMaxEntries(10_000)
		later := now.Add(20 * time.Millisecond)
		for {
			reading, _, ok := log.Read(r.After(), 60_000) // several readings
			if !ok {
				t.Fatal("a follower from the beginning was sent for a snapshot")
			}
			if err := r.Take(append(reading.Records, reading.Beats...), later); err != nil {
				t.Fatal(err)
			}
			if len(reading.Beats) > 0 {
				break
			}
		}
		r.state("everything was taken", later, Live)
		r.state("at the end of the lease", later.Add(lease), Live)
		r.state("after it", later.Add(lease+time.Millisecond), Stale)
		r.counted("everything was taken", map[Event]uint64{Applied: 6})
		for _, d := range delays {
			if d < 0 || d > 21*time.Millisecond {
				t.Errorf("a record took %v, want up to 21ms, as records have milliseconds", d)
			}
		}
		if len(delays) != 6 {
			t.Errorf("%d delays were told, want 6", len(delays))
		}
		want := newList(10_000)
		for _, rs := range [][]Revocation{rs, many, {{Issuer: corp, Kind: token.KindToken, Value: strings.Repeat("x", MaxLine-500)}}} {
			if _, err := want.Add(rs, now); err != nil {
				t.Fatal(err)
			}
		}
		same(t, "followed", r.list, want)
		if places := r.Places(); len(places) != 1 || places[0] != w.Place() || !r.Whole() || r.Lost() {
			t.Errorf("the follower is at %v (whole %t, lost %t), want %v", places, r.Whole(), r.Lost(), w.Place())
		}
		if places := r.log.Places(); len(places) != 1 || places[0] != w.Place() {
			t.Errorf("its log ends at %v, want %v", places, w.Place())
		}
	}
}

// same compares what two lists enforce; when it may be forgotten may differ by the
// moment of being told.
func same(t testing.TB, when string, got, want *List) {
	t.Helper()
	type entry struct {
		kind token.Kind
		id   token.ID
	}
	content := func(l *List) (denials map[entry]uint32, cutoffs map[entry]Cutoff) {
		denials, cutoffs = map[entry]uint32{}, map[entry]Cutoff{}
		for d := range l.Denials() {
			denials[entry{d.Kind, d.ID}] = d.Until
		}
		for c := range l.Cutoffs() {
			cutoffs[entry{c.Kind, c.ID}] = c
		}
		return denials, cutoffs
	}
	gotD, gotC := content(got)
	wantD, wantC := content(want)
	if len(gotD) != len(wantD) || len(gotC) != len(wantC) {
		t.Errorf("%s: %d denials and %d cutoffs are held, want %d and %d", when, len(gotD), len(gotC), len(wantD), len(wantC))
	}
	near := func(a, b uint32) bool { return max(a, b)-min(a, b) <= 2 }
	for e, until := range wantD {
		if !near(gotD[e], until) {
			t.Errorf("%s: denial %v is held until %d, want %d", when, e, gotD[e], until)
		}
	}
	for e, c := range wantC {
		g := gotC[e]
		if g.IssuedAt != c.IssuedAt || g.AuthTime != c.AuthTime || !near(g.Until, c.Until) || !slices.EqualFunc(g.Excepted, c.Excepted, func(a, b ExceptedCutoff) bool {
			return a.Before == b.Before && a.ByAuthTime == b.ByAuthTime && slices.Equal(a.Except, b.Except)
		}) {
			t.Errorf("%s: cutoff %v is %+v, want %+v", when, e, g, c)
		}
	}
}

// Everything that can happen to a chain on its way, with and without signatures.
// What arrives is enforced whatever the chain says; what is missing is asked for,
// and nobody is live without it.
func TestChain(t *testing.T) {
	for _, private := range []ed25519.PrivateKey{nil, key(1)} {
		keys := Keys{}
		if private != nil {
			keys = public(1)
		}
		tp := record("hub", private, Head{}, 5, begin())
		now := tp.end()
		all := append(slices.Clone(tp.records[1:]), tp.beats[5])
		forkOf := func(n int) []byte { return tp.after(n-1, private, jtiLine("fork")) }
		tests := []struct {
			name  string
			lines [][]byte
			err   error
			holds string
			live  bool
			count map[Event]uint64
		}{
			{"in order", all, nil, "2 3 4 5", true, map[Event]uint64{Applied: 5}},
			{"nothing but a heartbeat", [][]byte{tp.beats[5]}, ErrLost, "", false, nil},
			{"records without a heartbeat", tp.records[1:], nil, "2 3 4 5", false, map[Event]uint64{Applied: 5}},
			{"every record twice", append(slices.Clone(tp.records[1:]), all...), nil, "2 3 4 5", true, map[Event]uint64{Applied: 5, Duplicate: 5}},
			{"a record is missing", slices.Concat(tp.records[1:3], tp.records[4:], [][]byte{tp.beats[5]}), ErrGap, "2 4 5", false, map[Event]uint64{Applied: 2, Gap: 2}},
			{"out of order", [][]byte{tp.records[1], tp.records[3], tp.records[2], tp.records[5], tp.records[4], tp.beats[5]}, ErrGap, "2 3 4 5", false, map[Event]uint64{Applied: 2, Gap: 3}},
			{"out of order, and then all of it", append([][]byte{tp.records[1], tp.records[2], tp.records[4], tp.records[3], tp.records[4]}, tp.records[5]), ErrGap, "2 3 4 5", false, map[Event]uint64{Applied: 5, Gap: 1}},
			{"the beginning is missing", append(slices.Clone(tp.records[3:]), tp.beats[5]), ErrLost, "3 4 5", false, nil},
			{"an old number again with something else", append(slices.Clone(all[:5]), forkOf(3), tp.beats[5]), ErrLost, "2 3 4 5 fork", false, map[Event]uint64{Applied: 5, Fork: 1}},
			{"the next number after another past", append(slices.Clone(all[:3]), (&Record{Head: Head{"hub", tp.writer.head.Epoch, 4}, Previous: Hash{1}, Made: now, Ops: [][]byte{[]byte(jtiLine("fork"))}}).encode(private)), ErrLost, "2 3 fork", false, map[Event]uint64{Applied: 3, Fork: 1}},
			{"a heartbeat of another past", append(slices.Clone(all[:5]), tp.beatAt(5, Hash{1}, private, now)), ErrLost, "2 3 4 5", false, map[Event]uint64{Applied: 5, Fork: 1}},
			{"a heartbeat of a record that has not come", append(slices.Clone(all[:4]), tp.beats[5]), nil, "2 3 4", false, map[Event]uint64{Applied: 4}},
			{"a heartbeat from before the last records", append(slices.Clone(all[:5]), tp.beats[3]), nil, "2 3 4 5", false, map[Event]uint64{Applied: 5}},
			{"what cannot be read", append([][]byte{[]byte(`{"src":"hub"}`)}, all...), nil, "2 3 4 5", true, map[Event]uint64{Applied: 5, Garbled: 1}},
		}
		for _, tt := range tests {
			r := newReader(t, FollowerConfig{Keys: keys, Mass: true})
			if private != nil && tt.count[Garbled] > 0 {
				tt.count[Forged], tt.count[Garbled] = tt.count[Garbled], 0
			}
			if err := r.Take(tt.lines, now); err != tt.err {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.err)
			}
			r.holds(tt.name, tt.holds)
			r.counted(tt.name, tt.count)
			want := Syncing
			if tt.live {
				want = Live
			}
			r.state(tt.name, now, want)

			// Whatever happened, the chain from its beginning sets it right, and nothing
			// is lifted by it.
			if tt.name == "a heartbeat of another past" {
				continue // one that never agrees with the chain is no such thing
			}
			if err := r.Take(all, now); err != nil {
				t.Errorf("%s, then all again: %v", tt.name, err)
			}
			held := "2 3 4 5"
			if strings.Contains(tt.holds, "fork") {
				held += " fork"
			}
			r.holds(tt.name+", then all again", held)
			r.state(tt.name+", then all again", now, Live)
		}
	}
}

// Nothing that is not signed by the source's own key does anything: it is counted
// and dropped, and the chain is not disturbed.
func TestForgery(t *testing.T) {
	tp := record("hub", key(1), Head{}, 5, begin())
	now := tp.end()
	unsigned := record("hub", nil, Head{}, 3, tp.start)
	none := func() []byte {
		parts := strings.Split(string(tp.records[3]), ".")
		header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"` + recordType + `","kid":"` + Signer(key(1)) + `"}`))
		return []byte(header + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.ReplaceAll(payload(t, parts[1]), `"3"`, `"evil"`))) + ".")
	}()
	resigned := func(header string) []byte {
		signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + strings.Split(string(tp.after(3, key(1), jtiLine("evil"))), ".")[1]
		return []byte(signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key(1), []byte(signed))))
	}
	kid := Signer(key(1))
	tests := []struct {
		name   string
		forged []byte
		want   string // of the last refusal
	}{
		{"another key", tp.after(3, key(3), jtiLine("evil")), "a key that is not in source_keys"},
		{"a source's key in another's name", tp.after(3, key(2), jtiLine("evil")), `is signed by "` + Signer(key(2)) + `", not by "` + kid + `" as before`},
		{"another key under the known kid", bytes.Replace(tp.after(3, key(3), jtiLine("evil")), []byte(strings.Split(string(tp.after(3, key(3))), ".")[0]), []byte(strings.Split(string(tp.after(3, key(1))), ".")[0]), 1), `is not that of "key-1"`},
		{"no signature", unsigned.after(3, nil, jtiLine("evil")), "not signed"},
		{"no algorithm", none, "alg EdDSA"},
		{"another typ", resigned(`{"alg":"EdDSA","typ":"JWT","kid":"` + kid + `"}`), "alg EdDSA"},
		{"no typ", resigned(`{"alg":"EdDSA","kid":"` + kid + `"}`), "alg EdDSA"},
		{"a critical extension", resigned(`{"alg":"EdDSA","typ":"` + recordType + `","kid":"` + kid + `","crit":"b64"}`), "nothing else"},
		{"two kids", resigned(`{"alg":"EdDSA","typ":"` + recordType + `","kid":"x","kid":"` + kid + `"}`), "given twice"},
		{"a signature that is cut off", tp.records[4][:len(tp.records[4])-6], "signature"},
		{"a signature spelled otherwise", append(slices.Clone(tp.records[4]), '='), "base64url"},
		{"a line end in the signature", slices.Insert(slices.Clone(tp.records[4]), len(tp.records[4])-2, '\n'), "base64url"},
		{"two parts", tp.records[4][:bytes.LastIndexByte(tp.records[4], '.')], "compact JWS"},
		{"four parts", append(slices.Clone(tp.records[4]), ".x"...), "compact JWS"},
		{"nothing", []byte{}, "compact JWS"},
		{"a heartbeat by another key", tp.beatAt(9, Hash{}, key(2), now), "not by"},
		{"an unsigned heartbeat", tp.beatAt(3, hashOf(tp.records[3]), nil, now), "not signed"},
	}
	for _, tt := range tests {
		r := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
		r.take(tt.name, now, nil, tp.records[1:4]...)
		r.take(tt.name, now, nil, tt.forged)
		r.counted(tt.name, map[Event]uint64{Applied: 3, Forged: 1})
		r.holds(tt.name, "2 3")
		if st := r.cfg.Source.Status(now); st.Refused != 1 || !strings.Contains(st.Error, tt.want) {
			t.Errorf("%s: refused %d, %q; want one with %q", tt.name, st.Refused, st.Error, tt.want)
		}
		r.state(tt.name, now, Syncing)
		r.take(tt.name+", then the genuine ones", now, nil, tp.records[4], tp.records[5], tp.beats[5])
		r.holds(tt.name+", then the genuine ones", "2 3 4 5")
		r.state(tt.name+", then the genuine ones", now, Live)
	}

	// The twin of the second row: the other key may write in its own name.
	r := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
	other := record("other", key(2), Head{}, 5, begin())
	r.take("two sources", now, nil, slices.Concat(tp.records[1:], other.records[1:], [][]byte{tp.beats[5], other.beats[5]})...)
	r.state("two sources", now, Live)
}

func payload(t testing.TB, part string) string {
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whoever carries the records of sources that sign must not be able to leave one
// of them out. Where nobody signs, the transport is trusted to name all.
func TestSourceLeftOut(t *testing.T) {
	for _, signed := range []bool{true, false} {
		a, b, keys := key(1), key(2), public(1, 2)
		if !signed {
			a, b, keys = nil, nil, Keys{}
		}
		one, two := record("one", a, Head{}, 5, begin()), record("two", b, Head{}, 5, begin())
		now := one.end()
		r := newReader(t, FollowerConfig{Keys: keys, Mass: true})
		r.take("both", now, nil, slices.Concat(one.records[1:], two.records[1:], [][]byte{one.beats[5], two.beats[5]})...)
		r.state("both", now, Live)

		one.writer.Beat(now.Add(time.Second))
		two.writer.Beat(now.Add(time.Second))
		beatOne, beatTwo := one.log.chains["one"].beat, two.log.chains["two"].beat
		at := now.Add(lease + time.Second)
		now = now.Add(time.Second)
		want := Live
		if signed {
			want = Stale
		}
		r.take("one is left out", now.Add(time.Millisecond), nil, beatOne)
		r.state("one was left out for longer than the lease", at, want)
		r.take("both again", now.Add(2*time.Millisecond), nil, beatOne, beatTwo)
		r.state("both again", at, Live)
	}
}

// A lease is prolonged by heartbeats that are new, and by nothing else.
func TestHeartbeats(t *testing.T) {
	tp := record("hub", key(1), Head{}, 5, begin())
	now := tp.end().Add(time.Second / 2)
	all := append(slices.Clone(tp.records[1:]), tp.beats[5])
	fresh := func() *reader {
		r := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
		r.take("all", now, nil, all...)
		r.state("all", now, Live)
		return r
	}

	r := fresh()
	for i := range 20 {
		r.take("replayed", now.Add(time.Duration(i)*time.Second), nil, tp.beats[5])
	}
	r.state("replayed for longer than the lease", now.Add(lease+time.Millisecond), Stale)
	tp.writer.Beat(now.Add(lease))
	r.take("a new one", now.Add(lease), nil, tp.log.chains["hub"].beat)
	r.state("a new one", now.Add(lease), Live)
	r.state("a new one, at the end of its lease", now.Add(2*lease), Live)
	r.state("a new one, after its lease", now.Add(2*lease+time.Millisecond), Stale)

	// One that was held back is worth what is left of its lease and a second.
	r = newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	r.take("held back", now.Add(4*time.Second), nil, all...)
	r.state("held back", now.Add(lease+999*time.Millisecond), Live)
	r.state("held back, after the lease", now.Add(lease+1001*time.Millisecond), Stale)

	// One that was held back for longer than that is no sign that the follower was
	// in step at any time: what was revoked since may be anything.
	r = newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	r.take("held back too long", now.Add(time.Minute), nil, all...)
	r.state("held back too long", now.Add(time.Minute), Syncing)
	if r.cfg.Source.Status(now).Synced {
		t.Error("a heartbeat of a minute ago counts as having been in step")
	}

	// One from the future is worth a lease from when it came.
	r = newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	r.take("from the future", now, nil, append(slices.Clone(tp.records[1:]), tp.beatAt(5, hashOf(tp.records[5]), key(1), now.Add(time.Hour)))...)
	r.state("from the future", now.Add(lease), Live)
	r.state("from the future, after the lease", now.Add(lease+time.Millisecond), Stale)
	if !strings.Contains(r.said.String(), "clocks are apart") {
		t.Errorf("a heartbeat of an hour ahead was not told: %s", r.said.String())
	}

	// One that speaks of records that do not come is a gap with the next heartbeat, no sooner.
	r = fresh()
	tp.writer.Publish([]Revocation{{Issuer: corp, Kind: token.KindToken, Value: "6"}}, now)
	tp.writer.Beat(now)
	six := tp.log.chains["hub"].beat
	r.take("a record is on its way", now, nil, six)
	r.take("a record is on its way", now.Add(799*time.Millisecond), nil, six)
	r.take("a record is held back", now.Add(800*time.Millisecond), ErrGap, six)
	r.state("a record is held back", now.Add(lease+time.Millisecond), Stale)
	r.take("the record came", now.Add(2*time.Second), nil, tp.log.chains["hub"].records[5], six)
	r.state("the record came", now.Add(lease+time.Millisecond), Live)
	r.counted("the record came", map[Event]uint64{Applied: 6, Gap: 1})
}

// A source that was restored from an old copy says so by its heartbeats: what it
// had said stays, and a snapshot is asked for.
func TestRewind(t *testing.T) {
	tp := record("hub", key(1), Head{}, 5, begin())
	now := tp.end()
	r := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	r.take("all", now, nil, append(slices.Clone(tp.records[1:]), tp.beats[5])...)
	back := func(after time.Duration) []byte { return tp.beatAt(3, hashOf(tp.records[3]), key(1), now.Add(after)) }
	r.take("back", now.Add(2*time.Second), nil, back(time.Second))
	r.take("back for a second", now.Add(3*time.Second), ErrLost, back(2*time.Second))
	r.counted("back", map[Event]uint64{Applied: 5, Rewind: 1})
	r.holds("back", "2 3 4 5")
	r.state("back, after the lease", now.Add(lease+time.Second), Stale)
	if !r.Lost() || len(r.After()) != 0 {
		t.Errorf("after a rewind the follower goes on at %v", r.After())
	}

	// The same with an older chain.
	old := record("hub", key(1), Head{}, 2, begin().Add(-time.Hour))
	r = newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	r.take("all", now, nil, append(slices.Clone(tp.records[1:]), tp.beats[5])...)
	r.take("an old chain, replayed", now, nil, old.records[1], old.records[2], old.beats[2])
	r.take("an old chain, replayed", now.Add(time.Hour), nil, old.beats[2])
	r.counted("an old chain, replayed", map[Event]uint64{Applied: 5, Duplicate: 2})
	beat := func(after time.Duration) []byte {
		return old.beatAt(2, hashOf(old.records[2]), key(1), now.Add(after))
	}
	r.take("an old chain lives", now.Add(2*time.Second), nil, beat(2*time.Second))
	r.take("an old chain lives", now.Add(4*time.Second), ErrLost, beat(4*time.Second))
	r.holds("an old chain lives", "2 3 4 5")
}

// Each start of a hub is a new chain, which says by its from what it need not
// repeat.
func TestNewEpoch(t *testing.T) {
	first := record("hub", key(1), Head{}, 5, begin().Add(-time.Minute))
	epoch := first.writer.head.Epoch
	tests := []struct {
		name string
		from Head
		err  error
	}{
		{"says everything itself", Head{}, nil},
		{"goes on where it is held", Head{"hub", epoch, 5}, nil},
		{"goes on before", Head{"hub", epoch, 3}, nil},
		{"goes on after what is held", Head{"hub", epoch, 6}, ErrLost},
		{"goes on after another chain", Head{"hub", epoch - 1, 1}, ErrLost},
		{"says that it does not know", Head{Source: "hub"}, ErrLost},
	}
	for _, tt := range tests {
		second := record("hub", key(1), tt.from, 3, begin())
		if tt.name == "says that it does not know" {
			second.log = NewLog()
			second.writer = NewWriter(second.log, key(1), tt.from, true, begin().Add(time.Second))
			second.records = [][]byte{nil, second.log.chains["hub"].records[0]}
			second.writer.Beat(second.end())
			second.beats = [][]byte{nil, second.log.chains["hub"].beat}
		}
		now := time.Now()
		r := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
		r.take(tt.name, now, nil, append(slices.Clone(first.records[1:]), first.beats[5])...)
		lines := append(slices.Clone(second.records[1:]), second.beats[len(second.beats)-1])
		r.take(tt.name, now, tt.err, lines...)
		r.holds(tt.name, "2 3 4 5")
		if got := r.Count(Renewed); got != 1 {
			t.Errorf("%s: %d new chains are counted, want 1", tt.name, got)
		}
		if tt.err == nil {
			r.state(tt.name, now, Live)
			if got := r.After(); len(got) != 1 || got[0] != second.writer.Place().Head {
				t.Errorf("%s: the follower is at %v, want %v", tt.name, got, second.writer.Place().Head)
			}
			// The old chain says nothing any more, and lifts nothing.
			r.take(tt.name+", then the old one", now, nil, first.records[1:]...)
			if got := r.After(); got[0] != second.writer.Place().Head {
				t.Errorf("%s: the old chain put the follower to %v", tt.name, got)
			}
			continue
		}
		r.state(tt.name, now, Syncing)
		r.Load(snapshotOf(t, r.list, SnapshotHeader{Places: []Place{second.writer.Place()}}, key(1), public(1)))
		r.take(tt.name+", after a snapshot", now, nil, lines[len(lines)-1])
		r.state(tt.name+", after a snapshot", now, Live)
	}

	// A follower that is new takes a chain from its beginning only if that says
	// everything.
	for _, from := range []Head{{}, {"hub", epoch, 5}} {
		second := record("hub", key(1), from, 3, begin())
		r := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
		err := r.Take(append(slices.Clone(second.records[1:]), second.beats[3]), time.Now())
		if want := from != (Head{}); (err == ErrLost) != want || err != nil && err != ErrLost {
			t.Errorf("a new follower of a chain from %v: %v", from, err)
		}
		r.holds("a new follower", "2 3")
	}
}

// snapshotOf writes a snapshot of a list and opens it.
func snapshotOf(t testing.TB, l *List, header SnapshotHeader, private ed25519.PrivateKey, keys Keys) *Snapshot {
	t.Helper()
	s, err := OpenSnapshot(write(t, t.TempDir(), snapshotText(t, l, header, private)), keys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func snapshotText(t testing.TB, l *List, header SnapshotHeader, private ed25519.PrivateKey) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteSnapshot(&b, l, header, func() (none SnapshotFooter) { return none }, private); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A hub that lost its state has another name, but the same key: the old name is
// waited for no longer.
func TestRecreatedHub(t *testing.T) {
	old, young := record("durward-old", key(1), Head{}, 5, begin().Add(-time.Minute)), record("durward-young", key(1), Head{}, 3, begin())
	other := record("other", key(2), Head{}, 5, begin())
	now := time.Now()
	r := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
	r.take("before", old.end(), nil, append(slices.Clone(old.records[1:]), old.beats[5])...)
	r.take("after", now, nil, append(slices.Clone(young.records[1:]), young.beats[3])...)
	r.state("the same key under another name", now, Live)
	r.holds("the same key under another name", "2 3 4 5")
	if places := r.log.Places(); len(places) != 1 || places[0].Source != "durward-young" {
		t.Errorf("the log holds %v, want the young chain alone", places)
	}
	// Another key is another hub.
	r = newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
	r.take("before", old.end(), nil, append(slices.Clone(old.records[1:]), old.beats[5])...)
	r.take("after", now, nil, append(slices.Clone(other.records[1:]), other.beats[5])...)
	r.state("another key", now, Stale)
}

// An operation of a kind that this version does not know may revoke anything of
// its issuer's: that issuer is stale, the others are not, the chain goes on.
func TestUnknownKind(t *testing.T) {
	tp := record("hub", nil, Head{}, 3, begin())
	now := time.Now()
	r := newReader(t, FollowerConfig{Mass: true})
	odd := tp.after(3, nil, jtiLine("x"), `{"iss":"`+corp+`","device":{"any":["thing",{"\"}":1}]},"before":1}`, jtiLine("y"))
	tp.records = append(tp.records, odd)
	r.take("an unknown kind", now, nil, append(slices.Clone(tp.records[1:]), tp.beatAt(4, hashOf(odd), nil, now))...)
	r.counted("an unknown kind", map[Event]uint64{Applied: 4})
	r.holds("an unknown kind", "2 3 x y")
	if got := r.list.State(corp, now); got != Stale {
		t.Errorf("its issuer is %v, want stale", got)
	}
	if got := r.list.State(partner, now); got != Live {
		t.Errorf("the other issuer is %v, want live", got)
	}
	r.state("all issuers", now, Stale)
	if r.Whole() || r.Places() != nil {
		t.Errorf("what was not understood counts as taken: whole %t, places %v", r.Whole(), r.Places())
	}
	if st := r.cfg.Source.Status(now); st.Refused != 1 || !slices.Equal(st.Marked, []string{corp}) {
		t.Errorf("refused %d, marked %v", st.Refused, st.Marked)
	}
	next := tp.after(4, nil, jtiLine("z"))
	r.take("the chain goes on", now, nil, next)
	r.holds("the chain goes on", "2 3 x y z")
	// New signs of life do not clear it.
	r.take("a heartbeat", now, nil, tp.beatAt(5, hashOf(next), nil, now.Add(time.Millisecond)))
	if got := r.list.State(corp, now); got != Stale {
		t.Errorf("after another heartbeat its issuer is %v, want stale", got)
	}

	// An issuer that nobody accepts tokens of is nobody's concern.
	r = newReader(t, FollowerConfig{Mass: true})
	odd = tp.after(3, nil, `{"iss":"https://elsewhere.example","device":"x"}`)
	r.take("of an unknown issuer", now, nil, append(slices.Clone(tp.records[1:4]), odd, tp.beatAt(4, hashOf(odd), nil, now))...)
	r.state("of an unknown issuer", now, Live)
}

// What an unknown issuer's tokens are revoked by is not kept. It is counted, and
// when the issuer is configured, everything is asked for again.
func TestUnknownIssuer(t *testing.T) {
	const elsewhere = "https://elsewhere.example"
	tp := record("hub", nil, Head{}, 3, begin())
	now := time.Now()
	r := newReader(t, FollowerConfig{Mass: true})
	odd := tp.after(3, nil, `{"iss":"`+elsewhere+`","jti":"e"}`, jtiLine("x"))
	all := append(slices.Clone(tp.records[1:]), odd, tp.beatAt(4, hashOf(odd), nil, now))
	r.take("an unknown issuer", now, nil, all...)
	r.holds("an unknown issuer", "2 3 x")
	r.state("an unknown issuer", now, Live)
	if st := r.cfg.Source.Status(now); st.Refused != 1 || r.Whole() || r.Places() != nil {
		t.Errorf("refused %d, whole %t, places %v; want 1, not whole, none", st.Refused, r.Whole(), r.Places())
	}
	// Issuers whose limits change, or that go, are no reason to read again.
	known := r.list.Issuers()
	raised := slices.Clone(known)
	raised[0].MaxLifetime++
	for _, issuers := range []Issuers{raised, known[:1], known[:1]} {
		r.list.SetIssuers(issuers)
		if len(r.After()) != 1 || r.Lost() {
			t.Errorf("with issuers %v the follower is lost", issuers)
		}
	}
	r.list.SetIssuers(append(slices.Clone(known), IssuerLimits{URL: elsewhere, MaxLifetime: time.Hour}))
	if len(r.After()) != 0 || !r.Lost() {
		t.Errorf("the issuer is configured, and the follower goes on at %v", r.After())
	}
	r.take("from the beginning", now, nil, all...)
	if _, ok := r.list.Lookup(token.KindToken, elsewhere, "e"); !ok {
		t.Error("the issuer's token is not denied")
	}
	// With nothing refused, there is nothing to ask for.
	r = newReader(t, FollowerConfig{Mass: true})
	r.take("all known", now, nil, tp.records[1:]...)
	r.list.SetIssuers(append(slices.Clone(known), IssuerLimits{URL: elsewhere}))
	if len(r.After()) != 1 || !r.Whole() {
		t.Errorf("nothing was refused, and the follower is at %v", r.After())
	}
}

// A feed that may not revoke at large does not, neither record by record nor by a
// snapshot.
func TestMass(t *testing.T) {
	now := time.Now()
	tp := record("hub", nil, Head{}, 2, begin())
	sec := fmt.Sprint(now.Unix())
	ops := []string{jtiLine("x"), `{"iss":"` + corp + `","before":` + sec + `}`, `{"iss":"` + corp + `","client":"c","before":` + sec + `}`, `{"iss":"` + corp + `","sub":"u","before":` + sec + `}`}
	odd := tp.after(2, nil, ops...)
	lines := append(slices.Clone(tp.records[1:]), odd, tp.beatAt(3, hashOf(odd), nil, now))
	full := newReader(t, FollowerConfig{Mass: true})
	full.take("with mass", now, nil, lines...)
	for _, mass := range []bool{true, false} {
		for _, way := range []string{"records", "snapshot"} {
			when := fmt.Sprintf("mass %t by %s", mass, way)
			r := newReader(t, FollowerConfig{Mass: mass})
			if way == "records" {
				r.take(when, now, nil, lines...)
			} else if err := r.Load(snapshotOf(t, full.list, SnapshotHeader{Places: full.Places()}, nil, nil)); err != nil {
				t.Fatal(err)
			} else {
				r.take(when, now, nil, lines[len(lines)-1])
			}
			r.state(when, now, Live)
			r.holds(when, "2 x")
			st := r.list.Stats().Entries
			want := 0
			if mass {
				want = 1
			}
			if st[token.KindIssuer] != want || st[token.KindClient] != want || st[token.KindSubject] != 1 {
				t.Errorf("%s: %d issuers, %d clients and %d subjects are cut off", when, st[token.KindIssuer], st[token.KindClient], st[token.KindSubject])
			}
			if r.Whole() != mass {
				t.Errorf("%s: whole is %t", when, r.Whole())
			}
		}
	}
}

// A record's own time is believed a little over the clock here, so that a clock
// that is behind lowers no cutoff; an absurd one is not, and then nobody claims to
// have taken the record in full.
func TestRecordsFromTheFuture(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name string
		made time.Time // and the time of its cutoff
		err  error
	}{
		{"a little", now.Add(30 * time.Minute), nil},
		{"too far", now.Add(2 * time.Hour), ErrLost},
		{"absurdly", time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC), ErrLost},
	}
	for _, tt := range tests {
		made, before := tt.made, tt.made.Unix()
		head := Head{"hub", 1, 1}
		raw := (&Record{Head: head, Made: made, Ops: [][]byte{fmt.Appendf(nil, `{"iss":"%s","sub":"u","before":%d}`, corp, before)}}).encode(nil)
		r := newReader(t, FollowerConfig{Mass: true})
		r.take(tt.name, now, tt.err, raw)
		e, ok := r.list.Lookup(token.KindSubject, corp, "u")
		want := before
		if tt.err != nil {
			want = now.Add(MaxAhead).Unix()
		}
		if !ok || e.Before.Unix() != want {
			t.Errorf("%s: the cutoff is %v, want %v", tt.name, e.Before.Unix(), want)
		}
		// A cutoff that the time says nothing about does no harm.
		r = newReader(t, FollowerConfig{Mass: true})
		r.take(tt.name, now, nil, (&Record{Head: head, Made: made, Ops: [][]byte{[]byte(jtiLine("x"))}}).encode(nil))
		r.holds(tt.name, "x")
	}
}

// A list that is full takes what fits, says so, and is not live until a snapshot,
// or the chain from its beginning, has brought the rest.
func TestFullFollower(t *testing.T) {
	tp := record("hub", key(1), Head{}, 5, begin())
	now := tp.end()
	lines := append(slices.Clone(tp.records[1:]), tp.beats[5])
	whole := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	whole.take("with room", now, nil, lines...)
	for _, way := range []string{"snapshot", "beginning"} {
		r := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
		r.list.SetMaxEntries(2)
		r.take("full", now, ErrLost, lines...)
		r.holds("full", "2 3")
		r.state("full", now, Syncing)
		if !r.Lost() {
			t.Error("a follower that could not take everything does not say so")
		}
		snapshot := func() *Snapshot {
			return snapshotOf(t, whole.list, SnapshotHeader{Places: whole.Places()}, key(1), public(1))
		}
		if err := r.Load(snapshot()); !errors.Is(err, ErrFull) {
			t.Errorf("a snapshot that does not fit: %v", err)
		}
		r.take("full", now, ErrLost, tp.beats[5])
		r.state("full", now, Syncing)
		r.list.SetMaxEntries(100)
		if way == "snapshot" {
			if err := r.Load(snapshot()); err != nil {
				t.Fatal(err)
			}
			r.take("with room again", now, nil, tp.beats[5])
		} else {
			r.cfg.Source.Begin()
			r.take("with room again", now, nil, lines...)
		}
		r.holds("with room again", "2 3 4 5")
		r.state("with room again", now, Live)
	}
}

// Where nobody's signature is asked for, a snapshot of a hub that signs names its
// key; that must not keep the hub's own records out.
func TestSignedSourceUnverified(t *testing.T) {
	tp := record("hub", key(1), Head{}, 5, begin())
	now := tp.end()
	signed := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	signed.take("all", now, nil, tp.records[1:]...)
	places := []Place{signed.Places()[0]}
	if places[0].Signer == "" {
		t.Fatal("the place of a signed chain names no key")
	}
	next := tp.after(5, key(1), jtiLine("6"))
	beat := tp.beatAt(6, hashOf(next), key(1), now)
	for _, way := range []string{"a snapshot", "the last run"} {
		r := newReader(t, FollowerConfig{Mass: true})
		if way == "the last run" {
			r.Resume(places)
		} else if err := r.Load(snapshotOf(t, signed.list, SnapshotHeader{Places: places}, key(1), nil)); err != nil {
			t.Fatal(err)
		}
		r.take(way, now, nil, next, beat)
		r.counted(way, map[Event]uint64{Applied: 1, Resynced: r.Count(Resynced)})
		r.state(way, now, Live)
	}
}

// A follower that starts again goes on where the last run ended, if its list does,
// and is not in step before it heard so.
func TestResume(t *testing.T) {
	tp := record("hub", key(1), Head{}, 5, begin())
	now := tp.end()
	before := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	before.take("before", now, nil, append(slices.Clone(tp.records[1:4]), tp.beats[3])...)
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := SaveSnapshot(path, before.list, SnapshotHeader{Feeds: map[string][]Place{"feed": before.Places()}}, func() (none SnapshotFooter) { return none }); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSnapshot(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	if _, err := s.Restore(r.list, true); err != nil {
		t.Fatal(err)
	}
	r.Resume(s.Feeds["feed"])
	r.holds("after", "2 3")
	r.state("after", now, Syncing)
	if got := r.After(); len(got) != 1 || got[0].Number != 3 {
		t.Errorf("it goes on at %v, want 3", got)
	}
	r.take("the rest", now, nil, tp.records[4], tp.records[5], tp.beats[5])
	r.state("the rest", now, Live)
	r.counted("the rest", map[Event]uint64{Applied: 2})

	// A key that is trusted no more has no place.
	r = newReader(t, FollowerConfig{Keys: public(2), Mass: true})
	r.Resume(s.Feeds["feed"])
	if got := r.After(); len(got) != 0 {
		t.Errorf("with another key it goes on at %v", got)
	}
}

// One feed has so many chains and no more.
func TestManySources(t *testing.T) {
	r := newReader(t, FollowerConfig{Mass: true})
	now := time.Now()
	for i := range maxChains + 5 {
		raw := (&Record{Head: Head{fmt.Sprint("s", i), 1, 1}, Made: now, Ops: [][]byte{}}).encode(nil)
		r.take("a source", now, nil, raw)
	}
	r.counted("many", map[Event]uint64{Applied: maxChains + 5}) // the oldest make room
	if got := len(r.After()); got != maxChains {
		t.Errorf("%d sources are followed, want %d", got, maxChains)
	}
	// Where sources sign, one that nobody superseded may not be forgotten.
	r = newReader(t, FollowerConfig{Keys: public(1), Mass: true})
	for i := range maxChains + 5 {
		raw := (&Record{Head: Head{fmt.Sprint("s", i), 1, 1}, Made: now, Ops: [][]byte{}}).encode(key(1))
		r.take("a source", now, nil, raw)
	}
	r.counted("many that sign", map[Event]uint64{Applied: maxChains, Forged: 5})
}

// Whatever comes, in whatever order: no panic, the list only grows, and nobody is
// live whom a genuine and fresh heartbeat of the end of the chain did not reach.
func FuzzFollower(f *testing.F) {
	tp := record("hub", key(1), Head{}, 6, time.Now().Add(-6*time.Second))
	second := record("hub", key(1), Head{"hub", tp.writer.head.Epoch, 4}, 4, time.Now().Add(-3*time.Second))
	other := record("other", key(2), Head{}, 3, time.Now().Add(-3*time.Second))
	forged := record("hub", key(3), Head{}, 4, time.Now().Add(-5*time.Second))
	now := time.Now()
	forged.records = append(forged.records, forged.after(4, key(3), jtiLine("forged")), tp.after(6, key(3), jtiLine("forged")))
	deck := slices.Concat(tp.records[1:], tp.beats[1:], second.records[1:], second.beats[1:], other.records[1:], other.beats[1:], forged.records[1:], forged.beats[1:],
		[][]byte{tp.after(3, key(1), jtiLine("fork")), tp.after(5, key(1), `{"iss":"`+corp+`","what":1}`), tp.beatAt(5, Hash{7}, key(1), now), tp.beatAt(9, Hash{}, key(1), now.Add(time.Hour)), []byte(`{}`)})
	f.Add([]byte{0, 1, 2, 3, 4, 5, 11})
	f.Add([]byte{0, 1, 2, 3, 12, 13, 14, 15, 19, 20, 21, 22, 25, 4, 5, 11})
	f.Add([]byte{20, 21, 22, 25, 5, 4, 3, 2, 1, 0, 11, 11, 0, 1, 2, 3, 4, 5, 200, 11, 26, 27})
	f.Fuzz(func(t *testing.T, plays []byte) {
		r := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
		at := now
		held := 0
		for _, play := range plays[:min(len(plays), 100)] {
			if play >= 200 { // time goes by
				at = at.Add(time.Duration(play-199) * time.Second / 4)
				continue
			}
			lines := [][]byte{bytes.Clone(deck[int(play)%len(deck)])}
			switch {
			case play >= 150: // a byte is not as it was written
				lines[0][int(play)%len(lines[0])] ^= 1 << (play % 8)
			case play >= 140: // from somebody who vouches for two sources
				lines = [][]byte{tp.beats[6-play%2], second.beats[4], other.beats[3]}[play%2:]
			}
			before := r.list.State("", at)
			if err := r.Take(lines, at); err != nil && err != ErrGap && err != ErrLost {
				t.Fatalf("Take: %v", err)
			}
			total := r.list.Stats().Total
			if total < held {
				t.Fatalf("the list shrank from %d to %d", held, total)
			}
			held = total
			if before == Live || r.list.State("", at) != Live {
				continue
			}
			beats := 0
			for _, line := range lines {
				rec, err := ParseRecord(line, public(1, 2))
				if err != nil || !rec.Heartbeat() {
					continue
				}
				beats++
				if c := r.chains[rec.Source]; c == nil || c.lost || c.Head != rec.Head || c.Hash != rec.Previous || at.After(rec.Made.Add(lease+time.Second)) {
					t.Fatalf("live at %v by the heartbeat %s of %v, where the chain is %+v", at, rec.Head, rec.Made, c)
				}
			}
			if beats == 0 {
				t.Fatal("live without a heartbeat")
			}
		}
		if _, ok := r.list.Lookup(token.KindToken, corp, "forged"); ok {
			t.Fatal("a token is denied that only a stranger's key denied")
		}
	})
}
