package denylist

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"durward/token"
)

const zeroHash = "00000000000000000000000000000000"

func TestParseRecord(t *testing.T) {
	const start = `{"src":"hub","e":7,"n":1,"p":"` + zeroHash + `","t":1790000000123`
	hub := Head{"hub", 7, 1}
	made := time.UnixMilli(1790000000123)
	tests := []struct {
		text string
		want Record
	}{
		{start + `}`, Record{Head: hub, Made: made}},
		{start + `,"ops":[]}`, Record{Head: hub, Made: made, Ops: [][]byte{}}},
		{start + `,"ops":[{"jti":"a"} ,` + "\n" + ` {"sid":"]},{\"","x":[1,{}]},7,"s",null]}`, Record{Head: hub, Made: made,
			Ops: [][]byte{[]byte(`{"jti":"a"}`), []byte(`{"sid":"]},{\"","x":[1,{}]}`), []byte(`7`), []byte(`"s"`), []byte(`null`)}}},
		{start + `,"from":"hub:6:12","ops":[]}`, Record{Head: hub, Made: made, From: Head{"hub", 6, 12}, Ops: [][]byte{}}},
		{` { "t" : 0 , "p" : "000102030405060708090a0b0c0d0e0f" , "n" : 9223372036854775807 , "e" : 9223372036854775807 , "src" : "A.b-C_9" } `[1:],
			Record{Head: Head{"A.b-C_9", 9223372036854775807, 9223372036854775807}, Previous: Hash{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, Made: time.UnixMilli(0)}},
	}
	for _, tt := range tests {
		got, err := ParseRecord([]byte(tt.text), nil)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		tt.want.Raw = []byte(tt.text)
		if !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.text, *got, tt.want)
		}
		if got.Heartbeat() != !strings.Contains(tt.text, "ops") {
			t.Errorf("%s: heartbeat is %t", tt.text, got.Heartbeat())
		}
	}
	long := start + `,"ops":["` + strings.Repeat("x", MaxRecord-len(start)-len(`,"ops":[""]}`)) + `"]}`
	if _, err := ParseRecord([]byte(long), nil); err != nil || len(long) != MaxRecord {
		t.Errorf("a record of %d bytes: %v", len(long), err)
	}
	many := start + `,"ops":[1` + strings.Repeat(",1", MaxOps-1) + `]}`
	if r, err := ParseRecord([]byte(many), nil); err != nil || len(r.Ops) != MaxOps {
		t.Errorf("a record of %d operations: %v", MaxOps, err)
	}
}

func TestParseRecordRefuses(t *testing.T) {
	const start = `{"src":"hub","e":7,"n":2,"p":"` + zeroHash + `","t":1790000000123`
	member := func(name, value string) string {
		all := map[string]string{"src": `"hub"`, "e": "7", "n": "2", "p": `"` + zeroHash + `"`, "t": "1790000000123"}
		all[name] = value
		text := "{"
		for _, n := range []string{"src", "e", "n", "p", "t"} {
			if all[n] != "" {
				text += `"` + n + `":` + all[n] + ","
			}
		}
		return strings.TrimSuffix(text, ",") + "}"
	}
	tests := []struct{ text, want string }{
		{`{`, "not one JSON object"},
		{`{}`, "src is missing"},
		{start, "not one JSON object"},
		{start + `}{}`, "not one JSON object"},
		{start + `,"ops":[}`, "not one JSON object"},
		{start + "\xff}", "not UTF-8"},
		{start + `,"x":1}`, "x is not known"},
		{start + `,"OPS":[]}`, "OPS is not known"},
		{start + `,"ops":[],"ops":[]}`, "ops is given twice"},
		{start + `,"\u006e":3}`, "n is given twice"},
		{start + `,"ops":{}}`, "ops must be an array"},
		{start + `,"ops":null}`, "ops must be an array"},
		{start + `,"ops":[1` + strings.Repeat(",1", MaxOps) + `]}`, "ops has more than 1000 elements"},
		{start + `,"from":"hub:6:1","ops":[]}`, "from belongs into the first record"},
		{strings.Replace(start, `"n":2`, `"n":1`, 1) + `,"from":"hub:6:1"}`, "from belongs into the first record"},
		{strings.Replace(start, `"n":2`, `"n":1`, 1) + `,"from":"hub:6","ops":[]}`, "from must be source:epoch:number"},
		{strings.Replace(start, `"n":2`, `"n":1`, 1) + `,"from":"","ops":[]}`, "from must be source:epoch:number"},
		{strings.Replace(start, `"n":2`, `"n":1`, 1) + `,"from":"other:6:1","ops":[]}`, "from must name the same source"},
		{strings.Replace(strings.Replace(start, `"n":2`, `"n":1`, 1), zeroHash, strings.Repeat("1", 32), 1) + `,"ops":[]}`, "p of the first record of a chain must be zero"},
		{member("src", ""), "src is missing"},
		{member("e", ""), "e is missing"},
		{member("n", ""), "n is missing"},
		{member("p", ""), "p is missing"},
		{member("t", ""), "t is missing"},
		{member("src", `""`), "src is not the name of a source"},
		{member("src", `"a:b"`), "src is not the name of a source"},
		{member("src", `"a b"`), "src is not the name of a source"},
		{member("src", `"é"`), "src is not the name of a source"},
		{member("src", `"`+strings.Repeat("a", 65)+`"`), "src is not the name of a source"},
		{member("src", `7`), "src must be a string"},
		{member("e", `-1`), "e must be a whole number, not negative"},
		{member("e", `9223372036854775808`), "e must be a whole number"},
		{member("n", `0`), "n is 0"},
		{member("n", `1.5`), "n must be a whole number"},
		{member("n", `1e3`), "n must be a whole number"},
		{member("n", `"1"`), "n must be a whole number"},
		{member("p", `"`+strings.Repeat("0", 31)+`"`), "p must be 32 hexadecimal digits"},
		{member("p", `"`+strings.Repeat("0", 33)+`"`), "p must be 32 hexadecimal digits"},
		{member("p", `"`+strings.Repeat("A", 32)+`"`), "p must be 32 hexadecimal digits, in lower case"},
		{member("p", `null`), "p must be a string"},
		{member("t", `253370764800000`), "t is out of range"},
		{strings.Repeat(" ", MaxRecord) + start + `}`, "longer than 1048576 bytes"},
		{`[]`, "neither a JSON object nor a compact JWS"},
		{` ` + start + `}`, "neither a JSON object nor a compact JWS"},
		{`a.b.c`, "not base64url"},
	}
	for _, tt := range tests {
		r, err := ParseRecord([]byte(tt.text), nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) || r != nil {
			t.Errorf("%.200s: %+v, %v; want an error with %q", tt.text, r, err, tt.want)
		}
	}
}

func TestHeads(t *testing.T) {
	for _, text := range []string{"", "hub:1:2", "A.b-C_9:0:0,hub:9223372036854775807:18446744073709551615"} {
		heads, err := ParseHeads(text)
		if err != nil || FormatHeads(heads) != text {
			t.Errorf("%q: %v, %v", text, heads, err)
		}
	}
	var most []string
	for i := range maxChains {
		most = append(most, fmt.Sprintf("s%d:1:1", i))
	}
	if heads, err := ParseHeads(strings.Join(most, ",")); err != nil || len(heads) != maxChains {
		t.Errorf("%d heads: %v", maxChains, err)
	}
	for _, text := range []string{",", "hub", "hub:1", "hub:1:2:3", ":1:2", "hub:-1:2", "hub:+1:2x", "hub:1:-2", "hub:1.0:2", "hub:1:2,", "h b:1:2", "hub:9223372036854775808:1",
		strings.Join(append(most, "one:1:1"), ",")} {
		if heads, err := ParseHeads(text); err == nil {
			t.Errorf("%.60q is read as %v", text, heads)
		}
	}
}

// No input makes ParseRecord panic; what it takes unsigned says the same when it is
// spelled out again; and what is signed says what was signed or is refused, whichever
// of its bits is flipped.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"src":"hub","e":7,"n":1,"p":"`+zeroHash+`","t":1790000000123,"from":"hub:6:12","ops":[{"jti":"a"},{"x":["]",{}]}, 7]}`), uint(0))
	f.Add([]byte(`{"src":"hub","e":7,"n":3,"p":"`+strings.Repeat("0f", 16)+`","t":1790000000123}`), uint(9))
	f.Add([]byte(`{"src":"h\u0075b","e":7,"n":3,"p":"`+strings.Repeat("0f", 16)+`","t":0,"ops":[ ]}`), uint(1000))
	f.Fuzz(func(t *testing.T, raw []byte, bit uint) {
		if _, err := ParseRecord(raw, public(1)); err == nil {
			t.Fatalf("%q counts as signed", raw)
		}
		r, err := ParseRecord(raw, nil)
		if err != nil {
			if r != nil {
				t.Fatalf("%q: an error and a record", raw)
			}
			return
		}
		again, err := ParseRecord(r.encode(nil), nil)
		if err != nil {
			t.Fatalf("%q is spelled %q: %v", raw, r.encode(nil), err)
		}
		same := func(o *Record) bool {
			return o.Head == r.Head && o.Previous == r.Previous && o.Made.Equal(r.Made) && o.From == r.From &&
				o.Heartbeat() == r.Heartbeat() && slices.EqualFunc(o.Ops, r.Ops, bytes.Equal)
		}
		if !same(again) {
			t.Fatalf("%q:\n is %+v\nthen %+v", raw, r, again)
		}
		signed := r.encode(key(1))
		verified, err := ParseRecord(signed, public(2, 1))
		if len(signed) > MaxRecord {
			if err == nil {
				t.Fatalf("%d bytes are taken", len(signed))
			}
			return
		}
		if err != nil || !same(verified) || verified.Signer != Signer(key(1)) {
			t.Fatalf("%q, signed: %v, %+v", raw, err, verified)
		}
		bit %= uint(8 * len(signed))
		signed[bit/8] ^= 1 << (bit % 8)
		if r, err := ParseRecord(signed, public(2, 1)); err == nil {
			t.Fatalf("bit %d of %q is flipped, and it says %+v", bit, signed, r)
		}
	})
}

// example is a fenced block of the document, by its language.
func example(t testing.TB, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/revocation-feed.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, ok := strings.Cut(string(text), "\n```"+language+"\n")
	block, _, ended := strings.Cut(block, "\n```\n")
	if !ok || !ended {
		t.Fatalf("the document has no block %q", language)
	}
	return strings.Split(block, "\n")
}

// What docs/revocation-feed.md shows is what this package writes and takes.
func TestDocument(t *testing.T) {
	now := time.UnixMilli(1790000002000)
	records := example(t, "records")
	r := newReader(t, FollowerConfig{Mass: true})
	for _, line := range records {
		r.take("the example", now, nil, []byte(line))
		rec, err := ParseRecord([]byte(line), nil)
		if err != nil || string(rec.encode(nil)) != line {
			t.Errorf("%s: %v; it is spelled %s", line, err, rec.encode(nil))
		}
	}
	r.counted("the example", map[Event]uint64{Applied: 2})
	r.holds("the example", "B70BA622")
	r.state("the example", now, Live)

	signed := example(t, "signed")
	one, err := ParseRecord([]byte(signed[0]), public(1))
	if err != nil || string(one.encode(nil)) != records[0] || string(one.encode(key(1))) != signed[0] || hashOf(one.Raw).String() != signed[1] {
		t.Errorf("the signed record: %v, %+v", err, one)
	}

	file, err := hex.DecodeString(strings.Join(example(t, "snapshot"), ""))
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenSnapshot(write(t, t.TempDir(), string(file)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l := New(10)
	l.SetIssuers(Issuers{{URL: corp, MaxLifetime: 24 * time.Hour, Leeway: 30 * time.Second, Skew: 2 * time.Second}})
	if _, err := s.Restore(l, true); err != nil {
		t.Fatal(err)
	}
	if e, ok := l.Lookup(token.KindToken, corp, "B70BA622"); !ok || e.Until.Unix() != 4102444800 {
		t.Errorf("the snapshot: %t, until %v", ok, e.Until)
	}
	if !slices.Equal(s.Places, r.Places()) {
		t.Errorf("the snapshot is at %v, and the records end at %v", s.Places, r.Places())
	}
	again := snapshotText(t, l, SnapshotHeader{Made: s.Made, Places: s.Places}, nil)
	if again != string(file) {
		t.Errorf("the snapshot is written as %x", again)
	}
}
