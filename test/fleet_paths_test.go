package test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// A wire is a TCP connection to an address that can be cut.
type wire struct {
	net.Listener
	to   string
	mu   sync.Mutex
	cut  bool
	slow bool
	late time.Duration // that everything takes, either way; of a hundred pieces one takes twice as long, and all behind it
	open map[net.Conn]bool
}

func newWire(t testing.TB, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l, to: to, open: map[net.Conn]bool{}}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(near)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		w.set(true)
	})
	return w
}

func (w *wire) carry(near net.Conn) {
	defer near.Close()
	w.mu.Lock()
	to := w.to
	w.mu.Unlock()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	if w.cut {
		w.mu.Unlock()
		return
	}
	w.open[near], w.open[far] = true, true
	late := w.late
	w.mu.Unlock()
	go func() {
		delayed(far, near, late)
		far.Close()
	}()
	if late > 0 {
		delayed(near, far, late)
	} else {
		w.crawling(near, far)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, near)
	delete(w.open, far)
}

// delayed copies what comes, in order and that much later.
func delayed(to, from net.Conn, late time.Duration) {
	if late == 0 {
		io.Copy(to, from)
		return
	}
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, 1000)
	go func() {
		defer close(pieces)
		for b := make([]byte, 32<<10); ; {
			n, err := from.Read(b)
			due := time.Now().Add(late)
			if rand.IntN(100) == 0 { // as if it had been lost and sent again
				due = due.Add(late)
			}
			pieces <- piece{slices.Clone(b[:n]), due}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			from.Close()
		}
	}
}

// crawling copies, a few bytes every few milliseconds while the wire is slow.
func (w *wire) crawling(near, far net.Conn) {
	for b := make([]byte, 32<<10); ; {
		w.mu.Lock()
		slow := w.slow
		w.mu.Unlock()
		p := b
		if slow {
			time.Sleep(5 * time.Millisecond) // what is slow is slow for a time
			p = b[:200]
		}
		n, err := far.Read(p)
		if _, failed := near.Write(p[:n]); err != nil || failed != nil {
			return
		}
	}
}

// lag has everything take its time on connections that are made from now on.
func (w *wire) lag(late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = late
}

// crawl makes the wire slow, or fast again.
func (w *wire) crawl(slow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow = slow
}

// set cuts the wire, or mends it.
func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for c := range w.open {
		if cut {
			c.Close()
		}
	}
}

// TestFleetRelay follows a hub and a relay of it at once. Either may go, and the
// gateway hears the news by the other, and stays live; without the hub nobody vouches.
func TestFleetRelay(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{false, true} {
		t.Run(fmt.Sprintf("signed=%v", signed), func(t *testing.T) {
			t.Parallel()
			hub, relaying, follower := "", "", ""
			if signed {
				private, public := sourceKey(t)
				relayPrivate, relayPublic := sourceKey(t)
				follower = fmt.Sprintf(", source_keys: {hub: %q, relay: %q}", public, relayPublic)
				hub = fmt.Sprintf(", signing_key_file: %q", private)
				relaying = fmt.Sprintf(", signing_key_file: %q", relayPrivate) + follower
			}
			f := startFleet(t, 0, hub, "")
			address := freePort(t)
			relay := startGateway(t, f.followerConfig(f.address, "", relaying+fmt.Sprintf(", serve_feed: {listen: %q, token_file: %q}", address, f.tokenFile)))
			relay.waitReady()
			direct := newWire(t, f.address)
			g := startGateway(t, f.followerConfig(direct.Addr().String()+","+address, "", follower))
			g.waitReady()
			good, tokens := f.idp.bearer(), f.idp.bearers(8)
			h := watch(t, append(tokens, good), g)
			for _, b := range tokens[:4] {
				h.revoke(f.hub, b)
			}
			refusedAt(t, tokens[3].text, g, relay)

			// live is that it stays so for longer than whatever came before could carry it.
			live := func(what string) {
				t.Helper()
				for until := time.Now().Add(fleetLease + 1500*time.Millisecond); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
					if status, reason := g.status(good.text, "/"); status != 200 {
						t.Fatalf("%s: %d %s", what, status, reason)
					}
				}
			}
			relay.kill()
			live("the relay was killed")
			h.revoke(f.hub, tokens[4])
			refusedAt(t, tokens[4].text, g)

			relay.start()
			relay.waitReady()
			relay.answers(5*time.Second, tokens[4], "/", 401, "revoked")
			g.answers(5*time.Second, good, "/", 200, "")
			direct.set(true)
			live("the hub's address was cut")
			h.revoke(f.hub, tokens[5])
			refusedAt(t, tokens[5].text, g)

			f.hub.kill()
			killed := time.Now()
			g.answers(fleetLease+3*time.Second, good, "/", 503, "denylist_stale")
			t.Logf("stale %v after the hub was killed", time.Since(killed))
			g.says(tokens[5], "/", 401, "revoked")
			f.hub.start()
			back := time.Now()
			g.answers(10*time.Second, good, "/", 200, "")
			t.Logf("live %v after the hub's return, by the relay alone", time.Since(back))
			h.revoke(f.hub, tokens[6])
			refusedAt(t, tokens[6].text, g)
			h.check(cutOff)
		})
	}
}

// TestFleetForwards revokes at followers that hand it to the hub: by the operators'
// interface and by signing out. While the hub is down that holds where it was said,
// and for the fleet once the hub is back.
func TestFleetForwards(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 0, "", "")
	for range 2 {
		f.gateways = append(f.gateways, startGateway(t, f.followerConfig(f.address, ", forward_revocations: true", "")+"credentials: {session_endpoint: /.durward/session}\n"))
	}
	here, there := f.gateways[0], f.gateways[1]
	here.waitReady()
	there.waitReady()
	b := f.idp.bearer()
	if scope := here.revokes(b); scope != "fleet" {
		t.Errorf("scope %q, want fleet", scope)
	}
	here.says(b, "/", 401, "revoked")
	f.hub.says(b, "/", 401, "revoked") // it answered only once it held it
	refusedAt(t, b.text, there)

	b = f.idp.bearer()
	there.says(b, "/", 200, "")
	if a := send(t, "DELETE", here.url("/.durward/session"), "", "Cookie: __Host-session="+b.text); a.StatusCode != 204 && a.StatusCode != 200 {
		t.Errorf("sign out: %s %s", a.Status, a.Body)
	}
	here.says(b, "/", 401, "revoked")
	refusedAt(t, b.text, there, f.hub)

	f.hub.kill()
	b, before, good := f.idp.bearer(), f.idp.bearer(), f.idp.bearer()
	if scope := here.revokes(b); scope != "local" {
		t.Errorf("scope %q while the hub is down, want local", scope)
	}
	here.says(b, "/", 401, "revoked")
	// What waits for the hub survives a restart.
	if scope := there.revokes(before); scope != "local" {
		t.Errorf("scope %q while the hub is down, want local", scope)
	}
	there.kill()
	there.start()
	f.hub.start()
	back := time.Now()
	refusedAt(t, b.text, there, f.hub)
	refusedAt(t, before.text, here, f.hub)
	t.Logf("forwarded to all %v after the hub's return", time.Since(back))
	for _, g := range []*gateway{here, there, f.hub} {
		g.answers(5*time.Second, good, "/", 200, "")
	}

	// A relay's own word does not come to the hub, unless it forwards it.
	for _, forward := range []bool{false, true} {
		relay := startGateway(t, f.followerConfig(f.address, fmt.Sprintf(", forward_revocations: %v", forward), fmt.Sprintf(", serve_feed: {listen: %q, token_file: %q}", freePort(t), f.tokenFile)))
		relay.waitReady()
		b := f.idp.bearer()
		status, reason := 200, ""
		scope, want := relay.revokes(b), "local"
		if forward {
			status, reason, want = 401, "revoked", "fleet"
		}
		if scope != want {
			t.Errorf("scope %q of a relay that forwards: %v, want %q", scope, forward, want)
		}
		f.hub.says(b, "/", status, reason)
	}

	alone := startGateway(t, f.config("lease: 2s"))
	if scope := alone.revokes(b); scope != "local" {
		t.Errorf("scope %q of a gateway alone, want local", scope)
	}
}

// A new issuer, whose tokens the hub knows to be revoked for long: a reload that
// adds it at a follower lets none of them in, not even the first.
func TestFleetNewIssuer(t *testing.T) {
	t.Parallel()
	f := &fleet{t: t, idp: newIssuer(t), app: newUpstream(t), address: freePort(t), tokenFile: tokenFile(t)}
	other := newIssuer(t)
	config := func(both bool, denylist string) string {
		issuers, names := fmt.Sprintf("{name: corp, issuer: %q, audiences: [app]}", f.idp.URL), "corp"
		if both {
			issuers, names = issuers+fmt.Sprintf(", {name: other, issuer: %q, audiences: [app]}", other.URL), "corp, other"
		}
		return fmt.Sprintf("listen: 127.0.0.1:0\nissuers: [%s]\nroutes: [{name: app, upstream: %q, issuers: [%s]}]\ndenylist: {%s}\n", issuers, f.app.URL, names, denylist)
	}
	hub := startGateway(t, config(true, fmt.Sprintf("serve_feed: {listen: %q, token_file: %q}", f.address, f.tokenFile)))
	hub.waitReady()
	follower := fmt.Sprintf("lease: %v, feeds: [{name: hub, http: {urls: [http://%s], token_file: %q}}]", fleetLease, f.address, f.tokenFile)
	g := startGateway(t, config(false, follower))
	g.waitReady()
	tokens, good, mine := other.bearers(20), other.bearer(), f.idp.bearer()
	for _, b := range tokens {
		if status, answer := hub.call("POST", "/revocations", fmt.Sprintf(`{"iss":%q,"jti":%q}`, other.URL, b.jti)); status != 200 {
			t.Fatal(status, answer)
		}
	}
	hub.call("POST", "/revocations", fmt.Sprintf(`{"iss":%q,"jti":"marker"}`, f.idp.URL))
	eventually(t, 5*time.Second, "the follower has the news of its own issuer", func() bool { return g.total() == 1 })
	g.says(mine, "/", 200, "")
	g.says(tokens[0], "/", 401, "token_issuer")

	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for {
				for _, b := range tokens {
					if status, reason := g.status(b.text, "/"); status == http.StatusOK {
						t.Errorf("client %d: a revoked token of the new issuer passed: %s", i, reason)
						return
					}
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	g.write(config(true, follower))
	if status, answer := g.call("POST", "/reload", ""); status != 200 {
		t.Error(status, answer)
	}
	g.answers(10*time.Second, good, "/", 200, "")
	for _, b := range tokens {
		g.says(b, "/", 401, "revoked")
	}
	close(stop)
	clients.Wait()
	g.says(mine, "/", 200, "")
}
