package denylist

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"durward/token"
)

// A log that holds two chains answers whoever comes from a place on them, or from
// their beginning, with exactly what comes next; and everybody else with no.
func TestLogRead(t *testing.T) {
	log := NewLog()
	one := record("a", nil, Head{}, 5, begin())
	// The second chain goes on from an earlier one, so that it does not say everything.
	two := record("b", nil, Head{Epoch: 6, Number: 10}, 1, begin())
	for _, raw := range [][]byte{one.records[1], one.records[2], two.records[1], one.records[3], one.records[4], one.records[5]} {
		r, err := ParseRecord(raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		log.keep(r, hashOf(raw))
	}
	a, b := one.writer, two.writer
	e, f := a.Place().Epoch, b.Place().Epoch
	beat := func(raw []byte) {
		r, err := ParseRecord(raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		log.beat(r)
	}
	tests := []struct {
		after string
		want  string // records, by source and number; "no" if it is a matter for a snapshot
	}{
		{"a:E:0,b:F:1", "a1 a2 a3 a4 a5"},
		{"a:E:3,b:F:1", "a4 a5"},
		{"a:E:5,b:F:1", ""},
		{"a:E:5,b:F:0", "b1"},
		{"a:E:5,b:6:10", "b1"},
		{"a:E:5,b:6:11", "b1"},
		{"a:E:5,b:6:9", "no"}, // what the chain does not repeat is not held there
		{"a:E:5,b:5:10", "no"},
		{"a:E:5,b:7:10", "no"},
		{"a:E:5", "no"},                    // the chain of b does not say everything
		{"b:F:1", "a1 a2 a3 a4 a5"},        // that of a does
		{"a:7:99,b:F:1", "a1 a2 a3 a4 a5"}, // whichever of its chains one knew
		{"a:E:6,b:F:1", "no"},              // further than the chain is
		{"a:E:18446744073709551615,b:F:1", "no"},
		{"a:9223372036854775807:1,b:F:1", "no"}, // a later chain than is held
		{"a:E:5,b:F:1,c:1:1", "no"},             // c may have been handed on here once
		{"", "no"},
	}
	for _, tt := range tests {
		text := strings.NewReplacer("E", fmt.Sprint(e), "F", fmt.Sprint(f)).Replace(tt.after)
		after, err := ParseHeads(text)
		if err != nil {
			t.Fatal(err)
		}
		reading, changed, ok := log.Read(after, 1<<20)
		if !ok {
			if tt.want != "no" {
				t.Errorf("after %s: no, want %q", tt.after, tt.want)
			}
			continue
		}
		if got := names(t, reading.Records); got != tt.want {
			t.Errorf("after %s: %q, want %q", tt.after, got, tt.want)
		}
		if tt.want == "no" {
			continue
		}
		slices.SortFunc(reading.Next, func(a, b Head) int { return strings.Compare(a.Source, b.Source) })
		want := []Head{a.Place().Head, b.Place().Head}
		if strings.Contains(tt.after, "b:F:1") && !slices.Equal(reading.Next, want) {
			t.Errorf("after %s it goes on at %v, want %v", tt.after, reading.Next, want)
		}
		if len(reading.Beats) != 0 {
			t.Errorf("after %s: heartbeats of sources that gave none", tt.after)
		}
		select {
		case <-changed:
			t.Errorf("after %s: something changed already", tt.after)
		default:
		}
	}

	// Heartbeats: all or none, and only with the last of the records.
	at := []Head{a.Place().Head, b.Place().Head}
	_, changed, _ := log.Read(at, 1<<20)
	beat(one.beats[5])
	<-changed
	if reading, _, _ := log.Read(at, 1<<20); len(reading.Beats) != 0 {
		t.Error("one of two sources gave a heartbeat, and it is handed on alone")
	}
	beat(two.beats[1])
	if reading, _, _ := log.Read(at, 1<<20); len(reading.Beats) != 2 {
		t.Errorf("%d heartbeats, want 2", len(reading.Beats))
	}
	var got [][]byte
	next := []Head{{"a", e, 0}, b.Place().Head}
	for range 10 {
		reading, _, ok := log.Read(next, 100) // one record is longer
		if !ok {
			t.Fatalf("after %v: no", next)
		}
		got, next = append(got, reading.Records...), reading.Next
		if len(reading.Beats) > 0 {
			break
		}
	}
	if got := names(t, got); got != "a1 a2 a3 a4 a5" {
		t.Errorf("in small readings: %q", got)
	}
}

// names are the records by source and number, sorted by source.
func names(t testing.TB, records [][]byte) string {
	t.Helper()
	var all []string
	for _, raw := range records {
		r, err := ParseRecord(raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprint(r.Source, r.Number))
	}
	slices.SortStableFunc(all, func(a, b string) int { return strings.Compare(a[:1], b[:1]) })
	return strings.Join(all, " ")
}

// A log holds so much and forgets the oldest; who is further behind is told.
func TestLogIsBounded(t *testing.T) {
	log := NewLog()
	now := time.Now()
	w := NewWriter(log, nil, Head{Source: "hub"}, false, now)
	e := w.Place().Epoch
	rs := make([]Revocation, 8)
	for i := range rs {
		rs[i] = Revocation{Issuer: corp, Kind: token.KindToken, Value: strings.Repeat("x", 60_000) + fmt.Sprint(i)}
	}
	for range 200 { // 96 MB
		w.Publish(rs, now)
	}
	if log.size > maxKept || log.size < maxKept/4 {
		t.Errorf("%d bytes are kept, want up to %d", log.size, maxKept)
	}
	size := 0
	for _, k := range log.chains {
		for _, raw := range k.records {
			size += len(raw)
		}
	}
	if size != log.size {
		t.Errorf("%d bytes are kept, and %d counted", size, log.size)
	}
	if _, _, ok := log.Read([]Head{{"hub", e, 1}}, 1<<20); ok {
		t.Error("records that are not kept any more are not missed")
	}
	if _, _, ok := log.Read(nil, 1<<20); ok {
		t.Error("a chain without its beginning is handed to who knows nothing")
	}
	first := log.chains["hub"].first()
	reading, _, ok := log.Read([]Head{{"hub", e, first - 1}}, 1)
	if !ok || len(reading.Records) != 1 {
		t.Errorf("after record %d: %d records, %t", first-1, len(reading.Records), ok)
	}
	if r, err := ParseRecord(reading.Records[0], nil); err != nil || r.Number != first {
		t.Errorf("the oldest record kept is %v, want %d", r.Head, first)
	}
}

// What a gateway follows it hands on as it came, so that signatures hold through
// any number of hubs.
func TestRelay(t *testing.T) {
	one, two := record("one", key(1), Head{}, 4, begin()), record("two", key(2), Head{}, 4, begin())
	now := one.end()
	relay := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
	relay.take("the relay", now, nil, slices.Concat(one.records[1:], two.records[1:], [][]byte{one.beats[4], two.beats[4]})...)
	end := newReader(t, FollowerConfig{Keys: public(1, 2), Mass: true})
	pass := func(when string) {
		t.Helper()
		reading, _, ok := relay.log.Read(end.After(), 1<<20)
		if !ok {
			t.Fatalf("%s: the relay sends for a snapshot", when)
		}
		end.take(when, now, nil, append(reading.Records, reading.Beats...)...)
	}
	pass("two hops")
	end.state("two hops", now, Live)
	end.holds("two hops", "2 3 4")
	for source, k := range relay.log.chains {
		if got := end.log.chains[source]; got == nil || got.Place != k.Place || !slices.EqualFunc(got.records, k.records, bytes.Equal) {
			t.Errorf("the log of the second hop differs in %s", source)
		}
	}
}

// Two hubs of a relay do not always speak of the same sources: one that starts has
// not followed the other yet. What the relay handed on of a source goes on, or sends
// its followers for a snapshot; it is not left out in silence.
func TestSourceComesBack(t *testing.T) {
	one, two := record("one", nil, Head{}, 4, begin()), record("two", nil, Head{}, 5, begin())
	now := two.end()
	relay := newReader(t, FollowerConfig{Mass: true})
	relay.take("both", now, nil, slices.Concat(one.records[1:], two.records[1:5], [][]byte{one.beats[4], two.beats[4]})...)
	relay.take("one", now, nil, one.beats[4])
	relay.take("both again", now, nil, two.records[5], two.beats[5], one.beats[4])
	places := relay.log.Places()
	if len(places) != 2 || places[1] != two.writer.Place() {
		t.Fatalf("the log holds %v, want the ends of both chains", places)
	}
	end := newReader(t, FollowerConfig{Mass: true})
	reading, _, ok := relay.log.Read(end.After(), 1<<20)
	if ok {
		end.take("a new follower", now, nil, append(reading.Records, reading.Beats...)...)
		end.holds("a new follower", "2 3 4 5")
	}
	end = newReader(t, FollowerConfig{Mass: true})
	if err := end.Load(snapshotOf(t, relay.list, SnapshotHeader{Places: places}, nil, nil)); err != nil {
		t.Fatal(err)
	}
	one.writer.Beat(now)
	two.writer.Beat(now)
	relay.take("another heartbeat", now, nil, one.log.chains["one"].beat, two.log.chains["two"].beat)
	reading, _, ok = relay.log.Read(end.After(), 1<<20)
	if !ok {
		t.Fatal("after a snapshot of the relay its log cannot be followed")
	}
	end.take("a new follower", now, nil, append(reading.Records, reading.Beats...)...)
	end.state("a new follower", now, Live)
	end.holds("a new follower", "2 3 4 5")
}

// A feed that is left takes its sources along, save those that another feed names.
func TestLeave(t *testing.T) {
	one, two := record("one", nil, Head{}, 3, begin()), record("two", nil, Head{}, 3, begin())
	now := one.end()
	first := newReader(t, FollowerConfig{Mass: true})
	cfg := first.cfg
	cfg.Source = first.list.Source("second", lease)
	second := NewFollower(cfg)
	first.take("the first feed", now, nil, slices.Concat(one.records[1:], two.records[1:], [][]byte{one.beats[3], two.beats[3]})...)
	if err := second.Take(slices.Concat(one.records[1:], [][]byte{one.beats[3]}), now); err != nil {
		t.Fatal(err)
	}
	sources := func() (all []string) {
		for _, p := range first.log.Places() {
			all = append(all, p.Source)
		}
		return all
	}
	if got := sources(); !slices.Equal(got, []string{"one", "two"}) {
		t.Fatalf("the log holds %v", got)
	}
	first.log.Leave("feed")
	if got := sources(); !slices.Equal(got, []string{"one"}) {
		t.Errorf("after the first feed was left, the log holds %v, want one", got)
	}
	first.log.Leave("second")
	if got := sources(); len(got) != 0 || first.log.size != 0 {
		t.Errorf("after both were left, the log holds %v in %d bytes", got, first.log.size)
	}
}

// The times of a chain rise whatever the clock does, for a heartbeat that is older
// than the last is none.
func TestWriterTimes(t *testing.T) {
	log := NewLog()
	now := time.Now()
	w := NewWriter(log, nil, Head{Source: "hub", Epoch: now.Add(time.Hour).UnixMilli(), Number: 3}, false, now)
	if got, want := w.Place().Epoch, now.Add(time.Hour).UnixMilli()+1; got != want {
		t.Errorf("after a clock that was ahead the epoch is %d, want %d", got, want)
	}
	var last time.Time
	for _, step := range []time.Duration{0, 0, -time.Hour, time.Second, time.Hour} {
		now = now.Add(step)
		w.Publish([]Revocation{{Issuer: corp, Kind: token.KindToken, Value: "x"}}, now)
		records := log.chains["hub"].records
		w.Beat(now)
		for _, raw := range [][]byte{records[len(records)-1], log.chains["hub"].beat} {
			r, err := ParseRecord(raw, nil)
			if err != nil || !r.Made.After(last) {
				t.Errorf("after a step of %v: %v, made at %v, after one of %v", step, err, r.Made, last)
			}
			last = r.Made
		}
	}
}
