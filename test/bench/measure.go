//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// A rig holds what all candidates share.
type rig struct {
	rounds, connections, entries, routes int
	length                               time.Duration
	profile, against                     string

	dir      string // ends with the run
	self     string // this program
	upstream int    // port
	verify   time.Duration
	keys     keys
	cleanup  []func()
}

//go:embed c/upstream.c
var upstreamSource []byte

//go:embed c/load.c
var loadSource []byte

// prepare compiles the C programs and the gateway, and starts the upstream.
func (r *rig) prepare(ctx context.Context) (err error) {
	if r.dir, err = os.MkdirTemp("", "durward-bench-*"); err != nil {
		return err
	}
	r.cleanup = append(r.cleanup, func() { os.RemoveAll(r.dir) })
	if r.self, err = os.Executable(); err != nil {
		return err
	}
	for _, tool := range []string{"cc", "taskset", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is needed (apt-get install gcc util-linux)", tool)
		}
	}
	for name, source := range map[string][]byte{"upstream": upstreamSource, "load": loadSource} {
		file := filepath.Join(r.dir, name+".c")
		if err := os.WriteFile(file, source, 0o600); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, "cc", "-O2", "-o", filepath.Join(r.dir, name), file).CombinedOutput(); err != nil {
			return fmt.Errorf("cc: %w\n%s", err, out)
		}
	}
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(r.dir, "durward"), "durward/cmd/durward").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	if err := r.keys.make(filepath.Join(r.dir, "jwks.json"), filepath.Join(r.dir, "rsa.pem")); err != nil {
		return err
	}
	r.verify = r.keys.time()
	r.upstream = freePort()
	up := exec.CommandContext(ctx, "taskset", "-c", "1", filepath.Join(r.dir, "upstream"), strconv.Itoa(r.upstream))
	if err := up.Start(); err != nil {
		return err
	}
	r.cleanup = append(r.cleanup, func() { up.Process.Kill(); up.Wait() })
	return answers(r.upstream, "/", 5*time.Second)
}

func (r *rig) close() {
	for i := len(r.cleanup) - 1; i >= 0; i-- {
		r.cleanup[i]()
	}
}

func freePort() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // a machine without loopback
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// answers waits until whoever listens on the port answers a request with anything but
// 502 and 503.
func answers(port int, path string, patience time.Duration) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err == nil {
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			// A feed that took long to read the first time is ready, and for a moment stale.
			if res.StatusCode != http.StatusBadGateway && res.StatusCode != http.StatusServiceUnavailable && !bytes.Contains(body, []byte(`"stale"`)) {
				return nil
			}
			err = errors.New(res.Status)
		}
		if time.Since(began) > patience {
			return fmt.Errorf("nobody answers on port %d within %s: %w", port, patience, err)
		}
	}
}

// A server is a process that candidates are measured in.
type server struct {
	command func(port int) (*exec.Cmd, error)
	cpus    string // "0" if empty
	anew    bool   // started for each measurement

	admin int // port of the operators' interface, if it is a gateway
	port  int
	cmd   *exec.Cmd
	said  bytes.Buffer
	ready time.Duration // from the start to the first answer
	peak  int64         // bytes
}

func (s *server) start(ctx context.Context) error {
	if s.cmd != nil {
		return nil
	}
	s.port = freePort()
	cmd, err := s.command(s.port)
	if err != nil {
		return err
	}
	cpus := cmp.Or(s.cpus, "0")
	pinned := exec.CommandContext(ctx, "taskset", append([]string{"-c", cpus, cmd.Path}, cmd.Args[1:]...)...)
	pinned.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(len(strings.Split(cpus, ","))))
	if pinned.Stdout, pinned.Stderr = cmd.Stdout, cmd.Stderr; cmd.Stderr == nil {
		s.said.Reset()
		pinned.Stderr = &s.said
	}
	began := time.Now()
	if err := pinned.Start(); err != nil {
		return err
	}
	s.cmd = pinned
	port, path := s.port, "/"
	if s.admin != 0 {
		port, path = s.admin, "/readyz"
	}
	if err := answers(port, path, 2*time.Minute); err != nil {
		s.stop()
		return fmt.Errorf("%w\n%s", err, &s.said)
	}
	s.ready = time.Since(began)
	return nil
}

func (s *server) stop() {
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(5*time.Second, func() { s.cmd.Process.Kill() })
		s.cmd.Wait()
		timer.Stop()
		s.cmd = nil
	}
}

// cpuTime is what the process, all its threads together, has used so far.
func (s *server) cpuTime() time.Duration {
	var t syscall.Timespec
	clock := uintptr(^s.cmd.Process.Pid<<3 | 2) // of the process: CLOCK_PROCESS_CPUTIME_ID of clock_getcpuclockid(3)
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&t)), 0)
	return time.Duration(t.Nano())
}

// peakMemory is VmHWM of proc(5).
func (s *server) peakMemory() int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
	return kib << 10
}

// A candidate is a server and what it is asked for.
type candidate struct {
	name     string
	missing  string // why it cannot be measured
	server   *server
	requests [][]byte
	status   int
	body     int     // bytes; -1: any
	open     float64 // requests a second of an open loop; 0: a closed one
	once     bool    // each request once
	beside   [][]byte
	shared   bool // the CPU time is not that of these requests alone

	file, besideFile    string
	rate, cpu, p50, p99 []float64
}

// refused is for the load generator the status of a forgery: 401, or 503 where it was
// turned away unchecked.
const refused = 0

type outcome struct {
	Requests, Wrong, Broken, Opened int
	Seconds, P50, P99               float64
}

// load runs the load generator.
func (r *rig) load(ctx context.Context, port, connections int, length time.Duration, rate float64, status, body int, file string) (o outcome, err error) {
	cmd := exec.CommandContext(ctx, "taskset", "-c", "1", filepath.Join(r.dir, "load"), strconv.Itoa(port), strconv.Itoa(connections),
		fmt.Sprint(length.Seconds()), fmt.Sprint(rate), strconv.Itoa(status), strconv.Itoa(body), file)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &o)
	}
	if err == nil && (o.Wrong > 0 || o.Broken > 0 || o.Requests == 0) {
		err = fmt.Errorf("%d answers, %d of them wrong, %d broken", o.Requests, o.Wrong, o.Broken)
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, &said)
	}
	return o, err
}

// measure measures a candidate once.
func (r *rig) measure(ctx context.Context, c *candidate) error {
	first := c.file == ""
	if first {
		var err error
		if c.file, err = r.write(c.requests); err != nil {
			return err
		}
		if c.besideFile, err = r.write(c.beside); err != nil {
			return err
		}
	}
	if err := c.server.start(ctx); err != nil {
		return err
	}
	if first {
		r.cleanup = append(r.cleanup, c.server.stop)
	}
	length := r.length
	if c.once {
		length = 0
	} else {
		// Caches fill, connections open: every request at least once.
		warm := max(300*time.Millisecond, time.Duration(len(c.requests))*200*time.Microsecond)
		if !first {
			warm = 200 * time.Millisecond
		}
		if _, err := r.load(ctx, c.server.port, r.connections, warm, 0, c.status, c.body, c.file); err != nil {
			return err
		}
	}
	flood := make(chan error, 1)
	if c.beside != nil {
		go func() {
			_, err := r.load(ctx, c.server.port, r.connections, length+time.Second, 0, refused, -1, c.besideFile)
			flood <- err
		}()
		time.Sleep(500 * time.Millisecond) // both are under way when the measurement begins
	}
	before := c.server.cpuTime()
	o, err := r.load(ctx, c.server.port, r.connections, length, c.open, c.status, c.body, c.file)
	used := c.server.cpuTime() - before
	if c.beside != nil {
		if err := <-flood; err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, &c.server.said)
	}
	c.rate = append(c.rate, float64(o.Requests)/o.Seconds)
	c.cpu = append(c.cpu, used.Seconds()*1e6/float64(o.Requests))
	c.p50, c.p99 = append(c.p50, o.P50/1000), append(c.p99, o.P99/1000)
	c.server.peak = max(c.server.peak, c.server.peakMemory())
	if c.server.anew {
		c.server.stop()
	}
	return nil
}

// write writes requests as the load generator reads them.
func (r *rig) write(requests [][]byte) (string, error) {
	f, err := os.CreateTemp(r.dir, "requests-*")
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	for _, request := range requests {
		binary.Write(&b, binary.LittleEndian, uint32(len(request)))
		b.Write(request)
	}
	_, err = b.WriteTo(f)
	return f.Name(), errors.Join(err, f.Close())
}
