package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"durward/denylist"
	"durward/denylist/filefeed"
	"durward/denylist/httpfeed"
	"durward/denylist/natsfeed"
	"durward/denylist/redisfeed"
	"durward/metrics"
)

// A fleet is what a gateway has to do with others: what it publishes and hands on
// as a hub, what it forwards to one, and the snapshot from which it starts again.
type fleet struct {
	log     *slog.Logger
	list    *denylist.List
	records *denylist.Log    // nil: this gateway is no hub
	writer  *denylist.Writer // nil: this gateway is no hub
	signing ed25519.PrivateKey
	path    string // of the snapshot; "" without a state directory
	broken  string // why the snapshot of the last run could not be used

	journal string // the folder of the journal; "" without a state directory

	// learning is held, by any number, from when something is enforced until it is
	// published, and by nobody else at the moment in which a snapshot notes how far
	// this gateway's own chain says what is in it.
	learning sync.RWMutex
	relays   atomic.Bool                 // what is revoked here is for the one hub to publish
	restored map[string][]denylist.Place // by feed: where the last run stood
	cursors  map[string]denylist.Cursor  // the same in the logs of engines
	hub      forwarding
}

const snapshotFile = "denylist.snapshot"

// newFleet restores the snapshot into the list, and begins to write if this
// gateway is a hub. The list takes whatever it holds: what was enforced is.
func newFleet(b *built, list *denylist.List, log *slog.Logger, now time.Time) *fleet {
	d := b.config.Denylist
	f := &fleet{log: log, list: list, signing: b.signing, hub: forwarding{log: log, queued: map[string]struct{}{}}}
	own := denylist.Head{Source: "durward-" + strings.ToLower(rand.Text()[:10])}
	if b.config.StateDir != "" {
		f.path, f.journal = filepath.Join(b.config.StateDir, snapshotFile), b.config.StateDir
		s, err := denylist.OpenSnapshot(f.path, nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			f.lose(err)
		default:
			defer s.Close()
			if _, err := s.Restore(list, true); err != nil {
				f.lose(err)
				break
			}
			f.restored, f.cursors = s.Feeds, s.Cursors
			// A source and its key are one: with another key it is another source.
			if s.Own != nil && s.Own.Signer == denylist.Signer(f.signing) {
				own = s.Own.Head
			}
			log.Info("the snapshot of the denylist was restored", "entries", list.Stats().Total, "made", s.Made)
		}
	}
	if d.ServeFeed != nil {
		f.records = denylist.NewLog()
		f.writer = denylist.QuietWriter(f.records, f.signing, own, list.Stats().Total > 0, now)
		f.speak(d, own.Epoch != 0, now)
	}
	return f
}

// speak has this gateway's own chain begin, unless it is a relay that has nothing
// to add to the one feed that it hands on. Were that a source of its own, whoever
// follows it beside the hub would be stale when it is gone. With several feeds, or
// files, its own signs of life say that it is in step with all of them.
func (f *fleet) speak(d DenylistConfig, before bool, now time.Time) {
	if f.writer == nil {
		return
	}
	one := len(d.Feeds) == 1 && d.Feeds[0].HTTP != nil
	if before || !one {
		f.writer.Begin(now)
	}
	f.relays.Store(one && d.Feeds[0].ForwardRevocations && f.writer.Place().Number == 0)
}

func (f *fleet) lose(err error) {
	f.broken = err.Error()
	f.log.Error("the snapshot of the denylist cannot be used; what it held and no feed says again is not enforced", "error", err)
}

// learn enforces what this gateway learned from its operators and its files, and
// hands it on.
func (f *fleet) learn(enforce func() (news []denylist.Revocation, err error)) error {
	f.learning.RLock()
	defer f.learning.RUnlock()
	news, err := enforce()
	switch {
	case f.writer == nil || len(news) == 0:
	case f.relays.Load():
		f.writer.Renew(time.Now()) // should it begin after all, it has not said this
	default:
		f.writer.Publish(news, time.Now())
	}
	return err
}

// save writes the snapshot if something was added since the last one. saved is the
// version that was written last, 0 for none.
func (f *fleet) save(feeds map[string]*feed, saved *uint64) {
	version := f.list.Version() + 1
	if f.path == "" || version == *saved {
		return
	}
	// The places first: what is added meanwhile may be part of it or not.
	header := denylist.SnapshotHeader{Made: time.Now().UTC(), Feeds: map[string][]denylist.Place{}, Cursors: map[string]denylist.Cursor{}}
	for name, feed := range feeds {
		if feed.stream != nil && feed.follower.Whole() {
			header.Cursors[name] = feed.stream.Cursor() // before the places in the chains: what comes twice does no harm
		}
		if feed.follower != nil {
			header.Feeds[name] = feed.follower.Places()
		}
	}
	// The own place last, when all that is part of it was published: a follower that
	// has come there has it all, and needs no snapshot to go on to the next chain.
	footer := func() (at denylist.SnapshotFooter) {
		if f.writer != nil {
			f.learning.Lock()
			own := f.writer.Place()
			f.learning.Unlock()
			if own.Number > 0 {
				at.Own = &own
			}
		}
		return at
	}
	if err := denylist.SaveSnapshot(f.path, f.list, header, footer); err != nil {
		f.log.Error("the snapshot of the denylist cannot be written; a restart will know less until the feeds are read", "error", err)
		return
	}
	*saved = version
}

// keep writes snapshots, gives signs of life as a hub, and says when the list is
// nearly full, until the context ends; then it writes the last snapshot.
func (g *gateway) keep(ctx context.Context) {
	// A file may lose what it said, and the process be killed: until the next snapshot
	// that is known nowhere. So it follows soon, as long as it costs less than a
	// hundredth of the time.
	const saveEvery, saveSoon = time.Minute, 3 * time.Second
	var cost atomic.Int64 // of the last one, in nanoseconds
	f := g.fleet
	var saved uint64
	// The first one soon: a hub is known to its followers by the name that is in it.
	next := time.Now().Add(saveSoon)
	near := false
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var saving sync.WaitGroup
	busy := make(chan struct{}, 1)
	f.beat(time.Now())
	canary := time.Now()
	for {
		select {
		case <-ctx.Done():
			saving.Wait()
			f.save(*g.following.Load(), &saved)
			return
		case now := <-t.C:
			f.beat(now)
			if now.After(canary) {
				canary = now.Add(denylist.CanaryEvery)
				f.sing(now)
			}
			if now.After(next) {
				next = now.Add(min(saveEvery, max(saveSoon, 100*time.Duration(cost.Load()))))
				select {
				case busy <- struct{}{}: // a large list takes a while, and signs of life do not wait
					saving.Go(func() {
						began := time.Now()
						f.save(*g.following.Load(), &saved)
						cost.Store(int64(time.Since(began)))
						<-busy
					})
				default:
				}
			}
			if was := near; g.list.Near() != was {
				near = !was
				if near {
					f.log.Error("the denylist is nearly full; raise denylist.max_entries before revocations cannot be taken", "entries", g.list.Stats().Total, "max_entries", g.list.Stats().Max)
				} else {
					f.log.Info("the denylist has room again", "entries", g.list.Stats().Total)
				}
			}
		}
	}
}

// sing publishes a canary to those who follow this gateway.
func (f *fleet) sing(now time.Time) {
	if f.writer == nil || f.writer.Place().Number == 0 || f.relays.Load() {
		return
	}
	if err := f.learn(func() ([]denylist.Revocation, error) {
		return f.list.Add([]denylist.Revocation{denylist.Canary()}, now)
	}); err != nil {
		f.log.Debug("no canary could be made", "error", err) // being full is told elsewhere
	}
}

// beat gives a sign of life if this gateway knows itself what it should: whoever
// is not in step with its own feeds vouches for nothing.
func (f *fleet) beat(now time.Time) {
	if f.writer == nil {
		return
	}
	for _, source := range f.list.Sources() {
		if source.State(now) != denylist.Live {
			return
		}
	}
	f.writer.Beat(now)
}

// whole is why a snapshot for others would lack something.
func (g *gateway) whole() error {
	for name, f := range *g.following.Load() {
		if f.follower != nil && !f.follower.Whole() {
			return fmt.Errorf("this hub does not hold all that feed %q said (unknown issuers or kinds, or mass: false); follow another hub, or configure its issuers here", name)
		}
	}
	return nil
}

// A feed is a followed source of revocations.
type feed struct {
	config   FeedConfig
	source   *denylist.Source
	stop     context.CancelFunc
	ended    chan struct{}      // closed when nothing more comes, after stop
	follower *denylist.Follower // nil: a file
	http     *httpfeed.Feed     // nil: another kind
	stream   *denylist.Stream   // nil: another kind; of NATS or Redis
}

// run follows the feed until the context ends.
func (f *feed) run(ctx context.Context) {
	if f.stream != nil {
		f.stream.Run(ctx)
	} else {
		f.http.Run(ctx)
	}
}

// follow starts to read a feed; it has no say yet.
func (g *gateway) follow(ctx context.Context, config FeedConfig, b *built) *feed {
	life, stop := context.WithCancel(ctx)
	f := &feed{config: config, source: g.list.Candidate(config.Name, b.config.Denylist.Lease), stop: stop, ended: make(chan struct{})}
	if config.File != "" {
		g.run(func() {
			defer close(f.ended)
			filefeed.Run(life, config.File, g.list, f.source, g.fleet.into(f.source), g.log)
		})
		return f
	}
	if err := f.open(g.list, b, g.fleet, g.metrics, g.log); err != nil {
		f.source.Failed(err) // it was checked a moment ago; what changed since shows where the state does
		close(f.ended)
		return f
	}
	g.run(func() {
		defer close(f.ended)
		f.run(life)
	})
	return f
}

// leave ends a feed and forgets its chains, unless another feed of that name goes
// on. Nobody can follow on from them: what they brought is still held here, and
// would be no news to anybody.
func (g *gateway) leave(f *feed, goesOn bool) {
	f.stop()
	<-f.ended
	if f.http != nil && g.fleet.records != nil {
		if !goesOn {
			g.fleet.records.Leave(f.config.Name)
		}
		g.fleet.writer.Renew(time.Now())
	}
}

// into enforces what a file says, and hands it on.
func (f *fleet) into(source *denylist.Source) filefeed.Apply {
	return func(rs []denylist.Revocation, now time.Time) error {
		return f.learn(func() ([]denylist.Revocation, error) { return source.Apply(rs, now) })
	}
}

// open makes the parts of a feed that is no file. What comes by HTTP is handed on
// as it came; what comes from the log of an engine, whose chains come and go with
// the gateways that write to it, in this gateway's own name.
func (f *feed) open(list *denylist.List, b *built, fleet *fleet, measured *metrics.Metrics, log *slog.Logger) (err error) {
	follow := denylist.FollowerConfig{
		List: list, Source: f.source, Keys: b.sourceKeys, Mass: f.config.Mass == nil || *f.config.Mass, Lines: log,
	}
	if measured != nil {
		follow.Delay = measured.Applied
		follow.Canary = func(took time.Duration) { measured.Canary(f.config.Name, took) }
	}
	if f.config.HTTP != nil {
		follow.Log = fleet.records
		f.follower = denylist.NewFollower(follow)
		f.follower.Resume(fleet.restored[f.config.Name])
		f.http, err = httpfeed.New(*f.config.HTTP, f.follower, list, f.source, b.config.StateDir, log)
		return err
	}
	var engine denylist.Engine
	if f.config.NATS != nil {
		engine, err = natsfeed.Open(*f.config.NATS)
	} else {
		engine, err = redisfeed.Open(*f.config.Redis)
	}
	if err != nil {
		return err
	}
	follow.Ordered, follow.Learn = true, fleet.learn
	f.follower = denylist.NewFollower(follow)
	f.follower.Resume(fleet.restored[f.config.Name])
	f.stream = denylist.NewStream(denylist.StreamConfig{
		Engine: engine, Follower: f.follower, List: list, Source: f.source, Writes: f.config.ForwardRevocations && fleet.list != nil, Key: b.signing,
		From: fleet.cursors[f.config.Name], Dir: b.config.StateDir, Logger: log,
		Name: b.config.Instance, Lease: b.config.Denylist.Lease,
	})
	return nil
}

// listenHub opens the address where others follow this gateway.
func (g *gateway) listenHub(b *built, l *listening) error {
	c := b.config.Denylist.ServeFeed
	if c == nil {
		return nil
	}
	listener := g.manager.listener(c.Listen)
	if listener == nil {
		var err error
		if listener, err = net.Listen("tcp", c.Listen); err != nil {
			return fmt.Errorf("denylist.serve_feed: listen on %s: %w", c.Listen, err)
		}
	}
	l.hubL = listener
	l.at.Feed = listener.Addr().String()
	hub := &httpfeed.Hub{
		List: g.list, Log: g.fleet.records, Key: g.fleet.signing, Token: b.hubToken, Whole: g.whole, Accept: g.acceptForwarded,
	}
	l.hub = &http.Server{
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	if c.TLS != nil {
		l.hubCertificate = &certificate{files: c.TLS.TLSConfig}
		if err := l.hubCertificate.load(); err != nil {
			return fmt.Errorf("denylist.serve_feed.tls: %w", err)
		}
		l.hub.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: l.hubCertificate.get}
		if c.TLS.ClientCAFile != "" {
			hub.Certificates = true
			l.hub.TLSConfig.ClientAuth, l.hub.TLSConfig.ClientCAs = tls.RequireAndVerifyClientCert, b.hubClients
		}
	}
	l.hub.Handler = hub.Handler()
	if host, _, _ := net.SplitHostPort(c.Listen); hub.Token == "" && !hub.Certificates && httpfeed.IsLoopback(host) {
		l.hub.Handler = sameSite(c.Listen, l.hub.Handler) // it asks nobody who they are, so a browser here would do
	}
	return nil
}

// acceptForwarded is POST /revocations for a follower.
func (g *gateway) acceptForwarded(ctx context.Context, body []byte, via []string) (int, any) {
	if g.journal == nil {
		return http.StatusServiceUnavailable, map[string]string{"error": errNoState.Error()}
	}
	return g.accept(ctx, body, time.Now(), true, via)
}
