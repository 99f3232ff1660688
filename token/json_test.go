package token

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestDecodeObject(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for text, want := range map[string]string{
		`{}`:                                     "",
		` {"a":[1,{"a":2}],"b":{"a":1}} `:        "",
		`{"a":"\ud83d\ude00é😀"}`:                 "",
		`{"a":1e308,"A":1}`:                      "",
		deep(16):                                 "",
		deep(17):                                 "nested deeper than 16",
		deep(100000):                             "not one JSON value",
		``:                                       "not one JSON value",
		`null`:                                   "not a JSON object",
		`[]`:                                     "not a JSON object",
		`{"a":1}{}`:                              "not one JSON value",
		`{"a":1} x`:                              "not one JSON value",
		`{"a":1,}`:                               "not one JSON value",
		"\ufeff{}":                               "not one JSON value",
		`{"a":1,"a":1}`:                          `duplicate member "a"`,
		`{"a":1,"\u0061":2}`:                     `duplicate member "a"`,
		`{"x":[{"b":{"a":1,"a":2}}]}`:            `duplicate member "a"`,
		`{"a":{"b":1},"a":{"b":1,"c":2}}`:        `duplicate member "a"`,
		`{"a":{"":5,"":5,"b":5}}`:                `duplicate member ""`,
		`{"a":[{"":1,"a":2}],"":3}`:              "",
		`{"a:":":\\\":{","b":[{"a":1},{"a":1}]}`: "",
		"{\"a\":\"\xff\"}":                       "not valid UTF-8",
		"{\"a\":\"\xed\xa0\x80\"}":               "not valid UTF-8",
		`{"a":"\ud800"}`:                         "a string holds half of a surrogate pair",
		`{"a":"\ude00\ud83d"}`:                   "a string holds half of a surrogate pair",
		`{"a":"\ud83dx\ude00"}`:                  "a string holds half of a surrogate pair",
		`{"a":"\ud83d\n"}`:                       "a string holds half of a surrogate pair",
		`{"a":"\\ud800"}`:                        "",
		`{"\udFFF":1}`:                           "a string holds half of a surrogate pair",
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
	for _, seed := range []string{`{}`, `{"a":[1,2.5,"x",null,true,{"b":"\ud83d\ude00"}]}`, `{"a":1,"a":2}`, `{"\u0061":1,"a":2}`, `{"a":{"":5,"":5,"b":5}}`, `{"a":"\ud800"}`, `[{}]`, `{"a":1}x`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := decodeObject(text)
		if !utf8.Valid(text) || !json.Valid(text) || loneSurrogate(text) {
			if err == nil {
				t.Fatalf("%q is accepted", text)
			}
			return
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		value, ok := byToken(d, 1)
		if object, is := value.(map[string]any); ok && is != (err == nil) || !ok && err == nil || is && ok && !reflect.DeepEqual(got, object) {
			t.Fatalf("%q: got %v, %v; token by token %v, %v", text, got, err, value, ok)
		}
	})
}

// byToken is the next value if no object in it has a name twice and nothing nests
// deeper than maxDepth.
func byToken(d *json.Decoder, depth int) (any, bool) {
	t, err := d.Token()
	delim, nested := t.(json.Delim)
	if err != nil || !nested {
		return t, err == nil
	}
	array, object, good := []any{}, map[string]any{}, depth <= maxDepth
	for d.More() {
		name := ""
		if delim == '{' {
			t, _ := d.Token()
			name = t.(string)
		}
		v, ok := byToken(d, depth+1)
		_, twice := object[name]
		good = good && ok && !twice
		array = append(array, v)
		if delim == '{' {
			object[name] = v
		}
	}
	d.Token()
	if delim == '{' {
		return object, good
	}
	return array, good
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
