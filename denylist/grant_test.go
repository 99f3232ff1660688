package denylist

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"durward/token"
)

// limited are the keys 1, which may say everything, and 2, within this grant.
func limited(g Grant) Keys {
	return NewKeys(
		Key{Name: "hub", Public: key(1).Public().(ed25519.PublicKey)},
		Key{Name: "mobile", Public: key(2).Public().(ed25519.PublicKey), Grant: g})
}

// A snapshot that comes while operations wait for an operator leaves them waiting:
// the gateway is whole when they are released or dropped, and not before.
func TestQuarantineBesideSnapshot(t *testing.T) {
	now := time.Now()
	keys := limited(Grant{PerMinute: 1})
	for _, drop := range []bool{false, true} {
		when := fmt.Sprintf("dropped %t", drop)
		r := newReader(t, FollowerConfig{Keys: keys})
		tp := record("mobile", key(2), Head{}, 2, begin())
		r.take(when, now, nil, tp.records[1], tp.records[2], tp.after(2, key(2), jtiLine("over")))
		r.holds(when+", before", "2")
		other := newReader(t, FollowerConfig{Keys: keys})
		other.take(when, now, nil, record("hub", key(1), Head{}, 3, begin()).records[1:]...)
		if err := r.Load(snapshotOf(t, other.list, SnapshotHeader{Places: other.Places()}, key(1), keys)); err != nil {
			t.Fatal(err)
		}
		r.holds(when+", with the snapshot", "2 3")
		if r.Whole() || r.Places() != nil || r.Quarantined()["mobile"] != 1 {
			t.Errorf("%s: whole %t, places %v, quarantined %v; want one operation to wait", when, r.Whole(), r.Places(), r.Quarantined())
		}
		if n, err := r.Release("mobile", drop, now); n != 1 || err != nil {
			t.Errorf("%s: released %d: %v", when, n, err)
		}
		want := "2 3 over"
		if drop {
			want = "2 3"
		}
		r.holds(when+", after", want)
		if !r.Whole() || len(r.Places()) != 2 || len(r.Quarantined()) != 0 {
			t.Errorf("%s: whole %t, places %v, quarantined %v; want nothing to wait", when, r.Whole(), r.Places(), r.Quarantined())
		}
	}
}

// Canaries are within every grant, but a limited key cannot fill the list with them.
func TestCanariesOfLimitedKey(t *testing.T) {
	const each = 500
	for number, most := range map[byte]int{1: 2 * each, 2: 2} {
		r := newReader(t, FollowerConfig{Keys: limited(Grant{Issuers: []string{corp}})})
		r.list.max.Store(10 * each)
		tp := record("writer", key(number), Head{}, 2, begin())
		lines := tp.records[1:]
		for n := 2; n < 4; n++ {
			var ops []string
			for range each {
				ops = append(ops, string(canaryLine()))
			}
			lines = append(lines, tp.after(n, key(number), ops...))
			tp.records = append(tp.records, lines[len(lines)-1])
		}
		r.take("canaries", time.Now(), nil, lines...)
		if held := r.list.Stats().Entries[token.KindToken] - 1; held != most {
			t.Errorf("key %d: %d canaries are held, want %d", number, held, most)
		}
	}
}

// Where the roll is signed, the key that spoke for a gateway first is the only one
// that can confirm for it, or say that it left.
func TestRollBoundToKey(t *testing.T) {
	r := newReader(t, FollowerConfig{Ordered: true, Keys: public(1, 2)})
	s := NewStream(StreamConfig{Follower: r.Follower, List: r.list, Source: r.list.Source("log", lease), Logger: slog.New(slog.NewTextHandler(&r.said, nil))})
	call := &rollCall{answered: map[string]bool{}}
	s.roll.calls["X"] = call
	say := func(number byte, m rollMessage) {
		t.Helper()
		m.ID, m.Name, m.Lease, m.Made = "durward-a", "a", 5, time.Now().UnixMilli()
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if !s.called(signed(text, rollType, key(number)), time.Now()) {
			t.Fatalf("%s was not taken for a message of the roll", text)
		}
	}
	s.current = true
	say(1, rollMessage{})
	say(2, rollMessage{Read: []string{"X"}})
	if _, answered := call.answered["durward-a"]; answered {
		t.Error("another key confirmed for the gateway")
	}
	say(2, rollMessage{Left: true})
	if s.roll.members["durward-a"] == nil {
		t.Error("another key said that the gateway left")
	}
	say(1, rollMessage{Read: []string{"X"}})
	if !call.answered["durward-a"] {
		t.Error("the gateway's own confirmation does not count")
	}
	say(1, rollMessage{Left: true})
	if s.roll.members["durward-a"] != nil {
		t.Error("the gateway could not say that it left")
	}
}

// A key can do no harm beyond its grant by saying what nobody understands: neither does
// an issuer count as stale for it, nor does the gateway know less than it was told. What
// it says so of its own issuer still counts.
func TestGrantOfWhatIsNotKnown(t *testing.T) {
	const other = "https://other.test"
	for name, c := range map[string]struct {
		grant Grant
		op    string
		whole bool
	}{
		"unknown kind of another issuer":       {Grant{Issuers: []string{other}}, `{"iss":"` + corp + `","zzz":"1"}`, true},
		"an issuer that is nobody's":           {Grant{Issuers: []string{other}}, `{"iss":"https://nobody.test","jti":"1"}`, true},
		"no issuer":                            {Grant{Issuers: []string{other}}, `{"zzz":"1"}`, true},
		"unknown kind of its own issuer":       {Grant{Issuers: []string{corp}}, `{"iss":"` + corp + `","zzz":"1"}`, false},
		"unknown kind, a key without a limit":  {Grant{}, `{"iss":"` + corp + `","zzz":"1"}`, false},
		"nobody's issuer, key without a limit": {Grant{}, `{"iss":"https://nobody.test","jti":"1"}`, false},
	} {
		now := time.Now()
		r := newReader(t, FollowerConfig{Keys: limited(c.grant)})
		tp := record("tenant", key(2), Head{}, 2, begin())
		r.take(name, now, nil, tp.records[1], tp.records[2], tp.after(2, key(2), c.op))
		if marked := len(r.marked) > 0; r.Whole() != c.whole || marked != (!c.whole && strings.Contains(c.op, corp)) {
			t.Errorf("%s: whole %t, marked %v", name, r.Whole(), r.marked)
		}
		if got := r.cfg.Source.Status(now).Refused; got == 0 {
			t.Errorf("%s: nothing was counted as refused", name)
		}
	}
}

// Whoever has a key with a budget has it whatever times he writes into his records.
func TestBudgetAndForgedTimes(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	const perMinute, flood = 10, 200
	hours := now.Add(-5 * time.Hour)
	for name, c := range map[string]struct {
		before bool // a heartbeat told where the key was, a moment ago
		made   func(i int) time.Time
		most   int
	}{
		"as they are made":             {true, func(i int) time.Time { return now }, perMinute},
		"each a minute later":          {true, func(i int) time.Time { return now.Add(time.Duration(i) * time.Minute) }, perMinute},
		"each a minute later, to now":  {true, func(i int) time.Time { return now.Add(time.Duration(i-flood) * time.Minute) }, perMinute},
		"what was said in five hours":  {false, func(i int) time.Time { return hours.Add(time.Duration(i) * time.Minute) }, flood},
		"in the future, never heard":   {false, func(i int) time.Time { return now.Add(time.Duration(i) * time.Minute) }, perMinute},
		"five hours ago in one moment": {false, func(i int) time.Time { return hours }, perMinute},
	} {
		r := newReader(t, FollowerConfig{Keys: limited(Grant{PerMinute: perMinute})})
		log := NewLog()
		w := NewWriter(log, key(2), Head{Source: "tenant"}, false, hours.Add(-time.Minute))
		k := log.chains["tenant"]
		lines := [][]byte{k.records[0]}
		if c.before {
			w.Beat(now.Add(-time.Second))
			lines = append(lines, k.beat)
		}
		r.take(name, now, nil, lines...)
		previous := hashOf(k.records[0])
		head := w.Place().Head
		for i := range flood {
			head.Number++
			record := (&Record{Head: head, Previous: previous, Made: c.made(i), Ops: [][]byte{[]byte(jtiLine(fmt.Sprint(i)))}}).encode(key(2))
			previous = hashOf(record)
			r.take(name, now, nil, record)
		}
		held := r.list.Stats().Entries[token.KindToken]
		if waits := r.Quarantined()["mobile"]; held > c.most || held < c.most-1 || held+waits != flood {
			t.Errorf("%s: %d of %d are enforced and %d wait; want %d to be enforced", name, held, flood, waits, c.most)
		}
	}
}
