package test

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
)

// through makes the fleet's next gateways come to the engine by a wire of their own.
func (f *engineFleet) through(t testing.TB, w *wire) {
	_, rest, _ := strings.Cut(f.feed, "://")
	address, _, _ := strings.Cut(rest, "\"")
	f.feed = strings.Replace(f.feed, address, w.Addr().String(), 1)
	if i := strings.IndexByte(address, '/'); i > 0 {
		f.feed = strings.Replace(f.feed, w.Addr().String(), w.Addr().String()+address[i:], 1)
	}
}

// address is where the engine is.
func (e *engine) address() string {
	_, rest, _ := strings.Cut(e.feed, "://")
	address, _, _ := strings.Cut(rest, "\"")
	address, _, _ = strings.Cut(address, "/")
	return address
}

// A gateway cut off from the engine is fenced by its lease while the others go on;
// away for longer than the log remembers, it is not in step before it has a snapshot.
func TestEngineCutOff(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 2)
		w := newWire(t, e.address())
		alone := engineFleet{engine: &engine{t: t, feed: e.feed}, idp: f.idp, app: f.app, named: 100}
		alone.through(t, w)
		g := startGateway(t, alone.config(true))
		g.waitReady()
		tokens := f.idp.bearers(30)
		h := watch(t, tokens, f.gateways[0], f.gateways[1], g)
		h.revoke(f.gateways[0], tokens[:5]...)
		refusedAt(t, tokens[4].text, g)
		w.set(true)
		h.revoke(f.gateways[1], tokens[5:10]...)
		good := f.idp.bearer()
		g.answers(fleetLease+3*time.Second, good, "/", 503, "denylist_stale")
		g.says(tokens[0], "/open/", 401, "revoked")
		for _, o := range f.gateways {
			o.says(good, "/", 200, "")
		}
		// A snapshot that the others left covers all that the log forgets now.
		eventually(t, 60*time.Second, "a snapshot", e.saved)
		h.revoke(f.gateways[0], tokens[10:15]...)
		refusedAt(t, tokens[14].text, f.gateways...)
		w.set(false)
		g.answers(15*time.Second, good, "/", 200, "")
		for _, b := range tokens[:15] {
			g.says(b, "/", 401, "revoked")
		}
		h.check(fleetLease + 2*time.Second)
	})
}

// Where records are signed, the engine and whoever else can write to it are not
// believed: what they forge is dropped, and what they hold back is missed.
func TestEngineSigned(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		var private, public [3]string
		for i := range private {
			private[i], public[i] = sourceKey(t)
		}
		f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
		signed := func(i int) string { // the last one only reads
			mine := ""
			if i < 2 {
				mine = fmt.Sprintf(", signing_key_file: %q", private[i])
			}
			denylist := fmt.Sprintf("lease: %v, feeds: [{name: bus, %s, forward_revocations: %t}], source_keys: {a: %q, b: %q}%s", fleetLease+time.Second, f.feed, i < 2, public[0], public[1], mine)
			return fmt.Sprintf(fleetConfig, f.idp.URL, f.app.URL, denylist, freePort(t))
		}
		for i := range 3 {
			f.gateways = append(f.gateways, startGateway(t, signed(i)))
			if i == 0 {
				f.init(f.gateways[0])
			}
		}
		for _, g := range f.gateways {
			g.waitReady()
		}
		dead, good := f.idp.bearers(2), f.idp.bearer()
		f.gateways[0].revokes(dead[0])
		f.gateways[1].revokes(dead[1])
		refusedAt(t, dead[0].text, f.gateways...)
		refusedAt(t, dead[1].text, f.gateways...)
		// One that nobody signed, one that a stranger signed: the same records, taken by
		// whoever asks for no signature, are shown by the fleet's other tests.
		line := fmt.Sprintf(`{"src":"x","e":1,"n":1,"p":"%032d","t":%d,"ops":[{"jti":%q}]}`, 0, time.Now().UnixMilli(), good.jti)
		e.append(line)
		asking := fmt.Sprintf("source_keys: {a: %q, b: %q}", public[0], public[1])
		stranger := startGateway(t, strings.NewReplacer(private[0], private[2], asking, "max_entries: 1000").Replace(signed(0)))
		defer stranger.kill()
		again := f.idp.bearer()
		f.gateways[0].revokes(again)
		refusedAt(t, again.text, f.gateways...)
		for _, g := range f.gateways {
			g.says(good, "/", 200, "")
		}
		forged := `durward_denylist_feed_events_total{event="forged",feed="bus"} 0`
		if text := send(t, "GET", f.gateways[2].admin+"/metrics", "").Body; strings.Contains(text, forged) {
			t.Error("nothing was counted as forged")
		}
		// A source that is not heard of any more is missed, whoever else is.
		f.gateways[1].kill()
		f.gateways[2].answers(fleetLease+4*time.Second, good, "/", 503, "denylist_stale")
		f.gateways[1].start()
		f.gateways[2].answers(10*time.Second, good, "/", 200, "")
	})
}

// In a cluster of three, the death of the server that leads the stream loses nothing.
func TestNATSCluster(t *testing.T) {
	t.Parallel()
	var servers [3]*server.Server
	var options [3]*server.Options
	var routes, urls []string
	for i := range options {
		host, port, _ := net.SplitHostPort(freePort(t))
		_, clusterPort, _ := net.SplitHostPort(freePort(t))
		o := &server.Options{ServerName: fmt.Sprint("n", i), Host: host, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true}
		fmt.Sscan(port, &o.Port)
		o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1"}
		fmt.Sscan(clusterPort, &o.Cluster.Port)
		routes = append(routes, "nats://127.0.0.1:"+clusterPort)
		urls = append(urls, fmt.Sprintf("nats://%s:%s", host, port))
		options[i] = o
	}
	for i := range options {
		options[i].Routes = server.RoutesFromStr(strings.Join(routes, ","))
		s, err := server.NewServer(options[i])
		if err != nil {
			t.Fatal(err)
		}
		servers[i] = s
		s.Start()
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
	}
	eventually(t, 30*time.Second, "the cluster has a leader", func() bool {
		for _, s := range servers {
			if s.JetStreamIsLeader() {
				return s.JetStreamIsCurrent()
			}
		}
		return false
	})
	e := &engine{t: t, feed: fmt.Sprintf("nats: {url: %q, stream: %s}", strings.Join(urls, ","), engineStream)}
	f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
	for i := range 3 {
		g := f.begin(true)
		if i == 0 {
			eventually(t, 30*time.Second, "feed init", func() bool {
				out, err := exec.Command(binary, "feed", "init", "-config", g.config, "-replicas", "3").CombinedOutput()
				t.Logf("%s", out)
				return err == nil
			})
		}
		f.gateways = append(f.gateways, g)
	}
	for _, g := range f.gateways {
		g.waitReadyFor(30 * time.Second)
	}
	tokens := f.idp.bearers(40)
	h := watch(t, tokens, f.gateways...)
	h.revoke(f.gateways[0], tokens[:10]...)
	refusedAt(t, tokens[9].text, f.gateways...)
	for _, s := range servers {
		if s.JetStreamIsStreamLeader("$G", engineStream) {
			s.Shutdown()
			s.WaitForShutdown()
			break // else the next one, which may lead by now
		}
	}
	began := time.Now()
	if !h.revoke(f.gateways[1], tokens[10:20]...) { // kept for the fleet, or forwarded later
		t.Error("a revocation was not taken")
	}
	refusedAt(t, tokens[19].text, f.gateways[1])
	for _, g := range []*gateway{f.gateways[0], f.gateways[2]} {
		g.answers(20*time.Second, tokens[19], "/", 401, "revoked")
	}
	t.Logf("enforced everywhere %.2f s after the leader's death", time.Since(began).Seconds())
	f.live(20*time.Second, f.gateways...)
	h.revoke(f.gateways[2], tokens[20:30]...)
	refusedAt(t, tokens[29].text, f.gateways...)
	// What was answered with scope local is bounded by the lease of those who could not hear it.
	h.check(fleetLease + 2*time.Second)
}

// A replica that takes over without the last writes, which were acknowledged, gets
// them back from the gateways.
func TestRedisFailover(t *testing.T) {
	t.Parallel()
	e := newRedis(t)
	program := need(t, "redis-server", "apt-get install redis-server")
	primary := e.address()
	replica := freePort(t)
	_, port, _ := net.SplitHostPort(replica)
	_, primaryPort, _ := net.SplitHostPort(primary)
	cmd := exec.Command(program, "--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir(), "--save", "", "--replicaof", "127.0.0.1 "+primaryPort)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ctx := context.Background()
	second := redis.NewClient(&redis.Options{Addr: replica})
	defer second.Close()
	eventually(t, 10*time.Second, "the replica follows", func() bool {
		return strings.Contains(second.Info(ctx, "replication").Val(), "master_link_status:up")
	})
	w := newWire(t, primary)
	f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
	f.through(t, w)
	for range 3 {
		f.gateways = append(f.gateways, f.begin(true))
	}
	for _, g := range f.gateways {
		g.waitReady()
	}
	tokens := f.idp.bearers(40)
	h := watch(t, tokens, f.gateways...)
	h.revoke(f.gateways[0], tokens[:10]...)
	refusedAt(t, tokens[9].text, f.gateways...)
	eventually(t, 10*time.Second, "the replica has it", func() bool {
		return second.XLen(ctx, "revocations").Val() > 0
	})
	// The replica hears of nothing more, and then takes over.
	if err := second.ReplicaOf(ctx, "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	h.revoke(f.gateways[0], tokens[10:20]...)
	h.revoke(f.gateways[1], tokens[20:25]...)
	refusedAt(t, tokens[19].text, f.gateways...)
	refusedAt(t, tokens[24].text, f.gateways...)
	w.set(true)
	w.mu.Lock()
	w.to = replica
	w.mu.Unlock()
	w.set(false)
	f.live(20*time.Second, f.gateways...)
	h.revoke(f.gateways[2], tokens[25:30]...)
	refusedAt(t, tokens[29].text, f.gateways...)
	late := f.late()
	for _, b := range tokens[:30] {
		late.answers(10*time.Second, b, "/", 401, "revoked")
	}
	h.check(fleetLease + 2*time.Second)
}

// A stream that could lose revocations by its own settings is not followed, and the
// operator is told what to change; so is a Redis that may evict.
func TestEngineSettings(t *testing.T) {
	t.Parallel()
	t.Run("nats", func(t *testing.T) {
		t.Parallel()
		e := newNATS(t)
		f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
		conn, err := nats.Connect("nats://" + e.address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		g := f.begin(true)
		eventually(t, 10*time.Second, "it says that there is no stream", func() bool {
			return strings.Contains(g.log.String(), `there is no stream \"REVOCATIONS\"; make it with: durward feed init`)
		})
		ctx := context.Background()
		good := jetstream.StreamConfig{Name: engineStream, Subjects: []string{"durward." + engineStream + ".>"}, Discard: jetstream.DiscardNew, DenyDelete: true, DenyPurge: true}
		for want, change := range map[string]func(*jetstream.StreamConfig){
			"discard must be new":                  func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
			"deny_delete and deny_purge":           func(c *jetstream.StreamConfig) { c.DenyPurge = false },
			"max_msgs_per_subject must not be set": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 },
			"retention must be limits":             func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
			"subjects must have":                   func(c *jetstream.StreamConfig) { c.Subjects = []string{"other"} },
			"max_msg_size must be":                 func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 },
			"max_age must be an hour or more":      func(c *jetstream.StreamConfig) { c.MaxAge = time.Minute },
		} {
			c := good
			change(&c)
			if _, err := js.CreateStream(ctx, c); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(binary, "feed", "init", "-config", g.config).CombinedOutput()
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("feed init says %s, want %s", out, want)
			}
			if err := js.DeleteStream(ctx, engineStream); err != nil {
				t.Fatal(err)
			}
		}
		if g.isReady() {
			t.Error("it is ready without a stream")
		}
		if _, err := js.CreateStream(ctx, good); err != nil {
			t.Fatal(err)
		}
		f.init(g)
		g.waitReady()
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		e := newRedis(t)
		f := &engineFleet{engine: e, idp: newIssuer(t), app: newUpstream(t)}
		client := redis.NewClient(&redis.Options{Addr: e.address()})
		defer client.Close()
		ctx := context.Background()
		for key, value := range map[string]string{"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"} {
			if err := client.ConfigSet(ctx, key, value).Err(); err != nil {
				t.Fatal(err)
			}
		}
		g := f.begin(true)
		eventually(t, 10*time.Second, "it says what is wrong", func() bool {
			return strings.Contains(g.log.String(), "set maxmemory-policy noeviction")
		})
		if g.isReady() {
			t.Error("it is ready on a Redis that may forget")
		}
		if err := client.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err(); err != nil {
			t.Fatal(err)
		}
		g.waitReady()
	})
}
