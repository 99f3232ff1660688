package httpfeed

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"durward/denylist"
)

// A directory is a feed of files behind a plain web server.
type directory struct {
	t    testing.TB
	path string
	from *hub // what it holds
	url  string
}

func newDirectory(t testing.TB) *directory {
	root := t.TempDir()
	d := &directory{t: t, path: filepath.Join(root, "revlog", "v1"), from: newHub(t)}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(root)))
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

func (d *directory) write(name string, content []byte) {
	d.t.Helper()
	file := filepath.Join(d.path, name)
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		d.t.Fatal(err)
	}
}

// segment writes the records from first to last.
func (d *directory) segment(name string, first, last uint64) segment {
	d.t.Helper()
	end := d.from.writer.Place().Head
	at := end
	at.Number = first - 1
	reading, _, ok := d.from.Log.Read([]denylist.Head{at}, 1<<20)
	if !ok {
		d.t.Fatal("the records are not held")
	}
	records := append(reading.Records[:last-first+1:last-first+1], nil)
	d.write(name, bytes.Join(records, []byte("\n")))
	return segment{URL: name, Source: "hub", Epoch: end.Epoch, First: first, Last: last}
}

// keep writes the head again and again until the test ends, with new heartbeats.
func (d *directory) keep(snapshot string, segments ...segment) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			at := d.from.head()
			at.Hub, at.Snapshot, at.Segments = false, snapshot, segments
			text, err := json.Marshal(at)
			if err != nil {
				panic(err)
			}
			d.write("head", text)
			wait(ctx, 200*time.Millisecond)
		}
	}()
	stop = func() { cancel(); <-done }
	d.t.Cleanup(stop)
	return stop
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	for _, jti := range []string{"2", "3", "4", "5"} {
		d.from.revoke(jti)
	}
	// Segments in any order, one of which overlaps.
	stop := d.keep("", d.segment("b", 3, 5), d.segment("a", 1, 3))
	f := follow(t, Config{URLs: []string{d.url}}, nil)
	f.comes("from the beginning", denylist.Live, "2 3 4 5")
	stop()
	f.comes("the directory is not kept up", denylist.Stale, "2 3 4 5")
	d.from.revoke("6")
	d.keep("", d.segment("a", 1, 3), d.segment("b", 3, 5), d.segment("c", 6, 6))
	f.comes("it is again", denylist.Live, "6")
	if n := f.Count(denylist.Resynced) + f.Count(denylist.Gap); n != 0 {
		t.Errorf("%d things went wrong", n)
	}
}

// What no segment holds is in the snapshot; without one, nobody is live.
func TestDirectorySnapshot(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	for _, jti := range []string{"2", "3"} {
		d.from.revoke(jti)
	}
	var b bytes.Buffer
	if err := denylist.WriteSnapshot(&b, d.from.List, denylist.SnapshotHeader{Places: d.from.Log.Places()}, func() (none denylist.SnapshotFooter) { return none }, nil); err != nil {
		t.Fatal(err)
	}
	d.write("snapshot-3", b.Bytes())
	d.from.revoke("4")
	stop := d.keep("", d.segment("b", 4, 4))
	f := follow(t, Config{URLs: []string{d.url}}, nil)
	f.never("no snapshot", "names no snapshot")
	stop()
	stop = d.keep("https://elsewhere.example/snapshot", d.segment("b", 4, 4))
	f.never("a snapshot elsewhere", "not beside it")
	stop()
	d.keep("snapshot-3", d.segment("b", 4, 4))
	f.comes("a snapshot and what comes after it", denylist.Live, "2 3 4")
	if n := f.Count(denylist.Resynced); n != 1 {
		t.Errorf("%d snapshots were loaded, want 1", n)
	}
}

// The producer that docs/revocation-feed.md shows is one.
func TestDocumentedProducer(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		const lack = "python3 is missing; install it with: apt-get install python3"
		if os.Getenv("DURWARD_TEST_REQUIRE") == "all" {
			t.Fatal(lack)
		}
		t.Skip(lack)
	}
	text, err := os.ReadFile("../../docs/revocation-feed.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(text), "\n```python\n")
	script, _, ok := strings.Cut(script, "\n```\n")
	if !ok {
		t.Fatal("the document shows no producer")
	}
	dir := t.TempDir()
	revoked := filepath.Join(dir, "revoked.jsonl")
	line := func(jti string) []byte { return append(denial(jti)[0].Line(), '\n') }
	if err := os.WriteFile(revoked, append(line("one"), line("two")...), 0o600); err != nil {
		t.Fatal(err)
	}
	public := filepath.Join(dir, "public")
	start := func() (end func()) {
		var said bytes.Buffer
		cmd := exec.Command(python, "-c", script, revoked, public)
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := false
		end = func() {
			if ended {
				return
			}
			ended = true
			cmd.Process.Kill()
			if cmd.Wait(); said.Len() > 0 {
				t.Errorf("the producer said: %s", said.String())
			}
		}
		t.Cleanup(end)
		return end
	}
	end := start()
	server := httptest.NewServer(http.FileServer(http.Dir(public)))
	t.Cleanup(server.Close)
	f := follow(t, Config{URLs: []string{server.URL}}, nil)
	f.comes("the producer began", denylist.Live, "one two")
	file, err := os.OpenFile(revoked, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(line("three")); err != nil {
		t.Fatal(err)
	}
	f.comes("a line more", denylist.Live, "one two three")
	end()
	f.comes("the producer ended", denylist.Stale, "one two three")
	start()
	f.comes("it runs again", denylist.Live, "one two three")
	if n := f.Count(denylist.Renewed); n != 1 {
		t.Errorf("%d new chains, want 1", n)
	}
	if n := f.Count(denylist.Gap) + f.Count(denylist.Fork) + f.Count(denylist.Garbled); n != 0 {
		t.Errorf("%d things went wrong:\n%s", n, f.said.String())
	}
}
