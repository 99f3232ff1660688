package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A badConfig is a file of testdata/badconfig: a configuration, and below it, in
// comments "# want", every problem that must be told, word for word. DIR stands
// for the folder of the file.
type badConfig struct {
	name, text string
	want       []string // as the program prints them, without the file's name
}

func badConfigs(t *testing.T) (all []badConfig) {
	t.Helper()
	paths, err := filepath.Glob("testdata/badconfig/*.yaml")
	if err != nil || len(paths) < 30 {
		t.Fatalf("found %d bad configurations: %v", len(paths), err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c := badConfig{name: filepath.Base(path), text: string(text)}
		for line := range strings.Lines(c.text) {
			if want, ok := strings.CutPrefix(line, "# want"); ok {
				c.want = append(c.want, strings.TrimSuffix(want, "\n"))
			}
		}
		if c.want == nil {
			t.Fatalf("%s wants nothing", c.name)
		}
		all = append(all, c)
	}
	return all
}

// problems are those that a file at this path must get.
func (c badConfig) problems(path string) string {
	text := path + strings.Join(c.want, "\n"+path)
	return strings.ReplaceAll(text, "DIR/", filepath.Dir(path)+"/")
}

// difference is what check adds to a policy test that failed.
var difference = regexp.MustCompile(`(?m)^  [ +-] .*\n`)

// TestBadConfigs gives each file to check and to serve: both tell the same
// problems, all at once, and end with status 1 having done nothing.
func TestBadConfigs(t *testing.T) {
	t.Parallel()
	for _, c := range badConfigs(t) {
		dir := t.TempDir()
		path := filepath.Join(dir, c.name)
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		want := c.problems(path) + "\n"
		for _, command := range []string{"check", "serve"} {
			status, out, errOut := durward(t, command, "-config", path)
			errOut = difference.ReplaceAllString(errOut, "")
			if status != 1 || out != "" || errOut != want {
				t.Errorf("%s %s: exit status %d\ngot:\n%s%s\nwant:\n%s", command, c.name, status, out, errOut, want)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: left behind %v (%v)", c.name, left, err)
		}
	}
	status, _, errOut := durward(t, "serve", "-config", filepath.Join(t.TempDir(), "none.yaml"))
	if status != 1 || !strings.Contains(errOut, "none.yaml: no such file or directory") {
		t.Errorf("a file that is not there: exit status %d: %s", status, errOut)
	}
}

// A steady gateway has one configuration that works, and is offered others.
type steady struct {
	*gateway
	idp *issuer
	app *upstream
}

const steadyConfig = `
listen: 127.0.0.1:0
issuers: [{name: corp, issuer: %q, audiences: [app]}]
routes:
  - {name: app, path: /app/, upstream: %q}
`

func newSteady(t *testing.T) *steady {
	s := &steady{idp: newIssuer(t), app: newUpstream(t)}
	s.gateway = serving(t, s.good())
	return s
}

func (s *steady) good() string { return fmt.Sprintf(steadyConfig, s.idp.URL, s.app.URL) }

func (s *steady) generation() int {
	s.t.Helper()
	var status struct{ Generation int }
	if err := json.Unmarshal([]byte(send(s.t, "GET", s.admin+"/status", "").Body), &status); err != nil {
		s.t.Fatal(err)
	}
	return status.Generation
}

// inForce makes sure that the gateway goes by this generation.
func (s *steady) inForce(after string, generation int) {
	s.t.Helper()
	if got := s.generation(); got != generation {
		s.t.Errorf("after %s: generation %d, want %d", after, got, generation)
	}
	if a := send(s.t, "GET", s.url("/app/x"), "", bearing(s.idp.token(nil))); a.StatusCode != 200 {
		s.t.Errorf("after %s: %s %s", after, a.Status, a.reason())
	}
	if a := send(s.t, "GET", s.url("/app/x"), ""); a.StatusCode != 401 {
		s.t.Errorf("after %s, without token: %s %s", after, a.Status, a.reason())
	}
}

// put replaces the file with exactly this text.
func (s *steady) put(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.config+".put", []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.config+".put", s.config); err != nil {
		s.t.Fatal(err)
	}
}

// refusals are the log's lines about reloads that changed nothing.
func (s *steady) refusals() []map[string]any {
	return s.log.lines("the configuration was not reloaded; the old one stays")
}

// TestBadReloads offers each file to a running gateway: it keeps the old one in
// force and says why.
func TestBadReloads(t *testing.T) {
	t.Parallel()
	s := newSteady(t)
	const ok = "durward_config_last_reload_successful"
	if got := metric(t, s.gateway, ok); got != 1 {
		t.Errorf("after the start, %s is %v", ok, got)
	}
	for _, c := range badConfigs(t) {
		s.put(c.text)
		status, out := s.call("POST", "/reload", "")
		var answer struct {
			Status   string
			Problems []string
		}
		err := json.Unmarshal([]byte(out), &answer)
		if got, want := strings.Join(answer.Problems, "\n"), c.problems(s.config); status != 422 || err != nil || answer.Status != "refused; the old configuration stays" || got != want {
			t.Errorf("%s: %d %q (%v)\ngot:\n%s\nwant:\n%s", c.name, status, answer.Status, err, got, want)
		}
		s.inForce(c.name, 1)
		if got := metric(t, s.gateway, ok); got != 0 {
			t.Errorf("after %s, %s is %v", c.name, ok, got)
		}
		eventually(t, 5*time.Second, "the log tells the problems of "+c.name, func() bool {
			lines := s.refusals()
			return len(lines) > 0 && lines[len(lines)-1]["problems"] == c.problems(s.config) && lines[len(lines)-1]["level"] == "ERROR"
		})
	}

	s.write(s.good() + `  - {name: more, path: /more/, upstream: "` + s.app.URL + `", auth: none}` + "\n")
	if status, out := s.call("POST", "/reload", ""); status != 200 {
		t.Errorf("a good file: %d %s", status, out)
	}
	if got := metric(t, s.gateway, ok); got != 1 {
		t.Errorf("after a good file, %s is %v", ok, got)
	}
	s.inForce("a good file", s.generation()) // POST /reload, or the watch that came before it
	if a := send(t, "GET", s.url("/more/x"), ""); a.StatusCode != 200 {
		t.Errorf("the new route: %s %s", a.Status, a.reason())
	}
	if s.generation() < 2 {
		t.Errorf("the generation is still %d", s.generation())
	}
}

// TestReloadTriggers reloads by signal and by change of the file, bad and good.
func TestReloadTriggers(t *testing.T) {
	t.Parallel()
	s := newSteady(t)

	s.put(s.good() + "zebra: 1\n")
	eventually(t, 10*time.Second, "the change is noticed", func() bool { return len(s.refusals()) > 0 })
	if line := s.refusals()[0]; line["why"] != "the file changed" || !strings.HasSuffix(line["problems"].(string), `: unknown key "zebra"`) {
		t.Errorf("the log says %v", line)
	}
	s.inForce("a bad change", 1)

	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the signal is noticed", func() bool { return len(s.refusals()) > 1 })
	if line := s.refusals()[1]; line["why"] != "SIGHUP" {
		t.Errorf("the log says %v", line)
	}
	s.inForce("SIGHUP with a bad file", 1)

	reloaded := func() []map[string]any { return s.log.lines("the configuration was reloaded") }
	s.write(s.good() + "hide_reasons: true\n")
	eventually(t, 10*time.Second, "the good change is in force", func() bool { return len(reloaded()) == 1 })
	s.inForce("a good change", 2)
	if a := send(t, "GET", s.url("/app/x"), ""); a.reason() != "" {
		t.Errorf("the old configuration is still in force: reason %q", a.reason())
	}
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the signal is noticed", func() bool { return len(reloaded()) == 2 })
	s.inForce("SIGHUP with a good file", 3)

	// A file that is written piece by piece is not loaded before its end, be its
	// beginning a good configuration.
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	pieces, err := os.Create(s.config)
	if err != nil {
		t.Fatal(err)
	}
	defer pieces.Close()
	refused := len(s.refusals())
	piece := "# in pieces\n" + string(text)
	for began := time.Now(); time.Since(began) < 1800*time.Millisecond; time.Sleep(200 * time.Millisecond) {
		if _, err := pieces.WriteString(piece); err != nil {
			t.Fatal(err)
		}
		if piece = "# more to come\n"; len(reloaded()) != 2 || len(s.refusals()) != refused {
			t.Fatalf("half of a file was loaded: %s", s.log)
		}
	}
	if _, err := pieces.WriteString("token_cache: {max_bytes: 64MiB}\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the whole file is tried", func() bool { return len(s.refusals()) == refused+1 })
	if line := s.refusals()[refused]; !strings.Contains(line["problems"].(string), "token_cache: cannot change") {
		t.Errorf("the log says %v", line)
	}

	// A file that is not there changes nothing.
	if err := os.Remove(s.config); err != nil {
		t.Fatal(err)
	}
	if status, out := s.call("POST", "/reload", ""); status != 422 || !strings.Contains(out, "no such file") {
		t.Errorf("without a file: %d %s", status, out)
	}
	s.inForce("the file was removed", 3)
}

// TestFixedSettings cannot change while the gateway runs, and say so.
func TestFixedSettings(t *testing.T) {
	t.Parallel()
	s := newSteady(t)
	before, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ key, old, new string }{
		{"listen", "listen: 127.0.0.1:0", "listen: [127.0.0.1:0, 127.0.0.1:0]"},
		{"admin", "admin: 127.0.0.1:0", `admin: "localhost:0"`},
		{"health", "listen:", "health: 127.0.0.1:0\nlisten:"},
		{"state_dir", "listen:", "state_dir: elsewhere\nlisten:"},
		{"log.format", "listen:", "log: {format: text}\nlisten:"},
		{"limits.header_bytes", "listen:", "limits: {header_bytes: 16KiB}\nlisten:"},
		{"limits.header_timeout", "listen:", "limits: {header_timeout: 1s}\nlisten:"},
		{"limits.idle_timeout", "listen:", "limits: {idle_timeout: 1s}\nlisten:"},
		{"tracing", "listen:", "tracing: {otlp: \"http://127.0.0.1:4318\"}\nlisten:"},
		{"token_cache", "listen:", "token_cache: {max_bytes: 1MiB}\nlisten:"},
	} {
		s.put(strings.Replace(string(before), c.old, c.new, 1))
		if status, out := s.call("POST", "/reload", ""); status != 422 || !strings.Contains(out, c.key+": cannot change while the gateway runs") {
			t.Errorf("%s: %d %s", c.key, status, out)
		}
		s.inForce("a change of "+c.key, 1)
	}
	s.put(string(before) + "limits: {header_fields: 64}\n")
	if status, out := s.call("POST", "/reload", ""); status != 200 && s.generation() != 2 {
		t.Errorf("a setting that can change: %d %s", status, out)
	}
}
