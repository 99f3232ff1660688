package denylist

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"durward/token"
)

// open opens a journal and returns what it logged.
func open(t testing.TB, dir string, now time.Time) (*Journal, []Revocation, string) {
	t.Helper()
	var log bytes.Buffer
	j, held, err := OpenJournal(dir, slog.New(slog.NewTextHandler(&log, nil)), now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, held, log.String()
}

func write(t testing.TB, dir, text string) string {
	t.Helper()
	path := filepath.Join(dir, journalFile)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t testing.TB, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJournal(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "state"), time.Now()
	l := newList(10)
	j, held, log := open(t, dir, now)
	if held != nil || log != "" {
		t.Errorf("a new journal holds %v and says %q", held, log)
	}
	rs := parse(t, `{"jti":"a","reason":"leaked"}`, `{"sid":"b"}`, fmt.Sprintf(`{"sub":"c","before":%d.25,"by":"auth_time","except":["sid:x"]}`, now.Unix()))
	for i := range rs {
		rs[i].Expiry = l.Retention(rs[i], now)
	}
	if err := j.Append(rs[:2]); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(nil); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(rs[2:]); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadJournal(dir, slog.New(slog.DiscardHandler)); err != nil || !reflect.DeepEqual(got, rs) {
		t.Errorf("read without opening:\n got %v, %v\nwant %v", got, err, rs)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(rs); err == nil {
		t.Error("a closed journal takes lines")
	}
	before := content(t, dir)
	for range 2 {
		j, held, log = open(t, dir, now)
		if !reflect.DeepEqual(held, rs) || log != "" || j.Broken() != 0 {
			t.Errorf("opened again:\n got %v, %q\nwant %v", held, log, rs)
		}
		j.Close()
	}
	if after := content(t, dir); after != before {
		t.Errorf("compacting changed %q to %q", before, after)
	}
	for _, name := range []string{journalFile, lockFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, info.Mode(), err)
		}
	}
}

func TestJournalIsLocked(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	j, _, _ := open(t, dir, now)
	_, _, err := OpenJournal(dir, slog.New(slog.DiscardHandler), now)
	if err == nil || !strings.Contains(err.Error(), "another durward uses") {
		t.Errorf("opened twice: %v", err)
	}
	j.Close()
	open(t, dir, now)
}

func TestJournalIsReadWhateverIsConfigured(t *testing.T) {
	dir, now := t.TempDir(), unix(1790000000)
	// Also not clamped: by this clock the cutoff is years ahead.
	write(t, dir, `{"iss":"gone","sub":"a","before":1990000000,"exp":1990100000}`+"\n")
	_, held, _ := open(t, dir, now)
	want := []Revocation{{Issuer: "gone", Kind: token.KindSubject, Value: "a", Before: unix(1990000000), Expiry: unix(1990100000)}}
	if !reflect.DeepEqual(held, want) {
		t.Errorf("got %v, want %v", held, want)
	}
}

func TestJournalDamage(t *testing.T) {
	const a, b, c = `{"iss":"i","jti":"a","exp":1790000000}`, `{"iss":"i","jti":"b","exp":1790000000}`, `{"iss":"i","jti":"c","exp":1790000000}`
	long := strings.Repeat("x", 3*MaxLine)
	tests := []struct{ name, in, out, log string }{
		{"empty", "", "", ""},
		{"good", a + "\n" + b + "\n", a + "\n" + b + "\n", ""},
		{"blank lines and CRLF", a + "\r\n\n\n" + b + "\n", a + "\n" + b + "\n", ""},
		{"only the end is missing", a + "\n" + b, a + "\n" + b + "\n", ""},
		{"torn in the middle", a + "\n" + b[:20], a + "\n", "torn by a crash"},
		{"torn at the first byte", a + "\n{", a + "\n", "torn by a crash"},
		{"torn, with zeros for what was not written", a + "\n" + b[:9] + strings.Repeat("\x00", 5000), a + "\n", "torn by a crash"},
		{"torn and very long", a + "\n" + long, a + "\n", "torn by a crash"},
		{"nothing but torn", b[:20], "", "torn by a crash"},
		{"broken in the middle", a + "\n{broken\r\n" + b + "\n", "{broken\r\n" + a + "\n" + b + "\n", "cannot be read and is kept"},
		{"broken and very long", a + "\n" + long + "\n" + b + "\n", long + "\n" + a + "\n" + b + "\n", "cannot be read and is kept"},
		{"broken at the end", a + "\n{broken\n", "{broken\n" + a + "\n", "cannot be read and is kept"},
		{"a line of a later version", a + "\n" + `{"iss":"i","device":"d"}` + "\n" + c + "\n", `{"iss":"i","device":"d"}` + "\n" + a + "\n" + c + "\n", `unknown member`},
		{"a line that names no issuer", `{"jti":"a"}` + "\n", `{"jti":"a"}` + "\n", "iss is missing"},
		{"a cutoff without before", `{"iss":"i","sub":"a"}` + "\n", `{"iss":"i","sub":"a"}` + "\n", "before is missing"},
		{"twice", a + "\n" + b + "\n" + a + "\n", a + "\n" + b + "\n", ""},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		write(t, dir, tt.in)
		j, _, log := open(t, dir, unix(1790000000))
		if got := content(t, dir); got != tt.out {
			t.Errorf("%s: left is %.200q, want %.200q", tt.name, got, tt.out)
		}
		if tt.log == "" && log != "" || !strings.Contains(log, tt.log) {
			t.Errorf("%s: logged %q, want %q", tt.name, log, tt.log)
		}
		// Whatever it was, it takes the next line, which is found again.
		if err := j.Append(parse(t, `{"jti":"new"}`)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		j.Close()
		_, held, _ := open(t, dir, unix(1790000000))
		if len(held) == 0 || held[len(held)-1].Value != "new" {
			t.Errorf("%s: the next line is lost: %v", tt.name, held)
		}
	}
}

func TestJournalCompaction(t *testing.T) {
	line := func(what string, exp int64) string { return fmt.Sprintf(`{"iss":"i",%s,"exp":%d}`, what, exp) + "\n" }
	const now, day = 1790000000, 86400
	tests := []struct{ name, in, out string }{
		{"a day past its time", line(`"jti":"a"`, now-day-1) + line(`"jti":"b"`, now-day), line(`"jti":"b"`, now-day)},
		{"no time", `{"iss":"i","jti":"a"}` + "\n", `{"iss":"i","jti":"a"}` + "\n"},
		{"the latest exp", line(`"jti":"a"`, now+1) + line(`"jti":"a"`, now+3) + line(`"jti":"a"`, now+2), line(`"jti":"a"`, now+3)},
		{"the latest before", line(`"sub":"a","before":10`, now) + line(`"sub":"a","before":12`, now) + line(`"sub":"a","before":11`, now), line(`"sub":"a","before":12`, now)},
		{"a jti is no sid", line(`"jti":"a"`, now) + line(`"sid":"a"`, now), line(`"jti":"a"`, now) + line(`"sid":"a"`, now)},
		{"a denial is no cutoff", line(`"sid":"a"`, now) + line(`"sid":"a","before":10`, now), line(`"sid":"a"`, now) + line(`"sid":"a","before":10`, now)},
		{"other exceptions", line(`"sub":"a","before":10`, now) + line(`"sub":"a","before":12,"except":["sid:x"]`, now), line(`"sub":"a","before":10`, now) + line(`"sub":"a","before":12,"except":["sid:x"]`, now)},
		{"another comparison", line(`"sub":"a","before":10`, now) + line(`"sub":"a","before":12,"by":"auth_time"`, now), line(`"sub":"a","before":10`, now) + line(`"sub":"a","before":12,"by":"auth_time"`, now)},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		write(t, dir, tt.in)
		open(t, dir, unix(now))
		if got := content(t, dir); got != tt.out {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.out)
		}
	}
}

func TestJournalRecovers(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	j, _, _ := open(t, dir, now)
	rs := parse(t, `{"jti":"a"}`, `{"jti":"b"}`, `{"jti":"c"}`)
	if err := j.Append(rs[:1]); err != nil {
		t.Fatal(err)
	}
	// A handle that cannot write stands for a disk that cannot.
	path := filepath.Join(dir, journalFile)
	j.file.Close()
	j.file, _ = os.Open(path)
	if err := j.Append(rs[1:2]); err == nil {
		t.Fatal("no error")
	}
	// What a failed write may have left behind.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"iss":"torn`)
	f.Close()
	if err := j.Append(rs[2:]); err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, dir), string(rs[0].Line())+"\n"+string(rs[2].Line())+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	j.Close()
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, held, _ := open(t, dir, now); len(held) != 2 {
		t.Errorf("%d lines are left, want 2", len(held))
	}
}

func TestReadJournalWithoutOne(t *testing.T) {
	dir := t.TempDir()
	if rs, err := ReadJournal(dir, slog.New(slog.DiscardHandler)); err != nil || rs != nil {
		t.Errorf("got %v, %v", rs, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("reading made %v", entries)
	}
}

// Any bytes: opening does not panic, and every whole line that can be read is
// still there, before and after compaction.
func FuzzJournal(f *testing.F) {
	const good = `{"iss":"i","jti":"a"}`
	for _, s := range []string{"", good, good + "\n", good + "\n{", "{\n" + good + "\r\n\n" + good[:7], "\x00\n" + good + "\n\xff", `{"iss":"i","sub":"a","before":1.5,"except":["sid:x"]}` + "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := New(1 << 20)
		for line := range bytes.SplitSeq(b, []byte("\n")) {
			line = bytes.TrimSuffix(line, []byte("\r"))
			if r, err := recall(Line{Text: line, Long: len(line) > MaxLine}); err == nil && r.Expiry.IsZero() {
				want.put(&r, 1<<31)
			}
		}
		dir := t.TempDir()
		write(t, dir, string(b))
		for _, when := range []string{"opened", "opened again"} {
			j, held, err := OpenJournal(dir, slog.New(slog.DiscardHandler), unix(1790000000))
			if err != nil {
				t.Fatal(err)
			}
			j.Close()
			got := New(1 << 20)
			for i := range held {
				got.put(&held[i], 1<<31)
			}
			for d := range want.Denials() {
				if !got.denials[d.Kind].has(d.ID) {
					t.Fatalf("%s, %q lost a denial", when, b)
				}
			}
			for c := range want.Cutoffs() {
				if kept := got.cutoffs[c.Kind].cutoff(c.ID); kept == nil || kept.latest() < c.latest() {
					t.Fatalf("%s, %q lost a cutoff: %+v became %+v", when, b, c, kept)
				}
			}
		}
	})
}
