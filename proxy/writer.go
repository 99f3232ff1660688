package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// A writer notes what is sent, and gives each write a deadline of its own. A
// deadline for the whole response would end streams; none would let a client
// that reads nothing hold a connection for ever.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	http2   bool
	status  int // 0: nothing is sent yet
	bytes   int64

	started atomic.Bool              // the answer has begun
	ended   atomic.Bool              // it was cut: no write gets time any more
	conn    atomic.Pointer[hijacked] // once the protocol was switched
}

// Unwrap lets http.ResponseController find what the server's writer can do.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// begin gives the write that follows its time, and after tells HTTP/2 that it is
// over: there an elapsed deadline resets the stream even if nobody writes. On
// HTTP/1 it matters to the next write alone, which sets a new one.
func (w *writer) begin() {
	w.control.SetWriteDeadline(time.Now().Add(w.timeout))
	if w.ended.Load() {
		w.control.SetWriteDeadline(aLongTimeAgo())
	}
}

func (w *writer) after() {
	if w.http2 && !w.ended.Load() {
		w.control.SetWriteDeadline(time.Time{})
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
		conn.end(cause)
		return
	}
	w.control.SetReadDeadline(aLongTimeAgo())
	if w.started.Load() {
		w.control.SetWriteDeadline(aLongTimeAgo())
	}
}

// revive lets a request that was cut before its answer be refused.
func (w *writer) revive() { w.ended.Store(false) }

// end leaves the server time for what it writes after the handler.
func (w *writer) end() {
	if w.status != 0 && w.status != http.StatusSwitchingProtocols {
		w.begin()
	}
}

// WriteHeader notes the final status. An informational response (1xx) carries
// hints alone: what else an upstream puts into it has not been looked through.
func (w *writer) WriteHeader(status int) {
	if status >= 200 {
		if w.status != 0 {
			return
		}
		w.status = status
		w.started.Store(true)
	} else {
		for name := range w.Header() {
			if name != "Link" {
				w.Header().Del(name)
			}
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
	conn, rw, err := w.control.Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.status = http.StatusSwitchingProtocols
	h := &hijacked{Conn: conn}
	w.conn.Store(h)
	if w.ended.Load() {
		conn.Close()
	}
	return h, rw, nil
}

// A body is a request body on its way to the upstream. Each read has its own
// deadline, and more than the limit is an error. It remembers what went wrong,
// since the transport's error does not always tell.
type body struct {
	io.ReadCloser
	control  *http.ResponseController
	timeout  time.Duration
	left     int64 // of the limit; negative: no limit
	tooLarge bool
	failed   bool // the client did not deliver
}

func (b *body) Read(p []byte) (int, error) {
	if b.tooLarge {
		return 0, errTooLarge
	}
	b.control.SetReadDeadline(time.Now().Add(b.timeout))
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		// The server watches the connection while the upstream works; an elapsed
		// deadline would look to it like a client that went away.
		b.control.SetReadDeadline(time.Time{})
	}
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			b.tooLarge = true
			return 0, errTooLarge
		}
	}
	if err != nil && err != io.EOF {
		b.failed = true
	}
	return n, err
}
