package test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A directory is a feed as files: whoever writes one needs nothing but a web server.
type directory struct {
	t       testing.TB
	root    string
	mu      sync.Mutex // the writer beats while records are added
	records []string
}

// A directoryHead is revlog/v1/head.
type directoryHead struct {
	Places     []map[string]any `json:"places"`
	Heartbeats []string         `json:"heartbeats"`
	Segments   []map[string]any `json:"segments"`
}

// newDirectory writes a feed of one record that says nothing, and gives signs of
// life until the test ends.
func newDirectory(t testing.TB) *directory {
	t.Helper()
	d := &directory{t: t, root: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(d.root, "revlog/v1"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.add()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				d.mu.Lock()
				d.write()
				d.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
	})
	return d
}

// add appends a record with these operations.
func (d *directory) add(ops ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records = append(d.records, fmt.Sprintf(`{"src":"writer","e":1,"n":%d,"p":%q,"t":%d,"ops":[%s]}`,
		len(d.records)+1, d.hash(), time.Now().UnixMilli(), strings.Join(ops, ",")))
	d.write()
}

// hash is that of the last record.
func (d *directory) hash() string {
	if len(d.records) == 0 {
		return strings.Repeat("0", 32)
	}
	sum := sha256.Sum256([]byte(d.records[len(d.records)-1]))
	return hex.EncodeToString(sum[:16])
}

// write writes what is there: a segment for each record, and then the head.
func (d *directory) write() {
	n := len(d.records)
	head := directoryHead{
		Places:     []map[string]any{{"src": "writer", "e": 1, "n": n, "p": d.hash()}},
		Heartbeats: []string{fmt.Sprintf(`{"src":"writer","e":1,"n":%d,"p":%q,"t":%d}`, n, d.hash(), time.Now().UnixMilli())},
	}
	for i, record := range d.records {
		name := fmt.Sprintf("%d.rvl", i+1)
		d.put(name, record+"\n")
		head.Segments = append(head.Segments, map[string]any{"url": name, "src": "writer", "e": 1, "first": i + 1, "last": i + 1})
	}
	text, err := json.Marshal(head)
	if err != nil {
		d.t.Fatal(err)
	}
	d.put("head", string(text))
}

func (d *directory) put(name, text string) {
	path := filepath.Join(d.root, "revlog/v1", name)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		d.t.Error(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		d.t.Error(err)
	}
}

// TestFleetDirectory follows a directory of files on a plain web server. A record
// revokes in a way that this version does not know: of that issuer nobody is let in
// any more, and the other's users notice nothing.
func TestFleetDirectory(t *testing.T) {
	t.Parallel()
	t.Run("FileServer", func(t *testing.T) {
		t.Parallel()
		d := newDirectory(t)
		server := httptest.NewServer(http.FileServer(http.Dir(d.root)))
		t.Cleanup(server.Close)
		d.drill(server.URL)
	})
	t.Run("nginx", func(t *testing.T) {
		t.Parallel()
		program := need(t, "nginx", "apt-get install nginx-light")
		d := newDirectory(t)
		address, run := freePort(t), t.TempDir()
		config := filepath.Join(run, "nginx.conf")
		text := fmt.Sprintf("daemon off; user root root; pid %[1]s/pid; error_log stderr;\nevents {}\nhttp { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; server { listen %[2]s; root %[3]s; } }\n", run, address, d.root)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "-e", "stderr", "-p", run, "-c", config)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Signal(os.Interrupt)
			cmd.Wait()
		})
		d.drill("http://" + address)
	})
}

func (d *directory) drill(address string) {
	t := d.t
	idp, other, app := newIssuer(t), newIssuer(t), newUpstream(t)
	g := startGateway(t, fmt.Sprintf(`
listen: %q
issuers: [{name: corp, issuer: %q, audiences: [app]}, {name: other, issuer: %q, audiences: [app]}]
routes: [{name: app, upstream: %q, issuers: [corp, other]}]
denylist: {lease: 4s, feeds: [{name: files, http: {urls: [%q]}}]}
`, freePort(t), idp.URL, other.URL, app.URL, address))
	g.waitReady()
	revoked, good, theirs := idp.bearer(), idp.bearer(), other.bearer()
	g.says(good, "/", 200, "")
	line := func(i *issuer, more string) string { return fmt.Sprintf(`{"iss":%q,%s}`, i.URL, more) }

	d.add(line(idp, fmt.Sprintf(`"jti":%q`, revoked.jti)))
	added := time.Now()
	refusedAt(t, revoked.text, g)
	t.Logf("enforced %v after it was written", time.Since(added))
	g.says(good, "/", 200, "")

	// A later version's way to revoke, and beside it one that is known.
	known := other.bearer()
	d.add(line(idp, `"device":"d-17","before":1790000000`), line(other, fmt.Sprintf(`"jti":%q`, known.jti)))
	g.answers(5*time.Second, good, "/", 503, "denylist_stale")
	g.says(revoked, "/", 401, "revoked")
	g.says(theirs, "/", 200, "")
	g.says(known, "/", 401, "revoked") // its neighbour is enforced
	if text := send(t, "GET", g.admin+"/status", "").Body; !strings.Contains(text, `"issuers_not_vouched_for"`) {
		t.Errorf("/status does not say that the issuer is not vouched for: %s", text)
	}
	// A restart forgets nothing of it.
	g.stop()
	g.start()
	g.answers(10*time.Second, theirs, "/", 200, "")
	g.says(good, "/", 503, "denylist_stale")
	g.says(known, "/", 401, "revoked")
}
