package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A tape is a connection on which the client has already said everything: it is
// read in pieces of the given size.
type tape struct {
	net.Conn
	rest []byte
	size int
}

func (*tape) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func (t *tape) Read(p []byte) (int, error) {
	if len(t.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), t.size)], t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

func testFront() *Front {
	limits := Limits{HeaderBytes: 2 << 10, HeaderFields: 10}
	return &Front{Limits: func() Limits { return limits }, Proxies: func() TrustedProxies { return TrustedProxies{} }}
}

// A message is a request as one reader sees it. A refused one is the last.
type message struct {
	line, body string
	refused    bool
}

// throughFront is what net/http makes of the input behind the front. Its reading
// stops where the server's would: behind what is refused or asks for another
// protocol.
func throughFront(input []byte, size int) (messages []message) {
	conn := &strict{Conn: &tape{rest: bytes.Clone(input), size: size}, front: testFront()}
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
				messages = append(messages, message{refused: true})
			}
			return messages
		}
		m := message{line: r.Method + " " + r.RequestURI}
		if r.ProtoMajor == 2 { // or refused for it
			return messages
		}
		if r.Header[FrontField] != nil {
			return append(messages, message{refused: true})
		}
		body, err := io.ReadAll(r.Body)
		m.body = string(body)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return messages
		}
		if err != nil {
			return append(messages, message{refused: true})
		}
		messages = append(messages, m)
		if r.Header["Upgrade"] != nil {
			return messages
		}
		conn.resume() // as when it is answered
	}
}

// strictly reads the input as RFC 9112 wants requests to be written, by going
// through it once, and refuses everything else.
func strictly(input string) (messages []message) {
	refused := func() []message { return append(messages, message{refused: true}) }
	line := func() (string, bool) {
		text, rest, ok := strings.Cut(input, "\n")
		if ok {
			input = rest
		}
		return text, ok
	}
	type section struct {
		length   string
		lengths  int
		chunked  bool
		codings  int
		upgrade  bool
		complete bool
	}
	fields := func() (s section, ok bool) {
		size := 0
		for n := 0; ; n++ {
			text, whole := line()
			if !whole {
				return s, len(input)+size <= 4<<10
			}
			size += len(text) + 1
			if size > 4<<10 || !strings.HasSuffix(text, "\r") {
				return s, false
			}
			text = strings.TrimSuffix(text, "\r")
			if text == "" {
				s.complete = true
				return s, true
			}
			name, value, colon := strings.Cut(text, ":")
			if n == 20 || !colon || name == "" || strings.ContainsAny(name[:1]+name[len(name)-1:], " \t") {
				return s, false
			}
			value = strings.Trim(value, " \t")
			switch strings.ToLower(name) {
			case "content-length":
				s.length = value
				s.lengths++
			case "transfer-encoding":
				s.chunked = strings.ToLower(value) == "chunked"
				s.codings++
			case "upgrade":
				s.upgrade = true
			case "durward-front":
				return s, false
			}
		}
	}
	for input != "" {
		text, whole := line()
		if !whole {
			return messages
		}
		if !strings.HasSuffix(text, "\r") {
			return refused()
		}
		http11 := strings.HasSuffix(text, " HTTP/1.1\r")
		s, ok := fields()
		if !ok {
			return refused()
		}
		if s.lengths > 1 || s.codings > 1 || s.codings == 1 && (!s.chunked || !http11 || s.lengths > 0) && s.complete {
			return refused()
		}
		n := uint64(0)
		if s.lengths == 1 {
			var err error
			if n, err = strconv.ParseUint(s.length, 10, 63); err != nil || s.length != strconv.FormatUint(n, 10) {
				return refused()
			}
		}
		if !s.complete {
			return messages
		}
		m := message{line: text}
		if words := strings.Split(text, " "); len(words) == 3 {
			m.line = words[0] + " " + words[1]
		}
		if s.chunked {
			for {
				text, whole := line()
				if !whole {
					if len(input) > maxChunkHead {
						return refused()
					}
					return messages
				}
				digits := strings.TrimSuffix(text, "\r")
				size, err := strconv.ParseUint(digits, 16, 63)
				if err != nil || digits == text || len(digits) > 16 || strings.ContainsAny(digits, "+-_") {
					return refused()
				}
				if size == 0 {
					break
				}
				if uint64(len(input)) < size {
					return messages
				}
				m.body += input[:size]
				input = input[size:]
				if input == "" || input == "\r" {
					return messages
				}
				if !strings.HasPrefix(input, "\r\n") {
					return refused()
				}
				input = input[2:]
			}
			trailers, ok := fields()
			if !ok {
				return refused()
			}
			if !trailers.complete {
				return messages
			}
		} else {
			if uint64(len(input)) < n {
				return messages
			}
			m.body, input = input[:n], input[n:]
		}
		messages = append(messages, m)
		if s.upgrade {
			return messages
		}
	}
	return messages
}

// FuzzFront: whatever passes the front is to net/http what it is to a strict
// reader that knows nothing of either, request by request and byte by byte of
// their bodies, in whatever pieces it comes. Refusing is always allowed, and is
// the end of the connection.
func FuzzFront(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=\"\r\nhello\r\n0\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x00GET /b HTTP/1.1\n\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04", "PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("a:b\r\n", 30) + "\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 5000) + "\r\n\r\n",
	} {
		f.Add([]byte(seed), 7)
	}
	f.Fuzz(func(t *testing.T, input []byte, size int) {
		if size = size % 5000; size < 1 {
			size = 1
		}
		want, got := strictly(string(input)), throughFront(input, size)
		for i, m := range got {
			if m.refused {
				if i != len(got)-1 {
					t.Fatalf("%q: something behind a refusal: %+v", input, got)
				}
				break
			}
			if i >= len(want) || want[i] != m {
				t.Fatalf("%q in pieces of %d: request %d is %+v to net/http; a strict reader sees %+v", input, size, i, m, want)
			}
		}
		for _, size := range []int{1, 4096} {
			if again := throughFront(input, size); fmt.Sprint(again) != fmt.Sprint(got) {
				t.Fatalf("%q: in other pieces %+v instead of %+v", input, again, got)
			}
		}
	})
}

// TestFrontHolds: whatever a client sends, and however slowly, no more is held of
// it than the limits say, and what is over them is refused before it is parsed.
func TestFrontHolds(t *testing.T) {
	limits := testFront().Limits()
	for _, c := range []struct {
		name, head, more string
		passes           bool // forever
	}{
		{"fields", "GET / HTTP/1.1\r\n", "a:b\r\n", false},
		{"a field", "GET / HTTP/1.1\r\nX: ", "xxxxxxxxxxxxxxxx", false},
		{"a name", "GET / HTTP/1.1\r\n", "xxxxxxxxxxxxxxxx", false},
		{"trailers", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "a:b\r\n", false},
		{"a chunk's size", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "000000", false},
		{"early bytes", "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", "xxxxxxxxxxxxxxxx", false},
		{"a request line", "GET /", "xxxxxxxxxxxxxxxx", true}, // net/http bounds it
		{"a body", "POST / HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", "xxxxxxxxxxxxxxxx", true},
	} {
		for _, size := range []int{1, 100, 4096} {
			conn := &strict{Conn: &tape{rest: []byte(c.head + strings.Repeat(c.more, 20_000)), size: size}, front: testFront()}
			passed := 0
			p := make([]byte, 4096)
			for {
				n, err := conn.Read(p)
				passed += n
				if cap(conn.buf) > 8*limits.HeaderBytes+2*len(p) {
					t.Fatalf("%s, pieces of %d: %d bytes are held", c.name, size, cap(conn.buf))
				}
				if err != nil {
					break
				}
			}
			if (conn.at == ended) == c.passes || !c.passes && passed > 2*limits.HeaderBytes || c.passes && passed < len(c.more)*20_000 {
				t.Errorf("%s, pieces of %d: %d bytes pass, ended: %v", c.name, size, passed, conn.at == ended)
			}
		}
	}
}

// TestFrontByteByByte: whoever reads single bytes gets all of them, as net/http does at
// the end of what it reads of a header. Only when it has read that, it is kept from
// reading on, until it has answered.
func TestFrontByteByByte(t *testing.T) {
	const first, second = "GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET /2 HTTP/1.1\r\nHost: a.test\r\nX-Long: 123456789\r\n\r\n"
	conn := &strict{Conn: &tape{rest: []byte(first + second), size: 1 << 10}, front: testFront()}
	var b [1]byte
	for _, request := range []string{first, second} {
		var got []byte
		for len(got) < len(request) {
			n, err := conn.Read(b[:])
			if n != 1 || err != nil {
				t.Fatalf("behind %q: %d bytes, %v", got, n, err)
			}
			got = append(got, b[0])
		}
		if string(got) != request {
			t.Fatalf("got %q, want %q", got, request)
		}
		conn.front.ConnState(conn, http.StateActive)
		if n, err := conn.Read(b[:]); n != 0 || err != nil {
			t.Errorf("while it is answered: %d bytes, %v", n, err)
		}
		conn.front.ConnState(conn, http.StateIdle)
	}
	if n, err := conn.Read(b[:]); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
}

// BenchmarkFront reads pipelined requests such as browsers send through a
// connection with and without the front.
func BenchmarkFront(b *testing.B) {
	request := browserRequest()
	post := strings.Replace(request, "GET", "POST", 1)
	post = strings.TrimSuffix(post, "\r\n") + "Content-Length: 65536\r\n\r\n" + strings.Repeat("x", 65536)
	limits := Limits{HeaderBytes: 32 << 10, HeaderFields: 128, HeaderTimeout: time.Second}
	front := &Front{Limits: func() Limits { return limits }, Proxies: func() TrustedProxies { return TrustedProxies{} }}
	for _, c := range []struct{ name, request string }{{"get", request}, {"post-64KiB", post}} {
		for _, fronted := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/front=%v", c.name, fronted), func(b *testing.B) {
				source := &tape{size: 64 << 10}
				var conn net.Conn = source
				if fronted {
					conn = &strict{Conn: source, front: front}
				}
				in, text := bufio.NewReader(conn), []byte(c.request)
				b.ReportAllocs()
				for b.Loop() {
					source.rest = text
					r, err := http.ReadRequest(in)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						b.Fatal(err)
					}
					if c, ok := conn.(*strict); ok {
						c.resume()
					}
				}
			})
		}
	}
}

// BenchmarkJudge is what the front adds to one such request.
func BenchmarkJudge(b *testing.B) {
	request := []byte(browserRequest())
	c := &strict{front: testFront()}
	b.ReportAllocs()
	for b.Loop() {
		if pass, _ := c.judge(request); pass != len(request) {
			b.Fatal(pass)
		}
		c.resume()
	}
}

func browserRequest() string {
	return "GET /api/orders/7?x=1 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0\r\n" +
		"Accept: application/json, text/plain, */*\r\nAccept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://shop.example.com/orders\r\n" +
		"Connection: keep-alive\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\nCookie: theme=dark; __Host-session=" + strings.Repeat("x", 900) + "\r\n\r\n"
}
