package proxy

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"durward/decision"
	"durward/denylist"
	"durward/token"
)

// Streams says how long a request may go on after what let it in has ended.
type Streams struct {
	Grace       time.Duration // between a revocation and the cut
	MaxAge      time.Duration // longest life of a request with a token; 0: no limit
	KeepExpired bool          // a token's expiry cuts nothing
}

// A Cause is why a request in progress was cut.
type Cause uint8

const (
	NotCut Cause = iota
	CutRevoked
	CutExpired
	CutMaxAge
	CutShutdown
)

// Causes is how many causes there are; they count from 1.
const Causes = int(CutShutdown)

// String is the cause as logs and metrics spell it.
func (c Cause) String() string {
	switch c {
	case CutRevoked:
		return "revoked"
	case CutExpired:
		return "expired"
	case CutMaxAge:
		return "max_age"
	case CutShutdown:
		return "shutdown"
	}
	return ""
}

// reason is that of refusing a request that was cut before its answer.
func (c Cause) reason() decision.Reason {
	switch c {
	case CutRevoked:
		return decision.Revoked
	case CutExpired:
		return decision.TokenExpired
	}
	return decision.Overloaded // max_age and shutdown: another gateway, or another try, may do
}

// live holds the requests in progress that a token let in. A decision holds for
// as long as its token does, not for as long as the connection: WebSockets, event
// streams, gRPC calls, downloads and uploads are asked about again whenever
// something is revoked, and once a second for what time alone changes.
type live struct {
	mu   sync.Mutex
	open map[*stream]struct{}
	cuts [Causes + 1]atomic.Uint64
}

// A stream is one request in progress.
type stream struct {
	claims *token.Claims
	began  time.Time
	doomed time.Time // when it was first seen revoked; used by watch alone
	writer *writer
	cancel context.CancelFunc
	cause  atomic.Uint32 // a Cause
}

// cut is why the request was cut, NotCut if it was not or has no token.
func (st *stream) cut() Cause {
	if st == nil {
		return NotCut
	}
	return Cause(st.cause.Load())
}

// add registers a request until the returned function is called. Whoever was
// revoked between the decision and now is cut at once: the watcher looked too early.
func (l *live) add(s *Snapshot, st *stream) (done func()) {
	l.mu.Lock()
	if l.open == nil {
		l.open = map[*stream]struct{}{}
	}
	l.open[st] = struct{}{}
	l.mu.Unlock()
	if s.Streams.Grace == 0 && s.Denied.Check(st.claims, st.began) != 0 {
		l.cut(st, CutRevoked)
	}
	return func() {
		l.mu.Lock()
		delete(l.open, st)
		l.mu.Unlock()
	}
}

// scan cuts what may not go on.
func (l *live) scan(s *Snapshot, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for st := range l.open {
		if st.cause.Load() != 0 {
			continue
		}
		if cause := st.check(s.Denied, s.Streams, now); cause != NotCut {
			l.cut(st, cause)
		}
	}
}

func (st *stream) check(list *denylist.List, limits Streams, now time.Time) Cause {
	if list.Check(st.claims, now) != 0 {
		if st.doomed.IsZero() {
			st.doomed = now
		}
		if now.Sub(st.doomed) >= limits.Grace {
			return CutRevoked
		}
	}
	switch leeway := *st.claims.Issuer.Config().Leeway; {
	case !limits.KeepExpired && !now.Before(st.claims.Expiry.Add(leeway)):
		return CutExpired
	case limits.MaxAge > 0 && now.Sub(st.began) >= limits.MaxAge:
		return CutMaxAge
	}
	return NotCut
}

// cut ends the request: its upstream's side by the context, its client's side by
// a close frame or by deadlines that have passed.
func (l *live) cut(st *stream, cause Cause) {
	if st.cause.CompareAndSwap(0, uint32(cause)) {
		l.cuts[cause].Add(1)
		st.writer.cut(cause) // first: whoever hears of the cancelling may revive the writer
		st.cancel()
	}
}

// Watch looks after requests in progress until the context ends: whenever changed
// says that the denylist has grown, and each second.
func (h *Handler) Watch(ctx context.Context, changed <-chan struct{}) {
	const pause = 5 * time.Millisecond // so that a flood of revocations costs one scan in so many
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-changed:
		}
		h.live.scan(h.current.Load(), time.Now())
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// CutStreams ends every request in progress that a token let in.
func (h *Handler) CutStreams() {
	h.live.mu.Lock()
	defer h.live.mu.Unlock()
	for st := range h.live.open {
		h.live.cut(st, CutShutdown)
	}
}

// Cuts counts the requests that were cut, by cause.
func (h *Handler) Cuts(cause Cause) uint64 { return h.live.cuts[cause].Load() }

// A hijacked connection has become a WebSocket, the one protocol that may be
// switched to. It follows the frames that go to the client, so that it knows when
// a close frame may be put between them.
type hijacked struct {
	net.Conn
	gone   context.CancelFunc // ends the upstream's side
	opened atomic.Bool        // the handshake was answered
	mu     sync.Mutex
	frames frames
}

// farewell is how long an upstream may go on after the client has closed its side.
const farewell = 5 * time.Second

// Read passes frames from the client on. An upstream that takes no notice of the
// client's end would be waited for without end.
func (c *hijacked) Read(b []byte) (int, error) {
	c.opened.Store(true)
	n, err := c.Conn.Read(b)
	if err != nil {
		time.AfterFunc(farewell, c.gone)
	}
	return n, err
}

// Write passes frames on.
func (c *hijacked) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.Conn.Write(b)
	c.frames.follow(b[:n])
	return n, err
}

// end closes the connection; the client is told why (RFC 6455 section 7.4.1: 1008
// policy violation, 1001 going away) unless that would fall into a frame.
func (c *hijacked) end(cause Cause) {
	if c.opened.Load() && c.mu.TryLock() { // else a write is stuck at a client that does not read
		if c.frames.between() {
			code := uint16(1008)
			if cause == CutShutdown {
				code = 1001
			}
			text := cause.String()
			frame := append(binary.BigEndian.AppendUint16([]byte{0x88, byte(2 + len(text))}, code), text...)
			c.Conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			c.Conn.Write(frame)
		}
		c.mu.Unlock()
	}
	c.Conn.Close()
}

// frames follows a sequence of WebSocket frames (RFC 6455 section 5.2) without
// looking at what is in them.
type frames struct {
	header []byte // of a frame that has begun, as far as it came
	left   uint64 // of its payload
}

// between tells whether the next byte begins a frame.
func (f *frames) between() bool { return len(f.header) == 0 && f.left == 0 }

func (f *frames) follow(b []byte) {
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, uint64(len(b)))
			f.left -= n
			b = b[n:]
			continue
		}
		f.header = append(f.header, b[0])
		b = b[1:]
		if len(f.header) < 2 || len(f.header) < f.headerSize() {
			continue
		}
		f.left = f.payload()
		f.header = f.header[:0]
	}
}

func (f *frames) headerSize() int {
	size := 2
	switch f.header[1] & 0x7f {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if f.header[1]&0x80 != 0 {
		size += 4 // masked, which a server must not do but may
	}
	return size
}

func (f *frames) payload() uint64 {
	length := uint64(f.header[1] & 0x7f)
	extended := 0
	switch length {
	case 126:
		extended = 2
	case 127:
		extended = 8
	default:
		return length
	}
	length = 0
	for _, c := range f.header[2 : 2+extended] {
		length = length<<8 | uint64(c)
	}
	return length
}
