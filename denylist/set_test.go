package denylist

import (
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"durward/token"
)

// identity is an ID as it comes out of SHA-256, for a number: the same for the
// same, another for another.
func identity(n uint64) token.ID {
	mix := func(x uint64) uint64 { // a bijection
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}
	return token.ID{High: mix(n + 1), Low: mix(^n)}
}

// rebuild copies a shard as growing does, with room for more or none.
func rebuild(s *set, shard, more int) {
	sh := &s.shards[shard]
	sh.write.Lock()
	defer sh.write.Unlock()
	if t := sh.table.Load(); t != nil {
		s.replace(shard, 0, more, t.cutoffs != nil)
	}
}

// consistent compares what the set counts with what its tables hold.
func consistent(t *testing.T, s *set) {
	t.Helper()
	var held, bytes int64
	for i := range s.shards {
		table := s.shards[i].table.Load()
		n, aged := 0, 0
		for slot := range table.taken {
			n++
			if c := table.cutoff(slot); c != nil {
				bytes += c.bytes()
			}
		}
		held += int64(n)
		bytes += table.bytes()
		if table == nil {
			continue
		}
		for _, at := range table.ages {
			aged += at
		}
		if n != table.held || n != aged || n > table.room() {
			t.Fatalf("a shard holds %d, and counts %d, by age %d, with room for %d", n, table.held, aged, table.room())
		}
	}
	if s.held.Load() != held || s.bytes.Load() != bytes {
		t.Fatalf("held are %d in %d bytes, counted %d in %d", held, bytes, s.held.Load(), s.bytes.Load())
	}
}

// The set is a map that may keep a little of what expired.
func TestSetIsAMap(t *testing.T) {
	for round := range uint64(20) {
		random := rand.New(rand.NewPCG(round, 1))
		universe := uint64(1) << (1 + round%14)
		l := New(math.MaxInt)
		model := map[uint64]uint32{}
		past := uint32(0)
		for range 20_000 {
			n := random.Uint64N(universe)
			switch random.IntN(1000) {
			case 0:
				past += random.Uint32N(3000)
				l.total.Add(-int64(l.denials[token.KindToken].sweep(past, false)))
			case 1:
				past += random.Uint32N(3000)
				l.total.Add(-int64(l.denials[token.KindToken].sweep(past, true)))
				for n, until := range model {
					if until < past {
						delete(model, n)
					}
				}
				if held := l.denials[token.KindToken].held.Load(); held != int64(len(model)) {
					t.Fatalf("%d are left of a sweep for room, want %d", held, len(model))
				}
			case 2:
				rebuild(&l.denials[token.KindToken], random.IntN(shards), random.IntN(100))
			case 3:
				l.denials[token.KindToken].trim()
			default:
				until := past + random.Uint32N(20_000)
				if random.IntN(10) == 0 {
					until = math.MaxUint32
				}
				_, fresh, ok := l.deny(token.KindToken, identity(n), until)
				if kept, held := model[n]; !ok || held && kept >= past && fresh || !held && !fresh {
					t.Fatalf("fresh is %v, ok is %v, of what is kept until %d", fresh, ok, kept)
				}
				model[n] = max(model[n], until)
			}
		}
		consistent(t, &l.denials[token.KindToken])
		for n := range 2 * universe {
			until, held := l.denials[token.KindToken].until(identity(n))
			want, ok := model[n]
			if held && until != want || !held && ok && want >= past || held && !ok {
				t.Fatalf("%d of %d: until %d, %v; want %d, %v", n, universe, until, held, want, ok)
			}
		}
		if total := l.total.Load(); total != l.denials[token.KindToken].held.Load() {
			t.Fatalf("in total %d, by kind %d", total, l.denials[token.KindToken].held.Load())
		}
		l.denials[token.KindToken].sweep(math.MaxUint32, false)
		l.denials[token.KindToken].sweep(math.MaxUint32, true)
		for n, until := range model {
			if held := l.denials[token.KindToken].has(identity(n)); held != (until == math.MaxUint32) {
				t.Fatalf("at the end of time, held is %v, until %d", held, until)
			}
		}
	}
}

// What is never forgotten costs no more than it must, however it came.
func TestSetWastesNothing(t *testing.T) {
	const n = 100_000
	l := New(n)
	for i := range uint64(n) {
		l.deny(token.KindToken, identity(i), math.MaxUint32)
	}
	if each := float64(l.Stats().Bytes) / n; each > 28 {
		t.Errorf("one by one: %.1f bytes each, want at most 28", each)
	}
	for _, count := range []int{0, n / 2, n, 10 * n, -1} {
		again := New(10 * n)
		if err := again.RestoreDenials(count, l.Denials()); err != nil {
			t.Fatal(err)
		}
		if st := again.Stats(); st.Total != n || float64(st.Bytes)/n > 28 {
			t.Errorf("restored as %d: %d in %d bytes", count, st.Total, st.Bytes)
		}
	}
}

// Whoever holds more than a set's hash can tell apart finds each of them.
func TestSetCollisions(t *testing.T) {
	l := New(math.MaxInt)
	s := &l.denials[token.KindToken]
	// All in one shard, so that they stand behind each other and around the end.
	var all []token.ID
	for n := uint64(0); len(all) < 500; n++ {
		if id := identity(n); index(s.hash(id)) == 0 {
			all = append(all, id)
		}
	}
	for i, id := range all {
		if s.has(id) {
			t.Fatal("found before it is there")
		}
		l.deny(token.KindToken, id, uint32(i+1))
		for j, id := range all[:i+1] {
			if until, ok := s.until(id); !ok || until != uint32(j+1) {
				t.Fatalf("of %d, %d is kept until %d, %v", i+1, j, until, ok)
			}
		}
	}
}

// In a table without any room left each identity is found, that of zeros among them, and
// nothing else, for which one read nearly always suffices.
func TestTableFull(t *testing.T) {
	for _, room := range []int{1, 2, 3, 6, 7, 12, 13, 50, 700, 50_000} {
		s := &newList(math.MaxInt).denials[token.KindToken]
		table := s.newTable(0, room, false)
		if table.room() < room || table.room() > room+slots {
			t.Fatalf("there is room for %d, want %d", table.room(), room)
		}
		made := func(n uint64) (hash uint64, id token.ID) {
			if n != uint64(room)/2 {
				id = identity(n)
			}
			id.High ^= s.hash(id) >> 56 << 56 // as the table is the first shard's
			return s.hash(id), id
		}
		for n := range uint64(table.room()) {
			hash, id := made(n)
			if _, ok := table.find(hash, id.Low); ok {
				t.Fatal("found before it is there")
			}
			table.insert(hash, id.Low, uint32(n+1), nil)
			if slot, ok := table.find(hash, id.Low); !ok || table.until[slot] != uint32(n+1) || table.id(slot) != id {
				t.Fatalf("%d of %d is not found once it is there", n, room)
			}
		}
		more := 0
		for n := range uint64(3 * table.room()) {
			hash, id := made(n)
			slot, ok := table.find(hash, id.Low)
			if held := n < uint64(table.room()); ok != held || held && (table.until[slot] != uint32(n+1) || table.id(slot) != id) {
				t.Fatalf("%d of %d: %v, slot %d", n, table.room(), ok, slot)
			}
			if head := table.lines[table.home(hash)].head; !ok && (matches(head, hash) != 0 || head>>overflow(hash)&1 != 0) {
				more++
			}
		}
		if room >= 50_000 && (more == 0 || more > table.room()/8) {
			t.Errorf("of %d that are not held, %d take more than one read", 2*table.room(), more)
		}
	}
}

// An identity that differs in any one bit from one that is held is another.
func TestTableTellsEachBit(t *testing.T) {
	s := &newList(math.MaxInt).denials[token.KindToken]
	for n := range uint64(100) {
		id := identity(n)
		table := s.newTable(index(s.hash(id)), 1, false)
		table.insert(s.hash(id), id.Low, math.MaxUint32, nil)
		s.shards[index(s.hash(id))].table.Store(table)
		if !s.has(id) {
			t.Fatal("not found")
		}
		for bit := range 128 {
			other := id
			if bit < 64 {
				other.Low ^= 1 << bit
			} else {
				other.High ^= 1 << (bit - 64)
			}
			if s.has(other) {
				t.Fatalf("bit %d makes no difference", bit)
			}
		}
		s.shards[index(s.hash(id))].table.Store(nil)
	}
}

// A free slot is never looked into, whatever stands beside it: one that is being stored
// must not be read. The identity of zeros would show it.
func TestSetFreeSlots(t *testing.T) {
	s := &newList(math.MaxInt).denials[token.KindToken]
	for n := range uint64(1 << 11) {
		table := s.newTable(0, 1, false)
		table.insert(n<<20|n, 1, 1, nil)
		s.shards[0].table.Store(table)
		for other := range uint64(1 << 11) { // with all else of zeros
			if _, ok := table.find(other, 0); ok {
				t.Fatalf("tag %d: a free slot is found by %d", n, other)
			}
		}
		if s.has(token.ID{}) {
			t.Fatalf("tag %d: a free slot is found", n)
		}
	}
}

// 64 goroutines add, look up, raise, sweep and rebuild at once. What deny returned
// for is found, and nothing else is. DURWARD_STRESS is how many look-ups to make.
func TestSetUnderStress(t *testing.T) {
	lookups := 300_000
	if text := os.Getenv("DURWARD_STRESS"); text != "" {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		lookups = int(n)
	}
	const workers, every = 62, 64 // look-ups for each identity that is added
	const passing, absent = 1 << 62, 1 << 63
	l := New(math.MaxInt)
	var (
		added                                  [workers]atomic.Uint64
		clock                                  atomic.Uint32
		denials                                = &l.denials[token.KindToken]
		cutoffs                                = &l.cutoffs[token.KindSubject]
		hits, lost, invented, rebuilt, dropped atomic.Int64
	)
	name := func(worker int, n uint64) uint64 { return uint64(worker)<<40 | n }
	var work, churn sync.WaitGroup
	for w := range workers {
		work.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 2))
			var found, missed, wrong int64
			for i := range lookups / workers {
				if i%every == 0 {
					n := added[w].Load()
					id := identity(name(w, n))
					l.deny(token.KindToken, id, math.MaxUint32)
					l.deny(token.KindToken, identity(name(w, n)|passing), clock.Load()+random.Uint32N(5000))
					if n%8 == 0 {
						l.cut(token.KindSubject, id, math.MaxUint32, ExceptedCutoff{Before: 1})
						l.cut(token.KindSubject, identity(name(w, n/2)|passing), clock.Load()+random.Uint32N(5000), ExceptedCutoff{Before: int64(n) + 1})
					}
					added[w].Store(n + 1)
				}
				other := random.IntN(workers)
				n := added[other].Load()
				if n == 0 {
					continue
				}
				n = random.Uint64N(n)
				id := identity(name(other, n))
				switch {
				case i%4 == 0 && (denials.has(identity(name(other, n)|absent)) || cutoffs.cutoff(identity(name(other, n)|absent)) != nil):
					wrong++
				case i%4 == 0:
				case i%4 == 1 && n%8 == 0:
					if c := cutoffs.cutoff(id); c == nil || c.ID != id || c.IssuedAt != 1 {
						missed++
					}
					found++
				case !denials.has(id):
					missed++
				default:
					found++
				}
			}
			hits.Add(found)
			lost.Add(missed)
			invented.Add(wrong)
		})
	}
	stop := make(chan struct{})
	until := func(f func()) {
		churn.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
					runtime.Gosched()
				}
			}
		})
	}
	until(func() {
		past := clock.Add(100)
		for _, s := range [...]*set{denials, cutoffs} {
			n := s.sweep(past, past%1000 == 0)
			l.total.Add(-int64(n))
			dropped.Add(int64(n))
		}
	})
	until(func() {
		for _, s := range [...]*set{denials, cutoffs} {
			rebuild(s, rand.IntN(shards), rand.IntN(1000))
		}
		rebuilt.Add(1)
	})
	work.Wait()
	close(stop)
	churn.Wait()
	t.Logf("%d look-ups that had to hit, %d lost, %d invented; %d rebuilds, %d dropped, %d held", hits.Load(), lost.Load(), invented.Load(), rebuilt.Load(), dropped.Load(), l.total.Load())
	if lost.Load() != 0 || invented.Load() != 0 || hits.Load() == 0 {
		t.Error("want none lost and none invented")
	}
	for w := range workers {
		for n := range added[w].Load() {
			if !denials.has(identity(name(w, n))) {
				t.Fatalf("%d of %d is gone", n, w)
			}
		}
	}
	consistent(t, denials)
	consistent(t, cutoffs)
}
