package test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"durward/denylist"
	"durward/denylist/filefeed"
	"durward/denylist/httpfeed"
	"durward/denylist/natsfeed"
	"durward/denylist/redisfeed"
	"durward/token"
)

const (
	carriedIssuer = "https://idp.example.com"
	carriedLease  = 4 * time.Second
	carriedSoon   = 20 * time.Second
)

// A carrier is one way by which revocations come, and what can befall it. Every feed
// must pass the same cases with it.
type carrier struct {
	t       *testing.T
	revoke  func(jti string, ahead time.Duration) // by a writer whose clock is that much ahead
	said    func() []string                       // what was said so far, as it is carried
	raw     func(data string)                     // puts something else where followers read
	stop    func()
	start   func()        // with what it had
	copy    func() func() // keeps what there is, to be put back later
	anew    func()        // as if it had never been
	cut     func(bool)    // the way between it and the subscribers
	slow    func(bool)    // a few bytes at a time come by that way
	remove  func(string)  // what is carried, from its middle; nil if that cannot be
	follow  func(ctx context.Context, s *subscriber)
	forged  func(jti string) string // what nobody signed; nil if this feed knows no signatures
	apart   bool                    // writers and subscribers come by ways of their own
	refills bool                    // what it lost comes back to it
	lies    *lies                   // that followers are told; nil where the fleet's own tests tell them
}

// A subscriber is what a gateway has of a feed.
type subscriber struct {
	t      *testing.T
	list   *denylist.List
	source *denylist.Source
	config denylist.FollowerConfig
	lines  *slog.Logger

	canaries atomic.Int64
}

func carriedList() *denylist.List {
	l := denylist.New(10_000)
	l.SetIssuers(denylist.Issuers{{URL: carriedIssuer, MaxLifetime: time.Hour, Leeway: 30 * time.Second, Skew: 2 * time.Second}})
	return l
}

func carriedDenial(jti string) []denylist.Revocation {
	return []denylist.Revocation{{Issuer: carriedIssuer, Kind: token.KindToken, Value: jti}}
}

// background runs something until the test ends, and waits for its end.
func background(t *testing.T, run func(ctx context.Context)) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func newSubscriber(t *testing.T, keys denylist.Keys) *subscriber {
	s := &subscriber{t: t, list: carriedList(), lines: slog.New(slog.NewTextHandler(io.Discard, nil))}
	s.source = s.list.Source("feed", carriedLease)
	s.source.Begin()
	s.config = denylist.FollowerConfig{List: s.list, Source: s.source, Keys: keys, Lines: s.lines, Canary: func(time.Duration) { s.canaries.Add(1) }}
	return s
}

// record is what was said to revoke a jti, as it is carried; "" if it is not.
func (c *carrier) record(jti string) string {
	for _, line := range c.said() {
		if strings.Contains(plain([]byte(line)), fmt.Sprintf(`"jti":%q`, jti)) {
			return line
		}
	}
	return ""
}

// has waits until a record is carried again, as it was.
func (c *carrier) has(record string) {
	c.t.Helper()
	eventually(c.t, carriedSoon, "what was lost is handed back", func() bool { return slices.Contains(c.said(), record) })
}

// join begins to follow, as a gateway that knows nothing yet.
func (c *carrier) join(keys denylist.Keys) *subscriber {
	s := newSubscriber(c.t, keys)
	background(c.t, func(ctx context.Context) { c.follow(ctx, s) })
	return s
}

func (s *subscriber) has(jti string) bool {
	_, ok := s.list.Lookup(token.KindToken, carriedIssuer, jti)
	return ok
}

func (s *subscriber) knows(jtis ...string) {
	s.t.Helper()
	for _, jti := range jtis {
		eventually(s.t, carriedSoon, jti+" is enforced", func() bool { return s.has(jti) })
	}
}

// still is knows of what may not have been lifted for a moment.
func (s *subscriber) still(jtis ...string) {
	s.t.Helper()
	for _, jti := range jtis {
		if !s.has(jti) {
			s.t.Errorf("%s was lifted", jti)
		}
	}
}

// becomes waits for a state; for a live feed, until it has given a sign of life since.
func (s *subscriber) becomes(want denylist.State) {
	s.t.Helper()
	asked := time.Now()
	eventually(s.t, carriedSoon, want.String(), func() bool {
		now := time.Now()
		status := s.source.Status(now)
		return status.State == want && (want != denylist.Live || now.Add(-status.Age).After(asked))
	})
}

// A key of the writers, and who asks for it.
func carriedKey() (ed25519.PrivateKey, denylist.Keys) {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	return private, denylist.NewKeys(denylist.Key{Name: "writer", Public: private.Public().(ed25519.PublicKey)})
}

func unsigned(jti string) string {
	return fmt.Sprintf(`{"src":"hub","e":1,"n":1,"p":"%032d","t":%d,"ops":[{"jti":%q}]}`, 0, time.Now().UnixMilli(), jti)
}

func carryFile(t *testing.T) *carrier {
	path := filepath.Join(t.TempDir(), "revocations")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(path, nil, 0o600))
	c := &carrier{t: t}
	c.raw = func(data string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		must(err)
		_, err = f.WriteString(data + "\n")
		must(err)
		must(f.Close())
	}
	c.revoke = func(jti string, _ time.Duration) { c.raw(string(carriedDenial(jti)[0].Line())) }
	c.said = func() []string {
		text, err := os.ReadFile(path)
		must(err)
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	c.stop = func() { must(os.Rename(path, path+".away")) }
	c.start = func() { must(os.Rename(path+".away", path)) }
	c.cut = func(cut bool) {
		if cut {
			c.stop()
		} else if _, err := os.Stat(path + ".away"); err == nil {
			c.start()
		}
	}
	c.anew = func() {
		must(os.Remove(path))
		must(os.WriteFile(path, nil, 0o600))
	}
	c.copy = func() func() {
		text, err := os.ReadFile(path)
		must(err)
		return func() { must(os.WriteFile(path, text, 0o600)) }
	}
	c.follow = func(ctx context.Context, s *subscriber) {
		filefeed.Run(ctx, path, s.list, s.source, func(rs []denylist.Revocation, now time.Time) error {
			_, err := s.source.Apply(rs, now)
			return err
		}, s.lines)
	}
	return c
}

// injector writes something before what a hub answers.
type injector struct {
	http.ResponseWriter
	before string
}

func (i *injector) Unwrap() http.ResponseWriter { return i.ResponseWriter }

func (i *injector) Write(b []byte) (int, error) {
	if i.before != "" {
		io.WriteString(i.ResponseWriter, i.before)
		i.before = ""
	}
	return i.ResponseWriter.Write(b)
}

func carryHTTP(poll bool) func(t *testing.T) *carrier {
	return func(t *testing.T) *carrier {
		private, _ := carriedKey()
		var (
			mu      sync.Mutex
			hub     *httpfeed.Hub
			writer  *denylist.Writer
			inject  []string
			revoked []string
			away    bool
		)
		begin := func(from denylist.Head, list *denylist.List, log *denylist.Log) {
			writer = denylist.NewWriter(log, private, from, from.Epoch != 0, time.Now())
			hub = &httpfeed.Hub{List: list, Log: log, Key: private, Whole: func() error { return nil }}
		}
		begin(denylist.Head{Source: "hub"}, carriedList(), denylist.NewLog())
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			h, none, before := hub.Handler(), away, inject
			mu.Unlock()
			if none {
				http.Error(w, "away", http.StatusBadGateway)
				return
			}
			text := ""
			switch {
			case len(before) == 0:
			case strings.HasSuffix(r.URL.Path, "/log"):
				text = strings.Join(before, "\n") + "\n"
			case strings.HasSuffix(r.URL.Path, "/stream"):
				text = "data: " + strings.Join(before, "\n\ndata: ") + "\n\n"
			}
			h.ServeHTTP(&injector{w, text}, r)
		}))
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		background(t, func(ctx context.Context) {
			for ctx.Err() == nil {
				mu.Lock()
				writer.Beat(time.Now())
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(200 * time.Millisecond):
				}
			}
		})
		w := newWire(t, server.Listener.Addr().String())
		c := &carrier{t: t, forged: unsigned, apart: true}
		again := func(change func()) { // and everybody connects anew
			mu.Lock()
			change()
			mu.Unlock()
			server.CloseClientConnections()
		}
		c.raw = func(data string) { again(func() { inject = append(inject, data) }) }
		c.revoke = func(jti string, ahead time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if _, err := hub.List.Add(carriedDenial(jti), time.Now()); err != nil {
				t.Fatal(err)
			}
			writer.Publish(carriedDenial(jti), time.Now().Add(ahead))
			revoked = append(revoked, jti)
		}
		c.said = func() (all []string) {
			mu.Lock()
			defer mu.Unlock()
			reading, _, _ := hub.Log.Read(nil, 1<<20)
			for _, r := range reading.Records {
				all = append(all, string(r))
			}
			return all
		}
		c.stop = func() { again(func() { away = true }) }
		c.start = func() { again(func() { away = false }) }
		c.anew = func() {
			again(func() { begin(denylist.Head{Source: "hub"}, carriedList(), denylist.NewLog()) })
		}
		c.copy = func() func() {
			mu.Lock()
			defer mu.Unlock()
			list, at := carriedList(), writer.Place().Head
			for _, jti := range revoked {
				if _, err := list.Add(carriedDenial(jti), time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			return func() { again(func() { begin(at, list, denylist.NewLog()) }) }
		}
		c.cut, c.slow = w.set, w.crawl
		c.follow = func(ctx context.Context, s *subscriber) {
			f, err := httpfeed.New(httpfeed.Config{URLs: []string{"http://" + w.Addr().String()}, Poll: poll}, denylist.NewFollower(s.config), s.list, s.source, "", s.lines)
			if err != nil {
				t.Error(err)
				return
			}
			f.Run(ctx)
		}
		return c
	}
}

func carryEngine(begin func(testing.TB) *engine, isNATS bool) func(t *testing.T) *carrier {
	return func(t *testing.T) *carrier {
		private, keys := carriedKey()
		e := begin(t)
		open := func(address string) (denylist.Engine, error) {
			if isNATS {
				return natsfeed.Open(natsfeed.Config{URL: "nats://" + address, Stream: engineStream})
			}
			return redisfeed.Open(redisfeed.Config{URL: "redis://" + address + "/0", Stream: "revocations", Keep: 72 * time.Hour})
		}
		init := func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			var err error
			if isNATS {
				_, err = natsfeed.Init(ctx, natsfeed.Config{URL: "nats://" + e.address(), Stream: engineStream}, natsfeed.Storage{Replicas: 1, MaxAge: 72 * time.Hour, MaxBytes: 64 << 20})
			} else {
				_, err = redisfeed.Init(ctx, redisfeed.Config{URL: "redis://" + e.address() + "/0", Stream: "revocations", Keep: 72 * time.Hour})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		init()
		told := &lies{}
		stream := func(address string, s *subscriber, writes bool) *denylist.Stream {
			engine, err := open(address)
			if err != nil {
				t.Fatal(err)
			}
			if !writes {
				engine = liar{engine, told}
			}
			s.config.Ordered = true
			cfg := denylist.StreamConfig{Engine: engine, Follower: denylist.NewFollower(s.config), List: s.list, Source: s.source, Writes: writes, Lease: carriedLease, Logger: s.lines}
			if writes {
				cfg.Key = private
			}
			return denylist.NewStream(cfg)
		}
		w := newWire(t, e.address())
		self := newSubscriber(t, keys)
		writer := stream(e.address(), self, true)
		background(t, func(ctx context.Context) { writer.Run(ctx) })
		c := &carrier{t: t, raw: e.append, stop: e.stop, start: e.start, cut: w.set, slow: w.crawl, remove: e.remove, forged: unsigned, apart: true, refills: true, lies: told}
		c.copy = func() func() {
			e.stop()
			putBack := e.copy()
			e.start()
			return func() {
				e.stop()
				putBack()
				e.start()
			}
		}
		c.anew = func() {
			e.delete()
			init()
		}
		c.revoke = func(jti string, ahead time.Duration) {
			if ahead != 0 {
				log := denylist.NewLog()
				skewed := denylist.NewWriter(log, private, denylist.Head{Source: "skewed-" + jti}, false, time.Now().Add(ahead))
				skewed.Publish(carriedDenial(jti), time.Now().Add(ahead))
				reading, _, _ := log.Read(nil, 1<<20)
				for _, r := range reading.Records {
					e.append(string(r))
				}
				return
			}
			eventually(t, carriedSoon, jti+" is kept", func() bool {
				_, err := writer.Forward(context.Background(), [][]byte{carriedDenial(jti)[0].Line()}, nil)
				return err == nil
			})
		}
		c.said = func() (all []string) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			engine, err := open(e.address())
			if err != nil {
				t.Fatal(err)
			}
			defer engine.Close()
			ends, err := engine.Ends(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for n := ends.First; n <= ends.Last; n++ {
				data, err := engine.Message(ctx, n)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, string(data))
			}
			return all
		}
		c.follow = func(ctx context.Context, s *subscriber) { stream(w.Addr().String(), s, false).Run(ctx) }
		return c
	}
}

// Every feed passes the same cases: none of them lifts what was revoked, each comes
// back into step by itself, and where nothing can vouch, nothing does.
func TestConformance(t *testing.T) {
	t.Parallel()
	_, keys := carriedKey()
	for feed, begin := range map[string]func(*testing.T) *carrier{
		"file": carryFile, "poll": carryHTTP(true), "sse": carryHTTP(false),
		"nats":  carryEngine(newNATS, true),
		"redis": carryEngine(newRedis, false),
	} {
		for name, run := range map[string]func(c *carrier){
			"snapshot then tail": func(c *carrier) {
				c.revoke("a", 0)
				c.revoke("b", 0)
				s := c.join(keys)
				s.becomes(denylist.Live)
				s.still("a", "b")
				c.revoke("c", 0)
				s.knows("c")
			},
			"replayed, twice and backwards": func(c *carrier) {
				c.revoke("a", 0)
				c.revoke("b", 0)
				s := c.join(keys)
				s.knows("a", "b")
				said := c.said()
				for _, line := range slices.Backward(said) {
					c.raw(line)
					c.raw(line)
				}
				c.revoke("c", 0)
				s.knows("c")
				s.still("a", "b")
				s.becomes(denylist.Live)
				eventually(c.t, carriedSoon, "three tokens are denied, and canaries", func() bool {
					return s.list.Stats().Entries[token.KindToken] == 3+int(s.canaries.Load())
				})
			},
			"garbage and huge": func(c *carrier) {
				c.revoke("a", 0)
				s := c.join(keys)
				s.knows("a")
				for _, data := range []string{"\x00\xff", "{", `{"src":"x"}`, strings.Repeat("[", 50_000), strings.Repeat("a", 512<<10), `{"src":"x","e":1,"n":1,"t":1e400}`, `eyJhbGciOiJub25lIn0.e30.`} {
					c.raw(data)
				}
				c.revoke("b", 0)
				s.knows("b")
				s.still("a")
				s.becomes(denylist.Live)
				eventually(c.t, carriedSoon, "two tokens are denied, and canaries", func() bool {
					return s.list.Stats().Entries[token.KindToken] == 2+int(s.canaries.Load())
				})
			},
			"forged": func(c *carrier) {
				if c.forged == nil {
					return // a file is not signed: who may write it is said by its permissions
				}
				s, trusting := c.join(keys), c.join(nil)
				s.becomes(denylist.Live)
				trusting.becomes(denylist.Live)
				c.raw(c.forged("forged"))
				trusting.knows("forged") // so it does arrive
				c.revoke("a", 0)
				s.knows("a")
				if s.has("forged") {
					c.t.Error("what nobody signed is enforced")
				}
			},
			"away": func(c *carrier) {
				c.revoke("a", 0)
				s := c.join(keys)
				s.knows("a")
				s.becomes(denylist.Live)
				c.stop()
				s.becomes(denylist.Stale)
				s.still("a")
				c.start()
				s.becomes(denylist.Live)
				c.revoke("b", 0)
				s.knows("b")
				s.still("a")
			},
			"cut off, and a gap": func(c *carrier) {
				c.revoke("a", 0)
				s := c.join(keys)
				s.knows("a")
				s.becomes(denylist.Live)
				c.cut(true)
				s.becomes(denylist.Stale)
				if c.apart {
					c.revoke("b", 0)
					c.revoke("c", 0)
					if s.has("b") {
						c.t.Error("it is not cut off")
					}
				}
				c.cut(false)
				s.becomes(denylist.Live)
				if c.apart {
					s.still("b", "c") // live is to mean that nothing is missing
				}
				c.revoke("d", 0)
				s.knows("d")
				s.still("a")
			},
			"made anew": func(c *carrier) {
				c.revoke("a", 0)
				s := c.join(keys)
				s.knows("a")
				s.becomes(denylist.Live)
				lost := c.record("a")
				c.anew()
				c.revoke("b", 0)
				s.knows("b")
				s.still("a")
				s.becomes(denylist.Live)
				if c.refills {
					c.has(lost) // and not only a snapshot that was made since
					c.join(keys).knows("a", "b")
				}
			},
			"put back": func(c *carrier) {
				c.revoke("a", 0)
				s := c.join(keys)
				s.knows("a")
				putBack := c.copy()
				s.becomes(denylist.Live)
				c.revoke("b", 0)
				s.knows("b")
				lost := c.record("b")
				putBack()
				c.revoke("c", 0)
				s.knows("c")
				s.still("a", "b")
				s.becomes(denylist.Live)
				if c.refills {
					c.has(lost)
				}
				late := c.join(keys)
				late.knows("a", "c")
				if c.refills {
					late.knows("b")
				}
			},
			"one is missing": func(c *carrier) {
				if c.remove == nil {
					return // a file's lines stand for themselves, a hub's records are its own, and NATS is told to let nobody (deny_delete)
				}
				c.revoke("a", 0)
				c.revoke("b", 0)
				c.revoke("c", 0)
				s := c.join(keys)
				s.knows("a", "b", "c")
				s.becomes(denylist.Live)
				c.remove(c.record("b"))
				late := c.join(keys)
				eventually(c.t, time.Minute, "who comes late has a snapshot", func() bool { return late.source.State(time.Now()) == denylist.Live })
				late.still("a", "b", "c")
				s.still("a", "b", "c")
			},
			"records are kept back": func(c *carrier) {
				if c.lies == nil {
					return
				}
				c.revoke("a", 0)
				asking, trusting := c.join(keys), c.join(nil)
				both := []*subscriber{asking, trusting}
				for _, s := range both {
					s.knows("a")
					s.becomes(denylist.Live)
				}
				c.lies.begin(func(data []byte) ([]byte, bool) { return data, !isRecord(data) })
				c.revoke("b", 0)
				for _, s := range both {
					s.becomes(denylist.Stale)
					if s.has("b") {
						c.t.Error("it was not kept back")
					}
				}
				c.lies.begin(nil)
				for _, s := range both {
					s.becomes(denylist.Live)
					s.still("a", "b")
				}
			},
			"signs of life are kept back": func(c *carrier) {
				if c.lies == nil {
					return
				}
				s := c.join(keys)
				s.becomes(denylist.Live)
				c.lies.begin(func(data []byte) ([]byte, bool) { return data, !isSign(data) })
				c.revoke("a", 0)
				s.knows("a") // records come through
				s.becomes(denylist.Stale)
				c.lies.begin(nil)
				s.becomes(denylist.Live)
				s.still("a")
			},
			"signs of life are repeated": func(c *carrier) {
				if c.lies == nil {
					return
				}
				s := c.join(keys)
				s.becomes(denylist.Live)
				var last []byte
				var since atomic.Int64 // messages since a was kept back, itself included
				c.lies.begin(func(data []byte) ([]byte, bool) {
					isA := strings.Contains(plain(data), `"jti":"a"`)
					if isA || since.Load() > 0 {
						since.Add(1)
					}
					if !isA && !isSign(data) {
						return data, true
					}
					if last == nil {
						last = data
					}
					return last, true
				})
				s.becomes(denylist.Stale)
				c.revoke("a", 0)
				// So that no true sign of life comes before it, and what came instead was looked at.
				eventually(c.t, carriedSoon, "a is kept back, and more came", func() bool { return since.Load() > 1 })
				if s.has("a") {
					c.t.Error("it was not kept back")
				}
				c.lies.begin(nil)
				s.becomes(denylist.Live)
				s.still("a")
			},
			"slow": func(c *carrier) {
				if !c.apart {
					return // a file is there or not
				}
				for i := range 50 {
					c.revoke(fmt.Sprint("old-", i), 0)
				}
				c.slow(true)
				s := c.join(keys)
				c.revoke("a", 0)
				s.knows("old-0", "old-49", "a")
				s.becomes(denylist.Live)
				c.revoke("b", 0)
				s.knows("b")
				c.slow(false)
			},
			"clocks apart": func(c *carrier) {
				s := c.join(keys)
				s.becomes(denylist.Live)
				c.revoke("slow", -10*time.Minute)
				c.revoke("fast", 10*time.Minute)
				s.knows("slow", "fast")
			},
		} {
			t.Run(feed+"/"+name, func(t *testing.T) {
				t.Parallel()
				run(begin(t))
			})
		}
	}
}
