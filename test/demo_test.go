package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A demoRun is a running "durward demo".
type demoRun struct {
	url    string
	config string // path of its configuration file
	stdout demoOutput
	stderr demoOutput
	cmd    *exec.Cmd
}

// A demoOutput collects what a process prints while others read it.
type demoOutput struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *demoOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *demoOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// startDemo runs the demo until the test ends, with whatever temporary files it
// makes inside the test's own folder.
func startDemo(t *testing.T, args ...string) *demoRun {
	t.Helper()
	d := &demoRun{cmd: exec.Command(binary, append([]string{"demo", "-listen", "127.0.0.1:0"}, args...)...)}
	d.cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	d.cmd.Stdout, d.cmd.Stderr = &d.stdout, &d.stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(t) })
	told := regexp.MustCompile(`Open +(http://localhost:[1-9][0-9]*)\n(?s:.*)-config (\S+)`)
	eventually(t, 20*time.Second, "the demo says what to open", func() bool {
		m := told.FindStringSubmatch(d.stdout.String())
		if m == nil {
			return false
		}
		d.url, d.config = m[1], m[2]
		return true
	})
	return d
}

// stop ends the demo as Ctrl-C does, and fails the test if that is neither clean nor quick.
func (d *demoRun) stop(t *testing.T) {
	t.Helper()
	if d.cmd.ProcessState != nil {
		return
	}
	begun := time.Now()
	kill := time.AfterFunc(20*time.Second, func() { d.cmd.Process.Kill() })
	defer kill.Stop()
	d.cmd.Process.Signal(syscall.SIGINT)
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("the demo ended with %v:\n%s", err, d.stderr.String())
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the demo took %v to end", took)
	}
}

// A demoVisitor is a browser as far as cookies go; net/http's jar takes Secure
// ones from localhost, as browsers do.
type demoVisitor struct {
	t    *testing.T
	base string
	http http.Client
}

func (d *demoRun) visitor(t *testing.T) *demoVisitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &demoVisitor{t, d.url, http.Client{Jar: jar, Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
}

// asks sends a request, with a form if there is one, and wants this status and reason.
func (v *demoVisitor) asks(method, path string, form url.Values, status int, reason string) (body string) {
	v.t.Helper()
	req, err := http.NewRequest(method, v.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		v.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := v.http.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	if got := res.Header.Get("Durward-Reason"); res.StatusCode != status || got != reason {
		v.t.Errorf("%s %s: %d %q, want %d %q: %s", method, path, res.StatusCode, got, status, reason, text)
	}
	return string(text)
}

func (v *demoVisitor) logsInAs(user string) {
	v.t.Helper()
	body := v.asks("POST", "/login/", url.Values{"user": {user}, "return_to": {"/whoami"}}, 200, "")
	if want := fmt.Sprintf(`"X-Forwarded-User": %q`, user); !strings.Contains(body, want) {
		v.t.Errorf("after the login the application did not receive %s: %s", want, body)
	}
}

// The story that the demo tells, without a browser.
func TestDemoStory(t *testing.T) {
	d := startDemo(t)
	v := d.visitor(t)
	if page := v.asks("GET", "/", nil, 200, ""); !strings.Contains(page, "<title>Durward demo</title>") {
		t.Errorf("the first page is %s", page)
	}
	v.asks("GET", "/static/demo.js", nil, 200, "")
	v.asks("GET", "/api/orders", nil, 401, "no_token")
	v.asks("POST", "/login/", url.Values{"user": {"mallory"}}, 400, "")
	v.logsInAs("alice")
	v.asks("GET", "/api/orders", nil, 200, "")
	v.asks("POST", "/api/orders", nil, 403, "insufficient_scope")
	v.asks("GET", "/admin/", nil, 403, "forbidden")
	v.logsInAs("bob")
	v.asks("POST", "/api/orders", nil, 201, "")
	other := d.visitor(t)
	other.logsInAs("bob")
	v.asks("POST", "/helpdesk/revoke", nil, 200, "")
	v.asks("GET", "/api/orders", nil, 401, "revoked")
	v.asks("GET", "/api/orders", nil, 401, "no_token") // the dead cookie was cleared
	other.asks("GET", "/api/orders", nil, 200, "")     // one session was revoked, not bob
	v.logsInAs("carol")
	v.asks("GET", "/admin/", nil, 200, "")
	v.asks("DELETE", "/.durward/session", nil, 204, "")
	v.asks("GET", "/admin/", nil, 401, "no_token")

	d.stop(t)
	for _, want := range []string{
		"alice  POST    /api/orders              403 insufficient_scope: ",
		"bob    POST    /api/orders              201 allowed\n",
		"revoked by its sid\n",
		"bob    GET     /api/orders              401 revoked",
	} {
		if !strings.Contains(d.stderr.String(), want) {
			t.Errorf("%q is missing in what the demo said:\n%s", want, d.stderr.String())
		}
	}
	if _, err := os.Stat(filepath.Dir(d.config)); !os.IsNotExist(err) {
		t.Errorf("%s was left behind: %v", filepath.Dir(d.config), err)
	}
}

// What the demo proposes to type does what it says: the token for curl, explain and revoke.
func TestDemoCommandLines(t *testing.T) {
	d := startDemo(t)
	durward := func(args ...string) (string, error) {
		out, err := exec.Command(binary, args...).CombinedOutput()
		return string(out), err
	}
	ask := func(token string, status int) {
		t.Helper()
		req, err := http.NewRequest("GET", d.url+"/api/orders", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("GET /api/orders with a bearer token: %s, want %d", res.Status, status)
		}
	}
	token := d.visitor(t).asks("GET", "/login/token?user=alice", nil, 200, "")
	ask(token, 200)
	if out, err := durward("check", "-config", d.config); err != nil {
		t.Errorf("check: %v: %s", err, out)
	}
	const claims = `{"sub":"alice","scope":"orders:read"}`
	if out, err := durward("explain", "-config", d.config, "-claims", claims, "POST", d.url+"/api/orders"); err != nil || !strings.Contains(out, "insufficient_scope") {
		t.Errorf("explain of a refused request: %v: %s", err, out)
	}
	if out, err := durward("explain", "-config", d.config, "-claims", claims, "GET", d.url+"/api/orders"); err != nil || !strings.Contains(out, "allow (allowed)") {
		t.Errorf("explain of an allowed request: %v: %s", err, out)
	}
	if out, err := durward("revoke", "-config", d.config, "-sub", "alice"); err != nil {
		t.Errorf("revoke: %v: %s", err, out)
	}
	ask(token, 401)
}

// A second demo takes other ports, and a kept configuration is not overwritten.
func TestDemoTakenPortAndKeptFiles(t *testing.T) {
	kept := filepath.Join(t.TempDir(), "kept")
	first := startDemo(t, "-keep", kept)
	second := startDemo(t, "-listen", strings.Replace(first.url, "http://localhost", "127.0.0.1", 1))
	if second.url == first.url || !strings.Contains(second.stderr.String(), "is taken; using 127.0.0.1:") {
		t.Errorf("the second demo is at %s, the first at %s, and it says: %s", second.url, first.url, second.stderr.String())
	}
	// Cookies know no ports: that of the first is also sent to the second, as it is
	// to a demo that is started again. It is no good there, but does no harm.
	v := first.visitor(t)
	v.logsInAs("alice")
	v.base = second.url
	v.asks("GET", "/", nil, 200, "")
	v.asks("GET", "/whoami", nil, 401, "token_issuer")
	v.logsInAs("bob")
	second.stop(t)
	first.visitor(t).asks("GET", "/", nil, 200, "")
	first.stop(t)
	config := filepath.Join(kept, "durward.yaml")
	if first.config != config {
		t.Errorf("the configuration is at %s, want %s", first.config, config)
	}
	before, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, "demo", "-keep", kept, "-listen", "127.0.0.1:0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "already there") {
		t.Errorf("a demo over kept files: %v: %s", err, out)
	}
	if after, err := os.ReadFile(config); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the kept configuration changed (%v)", err)
	}
	for _, listen := range []string{"0.0.0.0:0", "192.0.2.1:8080", "[::]:0", ":8080", "localhost", "127.0.0.2:0"} {
		if out, err := exec.Command(binary, "demo", "-listen", listen).CombinedOutput(); err == nil || !strings.Contains(string(out), "gives a token to whoever asks") {
			t.Errorf("-listen %s: %v: %s", listen, err, out)
		}
	}
}

// TestDemoInBrowser clicks through the story in Chromium. SCREENSHOTS names a
// folder for pictures of the pages; by default they go with the test.
func TestDemoInBrowser(t *testing.T) {
	node := need(t, "node", "apt-get install nodejs npm")
	chromium := need(t, "chromium", "apt-get install chromium")
	if _, err := os.Stat("node/node_modules/playwright-core"); err != nil {
		lack(t, "playwright-core is missing; install it with: (cd test/node && npm ci --ignore-scripts)")
	}
	d := startDemo(t)
	screenshots := os.Getenv("SCREENSHOTS")
	if screenshots == "" {
		screenshots = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	browser := exec.CommandContext(ctx, node, "browser.mjs", d.url)
	browser.Dir = "node"
	browser.Env = append(os.Environ(), "CHROMIUM="+chromium, "SCREENSHOTS="+screenshots)
	browser.WaitDelay = 5 * time.Second
	if out, err := browser.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s\nthe demo said:\n%s", err, out, d.stderr.String())
	}
	if taken, _ := filepath.Glob(filepath.Join(screenshots, "*.png")); len(taken) == 0 {
		t.Error("no picture was taken")
	}
}
