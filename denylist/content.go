package denylist

import (
	"fmt"
	"iter"
	"time"

	"durward/token"
)

// A Denial is a denied identity as the list holds it.
type Denial struct {
	Kind  token.Kind // jti or sid
	ID    token.ID
	Until uint32 // when it may be forgotten, in seconds since 1970; math.MaxUint32 is never
}

// Denials walks over the denials while others add and sweep. Everything that was
// held when the walk began, and may not be forgotten yet, is among them; what is
// added meanwhile may be, and the same identity may then come with an earlier
// Until than it has by the end.
func (l *List) Denials() iter.Seq[Denial] {
	return func(yield func(Denial) bool) {
		for i := range l.shards {
			s := &l.shards[i]
			var held []Denial
			s.mu.RLock()
			for kind := range s.denials {
				for id, until := range s.denials[kind] {
					held = append(held, Denial{token.Kind(kind), id, until})
				}
			}
			s.mu.RUnlock()
			for _, d := range held {
				if !yield(d) {
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
		for i := range l.shards {
			s := &l.shards[i]
			var held []Cutoff
			s.mu.RLock()
			for _, c := range s.cutoffs {
				held = append(held, c)
			}
			s.mu.RUnlock()
			for _, c := range held {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// RestoreDenials adds what [List.Denials] once gave, about count of them, to what
// is held, without those that may be forgotten by now. An error wraps ErrFull, as
// that of [List.Add], or names what no list ever held; what was good and fitted was
// added all the same.
func (l *List) RestoreDenials(count int, denials iter.Seq[Denial]) error {
	defer l.tell()
	past := l.past(time.Now())
	left, of := 0, 0
	for d := range denials {
		of++
		if d.Kind != token.KindToken && d.Kind != token.KindSession {
			return fmt.Errorf("a denial of kind %d: only a jti or a sid can be denied", d.Kind)
		}
		if d.Until < past {
			continue
		}
		if _, _, ok := l.deny(d.Kind, d.ID, d.Until); !ok {
			left++
		}
	}
	return l.fit(left, of)
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
