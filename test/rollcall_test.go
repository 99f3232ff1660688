package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// enforced is what POST /revocations?wait=all answers.
type enforced struct {
	Gateways, Confirmed int
	Each                []struct {
		Name string
		MS   float64
	}
	Missing []struct {
		Name     string
		FencedBy time.Time `json:"fenced_by"`
		Problem  string
	}
	Problem string
}

func (g *gateway) revokesAndWaits(timeout time.Duration, b bearer) (status int, e enforced) {
	g.t.Helper()
	status, answer := g.call("POST", "/revocations?wait=all&timeout="+timeout.String(), linesOf([]bearer{b}))
	var said struct{ Enforced enforced }
	if err := json.Unmarshal([]byte(answer), &said); err != nil {
		g.t.Fatalf("%d %s", status, answer)
	}
	return status, said.Enforced
}

// Once wait=all is answered with 200, no gateway lets the token pass; one that is
// frozen is named, with a time from which it does not let anybody pass.
func TestWaitAll(t *testing.T) {
	engines(t, func(t *testing.T, e *engine) {
		n := 5
		if text := os.Getenv("DURWARD_GATEWAYS"); text != "" { // as many, with the reader
			if _, err := fmt.Sscan(text, &n); err != nil || n < 6 {
				t.Fatalf("DURWARD_GATEWAYS: %q is not a number from 6", text)
			}
			n--
		}
		f := startEngineFleet(t, e, n)
		reader := f.late()
		all := append(slices.Clone(f.gateways), reader)
		for i := range 20 {
			b := f.idp.bearer()
			status, said := f.gateways[i%n].revokesAndWaits(5*time.Second, b)
			if status != 200 || said.Gateways != n+1 || said.Confirmed != n+1 || len(said.Each) != n+1 || len(said.Missing) != 0 {
				t.Fatalf("%d %+v", status, said)
			}
			for _, g := range all {
				g.says(b, "/", 401, "revoked")
			}
			if i == 0 {
				t.Logf("%+v", said)
			}
		}
		// The command line tells the same.
		out := f.command("revoke", "-config", f.gateways[0].config, "-jti", "some", "-wait", "-timeout", "5s")
		if !strings.Contains(out, "enforced at gw-1 after ") || !strings.Contains(out, fmt.Sprintf("enforced at gw-%d after ", n+1)) {
			t.Errorf("durward revoke -wait: %s", out)
		}

		frozen, good := f.gateways[2], f.idp.bearer()
		frozen.cmd.Process.Signal(syscall.SIGSTOP)
		defer frozen.cmd.Process.Signal(syscall.SIGCONT)
		b := f.idp.bearer()
		status, said := f.gateways[0].revokesAndWaits(500*time.Millisecond, b)
		if status != 202 || said.Gateways != n+1 || said.Confirmed != n || len(said.Missing) != 1 || said.Missing[0].Name != "gw-3" {
			t.Fatalf("%d %+v", status, said)
		}
		fenced := said.Missing[0].FencedBy
		if ahead := time.Until(fenced); ahead <= 0 || ahead > fleetLease+4*time.Second {
			t.Errorf("fenced in %v", ahead)
		}
		t.Logf("one frozen: %+v", said)
		eventually(t, 10*time.Second, "the time by which it is fenced", func() bool { return time.Now().After(fenced) })
		// It wakes up, and what it says first is that it does not know.
		answers := make(chan string, 200)
		for _, asked := range []bearer{good, b} {
			for range 20 {
				go func() {
					status, reason := frozen.status(asked.text, "/")
					answers <- fmt.Sprint(asked.jti == b.jti, status, reason)
				}()
			}
		}
		frozen.cmd.Process.Signal(syscall.SIGCONT)
		for range 40 {
			switch said := <-answers; said {
			case "false 503denylist_stale", "false 200", "true 503denylist_stale", "true 401revoked":
			default:
				t.Errorf("just woken up: %s", said)
			}
		}
		frozen.answers(10*time.Second, good, "/", 200, "")
		frozen.says(b, "/", 401, "revoked")
		if status, said := f.gateways[1].revokesAndWaits(5*time.Second, f.idp.bearer()); status != 200 || said.Confirmed != n+1 {
			t.Errorf("awake again: %d %+v", status, said)
		}
		// One that leaves is not waited for; one that is killed is, for a while.
		reader.stop()
		if status, said := f.gateways[1].revokesAndWaits(5*time.Second, f.idp.bearer()); status != 200 || said.Gateways != n {
			t.Errorf("one has left: %d %+v", status, said)
		}
		f.gateways[4].kill()
		if status, said := f.gateways[1].revokesAndWaits(time.Second, f.idp.bearer()); status != 202 || len(said.Missing) != 1 || said.Missing[0].Name != "gw-5" {
			t.Errorf("one was killed: %d %+v", status, said)
		}
		e.stop()
		if status, said := f.gateways[1].revokesAndWaits(time.Second, f.idp.bearer()); status != 202 || said.Problem == "" {
			t.Errorf("without an engine: %d %+v", status, said)
		}
		e.start()
	})
}

// wait=all where nobody could be asked revokes nothing, and says why.
func TestWaitAllRefused(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 0, "", "")
	b := f.idp.bearer()
	for _, c := range []struct {
		query string
		want  string
	}{
		{"wait=all", "none here has forward_revocations"},
		{"wait=some", "write wait=all"},
		{"wait=all&timeout=1", "must be a duration"},
		{"wait=all&timeout=-1s", "must be a duration"},
		{"wait=all&timeout=1h", "must be a duration"},
	} {
		status, answer := f.hub.call("POST", "/revocations?"+c.query, linesOf([]bearer{b}))
		if status != http.StatusBadRequest || !strings.Contains(answer, c.want) {
			t.Errorf("%s: %d %s", c.query, status, answer)
		}
	}
	f.hub.says(b, "/", 200, "")
	f.hub.revokes(b)
	f.hub.says(b, "/", 401, "revoked")
}

// Whoever follows a feed finds the canaries that those who write make, where it looks
// for all that is revoked, and says how long they took.
func TestCanary(t *testing.T) {
	sings := func(t *testing.T, feed string, gateways ...*gateway) {
		t.Helper()
		for _, g := range gateways {
			count := fmt.Sprintf("durward_denylist_canary_seconds_count{feed=%q} ", feed)
			eventually(t, 20*time.Second, "two canaries", func() bool {
				_, rest, found := strings.Cut(send(t, "GET", g.admin+"/metrics", "").Body, count)
				return found && !strings.HasPrefix(rest, "1\n")
			})
			if holes := send(t, "GET", g.admin+"/metrics", "").Body; !strings.Contains(holes, fmt.Sprintf("durward_denylist_feed_refused_total{feed=%q} 0", feed)) {
				t.Error("something was refused")
			}
		}
	}
	engines(t, func(t *testing.T, e *engine) {
		f := startEngineFleet(t, e, 2)
		sings(t, "bus", append(f.gateways, f.late())...)
	})
	t.Run("http", func(t *testing.T) {
		t.Parallel()
		f := startFleet(t, 2, "", "")
		sings(t, "hub", f.gateways...)
	})
}
