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
	shards   = 256
	slots    = 4    // of a line
	freePart = 4    // what part of a full table is free
	growPart = 20   // by what part a full table grows
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
// A sharded Go map was refused, which needs a lock to read and up to twice the memory.
type set struct {
	key    uint64 // of hash; random
	shards [shards]shard
	held   atomic.Int64 // counted before one is stored and after it is dropped, so never less than what a reader could find
	bytes  atomic.Int64 // that the tables take
}

type shard struct {
	write sync.Mutex
	table atomic.Pointer[table] // nil while there is nothing to hold
}

// A table is lines of four slots. A hash names a line, an identity's home, and an
// identity stands there or, if there was no free slot when it came, in the first line
// behind that had one. A line is one of the processor's cache, and reading one is nearly
// always enough: for what is held, and for what is not by a tag of eleven bits of the
// hash for each slot, and, for what would stand in a line behind, by one of 16 bits that
// the hash names, which each identity sets in the lines that it found full.
//
// What a look-up costs are the lines, the instructions between reading one and the next,
// as a processor begins the next look-ups while it waits, and branches on what nobody
// could guess, at each of which it has begun the wrong ones. That is why identities do
// not stand there whole: see [line]. Groups of seven whole identities in two lines were
// slower, and so were of three in one, of six that hold their times, too, and of fourteen.
//
// A quarter of the slots stays free, so that some line is not full and a search ends.
// Only the cutoffs hold pointers: the garbage collector does not look into millions of
// denials.
type table struct {
	lines   []line
	until   []uint32                 // by slot; atomic
	cutoffs []atomic.Pointer[Cutoff] // by slot; nil in a set of denials
	key     uint64                   // the set's
	shard   uint64

	// For who holds the mutex.
	held int
	ages ages
}

// A line is four slots of a table. Slot n of line l is slot 4l+n of the table.
//
// An identity's hash and its lower half are as good as the identity: the upper half is the
// hash xor what mix makes of the lower one. Of the hash, the shard knows the upper eight
// bits, and the tag is the lower eleven. So 14 bytes hold the rest, without any loss: the
// lower half, then bits 8 to 55 of the hash, the lowest byte first. Two reads of eight bytes,
// which share two, see all of it and nothing of what stands beside it.
type line struct {
	// Atomic. Of the 16 bits that slot n has from bit 16n on, 11 are the tag, inverted,
	// one is set once the slot is taken, and four of the line's 16 bits tell who found it full.
	head uint64
	ids  [slots * idSize]byte // each written once, before its tag
}

const (
	idSize = 14
	each   = 0x0001_0001_0001_0001 // the lowest bit of each slot in a head
	tag    = 1<<11 - 1
	taken  = tag + 1
)

// ages are how many identities are kept until which ageUnit.
type ages map[uint32]int

func (a ages) add(until uint32) { a[until/ageUnit]++ }

func (a ages) remove(until uint32) {
	if a[until/ageUnit]--; a[until/ageUnit] == 0 {
		delete(a, until/ageUnit)
	}
}

// newTable has room for so many identities of a shard, at least one.
func (s *set) newTable(shard, room int, cutoffs bool) *table {
	least := room + (room-1)/(freePart-1) + 1
	lines := (least + slots - 1) / slots
	t := &table{
		lines: make([]line, lines),
		until: make([]uint32, lines*slots),
		key:   s.key,
		shard: uint64(shard),
		ages:  make(ages),
	}
	if cutoffs {
		t.cutoffs = make([]atomic.Pointer[Cutoff], lines*slots)
	}
	return t
}

// room is how many identities fit.
func (t *table) room() int { return len(t.until) - len(t.until)/freePart }

func (t *table) bytes() int64 {
	if t == nil {
		return 0
	}
	return int64(unsafe.Sizeof(*t)) + int64(len(t.lines))*int64(unsafe.Sizeof(line{})) + int64(len(t.until))*4 + int64(len(t.cutoffs))*8
}

// mix is keyed: whoever does not know the key cannot aim at one place. The identities
// are themselves hashes, but an index made of them alone would let whoever chooses many
// jti do so.
func mix(low, key uint64) uint64 {
	high, low := bits.Mul64(low, key)
	return high ^ low
}

func (s *set) hash(id token.ID) uint64 { return id.High ^ mix(id.Low, s.key) }

// Of a hash, the shard is the upper eight bits, the home goes by those that follow, the
// tag is the lower eleven, and overflow takes four of those before.
func index(hash uint64) int { return int(hash >> 56) }

func (s *set) shard(hash uint64) *shard { return &s.shards[index(hash)] }

func (t *table) home(hash uint64) int {
	home, _ := bits.Mul64(hash<<8, uint64(len(t.lines)))
	return int(home)
}

// overflow is which bit of a head a hash names: one of those that belong to no tag.
func overflow(hash uint64) uint64 { return hash>>11&0b11_0011 | 0b1100 }

// matches is a bit for each slot of a head that is taken by what has the hash's tag, the
// first behind the slot's taken. Inverted tags make all of a slot's twelve bits set, and
// one more turns over only then.
func matches(head, hash uint64) uint64 {
	return ((head^hash&tag*each)&((tag|taken)*each) + each) & (2 * taken * each)
}

// is tells whether the first of the slots that matches found holds an identity.
func (l *line) is(found, hash, low uint64) bool {
	id := l.ids[bits.TrailingZeros64(found)/16%slots*idSize:]
	return binary.LittleEndian.Uint64(id) == low && binary.LittleEndian.Uint64(id[idSize-8:])^hash<<8 < 1<<16
}

// find is where an identity stands, by its hash and lower half. It is for readers and writers.
func (t *table) find(hash, low uint64) (slot int, ok bool) {
	if t == nil {
		return 0, false
	}
	for home := t.home(hash); ; home++ {
		if home == len(t.lines) {
			home = 0
		}
		l := &t.lines[home]
		head := atomic.LoadUint64(&l.head)
		for s := matches(head, hash); s != 0; s &= s - 1 {
			if l.is(s, hash, low) {
				return home*slots + bits.TrailingZeros64(s)/16, true
			}
		}
		if head>>overflow(hash)&1 == 0 {
			return 0, false
		}
	}
}

// insert stores an identity that is not there, in a table that is not full. It writes the
// tag last: who finds it reads what it stands for.
func (t *table) insert(hash, low uint64, until uint32, c *Cutoff) {
	home := t.home(hash)
	l := &t.lines[home]
	for l.head/taken&each == each {
		atomic.StoreUint64(&l.head, l.head|1<<overflow(hash))
		if home++; home == len(t.lines) {
			home = 0
		}
		l = &t.lines[home]
	}
	n := bits.TrailingZeros64(^l.head/taken&each) / 16
	slot := home*slots + n
	if t.cutoffs != nil {
		t.cutoffs[slot].Store(c)
	}
	t.held++
	atomic.StoreUint32(&t.until[slot], until)
	id := l.ids[n*idSize:]
	binary.LittleEndian.PutUint64(id, low)
	binary.LittleEndian.PutUint32(id[8:], uint32(hash>>8))
	binary.LittleEndian.PutUint16(id[12:], uint16(hash>>40))
	atomic.StoreUint64(&l.head, l.head|(taken|^hash&tag)<<(16*n))
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

// stands is what stands in a slot that is taken, as its hash and lower half.
func (t *table) stands(slot int) (hash, low uint64) {
	l, n := &t.lines[slot/slots], slot%slots
	id := l.ids[n*idSize:]
	middle := uint64(binary.LittleEndian.Uint32(id[8:])) | uint64(binary.LittleEndian.Uint16(id[12:]))<<32
	return t.shard<<56 | middle<<8 | ^atomic.LoadUint64(&l.head)>>(16*n)%256, binary.LittleEndian.Uint64(id)
}

// id is what stands in a slot that is taken.
func (t *table) id(slot int) token.ID {
	hash, low := t.stands(slot)
	return token.ID{High: hash ^ mix(low, t.key), Low: low}
}

// taken walks over the slots that are taken.
func (t *table) taken(yield func(slot int) bool) {
	if t == nil {
		return
	}
	for home := range t.lines {
		head := atomic.LoadUint64(&t.lines[home].head)
		for n := range slots {
			if head>>(16*n)&taken != 0 && !yield(home*slots+n) {
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
	for home := t.home(hash); ; home++ {
		if home >= len(t.lines) {
			home = 0
		}
		l := &t.lines[home]
		head := atomic.LoadUint64(&l.head)
		for s := matches(head, hash); s != 0; s &= s - 1 {
			if l.is(s, hash, id.Low) {
				return true
			}
		}
		if head>>overflow(hash)&1 == 0 {
			return false
		}
	}
}

func (s *set) lookup(id token.ID) (t *table, slot int, ok bool) {
	hash := s.hash(id)
	t = s.shard(hash).table.Load()
	slot, ok = t.find(hash, id.Low)
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
// does not have. A full table grows by a twentieth, or so that it takes its part of
// what is known to follow.
func (s *set) put(hash uint64, id token.ID, until uint32, c *Cutoff, follow int) {
	sh := s.shard(hash)
	t := sh.table.Load()
	if t == nil || t.held == t.room() {
		more := 0
		if t != nil {
			more = t.held / growPart
		}
		// Chance gives nearly no shard this much more than its part.
		part := float64(follow) / shards
		s.replace(index(hash), 0, max(more+1, int(part+4*math.Sqrt(max(part, 0)))), c != nil)
		t = sh.table.Load()
	}
	t.insert(hash, id.Low, until, c)
	t.ages.add(until)
	if c != nil {
		s.bytes.Add(c.bytes())
	}
}

// replace puts a table with room for more in the place of a shard's, of which the
// mutex is held, without what is kept until before a time. It counts what it left
// out.
func (s *set) replace(shard int, past uint32, more int, cutoffs bool) (dropped int) {
	sh := &s.shards[shard]
	old := sh.table.Load()
	held := 0
	for slot := range old.taken {
		if old.until[slot] >= past {
			held++
		}
	}
	var t *table
	if held+more > 0 {
		t = s.newTable(shard, held+more, cutoffs)
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
		hash, low := old.stands(slot)
		t.insert(hash, low, old.until[slot], old.cutoff(slot))
	}
	s.bytes.Add(t.bytes() - old.bytes())
	sh.table.Store(t)
	return dropped
}

// sweep drops what is kept until before a time, wherever it makes an eighth of a
// shard; all of it, if room is short.
func (s *set) sweep(past uint32, short bool) (dropped int) {
	for i := range s.shards {
		dropped += s.sweepShard(i, past, short)
	}
	s.held.Add(-int64(dropped))
	return dropped
}

func (s *set) sweepShard(shard int, past uint32, short bool) (dropped int) {
	sh := &s.shards[shard]
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
	return s.replace(shard, past, 0, t.cutoffs != nil)
}

// trim gives back room that a wrong guess of what follows took.
func (s *set) trim() {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.write.Lock()
		if t := sh.table.Load(); t != nil && t.room() > t.held+t.held/growPart+slots {
			s.replace(i, 0, t.held/(2*growPart), t.cutoffs != nil)
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
