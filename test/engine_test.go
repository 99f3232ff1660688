package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/redis/go-redis/v9"
)

// An engine is a real server that keeps the log of a fleet, and what can befall it.
type engine struct {
	t     testing.TB
	feed  string // its part of a feed's configuration
	dir   string // where it keeps its data
	start func() // with what is in dir
	stop  func() // at once
	// A client of its own does what no gateway may.
	append func(data string)
	remove func(data string)                                                 // a message, from the middle of the log; nil where deny_delete lets nobody
	delete func()                                                            // the log, as if it had never been
	trim   func()                                                            // all of the log but its end
	saved  func() bool                                                       // whether somebody left a snapshot
	client func(use func(ctx context.Context, js jetstream.JetStream) error) // of NATS
}

const engineStream = "REVOCATIONS"

// engines runs a test with each engine.
func engines(t *testing.T, run func(t *testing.T, e *engine)) {
	t.Parallel()
	for name, begin := range map[string]func(testing.TB) *engine{"nats": newNATS, "redis": newRedis} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, begin(t))
		})
	}
}

func newNATS(t testing.TB) *engine { return newNATSWith(t, &server.Options{}, nil) }

// newNATSWith is a server with options, at which the test itself has a key if those
// ask for one.
func newNATSWith(t testing.TB, options *server.Options, key nkeys.KeyPair) *engine {
	e := &engine{t: t, dir: t.TempDir()}
	host, port, _ := net.SplitHostPort(freePort(t))
	e.feed = fmt.Sprintf("nats: {url: \"nats://%s:%s\", stream: %s}", host, port, engineStream)
	options.Host, options.JetStream, options.StoreDir, options.NoLog, options.NoSigs = host, true, e.dir, true, true
	fmt.Sscan(port, &options.Port)
	var login []nats.Option
	if key != nil {
		public, _ := key.PublicKey()
		login = append(login, nats.Nkey(public, key.Sign))
	}
	var s *server.Server
	e.start = func() {
		var err error
		if s, err = server.NewServer(options.Clone()); err != nil {
			t.Fatal(err)
		}
		s.Start()
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("the NATS server does not come up")
		}
	}
	e.stop = func() {
		s.Shutdown()
		s.WaitForShutdown()
	}
	e.client = func(use func(ctx context.Context, js jetstream.JetStream) error) {
		t.Helper()
		conn, err := nats.Connect(s.ClientURL(), login...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := use(ctx, js); err != nil {
			t.Fatal(err)
		}
	}
	e.append = func(data string) {
		e.client(func(ctx context.Context, js jetstream.JetStream) error {
			_, err := js.Publish(ctx, "durward."+engineStream+".log", []byte(data))
			return err
		})
	}
	e.delete = func() {
		e.client(func(ctx context.Context, js jetstream.JetStream) error {
			if err := js.DeleteStream(ctx, engineStream); err != nil {
				return err
			}
			return js.DeleteObjectStore(ctx, engineStream+"_snapshot")
		})
	}
	e.trim = func() {
		e.client(func(ctx context.Context, js jetstream.JetStream) error {
			stream, err := js.Stream(ctx, engineStream)
			if err != nil {
				return err
			}
			was := stream.CachedInfo().Config
			few := was
			few.Discard, few.MaxMsgs = jetstream.DiscardOld, 1
			if _, err := js.UpdateStream(ctx, few); err != nil {
				return err
			}
			_, err = js.UpdateStream(ctx, was)
			return err
		})
	}
	e.saved = func() (ok bool) {
		e.client(func(ctx context.Context, js jetstream.JetStream) error {
			store, err := js.ObjectStore(ctx, engineStream+"_snapshot")
			if err == nil {
				_, err = store.GetInfo(ctx, "snapshot")
			}
			ok = err == nil
			return nil
		})
		return ok
	}
	e.start()
	t.Cleanup(func() { e.stop() })
	return e
}

func newRedis(t testing.TB) *engine {
	program := need(t, "redis-server", "apt-get install redis-server")
	e := &engine{t: t, dir: t.TempDir()}
	address := freePort(t)
	_, port, _ := net.SplitHostPort(address)
	e.feed = fmt.Sprintf("redis: {url: \"redis://%s/0\", stream: revocations}", address)
	client := redis.NewClient(&redis.Options{Addr: address})
	t.Cleanup(func() { client.Close() })
	ctx := context.Background()
	var cmd *exec.Cmd
	e.start = func() {
		cmd = exec.Command(program, "--bind", "127.0.0.1", "--port", port, "--dir", e.dir, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "redis answers", func() bool { return client.Ping(ctx).Err() == nil })
	}
	e.stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	e.append = func(data string) {
		// In one step, as the gateways do: a number that is taken and not used is a hole.
		must(client.Eval(ctx, `return redis.call('XADD', KEYS[2], redis.call('HINCRBY', KEYS[1], 'seq', 1) .. '-0', 'r', ARGV[1])`,
			[]string{"{revocations}:head", "revocations"}, data).Err())
	}
	e.remove = func(data string) {
		all, err := client.XRange(ctx, "revocations", "-", "+").Result()
		must(err)
		for _, m := range all {
			if m.Values["r"] == data {
				must(client.XDel(ctx, "revocations", m.ID).Err())
				return
			}
		}
		t.Fatal("there is no such message")
	}
	e.saved = func() bool { return client.HGet(ctx, "{revocations}:snapshot", "id").Val() != "" }
	e.delete = func() { must(client.FlushAll(ctx).Err()) }
	e.trim = func() { must(client.XTrimMaxLen(ctx, "revocations", 1).Err()) }
	e.start()
	t.Cleanup(func() { e.stop() })
	return e
}

// copy keeps what the engine has on disk, to be put back later.
func (e *engine) copy() (putBack func()) {
	e.t.Helper()
	kept := filepath.Join(e.t.TempDir(), "copy")
	if err := os.CopyFS(kept, os.DirFS(e.dir)); err != nil {
		e.t.Fatal(err)
	}
	return func() {
		e.t.Helper()
		entries, err := os.ReadDir(e.dir)
		if err != nil {
			e.t.Fatal(err)
		}
		for _, entry := range entries {
			if err := os.RemoveAll(filepath.Join(e.dir, entry.Name())); err != nil {
				e.t.Fatal(err)
			}
		}
		if err := os.CopyFS(e.dir, os.DirFS(kept)); err != nil {
			e.t.Fatal(err)
		}
	}
}

// engineFleet is gateways on one engine; those after the first write to it too.
type engineFleet struct {
	*engine
	idp      *issuer
	app      *upstream
	gateways []*gateway
	named    int // gateways so far: gw-1, gw-2, …
}

func startEngineFleet(t testing.TB, e *engine, n int) *engineFleet {
	t.Helper()
	f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
	for i := range n {
		g := f.begin(true)
		if i == 0 {
			f.init(g)
		}
		f.gateways = append(f.gateways, g)
	}
	for _, g := range f.gateways {
		g.waitReady()
	}
	return f
}

func (f *engineFleet) init(g *gateway) { f.command("feed", "init", "-config", g.config) }

// command runs durward, which must succeed.
func (f *engineFleet) command(args ...string) string {
	f.t.Helper()
	out, err := exec.Command(binary, args...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("durward %s: %v: %s", args, err, out)
	}
	return string(out)
}

func (f *engineFleet) config(writes bool) string {
	denylist := fmt.Sprintf("lease: %v, feeds: [{name: bus, %s, forward_revocations: %t}]", fleetLease+time.Second, f.feed, writes)
	f.named++
	return fmt.Sprintf("instance: gw-%d\nadmin: %s\n", f.named, freePort(f.t)) + fmt.Sprintf(fleetConfig, f.idp.URL, f.app.URL, denylist, freePort(f.t))
}

// begin starts a gateway, of which a failed test tells what it said about its feed.
func (f *engineFleet) begin(writes bool) *gateway {
	f.t.Helper()
	g := startGateway(f.t, f.config(writes))
	t := f.t
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for line := range strings.Lines(g.log.String()) {
			if !strings.Contains(line, `"msg":"request"`) && !strings.Contains(line, "left out of the log") {
				t.Log(line)
			}
		}
	})
	return g
}

// late starts one more gateway, which knows nothing yet and only reads.
func (f *engineFleet) late() *gateway {
	f.t.Helper()
	g := f.begin(false)
	g.waitReady()
	return g
}

// live waits until every gateway lets a good token pass.
func (f *engineFleet) live(within time.Duration, gateways ...*gateway) {
	f.t.Helper()
	good := f.idp.bearer()
	for _, g := range gateways {
		g.answers(within, good, "/", 200, "")
	}
}

// What one gateway revokes all refuse, each kind of rule, and whoever comes later.
func TestEngine(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 3)
		var dead []string
		for i, rule := range []string{`{"jti":%q}`, `{"sid":%q}`, `{"sub":%q}`, `{"client":%q}`} {
			id := fmt.Sprintf("id-%d", jtis.Add(1))
			token := f.idp.token(jwt.MapClaims{"jti": id, "sid": id, "sub": id, "client_id": id})
			for _, g := range f.gateways {
				if status, reason := g.status(token, "/"); status != 200 {
					t.Fatalf("before: %d %s", status, reason)
				}
			}
			status, answer := f.gateways[i%3].call("POST", "/revocations", fmt.Sprintf(rule, id))
			var said struct{ Scope string }
			if json.Unmarshal([]byte(answer), &said); status != 200 || said.Scope != "fleet" {
				t.Fatalf("%d %s", status, answer)
			}
			refusedAt(t, token, f.gateways...)
			dead = append(dead, token)
		}
		late := f.late()
		for _, token := range dead {
			if status, reason := late.status(token, "/"); status != 401 || reason != "revoked" {
				t.Errorf("who comes late: %d %s", status, reason)
			}
		}
		f.live(time.Second, append(f.gateways, late)...)
		// A gateway goes on where it was, with the engine and without.
		f.gateways[1].stop()
		during := f.idp.bearer()
		f.gateways[0].revokes(during)
		f.gateways[1].start()
		f.gateways[1].waitReady()
		for _, token := range append(dead, during.text) {
			if status, reason := f.gateways[1].status(token, "/"); status != 401 || reason != "revoked" {
				t.Errorf("after a restart: %d %s", status, reason)
			}
		}
	})
}

// An engine that is away makes every gateway stale within the lease and a second;
// what is revoked meanwhile holds for the fleet once it is back.
func TestEngineAway(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 2)
		tokens := f.idp.bearers(30)
		h := watch(t, tokens, f.gateways...)
		if !h.revoke(f.gateways[0], tokens[:10]...) {
			t.Fatal("not revoked")
		}
		refusedAt(t, tokens[9].text, f.gateways...)
		e.stop()
		gone := time.Now()
		good := f.idp.bearer()
		for _, g := range f.gateways {
			g.answers(fleetLease+3*time.Second, good, "/", 503, "denylist_stale")
			g.says(good, "/open/", 200, "")
			g.says(tokens[0], "/open/", 401, "revoked")
		}
		t.Logf("stale %.2f s after, with a lease of %v", time.Since(gone).Seconds(), fleetLease+time.Second)
		long := away(t)
		eventually(t, long+time.Second, "it was away for long", func() bool { return time.Since(gone) > long })
		meanwhile := f.idp.bearer()
		if scope := f.gateways[1].revokes(meanwhile); scope != "local" {
			t.Errorf("revoked without an engine: scope %q", scope)
		}
		e.start()
		back := time.Now()
		f.live(10*time.Second, f.gateways...)
		t.Logf("live %.2f s after its return", time.Since(back).Seconds())
		refusedAt(t, meanwhile.text, f.gateways...)
		if !h.revoke(f.gateways[1], tokens[10:20]...) {
			t.Fatal("not revoked")
		}
		refusedAt(t, tokens[19].text, f.gateways...)
		h.check(fleetLease + 2*time.Second)
	})
}

// A log that was deleted and made anew, empty, lifts nothing; the gateways hand back
// what it had, so that whoever comes then knows it too.
func TestEngineAnew(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 3)
		tokens := f.idp.bearers(30)
		h := watch(t, tokens, f.gateways...)
		h.revoke(f.gateways[0], tokens[:5]...)
		h.revoke(f.gateways[1], tokens[5:10]...)
		refusedAt(t, tokens[9].text, f.gateways...)
		refusedAt(t, tokens[4].text, f.gateways...)
		e.delete()
		f.init(f.gateways[0])
		for _, g := range f.gateways {
			eventually(t, 20*time.Second, "a gateway notices", func() bool {
				return len(g.log.lines("the log of revocations is not the one that was read: it was made anew, put back from an old copy, or lost its end; nothing that it said is lifted, and what it lost is handed back")) > 0
			})
		}
		f.live(10*time.Second, f.gateways...)
		if !h.revoke(f.gateways[2], tokens[10:15]...) {
			t.Error("nothing can be revoked any more")
		}
		refusedAt(t, tokens[14].text, f.gateways...)
		// Whoever comes now has only the new log.
		late := f.late()
		refusedAt(t, tokens[14].text, late)
		for _, b := range tokens[:15] {
			late.answers(10*time.Second, b, "/", 401, "revoked")
		}
		h.check(fleetLease + 2*time.Second)
	})
}

// A log that was put back from an old copy, and so lost what it had promised to keep,
// gets it back from the gateways, and goes on.
func TestEnginePutBack(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 3)
		tokens := f.idp.bearers(30)
		h := watch(t, tokens, f.gateways...)
		h.revoke(f.gateways[0], tokens[:5]...)
		refusedAt(t, tokens[4].text, f.gateways...)
		e.stop()
		putBack := e.copy()
		e.start()
		f.live(10*time.Second, f.gateways...)
		h.revoke(f.gateways[0], tokens[5:10]...)
		h.revoke(f.gateways[1], tokens[10:15]...)
		refusedAt(t, tokens[9].text, f.gateways...)
		refusedAt(t, tokens[14].text, f.gateways...)
		e.stop()
		putBack()
		e.start()
		f.live(20*time.Second, f.gateways...)
		h.revoke(f.gateways[2], tokens[15:20]...)
		refusedAt(t, tokens[19].text, f.gateways...)
		late := f.late()
		for _, b := range tokens[:20] {
			late.answers(10*time.Second, b, "/", 401, "revoked")
		}
		h.check(fleetLease + 2*time.Second)
	})
}

// Who comes when the log has forgotten its beginning gets the rest from a snapshot
// that a gateway left, and who was away for that long too.
func TestEngineForgot(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 2)
		tokens := f.idp.bearers(30)
		f.gateways[0].revokes(tokens[:5]...)
		refusedAt(t, tokens[4].text, f.gateways...)
		away := f.late()
		away.kill()
		f.gateways[0].revokes(tokens[5:10]...)
		refusedAt(t, tokens[9].text, f.gateways...)
		early := f.late() // reads before the log forgets
		e.trim()
		none := f.begin(false)
		late := f.gateways[0]
		// No snapshot covers what is gone: nobody may vouch for it.
		if none.isReady() {
			t.Log("a snapshot was there before")
		}
		none.waitReadyFor(90 * time.Second)
		for _, b := range tokens[:10] {
			none.says(b, "/", 401, "revoked")
		}
		away.start()
		away.waitReadyFor(30 * time.Second)
		for _, b := range tokens[:10] {
			away.says(b, "/", 401, "revoked")
		}
		f.gateways[1].revokes(tokens[10:15]...)
		refusedAt(t, tokens[14].text, late, none, away, early, f.gateways[1])
		f.live(5*time.Second, late, none, away, early, f.gateways[1])
	})
}

// Whatever else is in the log disturbs nobody: what cannot be read, what came before,
// what nobody in the fleet wrote.
func TestEngineGarbage(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 2)
		dead, good := f.idp.bearer(), f.idp.bearer()
		f.gateways[0].revokes(dead)
		refusedAt(t, dead.text, f.gateways...)
		for _, data := range []string{"", "\x00\xff", "{", `{"src":"x"}`, strings.Repeat("[", 100_000), strings.Repeat("a", 1<<20), `{"src":"x","e":1,"n":1,"p":"00000000000000000000000000000000","t":1e400}`} {
			e.append(data)
		}
		next := f.idp.bearer()
		f.gateways[1].revokes(next)
		refusedAt(t, next.text, f.gateways...)
		late := f.late()
		for _, g := range append(f.gateways, late) {
			g.says(dead, "/", 401, "revoked")
			g.says(good, "/", 200, "")
		}
	})
}

// waitReadyFor is waitReady with more patience.
func (g *gateway) waitReadyFor(within time.Duration) {
	g.t.Helper()
	eventually(g.t, within, "ready", g.isReady)
}
