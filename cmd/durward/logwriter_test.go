package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A reader of a log that takes a while for each write.
type slowReader struct {
	mu    sync.Mutex
	takes time.Duration
	got   bytes.Buffer
	calls int
}

func (r *slowReader) Write(b []byte) (int, error) {
	time.Sleep(r.takes)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	return r.got.Write(b)
}

func (r *slowReader) lines(t *testing.T) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := r.got.String()
	if text != "" && !strings.HasSuffix(text, "\n") {
		t.Errorf("the log ends within a line: %q", text[max(0, len(text)-40):])
	}
	return strings.Fields(text)
}

// TestLogWriter: lines come out whole, in order, soon, many at a time, and all of them
// at the end.
func TestLogWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowReader{}
		w := newLogWriter(r)
		fmt.Fprintln(w, "awaited")
		if got := r.lines(t); len(got) != 1 || got[0] != "awaited" {
			t.Errorf("at once: %q", got)
		}
		began := time.Now()
		fmt.Fprintln(unawaited{w}, "first")
		if took := time.Since(began); took != 0 {
			t.Errorf("a request waited %s", took)
		}
		time.Sleep(logWaits)
		synctest.Wait()
		if got := r.lines(t); len(got) != 2 || got[1] != "first" {
			t.Errorf("after %s: %q", logWaits, got)
		}
		for i := range 30_000 {
			fmt.Fprintf(unawaited{w}, "%09d\n", i)
		}
		synctest.Wait()
		if got := r.lines(t); len(got) < logSoon/10 {
			t.Errorf("much to write: %d lines came at once, want %d", len(got), logSoon/10)
		}
		fmt.Fprintln(w, "last")
		w.close()
		got := r.lines(t)
		if len(got) != 30_003 || got[len(got)-1] != "last" {
			t.Fatalf("%d lines, the last is %q", len(got), got[len(got)-1])
		}
		for i, line := range got[2 : len(got)-1] {
			if line != fmt.Sprintf("%09d", i) {
				t.Fatalf("line %d is %q", i, line)
			}
		}
		if r.calls > 100 || w.Lost() != 0 {
			t.Errorf("%d writes for 30,003 lines; %d were lost", r.calls, w.Lost())
		}
	})
}

// TestLogReaderStands: a reader that takes nothing holds up nobody; what does not fit
// is counted, and what comes after is whole.
func TestLogReaderStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowReader{takes: time.Hour}
		w := newLogWriter(r)
		const each = 100
		line := strings.Repeat("x", each-1) + "\n"
		began := time.Now()
		io.WriteString(w, line)
		if took := time.Since(began); took != logStays {
			t.Errorf("whoever said something waited %s", took)
		}
		began = time.Now()
		const more = 3 * logHolds / each
		for range more {
			w.note([]byte(line))
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("requests waited %s", took)
		}
		if lost := w.Lost(); lost != more-logHolds/each {
			t.Errorf("%d of %d lines are lost, want %d", lost, more, more-logHolds/each)
		}
		began = time.Now()
		w.close()
		if took := time.Since(began); took != logEnds {
			t.Errorf("the end waited %s", took)
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		for _, got := range r.lines(t) {
			if got+"\n" != line {
				t.Fatalf("a broken line: %q", got)
			}
		}
		if got := len(r.lines(t)); got != 1+logHolds/each {
			t.Errorf("%d lines came out, want %d", got, 1+logHolds/each)
		}
	})
}
