package proxy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"
	"time"

	"durward/policy"
	"durward/token"
)

// An UpstreamConfig is one entry of upstreams:, an application behind the gateway.
type UpstreamConfig struct {
	// URL is http://host:port, https://host:port, h2c://host:port (HTTP/2 without
	// TLS, for gRPC) or unix:/path/to/socket. It has no path, query or fragment:
	// paths are forwarded as they were judged. Required.
	URL string `yaml:"url"`
	// Host is what the upstream reads as Host: preserve (the judged host, the
	// default), upstream (the host of the URL), or a literal.
	Host string `yaml:"host"`
	// PathCase is sensitive (default) or insensitive: every host with a route to
	// an insensitive upstream matches its paths without regard to ASCII case.
	PathCase string `yaml:"path_case"`
	// Timeout bounds the stages of a request.
	Timeout UpstreamTimeouts `yaml:"timeout"`
	// TLS is for https upstreams with a private CA or client certificates.
	TLS UpstreamTLS `yaml:"tls"`
}

// UpstreamTimeouts bound the stages of a request to an upstream. None of them
// limits how long a body or stream may last.
type UpstreamTimeouts struct {
	// Dial is for the connection and, on its own, the TLS handshake. Default 5s.
	Dial time.Duration `yaml:"dial"`
	// ResponseHeader is from the request's end to the response's header, and how long
	// the upstream may take no more of a body. Default 60s.
	ResponseHeader time.Duration `yaml:"response_header"`
	// Idle is how long an unused connection is kept. Default 90s.
	Idle time.Duration `yaml:"idle"`
}

// UpstreamTLS is how an https upstream is verified and convinced.
type UpstreamTLS struct {
	// CAFile holds the PEM certificates that may sign the upstream's. Default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the PEM client certificate, if the upstream asks for one.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// An Upstream is an application that requests are forwarded to.
type Upstream struct {
	Name      string
	config    UpstreamConfig
	files     [sha256.Size]byte // of the files' content, to see whether a reload changed them
	scheme    string
	address   string        // host:port of the URL
	host      string        // literal Host; "" preserves the judged one
	patience  time.Duration // for the upstream to take a request, and to answer it
	transport http.RoundTripper
	close     func() // of connections that carry no request; those in use go on to their end
}

// NewUpstream checks the configuration and prepares the transport; it connects
// to nothing. If prev has the same configuration and the same files, prev itself
// is returned, with its warm connections. The error joins all problems, each a
// *token.FieldError.
func NewUpstream(name string, cfg UpstreamConfig, prev *Upstream) (*Upstream, error) {
	u := &Upstream{Name: name, config: cfg}
	var errs []error
	problem := func(field, format string, args ...any) {
		errs = append(errs, &token.FieldError{Field: field, Err: fmt.Errorf(format, args...)})
	}
	socket := u.target(cfg.URL, problem)
	switch cfg.Host {
	case "", "preserve":
	case "upstream":
		u.host = u.address
	default:
		host, err := policy.ReadHost(cfg.Host)
		if err != nil {
			problem("host", "%q: %v; write preserve, upstream, or the host that the upstream expects", cfg.Host, err)
		}
		u.host = host.String()
	}
	if cfg.PathCase != "" && cfg.PathCase != "sensitive" && cfg.PathCase != "insensitive" {
		problem("path_case", "%q is not known; write sensitive or insensitive", cfg.PathCase)
	}
	orDefault := func(field string, d, fallback time.Duration) time.Duration {
		if d < 0 {
			problem("timeout."+field, "is negative")
		}
		if d == 0 {
			return fallback
		}
		return d
	}
	dial := orDefault("dial", cfg.Timeout.Dial, 5*time.Second)
	response := orDefault("response_header", cfg.Timeout.ResponseHeader, time.Minute)
	idle := orDefault("idle", cfg.Timeout.Idle, 90*time.Second)
	tlsConfig := u.tls(cfg.TLS, problem)
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if prev != nil && prev.Name == name && prev.files == u.files && reflect.DeepEqual(prev.config, cfg) {
		return prev, nil
	}
	u.patience = response
	dialer := &net.Dialer{Timeout: dial, KeepAlive: 15 * time.Second}
	connect := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if socket != "" {
			network, addr = "unix", socket
		}
		return dialer.DialContext(ctx, network, addr)
	}
	standard := &http.Transport{
		Proxy: nil, // HTTP_PROXY of the environment is for clients; it must not reroute a gateway
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := connect(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return patient{conn, response}, nil
		},
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    dial,
		ResponseHeaderTimeout:  response,
		IdleConnTimeout:        idle,
		ExpectContinueTimeout:  time.Second,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    maxIdle, // the default of 2 dials anew for most requests under load
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // the client negotiates with the upstream
		Protocols:              new(http.Protocols),
		// A dead connection would be used for every request, as HTTP/2 needs only one.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	u.transport, u.close = standard, standard.CloseIdleConnections
	switch u.scheme {
	case "h2c":
		standard.Protocols.SetUnencryptedHTTP2(true)
		u.scheme = "http"
	case "https":
		standard.Protocols.SetHTTP1(true)
		standard.Protocols.SetHTTP2(true)
	default:
		standard.Protocols.SetHTTP1(true)
		target := url.URL{Host: u.address}
		address := net.JoinHostPort(target.Hostname(), cmp.Or(target.Port(), "80"))
		d := newDirect(func(ctx context.Context) (net.Conn, error) { return connect(ctx, "tcp", address) }, standard, response, idle)
		u.transport, u.close = d, func() { d.close(); standard.CloseIdleConnections() }
	}
	return u, nil
}

// A patient connection gives each write as long as an upstream may take to answer.
// The transport would wait without end for one that reads nothing.
type patient struct {
	net.Conn
	timeout time.Duration
}

func (c patient) Write(b []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(c.timeout))
	return c.Conn.Write(b)
}

// CloseWrite tells the upstream that nothing more comes, for WebSockets.
func (c patient) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// target takes the URL apart; for unix:/path it returns the socket's path.
func (u *Upstream) target(raw string, problem func(string, string, ...any)) (socket string) {
	if path, ok := strings.CutPrefix(raw, "unix:"); ok {
		path = strings.TrimPrefix(path, "//")
		if !strings.HasPrefix(path, "/") {
			problem("url", "%q: a unix upstream is unix: and an absolute path", raw)
		}
		u.scheme, u.address = "http", "localhost"
		return path
	}
	target, err := url.Parse(raw)
	switch {
	case raw == "":
		problem("url", "is missing; write http://127.0.0.1:3000, or https, h2c or unix:/path")
	case err != nil:
		problem("url", "%q is not a URL: %v", raw, err)
	case target.Scheme != "http" && target.Scheme != "https" && target.Scheme != "h2c":
		problem("url", "%q: scheme %q is not known; write http, https, h2c or unix:/path", raw, target.Scheme)
	case target.Host == "" || target.Opaque != "":
		problem("url", "%q has no host", raw)
	case target.User != nil:
		problem("url", "carries a user name; credentials do not belong into a URL")
	case target.Path != "" && target.Path != "/" || target.RawQuery != "" || target.ForceQuery || target.Fragment != "":
		problem("url", "%q carries a path, query or fragment; requests are forwarded with the path they were judged by", raw)
	default:
		if _, err := policy.ReadHost(target.Host); err != nil {
			problem("url", "%q: %v", raw, err)
		}
		u.scheme, u.address = target.Scheme, target.Host
	}
	return ""
}

// tls reads the files, remembering a hash of their content.
func (u *Upstream) tls(cfg UpstreamTLS, problem func(string, string, ...any)) *tls.Config {
	if cfg != (UpstreamTLS{}) && u.scheme != "https" && u.scheme != "" {
		problem("tls", "is for https upstreams; this one is not")
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	var content bytes.Buffer
	read := func(field, file string) []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			problem("tls."+field, "%v", err)
		}
		fmt.Fprintf(&content, "%s %d\n%s", field, len(b), b)
		return b
	}
	if cfg.CAFile != "" {
		pem := read("ca_file", cfg.CAFile)
		conf.RootCAs = x509.NewCertPool()
		if pem != nil && !conf.RootCAs.AppendCertsFromPEM(pem) {
			problem("tls.ca_file", "%s holds no PEM certificate", cfg.CAFile)
		}
	}
	switch {
	case (cfg.CertFile == "") != (cfg.KeyFile == ""):
		problem("tls.cert_file", "and key_file belong together; give both or neither")
	case cfg.CertFile != "":
		cert, key := read("cert_file", cfg.CertFile), read("key_file", cfg.KeyFile)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil && cert != nil && key != nil {
			problem("tls.cert_file", "%v", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	u.files = sha256.Sum256(content.Bytes())
	return conf
}

// FoldCase tells whether the upstream takes no notice of the case of paths.
func (u *Upstream) FoldCase() bool { return u.config.PathCase == "insensitive" }

// PlainOffLoopback tells whether identity headers travel to the upstream
// unencrypted and beyond this machine.
func (u *Upstream) PlainOffLoopback() bool {
	host, _, err := net.SplitHostPort(u.address)
	if err != nil {
		host = u.address
	}
	ip := net.ParseIP(host)
	return u.scheme == "http" && host != "localhost" && (ip == nil || !ip.IsLoopback())
}

// Close closes connections that carry no request; those in use go on to their end.
func (u *Upstream) Close() { u.close() }
