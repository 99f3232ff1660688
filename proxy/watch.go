package proxy

import (
	"context"
	"sync/atomic"
	"time"
)

// attention is how long a request takes before anybody looks whether its client is
// still there.
const attention = 20 * time.Millisecond

// A watch of a connection finds out that the client has gone while its request is
// being answered, and ends the request then.
//
// net/http does that with a read on a goroutine of its own, which every request begins
// and has to end: a system call that finds nothing, two deadlines, two changes of the
// goroutine; a twentieth of what a short request costs, and a short one is over before
// it can matter. So the connection does not let net/http read behind a request without
// a body (strict.quiet), and this reads instead, if the request takes longer. A client
// that only closes its own side behind its request gets a quick answer.
type watch struct {
	conn   *strict
	timer  *time.Timer
	cancel context.CancelFunc // of the request
	over   atomic.Bool        // it was answered: the read is ended from here
	ended  chan struct{}
}

// watch is begun for one request at a time, and must be stopped before the request's
// handler returns.
func (c *strict) watch(cancel context.CancelFunc) *watch {
	w := c.watcher
	if w == nil {
		w = &watch{conn: c, ended: make(chan struct{}, 1)}
		c.watcher = w
		w.cancel = cancel
		w.timer = time.AfterFunc(attention, w.read)
		return w
	}
	w.cancel = cancel
	w.timer.Reset(attention)
	return w
}

// read waits for the connection's end. What the client sends before is held (strict.next).
func (w *watch) read() {
	defer func() { w.ended <- struct{}{} }()
	w.conn.Conn.SetReadDeadline(time.Time{}) // that for the request's header is still set
	var b [1]byte
	for !w.over.Load() { // which is set before the deadline that ends the read
		if _, err := w.conn.read(b[:]); err != nil {
			break
		}
	}
	if !w.over.Load() {
		w.cancel()
	}
}

// stop leaves the connection to net/http.
func (w *watch) stop() {
	if w.timer.Stop() {
		return
	}
	w.over.Store(true)
	w.conn.Conn.SetReadDeadline(aLongTimeAgo())
	<-w.ended
	w.conn.Conn.SetReadDeadline(time.Time{})
	w.over.Store(false)
}
