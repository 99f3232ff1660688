package denylist

import (
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"durward/token"
)

// A Denial is a denied identity as the list holds it.
type Denial struct {
	Kind  token.Kind // jti or sid
	ID    token.ID
	Until uint32 // when it may be forgotten, in seconds since 1970; math.MaxUint32 is never
}

// Denials walks over the denials, kind by kind, while others add and sweep. All
// that was held when the walk began is among them, unless it may be forgotten
// meanwhile. What is added or raised meanwhile may come or not.
func (l *List) Denials() iter.Seq[Denial] {
	return func(yield func(Denial) bool) {
		for kind := range l.denials {
			for t, slot := range l.denials[kind].walk {
				if !yield(Denial{token.Kind(kind), t.id(slot), atomic.LoadUint32(&t.until[slot])}) {
					return
				}
			}
		}
	}
}

// Cutoffs walks over the cutoffs, with the promise of [List.Denials]. The slices
// are shared; nobody changes them.
func (l *List) Cutoffs() iter.Seq[Cutoff] {
	return func(yield func(Cutoff) bool) {
		for kind := range l.cutoffs {
			for t, slot := range l.cutoffs[kind].walk {
				if !yield(*t.cutoffs[slot].Load()) {
					return
				}
			}
		}
	}
}

// RestoreDenials adds what [List.Denials] once gave to what is held, without what
// may be forgotten by now. The count is how many will come, about; the memory for
// what fits of them is taken at once. An error wraps ErrFull as that of [List.Add]
// does, or names what no list ever held, where it stops; what came before and
// fitted was added all the same.
func (l *List) RestoreDenials(count int, denials iter.Seq[Denial]) (err error) {
	defer l.tell()
	past := l.past(time.Now())
	count = min(count, int(l.max.Load()-l.total.Load()))
	left, of := 0, 0
	// They are sorted into batches by shard: storing one by one takes twice as long.
	var batches [token.KindSession + 1][shards]batch
	for d := range denials {
		of++
		if d.Kind != token.KindToken && d.Kind != token.KindSession {
			err = fmt.Errorf("a denial of kind %d: only a jti or a sid can be denied", d.Kind)
			break
		}
		if d.Until < past {
			continue
		}
		s := &l.denials[d.Kind]
		hash := s.hash(d.ID)
		b := &batches[d.Kind][index(hash)]
		if *b = append(*b, pending{hash, d.ID, d.Until}); len(*b) == batchSize {
			left += l.denyAll(s, *b, count-of)
			*b = (*b)[:0]
		}
	}
	for kind := range batches {
		for _, b := range batches[kind] {
			left += l.denyAll(&l.denials[kind], b, 0)
		}
		l.denials[kind].trim()
	}
	return errors.Join(err, l.fit(left, of))
}

// A batch is denials of one shard that are to be stored at once.
type batch []pending

type pending struct {
	hash  uint64
	id    token.ID
	until uint32
}

const batchSize = 64

// denyAll stores denials of one shard, which so many others follow in all shards,
// and counts those that did not fit.
func (l *List) denyAll(s *set, b batch, follow int) (left int) {
	if len(b) == 0 {
		return 0
	}
	sh := s.shard(b[0].hash)
	sh.write.Lock()
	defer sh.write.Unlock()
	if t := sh.table.Load(); t != nil {
		// What each of them will wait for, the processor fetches for all at once.
		for i := range b {
			home := t.home(b[i].hash)
			atomic.LoadUint64(&t.lines[home].head)
			atomic.LoadUint32(&t.until[home*slots])
		}
	}
	for i := range b {
		if _, _, ok := l.place(s, sh, b[i], follow); !ok {
			left++
		}
	}
	return left
}

// RestoreCutoffs is [List.RestoreDenials] for what [List.Cutoffs] gave.
func (l *List) RestoreCutoffs(cutoffs iter.Seq[Cutoff]) error {
	defer l.tell()
	past := l.past(time.Now())
	left, of := 0, 0
	for c := range cutoffs {
		of++
		if c.Kind <= token.KindToken || int(c.Kind) > token.Kinds {
			return fmt.Errorf("a cutoff of kind %d, which no line can name", c.Kind)
		}
		if c.Until < past {
			continue
		}
		all := append([]ExceptedCutoff{{Before: c.IssuedAt}, {Before: c.AuthTime, ByAuthTime: true}}, c.Excepted...)
		if _, _, ok := l.cut(c.Kind, c.ID, c.Until, all...); !ok {
			left++
		}
	}
	return l.fit(left, of)
}
