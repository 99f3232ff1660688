package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// demoFiles are the configuration, the login page, and the application's pages.
//
//go:embed demo
var demoFiles embed.FS

// A demoPlan is who listens where; demo/durward.yaml is filled in from it.
type demoPlan struct {
	Listen, Admin string // host:port of the gateway
	Public        string // URL of the gateway, as the browser has it
	Issuer, App   string // URLs of what stands behind it
}

// demo runs a whole system in one process:
//
//	browser ──► gateway ─┬─► issuer   login page and signing key (demo_issuer.go)
//	               ▲     └─► app      the old application (demo_app.go)
//	               └─ POST /revocations ┘
//
// The gateway is the one that serve runs, with nothing but a configuration file
// that makes it the demo's.
func (c *command) demo(ctx context.Context) (err error) {
	listen := c.flags.String("listen", "127.0.0.1:8080", "the gateway's `address`, on loopback; if the port is taken (or 0), a free one is used")
	keep := c.flags.String("keep", "", "write configuration and state into this `directory` and leave them there; default: a temporary one")
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(*listen)
	if host := at.Addr().String(); err != nil || host != "127.0.0.1" && host != "::1" {
		return usageError{fmt.Errorf("-listen %q is not 127.0.0.1 or [::1] and a port, such as 127.0.0.1:8080; the demo gives a token to whoever asks", *listen)}
	}
	operators := "127.0.0.1:9901"
	if at.Port() == 0 {
		operators = "127.0.0.1:0"
	}
	dir := *keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "durward-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var plan demoPlan
	if plan.Listen, err = c.demoAddress(*listen); err != nil {
		return err
	}
	if plan.Admin, err = c.demoAddress(operators); err != nil {
		return err
	}
	// By this name, as browsers take Secure cookies without TLS from localhost alone.
	plan.Public = fmt.Sprintf("http://localhost:%d", netip.MustParseAddrPort(plan.Listen).Port())
	issuerL, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer issuerL.Close()
	appL, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer appL.Close()
	plan.Issuer, plan.App = "http://"+issuerL.Addr().String(), "http://"+appL.Addr().String()

	config := filepath.Join(dir, "durward.yaml")
	if err := plan.write(config); err != nil {
		return err
	}
	issuer, err := newDemoIssuer(plan.Issuer)
	if err != nil {
		return err
	}
	app := &demoApp{admin: "http://" + plan.Admin, tokenFile: filepath.Join(dir, "state", "admin.token")}
	defer serveBehind(issuerL, issuer.handler())()
	defer serveBehind(appL, app.handler())()
	started := func(addresses) { c.demoWelcome(plan, config, *keep != "") }
	return serve(ctx, config, eachLine{demoLog{c.stderr}}, started)
}

// demoAddress is the address if it can be had, else one with a free port. It is
// closed again, as it has to stand in the configuration before the gateway
// listens; should somebody take it in between, serve says so and ends.
func (c *command) demoAddress(address string) (string, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		host, _, _ := net.SplitHostPort(address)
		if l, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err == nil {
			fmt.Fprintf(c.stderr, "%s is taken; using %s\n", address, l.Addr())
		}
	}
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// write makes the configuration file. One that is there already may have been
// edited, and is not overwritten.
func (p demoPlan) write(path string) error {
	t, err := template.ParseFS(demoFiles, "demo/durward.yaml")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is already there and may hold your edits; remove it or keep this demo elsewhere", path)
	}
	if err != nil {
		return err
	}
	return errors.Join(t.Execute(f, p), f.Close())
}

// serveBehind serves until the returned function is called, which waits for the end.
func serveBehind(l net.Listener, h http.Handler) (end func()) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	return func() {
		server.Close()
		<-done
	}
}

// demoWelcome says what to open and what to try. It speaks on stdout alone, so
// that what happens (stderr) can be had apart.
func (c *command) demoWelcome(p demoPlan, config string, kept bool) {
	program := os.Args[0]
	if strings.Contains(program, "go-build") { // go run made it, and removes it
		program = "go run ./cmd/durward"
	}
	fate := "removed at the end; -keep DIR leaves it"
	if kept {
		fate = "stays there"
	}
	fmt.Fprintf(c.stdout, `
Open   %[1]s

or, in another terminal, with a token in place of the browser's cookie:

  token=$(curl -s '%[1]s/login/token?user=alice')      # or bob, or carol
  curl -i -H "Authorization: Bearer $token" %[1]s/api/orders
  curl -i -H "Authorization: Bearer $token" -X POST %[1]s/api/orders
  curl -i %[1]s/api/orders

Why was that?  What would be if?

  %[2]s explain -config %[3]s \
    -claims '{"sub":"alice","scope":"orders:read"}' POST %[1]s/api/orders

End every session of alice, then try her token again:

  %[2]s revoke -config %[3]s -sub alice

Operators: http://%[4]s/status, /readyz, /metrics
The configuration (%[5]s): edit it, it is taken at once.
Ctrl-C ends the demo. Each request follows as a line:

`, p.Public, program, config, p.Admin, fate)
}

// A demoLog shortens the gateway's JSON log for a terminal: a line per request,
// revocation and reload, and whatever else is a warning.
type demoLog struct{ w io.Writer }

// Write takes one line of log, as slog writes it.
func (d demoLog) Write(line []byte) (int, error) {
	var entry struct {
		Level, Msg, Kind         string
		Problems, Warning, Error string
		Decision                 struct {
			Method, Path, Subject, Reason, Detail string
			Status                                int
		}
	}
	if err := json.Unmarshal(line, &entry); err != nil {
		return d.w.Write(line)
	}
	request := entry.Decision
	var err error
	switch {
	case entry.Msg == "request":
		if request.Subject == "" {
			request.Subject = "-"
		}
		text := fmt.Sprintf("%-6s %-7s %-24s %d %s", request.Subject, request.Method, request.Path, request.Status, request.Reason)
		if request.Detail != "" {
			text += ": " + request.Detail
		}
		_, err = fmt.Fprintln(d.w, text)
	case entry.Msg == "revoked":
		_, err = fmt.Fprintf(d.w, "revoked by its %s\n", entry.Kind)
	case entry.Level != "INFO" || strings.Contains(entry.Msg, "reloaded"):
		_, err = fmt.Fprintln(d.w, strings.TrimRight(entry.Msg+"\n"+entry.Problems+entry.Warning+entry.Error, "\n"))
	}
	return len(line), err
}
