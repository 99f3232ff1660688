package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxDepth is how deep arrays and objects may nest, the outermost object included.
const maxDepth = 16

// decodeObject decodes one JSON object and accepts nothing that two readers
// could read in two ways: no duplicate names at any depth (encoding/json lets the
// last one win, others the first), no second value behind the object, no invalid
// UTF-8 and no lone surrogates (which encoding/json turns into U+FFFD, so that
// two different names would become one). Numbers stay json.Number: a float64
// would silently round them.
//
// The result has exact-case names. Decoding into a struct was refused: it matches
// names by Unicode case folding, so that "Scope" and even "ſcope" override "scope".
func decodeObject(data []byte) (map[string]any, error) {
	switch {
	case !utf8.Valid(data):
		return nil, errors.New("not valid UTF-8")
	case !json.Valid(data): // also refuses anything behind the first value
		return nil, errors.New("not one JSON value")
	case loneSurrogate(data):
		return nil, errors.New("a string holds half of a surrogate pair")
	}
	members, depth := survey(data)
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if count(v) != members {
		name, _ := twice(json.NewDecoder(bytes.NewReader(data)))
		return nil, fmt.Errorf("duplicate member %q", clip(name))
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return object, nil
}

// survey counts the members of all objects in valid JSON, each of which has one colon
// outside of strings, and how deep arrays and objects nest. What encoding/json then
// decodes at once has fewer members if a name is there twice: to ask its decoder for
// one token after the other, which shows the second, takes three times as long and
// most of the memory that a new token needs.
func survey(data []byte) (members, depth int) {
	open := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case ':':
			members++
		case '{', '[':
			open++
			depth = max(depth, open)
		case '}', ']':
			open--
		case '"':
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		}
	}
	return members, depth
}

// count counts the members of all objects in what was decoded.
func count(v any) (members int) {
	switch v := v.(type) {
	case map[string]any:
		members = len(v)
		for _, v := range v {
			members += count(v)
		}
	case []any:
		for _, v := range v {
			members += count(v)
		}
	}
	return members
}

// twice finds the first name that an object in the next value has twice; the value is
// valid JSON. Once it is found, the decoder stands behind it and is of no more use.
func twice(d *json.Decoder) (name string, found bool) {
	t, _ := d.Token()
	if t != json.Delim('{') && t != json.Delim('[') {
		return "", false
	}
	names := map[string]bool{}
	for d.More() {
		if t == json.Delim('{') {
			t, _ := d.Token()
			name, _ := t.(string)
			if names[name] {
				return name, true
			}
			names[name] = true
		}
		if name, found := twice(d); found {
			return name, true
		}
	}
	d.Token()
	return "", false
}

// loneSurrogate reports a \u escape of one half of a surrogate pair without the
// other (RFC 8259 section 8.2). The data is valid JSON, so a backslash stands
// only in strings and a \u has its four digits.
func loneSurrogate(data []byte) bool {
	for {
		at := bytes.IndexByte(data, '\\')
		if at < 0 {
			return false
		}
		data = data[at:]
		if data[1] != 'u' {
			data = data[2:]
			continue
		}
		switch unit := hex4(data[2:6]); {
		case 0xDC00 <= unit && unit <= 0xDFFF:
			return true
		case 0xD800 <= unit && unit <= 0xDBFF:
			if len(data) < 12 || data[6] != '\\' || data[7] != 'u' {
				return true
			}
			if low := hex4(data[8:12]); low < 0xDC00 || low > 0xDFFF {
				return true
			}
			data = data[12:]
		default:
			data = data[6:]
		}
	}
}

func hex4(digits []byte) (n int) {
	for _, c := range digits {
		switch {
		case c <= '9':
			n = n<<4 | int(c-'0')
		default:
			n = n<<4 | int(c|0x20-'a'+10)
		}
	}
	return n
}

// decodeSegment decodes one segment of a compact JWS (RFC 7515 section 2):
// base64url without padding. Strict refuses bits left over in the last character,
// which would give one token many spellings; the alphabet is checked besides,
// because encoding/base64 skips CR and LF even so.
func decodeSegment(s string) ([]byte, error) {
	if s == "" {
		return nil, errors.New("empty")
	}
	for i := range len(s) {
		c := s[i]
		if c|0x20 < 'a' || c|0x20 > 'z' {
			if (c < '0' || c > '9') && c != '-' && c != '_' {
				return nil, fmt.Errorf("%q at byte %d is not base64url", c, i)
			}
		}
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("not canonical base64url")
	}
	return b, nil
}
