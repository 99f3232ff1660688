// Package filefeed follows a file of revocations, one JSON object per line.
//
// The file is read when it changes and polled in between: notification by the
// kernel was refused because it says nothing on network file systems, and misses
// what a bind mount or a replaced directory hides. Lines are never un-said: a
// file that is shortened, emptied, deleted or recreated lifts nothing.
package filefeed

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"durward/denylist"
)

const (
	// Interval is how often the file is looked at.
	Interval = 200 * time.Millisecond

	batch = 4096 // lines that are applied at once: what bounds memory
	loud  = 5    // lines of one reading that are logged one by one

	// settled is how old a file's time of change must be before an unchanged one
	// means unchanged content. Some file systems count in steps of two seconds.
	settled = 2 * time.Second
)

// Config is a file feed.
type Config struct {
	// Name of the feed in logs and metrics.
	Name string `yaml:"name"`
	// File to follow, relative to the configuration file. It may be a symbolic link.
	File string `yaml:"file"`
}

// Run follows the file until the context ends, and returns nil. Every look at it
// that succeeds is a sign of life. It logs when the file is lost and when it is
// back, and the first of the lines that are refused or clamped, once. What it reads
// goes to apply, which does what [denylist.Source.Apply] does, and may do more.
func Run(ctx context.Context, path string, l *denylist.List, s *denylist.Source, apply Apply, log *slog.Logger) error {
	r := newReader(path, l, s, apply)
	lost := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		began := time.Now()
		m, err := r.look(began)
		m.log(log, s.Name(), path)
		switch {
		case err != nil && !lost:
			log.Error("the revocation file is not followed; what it said so far stays in force", "feed", s.Name(), "file", path, "error", err)
		case err == nil && lost:
			log.Info("the revocation file is followed again", "feed", s.Name(), "file", path)
		}
		lost = err != nil
		// A file that takes long to read must not take all of a processor, nor wait
		// so long that the lease ends.
		timer.Reset(max(Interval, min(time.Since(began), time.Second)))
	}
}

// Apply enforces revocations.
type Apply func(rs []denylist.Revocation, now time.Time) error

// Read reads the file once and whole. Lines that are refused are counted on the
// source and are no error.
func Read(path string, l *denylist.List, s *denylist.Source, apply Apply, now time.Time) error {
	_, err := newReader(path, l, s, apply).look(now)
	return err
}

// A reader remembers how far the file was read. Files of revocations mostly grow
// at their end, so what was applied is not parsed again but only hashed, to see
// that it is still the same.
type reader struct {
	path    string
	list    *denylist.List
	source  *denylist.Source
	enforce Apply
	seed    maphash.Seed
	issuers denylist.Issuers // that the lines were judged against

	seen    os.FileInfo // of the last reading, while nothing can have changed since; else nil
	done    progress    // how far everything was applied
	noted   uint64      // the marks of the last reading
	clamped time.Time   // the earliest before that was too far ahead; zero: none was
}

// progress is how far a file was read, and what was found on the way.
type progress struct {
	offset int64  // of the first byte that was not applied
	hash   uint64 // of the bytes before it
	lines  int    // before it
	marks  uint64 // the sum of the hashes of the lines to remark on: which they are, in any order
}

func newReader(path string, l *denylist.List, s *denylist.Source, apply Apply) *reader {
	return &reader{path: path, list: l, source: s, enforce: apply, seed: maphash.MakeSeed()}
}

// look reads the file if it may have changed, and tells the source how that went.
// The remarks are those not made before.
func (r *reader) look(now time.Time) (*remarks, error) {
	r.source.Begin()
	m, err := r.read(now)
	if err != nil {
		r.seen = nil
		r.source.Failed(err)
	} else {
		r.source.Synced(now)
	}
	return m, err
}

func (r *reader) read(now time.Time) (*remarks, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for somebody to write to it.
	f, err := os.OpenFile(r.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is a %s; a feed must be a regular file", r.path, kindOf(info.Mode()))
	}

	// Other issuers may make another thing of every line. And what was too far ahead
	// may not be any more: where a machine starts with a clock set years back, that
	// is every cutoff, until somebody sets the clock.
	issuers := r.list.Issuers()
	reached := !r.clamped.IsZero() && !now.Add(denylist.MaxAhead).Before(r.clamped)
	if reached || !slices.Equal(issuers, r.issuers) {
		r.seen, r.done, r.issuers = nil, progress{}, issuers
	}
	if r.seen != nil && os.SameFile(r.seen, info) && r.seen.Size() == info.Size() && r.seen.ModTime().Equal(info.ModTime()) && changed(r.seen).Equal(changed(info)) {
		return nil, nil
	}
	m, err := r.apply(f, now)
	if err != nil {
		return m, err
	}
	r.seen = nil
	if now.Sub(info.ModTime()).Abs() > settled && now.Sub(changed(info)).Abs() > settled {
		r.seen = info
	}
	return m, nil
}

// apply applies what was not yet applied.
func (r *reader) apply(f *os.File, now time.Time) (*remarks, error) {
	p, h, err := r.resume(f)
	if err != nil {
		return nil, err
	}
	var (
		m     remarks
		rs    = make([]denylist.Revocation, 0, batch)
		full  error // what did not fit is tried again, but what comes after it need not wait
		stuck bool  // progress cannot be told from here on
	)
	flush := func() {
		if err := r.enforce(rs, now); err != nil && full == nil {
			full = err
		}
		rs = rs[:0]
		if full == nil && !stuck {
			p.hash = h.Sum64()
			r.done = p
		}
	}
	lines := denylist.NewLineReader(f)
	first := p.lines
	for {
		line, err := lines.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			flush()
			return nil, err
		}
		rev, err := parse(line, r.issuers, now)
		if !line.Whole {
			// Somebody may still be writing it: it counts as read when it is ended.
			if err == nil && !line.Blank() {
				rs = append(rs, rev)
			}
			break
		}
		number := first + line.Number
		switch {
		case line.Blank():
		case err != nil:
			p.marks += maphash.Bytes(r.seed, line.Text)
			m.refuse(number, err)
		default:
			rs = append(rs, rev)
			if !rev.Clamped.IsZero() {
				p.marks += maphash.Bytes(r.seed, line.Text)
				m.clamp(number, rev)
				if r.clamped.IsZero() || rev.Clamped.Before(r.clamped) {
					r.clamped = rev.Clamped
				}
			}
		}
		p.lines++
		p.offset += line.End - line.Start
		// A line too long to be held cannot be hashed as it was read: files with one
		// are parsed whole every time.
		stuck = stuck || line.Long
		h.Write(line.Text)
		if line.End-line.Start > int64(len(line.Text))+1 {
			h.WriteByte('\r')
		}
		h.WriteByte('\n')
		if len(rs) == cap(rs) {
			flush()
		}
	}
	flush()
	if p.marks == r.noted {
		return nil, full
	}
	r.noted = p.marks
	r.source.Refused(m.refused, m.last)
	return &m, full
}

// resume puts the file behind what was applied, if it still begins with that, and
// else at its start.
func (r *reader) resume(f *os.File) (progress, *maphash.Hash, error) {
	h := new(maphash.Hash)
	h.SetSeed(r.seed)
	_, err := io.CopyN(h, f, r.done.offset)
	if err != nil && err != io.EOF {
		return progress{}, nil, err
	}
	if err == nil && r.done.offset > 0 && h.Sum64() == r.done.hash {
		return r.done, h, nil
	}
	r.done, r.clamped = progress{}, time.Time{}
	h.Reset()
	_, err = f.Seek(0, io.SeekStart)
	return r.done, h, err
}

func parse(line denylist.Line, issuers denylist.Issuers, now time.Time) (denylist.Revocation, error) {
	switch {
	case line.Long:
		return denylist.Revocation{}, fmt.Errorf("longer than %d bytes", denylist.MaxLine)
	case line.Blank():
		return denylist.Revocation{}, nil
	}
	return denylist.Parse(line.Text, issuers, now, false)
}

func kindOf(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&os.ModeNamedPipe != 0:
		return "named pipe"
	}
	return "device or socket"
}

// remarks are the lines of one reading that somebody should look at. A nil
// *remarks has none.
type remarks struct {
	refused, clamped int
	last             error // of the refused ones
	texts            []remark
}

type remark struct {
	line int
	text string
}

func (m *remarks) add(line int, format string, args ...any) {
	if len(m.texts) < loud {
		m.texts = append(m.texts, remark{line, fmt.Sprintf(format, args...)})
	}
}

func (m *remarks) refuse(line int, err error) {
	m.refused++
	m.last = fmt.Errorf("line %d: %w", line, err)
	m.add(line, "refused: %v", err)
}

func (m *remarks) clamp(line int, r denylist.Revocation) {
	m.clamped++
	m.add(line, "before is %s, more than %s ahead: clamped to %s", r.Clamped.Format(time.RFC3339), denylist.MaxAhead, r.Before.Format(time.RFC3339))
}

// log writes the first of them, and how many there are if that is not all.
func (m *remarks) log(log *slog.Logger, feed, path string) {
	if m == nil {
		return
	}
	for _, t := range m.texts {
		log.Warn("a line of the revocation file needs a look", "feed", feed, "file", path, "line", t.line, "problem", t.text)
	}
	if n := m.refused + m.clamped; n > len(m.texts) {
		log.Warn("more lines of the revocation file need a look", "feed", feed, "file", path, "refused", m.refused, "clamped", m.clamped)
	}
}
