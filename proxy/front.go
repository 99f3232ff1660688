package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"durward/decision"
)

// A Front reads HTTP/1 framing before net/http does, on every connection of the
// public listeners, and strictly: a handler comes too late for it. By then a
// Content-Length beside Transfer-Encoding is gone, HTTP/1.0 has lost its chunked
// body, folded lines are joined, LF has become CRLF, a hundred thousand fields are
// parsed; and whoever is in front of the gateway may have read all that in another
// way, and take the end of one request for the beginning of the next.
//
//	request line ──► fields ──► body, or chunks and trailers ──► request line …
//	  passes as       held until complete and judged,     passes as it comes;
//	  it comes        then pass, or are replaced          chunk heads are judged
//
// The front never answers. It replaces the fields of a request that is not to be
// by one that says why (FrontField), and lets nothing more pass; so the refusal
// has its place behind the answers to earlier requests, a record, a reason and a
// request id like any other. In the middle of a body it puts something that no
// server takes for a chunk, which ends the request.
//
// What net/http and the handler refuse reliably is left to them: names, values,
// targets, methods, versions, hosts.
type Front struct {
	// Limits are those in force; asked once for each request.
	Limits func() Limits
	// Proxies are those in force; asked once for each connection of HTTP/2.
	Proxies func() TrustedProxies
	// Log is told of TLS handshakes that fail, at level debug.
	Log *slog.Logger

	paced atomic.Uint64
}

// Paced counts how often a client of HTTP/2 was made to wait because it sends more
// frames than it has use for.
func (f *Front) Paced() uint64 { return f.paced.Load() }

// FrontField is what the front writes in place of what it refuses, and nobody
// else may. A request with it was not read as it was sent.
const FrontField = "Durward-Front"

// pace is that of a connection on which so many bytes come before its frames.
func (f *Front) pace(conn net.Conn, preface int) *pace {
	if _, trusted := f.Proxies().other(conn.RemoteAddr().String()); trusted {
		return newPace(proxyPerSecond, preface)
	}
	return newPace(perSecond, preface)
}

// ConnState follows what net/http does with a connection; the server's ConnState
// must call it. Only then is it known whether what comes behind a request is another
// one.
func (f *Front) ConnState(conn net.Conn, state http.ConnState) {
	c, ok := conn.(*strict)
	if s, secure := conn.(*secured); secure {
		c, ok = &s.strict, true
	}
	switch {
	case !ok: // of another listener
	case state == http.StateActive: // it has read a header, and begins to watch the connection
		c.quiet = c.bare && c.at == undecided
	case state == http.StateIdle:
		c.resume()
	case state == http.StateHijacked:
		c.release()
	}
}

// A place is what the next byte of a connection belongs to.
type place uint8

const (
	inRequestLine place = iota
	inPreface           // of HTTP/2, behind its request line
	inFields
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailers
	undecided // behind a request that is being answered
	beyond    // HTTP/1: another protocol has begun
	ended     // nothing more passes
	over      // nor is anything waited for any more
)

// A strict connection lets pass what has one reading. As net/http's connections
// are, it is read by one goroutine at a time.
type strict struct {
	net.Conn
	front *Front
	under *tls.ConnectionState // the TLS below HTTP/2
	pace  *pace                // of HTTP/2

	quiet   bool   // net/http is not let read: a bare request is being answered
	watcher *watch // who reads meanwhile; nil until there was a request to watch
	crowded bool   // see crowd

	// What was read ahead: buf[:pass] may pass, the rest is not complete, and its
	// first seen bytes are judged. Most requests need no buffer: they are judged
	// where net/http reads them to.
	buf  []byte
	pass int
	seen int

	at    place
	later bool     // a request was read before
	blank bool     // an empty line was let pass before this request line
	cr    bool     // the request line begins with CR
	tail  [10]byte // the end of the request line so far

	// Of the request, or of its trailers.
	most    struct{ bytes, fields int } // twice the limits: the handler refuses what is a little over them, and knows how
	size    int
	fields  int
	chunked bool
	upgrade bool  // it asks for another protocol
	bare    bool  // it has no body either: nothing but an answer comes of it
	length  int64 // Content-Length; -1: none
	left    int64 // of the body or chunk
}

// NetConn is the connection below; how it is closed is decided there.
func (c *strict) NetConn() net.Conn { return c.Conn }

// CloseWrite lets the server close gently: the client reads the answer before it
// hears that nobody listens any more.
func (c *strict) CloseWrite() error {
	if conn, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return conn.CloseWrite()
	}
	return nil
}

func (c *strict) Read(p []byte) (int, error) {
	if c.quiet && len(p) == 1 {
		return 0, nil // so little reads who waits for the client to go: net/http
	}
	n, err := c.read(p)
	if c.pace != nil {
		if wait := c.pace.received(p[:n]); wait > 0 {
			c.front.paced.Add(1)
			time.Sleep(wait)
		}
	}
	return n, err
}

// SetReadDeadline does nothing while net/http is not let read. It sets another deadline
// before it reads on.
func (c *strict) SetReadDeadline(t time.Time) error {
	if c.quiet {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *strict) Write(p []byte) (int, error) {
	if c.pace != nil {
		c.pace.sent(p)
	}
	if !c.crowded {
		return c.Conn.Write(p)
	}
	runtime.Gosched()
	n, err := c.Conn.Write(p)
	runtime.Gosched() // the others write before this one goes to read
	return n, err
}

func (c *strict) read(p []byte) (int, error) {
	for {
		if c.pass > 0 {
			n := copy(p, c.buf[:c.pass])
			c.buf, c.pass = c.buf[n:], c.pass-n
			if len(c.buf) == 0 {
				c.buf = nil
			}
			return n, nil
		}
		if c.at == over {
			return 0, io.EOF
		}
		if c.at == ended {
			// The end of the stream would look like a client that went away, and end an
			// earlier request that is still being answered.
			if _, err := c.Conn.Read(p); err != nil {
				return 0, err
			}
			continue
		}
		if len(c.buf) > 0 {
			n, err := c.Conn.Read(c.room())
			if n == 0 {
				return 0, err
			}
			c.buf = c.buf[:len(c.buf)+n]
			c.judgeHeld()
			continue
		}
		n, err := c.Conn.Read(p)
		if n == 0 || c.at == beyond {
			return n, err
		}
		pass, refusal := c.judge(p[:n])
		switch {
		case refusal != "":
			c.hold([]byte(refusal))
			c.pass = len(refusal)
		case pass < n:
			c.hold(p[pass:n])
		}
		if pass > 0 {
			return pass, nil // an error beside bytes comes again
		}
	}
}

// judgeHeld goes on with what is held.
func (c *strict) judgeHeld() {
	pass, refusal := c.judge(c.buf)
	if c.pass = pass; refusal != "" {
		c.buf = append(c.buf[:pass], refusal...)
		c.pass = len(c.buf)
	}
}

// hold keeps a copy of what may not pass yet.
func (c *strict) hold(b []byte) {
	c.buf = append(make([]byte, 0, max(1<<10, len(b)*2)), b...)
}

// room is where to read on behind what is held.
func (c *strict) room() []byte {
	if len(c.buf) == cap(c.buf) {
		c.buf = append(c.buf, 0)[:len(c.buf)]
	}
	return c.buf[len(c.buf):cap(c.buf)]
}

// resume says that the server has answered and expects another request.
func (c *strict) resume() {
	c.quiet = false
	switch {
	case c.at == undecided:
		c.at, c.seen = inRequestLine, 0
		c.judgeHeld()
	case c.at == ended && len(c.buf) > c.pass:
		c.at = over // what is held was too much, and there is no request to refuse
	}
}

// release says that the connection speaks another protocol from now on.
func (c *strict) release() {
	c.quiet, c.crowded = false, false
	c.at, c.pass = beyond, len(c.buf)
}

// judge looks at bytes of which the first c.seen were judged, and tells how many
// may pass, and what is to follow them in place of the rest; "" for nothing.
func (c *strict) judge(b []byte) (pass int, refusal string) {
	i := c.seen
	for i < len(b) {
		why := ""
		reason := decision.AmbiguousRequest
		switch c.at {
		case inRequestLine:
			end := bytes.IndexByte(b[i:], '\n') + 1
			whole := end > 0
			if !whole {
				end = len(b) - i
			}
			if c.tail[9] == 0 {
				c.cr = b[i] == '\r'
			}
			c.noteTail(b[i : i+end])
			i += end
			pass = i
			if !whole {
				continue
			}
			if why = c.endRequestLine(); why != "" {
				c.at = ended
				return pass - 1, "\r\n" + instead(reason, why) // in place of that LF
			}
		case inPreface:
			rest := prefaceRest[len("\r\n"):]
			if n := min(len(b)-i, len(rest)); string(b[i:i+n]) != rest[:n] {
				why = "HTTP/2 without its preface"
			} else if n < len(rest) {
				c.seen = 0
				return i, ""
			} else {
				c.at, c.pace = beyond, c.front.pace(c.Conn, i+len(rest)) // nothing of b was read yet
			}
		case inFields, inTrailers:
			end := bytes.IndexByte(b[i:], '\n') + 1
			c.size += end
			switch {
			case c.size > c.most.bytes || end == 0 && c.size+len(b)-i > c.most.bytes:
				reason = decision.TooLarge
				why = fmt.Sprintf("%d bytes of headers and more; the limit is half of that (limits.header_bytes)", c.most.bytes)
			case end == 0:
				c.seen = i - pass
				return pass, ""
			case end == 2 && b[i] == '\r':
				if why = c.endFields(); why == "" {
					i += end
					pass = i
				}
			default:
				why = c.field(b[i : i+end])
				i += end
				if c.fields++; why == "" && c.fields > c.most.fields {
					reason = decision.TooLarge
					why = fmt.Sprintf("more than %d header fields; the limit is half of that (limits.header_fields)", c.most.fields)
				}
			}
		case inBody, inChunk:
			n := min(c.left, int64(len(b)-i))
			i += int(n)
			pass = i
			if c.left -= n; c.left == 0 {
				if c.at == inChunk {
					c.at = inChunkEnd
				} else {
					c.next()
				}
			}
		case inChunkSize:
			end := bytes.IndexByte(b[i:], '\n') + 1
			switch size, ok := chunkSize(b[i : i+end]); {
			case end == 0 && len(b)-i <= maxChunkHead:
				c.seen = i - pass
				return pass, ""
			case !ok:
				why = "a chunk's size is not a plain number"
			case size > 0:
				c.at, c.left = inChunk, size
			default:
				c.at, c.size, c.fields = inTrailers, 0, 0
			}
			i += end
			if why == "" {
				pass = i
			}
		case inChunkEnd:
			switch {
			case b[i] != '\r' || len(b)-i > 1 && b[i+1] != '\n':
				why = "a chunk is longer than its size"
			case len(b)-i == 1:
				c.seen = 0
				return i, ""
			default:
				i += 2
				pass = i
				c.at = inChunkSize
			}
		case undecided:
			if len(b)-i > c.most.bytes {
				c.at = ended // it may not talk that much before it is answered
			}
			c.seen = 0
			return i, ""
		default: // beyond, ended, over
			i = len(b)
			pass = i
		}
		if why != "" {
			refusal = notAChunk
			if c.at == inFields || c.at == inPreface {
				refusal = instead(reason, why)
			}
			c.at = ended
			return pass, refusal
		}
	}
	c.seen = i - pass
	return pass, ""
}

// instead are fields that the handler refuses. They announce a body that never
// comes, so that the server closes as it does behind bodies that it has not read:
// gently.
func instead(reason decision.Reason, why string) string {
	return "Host: durward\r\n" + FrontField + ": " + string(reason) + " " + why + "\r\nContent-Length: 1000000\r\n\r\n"
}

// refused reads what instead wrote. Over HTTP/2, where there is no front, a client
// can send such a field, and is refused for that.
func refused(r *http.Request, rec *decision.Record) (decision.Reason, string) {
	if r.ProtoMajor != 1 {
		return decision.AmbiguousRequest, "a field that nobody but the gateway writes"
	}
	target, _, _ := strings.Cut(r.RequestURI, "?")
	rec.Host, rec.Path = "", clip(target)
	reason, why, _ := strings.Cut(r.Header[FrontField][0], " ")
	if reason == string(decision.TooLarge) {
		rec.Status = http.StatusRequestHeaderFieldsTooLarge
		return decision.TooLarge, why
	}
	return decision.AmbiguousRequest, why
}

// notAChunk ends a chunked body with an error.
const notAChunk = "!\r\n!\r\n\r\n"

// maxChunkHead is the longest line with a chunk's size: 16 digits, CR, LF.
const maxChunkHead = 18

// noteTail remembers the end of the request line.
func (c *strict) noteTail(b []byte) {
	n := copy(c.tail[:], c.tail[min(len(b), len(c.tail)):])
	copy(c.tail[n:], b[max(0, len(b)-len(c.tail)):])
}

// endRequestLine begins the fields.
func (c *strict) endRequestLine() (why string) {
	line := c.tail
	c.tail = [10]byte{}
	switch {
	case line[8] != '\r':
		return "a line ends in LF without CR"
	case line[7] == 0 && c.later && !c.blank:
		// RFC 9112 section 2.2. The server skips it behind a POST, and refuses it
		// elsewhere.
		c.blank = true
		return ""
	case line[7] == 0:
		return "an empty line in place of a request line"
	case c.cr:
		return "a CR before the request line" // the server skips that behind a POST too
	}
	limits := c.front.Limits()
	c.most.bytes, c.most.fields = 2*limits.HeaderBytes, 2*limits.HeaderFields
	c.size, c.fields, c.chunked, c.upgrade, c.bare, c.length, c.blank = 0, 0, false, false, false, -1, false
	c.at, c.tail = inFields, line
	if !c.later && string(line[:]) == "HTTP/2.0\r\n" {
		c.at = inPreface
	}
	return ""
}

// field judges a line of the header or trailer section that is not empty.
func (c *strict) field(line []byte) (why string) {
	end := len(line) - 2
	if end < 0 || line[end] != '\r' {
		return "a line ends in LF without CR"
	}
	colon := bytes.IndexByte(line, ':')
	switch {
	case line[0] == ' ' || line[0] == '\t':
		return "a header field is folded over several lines"
	case colon <= 0:
		return "a header field has no name"
	case line[colon-1] == ' ' || line[colon-1] == '\t':
		return "a blank stands behind the name of a header field"
	}
	switch colon { // most names end here
	case len("Upgrade"):
		c.upgrade = c.upgrade || named(line[:colon], "upgrade")
	case len("Content-Length"):
		if !named(line[:colon], "content-length") || c.at == inTrailers {
			return ""
		}
		if c.length >= 0 {
			return "Content-Length stands twice"
		}
		var ok bool
		if c.length, ok = length(bytes.Trim(line[colon+1:end], " \t")); !ok {
			return "Content-Length is not a plain number"
		}
	case len("Transfer-Encoding"):
		if !named(line[:colon], "transfer-encoding") || c.at == inTrailers {
			return ""
		}
		switch {
		case c.chunked:
			return "Transfer-Encoding stands twice"
		case string(c.tail[:]) != "HTTP/1.1\r\n":
			return "Transfer-Encoding in a version that has none"
		case !named(bytes.Trim(line[colon+1:end], " \t"), "chunked"):
			return "a Transfer-Encoding other than chunked"
		}
		c.chunked = true
	case len(FrontField):
		if named(line[:colon], "durward-front") {
			return "a field that nobody but the gateway writes"
		}
	}
	return ""
}

// endFields begins the body.
func (c *strict) endFields() (why string) {
	switch {
	case c.at == inTrailers:
		c.next()
	case c.chunked && c.length >= 0:
		return "both Content-Length and Transfer-Encoding"
	case c.chunked:
		c.at = inChunkSize
	case c.length > 0:
		c.at, c.left = inBody, c.length
	default:
		c.next()
		c.bare = !c.upgrade
	}
	return ""
}

// next is behind the end of a request. What comes now is held until that is
// answered: it may be of another protocol, and whoever watches the connection meanwhile
// (see watch) is to see that the client has gone, also behind it.
func (c *strict) next() {
	c.later, c.tail, c.at = true, [10]byte{}, undecided
}

// named tells whether it is the name, which is given in lower case.
func named(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// length reads a decimal number in its only spelling.
func length(digits []byte) (int64, bool) {
	if len(digits) > 1 && digits[0] == '0' {
		return 0, false
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	return n, err == nil
}

// chunkSize reads the line before a chunk: hexadecimal digits alone, without
// chunk extensions, which nobody uses and some read up to another line's end.
func chunkSize(line []byte) (int64, bool) {
	end := len(line) - 2
	if end < 1 || end > 16 || line[end] != '\r' {
		return 0, false
	}
	for _, d := range line[:end] {
		if !('0' <= d && d <= '9' || 'a' <= d|0x20 && d|0x20 <= 'f') {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(string(line[:end]), 16, 64)
	return n, err == nil
}
