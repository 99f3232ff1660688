package denylist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"time"
)

// load loads the snapshot that the engine keeps, and says what it covers;
// ErrNoSnapshot if there is none that was not loaded before.
func (s *Stream) load(ctx context.Context) (Cursor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Each step may take that long: on a slow way, each asks several times.
	stalled := time.AfterFunc(streamSilence, func() { cancel(errors.New("it does not come")) })
	defer stalled.Stop()
	saved, err := s.Engine.Snapshot(ctx)
	if err != nil {
		return Cursor{}, fmt.Errorf("ask for a snapshot: %w", cmp.Or(context.Cause(ctx), err))
	}
	stalled.Reset(streamSilence)
	s.mu.Lock()
	old := saved.Made.Equal(s.loaded)
	s.mu.Unlock()
	if old {
		return Cursor{}, ErrNoSnapshot
	}
	from, err := s.Engine.OpenSnapshot(ctx)
	if err != nil {
		return Cursor{}, fmt.Errorf("fetch a snapshot: %w", cmp.Or(context.Cause(ctx), err))
	}
	defer from.Close()
	stalled.Reset(streamSilence)
	snapshot, err := s.Follower.Receive(from, s.Dir, func() { stalled.Reset(streamSilence) })
	if err != nil {
		return Cursor{}, fmt.Errorf("fetch a snapshot: %w", cmp.Or(context.Cause(ctx), err))
	}
	defer snapshot.Close()
	if err := s.Follower.Load(snapshot); err != nil {
		return Cursor{}, err
	}
	s.mu.Lock()
	s.loaded = saved.Made
	s.mu.Unlock()
	s.Logger.Info("a snapshot of the revocation feed was loaded", "feed", s.Source.Name(), "entries", snapshot.Entries, "made", snapshot.Made)
	return saved.At, nil
}

// save leaves a snapshot with the engine now and then.
func (s *Stream) save(ctx context.Context) {
	var version, missing uint64
	for pause := 2 * time.Second; sleep(ctx, pause/2+mathrand.N(pause)); pause = min(2*pause, 30*time.Second) {
		if s.Source.State(time.Now()) != Live || !s.Follower.Whole() {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, callWithin)
		at, now := s.Cursor(), time.Now()
		saved, err := s.Engine.Snapshot(ask)
		ends, failed := s.Engine.Ends(ask)
		cancel()
		if failed != nil {
			continue
		}
		s.mu.Lock()
		broke := s.broke
		s.mu.Unlock()
		age := now.Sub(saved.Made)
		switch {
		case errors.Is(err, ErrNoSnapshot):
		case err != nil:
			continue
		case saved.At.Number+1 < ends.First: // it covers nothing any more
		case ends.Missing != missing: // somebody took messages out: who comes late knows them by a snapshot alone
		case saved.At.Log != at.Log || saved.Made.Before(broke) || age > snapshotLasts || age > snapshotEvery && s.List.Version() != version:
		default:
			continue
		}
		held := s.List.Version()
		if err := s.saveNow(ctx, at, now); err != nil {
			if ctx.Err() == nil {
				s.Logger.Error("no snapshot can be left with the log of revocations; who comes late will not be in step once the log has forgotten its beginning", "feed", s.Source.Name(), "error", err)
			}
			continue
		}
		version, missing = held, ends.Missing
	}
}

func (s *Stream) saveNow(ctx context.Context, at Cursor, now time.Time) error {
	tmp, err := os.CreateTemp(s.Dir, "feed-*.snapshot")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	// The places after the cursor: what was read meanwhile comes again, and may.
	header := SnapshotHeader{Made: now.UTC(), Places: s.Follower.Places()}
	if err := WriteSnapshot(tmp, s.List, header, func() (none SnapshotFooter) { return none }, s.Key); err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	return s.Engine.SaveSnapshot(ctx, at, tmp)
}
