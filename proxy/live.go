package proxy

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"slices"
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
	CutIssuer // a reload took the token's issuer out of the configuration
)

// Causes is how many causes there are; they count from 1.
const Causes = int(CutIssuer)

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
	case CutIssuer:
		return "issuer_removed"
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
	case CutIssuer:
		return decision.TokenIssuer
	}
	return decision.Overloaded // max_age and shutdown: another gateway, or another try, may do
}

// grpcStatus is the code that ends a gRPC call: UNAUTHENTICATED, or UNAVAILABLE
// where another try may do.
func (c Cause) grpcStatus() string {
	if c == CutRevoked || c == CutExpired || c == CutIssuer {
		return "16"
	}
	return "14"
}

// live holds the requests in progress that a token let in. A decision holds for
// as long as its token does, not for as long as the connection: WebSockets, event
// streams, gRPC calls, downloads and uploads are asked about again whenever
// something is revoked, and every few milliseconds for what time alone changes.
//
// An index from what a revocation names to the requests was refused: every request
// would pay for its upkeep, and asking about ten thousand again takes a few
// milliseconds. What must never be is that cutting one waits for its client, as all
// others stand behind it: cut only tells, and the request's own goroutine ends it.
type live struct {
	parts [64]part // so that a look at all holds up a new request for a fraction of it
	turn  atomic.Uint32
	cuts  [Causes + 1]atomic.Uint64
}

type part struct {
	mu   sync.Mutex
	open map[*stream]struct{}
}

// A stream is one request in progress.
type stream struct {
	claims *token.Claims
	part   *part // that has it
	began  time.Time
	until  time.Time // when its token is no longer accepted
	doomed time.Time // when it was first seen revoked; guarded by the part's mu
	writer *writer
	cause  atomic.Uint32 // a Cause
}

// cut is why the request was cut, NotCut if it was not or has no token.
func (st *stream) cut() Cause {
	if st == nil {
		return NotCut
	}
	return Cause(st.cause.Load())
}

// add registers a request until it leaves. Whoever was revoked between the decision and
// now is found here: the watcher looked too early. So is whose issuer is not in current
// any more.
func (l *live) add(s *Snapshot, current *atomic.Pointer[Snapshot], st *stream) {
	p := &l.parts[l.turn.Add(1)%uint32(len(l.parts))]
	st.part = p
	p.mu.Lock()
	if p.open == nil {
		p.open = map[*stream]struct{}{}
	}
	p.open[st] = struct{}{}
	// Held while asking: what is revoked before is found now, what is revoked later
	// by the watcher, who comes to this part after it.
	if cause := st.check(s.Denied, s.Streams, st.began); cause != NotCut {
		l.cut(st, cause)
	}
	if now := current.Load(); now != s && !now.Tokens.Accepts(st.claims.Issuer) {
		l.cut(st, CutIssuer)
	}
	p.mu.Unlock()
}

// leave is called when the request is over. Nothing cuts it any more.
func (st *stream) leave() {
	if st == nil || st.part == nil {
		return
	}
	st.part.mu.Lock()
	delete(st.part.open, st)
	st.part.mu.Unlock()
	st.part = nil
}

// scan cuts what may not go on. With a nil list it asks only what time has changed.
func (l *live) scan(list *denylist.List, limits Streams, now time.Time) {
	for i := range l.parts {
		p := &l.parts[i]
		p.mu.Lock()
		for st := range p.open {
			if st.cause.Load() != 0 {
				continue
			}
			if cause := st.check(list, limits, now); cause != NotCut {
				l.cut(st, cause)
			}
		}
		p.mu.Unlock()
	}
}

func (st *stream) check(list *denylist.List, limits Streams, now time.Time) Cause {
	if st.doomed.IsZero() && list != nil && list.Check(st.claims, now) != 0 {
		st.doomed = now
	}
	switch {
	case !st.doomed.IsZero() && now.Sub(st.doomed) >= limits.Grace:
		return CutRevoked
	case !limits.KeepExpired && !now.Before(st.until):
		return CutExpired
	case limits.MaxAge > 0 && now.Sub(st.began) >= limits.MaxAge:
		return CutMaxAge
	}
	return NotCut
}

// cut has the request end. It waits for nobody.
func (l *live) cut(st *stream, cause Cause) {
	if st.cause.CompareAndSwap(0, uint32(cause)) {
		l.cuts[cause].Add(1)
		st.writer.cut(cause)
	}
}

// Watch looks after requests in progress until the context ends: whenever changed
// says that the denylist has grown, and all the time for what has come to its end.
func (h *Handler) Watch(ctx context.Context, changed <-chan struct{}) {
	const (
		tick = 25 * time.Millisecond
		most = 25 * time.Millisecond // that a revocation waits for the next look
	)
	often, seldom := time.NewTicker(tick), time.NewTicker(time.Second)
	defer often.Stop()
	defer seldom.Stop()
	for {
		s := h.current.Load()
		list := s.Denied
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-seldom.C: // whatever changed without saying so
		case <-often.C:
			list = nil
		}
		began := time.Now()
		h.live.scan(list, s.Streams, began)
		if list == nil {
			continue
		}
		// A flood of revocations costs a tenth of one core while few requests are open,
		// and a sixth with ten thousand; each still waits less than 50 ms.
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(9*time.Since(began), most)):
		}
	}
}

// CutStreams ends every request in progress that a token let in.
func (h *Handler) CutStreams() {
	h.live.each(func(st *stream) { h.live.cut(st, CutShutdown) })
}

// each is given every request in progress. It must not wait.
func (l *live) each(f func(*stream)) {
	for i := range l.parts {
		p := &l.parts[i]
		p.mu.Lock()
		for st := range p.open {
			f(st)
		}
		p.mu.Unlock()
	}
}

// Cuts counts the requests that were cut, by cause.
func (h *Handler) Cuts(cause Cause) uint64 { return h.live.cuts[cause].Load() }

// moment is how long a client may take to let what is being sent come to an end
// that it understands. A client that reads nothing cannot draw the cut out.
const moment = 20 * time.Millisecond

// A hijacked connection has become a WebSocket, the one protocol that may be
// switched to. It follows the frames that go to the client, so that it knows when
// a close frame may be put between them.
type hijacked struct {
	net.Conn
	gone   context.CancelFunc // ends the upstream's side
	opened atomic.Bool        // the handshake was answered
	cause  atomic.Uint32      // a Cause
	mu     sync.Mutex         // held while writing
	frames frames
}

// farewell is how long an upstream may go on after the client has closed its side.
const farewell = 5 * time.Second

// Read passes frames from the client on; after a cut it takes them and passes
// nothing on. An upstream that takes no notice of the client's end would be waited
// for without end.
func (c *hijacked) Read(b []byte) (int, error) {
	c.opened.Store(true)
	for {
		n, err := c.Conn.Read(b)
		if err != nil {
			time.AfterFunc(farewell, c.gone)
		}
		if c.cause.Load() == 0 {
			return n, err
		}
		if err != nil {
			return 0, err
		}
	}
}

// Write passes frames on; after a cut no more than ends the one that has begun.
func (c *hijacked) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause.Load() != 0 {
		if b = b[:c.frames.rest(b)]; len(b) == 0 {
			return 0, errCut
		}
	}
	n, err := c.Conn.Write(b)
	c.frames.follow(b[:n])
	if err == nil && c.cause.Load() != 0 && c.frames.between() {
		err = errCut
	}
	return n, err
}

// cut has the connection end as soon as no frame is being sent, at the latest in a
// moment. What it sets going ends in Close, which ReverseProxy calls.
func (c *hijacked) cut(cause Cause) {
	c.cause.Store(uint32(cause))
	c.Conn.SetWriteDeadline(time.Now().Add(moment))
	if c.mu.TryLock() {
		between := c.frames.between()
		c.mu.Unlock()
		if between {
			c.gone()
			return
		}
	}
	time.AfterFunc(moment, c.gone)
}

// Close closes the connection. After a cut the client is told why first.
func (c *hijacked) Close() error {
	cause := Cause(c.cause.Load())
	if cause == NotCut {
		return c.Conn.Close()
	}
	if !c.tell(cause) {
		drop(c.Conn)
		return c.Conn.Close()
	}
	// Closing now, while the client may be sending, would reset the connection, and
	// the frame could be lost: the client gets time to answer it.
	const answer = 500 * time.Millisecond
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	c.Conn.SetReadDeadline(time.Now().Add(answer))
	if _, err := io.Copy(io.Discard, c.Conn); err != nil {
		drop(c.Conn)
	}
	return c.Conn.Close()
}

// tell sends a close frame (RFC 6455 section 7.4.1: 1008 policy violation, 1001
// going away) unless it would fall into another one.
func (c *hijacked) tell(cause Cause) bool {
	c.mu.Lock() // whoever writes has a deadline since the cut
	defer c.mu.Unlock()
	if !c.opened.Load() || !c.frames.between() {
		return false
	}
	code := uint16(1008)
	if cause == CutShutdown {
		code = 1001
	}
	text := cause.String()
	frame := append(binary.BigEndian.AppendUint16([]byte{0x88, byte(2 + len(text))}, code), text...)
	c.Conn.SetWriteDeadline(time.Now().Add(moment))
	_, err := c.Conn.Write(frame)
	return err == nil
}

// wireKey is the context key of a request's connection.
type wireKey struct{}

// ConnContext is for http.Server: it tells the handler which of a Front's connections a
// request came by. Without it the client of an answer that was cut still receives what
// waits in the connection.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*secured); ok {
		conn = &c.strict
	}
	return context.WithValue(ctx, wireKey{}, conn)
}

// drop has the connection's Close discard what waits in it: a client that reads
// slowly would go on receiving, megabytes after the cut. It waits for nothing, and
// sees to it that Close does not either.
func drop(conn net.Conn) {
	isTLS := false
	for {
		outer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		if _, secure := conn.(*tls.Conn); secure {
			isTLS = true
		}
		conn = outer.NetConn()
	}
	if tcp, ok := conn.(interface {
		SetLinger(int) error
		CloseWrite() error
	}); ok {
		tcp.SetLinger(0)
		if isTLS {
			tcp.CloseWrite() // else Close would try to say goodbye for up to 5 s
		}
	}
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
		b = b[f.step(b):]
	}
}

// rest is how many bytes of b belong to the frame that has begun.
func (f *frames) rest(b []byte) (n int) {
	ahead := frames{slices.Clone(f.header), f.left}
	for !ahead.between() && n < len(b) {
		n += ahead.step(b[n:])
	}
	return n
}

// step takes what is next, which never reaches beyond the end of a frame.
func (f *frames) step(b []byte) int {
	if f.left > 0 {
		n := min(f.left, uint64(len(b)))
		f.left -= n
		return int(n)
	}
	f.header = append(f.header, b[0])
	if len(f.header) >= 2 && len(f.header) == f.headerSize() {
		f.left = f.payload()
		f.header = f.header[:0]
	}
	return 1
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
