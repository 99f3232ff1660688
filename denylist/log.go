package denylist

import (
	"cmp"
	"crypto/ed25519"
	"slices"
	"sync"
	"time"
)

// maxKept is how many bytes of records a Log keeps. Who lags further behind takes
// a snapshot.
const maxKept = 64 << 20

// A Log keeps the records that a gateway hands on to others: those that it writes
// itself (see [Writer]), and those of the feeds that it follows, as they came. It
// holds the latest of each chain, and forgets the oldest when there are too many.
//
// All methods may be called at any time by anybody.
type Log struct {
	mu      sync.Mutex
	chains  map[string]*keptChain // by source
	listed  map[string][]string   // by feed: the sources that it needs to be in step with
	size    int                   // bytes of records
	changed chan struct{}         // closed when there is something new, and replaced
}

// A keptChain is the end of one source's chain.
type keptChain struct {
	Place
	records [][]byte // those up to the place, without gaps
	from    Head     // of the chain's first record
	beat    []byte   // the latest heartbeat; nil: none yet
}

// first is the number of the oldest record that is kept.
func (k *keptChain) first() uint64 { return k.Number - uint64(len(k.records)) + 1 }

// after is where in records somebody goes on who is at a place of the source's
// chains, or at its very beginning; false if that place is not known here any more.
func (k *keptChain) after(at Head, known bool) (int, bool) {
	whole := k.first() == 1 && len(k.records) > 0
	switch {
	case !known:
		return 0, whole && k.from == Head{}
	case at.Epoch == k.Epoch:
		if at.Number+1 < k.first() || at.Number > k.Number {
			return 0, false
		}
		return int(at.Number + 1 - k.first()), true
	case at.Epoch < k.Epoch:
		return 0, whole && (k.from == Head{} || k.from.Epoch == at.Epoch && k.from.Number <= at.Number)
	}
	return 0, false
}

// NewLog is an empty log.
func NewLog() *Log {
	return &Log{chains: map[string]*keptChain{}, listed: map[string][]string{}, changed: make(chan struct{})}
}

// tell wakes up whoever waits; l.mu is held.
func (l *Log) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// keep takes a record that was verified, applied, and follows the one before.
func (l *Log) keep(r *Record, hash Hash) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.chains[r.Source]
	if k == nil || k.Epoch != r.Epoch {
		if r.Number != 1 || k != nil && k.Epoch > r.Epoch {
			return
		}
		l.drop(r.Source)
		k = &keptChain{Place: Place{Head: Head{r.Source, r.Epoch, 0}}, from: r.From}
		l.chains[r.Source] = k
	}
	if r.Number != k.Number+1 {
		return // another feed brought it already
	}
	k.Head, k.Hash, k.Signer = r.Head, hash, r.Signer
	k.records = append(k.records, r.Raw)
	l.size += len(r.Raw)
	for l.size > maxKept {
		l.forget()
	}
	l.tell()
}

// forget drops the older half of the longest chain.
func (l *Log) forget() {
	var longest *keptChain
	for _, k := range l.chains {
		if longest == nil || len(k.records) > len(longest.records) {
			longest = k
		}
	}
	half := (len(longest.records) + 1) / 2
	for _, raw := range longest.records[:half] {
		l.size -= len(raw)
	}
	longest.records = slices.Clone(longest.records[half:])
}

func (l *Log) drop(source string) {
	if k := l.chains[source]; k != nil {
		for _, raw := range k.records {
			l.size -= len(raw)
		}
		delete(l.chains, source)
	}
}

// jump says that everything up to a place was learned in another way than record
// by record, from a snapshot.
func (l *Log) jump(p Place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.chains[p.Source]; k != nil && k.Place == p {
		return
	}
	l.drop(p.Source)
	l.chains[p.Source] = &keptChain{Place: p}
	l.tell()
}

// beat takes a heartbeat that agrees with the chain.
func (l *Log) beat(r *Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.chains[r.Source]; k != nil {
		k.beat = r.Raw
		l.tell()
	}
}

// hold makes sure that a chain is handed on from a place, if it is not already: a
// source that no heartbeat named for a while was forgotten, and must not be left
// out when it is named again.
func (l *Log) hold(p Place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.chains[p.Source] == nil {
		l.chains[p.Source] = &keptChain{Place: p}
		l.tell()
	}
}

// list says which sources a feed needs to be in step with, and forgets those that
// nobody lists any more.
func (l *Log) list(feed string, sources []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.listed[feed]
	if slices.Equal(old, sources) {
		return
	}
	l.listed[feed] = slices.Clone(sources)
	for _, source := range old {
		if !l.lists(source) {
			l.drop(source)
		}
	}
}

// Leave says that a feed is not followed any more.
func (l *Log) Leave(feed string) {
	l.list(feed, nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.listed, feed)
}

func (l *Log) lists(source string) bool {
	for _, sources := range l.listed {
		if slices.Contains(sources, source) {
			return true
		}
	}
	return false
}

// A Place is the end of a source's chain, or how far it was followed.
type Place struct {
	Head
	Hash   Hash   `json:"p"`             // of the record at Head
	Signer string `json:"kid,omitempty"` // the id of the key that signs the chain; "" for none
}

// Places are the ends of all chains, by source.
func (l *Log) Places() []Place {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Place
	for _, k := range l.chains {
		all = append(all, k.Place)
	}
	slices.SortFunc(all, func(a, b Place) int { return cmp.Compare(a.Source, b.Source) })
	return all
}

// A Reading is what a follower gets.
type Reading struct {
	Records [][]byte
	Beats   [][]byte // one of each source that the follower must be in step with; empty: nobody here can vouch yet
	Next    []Head   // where to go on
}

// Read is what comes after some places, at most about max bytes of it. It is false
// if some of that is not kept any more, or one of the places is not of these chains,
// whose end may have been handed on here once: then only a snapshot helps. Heartbeats come with the last of the records. changed is
// closed when there is more.
func (l *Log) Read(after []Head, max int) (reading Reading, changed <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range after {
		if l.chains[at.Source] == nil {
			return Reading{}, nil, false
		}
	}
	size, full := 0, false
	for source, k := range l.chains {
		i := slices.IndexFunc(after, func(h Head) bool { return h.Source == source })
		var at Head
		if i >= 0 {
			at = after[i]
		}
		from, ok := k.after(at, i >= 0)
		if !ok {
			return Reading{}, nil, false
		}
		place, placed := at, i >= 0
		for n, raw := range k.records[from:] {
			if size > max {
				full = true
				break
			}
			size += len(raw)
			reading.Records = append(reading.Records, raw)
			place, placed = Head{source, k.Epoch, k.first() + uint64(from+n)}, true
		}
		if placed {
			reading.Next = append(reading.Next, place)
		}
	}
	if full {
		return reading, l.changed, true
	}
	for _, k := range l.chains {
		if k.beat == nil {
			reading.Beats = nil // a source that was never heard of cannot be vouched for
			break
		}
		reading.Beats = append(reading.Beats, k.beat)
	}
	return reading, l.changed, true
}

// A Writer is a source: what it publishes becomes the next record of its chain.
// Each start of a process begins a new chain, as no process can know whether the
// last records of the one before were seen by somebody and lost by itself.
type Writer struct {
	log *Log
	key ed25519.PrivateKey // nil: records are not signed

	mu   sync.Mutex
	from Head // of the first record
	head Head // its Number is 0 before the chain has begun
	hash Hash
	made time.Time
}

// NewWriter begins a chain. from is how far the source's previous chain is known
// to be part of what this gateway holds, with the source's name; a source that
// begins anew has no Epoch there, and if the list holds something all the same,
// incomplete says so. A nil key signs nothing.
func NewWriter(log *Log, key ed25519.PrivateKey, from Head, incomplete bool, now time.Time) *Writer {
	w := QuietWriter(log, key, from, incomplete, now)
	w.Begin(now)
	return w
}

// QuietWriter is a writer that begins its chain when it first has something to
// say: until then it is no source, and nobody waits for its signs of life.
func QuietWriter(log *Log, key ed25519.PrivateKey, from Head, incomplete bool, now time.Time) *Writer {
	w := &Writer{log: log, key: key, head: Head{from.Source, max(now.UnixMilli(), from.Epoch+1), 0}}
	if from.Epoch != 0 || incomplete {
		w.from = from
	}
	return w
}

// Begin begins the chain if it has not begun yet.
func (w *Writer) Begin(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(now)
}

func (w *Writer) begin(now time.Time) {
	if w.head.Number == 0 {
		w.log.list("", []string{w.head.Source})
		w.write([][]byte{}, w.from, now)
	}
}

// Renew begins a new chain that nobody can go on to without a snapshot: what was
// handed on here beside it is not handed on any more, and followers may not have
// come to its end.
func (w *Writer) Renew(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.from = Head{Source: w.head.Source}
	if w.head.Number == 0 {
		return // it begins with that
	}
	w.head.Epoch, w.head.Number, w.hash = max(now.UnixMilli(), w.head.Epoch+1), 0, Hash{}
	w.write([][]byte{}, w.from, now)
}

// Source is the name under which it writes.
func (w *Writer) Source() string { return w.head.Source }

// Place is the end of the chain; its Number is 0 before the chain has begun.
func (w *Writer) Place() Place {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Place{w.head, w.hash, Signer(w.key)}
}

// Publish hands revocations to everybody who follows. They must be enforced here
// already.
func (w *Writer) Publish(rs []Revocation, now time.Time) {
	lines := make([][]byte, len(rs))
	for i := range rs {
		lines[i] = rs[i].Line()
	}
	w.publish(lines, now)
}

func (w *Writer) publish(lines [][]byte, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(now)
	const most = MaxRecord / 2 // of the operations, before they are signed and encoded
	var ops [][]byte
	size := 0
	for _, line := range lines {
		if len(ops) == MaxOps || size+len(line) > most {
			w.write(ops, Head{}, now)
			ops, size = nil, 0
		}
		ops = append(ops, line)
		size += len(line) + 1
	}
	if len(ops) > 0 {
		w.write(ops, Head{}, now)
	}
}

// write appends a record; w.mu is held, or nobody else knows w yet.
func (w *Writer) write(ops [][]byte, from Head, now time.Time) {
	w.head.Number++
	r := &Record{Head: w.head, Previous: w.hash, Made: w.time(now), From: from, Ops: ops, Signer: Signer(w.key)}
	r.Raw = r.encode(w.key)
	w.hash = hashOf(r.Raw)
	w.log.keep(r, w.hash)
}

// time is now, or a little after the latest time that was given out: the times of
// a chain only rise, whatever the clock does, else a heartbeat would be taken for
// an old one.
func (w *Writer) time(now time.Time) time.Time {
	now = now.Truncate(time.Millisecond)
	if !now.After(w.made) {
		now = w.made.Add(time.Millisecond)
	}
	w.made = now
	return now
}

// Beat gives a sign of life, if the chain has begun. Whoever calls it says that
// everything this gateway should have learned by now is in the chain.
func (w *Writer) Beat(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head.Number == 0 {
		return
	}
	r := &Record{Head: w.head, Previous: w.hash, Made: w.time(now)}
	r.Raw = r.encode(w.key)
	w.log.beat(r)
}
