package proxy

import (
	"encoding/binary"
	"sync"
	"time"
)

// A pace is how fast a client may send frames of HTTP/2 that ask for nothing. They
// cost it a few bytes, and the gateway system calls, wake-ups and locks; net/http
// takes them as fast as they come, so that four such clients had everybody else wait
// for a hundred times as long (CVE-2023-44487, CVE-2019-9512, -9514, -9515, -9518).
//
// Each connection has credit, which such frames use up and time brings back, and so
// does what is answered: whoever uses the gateway much may reset, prioritise and move
// windows much. Who has no credit left is read more slowly, and nothing else happens
// to him: it may be a load balancer, whose connection is many people's. So nobody goes
// into debt either, nor pays for what he cannot know, such as that an upload was
// refused meanwhile, nor for more than others do because his requests are large.
type pace struct {
	perSecond int // what comes back by itself

	mu      sync.Mutex
	credit  int
	at      time.Time  // when credit was right
	in, out frameHeads // read, and written, so far
}

// What frames cost, and bring back.
const (
	frameCost  = 64              // of a frame that carries no data, in units
	maxCredit  = 300 * frameCost // a connection's at its beginning, and at most
	perSecond  = 200 * frameCost // comes back by itself
	smallFrame = 512             // bytes; DATA frames below that cost a unit: 12,800 a second need no answer

	// A load balancer's connection is many people's, of whom many may lose patience at
	// once; it is known by trusted_proxies.
	proxyPerSecond = 5 * perSecond
)

// newPace begins behind so many bytes that are no frames.
func newPace(perSecond, preface int) *pace {
	return &pace{perSecond: perSecond, credit: maxCredit, at: time.Now(), in: frameHeads{skip: preface}}
}

// http2Preface is RFC 9113 section 3.4.
const (
	http2Preface = "PRI * HTTP/2.0" + prefaceRest
	prefaceRest  = "\r\n\r\nSM\r\n\r\n"
)

// Types and flags of frames, RFC 9113 section 6.
const (
	frameData     = 0x0
	frameHeaders  = 0x1
	flagEndStream = 0x1
)

// received takes note of bytes from the client, and is how long they must wait.
func (p *pace) received(b []byte) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	cost := 0
	for f := range p.in.of(b) {
		switch {
		case f.kind != frameData || f.size == 0 && f.flags&flagEndStream == 0:
			cost += frameCost
		case f.size < smallFrame:
			cost++
		}
	}
	if cost == 0 {
		return 0
	}
	now := time.Now()
	if back := int(min(now.Sub(p.at), time.Minute) * time.Duration(p.perSecond) / time.Second); back > 0 {
		p.credit, p.at = min(p.credit+back, maxCredit), now
	}
	p.credit -= cost
	return max(0, time.Duration(-p.credit)*time.Second/time.Duration(p.perSecond))
}

// sent takes note of bytes to the client.
func (p *pace) sent(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	back := 0
	for f := range p.out.of(b) {
		switch {
		case (f.kind == frameData || f.kind == frameHeaders) && f.flags&flagEndStream != 0:
			back += 5 * frameCost // the request's HEADERS, and what may come with it
		case f.kind == frameData:
			back += 3*frameCost + f.size/64 // what it answers, and the client's WINDOW_UPDATE for the stream and the connection
		}
	}
	p.credit = min(p.credit+back, maxCredit)
}

// frameHeads finds where frames begin in bytes that come in pieces.
type frameHeads struct {
	head [9]byte
	have int // bytes of head
	skip int // bytes before the next frame
}

type frame struct {
	size        int
	kind, flags byte
}

// of are the frames whose heads end in b, which follows what was given before.
func (f *frameHeads) of(b []byte) func(func(frame) bool) {
	return func(yield func(frame) bool) {
		for len(b) > 0 {
			if f.skip > 0 {
				n := min(f.skip, len(b))
				f.skip, b = f.skip-n, b[n:]
				continue
			}
			n := copy(f.head[f.have:], b)
			f.have, b = f.have+n, b[n:]
			if f.have < len(f.head) {
				return
			}
			size := int(binary.BigEndian.Uint32(f.head[:4]) >> 8)
			f.have, f.skip = 0, size
			yield(frame{size, f.head[3], f.head[4]})
		}
	}
}
