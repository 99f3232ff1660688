package token

import (
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"durward/decision"
)

// A Finder reads the credential of a request: a cookie, a bearer token, or both
// if they are the same. The zero Finder finds nothing.
//
// It reads the raw fields. http.Request.Cookie was refused: it takes the first of
// several, accepts "name =", unquotes values and skips what it cannot parse, and
// each of these lets an attacker who can set one cookie choose which one counts.
type Finder struct {
	Cookie string // name of the session cookie, compared byte for byte; "" turns the cookie off
	Bearer bool   // read Authorization: Bearer (RFC 6750 section 2.1); without it the field is ignored
}

// A Credential is the text of the token that a request carries, not yet verified.
type Credential struct {
	Raw    string // the token; "" if the request has none
	Cookie bool   // it came from the cookie alone, so that another site can have caused the request
}

// Find returns the credential of a request with these header fields. A request
// without one gives the zero Credential. The error is AmbiguousCredentials where
// two readers could find different ones, TokenMalformed where it is empty.
func (f Finder) Find(h http.Header) (Credential, *Error) {
	bearer, hasBearer, err := f.bearer(h["Authorization"])
	if err != nil {
		return Credential{}, err
	}
	cookie, hasCookie, err := f.cookie(h["Cookie"])
	if err != nil {
		return Credential{}, err
	}
	switch {
	case hasBearer && bearer == "":
		return Credential{}, &Error{decision.TokenMalformed, "the bearer token is empty"}
	case hasCookie && cookie == "":
		return Credential{}, &Error{decision.TokenMalformed, "the session cookie is empty"}
	case hasBearer && hasCookie && bearer != cookie:
		return Credential{}, ambiguous("the session cookie and the bearer token differ")
	case hasBearer:
		return Credential{Raw: bearer}, nil
	}
	return Credential{Raw: cookie, Cookie: hasCookie}, nil
}

func ambiguous(detail string) *Error { return &Error{decision.AmbiguousCredentials, detail} }

func (f Finder) bearer(fields []string) (raw string, found bool, refused *Error) {
	if !f.Bearer || len(fields) == 0 {
		return "", false, nil
	}
	if len(fields) > 1 {
		return "", false, ambiguous("more than one Authorization field")
	}
	const scheme = "bearer"
	trimmed := strings.TrimLeftFunc(fields[0], noise)
	if len(trimmed) < len(scheme) || !strings.EqualFold(trimmed[:len(scheme)], scheme) {
		return "", false, nil // another scheme is no credential
	}
	rest := trimmed[len(scheme):]
	switch {
	case rest != "" && tokenChar(rest[0]):
		return "", false, nil // a longer name: another scheme
	case len(trimmed) != len(fields[0]):
		return "", false, ambiguous("something stands before the scheme in Authorization")
	case rest != "" && rest[0] != ' ':
		return "", false, ambiguous("the scheme in Authorization is not followed by a space")
	}
	return strings.TrimLeft(rest, " "), true, nil
}

// cookie finds the session cookie. Several Cookie fields count as one, as
// HTTP/2 splits them (RFC 9113 section 8.2.3).
func (f Finder) cookie(fields []string) (raw string, found bool, refused *Error) {
	if f.Cookie == "" {
		return "", false, nil
	}
	quoted := false
	for _, field := range fields {
		for piece := range strings.SplitSeq(field, ";") {
			piece = strings.Trim(piece, " \t")
			name, value, paired := strings.Cut(piece, "=")
			switch {
			case name == f.Cookie && paired:
				if found {
					return "", false, ambiguous("the session cookie stands twice")
				}
				if strings.Contains(value, `"`) {
					return "", false, ambiguous("the session cookie's value holds a quote")
				}
				raw, found = value, true
			case Resembles(piece, f.Cookie):
				return "", false, ambiguous("a cookie is spelled almost like the session cookie")
			case oddQuotes(name, value):
				quoted = true
			}
		}
	}
	// A reader that honours quotes takes x="1; session=evil; y=2" for one cookie.
	if found && quoted {
		return "", false, ambiguous("a quote in another cookie could hide the session cookie")
	}
	return raw, found, nil
}

// Resembles reports whether some reader could take the pair, or a part of it, for
// the named cookie: in another case, with blanks, quotes or controls around the
// name, behind an empty name or without a value; behind a blank or a comma, where
// some see the next cookie; percent-encoded; with a dot for an underscore or as a
// member of an array, as PHP reads names.
func Resembles(piece, name string) bool {
	for piece != "" {
		part := piece
		if i := strings.IndexFunc(piece, apart); i < 0 {
			piece = ""
		} else {
			_, size := utf8.DecodeRuneInString(piece[i:])
			part, piece = piece[:i], piece[i+size:]
		}
		spelled, _, _ := strings.Cut(strings.TrimLeft(part, "="), "=")
		if strings.IndexByte(spelled, '%') >= 0 {
			spelled = strings.TrimFunc(unescaped(spelled), noise)
		}
		spelled, _, _ = strings.Cut(spelled, "[")
		if len(spelled) == len(name) && foldName(spelled) == foldName(name) {
			return true
		}
	}
	return false
}

func apart(r rune) bool { return r == ',' || noise(r) }

// unescaped reads percent-encoding as lenient readers do: what is none stays.
func unescaped(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(n))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

func foldName(s string) string { return strings.ReplaceAll(foldASCII(s), ".", "_") }

// noise is what lenient readers trim: blanks, quotes, controls, and everything
// outside of ASCII, where some see blanks too.
func noise(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\'' }

func foldASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// oddQuotes reports quotes that do not close within the pair, so that a reader who
// honours them sees its end elsewhere. Cookies with JSON in them, which close all
// theirs, are common and harmless.
func oddQuotes(name, value string) bool {
	open := strings.HasPrefix(value, `"`) && (len(value) < 2 || value[len(value)-1] != '"')
	return open || strings.Contains(name, `"`) || strings.Count(value, `"`)%2 != 0
}

// tokenChar is a character of a scheme's name (RFC 9110 section 5.6.2).
func tokenChar(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// StripCookies removes the named cookies from the Cookie fields, in every
// spelling that some reader could take for them. All other bytes stay as they
// are; a field of which nothing is left is deleted. The slice in h is replaced,
// not written to, as a shallow copy of the header may share it.
func StripCookies(h http.Header, names []string) {
	fields := h["Cookie"]
	if len(fields) == 0 {
		return
	}
	left := make([]string, 0, len(fields))
	for _, field := range fields {
		if field = stripCookies(field, names); strings.Trim(field, " \t;") != "" {
			left = append(left, field)
		}
	}
	if len(left) == 0 {
		delete(h, "Cookie")
		return
	}
	h["Cookie"] = left
}

func stripCookies(field string, names []string) string {
	var kept []string
	pieces := strings.Split(field, ";")
	for _, piece := range pieces {
		ours := false
		for _, name := range names {
			ours = ours || name != "" && Resembles(piece, name)
		}
		if !ours {
			kept = append(kept, piece)
		}
	}
	if len(kept) == len(pieces) {
		return field
	}
	return strings.TrimLeft(strings.Join(kept, ";"), " \t")
}
