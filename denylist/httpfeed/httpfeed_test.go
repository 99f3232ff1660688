package httpfeed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"durward/denylist"
	"durward/token"
)

const (
	corp  = "https://idp.example.com/realms/corp"
	lease = 2 * time.Second
	soon  = 20 * time.Second // for what takes milliseconds on a machine with nothing else to do
)

func newList() *denylist.List {
	l := denylist.New(1000)
	l.SetIssuers(denylist.Issuers{{URL: corp, MaxLifetime: time.Hour, Leeway: 30 * time.Second, Skew: 2 * time.Second}})
	return l
}

func denial(jti string) []denylist.Revocation {
	return []denylist.Revocation{{Issuer: corp, Kind: token.KindToken, Value: jti}}
}

// A hub is a gateway that writes, behind a real server. What is in front of its
// handler, and whether it answers at all, can be changed.
type hub struct {
	*httptest.Server
	Hub
	t      testing.TB
	key    ed25519.PrivateKey
	mu     sync.Mutex
	writer *denylist.Writer
	front  atomic.Pointer[func(w http.ResponseWriter, r *http.Request, next http.Handler)]
	asked  sync.Map // path → *atomic.Int64
}

func newHub(t testing.TB) *hub {
	h := &hub{t: t}
	h.start(denylist.Head{Source: "hub"}, newList())
	h.Server = httptest.NewServer(h)
	h.beatUntil(t)
	return h
}

// start begins a chain, as each start of a gateway does.
func (h *hub) start(from denylist.Head, list *denylist.List) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.List, h.Log = list, denylist.NewLog()
	h.Whole = func() error { return nil }
	h.writer = denylist.NewWriter(h.Log, h.key, from, list.Stats().Total > 0, time.Now())
}

// beatUntil gives signs of life until the test ends, and then ends the server.
func (h *hub) beatUntil(t testing.TB) {
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			h.mu.Lock()
			w := h.writer
			h.mu.Unlock()
			w.Beat(time.Now())
			wait(ctx, 100*time.Millisecond)
		}
	})
	t.Cleanup(func() {
		stop()
		all.Wait()
		h.CloseClientConnections()
		h.Close()
	})
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, _ := h.asked.LoadOrStore(r.URL.Path, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	h.mu.Lock()
	handler := (&Hub{List: h.List, Log: h.Log, Key: h.key, Token: h.Token, Certificates: h.Certificates, Whole: h.Whole, Accept: h.Accept}).Handler()
	h.mu.Unlock()
	if front := h.front.Load(); front != nil {
		(*front)(w, r, handler)
		return
	}
	handler.ServeHTTP(w, r)
}

// before puts something in front of the hub.
func (h *hub) before(front func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	h.front.Store(&front)
}

func (h *hub) count(path string) int64 {
	n, ok := h.asked.Load(path)
	if !ok {
		return 0
	}
	return n.(*atomic.Int64).Load()
}

func (h *hub) revoke(jti string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.List.Add(denial(jti), time.Now()); err != nil {
		h.t.Fatal(err)
	}
	h.writer.Publish(denial(jti), time.Now())
}

// A follower is a gateway that follows.
type follower struct {
	*denylist.Follower
	*Feed
	t      testing.TB
	list   *denylist.List
	source *denylist.Source
	stop   func() // ends Run
	said   buffer
}

// A buffer can be written to by many.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func follow(t testing.TB, cfg Config, keys denylist.Keys) *follower {
	t.Helper()
	f := &follower{t: t, list: newList()}
	f.source = f.list.Source("feed", lease)
	log := slog.New(slog.NewTextHandler(&f.said, nil))
	f.Follower = denylist.NewFollower(denylist.FollowerConfig{List: f.list, Source: f.source, Keys: keys, Mass: true, Log: denylist.NewLog(), Lines: log})
	var err error
	if f.Feed, err = New(cfg, f.Follower, f.list, f.source, t.TempDir(), log); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	f.stop = func() { stop(); running.Wait() }
	t.Cleanup(f.stop)
	return f
}

func (f *follower) state() denylist.State { return f.source.State(time.Now()) }

func (f *follower) has(jti string) bool {
	_, ok := f.list.Lookup(token.KindToken, corp, jti)
	return ok
}

// comes to this state, holding these jti, separated by spaces.
func (f *follower) comes(when string, want denylist.State, jtis string) {
	f.t.Helper()
	done := func() bool {
		for _, jti := range strings.Fields(jtis) {
			if !f.has(jti) {
				return false
			}
		}
		return f.state() == want
	}
	for deadline := time.Now().Add(soon); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: %v with %d entries, want %v with %q; status: %s\n%s", when, f.state(), f.list.Stats().Total, want, jtis, f.source.Status(time.Now()).Error, f.said.String())
		}
	}
}

// never becomes live for a while, and says why.
func (f *follower) never(when string, why string) {
	f.t.Helper()
	said := false
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline) || !said; time.Sleep(5 * time.Millisecond) {
		if f.state() == denylist.Live {
			f.t.Fatalf("%s: live", when)
		}
		said = said || strings.Contains(f.source.Status(time.Now()).Error, why)
		if time.Now().After(deadline.Add(soon)) {
			f.t.Fatalf("%s: its status is %q, want one with %q", when, f.source.Status(time.Now()).Error, why)
		}
	}
}

// Streams and polling bring the same.
func TestFollow(t *testing.T) {
	t.Parallel()
	for _, poll := range []bool{false, true} {
		h := newHub(t)
		h.revoke("before")
		f := follow(t, Config{URLs: []string{h.URL + "/"}, Poll: poll}, nil)
		f.comes("begun", denylist.Live, "before")
		h.revoke("after")
		f.comes("one more", denylist.Live, "before after")
		h.CloseClientConnections()
		h.revoke("again")
		f.comes("connected again", denylist.Live, "before after again")
		if poll == (h.count(streamPath) > 0) || poll != (h.count(logPath) > 0) {
			t.Errorf("poll %t: %d streams and %d polls", poll, h.count(streamPath), h.count(logPath))
		}
		if n := f.Count(denylist.Duplicate) + f.Count(denylist.Gap) + f.Count(denylist.Resynced); n != 0 {
			t.Errorf("poll %t: %d things went wrong", poll, n)
		}
	}
}

// Sync asks once, for a single question about what is revoked.
func TestSync(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.revoke("a")
	f := follow(t, Config{URLs: []string{h.URL}}, nil)
	f.stop()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if err := f.Sync(ctx); err != nil || !f.has("a") {
		t.Errorf("%v, and a is held: %t", err, f.has("a"))
	}
	h.Token = "another"
	g := follow(t, Config{URLs: []string{h.URL}}, nil)
	g.stop()
	ctx, cancel = context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := g.Sync(ctx); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without the token: %v", err)
	}
}

// Who comes from a place that the hub does not hold any more, or begins with a
// chain that does not say everything, takes a snapshot and goes on from there.
func TestGone(t *testing.T) {
	t.Parallel()
	for _, poll := range []bool{false, true} {
		h := newHub(t)
		h.start(denylist.Head{Source: "hub", Epoch: 5, Number: 9}, newList())
		h.revoke("in the snapshot")
		f := follow(t, Config{URLs: []string{h.URL}, Poll: poll}, nil)
		f.comes("by snapshot", denylist.Live, "")
		if !f.has("in the snapshot") {
			t.Error("live without what the snapshot holds")
		}
		if n := f.Count(denylist.Resynced); n != 1 {
			t.Errorf("%d snapshots were loaded, want 1", n)
		}
		h.revoke("after")
		f.comes("after it", denylist.Live, "after")
	}
}

// A hub that starts again begins a chain; nobody fetches a snapshot who was in step
// with the last one.
func TestHubRestarts(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.revoke("one")
	f := follow(t, Config{URLs: []string{h.URL}}, nil)
	f.comes("begun", denylist.Live, "one")
	end := h.writer.Place().Head
	h.start(end, h.List)
	h.CloseClientConnections()
	h.revoke("two")
	f.comes("after a restart", denylist.Live, "one two")
	if n := f.Count(denylist.Resynced); n != 0 {
		t.Errorf("%d snapshots were loaded, want none", n)
	}
	// It lost its state, and what it holds: nothing is lifted.
	h.start(denylist.Head{Source: "another"}, newList())
	h.CloseClientConnections()
	h.revoke("three")
	f.comes("after it lost its state", denylist.Live, "one two three")
}

// The hub of a source that was restored from an old copy: its place is behind that
// of the follower, whom it can only send for a snapshot.
func TestHubGoesBack(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.revoke("one")
	h.revoke("two")
	f := follow(t, Config{URLs: []string{h.URL}}, nil)
	f.comes("begun", denylist.Live, "one two")
	h.mu.Lock()
	epoch := h.writer.Place().Epoch
	h.List, h.Log = newList(), denylist.NewLog()
	h.writer = denylist.NewWriter(h.Log, nil, denylist.Head{Source: "hub", Epoch: epoch - 1000}, false, time.UnixMilli(epoch-1000))
	h.mu.Unlock()
	h.CloseClientConnections()
	h.revoke("three")
	for deadline := time.Now().Add(soon); f.Count(denylist.Rewind) == 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the hub is back at an older chain, and nothing is noticed:\n%s", f.said.String())
		}
	}
	end := time.Now().Add(lease + time.Second)
	f.comes("the hub is back at an older chain", denylist.Live, "one two three")
	for time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
	}
	h.revoke("four")
	f.comes("after the lease of the chain before", denylist.Live, "one two three four")
}

// A wrong token opens nothing, and the right one is sent to nobody else.
func TestToken(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.Token = "the hub's own long token"
	h.revoke("a")
	dir := t.TempDir()
	file := func(content string) string {
		name := filepath.Join(dir, fmt.Sprint(len(content)))
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	follow(t, Config{URLs: []string{h.URL}}, nil).never("no token", "401 Unauthorized")
	follow(t, Config{URLs: []string{h.URL}, TokenFile: file("the hub's own long")}, nil).never("another token", "401 Unauthorized")
	good := Config{URLs: []string{h.URL}, TokenFile: file("the hub's own long token\n")}
	follow(t, good, nil).comes("the token", denylist.Live, "a")

	for _, path := range []string{headPath, logPath, streamPath, snapshotPath} {
		res, err := http.Get(h.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s without a token: %s", path, res.Status)
		}
	}

	// A hub that sends its followers elsewhere is not followed there.
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		h.before(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, other.URL+r.URL.Path, status)
		})
		f := follow(t, good, nil)
		f.never("a redirect", fmt.Sprint(status))
		if _, err := f.Forward(context.Background(), [][]byte{denial("x")[0].Line()}, nil); err == nil {
			t.Error("revocations are forwarded through a redirect")
		}
		f.stop()
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d requests went elsewhere", n)
	}
}

// The hub's certificate must be signed by ca_file, and ours by its client_ca_file.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	h := &hub{t: t}
	h.Certificates = true
	h.start(denylist.Head{Source: "hub"}, newList())
	h.Server = httptest.NewUnstartedServer(h)
	h.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelInfo)
	dir := t.TempDir()
	known, certFile, keyFile := certificate(t, dir, "known")
	_, strangerCert, strangerKey := certificate(t, dir, "stranger")
	pool := x509.NewCertPool()
	pool.AddCert(known)
	h.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	h.StartTLS()
	h.beatUntil(t)
	h.revoke("a")
	ca := filepath.Join(dir, "ca.pem")
	writePEM(t, ca, "CERTIFICATE", h.Certificate().Raw)

	follow(t, Config{URLs: []string{h.URL}, CAFile: ca, CertFile: certFile, KeyFile: keyFile}, nil).comes("both are known", denylist.Live, "a")
	follow(t, Config{URLs: []string{h.URL}, CAFile: ca}, nil).never("no certificate of ours", "certificate required")
	follow(t, Config{URLs: []string{h.URL}, CAFile: ca, CertFile: strangerCert, KeyFile: strangerKey}, nil).never("a stranger's certificate", "tls:")
	follow(t, Config{URLs: []string{h.URL}, CAFile: strangerCert, CertFile: certFile, KeyFile: keyFile}, nil).never("a hub that is not known", "certificate")
}

func certificate(t testing.TB, dir, name string) (cert *x509.Certificate, certFile, keyFile string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", text)
	return cert, certFile, keyFile
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A proxy between that holds streams back, be it from their first byte or their
// header, makes the feed poll.
func TestStreamsHeldBack(t *testing.T) {
	t.Parallel()
	for _, header := range []bool{true, false} {
		t.Run(fmt.Sprint("header sent ", header), func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.revoke("a")
			h.before(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path != streamPath {
					next.ServeHTTP(w, r)
					return
				}
				if header {
					w.Header().Set("Content-Type", "text/event-stream")
					io.WriteString(w, ": welcome\n\nretry: 500\n\n") // is no sign of life
					http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
			})
			f := follow(t, Config{URLs: []string{h.URL}}, nil)
			f.comes("streams are held back", denylist.Live, "a")
			h.revoke("b")
			f.comes("while it polls", denylist.Live, "a b")
			if !strings.Contains(f.said.String(), "polled for a while") {
				t.Errorf("nothing is said of it: %s", f.said.String())
			}
		})
	}
}

// What no hub would send ends in an error, takes bounded time and memory, and does
// not keep a second address from being followed.
func TestGarbage(t *testing.T) {
	t.Parallel()
	endless := func(text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			for part := []byte(strings.Repeat(text, 1+(32<<10)/len(text))); ; {
				if _, err := w.Write(part); err != nil {
					return
				}
			}
		}
	}
	tests := []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request)
		why    string
	}{
		{"an endless line", endless("x"), "longer than"},
		{"an endless event", endless("data: {}\n"), "an event is longer than"},
		{"nothing but line ends", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("\n", 1000)) }, "EOF"},
		{"no events", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") }, "EOF"},
		{"a slow trickle", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, "x")
				http.NewResponseController(w).Flush()
				wait(r.Context(), 50*time.Millisecond)
			}
		}, "nothing came"},
		{"an error", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "broken", http.StatusBadGateway) }, "502"},
		{"no content", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }, "204"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			bad, good := newHub(t), newHub(t)
			bad.before(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path == headPath {
					next.ServeHTTP(w, r)
					return
				}
				tt.answer(w, r)
			})
			follow(t, Config{URLs: []string{bad.URL}}, nil).never(tt.name, tt.why)
			good.revoke("a")
			follow(t, Config{URLs: []string{bad.URL, good.URL}}, nil).comes("beside it a good one", denylist.Live, "a")
		})
	}
}

// Events of garbage are counted, and what is good among them is taken.
func TestGarbageBetween(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.revoke("a")
	h.before(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == streamPath {
			io.WriteString(w, "event: x\r\ndata: garbage\r\ndata:\r\n\r\n:c\n\ndata: {\"src\":7}\nid: 1\n\n")
		}
		next.ServeHTTP(w, r)
	})
	f := follow(t, Config{URLs: []string{h.URL}}, nil)
	f.comes("garbage between", denylist.Live, "a")
	if n := f.Count(denylist.Garbled); n != 3 {
		t.Errorf("%d records were garbled, want 3", n)
	}
}

// Of a snapshot that is not whole nothing is used, and it is fetched again.
func TestSnapshotsBroken(t *testing.T) {
	t.Parallel()
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	keys := denylist.NewKeys(denylist.Key{Name: "hub", Public: private.Public().(ed25519.PublicKey)})
	tests := []struct {
		name  string
		spoil func(w http.ResponseWriter, text []byte)
		why   string
	}{
		{"cut off", func(w http.ResponseWriter, text []byte) { w.Write(text[:len(text)/2]) }, "not as it was written"},
		{"cut off in the middle of the answer", func(w http.ResponseWriter, text []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
			w.Write(text[:len(text)/2])
		}, "unexpected EOF"},
		{"one bit flipped", func(w http.ResponseWriter, text []byte) { text[len(text)/2] ^= 1; w.Write(text) }, "not as it was written"},
		{"another's signature", func(w http.ResponseWriter, text []byte) { text[len(text)-1] ^= 1; w.Write(text) }, "not signed"},
		{"too large", func(w http.ResponseWriter, text []byte) {
			for part := make([]byte, 1<<20); ; {
				if _, err := w.Write(part); err != nil {
					return
				}
			}
		}, "larger than"},
		{"nothing", func(http.ResponseWriter, []byte) {}, "not as it was written"},
		{"none", func(w http.ResponseWriter, _ []byte) { http.Error(w, "not whole", http.StatusServiceUnavailable) }, "503"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.mu.Lock()
			h.key = private
			h.mu.Unlock()
			h.start(denylist.Head{Source: "hub", Epoch: 5, Number: 9}, newList())
			h.revoke("a")
			h.before(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path != snapshotPath {
					next.ServeHTTP(w, r)
					return
				}
				whole := httptest.NewRecorder()
				next.ServeHTTP(whole, r)
				tt.spoil(w, whole.Body.Bytes())
			})
			f := follow(t, Config{URLs: []string{h.URL}}, keys)
			f.never(tt.name, tt.why)
			if f.list.Stats().Total != 0 {
				t.Errorf("%d entries of it were used", f.list.Stats().Total)
			}
			if left, err := os.ReadDir(f.dir); err != nil || len(left) > 1 {
				t.Errorf("%d files are left of snapshots, %v", len(left), err)
			}
			h.front.Store(nil)
			f.comes("a good one", denylist.Live, "a")
		})
	}
}

// One address of a source that lives is enough; without any the feed is stale, and
// what it said stays.
func TestTwoAddresses(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	second := httptest.NewServer(h)
	defer second.Close()
	f := follow(t, Config{URLs: []string{h.URL, second.URL}}, nil)
	h.revoke("a")
	f.comes("both", denylist.Live, "a")
	second.CloseClientConnections()
	second.Listener.Close()
	for deadline := time.Now().Add(lease + lease/2); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f.state() != denylist.Live {
			t.Fatalf("one address is down, and the feed is %v", f.state())
		}
	}
	h.revoke("b")
	f.comes("one", denylist.Live, "a b")
	h.before(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Error(w, "down", http.StatusServiceUnavailable)
	})
	h.CloseClientConnections()
	f.comes("none", denylist.Stale, "a b")
	h.front.Store(nil)
	f.comes("back", denylist.Live, "a b")
	if !strings.Contains(f.said.String(), "is not followed") || !strings.Contains(f.said.String(), "is followed again") {
		t.Errorf("the log says neither that a hub is lost nor that it is back:\n%s", f.said.String())
	}
}

// What is revoked at a follower goes to the first hub that hands it on.
func TestForward(t *testing.T) {
	t.Parallel()
	lines := [][]byte{denial("a")[0].Line(), denial("b")[0].Line()}
	h := newHub(t)
	said := func(statuses ...string) (all []map[string]any) {
		for i, s := range statuses {
			all = append(all, map[string]any{"line": i + 1, "status": s, "problem": "unknown issuer"})
		}
		return all
	}
	answer := map[string]any{"lines": said("applied", "applied"), "scope": "fleet"}
	status := http.StatusOK
	var got []byte
	var through []string
	h.Accept = func(_ context.Context, body []byte, via []string) (int, any) {
		got, through = body, via
		return status, answer
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("a long and random token"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := follow(t, Config{URLs: []string{"http://127.0.0.1:1", h.URL}, TokenFile: file}, nil)
	f.stop()
	try := func(when, want string) {
		t.Helper()
		refused, err := f.Forward(context.Background(), lines, []string{"one", "two"})
		if err == nil && len(refused) > 0 {
			err = fmt.Errorf("%d refused, %s of %s", len(refused), refused[0].Problem, refused[0].Line)
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", when, err, want)
		}
	}
	try("a hub that asks nobody who they are", "403")
	h.Token = "a long and random token"
	try("the second hub takes them", "")
	if want := bytes.Join(lines, []byte("\n")); !bytes.Equal(got, want) {
		t.Errorf("the hub got %q, want %q", got, want)
	}
	if !slices.Equal(through, []string{"one", "two"}) {
		t.Errorf("they came through %q", through)
	}
	status, answer["lines"] = http.StatusMultiStatus, said("applied", "refused")
	try("one was refused", "1 refused, unknown issuer of "+string(lines[1]))
	status = http.StatusBadRequest
	answer = map[string]any{"lines": said("refused", "refused")}
	try("all were refused", "2 refused")
	status, answer = http.StatusOK, map[string]any{"lines": said("applied"), "scope": "fleet"}
	try("one is not spoken of", "what became of all 2 lines")
	answer = map[string]any{"lines": said("applied", "applied"), "scope": "local"}
	try("the hub is alone", "could not hand them on")
	status = http.StatusInternalServerError
	try("the hub is broken", "500")
}

// The hub's answers, as docs/revocation-feed.md has them.
func TestHub(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.revoke("a")
	get := func(path string, header ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, h.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(text)
	}
	end := h.writer.Place()
	beginning := url.QueryEscape(denylist.Head{Source: "hub", Epoch: end.Epoch}.String())
	res, text := get(logPath + "?after=" + beginning)
	if got := strings.Count(text, "\n"); got < 2 || res.Header.Get("Revlog-Next") != end.Head.String() || res.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("log: %d lines, %v", got, res.Header)
	}
	began := time.Now()
	if _, text = get(logPath + "?wait=20&after=" + url.QueryEscape(end.Head.String())); time.Since(began) > 10*time.Second || !strings.Contains(text, `"n":2`) {
		t.Errorf("waiting for a heartbeat took %v and brought %q", time.Since(began), text)
	}
	for _, bad := range []string{"?after=hub", "?after=hub:1:2:3", "?after=h+b:1:1"} {
		if res, _ := get(logPath + bad); res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", bad, res.Status)
		}
	}
	if res, _ := get(logPath + "?wait=-1"); res.StatusCode != http.StatusBadRequest {
		t.Errorf("a wait of -1: %s", res.Status)
	}
	for _, path := range []string{logPath, streamPath} {
		res, text := get(path + "?after=" + url.QueryEscape(denylist.Head{Source: "hub", Epoch: end.Epoch, Number: 99}.String()))
		var at head
		if err := json.Unmarshal([]byte(text), &at); err != nil || res.StatusCode != http.StatusGone || len(at.Places) != 1 || at.Places[0] != end {
			t.Errorf("%s after a place that is not there: %s, %v, %+v", path, res.Status, err, at)
		}
	}
	// The head changes with each heartbeat; the same one is not sent twice.
	unchanged := false
	for range 20 {
		res, _ := get(headPath)
		if again, _ := get(headPath, "If-None-Match", res.Header.Get("ETag")); again.StatusCode == http.StatusNotModified {
			unchanged = true
			break
		}
	}
	if !unchanged {
		t.Error("a head that did not change is sent each time")
	}
	h.Whole = func() error { return errors.New("this hub lacks something") }
	if res, text := get(snapshotPath); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "lacks something") {
		t.Errorf("the snapshot of a hub that lacks something: %s, %q", res.Status, text)
	}
	if res, _ := get("/revlog/v1/other"); res.StatusCode != http.StatusNotFound {
		t.Errorf("another path: %s", res.Status)
	}
}

func TestReadEvent(t *testing.T) {
	body := strings.NewReader("retry: 500\n\ndata: a\ndata:b\ndata:  c\nid: x\nevent: y\n:comment\ndatum: z\n\n\ndata: d\r\n\r\ndata: cut off")
	r := bufio.NewReader(body)
	for _, want := range []string{"", "a|b| c", "", "d"} {
		lines, _, err := readEvent(r)
		if got := string(bytes.Join(lines, []byte("|"))); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if lines, _, err := readEvent(r); err != io.ErrUnexpectedEOF || lines != nil {
		t.Errorf("an event that is cut off: %q, %v", lines, err)
	}
}
