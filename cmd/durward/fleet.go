package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
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
	"durward/token"
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

// A forwarder is a feed that takes what is revoked here for the whole fleet.
type forwarder interface {
	Forward(ctx context.Context, lines [][]byte, via []string) ([]denylist.Refusal, error)
	Doubts() uint64
}

// forwarder is nil if nothing is to be forwarded there.
func (f *feed) forwarder() forwarder {
	switch {
	case !f.config.ForwardRevocations:
	case f.http != nil:
		return f.http
	case f.stream != nil:
		return f.stream
	}
	return nil
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

// A forwarding hands what was revoked here to a hub, sooner or later.
type forwarding struct {
	log *slog.Logger

	mu      sync.Mutex
	feed    forwarder           // nil: nothing is forwarded
	pending [][]byte            // lines that no hub has taken yet, oldest first
	queued  map[string]struct{} // the same lines
	refused int                 // lines that the hub did not take and never will
	problem string              // of the last of them
}

const (
	// maxPending bounds what waits for a hub; what is more is in the journal, and is
	// forwarded at the next start.
	maxPending = 1_000_000
	// One request takes as many lines, and about as many bytes.
	forwardLines, forwardBytes = 1000, 4 << 20
)

// stream is where revocations are forwarded to, if that is the log of an engine.
func (f *forwarding) stream() *denylist.Stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, _ := f.feed.(*denylist.Stream)
	return s
}

func (f *forwarding) use(feed forwarder) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.feed = feed
}

// now forwards revocations, or leaves them for later. It is false if no hub is
// configured. An error says why they do not hold for the fleet.
func (f *forwarding) now(ctx context.Context, rs []denylist.Revocation, via []string) (configured bool, err error) {
	f.mu.Lock()
	feed := f.feed
	f.mu.Unlock()
	if feed == nil {
		return false, nil
	}
	for all := lines(rs); len(all) > 0; {
		part := first(all)
		all = all[len(part):]
		refused, failed := feed.Forward(ctx, part, via)
		if failed != nil {
			f.later(part)
			err = errors.Join(err, fmt.Errorf("forwarded once a hub takes it: %w", failed))
		}
		if len(refused) > 0 {
			f.refuse(refused)
			err = errors.Join(err, fmt.Errorf("the hub refused %d: %s", len(refused), refused[0].Problem))
		}
	}
	return true, err
}

// first is as much of the lines as one request takes; at least one.
func first(all [][]byte) [][]byte {
	size := 0
	for i, line := range all {
		if size += len(line); i == forwardLines || i > 0 && size > forwardBytes {
			return all[:i]
		}
	}
	return all
}

func lines(rs []denylist.Revocation) [][]byte {
	all := make([][]byte, len(rs))
	for i, r := range rs {
		all[i] = r.Line()
	}
	return all
}

// later leaves lines to run, each once.
func (f *forwarding) later(lines [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, line := range lines {
		if _, waits := f.queued[string(line)]; waits {
			continue
		}
		if len(f.pending) >= maxPending {
			f.log.Error("more revocations wait for a hub than are kept; the rest is in the journal, and is forwarded at the next start", "left_out", len(lines)-i)
			return
		}
		f.pending, f.queued[string(line)] = append(f.pending, line), struct{}{}
	}
}

// refuse sets aside what the hub will not take: it must not hold up the rest.
func (f *forwarding) refuse(refused []denylist.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused += len(refused)
	f.problem = refused[len(refused)-1].Problem
	f.log.Error("a hub refuses what was revoked here; it holds here alone", "lines", len(refused), "problem", refused[0].Problem)
}

// warning is what an operator should know; "" for nothing.
func (f *forwarding) warning() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refused == 0 {
		return ""
	}
	return fmt.Sprintf("the hub refused %d revocations that were made here, which hold here alone; the last: %s", f.refused, f.problem)
}

// run forwards what was left for later, until the context ends. A hub that lost
// its state, or went back, may have lost what it was told: then all that the
// journal holds is told again.
func (f *forwarding) run(ctx context.Context, journal func() [][]byte) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var told forwarder
	var doubts uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		f.mu.Lock()
		feed := f.feed
		f.mu.Unlock()
		if feed == nil {
			continue
		}
		if n := feed.Doubts(); feed != told || n != doubts {
			told, doubts = feed, n
			f.later(journal())
		}
		f.mu.Lock()
		part := slices.Clone(first(f.pending))
		f.mu.Unlock()
		if len(part) == 0 {
			continue
		}
		refused, err := feed.Forward(ctx, part, nil)
		if err != nil {
			f.log.Debug("revocations are not forwarded yet", "pending", len(part), "error", err)
			continue
		}
		if len(refused) > 0 {
			f.refuse(refused)
		}
		f.mu.Lock()
		f.pending = slices.Clone(f.pending[len(part):])
		for _, line := range part {
			delete(f.queued, string(line))
		}
		left := len(f.pending)
		f.mu.Unlock()
		f.log.Info("revocations that no hub had taken were forwarded", "forwarded", len(part)-len(refused), "left", left)
		t.Reset(10 * time.Millisecond)
		if left == 0 {
			t.Reset(time.Second)
		}
	}
}

// journaled are the lines of the journal.
func (f *fleet) journaled() [][]byte {
	if f.journal == "" {
		return nil
	}
	held, err := denylist.ReadJournal(f.journal, slog.New(slog.DiscardHandler)) // what is wrong with it was said at the start
	if err != nil {
		f.log.Error("the journal cannot be read to be forwarded", "error", err)
	}
	return lines(held)
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
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
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
	return nil
}

// acceptForwarded is POST /revocations for a follower.
func (g *gateway) acceptForwarded(ctx context.Context, body []byte, via []string) (int, any) {
	if g.journal == nil {
		return http.StatusServiceUnavailable, map[string]string{"error": errNoState.Error()}
	}
	return g.accept(ctx, body, time.Now(), true, via)
}

// fleetConfig checks what the configuration says about other gateways, and reads
// the keys.
func (b *builder) fleetConfig() {
	d := &b.Denylist
	if d.SigningKeyFile != "" {
		key, err := readPEM(d.SigningKeyFile, x509.ParsePKCS8PrivateKey)
		private, ok := key.(ed25519.PrivateKey)
		switch {
		case err != nil:
			b.problem("denylist.signing_key_file", "%v; make one with: openssl genpkey -algorithm ed25519 -out ed25519.pem", err)
		case !ok:
			b.problem("denylist.signing_key_file", "%s holds another kind of key than Ed25519", d.SigningKeyFile)
		}
		b.out.signing = private
	}
	if d.SourceKeys != nil && len(d.SourceKeys) == 0 {
		b.problem("denylist.source_keys", "is empty; leave the key out to follow unsigned records")
	}
	var keys []denylist.Key
	for name, source := range d.SourceKeys {
		file := source.File
		key, err := readPEM(file, x509.ParsePKIXPublicKey)
		public, ok := key.(ed25519.PublicKey)
		switch {
		case err != nil:
			b.problem("denylist.source_keys."+name, "%v; make one with: openssl pkey -in ed25519.pem -pubout -out ed25519.pub", err)
		case !ok:
			b.problem("denylist.source_keys."+name, "%s holds another kind of key than Ed25519", file)
		default:
			keys = append(keys, denylist.Key{Name: name, Public: public, Grant: b.grant("denylist.source_keys."+name, source)})
		}
	}
	b.out.sourceKeys = denylist.NewKeys(keys...)
	b.serveFeed()
}

// grant is what the holder of a source key may say.
func (b *builder) grant(place string, c SourceKeyConfig) denylist.Grant {
	g := denylist.Grant{NoMass: c.Mass != nil && !*c.Mass, PerMinute: c.PerMinute}
	if c.PerMinute < 0 {
		b.problem(place+".per_minute", "is negative; leave it out for no limit")
	}
	if c.Issuers != nil && len(c.Issuers) == 0 || c.Kinds != nil && len(c.Kinds) == 0 {
		b.problem(place, "has an empty list, with which it could say nothing; leave the key out for all")
	}
	for _, name := range c.Issuers {
		i := slices.IndexFunc(b.Issuers, func(i token.IssuerConfig) bool { return i.Name == name })
		if i < 0 {
			b.problem(place+".issuers", "%q is not the name of a configured issuer", name)
			continue
		}
		g.Issuers = append(g.Issuers, b.Issuers[i].Issuer)
	}
	for _, name := range c.Kinds {
		kind := token.Kind(0)
		for k := token.Kind(1); int(k) <= token.Kinds; k++ {
			if k.String() == name {
				kind = k
			}
		}
		if kind == 0 {
			b.problem(place+".kinds", "%q is not known; write jti, sid, sub, client or iss", name)
			continue
		}
		g.Kinds = append(g.Kinds, kind)
	}
	return g
}

// readPEM reads the key in a PEM file.
func readPEM(file string, parse func([]byte) (any, error)) (any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key", file)
	}
	key, err := parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

func (b *builder) serveFeed() {
	c := b.Denylist.ServeFeed
	if c == nil {
		return
	}
	const place = "denylist.serve_feed"
	checkAddress(c.Listen, false, func(format string, args ...any) { b.problem(place+".listen", format, args...) })
	host, _, _ := net.SplitHostPort(c.Listen)
	open := !httpfeed.IsLoopback(host)
	if c.TokenFile != "" {
		text, err := os.ReadFile(c.TokenFile)
		switch b.out.hubToken = strings.TrimSpace(string(text)); {
		case err != nil:
			b.problem(place+".token_file", "%v", err)
		case b.out.hubToken == "":
			b.problem(place+".token_file", "%s is empty; put a long random token there", c.TokenFile)
		case len(b.out.hubToken) < 16:
			b.warn(place+".token_file", "%s holds fewer than 16 characters, which can be guessed; put a long random token there", c.TokenFile)
		}
	}
	certificates := c.TLS != nil && c.TLS.ClientCAFile != ""
	switch {
	case c.TokenFile != "" || certificates:
	case open:
		b.problem(place, "anybody could read who was revoked; give it a token_file, or tls with a client_ca_file")
	default:
		b.warn(place, "without token_file anybody on this machine can read who was revoked, and no gateway can forward revocations")
	}
	if open && c.TLS == nil && b.Denylist.SigningKeyFile == "" {
		b.problem(place, "is plain http off loopback, where anybody between could hold revocations back; give it tls, or sign the records (signing_key_file)")
	}
	if c.TLS != nil {
		if _, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile); err != nil {
			b.problem(place+".tls", "%v; cert_file and key_file must be a PEM certificate chain and its private key", err)
		}
	}
	if certificates {
		text, err := os.ReadFile(c.TLS.ClientCAFile)
		b.out.hubClients = x509.NewCertPool()
		if err != nil {
			b.problem(place+".tls.client_ca_file", "%v", err)
		} else if !b.out.hubClients.AppendCertsFromPEM(text) {
			b.problem(place+".tls.client_ca_file", "%s holds no PEM certificate", c.TLS.ClientCAFile)
		}
	}
	follows := slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.HTTP != nil })
	if follows && !slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.ForwardRevocations }) {
		b.warn(place, "hands on what other hubs say, but what is revoked here does not come to them and to those who follow them; let a feed forward_revocations")
	}
	file := slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.File != "" })
	if file && slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.HTTP != nil }) {
		b.warn(place, "hands on what a file here says to those alone who follow this gateway; whoever follows the hub beside it may be in step without it: give the file to the hub")
	}
	if len(b.Denylist.SourceKeys) > 0 && b.Denylist.SigningKeyFile == "" {
		b.problem(place, "hands on snapshots, which must be signed where source_keys are configured; give this gateway a signing_key_file whose public key its followers know")
	}
}

// feedConfig checks one feed.
func (b *builder) feedConfig(place string, feed FeedConfig) {
	signed := len(b.Denylist.SourceKeys) > 0
	var kinds []string
	for _, k := range []struct {
		name string
		has  bool
	}{{"file", feed.File != ""}, {"http", feed.HTTP != nil}, {"nats", feed.NATS != nil}, {"redis", feed.Redis != nil}} {
		if k.has {
			kinds = append(kinds, k.name)
		}
	}
	switch {
	case len(kinds) == 0:
		b.problem(place, "has no source; give it a file, http, nats or redis")
		return
	case len(kinds) > 1:
		b.problem(place, "has %s; give it one, and the other a feed of its own", strings.Join(kinds, " and "))
		return
	case feed.File != "":
		if feed.ForwardRevocations || feed.Mass != nil {
			b.problem(place, "is a file; forward_revocations and mass are for feeds that come from elsewhere")
		}
		return
	case feed.HTTP != nil:
		b.add(place+".http", feed.HTTP.Check(signed))
		for _, address := range feed.HTTP.URLs {
			if u, err := url.Parse(address); err == nil && u.Scheme == "http" && feed.HTTP.TokenFile != "" && !httpfeed.IsLoopback(u.Hostname()) {
				b.warn(place+".http", "the token travels in the open to %s: whoever listens can revoke in this gateway's name; use https", u.Host)
			}
		}
	case feed.NATS != nil:
		b.add(place+".nats", feed.NATS.Check(signed))
	case feed.Redis != nil:
		b.add(place+".redis", feed.Redis.Check(signed))
	}
	if b.Denylist.Lease < 2*time.Second {
		b.problem("denylist.lease", "%s is too short for feed %q, whose heartbeats come each second; write 2s or more", b.Denylist.Lease, feed.Name)
	}
	if !feed.ForwardRevocations {
		return
	}
	if i := slices.IndexFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.ForwardRevocations }); b.Denylist.Feeds[i].Name != feed.Name {
		b.problem(place+".forward_revocations", "feed %q has it already; what is revoked here goes one way", b.Denylist.Feeds[i].Name)
	}
	if _, known := b.out.sourceKeys[denylist.Signer(b.out.signing)]; signed && !known && feed.HTTP == nil {
		b.problem(place+".forward_revocations", "others would refuse what this gateway writes: it needs a signing_key_file whose public key is one of source_keys")
	}
}
