package denylist

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxRecord is the longest record, in bytes as it travels.
	MaxRecord = 1 << 20
	// MaxOps is how many revocations one record may hold.
	MaxOps = 1000

	// recordType is the typ of a signed record's header, so that no other token that
	// the same key signed can be taken for one.
	recordType = "durward-revocations"
)

// A Hash is the first half of the SHA-256 of a record as it travels. It links
// each record to the one before.
type Hash [16]byte

func hashOf(raw []byte) Hash {
	sum := sha256.Sum256(raw)
	return Hash(sum[:16])
}

// String is the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// A Head is a place in the chain of a source.
type Head struct {
	Source string `json:"src"` // who wrote it: letters, digits, dot, dash and underscore, at most 64
	Epoch  int64  `json:"e"`   // which of the source's chains; a later one has a higher number
	Number uint64 `json:"n"`   // of the record in the chain, from 1
}

// String is source:epoch:number.
func (h Head) String() string { return fmt.Sprintf("%s:%d:%d", h.Source, h.Epoch, h.Number) }

// ParseHeads reads what FormatHeads writes.
func ParseHeads(s string) ([]Head, error) {
	if s == "" {
		return nil, nil
	}
	var heads []Head
	for part := range strings.SplitSeq(s, ",") {
		fields := strings.Split(part, ":")
		if len(fields) != 3 || !isSource(fields[0]) || len(heads) == maxChains {
			return nil, fmt.Errorf("%.80q is not a list of at most %d source:epoch:number", s, maxChains)
		}
		epoch, err := strconv.ParseInt(fields[1], 10, 64)
		number, err2 := strconv.ParseUint(fields[2], 10, 64)
		if err != nil || err2 != nil || epoch < 0 {
			return nil, fmt.Errorf("%.80q: epoch and number are whole numbers", part)
		}
		heads = append(heads, Head{fields[0], epoch, number})
	}
	return heads, nil
}

// FormatHeads is source:epoch:number, separated by commas.
func FormatHeads(heads []Head) string {
	parts := make([]string, len(heads))
	for i, h := range heads {
		parts[i] = h.String()
	}
	return strings.Join(parts, ",")
}

func isSource(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= 64
}

// A Record is what travels on every feed but the operator's file: some
// revocations, or none, as the next link of its source's chain; or a heartbeat,
// which says where the chain ends. See docs/revocation-feed.md.
type Record struct {
	Head
	// Previous is the hash of the record before, zero for the first of a chain; in a
	// heartbeat, that of the record named by Head itself.
	Previous Hash
	Made     time.Time // by the source's clock, in milliseconds
	// From, in the first record of a chain, is the place in the source's previous
	// chain up to which everything that this chain does not say was said. Zero: this
	// chain says everything itself.
	From Head
	// Ops are revocations, each a line as a file would have it; nil in a heartbeat.
	Ops [][]byte

	Signer string // the id of the key that signed it; "" if nobody's signature was asked for
	Raw    []byte // as it travels
}

// Heartbeat is whether it says where the chain ends and is no link of it.
func (r *Record) Heartbeat() bool { return r.Ops == nil }

// Key is the public key of one who may write records.
type Key struct {
	Name   string // in the configuration
	Public ed25519.PublicKey
	Grant  Grant // the zero value allows everything
}

// Keys are the keys that records must be signed with, by key id. Where there are
// none, records need no signature, and a signature that is there proves nothing
// and is not looked at: the feed's transport is trusted.
type Keys map[string]Key

// NewKeys are these keys.
func NewKeys(keys ...Key) Keys {
	byID := Keys{}
	for _, k := range keys {
		byID[keyID(k.Public)] = k
	}
	return byID
}

// keyID is the key's thumbprint (RFC 7638, with the members that RFC 8037
// requires), by which a signed record names it and which a source is bound to.
func keyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(key) + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Signer is the id of the key as records name it; "" for none.
func Signer(key ed25519.PrivateKey) string {
	if key == nil {
		return ""
	}
	return keyID(key.Public().(ed25519.PublicKey))
}

// encode spells the record out, signed if there is a key.
func (r *Record) encode(key ed25519.PrivateKey) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"src":"%s","e":%d,"n":%d,"p":"%s","t":%d`, r.Source, r.Epoch, r.Number, r.Previous, r.Made.UnixMilli())
	if r.From != (Head{}) {
		fmt.Fprintf(&b, `,"from":"%s"`, r.From)
	}
	if r.Ops != nil {
		b.WriteString(`,"ops":[`)
		b.Write(bytes.Join(r.Ops, []byte(",")))
		b.WriteByte(']')
	}
	b.WriteByte('}')
	return signed(b.Bytes(), recordType, key)
}

// signed is a compact JWS of the payload, or the payload itself without a key.
func signed(payload []byte, typ string, key ed25519.PrivateKey) []byte {
	if key == nil {
		return payload
	}
	header := `{"alg":"EdDSA","typ":"` + typ + `","kid":"` + Signer(key) + `"}`
	text := []byte(base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(payload))
	return append(append(text, '.'), base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, text))...)
}

// ParseRecord reads a record, which is a JSON object or a compact JWS of one
// (RFC 7515 section 7.1, Ed25519 of RFC 8037), and verifies its signature if there
// are keys. It is as strict as [Parse]. The operations are taken apart, not read:
// one that nobody understands does not spoil the others.
func ParseRecord(raw []byte, keys Keys) (*Record, error) {
	if len(raw) > MaxRecord {
		return nil, fmt.Errorf("longer than %d bytes", MaxRecord)
	}
	payload, signer := raw, ""
	if !bytes.HasPrefix(raw, []byte("{")) {
		var err error
		if payload, signer, err = openJWS(raw, recordType, keys); err != nil {
			return nil, err
		}
	} else if len(keys) > 0 {
		return nil, errors.New("not signed, but source_keys are configured")
	}
	r, err := readRecord(payload)
	if err != nil {
		return nil, err
	}
	r.Signer, r.Raw = signer, raw
	return r, nil
}

// openJWS verifies a compact JWS and returns its payload and the id of its key.
func openJWS(raw []byte, typ string, keys Keys) (payload []byte, signer string, err error) {
	parts := bytes.Split(raw, []byte("."))
	if len(parts) != 3 {
		return nil, "", errors.New("neither a JSON object nor a compact JWS")
	}
	var decoded [3][]byte
	for i, part := range parts {
		// Without Strict, and with the line ends that it skips, one signature would
		// have several spellings.
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(string(part)); err != nil || bytes.ContainsAny(part, "\r\n") {
			return nil, "", errors.New("a part of the JWS is not base64url")
		}
	}
	if len(keys) == 0 {
		return decoded[1], "", nil
	}
	c, err := object(decoded[0])
	if err != nil {
		return nil, "", fmt.Errorf("the JWS header is %w", err)
	}
	header, err := c.strings()
	if err != nil {
		return nil, "", fmt.Errorf("the JWS header: %w", err)
	}
	if header["alg"] != "EdDSA" || header["typ"] != typ || len(header) != 3 {
		return nil, "", fmt.Errorf("the JWS header must have alg EdDSA, typ %s and kid, and nothing else", typ)
	}
	key, ok := keys[header["kid"]]
	if !ok {
		return nil, "", fmt.Errorf("signed with a key that is not in source_keys (kid %.64q)", header["kid"])
	}
	if !ed25519.Verify(key.Public, raw[:len(parts[0])+1+len(parts[1])], decoded[2]) {
		return nil, "", fmt.Errorf("the signature is not that of %q", key.Name)
	}
	return decoded[1], header["kid"], nil
}

func readRecord(payload []byte) (*Record, error) {
	c, err := object(payload)
	if err != nil {
		return nil, err
	}
	r := &Record{}
	var seen []string
	for {
		name, more, err := c.next()
		if err != nil {
			return nil, fmt.Errorf("the name of a member %w", err)
		}
		if !more {
			break
		}
		if slices.Contains(seen, name) {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		seen = append(seen, name)
		switch name {
		case "src":
			r.Source, err = c.text()
			if err == nil && !isSource(r.Source) {
				err = errors.New("is not the name of a source: letters, digits, dot, dash and underscore, at most 64")
			}
		case "e":
			var epoch uint64
			epoch, err = c.whole()
			r.Epoch = int64(epoch)
		case "n":
			r.Number, err = c.whole()
		case "p":
			var p string
			if p, err = c.text(); err == nil {
				if n, e := hex.Decode(r.Previous[:], []byte(p[:min(len(p), 32)])); e != nil || n != 16 || p != r.Previous.String() {
					err = errors.New("must be 32 hexadecimal digits, in lower case")
				}
			}
		case "t":
			var t uint64
			if t, err = c.whole(); err == nil && t >= year9999*1000 {
				err = errors.New("is out of range; it must be milliseconds since 1970")
			}
			r.Made = time.UnixMilli(int64(t))
		case "from":
			var from string
			if from, err = c.text(); err == nil {
				heads, e := ParseHeads(from)
				if e != nil || len(heads) != 1 {
					err = errors.New("must be source:epoch:number")
				} else {
					r.From = heads[0]
				}
			}
		case "ops":
			r.Ops, err = c.elements(MaxOps)
		default:
			err = errors.New("is not known")
		}
		if err != nil {
			return nil, fmt.Errorf("%s %w", name, err)
		}
	}
	for _, name := range []string{"src", "e", "n", "p", "t"} {
		if !slices.Contains(seen, name) {
			return nil, fmt.Errorf("%s is missing", name)
		}
	}
	switch {
	case r.Number == 0:
		return nil, errors.New("n is 0; a chain counts from 1")
	case slices.Contains(seen, "from") && (r.Number != 1 || r.Ops == nil):
		return nil, errors.New("from belongs into the first record of a chain")
	case slices.Contains(seen, "from") && r.From.Source != r.Source:
		return nil, errors.New("from must name the same source: a chain goes on where its source's previous one ended")
	case r.Number == 1 && r.Ops != nil && r.Previous != (Hash{}):
		return nil, errors.New("p of the first record of a chain must be zero")
	}
	return r, nil
}

// whole reads a whole number below 2^63.
func (c *cursor) whole() (uint64, error) {
	text, err := c.number()
	if err != nil {
		return 0, errors.New("must be a whole number")
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, errors.New("must be a whole number, not negative")
	}
	return n, nil
}

// elements takes an array apart without looking at what is in it; never nil.
func (c *cursor) elements(most int) ([][]byte, error) {
	if c.peek() != '[' {
		return nil, errors.New("must be an array")
	}
	c.rest = c.rest[1:]
	all := [][]byte{}
	for c.peek() != ']' {
		if len(all) == most {
			return nil, fmt.Errorf("has more than %d elements", most)
		}
		all = append(all, c.skip())
	}
	c.rest = c.rest[1:]
	return all, nil
}

// skip goes past a value of any kind and returns its text.
func (c *cursor) skip() []byte {
	c.peek()
	from := c.rest
	depth, quoted := 0, false
	for i := 0; i < len(from); i++ {
		switch b := from[i]; {
		case quoted:
			if b == '\\' {
				i++
			} else if b == '"' {
				quoted = false
			}
		case b == '"':
			quoted = true
		case b == '{' || b == '[':
			depth++
		case b == '}' || b == ']' || b == ',':
			if b != ',' && depth > 0 {
				depth--
			} else if depth == 0 { // the end of what the value stands in
				c.rest = from[i:]
				return bytes.TrimRight(from[:i], " \t\r\n")
			}
		}
	}
	c.rest = nil // cannot be: the text is valid, and the value stands in something
	return from
}

// strings reads an object whose members are all strings.
func (c *cursor) strings() (map[string]string, error) {
	all := map[string]string{}
	for {
		name, more, err := c.next()
		if err != nil || !more {
			return all, err
		}
		if _, twice := all[name]; twice {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		if all[name], err = c.text(); err != nil {
			return nil, fmt.Errorf("%s %w", name, err)
		}
	}
}

// issuerOf is the iss of a line that could not be read in full, "" if it has none.
func issuerOf(line []byte) string {
	var l struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(line, &l) != nil {
		return ""
	}
	return l.Issuer
}
