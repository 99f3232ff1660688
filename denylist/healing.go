package denylist

import (
	"context"
	"errors"
	mathrand "math/rand/v2"
	"slices"
	"time"
)

// A mark is a message that was read.
type mark struct {
	number uint64
	hash   Hash
	data   []byte // of a record; nil for what need not be handed back
}

// absent is a record that the log has not got, as far as is known here.
type absent struct {
	mark
	since time.Time // when that was found, or it was last given to the log
}

// miss remembers a record that the log should have.
func (s *Stream) miss(m mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.missing[m.hash]; !known {
		s.missing[m.hash] = struct{}{}
		s.gone = append(s.gone, absent{m, time.Now()})
	}
}

// agrees is whether the log is the one that was read, as far as can be told.
func (s *Stream) agrees(ctx context.Context, at Cursor, ends Ends) (bool, error) {
	switch {
	case at.Log != ends.Log || at.Number > ends.Last:
		return false, nil
	case at.Number < ends.First || at.Hash == Hash{}:
		return true, nil // forgotten, or never read
	}
	data, err := s.Engine.Message(ctx, at.Number)
	if errors.Is(err, ErrNoMessage) { // forgotten by now
		return true, nil
	}
	return err == nil && hashOf(data) == at.Hash, err
}

// diverged is the last place that the log has in common with what was read; zero if
// none is known. What was read behind it is missing until it comes again.
func (s *Stream) diverged(ctx context.Context, at Cursor, ends Ends) (to Cursor, err error) {
	s.mu.Lock()
	marks := slices.Clone(s.marks)
	s.mu.Unlock()
	// What two logs have in common is their beginning.
	common, _ := slices.BinarySearchFunc(marks, 0, func(m mark, _ int) int {
		if m.number < ends.First {
			return -1
		}
		if m.number > ends.Last || err != nil {
			return 1
		}
		ctx, cancel := context.WithTimeout(ctx, callWithin)
		defer cancel()
		data, failed := s.Engine.Message(ctx, m.number)
		switch {
		case errors.Is(failed, ErrNoMessage):
			return -1
		case failed != nil:
			err = failed
		case hashOf(data) == m.hash:
			return -1
		}
		return 1
	})
	if err != nil {
		return Cursor{}, err
	}
	if common > 0 && marks[common-1].number >= ends.First {
		to = Cursor{Log: ends.Log, Number: marks[common-1].number, Hash: marks[common-1].hash}
	}
	s.Logger.Error("the log of revocations is not the one that was read: it was made anew, put back from an old copy, or lost its end; nothing that it said is lifted, and what it lost is handed back",
		"feed", s.Source.Name(), "read", at.Number, "in_common", to.Number, "first", ends.First, "last", ends.Last)
	s.Follower.count(Rewind)
	for _, m := range marks {
		if m.number > to.Number && m.data != nil {
			s.miss(m)
		}
	}
	s.mu.Lock()
	s.broke = time.Now()
	s.mu.Unlock()
	s.doubts.Add(1)
	return to, nil
}

// watch looks now and then whether the log is still the one that is read: an engine
// that went back says nothing, and sends nothing that would show it.
func (s *Stream) watch(ctx context.Context, lost context.CancelCauseFunc) {
	for doubted := 0; sleep(ctx, watchEvery); {
		ask, cancel := context.WithTimeout(ctx, callWithin)
		at := s.place()
		ends, err := s.Engine.Ends(ask)
		same := true
		if err == nil && at.Log != "" {
			same, err = s.agrees(ask, at, ends)
		}
		cancel()
		switch {
		case err != nil: // that it is away shows elsewhere
		case same:
			doubted = 0
		default:
			if doubted++; doubted == 2 {
				lost(errOther)
				return
			}
		}
	}
}

// handBack appends records that the log should have and that do not come. Others who
// read them once do the same; whoever comes first saves the others the trouble.
func (s *Stream) handBack(ctx context.Context) {
	for refused := false; sleep(ctx, signEvery/2+mathrand.N(signEvery)); {
		now := time.Now()
		s.mu.Lock()
		if !s.current { // it may be in what was not read yet
			s.mu.Unlock()
			continue
		}
		s.gone = slices.DeleteFunc(s.gone, func(a absent) bool {
			_, missing := s.missing[a.hash]
			return !missing
		})
		var late []mark
		for i := range s.gone {
			if now.Sub(s.gone[i].since) > absentFor {
				late = append(late, s.gone[i].mark)
				s.gone[i].since = now
			}
		}
		s.mu.Unlock()
		handed := 0
		for _, m := range late {
			s.mu.Lock()
			_, missing := s.missing[m.hash]
			s.mu.Unlock()
			if !missing {
				continue
			}
			if err := s.append(ctx, m.data); err != nil {
				if !refused && ctx.Err() == nil {
					refused = true
					s.Logger.Warn("records that the log of revocations lost cannot be handed back from here", "feed", s.Source.Name(), "error", err)
				}
				break
			}
			handed++
		}
		if handed > 0 {
			s.Logger.Warn("records that the log of revocations had lost were handed back", "feed", s.Source.Name(), "records", handed)
		}
	}
}
