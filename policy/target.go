package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"
)

// A Path is the one reading of a request's path: what the routes are matched
// against and, byte for byte, what the upstream receives. Only ReadPath makes one.
//
// The canonical form leaves the client's bytes alone but for two things that
// every reader of RFC 3986 agrees on: an escaped unreserved character is written
// plainly (section 6.2.2.2), and a character that may not stand in a path is
// escaped. Everything that two readers could resolve differently is refused, so
// that no upstream can see another path than the policy did.
type Path struct {
	escaped      string
	decoded      string
	encodedSlash bool // a segment contains %2F
	parameters   bool // a segment contains ";"
}

// Escaped is the canonical path as it is sent: always beginning with a slash.
func (p Path) Escaped() string { return p.escaped }

// Decoded is the path with every escape resolved, for logs and for url.URL.
func (p Path) Decoded() string { return p.decoded }

// Under tells whether some reading of the path lies under the prefix, which ends
// in a slash: in another case, with path parameters, with escaped slashes.
func (p Path) Under(prefix string) bool {
	if p.parameters {
		p = p.withoutParameters()
	}
	path := p.decoded + "/"
	return len(path) >= len(prefix) && strings.EqualFold(path[:len(prefix)], prefix)
}

// ReadTarget reads an origin-form request target (RFC 9112 section 3.2.1): the
// path in its one reading, and the query as it came with its question mark, ""
// without one. The query is judged by nothing, so all that is asked of it is that
// it ends where the target does.
func ReadTarget(raw string) (path Path, query string, err error) {
	target, rest, asked := strings.Cut(raw, "?")
	if asked {
		query = raw[len(target):]
	}
	if strings.ContainsFunc(rest, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '#' }) {
		return Path{}, "", errors.New("the query contains a blank, a control character or a fragment")
	}
	if path, err = ReadPath(target); err != nil {
		return Path{}, "", err
	}
	return path, query, nil
}

// ReadPath reads the path of an origin-form request target (RFC 9112 section
// 3.2.1), without its query. An error says what has two readings.
func ReadPath(raw string) (Path, error) {
	if raw == "" || raw[0] != '/' {
		return Path{}, errors.New("the request target is not an absolute path")
	}
	p, err := decodePath(raw)
	if err != nil {
		return Path{}, err
	}
	if !utf8.ValidString(p.decoded) {
		return Path{}, errors.New("the path is not UTF-8")
	}
	if escapeAt(p.decoded) {
		return Path{}, errors.New("the path is escaped twice")
	}
	segments := p.decoded[1:]
	for segments != "" {
		segment, rest, more := strings.Cut(segments, "/")
		name, _, parameters := strings.Cut(segment, ";")
		p.parameters = p.parameters || parameters
		// Servlet containers cut the parameters off before they resolve dots, and
		// Windows ignores dots and blanks at the end of a name.
		if strings.Trim(name, ". ") == "" {
			if segment == "" {
				return Path{}, errors.New("the path has an empty segment")
			}
			return Path{}, fmt.Errorf("the path has the segment %q, which some servers resolve", segment)
		}
		if segments = rest; !more {
			break
		}
	}
	return p, nil
}

// decodePath resolves escapes and writes the canonical spelling. The common
// path, which has nothing to decode or escape, is returned as it came.
func decodePath(raw string) (Path, error) {
	plain := true
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c <= ' ' || c == 0x7f:
			return Path{}, errors.New("the path contains a blank or a control character")
		case c == '\\':
			return Path{}, errors.New("the path contains a backslash")
		case c == '#' || c == '?':
			return Path{}, errors.New("the path contains a fragment or query")
		case c == '%' || c >= utf8.RuneSelf || strings.IndexByte(escapeAlways, c) >= 0:
			plain = false
		}
	}
	if plain {
		return Path{escaped: raw, decoded: raw}, nil
	}
	var p Path
	escaped := make([]byte, 0, len(raw)+16)
	decoded := make([]byte, 0, len(raw))
	parameter := false // a ";" stands in the segment before this place
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c != '%' {
			parameter = c != '/' && (parameter || c == ';')
			decoded = append(decoded, c)
			if c >= utf8.RuneSelf || strings.IndexByte(escapeAlways, c) >= 0 {
				escaped = append(escaped, '%', hexDigits[c>>4], hexDigits[c&15])
			} else {
				escaped = append(escaped, c)
			}
			continue
		}
		if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
			return Path{}, errors.New("the path has a broken escape")
		}
		c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
		switch {
		case c < ' ' || c == 0x7f:
			return Path{}, errors.New("the path contains an escaped control character")
		case c == '\\':
			return Path{}, errors.New("the path contains an escaped backslash")
		case c == '/' && parameter:
			// Whoever cuts parameters off before decoding cuts it off with what follows,
			// and whoever decodes first does not.
			return Path{}, errors.New("the path contains an escaped slash in a parameter")
		case c == '/':
			p.encodedSlash = true
		case c == ';':
			parameter = true
		}
		if isUnreserved(c) {
			escaped = append(escaped, c)
		} else {
			escaped = append(escaped, raw[i:i+3]...)
		}
		decoded = append(decoded, c)
		i += 2
	}
	p.escaped, p.decoded = string(escaped), string(decoded)
	return p, nil
}

// escapeAlways may not stand in a path (RFC 3986 section 3.3), yet clients send
// it; net/url would escape it, so the canonical form does.
const escapeAlways = "\"<>^`{|}"

const hexDigits = "0123456789ABCDEF"

// escapeAt tells whether decoding s once more could change it: "%2e", or the
// "%u002e" of IIS.
func escapeAt(s string) bool {
	for {
		i := strings.IndexByte(s, '%')
		if i < 0 {
			return false
		}
		s = s[i+1:]
		if len(s) >= 2 && isHex(s[0]) && isHex(s[1]) || s != "" && (s[0] == 'u' || s[0] == 'U') {
			return true
		}
	}
}

// withoutParameters is the path as a server reads it that cuts ";…" off each
// segment before it looks for a handler.
func (p Path) withoutParameters() Path {
	cut := func(s string) string {
		segments := strings.Split(s, "/")
		for i, segment := range segments {
			segments[i], _, _ = strings.Cut(segment, ";")
		}
		return strings.Join(segments, "/")
	}
	escaped := strings.ReplaceAll(strings.ReplaceAll(p.escaped, "%3B", ";"), "%3b", ";")
	return Path{escaped: cut(escaped), decoded: cut(p.decoded)}
}

// lower is the path as a server reads it that takes no notice of ASCII case.
func (p Path) lower() Path {
	p.escaped, p.decoded = lowerASCII(p.escaped), lowerASCII(p.decoded)
	return p
}

// folded is the path as a server reads it that takes no notice of the case of any
// letter.
func (p Path) folded() Path {
	p.escaped, p.decoded = foldPath(p.escaped), foldCase(p.decoded)
	return p
}

// foldCase makes letters that differ in case alone the same, as far as one letter
// stands for one, and those beyond ASCII that some take for one of ASCII.
func foldCase(s string) string {
	if isASCII(s) {
		return lowerASCII(s)
	}
	return strings.ToLower(strings.ToUpper(s))
}

// foldPath is foldCase of a path, or a pattern, in which letters may be escaped.
func foldPath(s string) string {
	if isASCII(s) && !strings.Contains(s, "%") {
		return lowerASCII(s)
	}
	segments := strings.Split(lowerASCII(s), "/")
	for i, segment := range segments {
		if text, err := url.PathUnescape(segment); err == nil && !isASCII(text) {
			if segments[i] = foldCase(text); text != segment {
				segments[i] = url.PathEscape(segments[i])
			}
		}
	}
	return strings.Join(segments, "/")
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// trimmed is the path as Windows reads it, which takes no notice of dots and
// blanks at the end of a name either.
func (p Path) trimmed() Path {
	if !strings.Contains(p.decoded, "./") && !strings.Contains(p.decoded, " /") && strings.TrimRight(p.decoded, ". ") == p.decoded {
		return p
	}
	trim := func(s string, ends ...string) string {
		segments := strings.Split(s, "/")
		for i := range segments {
			for again := true; again; {
				again = false
				for _, end := range ends {
					segments[i], again = strings.TrimSuffix(segments[i], end), again || strings.HasSuffix(segments[i], end)
				}
			}
		}
		return strings.Join(segments, "/")
	}
	p.escaped, p.decoded = trim(p.escaped, ".", "%20"), trim(p.decoded, ".", " ")
	return p
}

func lowerASCII(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if 'A' <= b[j] && b[j] <= 'Z' {
					b[j] |= 0x20
				}
			}
			return string(b)
		}
	}
	return s
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// A Host is the one reading of the Host field or :authority pseudo-header. Only
// ReadHost makes one.
type Host struct {
	Name string // lower case, no port, no trailing dot; an IPv6 address without brackets
	Port string // decimal; "" if none was given
}

// String is the host as it stands in a Host field: the name as it was judged,
// and the port, if the client gave one.
func (h Host) String() string {
	name := h.Name
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	if h.Port == "" {
		return name
	}
	return name + ":" + h.Port
}

// ReadHost reads a host name or address with an optional port (RFC 9110 section
// 7.2). An error says why it has no single reading.
func ReadHost(raw string) (Host, error) {
	name, port := raw, ""
	if strings.HasPrefix(raw, "[") {
		inner, rest, ok := strings.Cut(raw[1:], "]")
		addr, err := netip.ParseAddr(inner)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" || rest != "" && rest[0] != ':' {
			return Host{}, errors.New("the host is not an address")
		}
		name, port = addr.String(), strings.TrimPrefix(rest, ":")
		if rest == ":" {
			return Host{}, errors.New("the host has an empty port")
		}
	} else {
		if i := strings.IndexByte(raw, ':'); i >= 0 {
			if name, port = raw[:i], raw[i+1:]; port == "" {
				return Host{}, errors.New("the host has an empty port")
			}
		}
		name = lowerASCII(strings.TrimSuffix(name, "."))
		if err := checkName(name); err != nil {
			return Host{}, err
		}
	}
	if port != "" && !isPort(port) {
		return Host{}, errors.New("the host has a bad port")
	}
	return Host{name, port}, nil
}

func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return errors.New("the host is empty or too long")
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return errors.New("the host has an empty or overlong label")
		}
		for i := 0; i < len(label); i++ {
			if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return errors.New("the host contains a character that no host name has")
			}
		}
		last = label
	}
	// A name that ends in a number is an address or nothing (WHATWG URL, "ends in
	// a number"): 0x7f.1 and 127.1 are read as 127.0.0.1 by some.
	if last[0] >= '0' && last[0] <= '9' {
		if _, err := netip.ParseAddr(name); err != nil {
			return errors.New("the host is a number but not an address")
		}
	}
	return nil
}

func isPort(s string) bool {
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' || len(s) > 5 {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return s[0] != '0' && n <= 65535
}
