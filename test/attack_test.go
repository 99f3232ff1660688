package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A siege is one gateway under attack after attack, and somebody who goes on
// using it.
type siege struct {
	*gateway
	idp    *issuer
	known  string // a token that is in the cache
	client *http.Client
	beside *bystander
}

// siegeConfig has a good application and misbehaving ones, each on a route of its own.
const siegeConfig = `
listen: 127.0.0.1:0
issuers: [%s]
limits: {header_timeout: 1s, idle_timeout: %s}
upstreams:
  app: {url: %q, timeout: {idle: 1s}} # so that afterwards nothing is left of them
  bad: {url: %q, timeout: {idle: 1s, response_header: 1s}}
routes:
  - {name: app, upstream: app}
  - {name: open, path: /open/, upstream: app, auth: none}
  - {name: bad, path: /bad/, upstream: bad, auth: none}
`

func newSiege(t *testing.T, idle time.Duration, bad string) *siege {
	t.Helper()
	beside := newBystander(t)
	if bad == "" {
		bad = beside.app
	}
	idp := newIssuer(t)
	s := &siege{gateway: serving(t, fmt.Sprintf(siegeConfig, corp(idp), idle, beside.app, bad)), idp: idp, known: idp.token(nil), beside: beside}
	prefer(t, s.cmd.Process.Pid, 1)
	prefer(t, beside.cmd.Process.Pid, 2)
	transport := &http.Transport{MaxIdleConnsPerHost: 4}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	for range 3 { // the cache takes tokens in its own time
		s.ask(t)
		time.Sleep(20 * time.Millisecond)
	}
	return s
}

// ask makes a good request, and says how long it took.
func (s *siege) ask(t *testing.T) time.Duration {
	req, err := http.NewRequest("GET", s.url("/"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.known)
	began := time.Now()
	res, err := s.client.Do(req)
	if err != nil {
		t.Errorf("a good request: %v", err)
		return time.Since(began)
	}
	defer res.Body.Close()
	if text, err := io.ReadAll(res.Body); res.StatusCode != 200 || string(text) != "hello" || err != nil {
		t.Errorf("a good request: %s %q %q %v", res.Status, res.Header.Get("Durward-Reason"), text, err)
	}
	return time.Since(began)
}

func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*99/100]
}

// endure attacks for the given time, or until the attack returns, while good requests
// are made, and checks what must hold then and afterwards. memory is how many bytes the
// process may grow by.
func (s *siege) endure(t *testing.T, lasting time.Duration, memory float64, attack func(context.Context)) {
	t.Helper()
	state := func(name string) float64 { return metric(t, s.gateway, name) }
	few, many := errand{s.url("/"), s.known, 500}, errand{s.url("/"), s.known, 0}
	s.beside.begin(few)
	idle := s.beside.end(few)
	goroutines, resident := state("go_goroutines"), state("process_resident_memory_bytes")
	peak := resident
	ctx, cancel := context.WithTimeout(context.Background(), lasting)
	defer cancel()
	var attackers sync.WaitGroup
	attackers.Go(func() {
		defer cancel()
		attack(ctx)
	})
	s.beside.begin(many)
	for look := time.NewTicker(200 * time.Millisecond); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-look.C:
			peak = max(peak, state("process_resident_memory_bytes"))
		}
	}
	busy := s.beside.end(many)
	attackers.Wait()
	for range 50 {
		s.ask(t)
	}
	quiet, attacked := p99(idle), p99(busy)
	t.Logf("p99 of good requests: %v idle, %v (median %v, %d requests) under attack, %.1f times; memory %.0f MiB, at most %.0f MiB", quiet, attacked, busy[len(busy)/2], len(busy), float64(attacked)/float64(quiet), resident/(1<<20), peak/(1<<20))
	if attacked > max(2*time.Second, 20*quiet) {
		t.Errorf("p99 of good requests: %v idle, %v under attack", quiet, attacked)
	}
	if peak-resident > memory {
		t.Errorf("memory grew from %.0f to %.0f MiB", resident/(1<<20), peak/(1<<20))
	}
	s.client.CloseIdleConnections()
	eventually(t, 20*time.Second, "no request is in progress", func() bool { return state("durward_inflight_requests") == 0 })
	eventually(t, 20*time.Second, fmt.Sprintf("goroutines are back at %.0f", goroutines), func() bool { return state("go_goroutines") <= goroutines+8 })
	select {
	case <-s.ended:
		t.Fatalf("the gateway ended:\n%.4000s", s.log)
	default:
	}
	for _, msg := range []string{"a bug: the request was refused", "http: panic serving"} {
		if strings.Contains(s.log.String(), msg) {
			t.Errorf("the log says: %s", msg)
		}
	}
}

// refusedFor counts the requests refused for a reason, on all routes.
func (s *siege) refusedFor(t *testing.T, reason string) (n float64) {
	t.Helper()
	for line := range strings.Lines(send(t, "GET", s.admin+"/metrics", "").Body) {
		if strings.HasPrefix(line, "durward_requests_total{") && strings.Contains(line, `reason="`+reason+`"`) {
			var value float64
			fmt.Sscan(line[strings.LastIndexByte(line, ' '):], &value)
			n += value
		}
	}
	return n
}

// inParallel runs attackers until the context ends.
func inParallel(n int, attacker func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { attacker(i) })
	}
	all.Wait()
}

// dial opens a connection that ends with the context.
func (s *siege) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.public[0])
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	return conn, nil
}

const mebibyte = 1 << 20

// TestSlowClients: those who send a header, a body or nothing a byte at a time are
// shown out, and hold nobody up.
func TestSlowClients(t *testing.T) {
	for _, c := range []struct {
		name, head, drop string
		times            time.Duration // at most, until the connection ends; 0: it may go on
	}{
		{"slow headers", "GET / HTTP/1.1\r\nHost: app.test\r\n", "X: y\r\n", 3 * time.Second},
		{"slow header bytes", "GET / HTTP/1.1\r\nHost: app.test\r\nX: ", "y", 3 * time.Second},
		{"nothing", "", "", 3 * time.Second},
		{"slow bodies of refused requests", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100000\r\n\r\n", "x", 3 * time.Second},
		{"slow bodies", "POST /open/ HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100000\r\n\r\n", "x", 0},
		{"bodies that stop", "POST /open/ HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100000\r\n\r\nx", "", 4 * time.Second},
		{"chunks that stop", "POST /open/ HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n5", "", 4 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSiege(t, time.Second, "")
			var ended, late atomic.Int64
			s.endure(t, 4500*time.Millisecond, 64*mebibyte, func(ctx context.Context) {
				inParallel(200, func(int) {
					conn, err := s.dial(ctx)
					if err != nil {
						return
					}
					defer conn.Close()
					began := time.Now()
					gone := make(chan struct{})
					go func() {
						io.Copy(io.Discard, conn)
						close(gone)
					}()
					io.WriteString(conn, c.head)
					for ctx.Err() == nil {
						select {
						case <-gone:
							if ctx.Err() == nil {
								ended.Add(1)
							}
							if c.times > 0 && time.Since(began) > c.times {
								late.Add(1)
							}
							return
						case <-time.After(100 * time.Millisecond):
							io.WriteString(conn, c.drop)
						}
					}
				})
			})
			if c.times > 0 && (ended.Load() != 200 || late.Load() > 0) || c.times == 0 && ended.Load() > 0 {
				t.Errorf("%d of 200 connections were ended, %d of them late", ended.Load(), late.Load())
			}
		})
	}
}

// TestIdleConnections holds ten thousand of them, each of which has asked for
// something once.
func TestIdleConnections(t *testing.T) {
	const many = 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < many+500 {
		lack(t, fmt.Sprintf("a process may have %d files open here; this needs %d (ulimit -Hn)", limit.Max, many+500))
	}
	s := newSiege(t, time.Minute, "")
	var open atomic.Int64
	s.endure(t, 2*time.Minute, 40<<10*many, func(ctx context.Context) {
		inParallel(20, func(int) {
			for held := 0; held < many/20 && ctx.Err() == nil; {
				conn, err := s.dial(ctx)
				if err != nil {
					continue
				}
				io.WriteString(conn, "GET /open/ HTTP/1.1\r\nHost: app.test\r\n\r\n")
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || res.StatusCode != 200 {
					conn.Close() // it did not ask within header_timeout, which is short here
					continue
				}
				io.Copy(io.Discard, res.Body)
				open.Add(1)
				held++
			}
		})
		time.Sleep(3 * time.Second) // they do nothing
	})
	if open.Load() != many {
		t.Errorf("%d of %d connections", open.Load(), many)
	}
}

// TestTokenFloods: tokens that are almost good cost their check and no more: no
// fetch of keys each, no line in the log each.
func TestTokenFloods(t *testing.T) {
	for _, c := range []struct {
		name    string
		token   func(s *siege, good string) string
		reasons []string
	}{
		{"bad signatures", func(_ *siege, good string) string {
			signature := make([]byte, 64)
			rand.Read(signature)
			return good[:strings.LastIndexByte(good, '.')+1] + b64(signature)
		}, []string{"token_signature", "overloaded"}},
		{"unknown kids", func(s *siege, good string) string {
			parts := strings.Split(good, ".")
			return b64(fmt.Appendf(nil, `{"alg":"ES256","typ":"at+jwt","kid":"k%d"}`, jtis.Add(1))) + "." + parts[1] + "." + parts[2]
		}, []string{"token_signature", "overloaded"}},
		{"garbage", func(*siege, string) string { return strings.Repeat("x", 7000) }, []string{"token_malformed"}},
		{"too long", func(*siege, string) string { return strings.Repeat("x", 9000) }, []string{"token_malformed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSiege(t, time.Minute, "")
			fetches, lines := s.idp.fetches.Load(), len(s.log.lines("request"))
			var sent atomic.Int64
			s.endure(t, 1500*time.Millisecond, 128*mebibyte, func(ctx context.Context) {
				good := s.idp.token(nil)
				inParallel(4, func(int) {
					conn, err := s.dial(ctx)
					if err != nil {
						t.Error(err)
						return
					}
					in := bufio.NewReader(conn)
					for {
						fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer %s\r\n\r\n", c.token(s, good))
						res, err := http.ReadResponse(in, nil)
						if err != nil {
							if ctx.Err() == nil {
								t.Errorf("after %d: %v", sent.Load(), err)
							}
							return
						}
						sent.Add(1)
						io.Copy(io.Discard, res.Body)
						if !slices.Contains(c.reasons, res.Header.Get("Durward-Reason")) {
							t.Errorf("%s %s", res.Status, res.Header.Get("Durward-Reason"))
							return
						}
					}
				})
			})
			counted := 0.0
			for _, reason := range c.reasons {
				counted += s.refusedFor(t, reason)
			}
			if got := s.idp.fetches.Load() - fetches; got > 20 {
				t.Errorf("the keys were fetched %d times", got)
			}
			var refusals, left int
			eventually(t, 5*time.Second, "every refusal is logged, or in the number of those left out", func() bool {
				refusals, left = 0, 0
				for _, line := range s.log.lines("request")[lines:] {
					if slices.Contains(c.reasons, line["decision"].(map[string]any)["reason"].(string)) {
						refusals++
					}
				}
				for _, line := range s.log.lines("refusals were left out of the log") {
					if slices.Contains(c.reasons, line["reason"].(string)) {
						left += int(line["count"].(float64))
					}
				}
				return float64(refusals+left) == counted
			})
			t.Logf("%d refused; %d of them logged, %d left out", int(counted), refusals, left)
			if counted < float64(sent.Load()) || counted > float64(sent.Load()+4) || refusals > 100*5*len(c.reasons) {
				t.Errorf("%d were sent, %v counted, %d logged", sent.Load(), counted, refusals)
			}
		})
	}
}

// TestRefusedUploads: a body that nobody wants is neither asked for nor read.
func TestRefusedUploads(t *testing.T) {
	for _, c := range []struct{ name, fields string }{
		{"announced", "Content-Length: 10000000000\r\nExpect: 100-continue\r\n"},
		{"announced chunks", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"},
		{"sent", "Content-Length: 10000000000\r\n"},
		{"sent in chunks", "Transfer-Encoding: chunked\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSiege(t, time.Minute, "")
			waits := strings.Contains(c.fields, "Expect")
			piece := strings.Repeat("x", 64<<10)
			if strings.Contains(c.fields, "chunked") {
				piece = fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
			}
			var refused, taken atomic.Int64
			s.endure(t, 1500*time.Millisecond, 64*mebibyte, func(ctx context.Context) {
				inParallel(8, func(int) {
					for ctx.Err() == nil {
						conn, err := s.dial(ctx)
						if err != nil {
							return
						}
						io.WriteString(conn, "POST / HTTP/1.1\r\nHost: app.test\r\n"+c.fields+"\r\n")
						if !waits {
							go func() {
								for {
									n, err := io.WriteString(conn, piece)
									taken.Add(int64(n))
									if err != nil {
										return
									}
								}
							}()
						}
						in := bufio.NewReader(conn)
						res, err := http.ReadResponse(in, nil)
						if err == nil {
							if res.StatusCode != 401 || !res.Close {
								t.Errorf("%s, close: %v", res.Status, res.Close)
							}
							refused.Add(1)
							io.Copy(io.Discard, res.Body)
							if rest, _ := io.ReadAll(in); len(rest) > 0 {
								t.Errorf("behind the refusal: %q", rest)
							}
						} else if ctx.Err() == nil {
							t.Errorf("no answer: %v", err)
						}
						conn.Close()
					}
				})
			})
			t.Logf("%d refused; of each %d KiB were taken", refused.Load(), taken.Load()/max(1, refused.Load())>>10)
			if refused.Load() == 0 || taken.Load()/max(1, refused.Load()) > 16*mebibyte {
				t.Errorf("%d refused, %d bytes taken", refused.Load(), taken.Load())
			}
			if n := s.refusedFor(t, "no_token"); n < float64(refused.Load()) {
				t.Errorf("%d refused, %v counted", refused.Load(), n)
			}
		})
	}
}

// TestHostileUpstreams: an application that misbehaves costs those who ask it, and
// nobody else.
func TestHostileUpstreams(t *testing.T) {
	endless := func(conn net.Conn, begin, more string) {
		io.WriteString(conn, begin)
		more = strings.Repeat(more, 100)
		for {
			if _, err := io.WriteString(conn, more); err != nil {
				return
			}
		}
	}
	for _, c := range []struct {
		name   string
		answer func(net.Conn)
		status int
		reason string
	}{
		{"endless headers", func(conn net.Conn) { endless(conn, "HTTP/1.1 200 OK\r\n", "X-A: b\r\n") }, 502, "upstream_unreachable"},
		{"an endless header", func(conn net.Conn) { endless(conn, "HTTP/1.1 200 OK\r\nX-A: ", "bbbbbbbb") }, 502, "upstream_unreachable"},
		{"an endless status line", func(conn net.Conn) { endless(conn, "HTTP/1.1 200 ", "bbbbbbbb") }, 502, "upstream_unreachable"},
		{"informational responses", func(conn net.Conn) { endless(conn, "", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n") }, 502, "upstream_unreachable"},
		{"100 Continue", func(conn net.Conn) { endless(conn, "", "HTTP/1.1 100 Continue\r\n\r\n") }, 502, "upstream_unreachable"},
		{"101 to a plain request", func(conn net.Conn) { endless(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n", "x") }, 502, "upstream_unreachable"},
		{"silence", func(conn net.Conn) { io.Copy(io.Discard, conn) }, 504, "upstream_timeout"},
		{"an end at once", func(conn net.Conn) {}, 502, "upstream_unreachable"},
		{"garbage", func(conn net.Conn) { endless(conn, "", "\x00\x01\r\n") }, 502, "upstream_unreachable"},
		{"two lengths", func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
		}, 502, "upstream_unreachable"},
		{"a body without end", func(conn net.Conn) {
			endless(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "hello")
		}, 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSiege(t, time.Minute, scripted(t, c.answer))
			var answered atomic.Int64
			s.endure(t, 1500*time.Millisecond, 96*mebibyte, func(ctx context.Context) {
				inParallel(8, func(int) {
					for ctx.Err() == nil {
						req, err := http.NewRequest("GET", s.url("/bad/"), nil) // not with the context: its end is no failure
						if err != nil {
							t.Error(err)
							return
						}
						res, err := client.Do(req)
						if err != nil {
							t.Errorf("no answer: %v", err)
							return
						}
						text, _ := io.ReadAll(res.Body)
						res.Body.Close()
						answered.Add(1)
						if c.status == 200 && res.StatusCode == 502 {
							continue // the transport took what stood behind one answer for the next, which is none
						}
						if res.StatusCode != c.status || res.Header.Get("Durward-Reason") != c.reason || c.status == 200 && string(text) != "hello" {
							t.Errorf("%s %q %q", res.Status, res.Header.Get("Durward-Reason"), text)
							return
						}
					}
				})
			})
			if answered.Load() == 0 {
				t.Error("nobody was answered")
			}
			if c.reason != "" {
				if n := s.refusedFor(t, c.reason); n != float64(answered.Load()) {
					t.Errorf("%d were answered, %v counted", answered.Load(), n)
				}
			}
		})
	}
}

// TestHeaderFloods: what is far over the limits, or has two readings, is turned
// away before it costs anything.
func TestHeaderFloods(t *testing.T) {
	for _, c := range []struct{ name, request, reason string }{
		{"150,000 fields", "GET / HTTP/1.1\r\nHost: app.test\r\n" + strings.Repeat("a: b\r\n", 150_000) + "\r\n", "too_large"},
		{"a field of a megabyte", "GET / HTTP/1.1\r\nHost: app.test\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "too_large"},
		{"200 fields", "GET / HTTP/1.1\r\nHost: app.test\r\n" + strings.Repeat("a: b\r\n", 200) + "\r\n", "too_large"},
		{"two lengths", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "ambiguous_request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSiege(t, time.Minute, "")
			var refused atomic.Int64
			s.endure(t, 1500*time.Millisecond, 96*mebibyte, func(ctx context.Context) {
				inParallel(8, func(int) {
					// Three thousand a second: each takes some 25 KiB for the half second in which its
					// connection is closed gently, and how many a machine can send is not asked here.
					turn := time.NewTicker(2500 * time.Microsecond)
					defer turn.Stop()
					for ctx.Err() == nil {
						<-turn.C
						conn, err := s.dial(ctx)
						if err != nil {
							return
						}
						go io.WriteString(conn, c.request)
						res, err := http.ReadResponse(bufio.NewReader(conn), nil)
						if err == nil {
							refused.Add(1)
							if res.Header.Get("Durward-Reason") != c.reason {
								t.Errorf("%s %q", res.Status, res.Header.Get("Durward-Reason"))
							}
						} else if ctx.Err() == nil {
							t.Errorf("no answer: %v", err)
						}
						conn.Close()
					}
				})
			})
			t.Logf("%d refused", refused.Load())
			if n := s.refusedFor(t, c.reason); refused.Load() == 0 || n < float64(refused.Load()) {
				t.Errorf("%d refused, %v counted", refused.Load(), n)
			}
		})
	}
}

// TestHTTP2Floods sends frames as no client does (CVE-2023-44487, CVE-2023-45288,
// CVE-2019-9512, -9514, -9515, -9518, and what became of them). They are read no faster
// than the gateway can be bothered with them. (TestBusyHTTP2 is the other side.)
func TestHTTP2Floods(t *testing.T) {
	block := func(fields ...string) []byte {
		var b bytes.Buffer
		encoder := hpack.NewEncoder(&b)
		for _, f := range append([]string{":method: GET", ":scheme: http", ":path: /open/", ":authority: app.test"}, fields...) {
			i := strings.Index(f[1:], ": ") + 1
			encoder.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+2:]})
		}
		return b.Bytes()
	}
	request := block()
	for _, c := range []struct {
		name  string
		begin func(*http2.Framer) error
		more  func(f *http2.Framer, i uint32) error
		ends  bool // the gateway must end the connection; else it reads it slowly
	}{
		{"rapid reset", nil, func(f *http2.Framer, i uint32) error {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: request, EndStream: true, EndHeaders: true})
			return f.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}, false},
		{"streams without an end", nil, func(f *http2.Framer, i uint32) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: request, EndHeaders: true})
		}, false}, // all but 250 are refused
		{"CONTINUATION without an end", func(f *http2.Framer) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request})
		}, func(f *http2.Framer, i uint32) error {
			return f.WriteContinuation(1, false, block(fmt.Sprintf("x-%d: %s", i, strings.Repeat("x", 4000))))
		}, true},
		{"empty CONTINUATION without an end", func(f *http2.Framer) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request})
		}, func(f *http2.Framer, i uint32) error { return f.WriteContinuation(1, false, nil) }, false},
		{"SETTINGS", nil, func(f *http2.Framer, i uint32) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: i % 1000})
		}, false},
		{"PING", nil, func(f *http2.Framer, i uint32) error { return f.WritePing(false, [8]byte{byte(i)}) }, false},
		{"PRIORITY", nil, func(f *http2.Framer, i uint32) error {
			return f.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 2*i + 3, Weight: 7})
		}, false},
		{"empty DATA", func(f *http2.Framer) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request, EndHeaders: true})
		}, func(f *http2.Framer, i uint32) error { return f.WriteData(1, false, nil) }, false},
		{"WINDOW_UPDATE", nil, func(f *http2.Framer, i uint32) error { return f.WriteWindowUpdate(0, 1) }, false},
		{"a bomb of references", nil, func(f *http2.Framer, i uint32) error {
			bomb := block("x: " + strings.Repeat("x", 3900))
			bomb = append(bomb, bytes.Repeat([]byte{0x80 | 62}, 10_000)...) // the same entry of the table again and again
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: bomb, EndStream: true, EndHeaders: true})
			return nil
		}, false}, // it is not unpacked beyond the limit
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSiege(t, 5*time.Second, "")
			var ended, frames atomic.Int64
			s.endure(t, 3*time.Second, 256*mebibyte, func(ctx context.Context) {
				inParallel(4, func(int) {
					for ctx.Err() == nil {
						conn, err := s.dial(ctx)
						if err != nil {
							return
						}
						out := bufio.NewWriterSize(conn, 16<<10)
						framer := http2.NewFramer(out, conn)
						io.WriteString(out, http2.ClientPreface)
						framer.WriteSettings()
						drained := make(chan struct{})
						go func() {
							defer close(drained)
							io.Copy(io.Discard, conn)
						}()
						err = nil
						if c.begin != nil {
							err = c.begin(framer)
						}
						for i := uint32(0); err == nil && ctx.Err() == nil; i++ {
							if err = c.more(framer, i); err == nil {
								frames.Add(1)
							}
							if i%64 == 63 {
								select {
								case <-drained: // the other side has ended it
									err = io.EOF
								default:
								}
							}
							if err == nil && i%64 == 63 {
								err = out.Flush()
							}
						}
						conn.Close()
						<-drained
						if ctx.Err() == nil && err != nil && !errors.Is(err, http2.ErrFrameTooLarge) {
							ended.Add(1)
						}
					}
				})
			})
			t.Logf("%d frames, %d connections were ended", frames.Load(), ended.Load())
			if c.ends && ended.Load() == 0 {
				t.Error("no connection was ended")
			}
			if paced := metric(t, s.gateway, "durward_http2_paced_total"); !c.ends && c.name != "a bomb of references" && paced == 0 { // that is answered
				t.Error("nobody was made to wait")
			}
		})
	}
}

// TestLabelFlood: whatever clients make up, hosts, paths, methods, issuers, names,
// adds no series to the metrics.
func TestLabelFlood(t *testing.T) {
	s := newSiege(t, time.Minute, "")
	series := func() int { return strings.Count(send(t, "GET", s.admin+"/metrics", "").Body, "\n") }
	ask := func(i int) {
		for _, request := range []string{
			fmt.Sprintf("GET /p%d HTTP/1.1\r\nHost: h%d.test\r\n\r\n", i, i),
			fmt.Sprintf("M%d / HTTP/1.1\r\nHost: app.test\r\n\r\n", i),
			fmt.Sprintf("GET /open/%d HTTP/1.1\r\nHost: app.test\r\nX-Request-Id: %d\r\nUser-Agent: %d\r\n\r\n", i, i, i),
			fmt.Sprintf("GET / HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer %s.%s.x\r\n\r\n", b64(fmt.Appendf(nil, `{"alg":"a%d","kid":"k%d"}`, i, i)), b64(fmt.Appendf(nil, `{"iss":"https://i%d.test"}`, i))),
			fmt.Sprintf("GET / HTTP/1.1\r\nHost: app.test\r\nDurward-Front: r%d x\r\n\r\n", i),
		} {
			rawSend(t, s.public[0], request)
		}
	}
	ask(0)
	before := series()
	for i := 1; i < 100; i++ {
		ask(i)
	}
	if after := series(); after != before {
		t.Errorf("%d series before, %d after", before, after)
	}
	for _, line := range s.log.lines("request") {
		if text, _ := json.Marshal(line); len(text) > 4<<10 {
			t.Errorf("a line of %d bytes: %.200s", len(text), text)
		}
	}
}
