package denylist

import (
	"encoding/binary"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"durward/token"
)

const (
	shards    = 256
	groupSize = 8                  // slots whose tags make a word
	loaded    = groupSize - 1      // how many of them are taken on average when a table is full
	eighth    = 8                  // by which part a full table grows, and what part of one must be dead to copy the rest
	ageUnit   = 1024               // seconds; how finely a table counts what may be forgotten when
	low       = 0x0101010101010101 // the lowest bit of every tag
	high      = 0x8080808080808080 // the highest one
	spread    = 0x9e3779b97f4a7c15 // makes another hash of one
)

// A set is an exact set of identities, each with a time until which it is kept
// and, in a set of cutoffs, with what they are.
//
// It is 256 hash tables, each behind a pointer. Readers take no lock, wait for
// nobody and never try twice; writers hold the shard's mutex. In a table nothing
// is ever moved or taken away: a table that is full, or of which an eighth may be
// forgotten, is copied to a new one, which then takes its place. A reader of the
// old one still finds what was held when it came. As it is one shard at a time, a
// copy takes 1/256 of the memory more, if for a moment.
//
// The identities are themselves hashes, but an index made of them alone would let
// whoever chooses many jti aim at one place; so it is keyed, per process.
//
// A sharded Go map was refused, which needs a lock to read and up to twice the
// memory; so was a flat table with linear probing, which has to read keys to say
// no, one group for each hash, of which every third is full, tags of 16 bits, which
// take more of the processor's cache than they spare, and a cache line for three
// identities and no tags, two of which cost more than two words of tags.
type set struct {
	key    [2]uint64 // of hash; random
	shards [shards]shard
	held   atomic.Int64 // counted before one is stored and after it is dropped, so never less than what a reader could find
	bytes  atomic.Int64 // that the tables take
}

type shard struct {
	write sync.Mutex
	table atomic.Pointer[table] // nil while there is nothing to hold
}

// A table has its slots in groups of eight. The word of a group holds a tag for
// each slot that is taken, from the lowest byte up: eight bits of the hash, and never 0.
// A hash names two groups, and an identity stands in the one that was emptier when it
// came. Only if neither had room, it stands in the first that had behind the one named
// first, which is marked as passed by for an eighth of all hashes. So two words that
// are read at once nearly always say no, or where to look, and no branch depends on how
// full a group is: what a processor cannot guess it waits for, and its memory takes a
// hundred times as long as all else. Whoever stores an identity writes the tag last, so
// that who sees the tag may read what it stands for. Only the cutoffs hold pointers: the
// garbage collector does not look into millions of denials.
type table struct {
	tags    []uint64 // by group; atomic
	passed  []uint64 // eight bits for each group; atomic
	ids     []token.ID
	until   []uint32                 // atomic
	cutoffs []atomic.Pointer[Cutoff] // nil in a set of denials

	// For who holds the mutex.
	held int
	ages ages
}

// ages are how many identities are kept until which ageUnit.
type ages map[uint32]int

func (a ages) add(until uint32) { a[until/ageUnit]++ }

func (a ages) remove(until uint32) {
	if a[until/ageUnit]--; a[until/ageUnit] == 0 {
		delete(a, until/ageUnit)
	}
}

// newTable has room for so many identities.
func newTable(room int, cutoffs bool) *table {
	groups := (room + loaded - 1) / loaded
	t := &table{
		tags:   make([]uint64, groups),
		passed: make([]uint64, (groups+7)/8),
		ids:    make([]token.ID, groups*groupSize),
		until:  make([]uint32, groups*groupSize),
		ages:   make(ages),
	}
	if cutoffs {
		t.cutoffs = make([]atomic.Pointer[Cutoff], groups*groupSize)
	}
	return t
}

// room is how many identities fit; one slot of eight stays free, so that a search
// ends.
func (t *table) room() int { return len(t.tags) * loaded }

func (t *table) bytes() int64 {
	if t == nil {
		return 0
	}
	return int64(unsafe.Sizeof(*t)) + int64(len(t.tags)+len(t.passed))*8 + int64(len(t.ids))*(16+4) + int64(len(t.cutoffs))*8
}

// A halved identity goes from function to function in registers.
type halved struct{ first, second uint64 }

func halve(id token.ID) halved {
	return halved{binary.LittleEndian.Uint64(id[:8]), binary.LittleEndian.Uint64(id[8:])}
}

func (h halved) is(id *token.ID) bool {
	return binary.LittleEndian.Uint64(id[:8]) == h.first && binary.LittleEndian.Uint64(id[8:]) == h.second
}

// hash is keyed: whoever does not know the key cannot aim at one place.
func (s *set) hash(id halved) uint64 {
	high, low := bits.Mul64(id.first^s.key[0], id.second^s.key[1])
	return high ^ low
}

// Shard, tag and group take different bits of a hash.
func (s *set) index(hash uint64) int { return int(hash >> 8 % shards) }

func (s *set) shard(hash uint64) *shard { return &s.shards[s.index(hash)] }

// groups are where an identity may stand, and its tag.
func (t *table) groups(hash uint64) (first, second int, tag uint64) {
	n := uint64(len(t.tags))
	return int(hash >> 32 * n >> 32), int(hash * spread >> 32 * n >> 32), max(hash&0xff, 1)
}

// matches has the highest bit of each byte of the word that equals the tag, and of
// some above such a byte.
func matches(word, tag uint64) uint64 {
	x := word ^ tag*low
	return (x - low) &^ x & high
}

func full(word uint64) bool { return word>>56 != 0 }

// taken is how many slots of a group are.
func taken(word uint64) int { return (bits.Len64(word) + 7) / 8 }

// find is where an identity stands. It is for readers and writers.
func (t *table) find(hash uint64, id halved) (slot int, ok bool) {
	if t == nil {
		return 0, false
	}
	first, second, tag := t.groups(hash)
	here, there := matches(atomic.LoadUint64(&t.tags[first]), tag), matches(atomic.LoadUint64(&t.tags[second]), tag)
	if here|there|t.passedBy(first, hash) == 0 {
		return 0, false
	}
	// Which of the two it is nobody could guess either, so no branch asks.
	some := -((here | -here) >> 63)
	match := here | there&^some
	group := second ^ (first^second)&int(some)
	if slot := group*groupSize + bits.TrailingZeros64(match)/8; match != 0 && id.is(&t.ids[slot]) {
		return slot, true
	}
	return t.search(hash, id)
}

// search is find without haste.
func (t *table) search(hash uint64, id halved) (slot int, ok bool) {
	group, second, tag := t.groups(hash)
	among := func(group int) (slot int, ok bool) {
		for match := matches(atomic.LoadUint64(&t.tags[group]), tag); match != 0; match &= match - 1 {
			if slot := group*groupSize + bits.TrailingZeros64(match)/8; id.is(&t.ids[slot]) {
				return slot, true
			}
		}
		return 0, false
	}
	if slot, ok := among(second); ok {
		return slot, true
	}
	passed := t.passedBy(group, hash) != 0
	for {
		more := passed && full(atomic.LoadUint64(&t.tags[group]))
		if slot, ok := among(group); ok || !more {
			return slot, ok
		}
		if group++; group == len(t.tags) {
			group = 0
		}
	}
}

// passedBy is not 0 if the group may have been passed by for this hash.
func (t *table) passedBy(group int, hash uint64) uint64 {
	word, bit := passedAt(group, hash)
	return atomic.LoadUint64(&t.passed[word]) >> bit & 1
}

// passedAt is the bit of a group that stands for an eighth of all hashes.
func passedAt(group int, hash uint64) (word int, bit uint64) {
	return group / 8, uint64(group%8*8) + hash>>16%8
}

// insert stores an identity that is not there, in a table that is not full.
func (t *table) insert(hash uint64, id token.ID, until uint32, c *Cutoff) {
	group, second, tag := t.groups(hash)
	if taken(t.tags[second]) < taken(t.tags[group]) {
		group = second
	}
	if full(t.tags[group]) {
		word, bit := passedAt(group, hash)
		atomic.OrUint64(&t.passed[word], 1<<bit)
	}
	for full(t.tags[group]) {
		if group++; group == len(t.tags) {
			group = 0
		}
	}
	word := t.tags[group]
	free := taken(word)
	slot := group*groupSize + free
	t.ids[slot] = id
	t.until[slot] = until
	if t.cutoffs != nil {
		t.cutoffs[slot].Store(c)
	}
	t.held++
	atomic.StoreUint64(&t.tags[group], word|tag<<(8*free))
}

// raise changes until when an identity is kept.
func (t *table) raise(slot int, until uint32) {
	t.ages.remove(t.until[slot])
	t.ages.add(until)
	atomic.StoreUint32(&t.until[slot], until)
}

func (t *table) cutoff(slot int) *Cutoff {
	if t.cutoffs == nil {
		return nil
	}
	return t.cutoffs[slot].Load()
}

// slots walks over the slots that are taken.
func (t *table) slots(yield func(slot int) bool) {
	if t == nil {
		return
	}
	for group := range t.tags {
		n := taken(atomic.LoadUint64(&t.tags[group]))
		for slot := group * groupSize; slot < group*groupSize+n; slot++ {
			if !yield(slot) {
				return
			}
		}
	}
}

// dead is how many identities are kept until before a time. It reads over them
// only if those of the same ageUnit and before would be enough.
func (t *table) dead(past uint32, enough int) int {
	n := 0
	for unit, held := range t.ages {
		if unit <= past/ageUnit {
			n += held
		}
	}
	if n < enough {
		return 0
	}
	n = 0
	for slot := range t.slots {
		if t.until[slot] < past {
			n++
		}
	}
	return n
}

func (s *set) empty() bool { return s.held.Load() == 0 }

func (s *set) lookup(id token.ID) (t *table, slot int, ok bool) {
	h := halve(id)
	hash := s.hash(h)
	t = s.shard(hash).table.Load()
	slot, ok = t.find(hash, h)
	return t, slot, ok
}

func (s *set) has(id token.ID) bool {
	h := halve(id)
	hash := s.hash(h)
	_, ok := s.shard(hash).table.Load().find(hash, h)
	return ok
}

// until is when an identity may be forgotten.
func (s *set) until(id token.ID) (until uint32, ok bool) {
	t, slot, ok := s.lookup(id)
	if !ok {
		return 0, false
	}
	return atomic.LoadUint32(&t.until[slot]), true
}

// cutoff is what a set of cutoffs holds for an identity, nil for nothing.
func (s *set) cutoff(id token.ID) *Cutoff {
	t, slot, ok := s.lookup(id)
	if !ok {
		return nil
	}
	return t.cutoffs[slot].Load()
}

// put stores an identity that the table of its shard, of which the mutex is held,
// does not have. A full table grows by an eighth, or so that it takes its part of
// what is known to follow.
func (s *set) put(sh *shard, hash uint64, id token.ID, until uint32, c *Cutoff, follow int) {
	t := sh.table.Load()
	if t == nil || t.held == t.room() {
		more := 0
		if t != nil {
			more = t.held / eighth
		}
		// Chance gives nearly no shard this much more than its part.
		part := float64(follow) / shards
		s.replace(sh, 0, max(more+1, int(part+4*math.Sqrt(max(part, 0)))), c != nil)
		t = sh.table.Load()
	}
	t.insert(hash, id, until, c)
	t.ages.add(until)
	if c != nil {
		s.bytes.Add(c.bytes())
	}
}

// replace puts a table with room for more in the place of a shard's, of which the
// mutex is held, without what is kept until before a time. It counts what it left
// out.
func (s *set) replace(sh *shard, past uint32, more int, cutoffs bool) (dropped int) {
	old := sh.table.Load()
	held := 0
	for slot := range old.slots {
		if old.until[slot] >= past {
			held++
		}
	}
	var t *table
	if held+more > 0 {
		t = newTable(held+more, cutoffs)
	}
	if t != nil && old != nil {
		t.ages = old.ages
	}
	for slot := range old.slots {
		if old.until[slot] < past {
			dropped++
			old.ages.remove(old.until[slot])
			if c := old.cutoff(slot); c != nil {
				s.bytes.Add(-c.bytes())
			}
			continue
		}
		id := old.ids[slot]
		t.insert(s.hash(halve(id)), id, old.until[slot], old.cutoff(slot))
	}
	s.bytes.Add(t.bytes() - old.bytes())
	sh.table.Store(t)
	return dropped
}

// sweep drops what is kept until before a time, wherever it makes an eighth of a
// shard; all of it, if room is short.
func (s *set) sweep(past uint32, short bool) (dropped int) {
	for i := range s.shards {
		dropped += s.sweepShard(&s.shards[i], past, short)
	}
	s.held.Add(-int64(dropped))
	return dropped
}

func (s *set) sweepShard(sh *shard, past uint32, short bool) (dropped int) {
	sh.write.Lock()
	defer sh.write.Unlock()
	t := sh.table.Load()
	if t == nil {
		return 0
	}
	enough := 1
	if !short {
		enough = max(1, t.held/eighth)
	}
	if dead := t.dead(past, enough); dead < enough {
		return 0
	}
	return s.replace(sh, past, 0, t.cutoffs != nil)
}

// trim gives back room that a wrong guess of what follows took.
func (s *set) trim() {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.write.Lock()
		if t := sh.table.Load(); t != nil && t.room() > t.held+t.held/eighth+groupSize {
			s.replace(sh, 0, t.held/(2*eighth), t.cutoffs != nil)
		}
		sh.write.Unlock()
	}
}

// walk walks over the slots that are taken, in the tables as they are found.
func (s *set) walk(yield func(t *table, slot int) bool) {
	for i := range s.shards {
		t := s.shards[i].table.Load()
		for slot := range t.slots {
			if !yield(t, slot) {
				return
			}
		}
	}
}
