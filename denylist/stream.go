package denylist

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	signEvery     = time.Second
	streamSilence = 4 * time.Second // signs of life come about each second
	callWithin    = 3 * time.Second // what is asked of the engine
	watchEvery    = 2 * time.Second
	absentFor     = 1500 * time.Millisecond // before a record is handed back
	snapshotEvery = 10 * time.Minute        // if there is news
	snapshotLasts = 6 * time.Hour           // if there is none
	maxRecalled   = 64 << 20                // bytes of messages that are kept to be handed back
	maxMarks      = 100_000                 // messages of which the hash is kept
)

// StreamConfig is what a Stream works with.
type StreamConfig struct {
	Engine   Engine
	Follower *Follower // Ordered
	List     *List
	Source   *Source
	// Writes is whether this gateway appends to the log: what it is told with Forward,
	// signs of life, and now and then a snapshot for those who come late.
	Writes bool
	Key    ed25519.PrivateKey // signs what it writes; nil signs nothing
	Name   string             // of this gateway, for people
	Lease  time.Duration      // of the source
	From   Cursor             // where the last run stood; zero: it is not known
	Dir    string             // for snapshots on their way; "" for the system's temporary folder
	Logger *slog.Logger
}

// A Stream is a feed of a log that an engine keeps and that many gateways write to
// and read. Each message is a record, or a heartbeat as a sign of life.
//
//	Forward ─► a record ──┐                    ┌─► Follower.Take, of every gateway
//	each second, somebody │                    │
//	  a heartbeat ────────┴─► Engine.Append ═══╧═► Engine.Read
//
// Signs of life are messages of the log like any other, and that is the point: who
// has read one has read everything that the engine had promised to keep before. So
// it does not matter who of the writers gave it, nor whether others of them are
// still there; only where records are signed, where the engine is not believed,
// must each source be heard itself. A sign of life on a way of its own, beside the
// log, was refused: it comes through while records do not. So was asking the engine
// where its log ends: a server cut off from the others answers that, too. The price
// is a message of some hundred bytes each second.
//
// What an engine can do to its log shows as follows. Messages are missing: the
// numbers have a hole. It was made anew, put back from an old copy, or lost its end:
// it is another log, or it has at the place where this gateway stands another
// message than was read there. Then the last message that both have in common is
// looked up, everything behind it is read anew, and records that were read once and
// are not there any more are handed back, as they were; so are those that were
// written here and do not come back. It forgot from the front what was not read
// here yet: only a snapshot helps, of which a gateway that writes leaves one every
// ten minutes. In none of these cases is anything lifted.
type Stream struct {
	StreamConfig
	doubts atomic.Uint64

	queue   sync.Mutex
	waiting *appended // what waits for the next turn to write; nil: nothing

	// A turn to write is held from a record's making to its being kept, so that those
	// of a chain come into the log in order.
	writing sync.Mutex
	records *Log
	writer  *Writer
	sent    []Head // up to where records are in the log
	signed  time.Time

	mu      sync.Mutex
	at      Cursor
	marks   []mark            // of the latest messages, by number
	kept    int               // bytes of those whose data is kept
	gone    []absent          // records that the log had or was given, oldest first, and some that came since
	missing map[Hash]struct{} // those that did not come
	current bool              // everything was read that was there when reading began
	anew    bool              // a chain has a hole, so that only the whole log or a snapshot helps
	partial bool              // the log does not reach back to what was read here
	loaded  time.Time         // when the snapshot was made that was loaded last
	sang    time.Time         // when the last canary came, whose ever
	heard   time.Time         // when the last fresh sign of life came, whose ever
	broke   time.Time         // when the log was last found to be another
	roll    rollBook
	lost    bool // it is not followed, and that was logged
}

// appended is what is written in one turn, for several that wait for it.
type appended struct {
	lines [][]byte
	err   error
}

// NewStream is a stream that stands where cfg.From says.
func NewStream(cfg StreamConfig) *Stream {
	s := &Stream{StreamConfig: cfg, at: cfg.From, missing: map[Hash]struct{}{}}
	s.roll = rollBook{members: map[string]*member{}, calls: map[string]*rollCall{}, answer: make(chan struct{}, 1)}
	name := cfg.From.Source
	if name == "" {
		name = "durward-" + strings.ToLower(rand.Text()[:10])
	}
	s.at.Source = name
	s.speak(name)
	return s
}

// speak begins a chain which does not build on that of an earlier run: no process
// knows whether the last records of the one before are in the log. They are in the
// journal, of which all is forwarded anew, and under the same name, nobody waits for
// them any more.
func (s *Stream) speak(name string) {
	s.records, s.sent = NewLog(), nil
	s.writer = QuietWriter(s.records, s.Key, Head{Source: name}, false, time.Now())
}

// Cursor is how far the log was read without a hole, for the next start; zero if
// that must begin anew.
func (s *Stream) Cursor() Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.anew || s.partial {
		return Cursor{Source: s.at.Source}
	}
	return s.at
}

// place is how far the log was read.
func (s *Stream) place() Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// Doubts is another number after the log was found to be another than the one that
// was written to. That sources of it come and go says nothing about what is in it.
func (s *Stream) Doubts() uint64 { return s.doubts.Load() }

// Forward appends revocations, lines of [Revocation.Line], to the log. An error
// says why they may not be kept there: they are to be forwarded again, and taking
// some twice does no harm. Those that wait at the same time share a record. Nothing
// that comes from the log is forwarded, so it does not matter what they came via.
func (s *Stream) Forward(ctx context.Context, lines [][]byte, _ []string) ([]Refusal, error) {
	s.queue.Lock()
	b := s.waiting
	if b == nil {
		b = &appended{}
		s.waiting = b
	}
	b.lines = append(b.lines, lines...)
	s.queue.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	s.queue.Lock()
	mine := s.waiting == b // else somebody wrote it meanwhile
	if mine {
		s.waiting = nil
	}
	s.queue.Unlock()
	if mine {
		s.writer.publish(b.lines, time.Now())
		b.err = s.flush(context.WithoutCancel(ctx))
	}
	return nil, b.err
}

// flush appends what was written and is not in the log yet; it is this gateway's
// turn to write.
func (s *Stream) flush(ctx context.Context) error {
	for {
		next, _, ok := s.records.Read(s.sent, 0) // one record
		if !ok {
			s.speak(s.writer.Source()) // more waited than is kept; what is lost here waits in the journal too
			s.doubts.Add(1)
			return errors.New("the log could not be written to for too long")
		}
		if len(next.Records) == 0 {
			return nil
		}
		s.miss(mark{hash: hashOf(next.Records[0]), data: next.Records[0]}) // until it is read
		if err := s.append(ctx, next.Records[0]); err != nil {
			return err
		}
		s.sent = next.Next
	}
}

func (s *Stream) append(ctx context.Context, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	return s.Engine.Append(ctx, data, false)
}

// Run follows the log until the context ends, and returns nil. It logs when the
// engine is lost and when it is back.
func (s *Stream) Run(ctx context.Context) error {
	s.Source.Begin()
	var all sync.WaitGroup
	all.Go(func() { s.handBack(ctx) })
	all.Go(func() { s.attend(ctx) })
	if s.Writes {
		all.Go(func() { s.sign(ctx) })
		all.Go(func() { s.save(ctx) })
	}
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > streamSilence {
			pause = 100 * time.Millisecond
		}
		s.Source.Failed(err)
		s.mu.Lock()
		tell := !s.lost
		s.lost = true
		s.mu.Unlock()
		if tell {
			s.Logger.Error("the log of revocations is not followed; what it said so far stays in force", "feed", s.Source.Name(), "error", err)
		}
		if st := s.List.Stats(); errors.Is(err, ErrFull) || st.Total >= st.Max { // reading it all again helps once something was forgotten
			pause = 10 * time.Second
		}
		sleep(ctx, pause/2+mathrand.N(pause))
		pause = min(2*pause, 2*time.Second)
	}
	all.Wait()
	s.Engine.Close()
	return nil
}

// Sync reads until the feed is in step or the context ends, for a single question.
func (s *Stream) Sync(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	all.Go(func() { s.Run(ctx) })
	for s.Source.State(time.Now()) != Live {
		if !sleep(ctx, 5*time.Millisecond) {
			return errors.New(s.Source.Status(time.Now()).Error)
		}
	}
	return nil
}

// sleep is false if the context ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

var (
	errQuiet = errors.New("nothing came through the log, not even a sign of life, for four seconds; is any gateway there that writes (forward_revocations)?")
	errHole  = errors.New("messages are missing in the log")
	errOther = errors.New("the log has another message where this gateway stands")
)

// session follows the log until something goes wrong.
func (s *Stream) session(whole context.Context) error {
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	after, last, err := s.start(ctx)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel(nil)
	all.Go(func() { s.watch(ctx, cancel) })
	quiet := time.AfterFunc(streamSilence, func() { cancel(errQuiet) })
	defer quiet.Stop()
	err = s.Engine.Read(ctx, after, func(number uint64, data []byte) error {
		if number != after+1 {
			s.mu.Lock()
			s.anew = true // only a snapshot knows what stood there
			s.mu.Unlock()
			return fmt.Errorf("%w: %d comes after %d", errHole, number, after)
		}
		quiet.Reset(streamSilence)
		after = number
		return s.take(number, data, number >= last)
	})
	if cause := context.Cause(ctx); cause != nil && whole.Err() == nil {
		return cause
	}
	return err
}

// take takes one message; current is whether it may be the last one so far.
func (s *Stream) take(number uint64, data []byte, current bool) error {
	now := time.Now()
	r, _ := ParseRecord(data, nil) // the follower asks who signed it
	beat := r != nil && r.Heartbeat()
	s.mu.Lock()
	// While there is more to read that was there at the beginning, a sign of life is
	// an old one, and however fresh it looks, what stands behind it was said since.
	unsure := !current || s.anew || s.partial || !s.roll.known(now)
	s.mu.Unlock()
	var err error
	rolls := s.called(data, now)
	switch {
	case rolls:
	case !beat || !unsure: // else it would vouch for what was not read
		err = s.Follower.Take([][]byte{data}, now)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.anew = true // and on to what comes behind it, which need not wait
	}
	if r != nil && !beat && len(r.Ops) == 1 && bytes.Contains(r.Ops[0], []byte(canaryIssuer)) {
		s.sang = now
	}
	m := mark{number, hashOf(data), nil}
	delete(s.missing, m.hash)
	s.at.Number, s.at.Hash = number, m.hash
	if !beat && !rolls {
		m.data = data
		s.kept += len(data)
	}
	s.marks = append(s.marks, m)
	for s.kept > maxRecalled || len(s.marks) > maxMarks {
		s.kept -= len(s.marks[0].data)
		s.marks = s.marks[1:]
	}
	s.current = s.current || current
	if !beat {
		return nil
	}
	if now.Sub(r.Made) < 2*signEvery {
		s.heard = now
	}
	switch {
	case !current:
		return nil // there is more
	case s.anew:
		return fmt.Errorf("a source's records have a hole in the log: %w", ErrLost)
	case s.partial:
		return errors.New("the log begins after messages that were not read here, and no snapshot covers those; let a gateway that is in step write one (forward_revocations)")
	}
	if s.lost && !unsure {
		s.lost = false
		s.Logger.Info("the log of revocations is followed", "feed", s.Source.Name(), "message", number)
	}
	return nil
}

// start finds out where to go on, and where the log ends by now.
func (s *Stream) start(ctx context.Context) (after, last uint64, err error) {
	ask, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	ends, err := s.Engine.Ends(ask)
	if err != nil {
		return 0, 0, err
	}
	s.mu.Lock()
	at, anew, partial := s.at, s.anew, s.partial
	s.mu.Unlock()
	known := at.Log != ""
	if known {
		same, err := s.agrees(ask, at, ends)
		if err == nil && !same {
			// A server that just took over may be a moment behind.
			if !sleep(ask, 500*time.Millisecond) {
				return 0, 0, context.Cause(ask)
			}
			if ends, err = s.Engine.Ends(ask); err == nil {
				same, err = s.agrees(ask, at, ends)
			}
		}
		if err == nil && !same {
			at, err = s.diverged(ctx, at, ends)
			known = at.Log != ""
		}
		if err != nil {
			return 0, 0, err
		}
	}
	beginning := Cursor{Log: ends.Log, Number: ends.First - 1}
	trimmed := known && at.Number+1 < ends.First
	if anew || partial || !known || trimmed {
		saved, err := s.load(ctx)
		covers := err == nil && saved.Log == ends.Log && saved.Number+1 >= ends.First && saved.Number <= ends.Last
		switch {
		case err != nil && !errors.Is(err, ErrNoSnapshot):
			return 0, 0, err
		case covers:
			at, partial = saved, false
		case anew || trimmed || !known:
			at, partial = beginning, partial || trimmed || !known && ends.First > 1
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.roll.answer <- struct{}{}: // what was said of this gateway may lie before, or in another log
	default:
	}
	at.Source = s.at.Source
	s.at, s.anew, s.partial, s.current = at, false, partial, at.Number >= ends.Last
	s.marks = slices.DeleteFunc(s.marks, func(m mark) bool {
		behind := m.number > at.Number
		if behind {
			s.kept -= len(m.data)
		}
		return behind
	})
	return at.Number, ends.Last, nil
}

// sign appends signs of life, if nobody else does.
func (s *Stream) sign(ctx context.Context) {
	for ; ; sleep(ctx, signEvery/8+mathrand.N(signEvery/8)) {
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		s.mu.Lock()
		heard := s.heard
		s.mu.Unlock()
		s.mu.Lock()
		silent := now.Sub(s.sang) > CanaryEvery && !s.anew && !s.partial && s.current
		s.mu.Unlock()
		if silent {
			if _, err := s.Forward(ctx, [][]byte{canaryLine()}, nil); err == nil {
				s.mu.Lock()
				s.sang = now
				s.mu.Unlock()
			}
		}
		if s.Key == nil && now.Sub(heard) < signEvery || s.Key != nil && now.Sub(s.signed) < signEvery {
			continue
		}
		if err := s.signNow(ctx, now); err != nil && ctx.Err() == nil {
			s.Logger.Debug("no sign of life could be written to the log of revocations", "feed", s.Source.Name(), "error", err)
			sleep(ctx, signEvery/2)
			continue
		}
		s.signed = now
		if s.Key == nil {
			sleep(ctx, signEvery/2) // until it is heard
		}
	}
}

func (s *Stream) signNow(ctx context.Context, now time.Time) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.writer.Begin(now)
	if err := s.flush(ctx); err != nil {
		return err
	}
	s.writer.Beat(now)
	next, _, ok := s.records.Read(s.sent, 0)
	if !ok || len(next.Beats) != 1 {
		return errors.New("there is nothing to say")
	}
	return s.append(ctx, next.Beats[0])
}
