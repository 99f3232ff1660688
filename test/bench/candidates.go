//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const bareName = "httputil.ReverseProxy, bare"

// candidates are all that could be measured. What a candidate needs is made when it is
// measured first.
func (r *rig) candidates() []*candidate {
	one := r.keys.requests("RS256", 0, 1)
	many := func() [][]byte { return r.keys.requests("RS256", 0, 5000) }
	signed := strings.Split(r.keys.token("RS256", 0), ".")
	forgeries := make([][]byte, 1000)
	for i := range forgeries {
		// Another token each time, so that nothing but the check of its signature can refuse it.
		body := strings.Split(r.keys.token("EdDSA", 20_000+i), ".")[1]
		forgeries[i] = get("/", signed[0]+"."+body+"."+signed[2])
	}
	main, full, routed := r.gateway("main", ""), r.gateway("full", ""), r.gateway("routed", manyRoutes(r.routes, r.upstream))
	full.command = r.filled(full.command)
	quiet := r.gateway("quiet", "log: {level: error}\n")
	fresh := r.gateway("fresh", "")
	fresh.anew = true
	both := r.gateway("both", "")
	both.cpus = "0,1"
	bare := &server{command: func(port int) (*exec.Cmd, error) {
		return exec.Command(r.self, "reverse-proxy", fmt.Sprint(port), fmt.Sprint(r.upstream)), nil
	}}
	checked := &server{command: func(port int) (*exec.Cmd, error) {
		return exec.Command(r.self, "reverse-proxy", fmt.Sprint(port), fmt.Sprint(r.upstream), filepath.Join(r.dir, "rsa.pem")), nil
	}}
	good := func(name string, s *server, requests [][]byte) *candidate {
		return &candidate{name: name, server: s, requests: requests, status: 200, body: 1024}
	}
	all := []*candidate{
		good(bareName, bare, one),
		good("Durward, one token", main, one),
		good("Durward, 5,000 tokens", main, many()),
		good(fmt.Sprintf("Durward, 5,000 tokens, %d entries in the denylist", r.entries), full, many()),
		good("Durward, one token, ES256", main, r.keys.requests("ES256", 0, 1)),
		good("Durward, one token, EdDSA", main, r.keys.requests("EdDSA", 0, 1)),
		good("Durward, public route", main, [][]byte{get("/public/", "")}),
		good("Durward, one token, nothing logged", quiet, one),
		good(fmt.Sprintf("Durward, one token, %d routes", r.routes), routed, one),
		good("Durward, one token, two processors", both, one),
		{name: "Durward, every token new", server: fresh, requests: r.keys.requests("RS256", 10_000, int(r.length.Seconds()*8000)), status: 200, body: 1024, once: true},
		{name: "Durward, refused: no token", server: main, requests: [][]byte{get("/", "")}, status: 401, body: -1},
		{name: "Durward, refused: forged", server: main, requests: forgeries, status: refused, body: -1},
		{name: "Durward, one token beside a flood of forgeries", server: main, requests: one, status: 200, body: 1024, beside: forgeries, shared: true},
		{name: "open loop, 6,000/s: httputil.ReverseProxy, bare", server: bare, requests: one, status: 200, body: 1024, open: 6000},
		{name: "open loop, 6,000/s: Durward, one token", server: main, requests: one, status: 200, body: 1024, open: 6000},
		good("httputil.ReverseProxy with golang-jwt for each request", checked, one),
		r.foreign("HAProxy, bare", "haproxy", r.haproxy(false), one),
		r.foreign("HAProxy, jwt_verify RS256, one token", "haproxy", r.haproxy(true), one),
		r.foreign("HAProxy, jwt_verify RS256, 5,000 tokens", "haproxy", r.haproxy(true), many()),
		r.foreign("nginx, bare", "nginx", r.nginx, one),
		r.foreign("Caddy, bare", "caddy", r.caddy, one),
	}
	if r.against != "" {
		other := r.gateway("other", "")
		command := other.command
		other.command = func(port int) (*exec.Cmd, error) {
			cmd, err := command(port)
			if err == nil {
				cmd.Path = r.against
			}
			return cmd, err
		}
		// Each next to its counterpart.
		for i := len(all) - 1; i >= 0; i-- {
			if c := *all[i]; c.server == main {
				c.name, c.server = c.name+", other build", other
				all = slices.Insert(all, i+1, &c)
			}
		}
	}
	return all
}

// gateway is Durward with some more lines of configuration, logging to a file that
// keeps nothing.
func (r *rig) gateway(name, more string) *server {
	s := &server{admin: freePort()}
	s.command = func(port int) (*exec.Cmd, error) {
		dir := filepath.Join(r.dir, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		routes := fmt.Sprintf("routes:\n  - {name: public, path: /public/, upstream: 'http://127.0.0.1:%d', auth: none}\n  - {name: app, upstream: 'http://127.0.0.1:%d', allow: [{methods: [GET], scopes: [read]}]}\n", r.upstream, r.upstream)
		if strings.Contains(more, "routes:") {
			routes = ""
		}
		config := filepath.Join(dir, "durward.yaml")
		text := fmt.Sprintf("listen: 127.0.0.1:%d\nadmin: 127.0.0.1:%d\nstate_dir: state\nissuers:\n  - {name: bench, issuer: '%s', audiences: [%s], jwks_file: ../jwks.json}\n%s%s", port, s.admin, issuer, audience, more, routes)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return nil, err
		}
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(filepath.Join(r.dir, "durward"), "serve", "-config", config)
		cmd.Stderr = null
		return cmd, nil
	}
	return s
}

// record profiles the gateway while it does what it does most: let known tokens pass,
// and now and then new ones, and refuse.
func (r *rig) record(ctx context.Context) error {
	s := r.gateway("profiled", "")
	if err := s.start(ctx); err != nil {
		return err
	}
	defer s.stop()
	requests := r.keys.requests("RS256", 0, 200)
	for range 50 {
		requests = append(requests, requests[:200]...)
	}
	file, err := r.write(append(requests, r.keys.requests("ES256", 200, 20)...))
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		_, err := r.load(ctx, s.port, r.connections, 12*time.Second, 0, 200, 1024, file)
		done <- err
	}()
	token, err := os.ReadFile(filepath.Join(r.dir, "profiled", "state", "admin.token"))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/profile?seconds=10", s.admin), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	profile, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s %v %.200s", res.Status, err, profile)
	}
	return errors.Join(<-done, os.WriteFile(r.profile, profile, 0o644))
}

// manyRoutes are so many routes, the last of which takes the requests.
func manyRoutes(n, upstream int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "upstreams:\n  app: {url: 'http://127.0.0.1:%d'}\nroutes:\n", upstream)
	for i := range n - 1 {
		fmt.Fprintf(&b, "  - {name: r%d, path: /api/v1/r%d/, upstream: app, allow: [{scopes: [s%d]}]}\n", i, i, i)
	}
	b.WriteString("  - {name: app, upstream: app, allow: [{methods: [GET], scopes: [read]}]}\n")
	return b.String()
}

// filled has the gateway follow a file with many revocations, of tokens that nobody uses.
func (r *rig) filled(command func(int) (*exec.Cmd, error)) func(int) (*exec.Cmd, error) {
	return func(port int) (*exec.Cmd, error) {
		cmd, err := command(port)
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(r.dir, "full")
		f, err := os.Create(filepath.Join(dir, "revoked.jsonl"))
		if err != nil {
			return nil, err
		}
		b := bufio.NewWriterSize(f, 1<<20)
		for i := range r.entries {
			fmt.Fprintf(b, "{\"jti\":\"00000000-0000-4000-8000-%012d\"}\n", i)
		}
		if err := errors.Join(b.Flush(), f.Close()); err != nil {
			return nil, err
		}
		config, err := os.OpenFile(filepath.Join(dir, "durward.yaml"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		_, err = fmt.Fprintf(config, "denylist: {max_entries: %d, feeds: [{name: file, file: revoked.jsonl}]}\n", r.entries+1000)
		return cmd, errors.Join(err, config.Close())
	}
}

// foreign is a candidate of somebody else's making.
func (r *rig) foreign(name, program string, command func(port int) (*exec.Cmd, error), requests [][]byte) *candidate {
	c := &candidate{name: name, server: &server{command: command}, requests: requests, status: 200, body: 1024}
	if _, err := exec.LookPath(program); err != nil {
		c.missing = "apt-get install " + program
	}
	return c
}

func (r *rig) file(name, text string) (string, error) {
	path := filepath.Join(r.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// haproxy verifies signature, iss, aud and exp, as its documentation says to.
func (r *rig) haproxy(verify bool) func(int) (*exec.Cmd, error) {
	return func(port int) (*exec.Cmd, error) {
		rules := ""
		if verify {
			rules = fmt.Sprintf(`  http-request set-var(txn.bearer) http_auth_bearer
  http-request set-var(txn.alg) var(txn.bearer),jwt_header_query('$.alg')
  http-request set-var(txn.iss) var(txn.bearer),jwt_payload_query('$.iss')
  http-request set-var(txn.aud) var(txn.bearer),jwt_payload_query('$.aud')
  http-request set-var(txn.exp) var(txn.bearer),jwt_payload_query('$.exp','int')
  http-request set-var(txn.sub) var(txn.bearer),jwt_payload_query('$.sub')
  http-request set-var(txn.scope) var(txn.bearer),jwt_payload_query('$.scope')
  http-request set-var(txn.now) date()
  http-request deny deny_status 401 unless { var(txn.alg) -m str RS256 }
  http-request deny deny_status 401 unless { var(txn.iss) -m str %s }
  http-request deny deny_status 401 unless { var(txn.aud) -m str %s }
  http-request deny deny_status 401 if { var(txn.exp),sub(txn.now) -m int lt 0 }
  http-request deny deny_status 401 unless { var(txn.bearer),jwt_verify(txn.alg,"%s") -m int 1 }
  http-request deny deny_status 403 unless { var(txn.scope) -m sub read }
  http-request set-header X-Forwarded-User %%[var(txn.sub)]
  http-request del-header Authorization
`, issuer, audience, filepath.Join(r.dir, "rsa.pem"))
		}
		config, err := r.file(fmt.Sprintf("haproxy-%d.cfg", port), fmt.Sprintf(`global
  nbthread 1
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend f
  bind 127.0.0.1:%d
%s  default_backend b
backend b
  option forwardfor
  server s 127.0.0.1:%d
`, port, rules, r.upstream))
		return exec.Command("haproxy", "-db", "-f", config), err
	}
}

func (r *rig) nginx(port int) (*exec.Cmd, error) {
	config, err := r.file(fmt.Sprintf("nginx-%d.conf", port), fmt.Sprintf(`daemon off; master_process off; pid %s/nginx.pid; error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 100000000; client_body_temp_path %s/nginx-1; proxy_temp_path %s/nginx-2;
  fastcgi_temp_path %s/nginx-3; uwsgi_temp_path %s/nginx-4; scgi_temp_path %s/nginx-5;
  upstream u { server 127.0.0.1:%d; keepalive 256; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:%d;
    location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr; }
  }
}
`, r.dir, r.dir, r.dir, r.dir, r.dir, r.dir, r.upstream, port))
	return exec.Command("nginx", "-p", r.dir, "-c", config), err
}

func (r *rig) caddy(port int) (*exec.Cmd, error) {
	config, err := r.file(fmt.Sprintf("Caddyfile-%d", port), fmt.Sprintf("{\n\tadmin off\n\tauto_https off\n}\nhttp://:%d {\n\tbind 127.0.0.1\n\treverse_proxy 127.0.0.1:%d {\n\t\ttransport http {\n\t\t\tkeepalive_idle_conns_per_host 1024\n\t\t}\n\t}\n}\n", port, r.upstream))
	return exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", config), err
}

// reverseProxy is net/http/httputil's with all that makes it fast and the timeouts
// that a server needs, and nothing else; with a key, golang-jwt checks each token.
func reverseProxy(args []string) error {
	target := &url.URL{Scheme: "http", Host: "127.0.0.1:" + args[1]}
	var handler http.Handler = &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(target)
			pr.SetXForwarded()
		},
		Transport:  &http.Transport{MaxIdleConnsPerHost: 1024, IdleConnTimeout: 90 * time.Second, DisableCompression: true, ResponseHeaderTimeout: time.Minute},
		BufferPool: new(buffers),
	}
	if len(args) > 2 {
		text, err := os.ReadFile(args[2])
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return err
		}
		parser := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		next := handler
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			raw, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			var claims jwt.RegisteredClaims
			if _, err := parser.ParseWithClaims(raw, &claims, func(*jwt.Token) (any, error) { return key.(*rsa.PublicKey), nil }); err != nil {
				http.Error(w, err.Error(), http.StatusUnauthorized)
				return
			}
			r.Header.Del("Authorization")
			r.Header.Set("X-Forwarded-User", claims.Subject)
			next.ServeHTTP(w, r)
		})
	}
	srv := &http.Server{Addr: "127.0.0.1:" + args[0], Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	return srv.ListenAndServe()
}

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }
