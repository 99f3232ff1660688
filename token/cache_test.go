package token

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// What the cache believes to hold is what the heap holds, within a quarter or so.
func TestCost(t *testing.T) {
	i := newIssuer(t, testConfig(t))
	many := object{}
	for n := range 30 {
		many[fmt.Sprintf("claim_%d", n)] = "a value of some length"
	}
	for name, claims := range map[string]object{
		"small":       {"iss": testIssuer, "aud": "intranet", "sub": "alice", "jti": "x", "iat": testNow.Unix(), "exp": testNow.Unix() + 60},
		"usual":       goodClaims(),
		"many claims": with(goodClaims(), many),
		"many groups": with(goodClaims(), object{"groups": strings.Fields(strings.Repeat("some-group-name ", 150))}),
	} {
		cache, err := NewCache(1 << 30)
		if err != nil {
			t.Fatal(err)
		}
		v := NewVerifier([]*Issuer{i}, cache, 8192)
		const n = 2000
		heap := func() int64 {
			var m runtime.MemStats
			cache.entries.Wait()
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		text := jsonOf(claims)
		before, cost := heap(), int64(0)
		for k := range n {
			payload, err := decodeObject([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			c, refused := i.read(payload, "")
			if refused != nil {
				t.Fatal(refused)
			}
			e := &entry{claims: c, digest: [32]byte{byte(k), byte(k >> 8), 1}}
			cost += e.cost()
			cache.set(e, time.Hour)
		}
		held := heap() - before
		t.Logf("%s: %d bytes of JSON, %d on the heap, %d by our count", name, len(text), held/n, cost/n)
		if ratio := float64(cost) / float64(held); ratio < 0.75 || ratio > 1.5 {
			t.Errorf("%s: a token takes %d bytes, and is counted as %d", name, held/n, cost/n)
		}
		runtime.KeepAlive(v)
		cache.Close()
	}
}

func TestCacheBounds(t *testing.T) {
	for _, n := range []int64{0, -1} {
		if c, err := NewCache(n); err == nil || c != nil {
			t.Errorf("%d bytes: got %v, %v", n, c, err)
		}
	}
	var none *Cache
	none.Close()
	if hits, misses := none.Stats(); hits+misses != 0 {
		t.Error("no cache counts")
	}
	cache, err := NewCache(10_000)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newIssuer(t, testConfig(t)).Suppose(nil, testNow)
	if err != nil {
		t.Fatal(err)
	}
	kept := func() (n int) {
		for k := range 256 {
			if cache.get(&[32]byte{byte(k)}) != nil {
				n++
			}
		}
		return n
	}
	for k := range 256 {
		cache.set(&entry{claims: c, digest: [32]byte{byte(k)}}, time.Hour)
		cache.entries.Wait()
	}
	if n, most := kept(), 10_000/int((&entry{claims: c}).cost()); n == 0 || n > most {
		t.Errorf("%d tokens in the room of %d", n, most)
	}
	cache.Close()
	if kept() != 0 {
		t.Error("a closed cache remembers")
	}
}
