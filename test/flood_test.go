package test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// floodVariable, in the environment, makes the test binary a flood; see flood.
const floodVariable = "DURWARD_TEST_FLOOD"

// flood is a process of its own: it sends forgeries, each with another signature,
// over so many connections until its input ends, and then says how many were refused
// for which reason. It signs nothing and parses little, so that what it costs the
// machine is next to nothing.
func flood() error {
	var job struct {
		Address, Input string // the signing input of the forgeries
		Signature      int    // its length in bytes
		Connections    int
	}
	if err := json.Unmarshal([]byte(os.Getenv(floodVariable)), &job); err != nil {
		return err
	}
	var over atomic.Bool
	var mu sync.Mutex
	reasons := map[string]int{}
	var connections sync.WaitGroup
	for range job.Connections {
		connections.Go(func() {
			conn, err := net.Dial("tcp", job.Address)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			defer conn.Close()
			in, seen := bufio.NewReader(conn), map[string]int{}
			signature := make([]byte, job.Signature)
			for !over.Load() {
				rand.Read(signature)
				fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer %s.%s\r\n\r\n", job.Input, b64(signature))
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					break
				}
				io.Copy(io.Discard, res.Body)
				seen[res.Header.Get("Durward-Reason")]++
			}
			mu.Lock()
			defer mu.Unlock()
			for reason, n := range seen {
				reasons[reason] += n
			}
		})
	}
	io.Copy(io.Discard, os.Stdin)
	over.Store(true)
	connections.Wait()
	return json.NewEncoder(os.Stdout).Encode(reasons)
}

// startFlood runs one with as little of the processors as they have to spare, so that
// what it costs those who make it does not look like what it costs the gateway. stop
// ends it.
func startFlood(t testing.TB, g *gateway, input string, signature, connections int) (stop func() (reasons map[string]int)) {
	t.Helper()
	job, err := json.Marshal(map[string]any{"Address": g.public[0], "Input": input, "Signature": signature, "Connections": connections})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(need(t, "nice", "apt-get install coreutils"), "-n", "19", self)
	cmd.Env = append(os.Environ(), floodVariable+"="+string(job))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() (reasons map[string]int) {
		t.Helper()
		stdin.Close()
		if err := cmd.Wait(); err != nil || errOut.Len() > 0 {
			t.Errorf("the flood: %v %s", err, errOut.String())
		}
		if err := json.Unmarshal(out.Bytes(), &reasons); err != nil {
			t.Errorf("the flood: %v: %s", err, out.String())
		}
		return reasons
	}
}

// lacked is for how long the threads of the gateway could have run and had no processor.
func (s *siege) lacked(t *testing.T) (all time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range threads {
		text, _ := os.ReadFile(path) // a thread may have ended
		var ran, waited time.Duration
		fmt.Sscan(string(text), &ran, &waited)
		all += waited
	}
	return all
}

// TestKnownTokensDuringFlood: a flood of forgeries leaves those alone whose tokens are
// known: their p99 should stay within five times of what it is at rest, on one
// processor as on several. The figures are printed; on a machine that others use they
// are theirs as well, so that only what is far off fails.
//
// It does not run beside other tests, which would share the machine with the flood.
func TestKnownTokensDuringFlood(t *testing.T) {
	for _, processors := range []string{"", "1"} {
		t.Run("GOMAXPROCS="+processors, func(t *testing.T) {
			t.Setenv("GOMAXPROCS", processors)
			s := newSiege(t, time.Minute, "")
			parts := strings.Split(s.idp.token(nil), ".")
			measure := func(lasting time.Duration) (took []time.Duration) {
				for began := time.Now(); time.Since(began) < lasting; time.Sleep(time.Millisecond) {
					took = append(took, s.ask(t))
				}
				return took
			}
			rest := measure(2 * time.Second)
			refused := func() float64 { return s.refusedFor(t, "token_signature") + s.refusedFor(t, "overloaded") }
			stop := startFlood(t, s.gateway, parts[0]+"."+parts[1], 64, 64)
			eventually(t, 10*time.Second, "the flood runs", func() bool { return refused() > 100 })
			began, before, lacked := time.Now(), refused(), s.lacked(t)
			busy := measure(3 * time.Second)
			lasted := time.Since(began)
			rate, share := (refused()-before)/lasted.Seconds(), float64(s.lacked(t)-lacked)/float64(lasted)
			reasons := stop()
			quiet, flooded := p99(rest), p99(busy)
			t.Logf("%.0f forgeries a second are refused: a known token takes %v (p50), %v (p99) at rest, %v and %v during the flood: %.1f times the p99; on average %.1f threads of the gateway waited for a processor",
				rate, rest[len(rest)/2], quiet, busy[len(busy)/2], flooded, float64(flooded)/float64(quiet), share)
			if flooded > max(10*quiet, 500*time.Millisecond) {
				t.Errorf("p99 of a known token: %v at rest, %v during the flood", quiet, flooded)
			}
			for reason := range reasons {
				if reason != "token_signature" && reason != "overloaded" {
					t.Errorf("forgeries were answered: %v", reasons)
				}
			}
		})
	}
}
