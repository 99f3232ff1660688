package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// bystanderVariable, in the environment, makes the test binary a bystander.
const bystanderVariable = "DURWARD_TEST_BYSTANDER"

// A bystander is a process of its own with a good application and somebody who uses
// it, while others attack the gateway from the test's process. What those cost the
// processors, and what Go's scheduler makes of them, should be theirs.
type bystander struct {
	t   *testing.T
	app string // address of the application
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// An errand is what a bystander is asked to do: so many requests, or, with none, as
// many as it can, a few milliseconds apart, until the next line comes.
type errand struct {
	URL, Token string
	Requests   int
}

// A tale is what it has to say then.
type tale struct {
	Took    []time.Duration
	Problem string
}

// bystand is the bystander's side.
func bystand() error {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "hello")
	}))
	defer app.Close()
	fmt.Println(app.URL)
	lines := make(chan string)
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
		close(lines)
	}()
	for line := range lines {
		var e errand
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			continue // the line that ends an errand
		}
		client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
		var told tale
		for over := false; !over && (e.Requests == 0 || len(told.Took) < e.Requests); {
			began := time.Now()
			if err := good(client, e); err != nil {
				told.Problem = err.Error()
			}
			told.Took = append(told.Took, time.Since(began))
			if e.Requests == 0 {
				select {
				case <-lines:
					over = true
				case <-time.After(2 * time.Millisecond):
				}
			}
		}
		client.CloseIdleConnections()
		if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
			return err
		}
	}
	return nil
}

// good makes a request that must be answered.
func good(client *http.Client, e errand) error {
	req, err := http.NewRequest("GET", e.URL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+e.Token)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if text, err := io.ReadAll(res.Body); res.StatusCode != 200 || string(text) != "hello" || err != nil {
		return fmt.Errorf("%s %q %q %v", res.Status, res.Header.Get("Durward-Reason"), text, err)
	}
	return nil
}

func newBystander(t *testing.T) *bystander {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := &bystander{t: t, cmd: exec.Command(self)}
	b.cmd.Env = append(os.Environ(), bystanderVariable+"=1")
	b.cmd.Stderr = os.Stderr
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	b.out = bufio.NewScanner(out)
	b.out.Buffer(nil, 16<<20)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.in.Close()
		b.cmd.Wait()
	})
	if !b.out.Scan() {
		t.Fatal("the bystander says nothing")
	}
	b.app = b.out.Text()
	return b
}

// begin sends it on an errand, and end is what came of it.
func (b *bystander) begin(e errand) {
	b.t.Helper()
	if err := json.NewEncoder(b.in).Encode(e); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bystander) end(e errand) []time.Duration {
	b.t.Helper()
	if e.Requests == 0 {
		io.WriteString(b.in, "enough\n")
	}
	if !b.out.Scan() {
		b.t.Fatal("the bystander has gone")
	}
	var told tale
	if err := json.Unmarshal(b.out.Bytes(), &told); err != nil {
		b.t.Fatal(err)
	}
	if told.Problem != "" {
		b.t.Errorf("a good request: %s", told.Problem)
	}
	return told.Took
}

// prefer has the system run a process before all those that have no such rank, as if
// it had its processors to itself: those who attack it share them here alone, and what
// waits for them to give one back says nothing about the gateway. It starves them where
// much else runs, so it is done only where DURWARD_ALONE says that nothing else does;
// without, what the requests of the bystander took says little.
func prefer(t *testing.T, pid, rank int) {
	if os.Getenv("DURWARD_ALONE") == "" {
		return
	}
	if out, err := exec.Command("chrt", "--all-tasks", "--rr", "--pid", strconv.Itoa(rank), strconv.Itoa(pid)).CombinedOutput(); err != nil {
		t.Fatalf("DURWARD_ALONE needs chrt and the right to use it: %v %s", err, out)
	}
}
