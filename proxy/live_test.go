package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"durward/denylist"
	"durward/token"
)

// running registers a request with these claims, and returns it and a context that
// ends when it is cut.
func running(tb testing.TB, h *Handler, issuer *token.Issuer, claims map[string]any) (*stream, context.Context) {
	tb.Helper()
	c, err := issuer.Suppose(claims, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{control: *http.NewResponseController(httptest.NewRecorder()), began: time.Now(), cancel: cancel}
	st := &stream{claims: c, began: time.Now(), until: c.Until(), writer: w}
	h.live.add(h.Current(), &h.current, st)
	tb.Cleanup(func() { st.leave(); cancel() })
	return st, ctx
}

func accepting(issuers ...*token.Issuer) *token.Verifier {
	return token.NewVerifier(issuers, nil, 8<<10)
}

// TestIssuerRemoved: a request in progress ends with the configuration that had its
// issuer, also if it is registered only after that went.
func TestIssuerRemoved(t *testing.T) {
	issuer, list := testIssuer(t), denylist.New(10)
	h := &Handler{}
	with, without := &Snapshot{Denied: list, Tokens: accepting(issuer)}, &Snapshot{Denied: list, Tokens: accepting()}
	h.Use(with)
	st, cut := running(t, h, issuer, map[string]any{"sub": "alice"})
	h.Use(&Snapshot{Denied: list, Tokens: accepting(issuer)})
	if st.cut() != NotCut {
		t.Errorf("its issuer is there: cut %q", st.cut())
	}
	h.Use(without)
	if st.cut() != CutIssuer || cut.Err() == nil || h.Cuts(CutIssuer) != 1 {
		t.Errorf("its issuer is gone: cut %q, %v", st.cut(), cut.Err())
	}
	h.current.Store(with)
	late := &stream{claims: st.claims, began: time.Now(), until: st.until, writer: st.writer}
	h.current.Store(without)
	h.live.add(with, &h.current, late)
	defer late.leave()
	if late.cut() != CutIssuer {
		t.Errorf("registered too late: cut %q", late.cut())
	}
}

func revoked(tb testing.TB, list *denylist.List, issuer *token.Issuer, format string, args ...any) {
	tb.Helper()
	r, err := denylist.Parse(fmt.Appendf(nil, format, args...), denylist.Issuers{{URL: issuer.URL()}}, time.Now(), true)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := list.Add([]denylist.Revocation{r}, time.Now()); err != nil {
		tb.Fatal(err)
	}
}

// What time alone changes is noticed within a tick of its moment, and not before.
func TestWatch(t *testing.T) {
	issuer := testIssuer(t)
	const tick = 25 * time.Millisecond
	for _, tt := range []struct {
		name    string
		streams Streams
		revoke  bool
		after   time.Duration // that the request is cut; 0: not within an hour
		cause   Cause
	}{
		{"expiry", Streams{}, false, 40 * time.Second, CutExpired}, // ten seconds and the leeway of thirty
		{"expiry, long streams allowed", Streams{MaxAge: time.Minute}, false, 40 * time.Second, CutExpired},
		{"max_age", Streams{MaxAge: 15 * time.Second}, false, 15 * time.Second, CutMaxAge},
		{"keep", Streams{KeepExpired: true, MaxAge: 2 * time.Minute}, false, 2 * time.Minute, CutMaxAge},
		{"keep, no limit", Streams{KeepExpired: true}, false, 0, NotCut},
		{"revoked", Streams{}, true, time.Nanosecond, CutRevoked},
		{"revoked, kept past expiry", Streams{KeepExpired: true, MaxAge: time.Hour}, true, time.Nanosecond, CutRevoked},
		{"grace", Streams{Grace: 7 * time.Second}, true, 7 * time.Second, CutRevoked},
		{"grace beyond expiry", Streams{Grace: time.Hour}, true, 40 * time.Second, CutExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				list := denylist.New(10)
				h := &Handler{}
				h.Use(&Snapshot{Denied: list, Tokens: accepting(issuer), Streams: tt.streams})
				watching, stop := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { h.Watch(watching, list.Changed()); close(ended) }()
				defer func() { stop(); <-ended }()

				time.Sleep(12 * time.Millisecond) // requests do not begin when the watcher ticks
				now := time.Now()
				exp := json.Number(fmt.Sprintf("%d.%03d", now.Unix()+10, now.Nanosecond()/1e6))
				st, cut := running(t, h, issuer, map[string]any{"sid": "s", "iat": now.Unix(), "exp": exp})
				twin, _ := running(t, h, issuer, map[string]any{"sid": "other", "exp": now.Add(12 * time.Hour).Unix()})
				if tt.revoke {
					revoked(t, list, issuer, `{"sid":"s"}`)
				}
				wait := tt.after
				if wait == 0 {
					wait = time.Hour
				}
				time.Sleep(wait - time.Nanosecond)
				if cut.Err() != nil && wait > tick {
					t.Fatalf("cut too early: %v", st.cut())
				}
				time.Sleep(tick + time.Nanosecond)
				synctest.Wait()
				if got := st.cut(); got != tt.cause || (cut.Err() != nil) != (got != NotCut) {
					t.Errorf("cut: %q, want %q; %v", got, tt.cause, cut.Err())
				}
				if got := twin.cut(); got == CutRevoked || got == CutExpired {
					t.Errorf("the twin is cut: %q", got)
				}
			})
		})
	}
}

// A request whose token was revoked between its decision and its registration is
// cut, without anybody looking again; so is one whose grace has still to pass.
func TestAddRevoked(t *testing.T) {
	issuer, list := testIssuer(t), denylist.New(10)
	h := &Handler{}
	h.Use(&Snapshot{Denied: list, Tokens: accepting(issuer)})
	revoked(t, list, issuer, `{"sub":"mallory"}`)
	st, cut := running(t, h, issuer, map[string]any{"sub": "mallory"})
	if st.cut() != CutRevoked || cut.Err() == nil {
		t.Errorf("cut: %q, %v", st.cut(), cut.Err())
	}
	if twin, cut := running(t, h, issuer, map[string]any{"sub": "alice"}); twin.cut() != NotCut || cut.Err() != nil {
		t.Errorf("the twin is cut: %q", twin.cut())
	}
	h.Use(&Snapshot{Denied: list, Tokens: accepting(issuer), Streams: Streams{Grace: time.Minute}})
	st, _ = running(t, h, issuer, map[string]any{"sub": "mallory"})
	if st.cut() != NotCut {
		t.Errorf("cut within its grace: %q", st.cut())
	}
	h.live.scan(nil, h.Current().Streams, time.Now().Add(time.Minute))
	if st.cut() != CutRevoked {
		t.Errorf("after its grace: %q", st.cut())
	}
}

// FuzzFrames checks that a sequence of frames is followed alike however it is cut
// to pieces, and that rest leads to the end of the frame that has begun.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 1, 125, 126}, uint8(3), true)
	f.Add([]byte{200, 255, 0}, uint8(1), false)
	f.Add([]byte{130, 129, 128, 127}, uint8(64), true)
	f.Fuzz(func(t *testing.T, sizes []byte, piece uint8, masked bool) {
		if len(sizes) > 16 {
			return
		}
		var text []byte
		ends := map[int]bool{0: true}
		for i, s := range sizes {
			var mask byte
			if masked && i%2 == 0 {
				mask = 0x80
			}
			size := int(s)
			switch {
			case s < 126:
				text = append(text, 0x82, mask|s)
			case s < 200:
				text = binary.BigEndian.AppendUint16(append(text, 0x82, mask|126), uint16(size))
			default:
				size *= 4
				text = binary.BigEndian.AppendUint64(append(text, 0x82, mask|127), uint64(size))
			}
			if mask != 0 {
				size += 4
			}
			text = append(text, bytes.Repeat([]byte{0x88}, size)...)
			ends[len(text)] = true
		}
		var fr frames
		for at := 0; at < len(text); {
			if fr.between() != ends[at] {
				t.Fatalf("between frames at %d: %v", at, fr.between())
			}
			rest := fr.rest(text[at:])
			end := at
			for !ends[end] {
				end++
			}
			if rest != end-at {
				t.Fatalf("at %d the frame has %d bytes left, want %d", at, rest, end-at)
			}
			n := min(int(piece)+1, len(text)-at)
			fr.follow(text[at : at+n])
			at += n
		}
		if !fr.between() {
			t.Fatal("after the last frame")
		}
	})
}

// BenchmarkScan looks at ten thousand requests in progress: for revocations, with
// some of every kind in force and none that matches, and for time alone.
func BenchmarkScan(b *testing.B) {
	issuer, list := testIssuer(b), denylist.New(200_000)
	h := &Handler{}
	h.Use(&Snapshot{Denied: list, Tokens: accepting(issuer)})
	for i := range 100_000 {
		revoked(b, list, issuer, `{"jti":"revoked-%d"}`, i)
	}
	revoked(b, list, issuer, `{"sid":"revoked"}`)
	revoked(b, list, issuer, `{"sub":"revoked"}`)
	revoked(b, list, issuer, `{"client":"revoked"}`)
	revoked(b, list, issuer, `{"iss":%q,"before":1}`, issuer.URL())
	const open = 10_000
	for i := range open {
		id := fmt.Sprint(i)
		running(b, h, issuer, map[string]any{"jti": id, "sid": id, "sub": id, "client_id": "app"})
	}
	for _, look := range []struct {
		name string
		list *denylist.List
	}{{"revocations", list}, {"time", nil}} {
		b.Run(look.name, func(b *testing.B) {
			now := time.Now()
			for b.Loop() {
				h.live.scan(look.list, Streams{}, now)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/open, "ns/stream")
		})
	}
	if h.Cuts(CutRevoked) != 0 {
		b.Fatal("something was cut")
	}
}
