package filefeed

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"durward/denylist"
	"durward/token"
)

const (
	corp  = "https://idp.example.com/realms/corp"
	lease = 5 * time.Second
)

// A rig is a list that follows a file through a reader.
type rig struct {
	t    *testing.T
	path string
	list *denylist.List
	src  *denylist.Source
	r    *reader
	log  bytes.Buffer
}

func newRig(t *testing.T, maxEntries int) *rig {
	l := denylist.New(maxEntries)
	l.SetIssuers(denylist.Issuers{{URL: corp, MaxLifetime: 24 * time.Hour}})
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "revoked.jsonl"), list: l, src: l.Source("local", lease)}
	r.r = newReader(r.path, l, r.src, into(r.src))
	return r
}

// logger writes what is logged without its time.
func (r *rig) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func (r *rig) write(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) append(text string) {
	r.t.Helper()
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) look() error {
	m, err := r.r.look(time.Now())
	m.log(r.logger(), "local", "f")
	return err
}

// want compares which of the jti a to z are denied, and how many lines were
// refused so far.
func (r *rig) want(when, jtis string, refused uint64) {
	r.t.Helper()
	got := ""
	for c := 'a'; c <= 'z'; c++ {
		if _, ok := r.list.Lookup(token.KindToken, corp, string(c)); ok {
			got += string(c)
		}
	}
	if st := r.src.Status(time.Now()); got != jtis || st.Refused != refused {
		r.t.Errorf("%s: %q are denied and %d lines refused, want %q and %d", when, got, st.Refused, jtis, refused)
	}
}

func jti(names string) string {
	s := ""
	for _, c := range names {
		s += fmt.Sprintf("{\"jti\":%q}\n", string(c))
	}
	return s
}

func TestLines(t *testing.T) {
	long := `{"jti":"` + strings.Repeat("x", denylist.MaxLine) + `"}`
	tests := []struct {
		name, text, jtis string
		refused          uint64
	}{
		{"empty", "", "", 0},
		{"good", jti("abc"), "abc", 0},
		{"CRLF", strings.ReplaceAll(jti("ab"), "\n", "\r\n"), "ab", 0},
		{"blank lines", "\n\r\n" + jti("a") + " \n\n" + jti("b"), "ab", 0},
		{"a last line without newline", jti("a") + `{"jti":"b"}`, "ab", 0},
		{"a last line that is not finished", jti("a") + `{"jti":"b"`, "a", 0},
		{"a last line that is finished and bad", jti("a") + `{"jti":7}`, "a", 0},
		{"a bad line among good ones", jti("a") + "{\"jti\":7}\n" + jti("b"), "ab", 1},
		{"nothing but garbage", "\x00\xff\n<html>\n{}\n[]\n", "", 4},
		{"a foreign issuer", `{"iss":"x","jti":"a"}` + "\n" + jti("b"), "b", 1},
		{"a line that is too long", jti("a") + long + "\n" + jti("b"), "ab", 1},
		{"a last line that is too long", jti("a") + long, "a", 0},
		{"revokes everything", "{}\n" + jti("a"), "a", 1},
	}
	for _, tt := range tests {
		r := newRig(t, 100)
		r.write(tt.text)
		for _, when := range []string{"first", "again"} {
			if err := r.look(); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			r.want(tt.name+", "+when, tt.jtis, tt.refused)
			if got := r.src.State(time.Now()); got != denylist.Live {
				t.Errorf("%s, %s: %v, want live", tt.name, when, got)
			}
		}
		once := denylist.New(100)
		once.SetIssuers(r.list.Issuers())
		if err := readInto(r.path, once, once.Source("once", lease)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got, want := once.Stats().Total, r.list.Stats().Total; got != want {
			t.Errorf("%s: read once gives %d entries, want %d", tt.name, got, want)
		}
	}
}

// Whatever happens to the file, nothing is lifted and nothing is missed.
func TestChanges(t *testing.T) {
	r := newRig(t, 100)
	step := func(when, jtis string, refused uint64) {
		t.Helper()
		if err := r.look(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		r.want(when, jtis, refused)
	}
	r.write(jti("ab"))
	step("at first", "ab", 0)
	r.append(jti("c"))
	step("appended", "abc", 0)
	r.append(`{"jti":`)
	step("half a line", "abc", 0)
	r.append("\"d\"}\n")
	step("the other half", "abcd", 0)
	r.append(`{"jti":"e"}`)
	step("a line without its end", "abcde", 0)
	r.append("\n{broken\n" + jti("f"))
	step("its end, and a bad line", "abcdef", 1)
	r.append(jti("g"))
	step("appended behind a bad line", "abcdefg", 1)
	r.write(jti("ab") + "{broken\n" + jti("h"))
	step("rewritten with the same bad line", "abcdefgh", 1)
	r.write("{another\n{broken\n")
	step("shortened, with another bad line", "abcdefgh", 3)
	r.write(strings.Replace(jti("abcdef"), `"a"`, `"i"`, 1) + jti("j"))
	step("edited in front and appended", "abcdefghij", 3)
	r.write("")
	step("emptied", "abcdefghij", 3)
	r.write(jti("k"))
	step("filled again", "abcdefghijk", 3)
	r.write(jti("l"))
	step("changed in the same instant, to the same size", "abcdefghijkl", 3)
	if err := os.WriteFile(r.path+".new", []byte(jti("m")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.path+".new", r.path); err != nil {
		t.Fatal(err)
	}
	step("replaced", "abcdefghijklm", 3)
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	if err := r.look(); err == nil {
		t.Error("a file that is not there is no error")
	}
	r.want("deleted", "abcdefghijklm", 3)
	r.write(jti("n"))
	step("recreated", "abcdefghijklmn", 3)
}

// An unchanged file is not read again, and is a sign of life.
func TestUnchanged(t *testing.T) {
	r := newRig(t, 100)
	old := time.Now().Add(-time.Hour)
	put := func(text string) {
		r.write(text)
		if err := os.Chtimes(r.path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	put(jti("a"))
	if err := r.look(); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if _, err := r.r.look(later); err != nil {
		t.Fatal(err)
	}
	seen := r.r.seen
	if _, err := r.r.look(later); err != nil || seen == nil || r.r.seen != seen {
		t.Errorf("%v; it was read again", err)
	}
	if runtime.GOOS == "linux" {
		put(jti("b")) // the same inode, size and time, as by a tool that keeps them
		if _, err := r.r.look(later); err != nil {
			t.Fatal(err)
		}
		r.want("replaced", "ab", 0)
	}
	old = old.Add(time.Nanosecond)
	put(jti("c"))
	if _, err := r.r.look(later.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	r.want("changed", map[bool]string{true: "abc", false: "ac"}[runtime.GOOS == "linux"], 0)
}

func TestIssuersChange(t *testing.T) {
	r := newRig(t, 100)
	r.write(jti("a") + `{"iss":"https://new.example.org","jti":"b"}` + "\n")
	if err := r.look(); err != nil {
		t.Fatal(err)
	}
	r.want("before", "a", 1)
	r.list.SetIssuers(denylist.Issuers{{URL: corp}, {URL: "https://new.example.org"}})
	if err := r.look(); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.list.Lookup(token.KindToken, "https://new.example.org", "b"); !ok {
		t.Error("a line of an issuer that is configured now is not applied")
	}
	r.want("after", "a", 2) // now the line without iss is refused, and still in force
}

func TestNotAFile(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"missing", func(string) error { return nil }, "no such file"},
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }, "is a directory"},
		{"FIFO", func(path string) error { return syscall.Mkfifo(path, 0o600) }, "is a named pipe"},
		{"device", func(path string) error { return os.Symlink("/dev/zero", path) }, "is a device"},
		{"dangling link", func(path string) error { return os.Symlink("nowhere", path) }, "no such file"},
	} {
		r := newRig(t, 100)
		if err := tt.make(r.path); err != nil {
			t.Fatal(err)
		}
		if err := r.look(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if st := r.src.Status(time.Now()); st.State != denylist.Syncing || !strings.Contains(st.Error, tt.want) {
			t.Errorf("%s: %+v", tt.name, st)
		}
		if err := readInto(r.path, r.list, r.src); err == nil {
			t.Errorf("%s: read once without an error", tt.name)
		}
	}
	r := newRig(t, 100)
	if err := os.WriteFile(r.path+".1", []byte(jti("a")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(r.path+".1", r.path); err != nil {
		t.Fatal(err)
	}
	if err := r.look(); err != nil {
		t.Error(err)
	}
	r.want("a link to a file", "a", 0)
}

func TestFull(t *testing.T) {
	r := newRig(t, 3)
	r.write(jti("abcd") + "{broken\n")
	for range 3 {
		if err := r.look(); err == nil || !strings.Contains(err.Error(), "denylist.max_entries") {
			t.Errorf("got %v, want an error that names denylist.max_entries", err)
		}
		r.want("full", "abc", 1)
		if got := r.src.State(time.Now()); got != denylist.Syncing {
			t.Errorf("full: %v, want syncing", got)
		}
	}
	r.list.SetMaxEntries(4)
	if err := r.look(); err != nil {
		t.Error(err)
	}
	r.want("with room", "abcd", 1)
	r.append(jti("e"))
	if err := r.look(); err == nil {
		t.Error("there is room")
	}
	if got := r.src.State(time.Now()); got != denylist.Stale {
		t.Errorf("full again: %v, want stale", got)
	}
	if n := strings.Count(r.log.String(), "needs a look"); n != 1 {
		t.Errorf("a line was remarked on %d times, want 1:\n%s", n, r.log.String())
	}
}

// More than one batch, and what does not fit in one of them.
func TestManyLines(t *testing.T) {
	const lines = 3*batch + 17
	r := newRig(t, lines)
	var b strings.Builder
	for i := range lines {
		fmt.Fprintf(&b, "{\"jti\":\"%d\"}\n", i)
	}
	r.write(b.String())
	r.list.SetMaxEntries(batch + 5)
	if err := r.look(); err == nil {
		t.Error("there is room")
	}
	r.list.SetMaxEntries(lines + 1)
	if err := r.look(); err != nil {
		t.Error(err)
	}
	if got := r.list.Stats().Total; got != lines {
		t.Errorf("%d entries, want %d", got, lines)
	}
	before := r.src.Status(time.Now()).Applied
	r.append(jti("a"))
	if err := r.look(); err != nil {
		t.Error(err)
	}
	if got := r.src.Status(time.Now()).Applied - before; got != 1 {
		t.Errorf("one more line made %d be applied", got)
	}
	r.want("appended", "a", 0)
}

func TestClamped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 100)
		far := time.Now().Add(time.Hour)
		r.write(fmt.Sprintf("{\"sub\":\"alice\",\"before\":%d}\n", far.Unix()))
		before := func() time.Time {
			t.Helper()
			if err := r.look(); err != nil {
				t.Fatal(err)
			}
			e, _ := r.list.Lookup(token.KindSubject, corp, "alice")
			return e.Before
		}
		clamped := time.Now().Add(denylist.MaxAhead)
		if got := before(); !got.Equal(clamped) {
			t.Errorf("at first: %v, want %v", got, clamped)
		}
		if !strings.Contains(r.log.String(), "clamped to") {
			t.Errorf("not logged: %q", r.log.String())
		}
		time.Sleep(30 * time.Minute)
		r.append("\n")
		if got := before(); !got.Equal(clamped) {
			t.Errorf("later: %v, want %v as before", got, clamped)
		}
		// A clock that was years behind and is set right must find its cutoffs.
		time.Sleep(29 * time.Minute)
		if got := before(); !got.Equal(far) {
			t.Errorf("when it is due: %v, want %v", got, far)
		}
	})
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 100)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- Run(ctx, r.path, r.list, r.src, into(r.src), r.logger()) }()
		expect := func(when string, after time.Duration, want denylist.State) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := r.list.State("", time.Now()); got != want {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
		expect("missing", time.Minute, denylist.Syncing)
		r.write(jti("a") + "{broken\n")
		expect("there", Interval, denylist.Live)
		r.want("there", "a", 1)
		expect("unchanged for an hour", time.Hour, denylist.Live)
		r.append(jti("b"))
		expect("appended", Interval, denylist.Live)
		r.want("appended", "ab", 1)
		if err := os.Rename(r.path, r.path+".away"); err != nil {
			t.Fatal(err)
		}
		expect("away for less than the lease", lease-Interval, denylist.Live)
		expect("away for longer", 2*Interval, denylist.Stale)
		expect("away for an hour", time.Hour, denylist.Stale)
		r.want("away", "ab", 1)
		r.write("")
		expect("back and empty", Interval, denylist.Live)
		r.want("back and empty", "ab", 1)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{"is not followed", "is followed again", "line=2", "is not followed", "is followed again"}
		got := strings.Split(strings.TrimSpace(r.log.String()), "\n")
		if len(got) != len(want) {
			t.Fatalf("logged\n%s\nwant %d lines", r.log.String(), len(want))
		}
		// The bad line and the news that the file is there come from one look.
		got[1], got[2] = got[2], got[1]
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("logged %q, want %q", got[i], want[i])
			}
		}
	})
}

func TestLogIsBounded(t *testing.T) {
	r := newRig(t, 100)
	r.write(strings.Repeat("{broken\n", 1000) + jti("a"))
	for range 3 {
		if err := r.look(); err != nil {
			t.Fatal(err)
		}
	}
	r.want("much garbage", "a", 1000)
	if n := strings.Count(r.log.String(), "\n"); n != loud+1 || !strings.Contains(r.log.String(), "refused=1000") {
		t.Errorf("%d lines are logged, want %d:\n%s", n, loud+1, r.log.String())
	}
}

func BenchmarkRead(b *testing.B) {
	const lines = 100_000
	var text bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&text, `{"iss":%q,"jti":"B70BA622-9515-4353-A866-%012d","exp":1790003600}`+"\n", corp, i)
	}
	path := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	l := denylist.New(lines)
	l.SetIssuers(denylist.Issuers{{URL: corp, MaxLifetime: time.Hour}})
	s := l.Source("f", lease)
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			if err := readInto(path, l, s); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/lines, "ns/line")
	})
	b.Run("known", func(b *testing.B) {
		r := newReader(path, l, s, into(s))
		for b.Loop() {
			r.seen = nil
			if _, err := r.look(time.Now()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/lines, "ns/line")
	})
}

// into enforces what is read, and nothing more.
func into(s *denylist.Source) Apply {
	return func(rs []denylist.Revocation, now time.Time) error {
		_, err := s.Apply(rs, now)
		return err
	}
}

func readInto(path string, l *denylist.List, s *denylist.Source) error {
	return Read(path, l, s, into(s), time.Now())
}
