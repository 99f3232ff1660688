package denylist

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"durward/token"
)

// everyKind is a list with every kind of entry.
func everyKind(t testing.TB) *List {
	l := newList(20_000)
	l.SetIssuers(append(l.Issuers(), IssuerLimits{URL: "https://forever.example"}))
	sec := time.Now().Unix()
	at := func(d int64) string { return fmt.Sprint(sec + d) }
	add(t, l, `{"jti":"t"}`, `{"jti":"late","exp":`+at(1e6)+`}`, `{"sid":"s"}`, `{"sid":"s","before":`+at(-5)+`}`,
		`{"sub":"u","before":`+at(-100)+`}`, `{"sub":"u","before":`+at(-50)+`,"by":"auth_time"}`,
		`{"sub":"u","before":`+at(-10)+`,"except":["sid:a","jti:b"]}`, `{"sub":"u","before":`+at(-5)+`,"except":["sid:a","sid:c"],"by":"auth_time"}`,
		`{"sub":"only excepted","before":`+at(0)+`,"except":["sid:1","sid:2","sid:3","sid:4","sid:5","sid:6","sid:7","sid:8"]}`,
		`{"client":"c","before":`+at(0)+`}`, `{"iss":"`+corp+`","before":`+at(-3600)+`}`)
	var rs []Revocation
	for i := range blockEntries + 7 { // more than a block
		rs = append(rs, Revocation{Issuer: partner, Kind: token.KindToken, Value: fmt.Sprint(i)})
	}
	rs = append(rs, Revocation{Issuer: "https://forever.example", Kind: token.KindToken, Value: "never forgotten"})
	if _, err := l.Add(rs, time.Now()); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSnapshot(t *testing.T) {
	l := everyKind(t)
	own := Place{Head{"me", 3, 4}, Hash{9}, Signer(key(1))}
	header := SnapshotHeader{Made: time.Now().UTC().Round(0), Places: []Place{{Head{"hub", 1, 2}, Hash{1, 2}, ""}}, Feeds: map[string][]Place{"feed": {own}, "none": nil}}
	for _, private := range []ed25519.PrivateKey{nil, key(1)} {
		var keys Keys
		if private != nil {
			keys = public(2, 1)
		}
		s := snapshotOf(t, l, header, private, keys)
		got := newList(20_000)
		got.SetIssuers(l.Issuers())
		if left, err := s.Restore(got, true); err != nil || left != 0 {
			t.Fatalf("%d left out, %v", left, err)
		}
		same(t, "restored", got, l)
		if got.Stats().Entries != l.Stats().Entries {
			t.Errorf("restored: %+v, want %+v", got.Stats(), l.Stats())
		}
		if s.Entries != l.Stats().Total || !s.Made.Equal(header.Made) || !reflect.DeepEqual(s.Places, header.Places) || !reflect.DeepEqual(s.Feeds, header.Feeds) {
			t.Errorf("the header is %+v, want %+v", s.SnapshotHeader, header)
		}
		// It adds to what is held, and may be taken again.
		add(t, got, `{"jti":"held before"}`)
		if _, err := s.Restore(got, true); err != nil || got.Stats().Total != l.Stats().Total+1 {
			t.Errorf("restored again: %v, %d entries", err, got.Stats().Total)
		}
		// Without room, what fits is taken.
		small := newList(5)
		if _, err := s.Restore(small, true); !errors.Is(err, ErrFull) || small.Stats().Total != 5 {
			t.Errorf("without room: %v, %d entries", err, small.Stats().Total)
		}
	}
	empty := snapshotOf(t, newList(1), SnapshotHeader{}, nil, nil)
	if _, err := empty.Restore(newList(1), true); err != nil || empty.Entries != 0 {
		t.Errorf("an empty list: %v", err)
	}
}

// Nothing of a file is used unless all of it is as it was written: not a bit of it
// may differ, none may be missing, none may follow.
func TestSnapshotDamage(t *testing.T) {
	l := newList(100)
	add(t, l, `{"jti":"t"}`, `{"sid":"s"}`, `{"sub":"u","before":1790000000,"except":["sid:a"]}`)
	for _, private := range []ed25519.PrivateKey{nil, key(1)} {
		var keys Keys
		if private != nil {
			keys = public(1)
		}
		path := filepath.Join(t.TempDir(), "snapshot")
		text := snapshotText(t, l, SnapshotHeader{}, private)
		open := func(what, text string, keys Keys) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := OpenSnapshot(path, keys); err == nil {
				s.Close()
				t.Errorf("signed %t: %s is opened", private != nil, what)
			} else if s != nil {
				t.Errorf("%s: an error and a snapshot", what)
			}
		}
		for i := range len(text) {
			for bit := range 8 {
				flipped := []byte(text)
				flipped[i] ^= 1 << bit
				open(fmt.Sprintf("one with bit %d of byte %d flipped", bit, i), string(flipped), keys)
			}
			open(fmt.Sprintf("one of which %d bytes are left", i), text[:i], keys)
		}
		open("one with a byte more", text+"\x00", keys)
		open("one with another's signature", snapshotText(t, l, SnapshotHeader{}, key(3)), public(1))
		open("one without a signature", snapshotText(t, l, SnapshotHeader{}, nil), public(1))
		open("one of another version", reseal(strings.Replace(text, "snapshot 1", "snapshot 2", 1), private), keys)
	}
	if _, err := OpenSnapshot(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

// reseal gives changed content a hash, and a signature if there is a key.
func reseal(text string, private ed25519.PrivateKey) string {
	end := len(text) - sha256.Size - 1
	if private != nil {
		end -= ed25519.SignatureSize
	}
	return seal([]byte(text[:end]), private)
}

// seal ends a snapshot: the hash of the content, and its signature if there is a key.
func seal(content []byte, private ed25519.PrivateKey) string {
	hash := sha256.Sum256(content)
	sealed := append(bytes.Clone(content), hash[:]...)
	if private == nil {
		return string(append(sealed, 0))
	}
	signature := ed25519.Sign(private, append([]byte(snapshotSigns), hash[:]...))
	return string(append(append(sealed, ed25519.SignatureSize), signature...))
}

// content is a snapshot up to its hash, with these blocks.
func snapshotWith(header string, blocks ...[]byte) []byte {
	text := binary.BigEndian.AppendUint32([]byte(snapshotMagic), uint32(len(header)))
	text = append(text, header...)
	text = append(text, bytes.Join(blocks, nil)...)
	return append(text, "{}\x00\x00\x00\x02"...) // the footer
}

// Whoever accepts tokens for longer than the gateway where a snapshot was taken
// remembers its entries for as much longer; for a shorter time, no less.
func TestSnapshotRetention(t *testing.T) {
	there := newList(10)
	add(t, there, `{"jti":"t"}`, `{"sub":"u","before":`+fmt.Sprint(time.Now().Unix())+`}`)
	s := snapshotOf(t, there, SnapshotHeader{}, nil, nil)
	tests := []struct {
		name string
		here Issuers
		more time.Duration
	}{
		{"the same", there.Issuers(), 0},
		{"shorter", Issuers{{URL: corp, MaxLifetime: time.Minute}, {URL: partner, MaxLifetime: time.Minute}}, 0},
		{"longer", Issuers{{URL: corp, MaxLifetime: 25 * time.Hour, Leeway: 30 * time.Second, Skew: 2 * time.Second}}, time.Hour},
		{"an issuer that was not configured there", append(there.Issuers(), IssuerLimits{URL: "https://new.example", MaxLifetime: time.Hour}), time.Hour + 2*time.Second},
	}
	for _, tt := range tests {
		l := New(10)
		l.LastRun(time.Now())
		l.SetIssuers(tt.here)
		if _, err := s.Restore(l, true); err != nil {
			t.Fatal(err)
		}
		for _, of := range []struct {
			kind  token.Kind
			value string
		}{{token.KindToken, "t"}, {token.KindSubject, "u"}} {
			was, _ := there.Lookup(of.kind, corp, of.value)
			is, ok := l.Lookup(of.kind, corp, of.value)
			if !ok || is.Until.Sub(was.Until) != tt.more {
				t.Errorf("%s: the %v is kept until %v, that is %v more; want %v", tt.name, of.kind, is.Until, is.Until.Sub(was.Until), tt.more)
			}
		}
	}
	// What says nonsense of its retention makes nothing be forgotten sooner.
	for _, retention := range []int64{math.MinInt64, -1 << 62, -1, 0} {
		head := fmt.Sprintf(`{"made":"2026-01-01T00:00:00Z","retention":{"%s":%d}}`, corp, retention)
		id := token.Identify(token.KindToken, corp, "t")
		block := binary.BigEndian.AppendUint32(id.Append([]byte{1, 0, 1}), uint32(time.Now().Add(time.Hour).Unix()))
		s, err := OpenSnapshot(write(t, t.TempDir(), seal(snapshotWith(head, block, []byte{0, 0, 0}), nil)), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		l := newList(10)
		if _, err := s.Restore(l, true); err != nil {
			t.Fatal(err)
		}
		if e, ok := l.Lookup(token.KindToken, corp, "t"); !ok || e.Until.Before(time.Now().Add(24*time.Hour)) {
			t.Errorf("a retention of %d: the token is kept until %v", retention, e.Until)
		}
	}
}

// A file that is as it was written may still be one that nobody can read in full;
// then it says so, and what was read is enforced.
func TestSnapshotBlocks(t *testing.T) {
	const head = `{"made":"2026-01-01T00:00:00Z"}`
	id := token.Identify(token.KindToken, corp, "t")
	until := binary.BigEndian.AppendUint32(nil, uint32(time.Now().Add(time.Hour).Unix()))
	denial := bytes.Join([][]byte{id.Append([]byte{1, 0, 1}), until}, nil)
	cutoff := bytes.Join([][]byte{id.Append([]byte{cutoffKind + 3, 0, 1}), until, binary.BigEndian.AppendUint64(nil, 1790000000), make([]byte, 8), {0}}, nil)
	with := func(kind byte, block []byte) []byte { return append([]byte{kind}, block[1:]...) }
	end := []byte{0, 0, 0}
	tests := []struct {
		name   string
		blocks [][]byte
		want   string // "" if all is well
		total  int
	}{
		{"denials, then cutoffs", [][]byte{denial, cutoff, end}, "", 2},
		{"cutoffs alone", [][]byte{cutoff, end}, "", 1},
		{"cutoffs, then denials", [][]byte{cutoff, denial, end}, "out of order", 1},
		{"without an end", [][]byte{denial}, "read the snapshot", 1},
		{"with something after the end", [][]byte{denial, end, cutoff}, "after its end", 1},
		{"a denial of a subject", [][]byte{with(3, denial), end}, "kind (3)", 0},
		{"a cutoff of a token", [][]byte{with(cutoffKind+1, cutoff), end}, "kind 1", 0},
		{"a kind to come", [][]byte{denial, with(cutoffKind+9, cutoff), end}, "kind (137)", 1},
		{"a block that says too many", [][]byte{append([]byte{1, 255, 255}, denial[3:]...)}, "read the snapshot", 1},
	}
	for _, tt := range tests {
		s, err := OpenSnapshot(write(t, t.TempDir(), seal(snapshotWith(head, tt.blocks...), nil)), nil)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		defer s.Close()
		l := newList(10)
		_, err = s.Restore(l, true)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if _, ok := l.Lookup(token.KindToken, corp, "t"); tt.blocks[0][0] == 1 && !ok {
			t.Errorf("%s: what was read is not enforced", tt.name)
		}
		if tt.name != "a block that says too many" && tt.name != "without an end" && l.Stats().Total != tt.total {
			t.Errorf("%s: %d entries, want %d", tt.name, l.Stats().Total, tt.total)
		}
	}
}

// ownPlace is a footer.
func ownPlace() SnapshotFooter { return SnapshotFooter{Own: &Place{Head{"me", 3, 4}, Hash{9}, ""}} }

func TestSaveSnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	l := newList(10)
	for _, jti := range []string{"a", "b"} {
		add(t, l, `{"jti":"`+jti+`"}`)
		if err := SaveSnapshot(path, l, SnapshotHeader{}, ownPlace); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSnapshot(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := newList(10)
		if _, err := s.Restore(got, true); err != nil {
			t.Fatal(err)
		}
		s.Close()
		same(t, "saved", got, l)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, mode %v; want 0600", err, info.Mode())
	}
	if all, _ := os.ReadDir(filepath.Dir(path)); len(all) != 1 {
		t.Errorf("%d files are left, want 1", len(all))
	}
	if err := SaveSnapshot(filepath.Join(path, "no folder"), l, SnapshotHeader{}, ownPlace); err == nil {
		t.Error("a snapshot is saved where no folder is")
	}
}

// Whatever follows the header of a file whose hash is right: no panic, no more
// entries than fit, and no more memory than the file is long.
func FuzzSnapshot(f *testing.F) {
	text := snapshotText(f, everyKind(f), SnapshotHeader{Places: []Place{{Head{"hub", 1, 2}, Hash{}, ""}}}, nil)
	f.Add([]byte(text[len(snapshotMagic) : len(text)-sha256.Size-1][:4000]))
	f.Add(snapshotWith(`{"made":"2026-01-01T00:00:00Z"}`, []byte{0, 0, 0})[len(snapshotMagic):])
	f.Add(snapshotWith(`{"retention":{"`+corp+`":-9223372036854775808}}`, []byte{1, 255, 255}, bytes.Repeat([]byte{255}, 100))[len(snapshotMagic):])
	f.Add(snapshotWith(`{}`, []byte{cutoffKind + 5, 0, 9}, bytes.Repeat([]byte{255}, 3000))[len(snapshotMagic):])
	path := filepath.Join(f.TempDir(), "snapshot")
	f.Fuzz(func(t *testing.T, rest []byte) {
		file := fmt.Sprint(path, os.Getpid())
		if err := os.WriteFile(file, []byte(seal(append([]byte(snapshotMagic), rest...), nil)), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSnapshot(file, nil)
		if err != nil {
			return
		}
		defer s.Close()
		l := newList(100)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.Restore(l, true)
		runtime.ReadMemStats(&after)
		if total := l.Stats().Total; total > 100 {
			t.Fatalf("%d entries are held, and 100 fit", total)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > uint64(4<<20+100*len(rest)) {
			t.Fatalf("%d bytes took %d bytes of memory", len(rest), took)
		}
	})
}
