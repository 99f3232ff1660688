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
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
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
	token    atomic.Pointer[string] // the last that was read
	dir      string                 // for snapshots while they are loaded

	loading sync.Mutex // held while a snapshot is fetched: one is enough for all addresses that hand on the same
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
		token := strings.TrimSpace(string(text))
		f.token.Store(&token)
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

// Forward hands revocations to the first hub that takes them, which hands them on
// to the fleet. They are lines of Revocation.Line; via are the sources through
// which they came. An error says why no hub took them for the fleet: they are to be
// forwarded again, and taking some twice does no harm. What the hub refuses would
// be refused again, and is no error.
func (f *Feed) Forward(ctx context.Context, lines [][]byte, via []string) ([]denylist.Refusal, error) {
	body := bytes.Join(lines, []byte("\n"))
	var wrong []error
	for _, address := range f.cfg.URLs {
		refused, err := f.forward(ctx, strings.TrimSuffix(address, "/"), body, lines, via)
		if err == nil {
			return refused, nil
		}
		wrong = append(wrong, fmt.Errorf("%s: %w", address, err))
	}
	return nil, errors.Join(wrong...)
}

func (f *Feed) forward(ctx context.Context, base string, body []byte, lines [][]byte, via []string) ([]denylist.Refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardIn)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+revocationsPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if len(via) > 0 {
		req.Header.Set(viaField, strings.Join(via, ","))
	}
	if token := f.bearer(); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxHead))
	if err != nil {
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusMultiStatus, http.StatusBadRequest:
	default:
		return nil, fmt.Errorf("the hub answered %s: %.300s", res.Status, bytes.TrimSpace(text))
	}
	var said struct {
		Scope string `json:"scope"`
		Lines []struct {
			Line    int    `json:"line"`
			Status  string `json:"status"`
			Problem string `json:"problem"`
		} `json:"lines"`
	}
	if err := json.Unmarshal(text, &said); err != nil || len(said.Lines) != len(lines) {
		return nil, fmt.Errorf("the hub answered %s, %.300s, which does not say what became of all %d lines", res.Status, bytes.TrimSpace(text), len(lines))
	}
	var refused []denylist.Refusal
	for _, l := range said.Lines {
		if l.Line < 1 || l.Line > len(lines) {
			return nil, fmt.Errorf("the hub speaks of line %d, and %d were sent", l.Line, len(lines))
		}
		if l.Status != "applied" {
			refused = append(refused, denylist.Refusal{Line: lines[l.Line-1], Problem: l.Problem})
		}
	}
	if len(refused) < len(lines) && said.Scope != "fleet" {
		return nil, errors.New("the hub applied them but could not hand them on")
	}
	return refused, nil
}

// bearer is the token as its file has it now: it may be replaced while the gateway
// runs. If it cannot be read, the last one stays.
func (f *Feed) bearer() string {
	if f.cfg.TokenFile == "" {
		return ""
	}
	if text, err := os.ReadFile(f.cfg.TokenFile); err == nil {
		if token := string(bytes.TrimSpace(text)); token != "" {
			f.token.Store(&token)
			return token
		}
	}
	return *f.token.Load()
}

// Doubts is that of the follower.
func (f *Feed) Doubts() uint64 { return f.follower.Doubts() }
