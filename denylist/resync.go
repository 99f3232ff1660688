package denylist

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Open checks a snapshot that came from somebody else; see [OpenSnapshot]. As it
// says everything, only a key that may say everything can sign it.
func (f *Follower) Open(path string) (*Snapshot, error) {
	keys := Keys{}
	for id, k := range f.cfg.Keys {
		if !k.Grant.limited() {
			keys[id] = k
		}
	}
	if len(keys) == 0 && len(f.cfg.Keys) > 0 {
		return nil, errors.New("none of source_keys may sign snapshots, as each has a grant that is limited; give a hub a key without one")
	}
	return OpenSnapshot(path, keys)
}

// Load takes a snapshot: what it holds is enforced in addition to what is held,
// and the chains go on from where it was taken. An error wraps ErrFull: what fits
// is enforced all the same.
func (f *Follower) Load(s *Snapshot) error {
	f.mu.Lock()
	holes := f.holes
	f.mu.Unlock()
	f.cfg.Source.Begin()
	// It may take seconds, and nobody need wait for it: all it does is add.
	leftOut, err := s.restoreForeign(f.cfg.List, f.cfg.Mass, time.Now())
	if err != nil {
		f.cfg.Source.Failed(err)
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count(Resynced)
	if f.holes == holes { // else there is a new one
		f.holes = 0
	}
	f.holes += leftOut
	for _, p := range s.Places {
		c := f.chains[p.Source]
		if p.Number == 0 {
			continue // no place in a chain
		}
		if c == nil || c.lost || p.Epoch > c.Epoch || p.Epoch == c.Epoch && p.Number > c.Number {
			f.stand(p)
		}
	}
	// What is still lost belongs to a source that does not exist any more. Where
	// sources sign, that is not for whoever carries the snapshot to say.
	for source, c := range f.chains {
		if c.lost && (len(f.cfg.Keys) == 0 || f.superseded(c)) {
			delete(f.chains, source)
		}
	}
	return nil
}

// Receive keeps a snapshot that arrives, in a file of the folder dir ("": the
// system's) that is gone once the snapshot is closed, and checks it; see [Follower.Open].
// came is told whenever some of it came. One that is larger than the list could hold
// is refused.
func (f *Follower) Receive(from io.Reader, dir string, came func()) (*Snapshot, error) {
	tmp, err := os.CreateTemp(dir, "feed-*.snapshot")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	// Twice what as many entries as fit would take, and some for the header.
	limit := int64(f.cfg.List.Stats().Max)*64 + 16<<20
	n, err := io.Copy(tmp, &arriving{io.LimitReader(from, limit+1), came})
	if err == nil && n > limit {
		err = fmt.Errorf("it is larger than %d bytes, more than denylist.max_entries could hold", limit)
	}
	if err != nil {
		return nil, err
	}
	return f.Open(tmp.Name())
}

// arriving tells whenever something comes.
type arriving struct {
	io.Reader
	came func()
}

func (a *arriving) Read(b []byte) (int, error) {
	n, err := a.Reader.Read(b)
	if n > 0 {
		a.came()
	}
	return n, err
}
