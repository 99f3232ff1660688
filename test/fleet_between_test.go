package test

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A meddler stands between a hub and its followers. What comes through, line by
// line, is what the rule makes of it: nil holds a line back.
type meddler struct {
	*httptest.Server
	rule atomic.Pointer[func(line []byte) []byte]
}

// meddle starts a meddler in front of a hub's feed; it lets everything pass.
func meddle(t testing.TB, address string) *meddler {
	t.Helper()
	m := &meddler{}
	m.set(func(line []byte) []byte { return line })
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	proxy.FlushInterval = -1
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	proxy.ModifyResponse = func(res *http.Response) error {
		if kind := res.Header.Get("Content-Type"); kind == "text/event-stream" || kind == "application/x-ndjson" {
			through, w := io.Pipe()
			go m.copy(w, res.Body)
			res.Body = through
			res.Header.Del("Content-Length")
		}
		return nil
	}
	m.Server = httptest.NewServer(proxy)
	t.Cleanup(func() {
		m.CloseClientConnections()
		m.Close()
	})
	return m
}

func (m *meddler) set(rule func([]byte) []byte) { m.rule.Store(&rule) }

func (m *meddler) address() string { return m.Listener.Addr().String() }

func (m *meddler) copy(to *io.PipeWriter, from io.ReadCloser) {
	defer from.Close()
	for r := bufio.NewReader(from); ; {
		line, err := r.ReadBytes('\n')
		if err != nil {
			to.CloseWithError(err)
			return
		}
		data, field := bytes.CutPrefix(line, []byte("data: "))
		if field || bytes.HasPrefix(line, []byte("{")) || bytes.HasPrefix(line, []byte("ey")) {
			if data = (*m.rule.Load())(bytes.TrimSpace(data)); data == nil {
				continue
			}
			line = append(data, '\n')
			if field {
				line = append([]byte("data: "), line...)
			}
		}
		if _, err := to.Write(line); err != nil {
			return
		}
	}
}

// isBeat is whether a line is a heartbeat, signed or not: it has no operations.
func isBeat(line []byte) bool {
	if parts := bytes.Split(line, []byte(".")); line[0] != '{' && len(parts) == 3 {
		line, _ = base64.RawURLEncoding.DecodeString(string(parts[1]))
	}
	var record struct{ Ops *[]any }
	return json.Unmarshal(line, &record) == nil && record.Ops == nil
}

// events counts what happened to a gateway's feed, as /status tells it.
func (g *gateway) events(name string) (count uint64) {
	g.t.Helper()
	var status struct {
		Feeds []struct{ Events map[string]uint64 }
	}
	if err := json.Unmarshal([]byte(send(g.t, "GET", g.admin+"/status", "").Body), &status); err != nil {
		g.t.Fatal(err)
	}
	for _, feed := range status.Feeds {
		count += feed.Events[name]
	}
	return count
}

// between is a fleet of a hub and one gateway, with a meddler between them.
func between(t testing.TB, hub, follower string) (*fleet, *gateway, *meddler) {
	t.Helper()
	f := startFleet(t, 0, hub, "")
	m := meddle(t, f.address)
	g := startGateway(t, f.followerConfig(m.address(), "", follower))
	g.waitReady()
	f.gateways = []*gateway{g}
	return f, g, m
}

// Records are held back while heartbeats pass. The heartbeats tell of them, so the
// gateway is not live, and asks again until it has them.
func TestFleetRecordsHeldBack(t *testing.T) {
	t.Parallel()
	f, g, m := between(t, "", "")
	tokens := f.idp.bearers(3)
	good := f.idp.bearer()
	h := watch(t, append(tokens, good), g)
	h.revoke(f.hub, tokens[0])
	refusedAt(t, tokens[0].text, g)
	m.set(func(line []byte) []byte {
		if isBeat(line) {
			return line
		}
		return nil
	})
	h.revoke(f.hub, tokens[1])
	began := time.Now()
	g.answers(cutOff, tokens[1], "/", 503, "denylist_stale")
	t.Logf("stale %v after the first record was held back", time.Since(began))
	eventually(t, 5*time.Second, "/status counts a gap", func() bool { return g.events("gap") > 0 })
	m.set(func(line []byte) []byte { return line })
	refusedAt(t, tokens[1].text, g)
	g.answers(5*time.Second, good, "/", 200, "")
	h.check(cutOff)
}

// Heartbeats are held back while records pass. Those are enforced, but nobody says
// that they are all.
func TestFleetHeartbeatsHeldBack(t *testing.T) {
	t.Parallel()
	f, g, m := between(t, "", "")
	tokens := f.idp.bearers(200)
	good := f.idp.bearer()
	m.set(func(line []byte) []byte {
		if isBeat(line) {
			return nil
		}
		return line
	})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for _, b := range tokens[1:] {
			select {
			case <-stop:
				return
			case <-tick.C:
				attempt("POST", f.hub.admin+"/revocations", linesOf([]bearer{b}), "Authorization: Bearer "+f.hub.adminToken())
			}
		}
	}()
	defer func() {
		close(stop)
		<-done
	}()
	began := time.Now()
	g.answers(fleetLease+2*time.Second, good, "/", 503, "denylist_stale")
	t.Logf("stale %v after the first heartbeat was held back, with ten records a second", time.Since(began))
	f.hub.revokes(tokens[0])
	refusedAt(t, tokens[0].text, g)
	g.says(good, "/", 503, "denylist_stale")
	m.set(func(line []byte) []byte { return line })
	g.answers(5*time.Second, good, "/", 200, "")
}

// Old heartbeats are told again in place of new ones, and then all that ever came.
func TestFleetReplay(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{false, true} {
		t.Run(fmt.Sprintf("signed=%v", signed), func(t *testing.T) {
			t.Parallel()
			hub, follower := "", ""
			if signed {
				private, public := sourceKey(t)
				hub, follower = fmt.Sprintf(", signing_key_file: %q", private), fmt.Sprintf(", source_keys: {hub: %q}", public)
			}
			f, g, m := between(t, hub, follower)
			good := f.idp.bearer()
			old := make(chan []byte, 1)
			var replayed atomic.Int64
			m.set(func(line []byte) []byte {
				if !isBeat(line) {
					return line
				}
				select {
				case first := <-old:
					old <- first
					replayed.Add(1)
					return bytes.Clone(first)
				default:
					old <- bytes.Clone(line)
					return line
				}
			})
			began := time.Now()
			g.answers(fleetLease+3*time.Second, good, "/", 503, "denylist_stale")
			t.Logf("stale %v after the first heartbeat was told again", time.Since(began))
			seen := replayed.Load()
			eventually(t, 10*time.Second, "two more replays", func() bool { return replayed.Load() >= seen+2 })
			g.says(good, "/", 503, "denylist_stale")
			m.set(func(line []byte) []byte { return line })
			g.answers(5*time.Second, good, "/", 200, "")
		})
	}
}

// sourceKey is a fresh pair of keys as openssl writes them: private, and public.
func sourceKey(t testing.TB) (private, public string) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	private, public = filepath.Join(dir, "ed25519.pem"), filepath.Join(dir, "ed25519.pub")
	writePEM(t, private, "PRIVATE KEY", pkcs8(t, key))
	writePEM(t, public, "PUBLIC KEY", der)
	return private, public
}

// Where records are signed, one that was altered on its way counts as forged and
// does nothing, and the one that it stands for is missed.
func TestFleetForgery(t *testing.T) {
	t.Parallel()
	private, public := sourceKey(t)
	f, g, m := between(t, fmt.Sprintf(", signing_key_file: %q", private), fmt.Sprintf(", source_keys: {hub: %q}", public))
	revoked, victim := f.idp.bearer(), f.idp.bearer()
	var altered atomic.Int64
	m.set(func(line []byte) []byte {
		parts := strings.Split(string(line), ".")
		payload, err := base64.RawURLEncoding.DecodeString(parts[min(1, len(parts)-1)])
		if err != nil || !strings.Contains(string(payload), `"`+revoked.jti+`"`) {
			return line
		}
		altered.Add(1)
		parts[1] = base64.RawURLEncoding.EncodeToString(bytes.ReplaceAll(payload, []byte(`"`+revoked.jti+`"`), []byte(`"`+victim.jti+`"`)))
		return []byte(strings.Join(parts, "."))
	})
	h := watch(t, []bearer{revoked, victim}, g)
	if !h.revoke(f.hub, revoked) {
		t.Fatal("the hub took no revocation")
	}
	eventually(t, 5*time.Second, "it counts as forged", func() bool { return g.events("forged") > 0 })
	g.answers(cutOff, victim, "/", 503, "denylist_stale")
	if altered.Load() == 0 {
		t.Error("no record was altered")
	}
	m.set(func(line []byte) []byte { return line })
	refusedAt(t, revoked.text, g)
	g.answers(5*time.Second, victim, "/", 200, "")
	h.check(cutOff)
}

// A gateway that asks for signatures is never in step with a hub that signs nothing,
// or with another key.
func TestFleetUnsigned(t *testing.T) {
	t.Parallel()
	private, _ := sourceKey(t)
	_, public := sourceKey(t)
	for name, hub := range map[string]string{"unsigned": "", "with another key": fmt.Sprintf(", signing_key_file: %q", private)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, 0, hub, "")
			good := f.idp.bearer()
			g := startGateway(t, f.followerConfig(f.address, "", fmt.Sprintf(", source_keys: {hub: %q}", public)))
			f.hub.revokes(f.idp.bearer())
			eventually(t, 10*time.Second, "several records and heartbeats count as forged", func() bool { return g.events("forged") >= 4 })
			g.answers(5*time.Second, good, "/", 503, "denylist_stale")
			g.says(good, "/open/", 503, "denylist_stale")
			if g.isReady() {
				t.Error("ready")
			}
			if n := g.total(); n != 0 {
				t.Errorf("%d entries", n)
			}
		})
	}
}
