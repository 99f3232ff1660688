package main

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	logWaits = 5 * time.Millisecond  // that a request's line waits for others; the fewer requests there are, the less it matters
	logStays = 50 * time.Millisecond // that whoever says anything else waits for its being out
	logSoon  = 64 << 10              // bytes that are written without waiting
	logHolds = 4 << 20               // bytes that wait for somebody who takes none
	logEnds  = 2 * time.Second       // that the end waits for the last lines to be taken
)

// A logWriter gathers lines of log and writes many at a time: a system call for each
// request would be a good part of what one costs. Nobody waits for long for whoever
// reads the log. What does not fit while it takes nothing is lost, whole lines of it,
// and counted.
type logWriter struct {
	to   io.Writer
	some chan struct{} // the first line came; holds one
	soon chan struct{} // what is held is to be written now; holds one
	end  chan struct{}
	done chan struct{}

	mu   sync.Mutex
	held []byte
	out  chan struct{} // closed once what is held was written
	lost uint64
}

func newLogWriter(to io.Writer) *logWriter {
	w := &logWriter{to: to, some: make(chan struct{}, 1), soon: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{}), out: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line, its end included, and waits a little until it is out: whatever
// happens next, it was said. It never fails.
func (w *logWriter) Write(line []byte) (int, error) {
	w.await(w.note(line))
	return len(line), nil
}

// settle waits a little until what was noted is out.
func (w *logWriter) settle() { w.await(w.note(nil)) }

func (w *logWriter) await(out chan struct{}) {
	nudge(w.soon)
	select {
	case <-out:
	case <-time.After(logStays):
	}
}

// note takes one line, its end included, and does not wait.
func (w *logWriter) note(line []byte) (out chan struct{}) {
	w.mu.Lock()
	before := len(w.held)
	if before+len(line) <= logHolds {
		w.held = append(w.held, line...)
	} else {
		w.lost++
	}
	after := len(w.held)
	out = w.out
	w.mu.Unlock()
	if before == 0 {
		nudge(w.some)
	}
	if before < logSoon && after >= logSoon {
		nudge(w.soon)
	}
	return out
}

// unawaited is the writer for lines that are not waited for.
type unawaited struct{ *logWriter }

func (w unawaited) Write(line []byte) (int, error) {
	w.note(line)
	return len(line), nil
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Lost counts the lines that were lost.
func (w *logWriter) Lost() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

func (w *logWriter) run() {
	defer close(w.done)
	var spare []byte
	for ended := false; !ended; {
		select {
		case <-w.some:
			select {
			case <-time.After(logWaits):
			case <-w.soon:
			case <-w.end:
			}
		case <-w.end:
			ended = true
		}
		w.mu.Lock()
		lines, out := w.held, w.out
		w.held, w.out = spare[:0], make(chan struct{})
		w.mu.Unlock()
		if len(lines) > 0 {
			w.to.Write(lines) // where would a failure be said?
		}
		close(out)
		if spare = lines; cap(spare) > 4*logSoon {
			spare = nil
		}
	}
}

// close writes what is held, if somebody takes it in time.
func (w *logWriter) close() {
	close(w.end)
	select {
	case <-w.done:
	case <-time.After(logEnds):
	}
}

// eachLine hands lines on one by one.
type eachLine struct{ to io.Writer }

func (e eachLine) Write(lines []byte) (int, error) {
	for line := range bytes.Lines(lines) {
		if _, err := e.to.Write(line); err != nil {
			return 0, err
		}
	}
	return len(lines), nil
}
