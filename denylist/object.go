package denylist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// A cursor walks through one flat JSON object. encoding/json is asked only
// whether the text is JSON at all: its decoder takes the last of two members of
// one name and folds case, which would give a line two readings, and it is four
// times slower, which a file of a million lines turns into a stale feed.
type cursor struct{ rest []byte }

// object starts a walk: it refuses what is not one JSON object in UTF-8.
func object(line []byte) (*cursor, error) {
	if !utf8.Valid(line) {
		return nil, errors.New("not UTF-8")
	}
	if !json.Valid(line) {
		var none json.RawMessage
		return nil, fmt.Errorf("not one JSON object: %w", json.Unmarshal(line, &none))
	}
	c := &cursor{line}
	if c.peek() != '{' {
		return nil, errors.New("not one JSON object")
	}
	c.rest = c.rest[1:]
	return c, nil
}

// peek is the first byte of the next token. As the text is known to be valid,
// commas and colons say nothing that the order of the tokens does not.
func (c *cursor) peek() byte {
	c.rest = bytes.TrimLeft(c.rest, " \t\r\n,:")
	return c.rest[0]
}

// next is the name of the next member, false after the last one.
func (c *cursor) next() (name string, more bool, err error) {
	if c.peek() == '}' {
		return "", false, nil
	}
	name, err = c.text()
	return name, true, err
}

// text reads a string.
func (c *cursor) text() (string, error) {
	if c.peek() != '"' {
		return "", errors.New("must be a string")
	}
	b := c.rest[1:]
	end, escaped := 0, false
	for b[end] != '"' {
		if b[end] == '\\' {
			escaped = true
			end++
		}
		end++
	}
	c.rest = b[end+1:]
	if escaped {
		return unescape(b[:end])
	}
	return string(b[:end]), nil
}

// texts reads an array of strings.
func (c *cursor) texts() ([]string, error) {
	if c.peek() != '[' {
		return nil, errors.New("must be an array of strings")
	}
	c.rest = c.rest[1:]
	var all []string
	for c.peek() != ']' {
		s, err := c.text()
		if err != nil {
			return nil, errors.New("must be an array of strings")
		}
		all = append(all, s)
	}
	c.rest = c.rest[1:]
	return all, nil
}

// number reads a number as it was written.
func (c *cursor) number() (string, error) {
	if b := c.peek(); b != '-' && (b < '0' || b > '9') {
		return "", errors.New("must be a number of seconds, without quotes")
	}
	end := bytes.IndexAny(c.rest, " \t\r\n,}")
	n := string(c.rest[:end])
	c.rest = c.rest[end:]
	return n, nil
}

// unescape resolves the escapes of a valid JSON string (RFC 8259 section 7). Half
// a surrogate pair is refused: other readers make U+FFFD of it, and two values
// would become one.
func unescape(b []byte) (string, error) {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			out = append(out, b[i])
			continue
		}
		i++
		switch b[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := unit(b[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				low := utf8.RuneError
				if bytes.HasPrefix(b[i+1:], []byte(`\u`)) {
					low = unit(b[i+3:])
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					return "", errors.New("contains half a surrogate pair, which is not a character")
				}
				i += 6
			}
			out = utf8.AppendRune(out, r)
		default: // the quote, the backslash and the slash stand for themselves
			out = append(out, b[i])
		}
	}
	return string(out), nil
}

// unit is the code unit that four hexadecimal digits spell.
func unit(b []byte) rune {
	u, _ := strconv.ParseUint(string(b[:4]), 16, 16) // json.Valid has seen the digits
	return rune(u)
}
