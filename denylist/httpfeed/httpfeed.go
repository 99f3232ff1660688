// Package httpfeed carries the records of a revocation feed over HTTP: a [Hub]
// serves what a gateway holds, a [Feed] follows hubs, or directories of files on a
// plain web server.
//
//	GET  /revlog/v1/head         where the chains end
//	GET  /revlog/v1/log          records after some places, and heartbeats; waits if asked to
//	GET  /revlog/v1/stream       the same as server-sent events
//	GET  /revlog/v1/snapshot     everything that is held
//	POST /revlog/v1/revocations  what a follower accepted, for the whole fleet
//
// docs/revocation-feed.md has the formats.
package httpfeed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"durward/denylist"
)

// Config is an HTTP feed.
type Config struct {
	// URLs are the addresses of one or more hubs that hand on the same sources, such
	// as https://hub.example.com. All are followed at once, and one that is in step
	// is enough. Required.
	URLs []string `yaml:"urls"`
	// TokenFile holds the token that the hub asks for (serve_feed.token_file there).
	TokenFile string `yaml:"token_file"`
	// CAFile says who may sign the hub's certificate; default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the certificate shown to a hub that asks for one.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// Poll asks again and again instead of keeping a stream open, for networks that
	// hold streams back. Streams from which nothing comes are given up by themselves.
	Poll bool `yaml:"poll"`
}

const (
	maxEvent   = denylist.MaxRecord + 1<<20 // bytes of one event, or one answer of log
	maxHead    = 4 << 20
	maxSegment = 64 << 20

	shortPause = 100 * time.Millisecond // between attempts, growing
	longPause  = time.Second
	silence    = 3 * time.Second // heartbeats come each second
	stall      = 15 * time.Second
	pollFor    = 5 * time.Minute // after a stream from which nothing came
	forwardIn  = 3 * time.Second
)

// A Feed follows hubs. Only [New] makes one.
type Feed struct {
	cfg      Config
	follower *denylist.Follower
	source   *denylist.Source
	list     *denylist.List
	log      *slog.Logger
	client   *http.Client
	token    string
	dir      string // for snapshots while they are loaded

	loading sync.Mutex // held while a snapshot is fetched: one is enough for all addresses
}

// New makes a feed of a valid configuration; see [Config.Check]. dir is where
// snapshots are put while they are loaded; "" for the system's temporary folder.
func New(cfg Config, follower *denylist.Follower, list *denylist.List, source *denylist.Source, dir string, log *slog.Logger) (*Feed, error) {
	f := &Feed{cfg: cfg, follower: follower, list: list, source: source, dir: dir, log: log}
	if cfg.TokenFile != "" {
		text, err := os.ReadFile(cfg.TokenFile)
		if err != nil {
			return nil, err
		}
		f.token = strings.TrimSpace(string(text))
	}
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	f.client = &http.Client{
		Transport: &http.Transport{
			Proxy: nil, DialContext: (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 5 * time.Second}).DialContext,
			TLSClientConfig: tlsConfig, TLSHandshakeTimeout: 2 * time.Second, ResponseHeaderTimeout: maxWait + 5*time.Second,
			IdleConnTimeout: time.Minute, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		// The token is for the configured address alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return f, nil
}

// Check says what is wrong with the configuration. signed is whether records must
// be signed: only then may they travel in the open.
func (cfg Config) Check(signed bool) error {
	var wrong []error
	if len(cfg.URLs) == 0 {
		wrong = append(wrong, errors.New("urls is missing; write the hubs' addresses, such as https://hub.example.com"))
	}
	for _, address := range cfg.URLs {
		u, err := url.Parse(address)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
			wrong = append(wrong, fmt.Errorf("urls: %q is not the address of a hub, such as https://hub.example.com", address))
		case u.Scheme == "http" && !signed && !IsLoopback(u.Hostname()):
			wrong = append(wrong, fmt.Errorf("urls: %q is plain http off loopback, where anybody between could hold revocations back; use https, or signed records (source_keys)", address))
		}
	}
	if cfg.TokenFile != "" {
		if text, err := os.ReadFile(cfg.TokenFile); err != nil {
			wrong = append(wrong, fmt.Errorf("token_file: %w", err))
		} else if len(bytes.TrimSpace(text)) == 0 {
			wrong = append(wrong, fmt.Errorf("token_file: %s is empty", cfg.TokenFile))
		}
	}
	if _, err := cfg.tls(); err != nil {
		wrong = append(wrong, err)
	}
	return errors.Join(wrong...)
}

// IsLoopback is whether a host is this machine itself.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (cfg Config) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		text, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("ca_file: %s holds no PEM certificate", cfg.CAFile)
		}
	}
	if cfg.CertFile != "" || cfg.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file and key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// Run follows all addresses until the context ends, and returns nil. It logs when
// one is lost and when it is back.
func (f *Feed) Run(ctx context.Context) error {
	f.source.Begin()
	var all sync.WaitGroup
	for _, address := range f.cfg.URLs {
		e := &endpoint{Feed: f, base: strings.TrimSuffix(address, "/")}
		all.Go(func() { e.run(ctx) })
	}
	all.Wait()
	f.client.CloseIdleConnections()
	return nil
}

// Sync asks until the feed is in step or the context ends: for a single question
// about what is revoked now.
func (f *Feed) Sync(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	all.Go(func() { f.Run(ctx) })
	for {
		if f.source.State(time.Now()) == denylist.Live {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New(f.source.Status(time.Now()).Error)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// An endpoint is one address of a feed.
type endpoint struct {
	*Feed
	base      string
	static    bool      // a directory of files
	known     bool      // static was found out
	etag      string    // of the head of a directory of files
	has       []string  // the sources that are handed on there; nil: not known yet
	pollUntil time.Time // streams do not get through
	lost      bool      // and that was logged
}

func (e *endpoint) run(ctx context.Context) {
	pause := shortPause
	for ctx.Err() == nil {
		began, looking := time.Now(), !e.known
		err := e.session(ctx)
		if ctx.Err() != nil {
			return
		}
		// That a hub is there, which is looked at after each failure, is not yet success.
		if err == nil && !(looking && !e.static) || time.Since(began) > silence {
			pause = shortPause
		}
		if err == nil {
			wait(ctx, 2*time.Millisecond) // whatever answers at once must not take all of a processor
			continue
		}
		e.known = false // another kind of server may have taken its place
		e.source.Failed(fmt.Errorf("%s: %w", e.base, err))
		if !e.lost && !errors.Is(err, denylist.ErrGap) && !errors.Is(err, denylist.ErrLost) {
			e.lost = true
			e.log.Error("a hub of the revocation feed is not followed; what it said so far stays in force", "feed", e.source.Name(), "hub", e.base, "error", err)
		}
		if errors.Is(err, denylist.ErrFull) {
			pause = 10 * time.Second // a snapshot is large, and room does not come by itself
		}
		wait(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, longPause)
	}
}

// back is called for each sign that the address is followed.
func (e *endpoint) back() {
	if e.lost {
		e.lost = false
		e.log.Info("a hub of the revocation feed is followed again", "feed", e.source.Name(), "hub", e.base)
	}
}

// session follows the address until something goes wrong, or for one answer.
func (e *endpoint) session(ctx context.Context) error {
	if !e.known || e.static {
		return e.look(ctx)
	}
	if e.cfg.Poll || time.Now().Before(e.pollUntil) {
		return e.poll(ctx)
	}
	return e.stream(ctx)
}

func (e *endpoint) get(ctx context.Context, path string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	if e.token != "" {
		req.Header.Set("Authorization", "Bearer "+e.token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusNotModified, http.StatusGone:
		return res, nil
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	return nil, fmt.Errorf("%s: %q", res.Status, bytes.TrimSpace(text))
}

// after says where to go on at this address. Other addresses may hand on sources
// that this one never heard of.
func (e *endpoint) after() string {
	heads := slices.DeleteFunc(e.follower.After(), func(h denylist.Head) bool { return e.has != nil && !slices.Contains(e.has, h.Source) })
	return "?after=" + url.QueryEscape(denylist.FormatHeads(heads))
}

// hands notes which sources are handed on at this address.
func (e *endpoint) hands(next string) {
	heads, err := denylist.ParseHeads(next)
	if err != nil || len(heads) == 0 {
		return
	}
	e.has = nil
	for _, h := range heads {
		e.has = append(e.has, h.Source)
	}
}

// poll asks for what comes next, once.
func (e *endpoint) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, maxWait+silence)
	defer cancel()
	res, err := e.get(ctx, e.base+logPath+e.after()+"&wait=2")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusGone {
		return e.gone(ctx, res.Body)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxEvent))
	if err != nil {
		return err
	}
	var lines [][]byte
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, line)
		}
	}
	e.back()
	e.hands(res.Header.Get("Revlog-Next"))
	return e.follower.Take(lines, time.Now())
}

// stream follows server-sent events until they end.
func (e *endpoint) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()
	heard := false
	// silent is the error of a connection that ended, and whether streams get through
	// at all: what holds them back may hold back the beginning of the answer too.
	silent := func(err error) error {
		if err = first(context.Cause(ctx), err); err == errSilent && !heard {
			e.pollUntil = time.Now().Add(pollFor)
			e.log.Warn("nothing comes through a stream; the feed is polled for a while", "feed", e.source.Name(), "hub", e.base)
		}
		return err
	}
	res, err := e.get(ctx, e.base+streamPath+e.after(), "Accept", "text/event-stream")
	if err != nil {
		return silent(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusGone {
		quiet.Stop()
		return e.gone(ctx, res.Body)
	}
	r := bufio.NewReaderSize(res.Body, 64<<10)
	for {
		lines, next, err := readEvent(r)
		if err != nil {
			return silent(err)
		}
		if len(lines) == 0 {
			continue // retry: and comments are no sign of life
		}
		heard = true
		quiet.Reset(silence)
		e.back()
		e.hands(next)
		if err := e.follower.Take(lines, time.Now()); err != nil {
			return err
		}
	}
}

var errSilent = errors.New("nothing came, not even a heartbeat, for three seconds")

// first is why the context ended, if it did, or else the error.
func first(cause, err error) error {
	if cause != nil {
		return cause
	}
	return err
}

// readEvent reads the data lines of one server-sent event, and its id.
func readEvent(r *bufio.Reader) (lines [][]byte, id string, err error) {
	size := 0
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, "", err
		}
		if size += len(line); size > maxEvent {
			return nil, "", fmt.Errorf("an event is longer than %d bytes", maxEvent)
		}
		if len(line) == 0 {
			return lines, id, nil
		}
		if text, ok := bytes.CutPrefix(line, []byte("id:")); ok {
			id = string(bytes.TrimSpace(text))
		}
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			lines = append(lines, bytes.TrimPrefix(data, []byte(" ")))
		}
	}
}

// readLine reads a line of at most maxEvent bytes, without its end, into memory of
// its own.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxEvent {
			return nil, fmt.Errorf("a line is longer than %d bytes", maxEvent)
		}
		line = append(line, part...)
		if err == nil {
			return bytes.TrimRight(line, "\r\n"), nil
		}
		if err != bufio.ErrBufferFull {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// look reads the head, which tells a hub from a directory of files, and follows the
// latter for one step.
func (e *endpoint) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	header := []string{}
	if e.etag != "" {
		header = append(header, "If-None-Match", e.etag)
	}
	res, err := e.get(ctx, e.base+headPath, header...)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotModified { // no heartbeat either
		wait(ctx, time.Second)
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxHead))
	if err != nil {
		return err
	}
	var at head
	if err := json.Unmarshal(text, &at); err != nil {
		return fmt.Errorf("read %s: %w", headPath, err)
	}
	e.known, e.static = true, !at.Hub
	if !e.static {
		return nil
	}
	e.back()
	if err := e.walk(ctx, &at); err != nil {
		e.etag = ""
		return err
	}
	e.etag = res.Header.Get("ETag")
	wait(ctx, time.Second)
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// walk reads what is new in a directory of files.
func (e *endpoint) walk(ctx context.Context, at *head) error {
	base, err := url.Parse(e.base + headPath)
	if err != nil {
		return err
	}
	// A directory's files are its own: an address elsewhere would make us ask anybody.
	file := func(name string) (string, error) {
		u, err := base.Parse(name)
		if err != nil || u.Host != base.Host || u.Scheme != base.Scheme {
			return "", fmt.Errorf("%s names the file %q, which is not beside it", headPath, name)
		}
		return u.String(), nil
	}
	slices.SortStableFunc(at.Segments, func(a, b segment) int { // each chain in its order
		if a.Epoch != b.Epoch {
			return int(min(1, max(-1, a.Epoch-b.Epoch)))
		}
		if a.First < b.First {
			return -1
		}
		return 1
	})
	lost := e.behind(at)
	if !lost {
		for _, s := range at.Segments {
			if e.holds(s.Source, s.Epoch, s.Last) {
				continue
			}
			u, err := file(s.URL)
			if err != nil {
				return err
			}
			switch err := e.segment(ctx, u); {
			case errors.Is(err, denylist.ErrLost) || errors.Is(err, denylist.ErrGap):
				lost = true
			case err != nil:
				return err
			}
		}
	}
	if lost {
		if at.Snapshot == "" {
			return fmt.Errorf("records are missing, and %s names no snapshot", headPath)
		}
		u, err := file(at.Snapshot)
		if err != nil {
			return err
		}
		return e.load(ctx, u)
	}
	return e.follower.Take(lines(at.Heartbeats), time.Now())
}

// behind is whether the segments of a directory begin after the end of what is held.
func (e *endpoint) behind(at *head) bool {
	have := e.follower.After()
	for _, p := range at.Places {
		i := slices.IndexFunc(have, func(h denylist.Head) bool { return h.Source == p.Source })
		if i >= 0 && have[i].Epoch == p.Epoch && have[i].Number >= p.Number {
			continue
		}
		next := uint64(1)
		if i >= 0 && have[i].Epoch == p.Epoch {
			next = have[i].Number + 1
		}
		if !slices.ContainsFunc(at.Segments, func(s segment) bool {
			return s.Source == p.Source && s.Epoch == p.Epoch && s.First <= next && next <= s.Last
		}) {
			return true
		}
	}
	return false
}

func (e *endpoint) holds(source string, epoch int64, number uint64) bool {
	return slices.ContainsFunc(e.follower.After(), func(h denylist.Head) bool {
		return h.Source == source && (h.Epoch > epoch || h.Epoch == epoch && h.Number >= number)
	})
}

func (e *endpoint) segment(ctx context.Context, address string) error {
	res, err := e.get(ctx, address)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, res.Status)
	}
	r := bufio.NewReaderSize(io.LimitReader(res.Body, maxSegment), 64<<10)
	for {
		line, err := readLine(r)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // of what is missing the chain will tell
		}
		if err != nil {
			return err
		}
		if len(line) > 0 {
			if err := e.follower.Take([][]byte{line}, time.Now()); err != nil {
				return err
			}
		}
	}
}

// gone takes a snapshot, as the hub does not keep what comes after the places that
// this feed is at. Its head says what the heartbeats are: of a source that went
// back, only they can tell, and until they have, a snapshot does not help.
func (e *endpoint) gone(ctx context.Context, body io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(body, maxHead))
	if err != nil {
		return err
	}
	var at head
	if err := json.Unmarshal(text, &at); err == nil {
		e.follower.Take(lines(at.Heartbeats), time.Now()) // what is missing is known
	}
	before := e.follower.After()
	if err := e.load(ctx, e.base+snapshotPath); err != nil {
		return err
	}
	if slices.Equal(before, e.follower.After()) {
		return fmt.Errorf("the hub has neither the records that come next nor a snapshot that reaches further: %w", denylist.ErrLost)
	}
	return nil
}

func lines(text []string) (all [][]byte) {
	for _, line := range text {
		all = append(all, []byte(line))
	}
	return all
}

// load fetches a snapshot into a file, checks it there, and loads it.
func (e *endpoint) load(ctx context.Context, address string) error {
	before := e.follower.Count(denylist.Resynced)
	e.loading.Lock()
	defer e.loading.Unlock()
	if e.follower.Count(denylist.Resynced) != before && e.has == nil {
		return nil // by another address, meanwhile, which may hand on the same sources
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stalled := time.AfterFunc(stall, cancel)
	defer stalled.Stop()
	res, err := e.get(ctx, address)
	if err != nil {
		return fmt.Errorf("fetch a snapshot: %w", err)
	}
	defer res.Body.Close()
	tmp, err := os.CreateTemp(e.dir, "feed-*.snapshot")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	// Twice what as many entries as fit would take, and some for the header.
	limit := int64(e.list.Stats().Max)*64 + 16<<20
	n, err := io.Copy(tmp, &progress{io.LimitReader(res.Body, limit+1), stalled})
	if err == nil && n > limit {
		err = fmt.Errorf("it is larger than %d bytes, more than denylist.max_entries could hold", limit)
	}
	if err != nil {
		return fmt.Errorf("fetch a snapshot: %w", err)
	}
	s, err := e.follower.Open(tmp.Name())
	if err != nil {
		return fmt.Errorf("fetch a snapshot: %w", err)
	}
	defer s.Close()
	if err := e.follower.Load(s); err != nil {
		return err
	}
	e.has = []string{}
	for _, p := range s.Places {
		e.has = append(e.has, p.Source)
	}
	e.back()
	e.log.Info("a snapshot of the revocation feed was loaded", "feed", e.source.Name(), "hub", e.base, "entries", s.Entries, "made", s.Made)
	return nil
}

// progress puts off a time limit for as long as something comes.
type progress struct {
	io.Reader
	stalled *time.Timer
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		p.stalled.Reset(stall)
	}
	return n, err
}

// Forward hands revocations to the first hub that takes them, which hands them on
// to the fleet. They are lines of Revocation.Line. An error says why no hub took
// all of them; taking some twice does no harm.
func (f *Feed) Forward(ctx context.Context, lines [][]byte) error {
	body := bytes.Join(lines, []byte("\n"))
	var wrong []error
	for _, address := range f.cfg.URLs {
		err := f.forward(ctx, strings.TrimSuffix(address, "/"), body, len(lines))
		if err == nil {
			return nil
		}
		wrong = append(wrong, fmt.Errorf("%s: %w", address, err))
	}
	return errors.Join(wrong...)
}

func (f *Feed) forward(ctx context.Context, base string, body []byte, count int) error {
	ctx, cancel := context.WithTimeout(ctx, forwardIn)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+revocationsPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if f.token != "" {
		req.Header.Set("Authorization", "Bearer "+f.token)
	}
	res, err := f.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the hub answered %s: %.300s", res.Status, bytes.TrimSpace(text))
	}
	var said struct {
		Applied int    `json:"applied"`
		Scope   string `json:"scope"`
	}
	if err := json.Unmarshal(text, &said); err != nil || said.Applied != count {
		return fmt.Errorf("the hub answered %.300s, which does not say that all %d were applied", bytes.TrimSpace(text), count)
	}
	if said.Scope != "fleet" {
		return errors.New("the hub applied them but could not hand them on")
	}
	return nil
}
