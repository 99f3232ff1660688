package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	stdlog "log"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"durward/decision"
	"durward/denylist"
	"durward/metrics"
	"durward/proxy"
	"durward/token"
	"durward/tracing"
)

// A gateway is the running process: what outlives every configuration, and the
// one that is in use.
type gateway struct {
	path       string // of the configuration file
	log        *slog.Logger
	level      *slog.LevelVar
	audit      *slog.Logger // for requests and revocations
	logs       *logWriter   // what both write to
	logsText   bool         // else requests are written as JSON without an slog handler
	lines      sync.Pool    // *[]byte, to make these lines in
	auditLevel *slog.LevelVar
	list       *denylist.List
	journal    *denylist.Journal // nil without a state directory
	handler    *proxy.Handler
	front      *proxy.Front // before the public listeners
	metrics    *metrics.Metrics
	sampler    sampler
	spans      *tracing.Spans // nil without tracing
	token      string         // that the operators' interface asks for; "" closes it

	fleet     *fleet
	following atomic.Pointer[map[string]*feed] // the feeds in use, by name
	current   atomic.Pointer[built]
	reloads   chan chan []problem
	draining  atomic.Bool
	ready     atomic.Bool // latched
	undurable atomic.Bool // the journal could not be written once

	// Owned by the reloading goroutine, and by start before it.
	tasks      sync.WaitGroup // keys, feeds and everything else that runs
	keys       map[*token.KeySet]context.CancelFunc
	feeds      map[string]*feed // by name
	history    map[string][]token.Limits
	generation uint64
	content    string // of the file, as last tried
	manager    *manager

	board         *board
	reloadProblem atomic.Pointer[string] // why the last reload was refused; nil: it was not
}

// Addresses are where a started gateway listens, ports filled in.
type addresses struct {
	Public []string
	Admin  string
	Health string
	Feed   string // as a hub
}

// serve runs the gateway until the context ends, then drains it. It returns
// before it listens if the configuration is wrong: then the error is problems.
// started, if not nil, is told the addresses once everything listens.
func serve(ctx context.Context, path string, stderr io.Writer, started func(addresses)) error {
	hangup := make(chan os.Signal, 1) // from the first moment: by default the signal ends a process
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	g := &gateway{
		path: path, level: new(slog.LevelVar), auditLevel: new(slog.LevelVar), reloads: make(chan chan []problem),
		keys: map[*token.KeySet]context.CancelFunc{}, feeds: map[string]*feed{},
		lines: sync.Pool{New: func() any { return new([]byte) }},
		list:  denylist.New(0), handler: &proxy.Handler{}, board: newBoard(),
	}
	g.following.Store(&map[string]*feed{})
	var err error
	if g.manager, err = newManager(); err != nil {
		return err
	}
	log := newLogWriter(stderr)
	defer log.close()
	b, err := g.first(path, log)
	if err != nil {
		return err
	}
	defer g.close()
	l, err := g.listen(b)
	if err != nil {
		return err
	}
	// What the gateway lives on is stopped after the last request; what would
	// only delay the end is stopped with the context.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		stop()
		g.tasks.Wait()
	}()
	if wrong := g.use(life, b); wrong != nil {
		l.close()
		return problems(wrong)
	}
	g.run(func() { g.list.Run(life) })
	g.run(func() { g.keep(life) })
	g.run(func() { g.fleet.hub.run(life, g.fleet.journaled) })
	if g.journal != nil {
		g.run(func() { keepLastRun(life, b.config.StateDir, g.log) })
	}
	if os.Getenv("GOGC") == "" {
		g.run(func() { tuneGC(life, g.list) })
	}
	g.run(func() { g.handler.Watch(life, g.list.Changed()) })
	g.run(func() { g.sampler.run(life, g.log) })
	g.run(func() { g.reloadLoop(life, hangup) })
	if b.config.TLS != nil {
		g.run(func() { l.certificate.run(life, g.log) })
	}
	if l.hubCertificate != nil {
		g.run(func() { l.hubCertificate.run(life, g.log) })
	}
	g.metrics.Reloaded(true, time.Now())
	g.log.Info("the gateway serves", "version", version, "listen", l.at.Public, "admin", l.at.Admin, "health", l.at.Health, "serve_feed", l.at.Feed, "config", path, "generation", g.generation)
	for _, w := range b.warnings {
		g.log.Warn("configuration", "warning", w.Error())
	}
	failed := l.serve()
	g.manager.tell(daemon.SdNotifyReady)
	if started != nil {
		started(l.at)
	}
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	return errors.Join(err, g.drain(l))
}

// first loads the configuration for the first time and opens the state.
func (g *gateway) first(path string, log *logWriter) (*built, error) {
	f, err := parseFile(path)
	if err != nil {
		return nil, err
	}
	// The state directory is needed before the configuration can be judged, as it
	// says which limits tokens were issued under. What is wrong with it is
	// reported together with everything else, by buildFile.
	stateDir := f.StateDir
	if stateDir == "" {
		stateDir = defaultStateDir(f.dir)
	}
	if g.history, err = readHistory(stateDir); err != nil {
		return nil, err
	}
	if text, err := os.ReadFile(path); err == nil {
		g.content = string(text)
	}
	b, wrong := buildFile(path, g.world())
	if wrong != nil {
		return nil, problems(wrong)
	}
	all := &slog.HandlerOptions{Level: slog.LevelDebug}
	handler, audit := slog.Handler(slog.NewJSONHandler(log, all)), slog.Handler(slog.NewJSONHandler(unawaited{log}, all))
	if b.config.Log.Format == "text" {
		handler, audit = slog.NewTextHandler(log, all), slog.NewTextHandler(unawaited{log}, all)
	}
	g.logs, g.logsText = log, b.config.Log.Format == "text"
	g.setLevels(b)
	g.log, g.audit = slog.New(leveled{handler, g.level}), slog.New(leveled{audit, g.auditLevel})
	stdlog.SetFlags(0)
	stdlog.SetOutput(stray{g.log})
	g.list.SetIssuers(b.limits)
	// What was promised is kept, whatever the limit says now; use sets it.
	g.list.SetMaxEntries(math.MaxInt)
	lastRun := time.Now()
	if stateDir != "" {
		if lastRun, err = readLastRun(stateDir, lastRun); err != nil {
			return nil, err
		}
		g.list.LastRun(lastRun)
	}
	var held []denylist.Revocation
	if stateDir != "" {
		if g.journal, held, err = denylist.OpenJournal(stateDir, g.log, lastRun); err != nil {
			return nil, err
		}
	}
	g.fleet = newFleet(b, g.list, g.log, time.Now())
	if err := g.fleet.learn(func() ([]denylist.Revocation, error) { return g.list.Add(held, time.Now()) }); err != nil {
		return nil, errors.Join(fmt.Errorf("replay the journal: %w", err), g.close())
	}
	if b.config.AdminTokenFile != "" {
		if g.token, err = adminToken(b.config.AdminTokenFile, true); err != nil {
			return nil, errors.Join(err, g.close())
		}
	}
	if c := b.config.Tracing; c != nil {
		if g.spans, err = tracing.New(context.Background(), *c, version, g.log); err != nil {
			return nil, errors.Join(fmt.Errorf("tracing: %w", err), g.close())
		}
	}
	g.handler.Log = g.log
	g.handler.Observe = g.observe
	g.handler.Revoke = g.revokeToken
	g.front = &proxy.Front{
		Limits:  func() proxy.Limits { return g.handler.Current().Limits },
		Proxies: func() proxy.TrustedProxies { return g.handler.Current().Proxies },
		Log:     g.log,
	}
	cuts := map[string]func() uint64{}
	for cause := proxy.Cause(1); int(cause) <= proxy.Causes; cause++ {
		cuts[cause.String()] = func() uint64 { return g.handler.Cuts(cause) }
	}
	g.metrics = metrics.New(version, metrics.Sources{
		Inflight: g.handler.Inflight, LogLost: log.Lost, Paced: g.front.Paced, Streams: g.handler.Streams, CookiesDropped: g.handler.CookiesDropped, Omitted: g.omitted,
		Cuts:    cuts,
		Cache:   func() (hits, misses uint64) { return g.current.Load().cache.Stats() },
		Issuers: func() []*token.Issuer { return g.current.Load().issuers },
		List:    g.list,
		Followers: func() map[string]*denylist.Follower {
			all := map[string]*denylist.Follower{}
			for name, f := range *g.following.Load() {
				if f.follower != nil {
					all[name] = f.follower
				}
			}
			return all
		},
	})
	return b, nil
}

func (g *gateway) world() world {
	return world{generation: g.generation + 1, prev: g.current.Load(), list: g.list, history: g.history, now: time.Now()}
}

// run starts a long-lived part of the process; serve does not return before it ended.
func (g *gateway) run(f func()) { g.tasks.Go(f) }

func (g *gateway) close() error {
	if g.journal == nil {
		return nil
	}
	return g.journal.Close()
}

// observe reads the record of a finished request.
func (g *gateway) observe(rec *decision.Record) {
	g.metrics.Observe(rec)
	g.board.note(rec)
	if g.logged(rec, &g.current.Load().config.Log) {
		g.logRequest(rec)
	}
	if g.spans != nil {
		g.spans.Observe(rec)
	}
}

func (g *gateway) omitted() (n uint64) {
	seen := map[*proxy.Identity]bool{}
	for _, rt := range g.current.Load().snapshot.Routes {
		if !seen[rt.Identity] {
			seen[rt.Identity] = true
			n += rt.Identity.Omitted()
		}
	}
	return n
}

// A listening is everything that the gateway listens on.
type listening struct {
	at          addresses
	public      *http.Server
	admin       *http.Server
	health      *http.Server // nil if not asked for
	certificate *certificate // nil without TLS
	listeners   []net.Listener
	adminL      net.Listener
	healthL     net.Listener

	hub            *http.Server // nil if this gateway is no hub
	hubL           net.Listener
	hubCertificate *certificate       // nil without TLS
	cut            context.CancelFunc // ends what hijacked its connection
}

// listen opens every address, or none.
func (g *gateway) listen(b *built) (l *listening, err error) {
	c := b.config
	l = &listening{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	open := func(address string) (net.Listener, error) {
		if handed := g.manager.listener(address); handed != nil {
			return handed, nil
		}
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			return listenUnix(strings.TrimPrefix(path, "//"))
		}
		return net.Listen("tcp", address)
	}
	for _, address := range c.Listen {
		listener, err := open(address)
		if err != nil {
			return l, fmt.Errorf("listen on %s: %w", address, err)
		}
		l.listeners = append(l.listeners, listener)
		l.at.Public = append(l.at.Public, listener.Addr().String())
	}
	if l.adminL, err = open(c.Admin); err != nil {
		return l, fmt.Errorf("admin: listen on %s: %w", c.Admin, err)
	}
	l.at.Admin = l.adminL.Addr().String()
	if c.Health != "" {
		if l.healthL, err = open(c.Health); err != nil {
			return l, fmt.Errorf("health: listen on %s: %w", c.Health, err)
		}
		l.at.Health = l.healthL.Addr().String()
		l.health = quietServer(g.healthHandler(), g.log)
		l.health.WriteTimeout = 10 * time.Second // the others stream, or profile
	}
	if err := g.listenHub(b, l); err != nil {
		return l, err
	}
	if err := g.manager.unused(); err != nil {
		return l, err
	}
	l.admin = quietServer(g.adminHandler(c.Admin), g.log)
	l.public = g.publicServer(b, l)
	var secure *tls.Config
	if c.TLS != nil {
		l.certificate = &certificate{files: *c.TLS}
		if err := l.certificate.load(); err != nil {
			return l, fmt.Errorf("tls: %w", err)
		}
		secure = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: l.certificate.get}
	}
	for i, listener := range l.listeners {
		if listener.Addr().Network() == "unix" {
			l.listeners[i] = g.front.Listen(listener, nil)
		} else {
			l.listeners[i] = g.front.Listen(listener, secure)
		}
	}
	return l, nil
}

// listenUnix takes over a socket that nobody listens on any more.
func listenUnix(path string) (net.Listener, error) {
	if info, err := os.Stat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			conn.Close()
			return nil, errors.New("another process listens on the socket")
		}
		os.Remove(path)
	}
	return net.Listen("unix", path)
}

func (l *listening) close() {
	for _, listener := range append(l.listeners, l.adminL, l.healthL, l.hubL) {
		if listener != nil {
			listener.Close()
		}
	}
}

// publicServer bounds what net/http would take without end; what it would take in
// two ways, the front refuses. There is no WriteTimeout: it would end streams; the handler gives each write its own time.
func (g *gateway) publicServer(b *built, l *listening) *http.Server {
	limits := b.snapshot.Limits
	base, cut := context.WithCancel(context.Background())
	l.cut = cut
	var conns sync.Map // net.Conn → *connection
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           counted(g.handler),
		ReadHeaderTimeout: limits.HeaderTimeout,
		IdleTimeout:       limits.IdleTimeout,
		// The front and the handler refuse what is over the limit and can say so;
		// this is for request lines, and for HTTP/2, which has no front.
		MaxHeaderBytes:               2 * limits.HeaderBytes,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is refused like any other target without a path
		Protocols:                    protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 128,
			MaxReadFrameSize:     16 << 10, // what every client may send; by default a frame of 1 MiB is held
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     limits.IdleTimeout,
		},
		ErrorLog:    slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			counts := &connection{}
			conns.Store(conn, counts)
			return proxy.ConnContext(context.WithValue(ctx, connKey{}, counts), conn)
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			g.front.ConnState(conn, state)
			counts, ok := conns.Load(conn)
			if !ok {
				return
			}
			switch state {
			case http.StateActive:
				counts.(*connection).begun.Add(1)
			case http.StateClosed, http.StateHijacked:
				conns.Delete(conn)
				if lost := counts.(*connection).begun.Load() - counts.(*connection).handled.Load(); lost > 0 {
					g.metrics.Unparsed(int(lost))
				}
			}
		},
	}
}

// A connection counts the requests that began on it and those that reached the
// handler as they were sent; the difference are those that net/http refused or lost,
// and those that the front refused, which have a record too.
type connection struct{ begun, handled atomic.Int64 }

func counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header[proxy.FrontField] == nil {
			r.Context().Value(connKey{}).(*connection).handled.Add(1)
		}
		h.ServeHTTP(w, r)
	})
}

// connKey is the context key of the connection's counts.
type connKey struct{}

// quietServer is for operators and probes: small requests, short answers.
func quietServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serve starts all servers. The channel delivers the first error of one that
// ended by itself.
func (l *listening) serve() <-chan error {
	failed := make(chan error, 1)
	start := func(serve func() error) {
		go func() {
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				select {
				case failed <- err:
				default:
				}
			}
		}()
	}
	for _, listener := range l.listeners {
		start(func() error { return l.public.Serve(listener) })
	}
	start(func() error { return l.admin.Serve(l.adminL) })
	if l.health != nil {
		start(func() error { return l.health.Serve(l.healthL) })
	}
	switch {
	case l.hubCertificate != nil:
		start(func() error { return l.hub.ServeTLS(l.hubL, "", "") })
	case l.hub != nil:
		start(func() error { return l.hub.Serve(l.hubL) })
	}
	return failed
}

// drain ends in order: not ready, grace, no new requests, those in progress until
// the deadline, then whatever is left is cut; the operators' interface last, so
// that the end can still be watched.
func (g *gateway) drain(l *listening) error {
	c := g.current.Load().config
	g.draining.Store(true)
	g.manager.tell(daemon.SdNotifyStopping)
	g.log.Info("the gateway drains", "grace", *c.Shutdown.Grace, "drain", c.Shutdown.Drain, "inflight", g.handler.Inflight())
	time.Sleep(*c.Shutdown.Grace)
	deadline, cancel := context.WithTimeout(context.Background(), c.Shutdown.Drain)
	defer cancel()
	err := l.public.Shutdown(deadline)
	// Shutdown waits for no connection that was hijacked, such as a WebSocket's.
	for deadline.Err() == nil && g.handler.Inflight() > 0 {
		select {
		case <-deadline.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	if left := g.handler.Inflight(); left > 0 {
		g.log.Warn("requests were cut at the end", "inflight", left)
		err = nil
	}
	g.handler.CutStreams()
	l.cut()
	l.public.Close()
	// What was cut ends at once, but each has a record to write.
	for end := time.Now().Add(5 * time.Second); g.handler.Inflight() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if l.hub != nil {
		l.hub.Close()
	}
	if l.health != nil {
		l.health.Close()
	}
	if g.spans != nil {
		flush, done := context.WithTimeout(context.Background(), 5*time.Second)
		if err := g.spans.Shutdown(flush); err != nil {
			g.log.Warn("the last spans are lost", "error", err)
		}
		done()
	}
	l.admin.Close()
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // they were cut, and that was logged
	}
	g.log.Info("the gateway has ended")
	return err
}
