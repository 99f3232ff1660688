package token

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// What the cache believes to hold is what the heap holds, within a quarter or so.
func TestCost(t *testing.T) {
	i := newIssuer(t, testConfig(t))
	for _, name := range []string{"sub", "email", "groups"} {
		i.ask(name)
	}
	many := object{}
	for n := range 30 {
		many[fmt.Sprintf("claim_%d", n)] = "a value of some length"
	}
	for name, claims := range map[string]object{
		"small":       {"iss": testIssuer, "aud": "intranet", "sub": "alice", "jti": "x", "iat": testNow.Unix(), "exp": testNow.Unix() + 60},
		"usual":       goodClaims(),
		"many claims": with(goodClaims(), many),
		"blanks":      with(goodClaims(), object{"scope": strings.Repeat(" ", 3000) + "read"}),
		"many scopes": with(goodClaims(), object{"scope": strings.Repeat("r ", 1000)}),
		"escapes":     with(goodClaims(), object{"sub": strings.Repeat("\n", 500), "sid": strings.Repeat("\t", 500), "jti": strings.Repeat(`"`, 500)}),
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
			c.keep(payload, []byte(text))
			r := &Rendering{Of: i}
			for _, known := range c.known {
				r.Values = append(r.Values, strings.Clone(strings.Trim(fmt.Sprint(known.value), "[]")))
			}
			c.KeepRendering(r)
			c.KeepRendering(r)
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

// TestCacheHits: tokens that fit are found nearly always once they were seen. (ristretto
// by itself counts what it keeps for its own use too, and then finds next to none.)
func TestCacheHits(t *testing.T) {
	c, err := newIssuer(t, testConfig(t)).Suppose(map[string]any{"sub": "alice", "jti": "d0a1c6f4-5b0e-4a3f-9c70-000000000001", "scope": "openid profile read write",
		"sid": "5e0c8a1d-77b2-4d1c-8a55-000000000001", "email": "alice@example.com", "groups": []any{"staff", "sales", "emea"}, "client_id": "shop"}, testNow)
	if err != nil {
		t.Fatal(err)
	}
	each := (&entry{claims: c}).cost()
	for _, live := range []int{5_000, 100_000} {
		cache, err := NewCache(int64(live) * each * 11 / 10)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(i int) (hit bool) {
			d := sha256.Sum256(fmt.Append(nil, i))
			if cache.get(&d) != nil {
				return true
			}
			cache.set(&entry{claims: c, digest: d}, time.Hour)
			return false
		}
		// ristretto takes tokens on a goroutine of its own, and drops what comes faster.
		share := func() float64 {
			hits := 0
			for i := range live {
				if ask(i * 7919 % live) {
					hits++
				}
				if i%1000 == 0 {
					cache.entries.Wait()
				}
			}
			cache.entries.Wait()
			return float64(hits) / float64(live)
		}
		for range 3 {
			share()
		}
		if got := share(); got < 0.99 {
			t.Errorf("%d live tokens: %.1f %% are found", live, got*100)
		}
		cache.Close()
	}
}
