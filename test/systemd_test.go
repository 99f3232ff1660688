package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A manager listens on the gateway's address and hears how it is, as systemd does.
func TestSystemd(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	dir := t.TempDir()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	told := make(chan string, 100)
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := notify.Read(b)
			if err != nil {
				close(told)
				return
			}
			told <- string(b[:n])
		}
	}()
	hears := func(want string) {
		t.Helper()
		for deadline := time.After(10 * time.Second); ; {
			select {
			case state := <-told:
				if strings.HasPrefix(state, want) {
					return
				}
				t.Logf("%q comes before %q", state, want)
			case <-deadline:
				t.Fatalf("never said %q", want)
			}
		}
	}
	listen := func(address string) (*net.TCPListener, *os.File) {
		t.Helper()
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		return l.(*net.TCPListener), file
	}
	// start is the program with the socket as its first, as the manager would start it.
	config := filepath.Join(dir, "durward.yaml")
	start := func(address string, socket *os.File) (*exec.Cmd, *logBuffer) {
		t.Helper()
		text := fmt.Sprintf("listen: %q\nadmin: 127.0.0.1:0\nshutdown: {grace: 0s}\nissuers: [{name: corp, issuer: %q, audiences: [app]}]\nroutes: [{name: app, upstream: %q}]\n", address, idp.URL, app.URL)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		log := &logBuffer{}
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve -config "$1"`, binary, config)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
		cmd.ExtraFiles = []*os.File{socket}
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		return cmd, log
	}

	l, socket := listen("127.0.0.1:0")
	address := l.Addr().String()
	cmd, log := start(address, socket)
	hears("READY=1")
	ask := func() string {
		a, err := attempt("GET", "http://"+address+"/", "", "Authorization: Bearer "+idp.token(nil))
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		return fmt.Sprint(a.StatusCode, " ", a.reason())
	}
	eventually(t, 10*time.Second, "an answer through the socket that was handed over", func() bool { return ask() == "200 " })
	cmd.Process.Signal(syscall.SIGHUP)
	hears("RELOADING=1\nMONOTONIC_USEC=")
	hears("READY=1")
	cmd.Process.Signal(syscall.SIGTERM)
	hears("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v\n%s", err, log)
	}
	// The socket outlives it: who connects meanwhile is answered by the next one.
	answered := make(chan string)
	go func() { answered <- ask() }()
	cmd, log = start(address, socket)
	if answer := <-answered; answer != "200 " && answer != "503 keys_unavailable" { // the keys may still be on their way
		t.Errorf("%s for who connected between two runs", answer)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()

	// A socket that nobody would ever answer on is an error.
	other, otherSocket := listen("127.0.0.1:0")
	defer other.Close()
	cmd, log = start(freePort(t), otherSocket)
	if err := cmd.Wait(); err == nil || !strings.Contains(log.String(), other.Addr().String()+"; write the same under listen") {
		t.Errorf("a socket too many: %v\n%s", err, log)
	}
}

// The unit files are what systemd takes, and leave little within reach.
func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	analyze := need(t, "systemd-analyze", "apt-get install systemd")
	dir := t.TempDir()
	for _, name := range []string{"durward.service", "durward.socket"} {
		text, err := os.ReadFile("../deploy/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		// The program is not installed here.
		text = []byte(strings.ReplaceAll(string(text), "/usr/local/bin/durward ", binary+" "))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, "durward.service"), filepath.Join(dir, "durward.socket")).CombinedOutput()
	if err != nil || strings.Contains(string(out), "durward") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err = exec.Command(analyze, "security", "--offline=true", "--threshold=15", filepath.Join(dir, "durward.service")).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
}
