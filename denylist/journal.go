package denylist

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"durward/token"
)

const (
	journalFile = "journal.jsonl"
	lockFile    = "lock"

	// journalMargin is how much longer than needed the journal keeps a line. The
	// clock by which it judges is the wall clock alone, before anything could have
	// set it right.
	journalMargin = 24 * time.Hour

	loud = 5 // how many broken lines are logged one by one
)

// A Journal is the file of what this gateway itself accepted: one line each,
// appended and on disk before the answer, replayed at the next start.
//
// Its lines are those of a feed, with one promise more: exp says how long the
// entry is needed, computed when it was accepted. They are read without looking
// at the configuration, so that an issuer that was removed and comes back finds
// its entries, and without clamping, so that a machine that starts with a clock
// set years back does not lower its cutoffs.
//
// Only [OpenJournal] makes one. Its methods may be called by anybody at any time.
type Journal struct {
	path   string
	broken int

	gathering sync.Mutex
	next      *gathered // that still takes more; nil: none waits

	mu   sync.Mutex
	lock *os.File // nil once closed
	file *os.File // nil after an error, until the next append
	end  int64    // what stands before it is on disk
}

// OpenJournal locks the directory, reads its journal and writes it anew: without
// lines that expired a day ago, without duplicates, without a last line that a
// crash tore. It returns what the journal held. The directory is made if it does
// not exist.
//
// A broken line elsewhere is logged and kept as it is: it was a revocation once,
// and somebody may still read it. An error names the directory; most likely
// another process holds it, or it cannot be written.
func OpenJournal(dir string, log *slog.Logger, now time.Time) (*Journal, []Revocation, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("lock the state directory: %w", err)
	}
	j := &Journal{path: filepath.Join(dir, journalFile), lock: lock}
	held, err := j.open(log, now)
	if err != nil {
		return nil, nil, errors.Join(err, j.Close())
	}
	return j, held, nil
}

func (j *Journal) open(log *slog.Logger, now time.Time) ([]Revocation, error) {
	if err := syscall.Flock(int(j.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if err == syscall.EWOULDBLOCK {
			return nil, fmt.Errorf("another durward uses %q; stop it, or give this one a state_dir of its own", filepath.Dir(j.path))
		}
		return nil, fmt.Errorf("lock %q: %w", j.lock.Name(), err)
	}
	old, err := os.Open(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, j.compact(nil, nil, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	defer old.Close()
	c, err := replay(old, log)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	j.broken = len(c.broken)
	held := merge(c.held, now.Add(-journalMargin))
	return held, j.compact(held, old, c.broken)
}

// ReadJournal is what the journal in the directory holds, without locking or
// changing it. There may be none.
func ReadJournal(dir string, log *slog.Logger) ([]Revocation, error) {
	f, err := os.Open(filepath.Join(dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	defer f.Close()
	c, err := replay(f, log)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	return merge(c.held, time.Time{}), nil
}

// contents are what a journal was found to hold. Broken lines are told by where
// they stand: they may be of any length.
type contents struct {
	held   []Revocation
	broken []Line
}

func replay(f *os.File, log *slog.Logger) (contents, error) {
	var c contents
	lines := NewLineReader(f)
	for {
		line, err := lines.Next()
		if err == io.EOF {
			return c, nil
		}
		if err != nil {
			return contents{}, err
		}
		if line.Blank() {
			continue
		}
		r, err := recall(line)
		switch {
		case err == nil: // also a last line that lacks nothing but its end
			c.held = append(c.held, r)
		case !line.Whole:
			log.Warn("the last line of the journal was torn by a crash and is dropped; it was never acknowledged",
				"file", f.Name(), "line", line.Number, "bytes", line.End-line.Start)
		default:
			line.Text = nil
			if c.broken = append(c.broken, line); len(c.broken) <= loud {
				log.Error("a line of the journal cannot be read and is kept as it is; what it revoked is not enforced",
					"file", f.Name(), "line", line.Number, "error", err)
			}
		}
	}
}

// recall reads a line that this gateway once wrote.
func recall(line Line) (Revocation, error) {
	if line.Long {
		return Revocation{}, fmt.Errorf("longer than %d bytes", MaxLine)
	}
	r, err := read(line.Text)
	switch {
	case err != nil:
		return Revocation{}, err
	case r.Issuer == "":
		return Revocation{}, errors.New("iss is missing")
	case r.Denial() && !r.identity():
		return Revocation{}, errors.New("before is missing")
	}
	return r, nil
}

// merge leaves out what expired before a time and what another line says as well.
// Only lines that agree in everything but times are merged: the rest is for the
// list, which knows better what covers what.
func merge(rs []Revocation, expired time.Time) []Revocation {
	type key struct {
		issuer, value, except string
		kind                  token.Kind
		denial, byAuthTime    bool
	}
	at := make(map[key]int, len(rs))
	var merged []Revocation
	for _, r := range rs {
		if !r.Expiry.IsZero() && r.Expiry.Before(expired) {
			continue
		}
		k := key{r.Issuer, r.Value, fmt.Sprintf("%q", r.Except), r.Kind, r.Denial(), r.ByAuthTime}
		i, ok := at[k]
		if !ok {
			at[k] = len(merged)
			merged = append(merged, r)
			continue
		}
		m := &merged[i]
		if r.Before.After(m.Before) {
			m.Before = r.Before
		}
		// Where one says nothing of exp, nothing may be concluded from the other.
		if m.Expiry.IsZero() || r.Expiry.IsZero() {
			m.Expiry = time.Time{}
		} else if r.Expiry.After(m.Expiry) {
			m.Expiry = r.Expiry
		}
	}
	return merged
}

// compact writes the journal anew beside the old one and puts it in its place. A
// crash leaves one of the two.
// CreateAnew makes a file that only its owner may read and write, in the place of
// whatever has that name: a link is not followed, and rights that somebody gave it
// beforehand are not kept.
func CreateAnew(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func (j *Journal) compact(held []Revocation, old io.ReaderAt, broken []Line) error {
	err := func() error {
		tmp := j.path + ".tmp"
		f, err := CreateAnew(tmp)
		if err != nil {
			return err
		}
		j.file = f
		for _, line := range broken {
			n, err := io.Copy(f, io.NewSectionReader(old, line.Start, line.End-line.Start))
			if err != nil {
				return err
			}
			j.end += n
		}
		for len(held) > 0 {
			part := held[:min(len(held), 4096)]
			n, err := f.Write(encode(part))
			if err != nil {
				return err
			}
			j.end += int64(n)
			held = held[len(part):]
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := os.Rename(tmp, j.path); err != nil {
			return err
		}
		return syncDir(filepath.Dir(j.path))
	}()
	if err != nil {
		return fmt.Errorf("rewrite the journal: %w", err)
	}
	return nil
}

// syncDir puts the names in a directory on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func encode(rs []Revocation) []byte {
	var b bytes.Buffer
	for _, r := range rs {
		b.Write(r.Line())
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// Append writes revocations and returns when they are on disk. Their Expiry must
// be what [List.Retention] says. After an error none of them is durable, and the
// next Append opens the file again and goes on behind the last good line.
func (j *Journal) Append(rs []Revocation) error {
	if len(rs) == 0 {
		return nil
	}
	// A disk that takes its time must not make everybody wait in line: what comes
	// while one batch is written is written and synced together as the next.
	text := encode(rs)
	j.gathering.Lock()
	b := j.next
	first := b == nil
	if first {
		b = &gathered{done: make(chan struct{})}
		j.next = b
	}
	b.text = append(b.text, text...)
	j.gathering.Unlock()
	if first {
		j.mu.Lock()
		j.gathering.Lock()
		j.next = nil
		j.gathering.Unlock()
		b.err = j.append(b.text)
		j.mu.Unlock()
		close(b.done)
	}
	<-b.done
	return b.err
}

// Gathered is what is written and synced at once.
type gathered struct {
	text []byte
	done chan struct{} // closed when err is known
	err  error
}

// append writes a batch; j.mu is held.
func (j *Journal) append(text []byte) error {
	if j.lock == nil {
		return errors.New("the journal is closed")
	}
	if err := j.write(text); err != nil {
		if j.file != nil {
			j.file.Close() // its error would be the one that is reported already
			j.file = nil
		}
		return fmt.Errorf("write the journal: %w", err)
	}
	j.end += int64(len(text))
	return nil
}

func (j *Journal) write(b []byte) error {
	if j.file != nil {
		// What is written to a file that was removed or replaced is not durable.
		if info, err := os.Stat(j.path); err != nil {
			return err
		} else if own, err := j.file.Stat(); err != nil || !os.SameFile(info, own) {
			return errors.Join(err, errors.New("the file was replaced by another; restart to write the journal anew"))
		}
	}
	if j.file == nil {
		f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		j.file = f
		info, err := f.Stat()
		if err != nil {
			return err
		}
		j.end = min(j.end, info.Size()) // somebody may have replaced it meanwhile
		if err := f.Truncate(j.end); err != nil {
			return err
		}
	}
	if _, err := j.file.WriteAt(b, j.end); err != nil {
		return err
	}
	return j.file.Sync()
}

// Broken is how many lines could not be read when the journal was opened.
func (j *Journal) Broken() int { return j.broken }

// Close unlocks the directory. Appending is an error from then on.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var err error
	if j.file != nil {
		err = j.file.Close()
	}
	if j.lock != nil {
		err = errors.Join(err, j.lock.Close())
	}
	j.file, j.lock = nil, nil
	return err
}
