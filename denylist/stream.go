package denylist

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An Engine keeps one log of messages for a fleet, on a server that is not ours:
// the messages are numbered from 1 without holes, come in at the end, and are
// forgotten from the front. It is not trusted to keep what it promised to keep:
// [Stream] finds out when it did not. All methods may be called by anybody at any
// time; each ends with its context, and comes back to a server that was away.
type Engine interface {
	// Ends says which log there is and what is kept of it. An error says why there is
	// none that could be used, and what to do about it.
	Ends(ctx context.Context) (Ends, error)
	// Read hands on the messages after a number, in order, and waits for more. It
	// ends with the first error of its own or of take, never with nil.
	Read(ctx context.Context, after uint64, take func(number uint64, data []byte) error) error
	// Message is one message; ErrNoMessage if it is not kept.
	Message(ctx context.Context, number uint64) ([]byte, error)
	// Append returns nil once the engine has promised to keep the message. Who may
	// not write records may still be let say where it is (here).
	Append(ctx context.Context, data []byte, here bool) error
	// Snapshot is what SaveSnapshot left last; ErrNoSnapshot if nothing.
	Snapshot(ctx context.Context) (Saved, error)
	// OpenSnapshot reads it, or one that took its place since.
	OpenSnapshot(ctx context.Context) (io.ReadCloser, error)
	// SaveSnapshot keeps a snapshot in the place of the last one.
	SaveSnapshot(ctx context.Context, at Cursor, snapshot io.Reader) error
	// Close gives back connections.
	Close()
}

// What an Engine has not got.
var (
	ErrNoMessage  = errors.New("the message is not kept")
	ErrNoSnapshot = errors.New("there is no snapshot")
)

// Ends are the two ends of an engine's log.
type Ends struct {
	Log         string // tells this log from one that was made anew in its place
	First, Last uint64 // the oldest message that is kept, and the latest; Last is First-1 if there is none
	Missing     uint64 // of those between
}

// A Refusal is a line that whoever it is handed to does not take, now or later.
type Refusal struct {
	Line    []byte
	Problem string
}

// A Cursor is how far an engine's log was read.
type Cursor struct {
	Log    string `json:"log"`
	Number uint64 `json:"n"`
	Hash   Hash   `json:"hash"` // of the message
	// Source is the name under which whoever stood there wrote.
	Source string `json:"src,omitempty"`
}

// Saved is a snapshot that an engine keeps.
type Saved struct {
	At   Cursor // everything up to there is part of it
	Made time.Time
}

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

// miss remembers a record that the log should have.
func (s *Stream) miss(m mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.missing[m.hash]; !known {
		s.missing[m.hash] = struct{}{}
		s.gone = append(s.gone, absent{m, time.Now()})
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
	tmp, err := os.CreateTemp(s.Dir, "feed-*.snapshot")
	if err != nil {
		return Cursor{}, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	// Twice what as many entries as fit would take, and some for the header.
	limit := int64(s.List.Stats().Max)*64 + 16<<20
	n, err := io.Copy(tmp, &progress{io.LimitReader(from, limit+1), stalled})
	if err == nil && n > limit {
		err = fmt.Errorf("it is larger than %d bytes, more than denylist.max_entries could hold", limit)
	}
	if err != nil {
		return Cursor{}, fmt.Errorf("fetch a snapshot: %w", cmp.Or(context.Cause(ctx), err))
	}
	snapshot, err := s.Follower.Open(tmp.Name())
	if err != nil {
		return Cursor{}, fmt.Errorf("fetch a snapshot: %w", err)
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

// progress puts off a time limit for as long as something comes.
type progress struct {
	io.Reader
	stalled *time.Timer
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		p.stalled.Reset(streamSilence)
	}
	return n, err
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
