// Package test drives the real binary, with real servers around it.
//
// Each test builds the world that it needs: an issuer that signs tokens, an
// upstream that remembers what it received, and a gateway process with its own
// configuration, folder and free ports. All of it ends with the test.
package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

// binary is the path of the program under test; TestMain builds it.
var binary string

func TestMain(m *testing.M) {
	if os.Getenv(bystanderVariable) != "" {
		if err := bystand(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(floodVariable) != "" {
		if err := flood(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "durward-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "durward")
	build := exec.Command("go", "build", "-o", binary, "durward/cmd/durward")
	build.Stderr = os.Stderr
	status := 1
	if err := build.Run(); err == nil {
		status = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(status)
}

// noteSources looks at every source file of the program, so that "go test" sees
// that the outcome depends on them and forgets a cached one when they change. It
// takes notes only while tests run.
var noteSources = sync.OnceValue(func() error {
	return filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && path != ".." && (name == "test" || strings.HasPrefix(name, ".")) {
			return filepath.SkipDir
		}
		_, err = os.Stat(path)
		return err
	})
})

// need skips the test if the program is missing, or fails it where everything is
// required.
func need(t testing.TB, program, install string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	lack(t, fmt.Sprintf("%s is missing; install it with: %s", program, install))
	return ""
}

// lack skips the test for want of what the text says, or fails it where everything
// is required.
func lack(t testing.TB, text string) {
	t.Helper()
	if os.Getenv("DURWARD_TEST_REQUIRE") == "all" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// eventually polls until the condition holds, or fails the test.
func eventually(t testing.TB, within time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// heard waits for what an upstream has to tell.
func heard(t *testing.T, what, want string, from chan string) {
	t.Helper()
	select {
	case got := <-from:
		if got != want {
			t.Fatalf("%s: %s, want %s", what, got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not %s", what, want)
	}
}

// An issuer signs tokens and serves its keys, as many as it holds.
type issuer struct {
	*httptest.Server
	mu      sync.Mutex
	keys    []issuerKey
	fetches atomic.Int64 // of the JWKS
	down    atomic.Bool  // answers 503
}

type issuerKey struct {
	kid string
	key *ecdsa.PrivateKey
}

// newIssuer starts an issuer with one key, "k1". Its URL is its iss.
func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{}
	mux := http.NewServeMux()
	i.Server = httptest.NewServer(mux)
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		i.fetches.Add(1)
		if i.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		w.Write(i.jwks())
	})
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	t.Cleanup(i.Close)
	i.setKeys(newKey("k1"))
	return i
}

func newKey(kid string) issuerKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return issuerKey{kid, key}
}

// setKeys replaces the published keys.
func (i *issuer) setKeys(keys ...issuerKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = keys
}

func (i *issuer) jwks() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	var keys []map[string]string
	for _, k := range i.keys {
		point, err := k.key.PublicKey.Bytes()
		if err != nil {
			panic(err)
		}
		b64 := base64.RawURLEncoding.EncodeToString
		keys = append(keys, map[string]string{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": k.kid, "x": b64(point[1:33]), "y": b64(point[33:])})
	}
	text, _ := json.Marshal(map[string]any{"keys": keys})
	return text
}

var jtis atomic.Int64

// claims are good claims for audience app, changed by what is given; nil removes one.
func (i *issuer) claims(changes jwt.MapClaims) jwt.MapClaims {
	now := time.Now()
	c := jwt.MapClaims{
		"iss": i.URL, "aud": "app", "sub": "alice", "jti": fmt.Sprintf("jti-%d", jtis.Add(1)),
		"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "scope": "read write",
	}
	maps.Copy(c, changes)
	for name, value := range c {
		if value == nil {
			delete(c, name)
		}
	}
	return c
}

// token is a good token, its claims changed by what is given.
func (i *issuer) token(changes jwt.MapClaims) string {
	i.mu.Lock()
	k := i.keys[0]
	i.mu.Unlock()
	return sign(jwt.SigningMethodES256, k.key, map[string]any{"kid": k.kid, "typ": "at+jwt"}, i.claims(changes))
}

// sign makes a token with exactly this header (and alg) and these claims.
func sign(method jwt.SigningMethod, key crypto.PrivateKey, header map[string]any, claims jwt.MapClaims) string {
	t := jwt.NewWithClaims(method, claims)
	maps.Copy(t.Header, header)
	s, err := t.SignedString(key)
	if err != nil {
		panic(err)
	}
	return s
}

// A seen request is what an upstream received.
type seen struct {
	*http.Request
	Body []byte
}

// An upstream answers 200 "hello from the upstream" and remembers every request.
type upstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen []seen
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		u.mu.Lock()
		u.seen = append(u.seen, seen{r, body})
		u.mu.Unlock()
		io.WriteString(w, "hello from the upstream")
	}))
	t.Cleanup(u.Close)
	return u
}

// requests are those received so far.
func (u *upstream) requests() []seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]seen(nil), u.seen...)
}

// last is the latest request received.
func (u *upstream) last(t *testing.T) seen {
	t.Helper()
	all := u.requests()
	if len(all) == 0 {
		t.Fatal("the upstream received nothing")
	}
	return all[len(all)-1]
}

// A gateway is a running "durward serve".
type gateway struct {
	t      testing.TB
	dir    string // holds durward.yaml and durward-state
	config string // path of durward.yaml
	public []string
	admin  string // http://host:port
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process has ended
	log    *logBuffer
}

// A logBuffer collects the process's log lines.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// requestLines is how many requests the log has, once it has all that were counted:
// a line waits a moment for others.
func (g *gateway) requestLines() (n int) {
	g.t.Helper()
	counted := 0
	for line := range strings.Lines(send(g.t, "GET", g.admin+"/metrics", "").Body) {
		if strings.HasPrefix(line, "durward_requests_total{") {
			var value float64
			fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &value)
			counted += int(value)
		}
	}
	eventually(g.t, 5*time.Second, "the log has all requests", func() bool {
		n = len(g.log.lines("request"))
		return n >= counted
	})
	return n
}

// lines are the log's JSON lines with this message.
func (l *logBuffer) lines(msg string) (found []map[string]any) {
	for line := range strings.Lines(l.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == msg {
			found = append(found, m)
		}
	}
	return found
}

// startGateway writes the configuration into a folder of its own and runs the
// gateway until the test ends. The configuration should listen on 127.0.0.1:0;
// admin: and shutdown: are added where they are missing.
func startGateway(t testing.TB, config string) *gateway {
	t.Helper()
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, dir: t.TempDir()}
	g.config = filepath.Join(g.dir, "durward.yaml")
	g.write(config)
	g.conforms()
	g.start()
	return g
}

// schema is the one of the configuration that editors go by.
var schema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	return jsonschema.NewCompiler().Compile("../cmd/durward/durward.schema.json")
})

// conforms makes sure that an editor would find the configuration good.
func (g *gateway) conforms() {
	g.t.Helper()
	schema, err := schema()
	if err != nil {
		g.t.Fatal(err)
	}
	text, err := os.ReadFile(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	var config any
	if err := yaml.Unmarshal(text, &config); err != nil {
		g.t.Fatal(err)
	}
	if err := schema.Validate(config); err != nil {
		g.t.Errorf("the schema refuses a good configuration: %v\n%s", err, text)
	}
}

// write replaces the configuration file as a whole.
func (g *gateway) write(config string) {
	g.t.Helper()
	if !strings.Contains("\n"+config, "\nadmin:") {
		config = "admin: 127.0.0.1:0\n" + config
	}
	if !strings.Contains("\n"+config, "\nshutdown:") {
		config = "shutdown: {grace: 0s, drain: 5s}\n" + config
	}
	tmp := g.config + ".new"
	if err := os.WriteFile(tmp, []byte(config), 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(tmp, g.config); err != nil {
		g.t.Fatal(err)
	}
}

// start runs the process and waits until it listens. It may be called again
// after stop or kill: the folder stays.
func (g *gateway) start() {
	g.t.Helper()
	g.launch()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if lines := g.log.lines("the gateway serves"); len(lines) > 0 {
			g.public = nil
			for _, address := range lines[0]["listen"].([]any) {
				g.public = append(g.public, address.(string))
			}
			g.admin = "http://" + lines[0]["admin"].(string)
			return
		}
		select {
		case <-g.ended:
			g.t.Fatalf("the gateway ended at start:\n%s", g.log)
		default:
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("the gateway does not listen:\n%s", g.log)
		}
	}
}

// launch runs the process and does not wait for it.
func (g *gateway) launch() {
	g.t.Helper()
	g.log = &logBuffer{}
	g.cmd = exec.Command(binary, "serve", "-config", g.config)
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.ended = make(chan struct{})
	go func() {
		for lines := bufio.NewReader(stderr); ; {
			line, err := lines.ReadString('\n')
			io.WriteString(g.log, line)
			if err != nil {
				break
			}
		}
		g.cmd.Wait()
		close(g.ended)
	}()
	g.t.Cleanup(g.kill)
}

// waitReady waits for /readyz to say 200.
func (g *gateway) waitReady() {
	g.t.Helper()
	eventually(g.t, 10*time.Second, "ready", func() bool {
		res, err := http.Get(g.admin + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// url is the gateway's first public address with this path.
func (g *gateway) url(path string) string { return "http://" + g.public[0] + path }

// stop ends the process as an operator would, and waits for it.
func (g *gateway) stop() {
	g.cmd.Process.Signal(os.Interrupt)
	<-g.ended
}

// kill ends it as a power failure would.
func (g *gateway) kill() {
	g.cmd.Process.Kill()
	<-g.ended
}

// adminToken is the content of the token file.
func (g *gateway) adminToken() string {
	text, err := os.ReadFile(filepath.Join(g.dir, "durward-state", "admin.token"))
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// call asks the operators' interface, with the admin token.
func (g *gateway) call(method, path, body string) (status int, answer string) {
	g.t.Helper()
	req, err := http.NewRequest(method, g.admin+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+g.adminToken())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// An answer is a response whose body was read.
type answer struct {
	*http.Response
	Body string
}

// reason is the header Durward-Reason.
func (a answer) reason() string { return a.Header.Get("Durward-Reason") }

// client keeps no cookies and follows no redirects.
var client = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
	Timeout:       30 * time.Second,
}

// send makes a request; headers are "Name: value".
func send(t testing.TB, method, url, body string, headers ...string) answer {
	t.Helper()
	a, err := attempt(method, url, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// attempt is send for requests that may be cut while they are answered, as those
// are that race with the revocation of their token.
func attempt(method, url, body string, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answer{res, string(text)}, err
}

// durward runs a subcommand and returns its exit status and output.
func durward(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}
