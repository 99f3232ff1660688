package token

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// A Cache remembers verified tokens, so that most requests cost a hash and no
// signature check. It may forget whenever it likes, and it does: nothing is
// revoked by it or with it. It outlives reloads; each Verifier takes from it only
// what its own issuers' present keys verified.
type Cache struct {
	entries      *ristretto.Cache[uint64, *entry]
	hits, misses atomic.Uint64
}

// An entry is a verified token.
type entry struct {
	digest     [sha256.Size]byte // of the whole token: the cache's own 64 bits can collide
	claims     *Claims
	generation uint64 // of the keys that verified it
}

// NewCache makes a cache for about this many bytes. Close ends it.
func NewCache(maxBytes int64) (*Cache, error) {
	if maxBytes <= 0 {
		return nil, fmt.Errorf("token_cache: max_bytes is %d, not more than 0", maxBytes)
	}
	entries, err := ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		NumCounters:        max(1000, 10*maxBytes/2048), // ten for each entry that fits, as its documentation advises
		MaxCost:            maxBytes,
		BufferItems:        64,
		IgnoreInternalCost: true, // entry.cost knows better
		KeyToHash:          func(key uint64) (uint64, uint64) { return key, 0 },
	})
	if err != nil {
		return nil, fmt.Errorf("token_cache: %w", err)
	}
	return &Cache{entries: entries}, nil
}

// Close ends the cache's goroutine. A closed cache finds nothing.
func (c *Cache) Close() {
	if c != nil {
		c.entries.Close()
	}
}

// Stats are how many look-ups found a token that could be used, and how many did not.
func (c *Cache) Stats() (hits, misses uint64) {
	if c == nil {
		return 0, 0
	}
	return c.hits.Load(), c.misses.Load()
}

func (c *Cache) get(digest *[sha256.Size]byte) *entry {
	if c == nil {
		return nil
	}
	e, ok := c.entries.Get(binary.LittleEndian.Uint64(digest[:]))
	if !ok || e.digest != *digest {
		return nil
	}
	return e
}

// set remembers a token for as long as it may be accepted.
func (c *Cache) set(e *entry, ttl time.Duration) {
	if c != nil && ttl > 0 { // to ristretto, 0 means for ever
		c.entries.SetWithTTL(binary.LittleEndian.Uint64(e.digest[:]), e, e.cost(), ttl)
	}
}

// count tells a usable find from all else.
func (c *Cache) count(hit bool) {
	switch {
	case c == nil:
	case hit:
		c.hits.Add(1)
	default:
		c.misses.Add(1)
	}
}

// cost is about how many bytes of memory the entry holds, the cache's own
// book-keeping included. A test compares it with the heap.
func (e *entry) cost() int64 {
	cost := int64(fixedCost)
	if n := len(e.claims.Scopes); n > len(e.claims.few) {
		cost += int64(n) * 16
	}
	for _, known := range e.claims.known {
		cost += 32 + weight(known.value) + 16 + length(known.value) // a Rendering has it as text
	}
	return cost + int64(len(e.claims.text)+e.claims.beside)
}

// fixedCost is an entry, its Claims, their Rendering and the cache's maps.
const fixedCost = 660

// length is that of a claim's text.
func length(v any) (n int64) {
	switch v := v.(type) {
	case string:
		return int64(len(v))
	case []any:
		for _, element := range v {
			n += length(element) + 1
		}
	}
	return n
}

// weight is about how many bytes a decoded JSON value holds besides its interface.
func weight(v any) (bytes int64) {
	switch v := v.(type) {
	case string:
		return 16 + (int64(len(v))+15)&^15
	case json.Number:
		return 16 + (int64(len(v))+15)&^15
	case []any:
		bytes = 24 + 16*int64(cap(v))
		for _, element := range v {
			bytes += weight(element)
		}
	case map[string]any:
		bytes = 48 + 264 // a header and one group of eight slots
		if len(v) > 8 {
			bytes += 64 * int64(len(v))
		}
		for name, value := range v {
			bytes += (int64(len(name))+15)&^15 + weight(value)
		}
	}
	return bytes
}
