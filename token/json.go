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
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := decodeValue(d, 1)
	if err != nil {
		return nil, err
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return object, nil
}

func decodeValue(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, nested := t.(json.Delim)
	if !nested {
		return t, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	if delim == '[' {
		array := []any{}
		for d.More() {
			v, err := decodeValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			array = append(array, v)
		}
		_, err = d.Token()
		return array, err
	}
	object := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("a member name is %v, not a string", t)
		}
		if _, twice := object[name]; twice {
			return nil, fmt.Errorf("duplicate member %q", clip(name))
		}
		if object[name], err = decodeValue(d, depth+1); err != nil {
			return nil, err
		}
	}
	_, err = d.Token()
	return object, err
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
