package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A writer notes what is sent, and gives each write a deadline of its own. A
// deadline for the whole response would end streams; none would let a client
// that reads nothing hold a connection for ever.
type writer struct {
	http.ResponseWriter
	control  http.ResponseController
	timeout  time.Duration
	began    time.Time
	http2    bool
	http10   bool
	empty    bool // the request has no body
	crowded  bool // there are many requests; see crowd
	grpc     bool // the answer can end with a status; set before it begins
	status   int  // 0: nothing is sent yet
	final    bool // close the connection behind the answer
	bytes    int64
	hints    int                // informational responses
	switched bool               // one of those was a switch of protocols, which an HTTP/2 upstream cannot make
	upload   *body              // nil: the upstream gets none
	cancel   context.CancelFunc // ends the upstream's side
	wire     *strict            // the connection; nil where there is no front

	until time.Time // when the write deadline elapses that was set last

	started atomic.Bool              // the answer has begun
	ended   atomic.Bool              // it was cut: no write gets time any more
	conn    atomic.Pointer[hijacked] // once the protocol was switched
}

// Unwrap lets http.ResponseController find what the server's writer can do.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// now is time.Now for half its price: without asking what a calendar says meanwhile.
func (w *writer) now() time.Time { return w.began.Add(time.Since(w.began)) }

// begin gives the write that follows its time, and after tells HTTP/2 that it is
// over: there an elapsed deadline resets the stream even if nobody writes. On
// HTTP/1 it matters to the next write alone, which sets a new one.
func (w *writer) begin() {
	// One that was just set still does: most answers are a few writes at once.
	if until := w.now().Add(w.timeout); w.until.Before(until.Add(-w.timeout / 16)) {
		w.until = until
		w.control.SetWriteDeadline(until)
	}
	if w.ended.Load() {
		w.until = time.Time{}
		w.control.SetWriteDeadline(w.last())
	}
}

// last is until when an answer that was cut may be written to: one that can end
// with a status gets a moment for it.
func (w *writer) last() time.Time {
	if w.grpc {
		return time.Now().Add(moment)
	}
	return aLongTimeAgo()
}

func (w *writer) after() {
	if w.http2 && !w.ended.Load() {
		w.until = time.Time{}
		w.control.SetWriteDeadline(w.until)
	}
}

func aLongTimeAgo() time.Time { return time.Unix(1, 0) }

// cut ends what is being sent and received. An answer that has not begun yet can
// still be given, after revive.
func (w *writer) cut(cause Cause) {
	// Whoever begins to answer or switches protocol at this moment says so first
	// and looks at ended then; here it is the other way round.
	w.ended.Store(true)
	if conn := w.conn.Load(); conn != nil {
		conn.cut(cause)
		return
	}
	if w.wire != nil && !w.http2 && w.started.Load() {
		drop(w.wire) // first: either deadline may have the server close the connection
	}
	w.control.SetReadDeadline(aLongTimeAgo())
	if w.started.Load() {
		w.control.SetWriteDeadline(w.last())
	}
	w.cancel() // last: whoever hears of it may revive the writer
}

// revive lets a request that was cut before its answer be refused. That is the
// last answer on an HTTP/1 connection: the server took the deadline for a client
// that went away, and would cancel whatever request comes next, be it another
// user's behind a shared proxy.
func (w *writer) revive() {
	w.final = !w.http2
	w.ended.Store(false)
}

// skipBody gets a body out of the way that nobody is going to read. The server
// would wait for it before it sends the answer, for as long as the client likes. A
// short one that is there leaves the connection usable; anything else closes it.
func (w *writer) skipBody(r *http.Request) {
	if w.http2 || w.upload != nil || r.ContentLength == 0 {
		return
	}
	const short, soon = 64 << 10, 100 * time.Millisecond
	if 0 < r.ContentLength && r.ContentLength <= short && r.Header["Expect"] == nil { // reading would say 100 Continue
		w.control.SetReadDeadline(time.Now().Add(soon))
		_, err := io.Copy(io.Discard, r.Body)
		w.control.SetReadDeadline(time.Time{})
		if err == nil {
			return
		}
	}
	w.control.EnableFullDuplex() // answer now
	w.final = true
}

// leftover is how long the server may read, after the answer, what is left of a
// short body, which lets the connection close gently or be used again.
const leftover = 2 * time.Second

// end leaves the server time for what it does after the handler: it writes what is
// buffered, and on HTTP/1 it reads what is left of a body, with no deadline of its
// own.
func (w *writer) end() {
	if w.status == 0 || w.status == http.StatusSwitchingProtocols {
		return
	}
	if w.http2 || w.empty {
		w.begin()
		return
	}
	now := time.Now()
	w.control.SetReadDeadline(now.Add(leftover))
	w.control.SetWriteDeadline(now.Add(leftover + w.timeout))
}

// maxHints is how many informational responses one upstream may send for one
// request; a few are of use.
const maxHints = 16

// WriteHeader notes the final status. The server sends it with what follows.
func (w *writer) WriteHeader(status int) {
	if status < 200 {
		w.hint(status)
		return
	}
	if w.status != 0 {
		return
	}
	w.status = status
	h := w.Header()
	if h["Content-Type"] == nil {
		// The server would guess one from the body, and a browser believe a page that
		// the upstream did not call one.
		h["Content-Type"] = nil
	}
	if !w.http2 && w.upload != nil && !w.upload.whole() {
		// What is left of the body must never be read as another request. The
		// server sees to that by itself only without full duplex.
		w.final = true
	}
	if w.final {
		h.Set("Connection", "close")
	}
	w.started.Store(true)
	if w.upload != nil {
		w.upload.answered()
	}
	w.ResponseWriter.WriteHeader(status)
}

// hint sends an informational response (1xx). It carries hints alone: what else an
// upstream puts into it has not been looked through.
func (w *writer) hint(status int) {
	if status == http.StatusSwitchingProtocols {
		w.switched = true // real ones are written to the connection, once it was handed over
		w.cancel()
		return
	}
	if w.hints++; w.hints > maxHints {
		w.cancel() // they do not count towards any limit of the transport
		return
	}
	if w.http2 || w.http10 {
		// HTTP/1.0 has no such responses (RFC 9110 section 15.2), and the server's
		// HTTP/2 goes on reading the header after it has returned.
		return
	}
	h := w.Header()
	for name := range h {
		if name != "Link" {
			delete(h, name)
		}
	}
	w.begin()
	w.ResponseWriter.WriteHeader(status)
	w.after()
}

func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.begin()
	n, err := w.ResponseWriter.Write(b)
	w.after()
	w.bytes += int64(n)
	return n, err
}

// FlushError sends what is buffered.
func (w *writer) FlushError() error {
	w.begin()
	err := w.control.Flush()
	w.after()
	return err
}

// Hijack hands the connection over for a protocol switch; the server has cleared
// its deadlines.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.ended.Load() {
		return nil, nil, errCut // it can still be refused
	}
	conn, rw, err := w.control.Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.status = http.StatusSwitchingProtocols
	h := &hijacked{Conn: conn, gone: w.cancel}
	w.conn.Store(h)
	if w.ended.Load() {
		conn.Close()
	}
	return h, rw, nil
}

// A body is a request body on its way to the upstream. Each read has its own
// deadline, and more than the limit is an error. It remembers what went wrong,
// since the transport's error does not always tell.
//
// The transport may go on reading after it has returned an answer, even after the
// handler has; by then the connection's deadlines belong to the next request, and
// on HTTP/2 touching them is a crash. So whatever is done here is done under mu,
// and nothing any more once the body is closed.
type body struct {
	from   io.Reader // the server's body, which the server closes
	writer *writer
	busy   sync.Mutex // held while reading

	mu       sync.Mutex // guards what follows; never held while reading
	closed   bool
	replied  bool  // the answer has begun: silence of the client alone ends nothing any more
	left     int64 // of the limit; negative: no limit
	eof      bool  // all of it came
	tooLarge bool
	failed   bool // the client did not deliver
	broken   bool // what it delivered is not framed as HTTP/1 wants it
	stalled  bool // the upstream did not take what was there

	// An upstream that takes nothing is given patience, and then the request is
	// given up. On HTTP/2 flow control stops the transport before it writes, so
	// that no deadline of the connection would.
	patience time.Duration
	giveUp   context.CancelFunc
	stall    *time.Timer // runs between reads
}

func (b *body) Read(p []byte) (int, error) {
	b.busy.Lock()
	defer b.busy.Unlock()
	if err := b.before(); err != nil {
		return 0, err
	}
	n, err := b.from.Read(p)
	return b.after(n, err)
}

func (b *body) before() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return http.ErrBodyReadAfterClose
	case b.tooLarge:
		return errTooLarge
	}
	if b.stall != nil {
		b.stall.Stop()
	}
	if !b.replied {
		b.writer.control.SetReadDeadline(time.Now().Add(b.writer.timeout))
	}
	if b.writer.ended.Load() {
		return errCut
	}
	return nil
}

// answered says that the answer has begun. From now on a client may be silent for
// as long as it listens, as in a gRPC call that watches something.
func (b *body) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replied = true
	if b.stall != nil {
		b.stall.Stop()
	}
	if !b.closed && !b.eof && !b.writer.ended.Load() {
		b.writer.control.SetReadDeadline(time.Time{})
	}
}

// wait begins to wait for the upstream to take more.
func (b *body) wait() {
	if b.stall != nil {
		b.stall.Reset(b.patience)
		return
	}
	b.stall = time.AfterFunc(b.patience, func() {
		b.mu.Lock()
		b.stalled = !b.closed && !b.replied
		give := b.stalled
		b.mu.Unlock()
		if give {
			b.giveUp()
		}
	})
}

func (b *body) after(n int, err error) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if err == nil && !b.replied {
		b.wait()
	}
	if err != nil || b.writer.http2 && !b.writer.ended.Load() {
		// On HTTP/2 an elapsed deadline ends the stream even if nobody reads. On
		// HTTP/1 the server watches the connection while the upstream works; an elapsed
		// deadline would look to it like a client that went away.
		b.writer.control.SetReadDeadline(time.Time{})
	}
	b.eof = b.eof || err == io.EOF
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			b.tooLarge = true
			return 0, errTooLarge
		}
	}
	if err != nil && err != io.EOF {
		b.failed = true
		var network net.Error // the connection's end, or a deadline
		b.broken = !b.writer.http2 && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &network)
	}
	return n, err
}

// Close ends a read in progress. The HTTP/2 transport calls it when the upstream
// has said its last word, and then waits for that read before it passes the word
// on: a client that waits too, as gRPC's do, would never hear it.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && !b.eof {
		b.writer.control.SetReadDeadline(aLongTimeAgo())
	}
	if b.stall != nil {
		b.stall.Stop()
	}
	b.closed = true
	return nil
}

// end leaves the connection to the server, which ends the request. On HTTP/1 no
// read may be in progress then: the server would end it, and take off the deadline
// for what it reads itself.
func (b *body) end() {
	b.Close()
	if !b.writer.http2 {
		b.busy.Lock()
		defer b.busy.Unlock()
	}
}

// whole tells whether the body was read to its end.
func (b *body) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.eof
}

// fault tells what went wrong so far.
func (b *body) fault() (tooLarge, failed, stalled, broken bool) {
	if b == nil {
		return false, false, false, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tooLarge, b.failed, b.stalled, b.broken
}
