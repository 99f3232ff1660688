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
	shards  = 256
	eighth  = 8    // what part of a full table is free, by which part it grows, and what part must be dead to copy the rest
	ageUnit = 1024 // seconds; how finely a table counts what may be forgotten when
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
// memory; so were groups of eight slots with a word of tags (Swiss tables): the read of
// a slot has to wait for that of the tags, and what is done with them meanwhile fills
// the few places in which a processor keeps what waits.
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

// A table is a filter before slots. A hash names a slot, its home, and an identity
// stands there or in the first slot behind that was free when it came (linear probing),
// mostly in the same line of the processor's cache. To find out that it stands nowhere
// would take up to a dozen lines. So there is a word for each eight slots, in which an
// identity at home in one of them sets three bits that its hash names; where one is
// missing, which it is for 97 of 100 that are not held, one read says no. Both reads
// depend on the hash alone, and hardly any branch on what nobody could guess. Nearly all
// look-ups are of what is not held.
//
// An eighth of the slots stays free, so that a search ends. A slot is free while its
// time is 0. Only the cutoffs hold pointers: the garbage collector does not look into
// millions of denials.
type table struct {
	filter  []uint64                 // atomic
	ids     []token.ID               // each half atomic
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

// newTable has room for so many identities, at least one.
func newTable(room int, cutoffs bool) *table {
	slots := room + (room-1)/(eighth-1) + 1
	t := &table{
		filter: make([]uint64, (slots+7)/8),
		ids:    make([]token.ID, slots),
		until:  make([]uint32, slots),
		ages:   make(ages),
	}
	if cutoffs {
		t.cutoffs = make([]atomic.Pointer[Cutoff], slots)
	}
	return t
}

// room is how many identities fit.
func (t *table) room() int { return len(t.ids) - (len(t.ids)+eighth-1)/eighth }

func (t *table) bytes() int64 {
	if t == nil {
		return 0
	}
	return int64(unsafe.Sizeof(*t)) + int64(len(t.filter))*8 + int64(len(t.ids))*(16+4) + int64(len(t.cutoffs))*8
}

// hash is keyed: whoever does not know the key cannot aim at one place.
func (s *set) hash(id token.ID) uint64 {
	high, low := bits.Mul64(id.High^s.key[0], id.Low^s.key[1])
	return high ^ low
}

// Shard, home and filter take different bits of a hash.
func (s *set) index(hash uint64) int { return int(hash >> 24 % shards) }

func (s *set) shard(hash uint64) *shard { return &s.shards[s.index(hash)] }

func (t *table) home(hash uint64) int { return int(hash >> 32 * uint64(len(t.ids)) >> 32) }

// filtered are the bits that a hash sets in the filter's word of its home.
func filtered(hash uint64) uint64 { return 1<<(hash%64) | 1<<(hash>>6%64) | 1<<(hash>>12%64) }

// find is where an identity stands. It is for readers and writers.
func (t *table) find(hash uint64, id token.ID) (slot int, ok bool) {
	if t == nil {
		return 0, false
	}
	slot = t.home(hash)
	if want := filtered(hash); atomic.LoadUint64(&t.filter[slot/8])&want != want {
		return 0, false
	}
	for ids := t.ids; ; slot++ {
		if slot == len(ids) {
			slot = 0
		}
		switch held := whole(&ids[slot]); {
		case held == id:
			// If it begins with zeros, this may be a free slot, or one that is not stored yet.
			return slot, held.High != 0 || atomic.LoadUint32(&t.until[slot]) != 0
		case held.High|held.Low == 0 && atomic.LoadUint32(&t.until[slot]) == 0:
			return 0, false
		}
	}
}

// insert stores an identity that is not there, in a table that is not full. It writes the
// filter last, so that who is not turned away there may read what stands behind it.
func (t *table) insert(hash uint64, id token.ID, until uint32, c *Cutoff) {
	home := t.home(hash)
	slot := home
	for t.until[slot] != 0 {
		if slot++; slot == len(t.ids) {
			slot = 0
		}
	}
	if t.cutoffs != nil {
		t.cutoffs[slot].Store(c)
	}
	t.held++
	atomic.StoreUint64(&t.ids[slot].Low, id.Low)
	atomic.StoreUint64(&t.ids[slot].High, id.High)
	atomic.StoreUint32(&t.until[slot], max(until, 1))
	atomic.OrUint64(&t.filter[home/8], filtered(hash))
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

// whole is what stands in a slot. One that is being stored has its first half last, so
// that nobody takes halves of two for one.
func whole(slot *token.ID) token.ID {
	high := atomic.LoadUint64(&slot.High)
	return token.ID{High: high, Low: atomic.LoadUint64(&slot.Low)}
}

// slots walks over the slots that are taken.
func (t *table) slots(yield func(slot int) bool) {
	if t == nil {
		return
	}
	for slot := range t.until {
		if atomic.LoadUint32(&t.until[slot]) != 0 && !yield(slot) {
			return
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
	hash := s.hash(id)
	t = s.shard(hash).table.Load()
	slot, ok = t.find(hash, id)
	return t, slot, ok
}

func (s *set) has(id token.ID) bool {
	_, _, ok := s.lookup(id)
	return ok
}

// until is when an identity may be forgotten.
func (s *set) until(id token.ID) (until uint32, ok bool) {
	t, slot, ok := s.lookup(id)
	if !ok {
		return 0, false
	}
	until = atomic.LoadUint32(&t.until[slot])
	return until, until != 0 // it is being stored
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
		if t := sh.table.Load(); t != nil && t.room() > t.held+t.held/eighth+eighth {
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
