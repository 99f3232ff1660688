package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxIdle   = 1024        // connections kept for one upstream
	maxHeader = 64 << 10    // bytes of a response's header sections, informational ones included
	tidyEvery = time.Second // how soon a connection that the upstream has closed is given back
)

// A direct transport asks an upstream on the goroutine of the request that it asks
// for: it writes the request, and whoever wants the answer reads it. http.Transport
// hands both over to two goroutines of the connection, which costs more than
// everything else that a proxy does.
//
// It takes what most requests are, and what has no second side that must go on
// meanwhile: HTTP/1.1 without TLS, a safe method, no body, no upgrade. Everything
// else is the standard transport's. Responses are read by the same code of net/http
// as there, and have the same limits.
//
// A connection belongs to one request at a time, and comes back only if the answer
// was read to its end, the upstream did not ask to close it, and nothing stands
// behind the answer. Before it is used again it must be silent: bytes that nobody
// asked for would be taken for the answer to the next request, which may be
// another user's.
type direct struct {
	dial     func(context.Context) (net.Conn, error)
	standard http.RoundTripper
	patience time.Duration // for the upstream to take the request and to send the final response's header
	idleFor  time.Duration // until an unused connection is closed
	began    time.Time

	mu     sync.Mutex
	idle   []*wire // the one used last is at the end
	tidier *time.Timer
	closed bool // whatever comes back is closed
}

func newDirect(dial func(context.Context) (net.Conn, error), standard http.RoundTripper, patience, idleFor time.Duration) *direct {
	d := &direct{dial: dial, standard: standard, patience: patience, idleFor: idleFor, began: time.Now()}
	d.tidier = time.AfterFunc(time.Hour, d.tidy)
	d.tidier.Stop()
	return d
}

// A wire is a connection to the upstream.
type wire struct {
	net.Conn
	raw     syscall.RawConn
	r       *bufio.Reader // of Read
	out     []byte        // the request's head; kept for the next one
	left    int64         // bytes that may be read
	heard   bool          // something came since the request began
	crowded bool          // see crowd
	since   time.Duration // when it was used last, since direct.began

	step func(fd uintptr) bool // turn
	sent int                   // bytes of out; -1: it is this request's turn to be sent
	into []byte
	came int
	err  error
}

func newWire(conn net.Conn) (*wire, error) {
	system, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a %T is no connection of the operating system", conn)
	}
	raw, err := system.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn, raw: raw}
	w.r = bufio.NewReader(w)
	w.step = w.turn
	return w, nil
}

var (
	errLongHeader = fmt.Errorf("the response's header is larger than %d bytes", maxHeader)
	errSpoke      = errors.New("the upstream closed the connection, or spoke on it, before it was asked")
)

// Read is for w.r alone. The first one of a request sends the request.
func (w *wire) Read(p []byte) (n int, err error) {
	if w.left <= 0 {
		return 0, errLongHeader
	}
	p = p[:min(int64(len(p)), w.left)]
	if w.sent < 0 {
		n, err = w.trade(p)
	} else {
		n, err = w.Conn.Read(p)
	}
	w.left -= int64(n)
	w.heard = w.heard || n > 0
	return n, err
}

// trade sends the request and reads the beginning of the answer. It is one read of the
// connection in which the request is written: whatever comes wakes this goroutine
// once, and nothing is tried before it can succeed. Each system call that is saved is
// a fiftieth of a request.
func (w *wire) trade(p []byte) (int, error) {
	if w.crowded {
		runtime.Gosched()
	}
	w.into, w.came, w.err = p, 0, nil
	err := w.raw.Read(w.step)
	w.into = nil
	switch {
	case err != nil:
		return 0, err
	case w.err != nil:
		return 0, w.err
	case w.sent < len(w.out): // an upstream that does not read; or a very long request
		if _, err := w.Conn.Write(w.out[w.sent:]); err != nil {
			return 0, err
		}
		w.sent = len(w.out)
		return w.Conn.Read(p)
	case w.came == 0:
		return 0, io.EOF
	}
	return w.came, nil
}

// turn is called when the connection may be readable; false waits until it is.
func (w *wire) turn(fd uintptr) bool {
	if w.sent < 0 {
		w.sent = 0
		if !silent(fd) {
			w.err = errSpoke
			return true
		}
		n, err := syscall.Write(int(fd), w.out)
		if w.sent = max(n, 0); err != nil && err != syscall.EAGAIN && err != syscall.EINTR {
			w.err = os.NewSyscallError("write", err)
		}
		return w.sent < len(w.out)
	}
	n, err := syscall.Read(int(fd), w.into)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false
	}
	w.came, w.err = n, os.NewSyscallError("read", err)
	return true
}

// silent is whether the upstream has neither closed the connection nor sent what
// nobody asked for.
func silent(fd uintptr) bool {
	var b [1]byte
	n, err := syscall.Read(int(fd), b[:])
	return n < 0 && (err == syscall.EAGAIN || err == syscall.EINTR)
}

// silent asks that of a connection that is not in use.
func (w *wire) silent() (yes bool) {
	return w.raw.Read(func(fd uintptr) bool { yes = silent(fd); return true }) == nil && yes
}

// RoundTrip is http.RoundTripper's.
func (d *direct) RoundTrip(req *http.Request) (*http.Response, error) {
	if !simple(req) || req.Close || req.Header["Connection"] != nil {
		return d.standard.RoundTrip(req)
	}
	a := &answer{direct: d, sent: time.Now()}
	a.stop = context.AfterFunc(req.Context(), a.cancel)
	res, err := d.exchange(req, a, func(code int, header textproto.MIMEHeader) error {
		if trace := httptrace.ContextClientTrace(req.Context()); trace != nil && trace.Got1xxResponse != nil {
			return trace.Got1xxResponse(code, header)
		}
		return nil
	})
	if err != nil {
		a.stop()
	}
	return res, err
}

// exchange asks for a request that is simple. What can end it from elsewhere is
// a.cancel alone, not the request's context. hint is given informational responses;
// its error ends the request.
func (d *direct) exchange(req *http.Request, a *answer, hint func(int, textproto.MIMEHeader) error) (*http.Response, error) {
	w := d.take()
	used := w != nil
	for {
		if w == nil {
			var err error
			if w, err = a.connect(req.Context()); err != nil {
				return nil, err
			}
			a.sent = time.Now()
		}
		res, err := d.ask(w, req, a, hint)
		// An upstream may close an unused connection at any time (RFC 9112 section 9.5),
		// also while a request is on its way, which it then has not looked at. All that
		// is asked here may be asked again.
		if err == nil || !used || w.heard || a.gone.Load() || errors.Is(err, os.ErrDeadlineExceeded) {
			return res, err
		}
		w, used = nil, false
	}
}

// connect is a new connection.
func (a *answer) connect(ctx context.Context) (*wire, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.dialing.Store(&cancel)
	defer a.dialing.Store(nil)
	if a.gone.Load() {
		return nil, context.Canceled
	}
	conn, err := a.direct.dial(ctx)
	if err != nil {
		return nil, err
	}
	w, err := newWire(conn)
	if err != nil {
		conn.Close()
	}
	return w, err
}

// simple is whether nothing but an answer comes of the request.
func simple(req *http.Request) bool {
	return isSafe(req.Method) && (req.Body == nil || req.Body == http.NoBody) && req.ContentLength == 0 && req.TransferEncoding == nil && req.Trailer == nil &&
		req.Header["Upgrade"] == nil && req.Header["Expect"] == nil
}

// ask sends the request and reads the header of its answer. After an error the
// connection is closed.
func (d *direct) ask(w *wire, req *http.Request, a *answer, hint func(int, textproto.MIMEHeader) error) (res *http.Response, err error) {
	a.wire.Store(w)
	defer func() {
		if err != nil {
			a.release(false)
			switch {
			case a.gone.Load():
				err = context.Canceled
			case errors.Is(err, os.ErrDeadlineExceeded):
				err = fmt.Errorf("no answer within %s: %w", d.patience, err)
			}
		}
	}()
	if a.gone.Load() { // before there was anything to close
		return nil, context.Canceled
	}
	w.heard, w.left = false, maxHeader
	w.Conn.SetDeadline(a.sent.Add(d.patience))
	if w.out, err = appendHead(w.out[:0], req); err != nil {
		return nil, err
	}
	w.sent, w.crowded = -1, a.crowded
	for {
		if res, err = http.ReadResponse(w.r, req); err != nil {
			return nil, err
		}
		if res.StatusCode >= 200 {
			break
		}
		if res.StatusCode < 100 {
			return nil, errStatus
		}
		if res.StatusCode == http.StatusSwitchingProtocols {
			return nil, errSwitch
		}
		if err = hint(res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
			return nil, err
		}
	}
	w.Conn.SetDeadline(time.Time{})
	w.left = math.MaxInt64
	// A body that comes behind an answer which announces one and has none would be
	// taken for the next answer, if it is late.
	announced := res.Header["Content-Length"] != nil && res.Header.Get("Content-Length") != "0" || res.TransferEncoding != nil
	a.from, a.keep = res.Body, !res.Close && !(res.Body == http.NoBody && announced)
	if res.Body == http.NoBody {
		a.end(true)
	} else {
		res.Body = a
	}
	return res, nil
}

// An answer is one that an upstream is asked for, and then the body of the response.
// At its end the connection is free for another request.
type answer struct {
	direct  *direct
	crowded bool        // see crowd
	sent    time.Time   // from when on the upstream has to answer
	stop    func() bool // told of the end; may be nil

	gone    atomic.Bool // nobody wants it any more
	dialing atomic.Pointer[context.CancelFunc]
	wire    atomic.Pointer[wire] // while it is this answer's: who takes it out closes it or gives it back

	from io.Reader
	keep bool // the upstream does not close the connection
}

// cancel ends it from elsewhere, at any time. There is no other way to end a read or
// write in progress for good than to close the connection.
func (a *answer) cancel() {
	a.gone.Store(true)
	if cancel := a.dialing.Load(); cancel != nil {
		(*cancel)()
	}
	a.release(false)
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.from.Read(p)
	if err != nil {
		a.end(err == io.EOF)
		if err != io.EOF && a.gone.Load() {
			err = context.Canceled
		}
	}
	return n, err
}

// awaited is whether nothing of the body has come yet.
func (a *answer) awaited() bool {
	w := a.wire.Load()
	return w != nil && w.r.Buffered() == 0
}

// Close gives the connection up if the answer was not read to its end. It may be
// called while somebody reads.
func (a *answer) Close() error {
	a.end(false)
	return nil
}

func (a *answer) end(whole bool) {
	if a.stop != nil {
		a.stop()
	}
	a.release(whole)
}

// release gives the connection up, or back if it is free for another request.
func (a *answer) release(whole bool) {
	switch w := a.wire.Swap(nil); {
	case w == nil:
	case whole && a.keep && w.r.Buffered() == 0:
		a.direct.put(w)
	default:
		w.Conn.Close()
	}
}

// take is the connection that was used last, nil if there is none.
func (d *direct) take() *wire {
	d.mu.Lock()
	defer d.mu.Unlock()
	last := len(d.idle) - 1
	if last < 0 {
		return nil
	}
	w := d.idle[last]
	d.idle[last] = nil
	d.idle = d.idle[:last]
	return w
}

func (d *direct) put(w *wire) {
	w.since = time.Since(d.began)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.idle) >= maxIdle {
		w.Conn.Close()
		return
	}
	if d.idle = append(d.idle, w); len(d.idle) == 1 {
		d.tidier.Reset(tidyEvery)
	}
}

// tidy closes connections that were not used for long, or that the upstream has
// closed or spoiled.
func (d *direct) tidy() {
	d.mu.Lock()
	defer d.mu.Unlock()
	kept := d.idle[:0]
	for _, w := range d.idle {
		if time.Since(d.began)-w.since < d.idleFor && w.silent() {
			kept = append(kept, w)
		} else {
			w.Conn.Close()
		}
	}
	clear(d.idle[len(kept):])
	if d.idle = kept; len(kept) > 0 {
		d.tidier.Reset(tidyEvery)
	}
}

// close closes connections that carry no request, and those in use at their end.
func (d *direct) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.tidier.Stop()
	for _, w := range d.idle {
		w.Conn.Close()
	}
	d.idle = nil
}

// appendHead appends the request without a body as RFC 9112 spells it. An error says
// what would have been read as something else; nothing that is decided here lets
// such a thing come so far.
func appendHead(b []byte, req *http.Request) ([]byte, error) {
	target, host := req.URL.RequestURI(), req.Host
	if host == "" {
		host = req.URL.Host
	}
	if !isVisible(target) || !isVisible(host) {
		return b, errors.New("the request target or host holds blanks or controls")
	}
	b = append(append(append(b, req.Method...), ' '), target...)
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), host...), "\r\n"...)
	for name, values := range req.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
			continue // said by the request's other fields
		case "User-Agent":
			if len(values) == 1 && values[0] == "" {
				continue // ReverseProxy's way to say that there is none
			}
		}
		if !isToken(name) {
			return b, fmt.Errorf("%q is no name of a header field", clip(name))
		}
		for _, value := range values {
			if !isFieldValue(value) {
				return b, fmt.Errorf("the value of %s holds a control", name)
			}
			b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
		}
	}
	return append(b, "\r\n"...), nil
}

func isVisible(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// isToken is RFC 9110 section 5.6.2.
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c != '-' && !isAlphanumeric(c) && !isTokenMark(c) {
			return false
		}
	}
	return s != ""
}

func isTokenMark(c byte) bool {
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '.', '^', '_', '`', '|', '~':
		return true
	}
	return false
}

// isFieldValue is RFC 9110 section 5.5, with the bytes of other scripts.
func isFieldValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
