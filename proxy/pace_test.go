package proxy

import (
	"encoding/binary"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// bytesOf are frames on the wire; what is behind the head says nothing.
func bytesOf(all ...frame) (b []byte) {
	for _, f := range all {
		head := binary.BigEndian.AppendUint32(nil, uint32(f.size)<<8|uint32(f.kind))
		b = append(append(b, head...), f.flags, 0, 0, 0, 1)
		b = append(b, make([]byte, f.size)...)
	}
	return b
}

// TestFrameHeads: frames are found whatever pieces they come in.
func TestFrameHeads(t *testing.T) {
	want := []frame{{0, 4, 0}, {18, 1, 5}, {16384, 0, 0}, {4, 8, 0}, {1, 0, 1}, {0, 0, 1}, {8, 6, 1}}
	stream := append([]byte(http2Preface), bytesOf(want...)...)
	for size := 1; size <= len(stream); size = size*3/2 + 1 {
		f := frameHeads{skip: len(http2Preface)}
		var got []frame
		for rest := stream; len(rest) > 0; {
			n := min(size, len(rest))
			for head := range f.of(rest[:n]) {
				got = append(got, head)
			}
			rest = rest[n:]
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("in pieces of %d: %v, want %v", size, got, want)
		}
	}
}

// TestPace: who is answered is never made to wait, and who floods is soon.
func TestPace(t *testing.T) {
	request, body := frame{300, frameHeaders, flagEndStream}, frame{16384, frameData, 0}
	answer := bytesOf(frame{100, frameHeaders, 0}, frame{1024, frameData, flagEndStream})
	priority, reset, move, ping := frame{5, 2, 0}, frame{4, 3, 0}, frame{4, 8, 0}, frame{8, 6, 0}
	for _, c := range []struct {
		name      string
		received  []frame
		sent      []byte
		unhurried float64 // rounds a second that need no waiting, at least
		most      float64 // and at most; 0: any number
	}{
		{"requests", []frame{request}, answer, 1e5, 0},
		{"requests with headers of 32 KiB", []frame{{16 << 10, frameHeaders, flagEndStream}, {16 << 10, 9, 0}}, answer, 1e5, 0},
		{"requests with priorities and windows", []frame{priority, request, move, move, reset}, answer, 1e5, 0},
		{"an upload", []frame{body}, bytesOf(move, move), 1e5, 0},
		{"a refused upload", []frame{{1200, frameData, 0}}, bytesOf(reset), 1e5, 0},
		{"a download", []frame{move, move}, bytesOf(body), 1e5, 0},
		{"small messages to and fro", []frame{{50, frameData, 0}, move, move}, bytesOf(frame{50, frameData, 0}), 1e5, 0},
		{"small messages one way", []frame{{50, frameData, 0}}, nil, 10_000, 15_000},
		{"cancelled requests", []frame{request, reset}, nil, 90, 110},
		{"refused requests", []frame{request}, bytesOf(reset), 180, 220},
		{"pings", []frame{ping}, bytesOf(ping), 180, 220},
		{"windows", []frame{move}, nil, 180, 220},
		{"continuations", []frame{{0, 9, 0}}, nil, 180, 220},
		{"empty data", []frame{{0, frameData, 0}}, nil, 180, 220},
		{"settings", []frame{{6, 4, 0}}, bytesOf(frame{0, 4, 1}), 180, 220},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPace(perSecond, 0)
				in := bytesOf(c.received...)
				const rounds = 200_000
				var waited time.Duration
				for range rounds {
					wait := p.received(in)
					if waited += wait; wait > time.Duration(len(c.received)+1)*time.Second/200 {
						t.Fatalf("a wait of %v", wait)
					}
					time.Sleep(wait)
					p.sent(c.sent)
				}
				rate := rounds / max(waited.Seconds(), 1e-9)
				if rate < c.unhurried || c.most > 0 && rate > c.most {
					t.Errorf("%.0f rounds a second; %v were waited for %d", rate, waited, rounds)
				}
			})
		})
	}
}

// TestPaceRecovers: after a flood, and however long a connection does nothing, its
// credit is what it is for everybody.
func TestPaceRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(perSecond, 0)
		ping := bytesOf(frame{8, 6, 0})
		burst := func() (n int) {
			for p.received(ping) == 0 {
				n++
			}
			return n
		}
		if n := burst(); n != maxCredit/frameCost {
			t.Errorf("at first %d frames may come at once", n)
		}
		for _, idle := range []time.Duration{time.Second, time.Hour, 24 * 365 * time.Hour} {
			time.Sleep(idle)
			if n, want := burst(), min(maxCredit, int(idle.Seconds()*perSecond))/frameCost; n < want-2 || n > want {
				t.Errorf("after %v %d frames may come at once, want about %d", idle, n, want)
			}
		}
	})
}

// TestPaceOfProxies: who is a trusted proxy may go on five times as fast.
func TestPaceOfProxies(t *testing.T) {
	proxies, err := ParseTrustedProxies([]string{"192.0.2.0/24"}, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		proxies TrustedProxies
		want    int
	}{{proxies, proxyPerSecond}, {TrustedProxies{}, perSecond}} {
		f := &Front{Proxies: func() TrustedProxies { return c.proxies }}
		if got := f.pace(&tape{}, 0).perSecond; got != c.want {
			t.Errorf("%v: %d, want %d", c.proxies, got, c.want)
		}
	}
}
