package token

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeObject(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for text, want := range map[string]string{
		`{}`:                              "",
		` {"a":[1,{"a":2}],"b":{"a":1}} `: "",
		`{"a":"\ud83d\ude00é😀"}`:          "",
		`{"a":1e308,"A":1}`:               "",
		deep(16):                          "",
		deep(17):                          "nested deeper than 16",
		deep(100000):                      "not one JSON value",
		``:                                "not one JSON value",
		`null`:                            "not a JSON object",
		`[]`:                              "not a JSON object",
		`{"a":1}{}`:                       "not one JSON value",
		`{"a":1} x`:                       "not one JSON value",
		`{"a":1,}`:                        "not one JSON value",
		"\ufeff{}":                        "not one JSON value",
		`{"a":1,"a":1}`:                   `duplicate member "a"`,
		`{"a":1,"\u0061":2}`:              `duplicate member "a"`,
		`{"x":[{"b":{"a":1,"a":2}}]}`:     `duplicate member "a"`,
		"{\"a\":\"\xff\"}":                "not valid UTF-8",
		"{\"a\":\"\xed\xa0\x80\"}":        "not valid UTF-8",
		`{"a":"\ud800"}`:                  "a string holds half of a surrogate pair",
		`{"a":"\ude00\ud83d"}`:            "a string holds half of a surrogate pair",
		`{"a":"\ud83dx\ude00"}`:           "a string holds half of a surrogate pair",
		`{"a":"\ud83d\n"}`:                "a string holds half of a surrogate pair",
		`{"a":"\\ud800"}`:                 "",
		`{"\udFFF":1}`:                    "a string holds half of a surrogate pair",
	} {
		object, err := decodeObject([]byte(text))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want || (object == nil) != (err != nil) {
			t.Errorf("%.60q: got %v, %q, want %q", text, object, got, want)
		}
	}
}

func FuzzJSON(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":[1,2.5,"x",null,true,{"b":"\ud83d\ude00"}]}`, `{"a":1,"a":2}`, `{"\u0061":1,"a":2}`, `{"a":"\ud800"}`, `[{}]`, `{"a":1}x`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := decodeObject(text)
		if err != nil {
			return
		}
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil {
			t.Fatalf("%q: encoding/json refuses it: %v", text, err)
		}
		if !reflect.DeepEqual(got, want) { // with a duplicate, one of them would have lost a member
			t.Fatalf("%q: got %v, encoding/json %v", text, got, want)
		}
		if members := countMembers(string(text)); members != size(got) {
			t.Fatalf("%q: %d members in the text, %d decoded", text, members, size(got))
		}
	})
}

// countMembers counts the colons outside of strings: one for each member.
func countMembers(text string) (n int) {
	inside := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inside && c == '\\':
			i++
		case c == '"':
			inside = !inside
		case c == ':' && !inside:
			n++
		}
	}
	return n
}

func size(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		for _, member := range v {
			n += 1 + size(member)
		}
	case []any:
		for _, member := range v {
			n += size(member)
		}
	}
	return n
}

func TestDecodeSegment(t *testing.T) {
	for text, ok := range map[string]bool{
		"": false, "AA": true, "AAA": true, "AAAA": true, "A": false, "AB": false, // slack bits
		"AA==": false, "A A": false, "AA\n": false, "AA\r\n": false, "A+AA": false, "A/AA": false, "-_-_": true, "AA\x00": false, "é": false,
	} {
		if b, err := decodeSegment(text); (err == nil) != ok {
			t.Errorf("%q: got %x, %v", text, b, err)
		} else if ok && segment(b) != text {
			t.Errorf("%q: encodes to %q again", text, segment(b))
		}
	}
}
