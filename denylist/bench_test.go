package denylist

import (
	"fmt"
	"hash/maphash"
	"iter"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"durward/token"
)

const million = 1_000_000

// sizes runs a benchmark of lists of a million and, unless -short, ten million.
func sizes(b *testing.B, run func(b *testing.B, n int)) {
	for _, n := range []int{million, 10 * million} {
		b.Run(fmt.Sprintf("%dM", n/million), func(b *testing.B) {
			if n > million && testing.Short() {
				b.Skip("takes half a gigabyte")
			}
			run(b, n)
		})
	}
}

// sequence is n denials that expire over the next day.
func sequence(n int) iter.Seq[Denial] {
	return func(yield func(Denial) bool) {
		soon := uint32(time.Now().Unix()) + 600
		for i := range n {
			if !yield(Denial{token.KindToken, identity(uint64(i)), soon + uint32(i*86400/n)}) {
				return
			}
		}
	}
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// filled is a list of n denied tokens that came one by one.
func filled(b *testing.B, n int) *List {
	b.Helper()
	l := newList(math.MaxInt)
	for d := range sequence(n) {
		l.deny(d.Kind, d.ID, d.Until)
	}
	return l
}

// pauses are the time for which the garbage collector stopped the world in 99 of a
// hundred cases, and in the longest, as far as its histogram tells, while f ran.
func pauses(f func()) (most, longest time.Duration) {
	read := func() *metrics.Float64Histogram {
		sample := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
		metrics.Read(sample)
		return sample[0].Value.Float64Histogram()
	}
	before := read()
	f()
	after := read()
	all, above := uint64(0), uint64(0)
	for i := range after.Counts {
		all += after.Counts[i] - before.Counts[i]
	}
	for i := len(after.Counts) - 1; i >= 0; i-- {
		if after.Counts[i] == before.Counts[i] {
			continue
		}
		at := time.Duration(after.Buckets[i] * float64(time.Second))
		if above == 0 {
			longest = at
		}
		if above += after.Counts[i] - before.Counts[i]; above*100 > all {
			return at, longest
		}
	}
	return 0, longest
}

// A locked is what the set was measured against: the same shards of Go maps.
type locked struct {
	seed   maphash.Seed
	shards [shards]struct {
		sync.RWMutex
		held map[[16]byte]uint32 // whose entries take four bytes less than with the same as two numbers
	}
}

func (l *locked) deny(d Denial) {
	id := [16]byte(d.ID.Append(nil))
	s := &l.shards[maphash.Bytes(l.seed, id[:])%shards]
	s.Lock()
	defer s.Unlock()
	if s.held == nil {
		s.held = make(map[[16]byte]uint32)
	}
	s.held[id] = max(s.held[id], d.Until)
}

func (l *locked) has(id *[16]byte) bool {
	s := &l.shards[maphash.Bytes(l.seed, id[:])%shards]
	s.RLock()
	defer s.RUnlock()
	_, ok := s.held[*id]
	return ok
}

// anywhere is identities that are all over a set of sequence(n), or not in it, made
// beforehand.
func anywhere(n int, held bool) []token.ID {
	ids := make([]token.ID, 1<<20)
	random := uint64(1)
	for i := range ids {
		random = random*6364136223846793005 + 1442695040888963407
		number := random >> 33 % uint64(n)
		if !held {
			number += 1 << 40
		}
		ids[i] = identity(number)
	}
	return ids
}

// lookUps measures what one look-up takes. The loop is in the function, lest what calls
// it takes as long: it looks all up and says how many are held.
func lookUps[ID any](b *testing.B, name string, ids []ID, held bool, has func([]ID) int) {
	const each = 1 << 12
	want := 0
	if held {
		want = each
	}
	part := func(b *testing.B, i int) {
		if i %= len(ids) / each; has(ids[i*each:][:each]) != want {
			b.Error("wrong")
		}
	}
	report := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/each, "ns/look-up")
	}
	b.Run(name, func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			part(b, i)
		}
		report(b)
	})
	b.Run(name+"/of 4,096", func(b *testing.B) {
		for b.Loop() {
			part(b, 0)
		}
		report(b)
	})
	b.Run(name+"/parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(len(ids)); pb.Next(); i++ {
				part(b, i)
			}
		})
		report(b)
	})
}

// BenchmarkSet looks up identities all over the set, so that hardly any is in the
// processor's cache, and says what an entry takes and how long the garbage
// collector stopped the world; the same for Go maps behind locks. "Of 4,096" asks for
// as many again and again, as users do who come with the same tokens. What takes "one
// line" is to hash an identity and to read one cache line of as much memory, which
// is the least that any table could take.
func BenchmarkSet(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		asked := map[bool][]token.ID{true: anywhere(n, true), false: anywhere(n, false)}
		takes := func(b *testing.B, fill func()) {
			before := heap()
			fill()
			b.Run("size", func(b *testing.B) {
				for b.Loop() {
				}
				b.ReportMetric((heap()-before)/float64(n), "B/entry")
			})
		}
		collect := func(b *testing.B) {
			b.Run("gc", func(b *testing.B) {
				most, longest := pauses(func() {
					for b.Loop() {
						runtime.GC()
					}
				})
				b.ReportMetric(most.Seconds()*1e6, "µs-p99-pause")
				b.ReportMetric(longest.Seconds()*1e6, "µs-longest-pause")
			})
		}
		b.Run("tables", func(b *testing.B) {
			l := newList(math.MaxInt)
			takes(b, func() {
				for d := range sequence(n) {
					l.deny(d.Kind, d.ID, d.Until)
				}
			})
			s := &l.denials[token.KindToken]
			for held, ids := range asked {
				lookUps(b, map[bool]string{true: "hit", false: "miss"}[held], ids, held, func(ids []token.ID) (found int) {
					for _, id := range ids {
						if s.has(id) {
							found++
						}
					}
					return found
				})
			}
			collect(b)
			if counted := float64(l.Stats().Bytes) / float64(n); counted > 28 {
				b.Errorf("%.1f bytes an entry", counted)
			}
		})
		b.Run("maps", func(b *testing.B) {
			m := &locked{seed: maphash.MakeSeed()}
			takes(b, func() {
				for d := range sequence(n) {
					m.deny(d)
				}
			})
			for held, ids := range asked {
				keys := make([][16]byte, len(ids))
				for i, id := range ids {
					keys[i] = [16]byte(id.Append(nil))
				}
				lookUps(b, map[bool]string{true: "hit", false: "miss"}[held], keys, held, func(ids [][16]byte) (found int) {
					for i := range ids {
						if m.has(&ids[i]) {
							found++
						}
					}
					return found
				})
			}
			collect(b)
		})
		lines, s := make([][8]uint64, n*24/64), &newList(1).denials[token.KindToken]
		for i := range lines {
			lines[i][0] = uint64(i)
		}
		lookUps(b, "one line", asked[false], false, func(ids []token.ID) (found int) {
			for _, id := range ids {
				if lines[s.hash(id)>>32*uint64(len(lines))>>32][0] == math.MaxUint64 {
					found++
				}
			}
			return found
		})
	})
}

func BenchmarkCheck(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		l := filled(b, n)
		add(b, l, `{"jti":"a"}`)
		now := time.Now()
		mint := tokens(b, corp)
		check := func(name string, want token.Kind, claims ...*token.Claims) {
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for i := 0; pb.Next(); i++ {
						if got := l.Check(claims[i%len(claims)], now); got != want {
							b.Error(got)
							return
						}
					}
				})
			})
		}
		check("hit", token.KindToken, mint(map[string]any{"jti": "a", "sid": "s", "sub": "u", "client_id": "c"}))
		// Not one token over and over, nor so many that their claims are cold.
		var many []*token.Claims
		for i := range 1 << 10 {
			many = append(many, mint(map[string]any{"jti": fmt.Sprint(i), "sid": "s", "sub": fmt.Sprint(i), "client_id": "c"}))
		}
		check("miss", 0, many...)
		for i := range 10_000 {
			l.cut(token.KindSubject, identity(uint64(i)), math.MaxUint32, ExceptedCutoff{Before: 1})
		}
		check("miss beside cutoffs", 0, many...)
	})
}

// BenchmarkAdd is Add with what it takes to make an identity of a line's values,
// while the set grows.
func BenchmarkAdd(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		l := filled(b, n)
		now := time.Now()
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if _, err := l.Add([]Revocation{{Issuer: corp, Kind: token.KindToken, Value: fmt.Sprint(i)}}, now); err != nil {
				b.Fatal(err)
			}
			i++
		}
		st := l.Stats()
		b.ReportMetric(float64(st.Bytes)/float64(st.Total), "B/entry")
	})
}

func BenchmarkRestore(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		before := heap()
		var l *List
		for b.Loop() {
			l = newList(n)
			if err := l.RestoreDenials(n, sequence(n)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e6, "M/s")
		b.ReportMetric((heap()-before)/float64(n), "B/entry")
		runtime.KeepAlive(l)
	})
}

// BenchmarkSweep is the sweep of a list of which nothing expired, of one of which a
// part did that is left for now, and of one of which more did.
func BenchmarkSweep(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		l := filled(b, n)
		s := &l.denials[token.KindToken]
		past := uint32(time.Now().Unix()) + 500
		for _, part := range []uint32{0, 1} {
			b.Run([]string{"nothing", "a twelfth"}[part], func(b *testing.B) {
				for b.Loop() {
					if s.sweep(past+2*3600*part, false) != 0 {
						b.Fatal("it is less than an eighth")
					}
				}
			})
		}
		b.Run("a sixth", func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				l := filled(b, n)
				b.StartTimer()
				if l.denials[token.KindToken].sweep(past+4*3600, false) == 0 {
					b.Fatal("nothing is dropped")
				}
			}
		})
	})
}

func BenchmarkParse(b *testing.B) {
	line := []byte(`{"iss":"` + corp + `","jti":"B70BA622-9515-4353-A866-823539EECBC8","exp":1790003600}`)
	issuers, now := Issuers{limits()}, time.Now()
	b.ReportAllocs()
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, err := Parse(line, issuers, now, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkState(b *testing.B) {
	l := newList(1)
	now := time.Now()
	for _, name := range []string{"a", "b"} {
		l.Source(name, time.Hour).Synced(now)
	}
	for b.Loop() {
		if l.State(corp, now) != Live {
			b.Fatal("not live")
		}
	}
}
