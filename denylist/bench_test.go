package denylist

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"durward/token"
)

const million = 1_000_000

// filled is a list of n denied tokens, of which the first has the jti "a", and
// what one takes in memory.
func filled(b *testing.B, n int) (*List, float64) {
	b.Helper()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	l := newList(2 * n)
	add(b, l, `{"jti":"a"}`)
	now := time.Now()
	for i := range n - 1 {
		r := nth(i)
		if _, err := l.Add([]Revocation{r}, now); err != nil {
			b.Fatal(err)
		}
	}
	return l, float64(heap()-before) / float64(n)
}

func nth(i int) Revocation {
	return Revocation{Issuer: corp, Kind: token.KindToken, Value: string(binary.BigEndian.AppendUint64([]byte("5a1f7c1e-8a7b-"), uint64(i)))}
}

func BenchmarkCheck(b *testing.B) {
	l, _ := filled(b, million)
	now := time.Now()
	mint := tokens(b, corp)
	for _, tt := range []struct {
		name, jti string
		want      token.Kind
	}{{"hit", "a", token.KindToken}, {"miss", "b", 0}} {
		c := mint(map[string]any{"jti": tt.jti, "sid": "s", "sub": "u", "client_id": "c"})
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if got := l.Check(c, now); got != tt.want {
						b.Fatal(got)
					}
				}
			})
		})
	}
	// Not one token over and over, whose shard would be warm.
	many := make([]*token.Claims, 1<<12)
	for i := range many {
		many[i] = mint(map[string]any{"jti": nth(-i - 1).Value[:14] + string(rune('a'+i))})
	}
	b.Run("misses", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			l.Check(many[i%len(many)], now)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	l, bytes := filled(b, million)
	now := time.Now()
	b.ReportAllocs()
	i := million
	for b.Loop() {
		r := [1]Revocation{nth(i)}
		i++
		l.SetMaxEntries(i)
		if _, err := l.Add(r[:], now); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(bytes, "B/entry")
}

func BenchmarkSweep(b *testing.B) {
	l, _ := filled(b, million)
	now := time.Now()
	for b.Loop() {
		l.Sweep(now)
	}
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
		if l.State("", now) != Live {
			b.Fatal("not live")
		}
	}
}
