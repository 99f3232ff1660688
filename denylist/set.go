package denylist

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"durward/token"
)

const (
	shards   = 256
	slots    = 7    // of a group
	freePart = 8    // what part of a full table is free
	growPart = 12   // by what part a full table grows
	deadPart = 8    // what part of a table may be forgotten before the rest is copied
	ageUnit  = 1024 // seconds; how finely a table counts what may be forgotten when
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
// A sharded Go map was refused, which needs a lock to read and up to twice the memory.
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

// A table is groups of seven slots. A hash names a group, an identity's home, and an
// identity stands there or, if there was no free slot when it came, in the first group
// behind that had one. A group is two lines of the processor's cache. What is held in
// none is nearly always known by one read of one line: by a tag of eight bits of the
// hash for each slot, and, for what would stand in a group behind, by one of 64 bits
// that the hash names, which each identity sets in the groups that it found full.
//
// What a look-up costs are the reads, the instructions between them, as a processor
// begins the next look-ups while it waits, and branches on what nobody could guess, at
// each of which it has begun the wrong ones. Linear probing has few instructions, but
// guesses wrong for two of five identities that are held; a Bloom filter before it helps
// with those that are not. Groups of three in one line, of six that hold their times,
// too, and of fourteen were slower.
//
// An eighth of the slots stays free, so that some group is not full and a search ends.
// Only the cutoffs hold pointers: the garbage collector does not look into millions of
// denials.
type table struct {
	groups  []group
	until   []uint32                 // by slot; atomic
	cutoffs []atomic.Pointer[Cutoff] // by slot; nil in a set of denials

	// For who holds the mutex.
	held int
	ages ages
}

// A group is seven slots of a table. Slot n of group g is slot 7g+n of the table.
type group struct {
	tags     uint64          // atomic; byte n is the tag of slot n, 0 while it is free
	overflow uint64          // atomic; see table
	ids      [slots]token.ID // each written once, before its tag
}

// ages are how many identities are kept until which ageUnit.
type ages map[uint32]int

func (a ages) add(until uint32) { a[until/ageUnit]++ }

func (a ages) remove(until uint32) {
	if a[until/ageUnit]--; a[until/ageUnit] == 0 {
		delete(a, until/ageUnit)
	}
}

// newTable has room for so many identities, at least one.
func newTable(room int, cutoffs bool) *table {
	least := room + (room-1)/(freePart-1) + 1
	groups := (least + slots - 1) / slots
	t := &table{
		groups: make([]group, groups),
		until:  make([]uint32, groups*slots),
		ages:   make(ages),
	}
	if cutoffs {
		t.cutoffs = make([]atomic.Pointer[Cutoff], groups*slots)
	}
	return t
}

// room is how many identities fit.
func (t *table) room() int { return len(t.until) - (len(t.until)+freePart-1)/freePart }

func (t *table) bytes() int64 {
	if t == nil {
		return 0
	}
	return int64(unsafe.Sizeof(*t)) + int64(len(t.groups))*int64(unsafe.Sizeof(group{})) + int64(len(t.until))*4 + int64(len(t.cutoffs))*8
}

// hash is keyed: whoever does not know the key cannot aim at one place.
func (s *set) hash(id token.ID) uint64 {
	high, low := bits.Mul64(id.High^s.key[0], id.Low^s.key[1])
	return high ^ low
}

// Shard, home, tag and overflow take different bits of a hash.
func (s *set) index(hash uint64) int { return int(hash >> 24 % shards) }

func (s *set) shard(hash uint64) *shard { return &s.shards[s.index(hash)] }

func (t *table) home(hash uint64) int { return int(hash >> 32 * uint64(len(t.groups)) >> 32) }

const (
	ones = 0x00_01_01_01_01_01_01_01 // of each slot's byte the lowest bit
	tops = ones << 7
)

// tagged is the tag that a hash names, in each slot's byte. It is not 1, as a free slot
// then is no byte that zeros might take for one more of them.
func tagged(hash uint64) uint64 { return max(hash%256, 2) * ones }

// zeros is the top bits of those bytes that are zero, and perhaps of others above the
// lowest of them.
func zeros(bytes uint64) uint64 { return (bytes - ones) &^ bytes & tops }

// overflow is the bit that a hash names.
func overflow(hash uint64) uint64 { return 1 << (hash >> 8 % 64) }

// find is where an identity stands. It is for readers and writers.
func (t *table) find(hash uint64, id token.ID) (slot int, ok bool) {
	if t == nil {
		return 0, false
	}
	tags := tagged(hash)
	for home := t.home(hash); ; home++ {
		if home == len(t.groups) {
			home = 0
		}
		g := &t.groups[home]
		for same := zeros(atomic.LoadUint64(&g.tags) ^ tags); same != 0; same &= same - 1 {
			if n := bits.TrailingZeros64(same) / 8; g.ids[n] == id {
				return home*slots + n, true
			}
		}
		if atomic.LoadUint64(&g.overflow)&overflow(hash) == 0 {
			return 0, false
		}
	}
}

// insert stores an identity that is not there, in a table that is not full. It writes the
// tag last: who finds it reads what it stands for.
func (t *table) insert(hash uint64, id token.ID, until uint32, c *Cutoff) {
	home := t.home(hash)
	g := &t.groups[home]
	for zeros(g.tags) == 0 {
		atomic.StoreUint64(&g.overflow, g.overflow|overflow(hash))
		if home++; home == len(t.groups) {
			home = 0
		}
		g = &t.groups[home]
	}
	n := bits.TrailingZeros64(zeros(g.tags)) / 8
	slot := home*slots + n
	if t.cutoffs != nil {
		t.cutoffs[slot].Store(c)
	}
	t.held++
	atomic.StoreUint32(&t.until[slot], until)
	g.ids[n] = id
	atomic.StoreUint64(&g.tags, g.tags|tagged(hash)&(0xff<<(8*n)))
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

// id is what stands in a slot that is taken.
func (t *table) id(slot int) token.ID { return t.groups[slot/slots].ids[slot%slots] }

// taken walks over the slots that are taken.
func (t *table) taken(yield func(slot int) bool) {
	if t == nil {
		return
	}
	for home := range t.groups {
		tags := atomic.LoadUint64(&t.groups[home].tags)
		for n := range slots {
			if tags>>(8*n)%256 != 0 && !yield(home*slots+n) {
				return
			}
		}
	}
}

// expired is how many identities are kept until before a time. It reads over them
// only if those of the same ageUnit and before would be enough.
func (t *table) expired(past uint32, enough int) int {
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
	for slot := range t.taken {
		if t.until[slot] < past {
			n++
		}
	}
	return n
}

func (s *set) empty() bool { return s.held.Load() == 0 }

// has is table.find once more: the other would be called, and say where, which half as
// many instructions again are for.
func (s *set) has(id token.ID) bool {
	hash := s.hash(id)
	t := s.shard(hash).table.Load()
	if t == nil {
		return false
	}
	tags := tagged(hash)
	for home := t.home(hash); ; home++ {
		if home >= len(t.groups) {
			home = 0
		}
		g := &t.groups[home]
		for same := zeros(atomic.LoadUint64(&g.tags) ^ tags); same != 0; same &= same - 1 {
			if g.ids[bits.TrailingZeros64(same)/8] == id {
				return true
			}
		}
		if atomic.LoadUint64(&g.overflow)&overflow(hash) == 0 {
			return false
		}
	}
}

func (s *set) lookup(id token.ID) (t *table, slot int, ok bool) {
	hash := s.hash(id)
	t = s.shard(hash).table.Load()
	slot, ok = t.find(hash, id)
	return t, slot, ok
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
// does not have. A full table grows by a twelfth, or so that it takes its part of
// what is known to follow.
func (s *set) put(sh *shard, hash uint64, id token.ID, until uint32, c *Cutoff, follow int) {
	t := sh.table.Load()
	if t == nil || t.held == t.room() {
		more := 0
		if t != nil {
			more = t.held / growPart
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
	for slot := range old.taken {
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
	for slot := range old.taken {
		if old.until[slot] < past {
			dropped++
			old.ages.remove(old.until[slot])
			if c := old.cutoff(slot); c != nil {
				s.bytes.Add(-c.bytes())
			}
			continue
		}
		id := old.id(slot)
		t.insert(s.hash(id), id, old.until[slot], old.cutoff(slot))
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
		enough = max(1, t.held/deadPart)
	}
	if t.expired(past, enough) < enough {
		return 0
	}
	return s.replace(sh, past, 0, t.cutoffs != nil)
}

// trim gives back room that a wrong guess of what follows took.
func (s *set) trim() {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.write.Lock()
		if t := sh.table.Load(); t != nil && t.room() > t.held+t.held/growPart+slots {
			s.replace(sh, 0, t.held/(2*growPart), t.cutoffs != nil)
		}
		sh.write.Unlock()
	}
}

// walk walks over the slots that are taken, in the tables as they are found.
func (s *set) walk(yield func(t *table, slot int) bool) {
	for i := range s.shards {
		t := s.shards[i].table.Load()
		for slot := range t.taken {
			if !yield(t, slot) {
				return
			}
		}
	}
}
