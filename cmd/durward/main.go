// Command durward is a reverse-proxy authentication gateway: it verifies the JWT
// of each request, asks a denylist that revocation feeds keep current, applies a
// policy per route, and forwards the request with identity headers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// version is stamped by the linker (-X main.version=…).
var version = "devel"

const usage = `Usage:
  durward serve   [-config durward.yaml]
  durward check   [-config durward.yaml]
  durward explain [-config durward.yaml] [-admin] [-token-file FILE | -claims JSON] [-header 'Name: value']... METHOD URL
  durward revoke  [-config durward.yaml] [-iss ISSUER] (-jti ID | -sid ID | -sub NAME | -client ID | -all) [-before TIME] [-exp TIME] [-wait [-timeout 2s]]
  durward feed init [-config durward.yaml] [-replicas 1] [-max-age 72h] [-max-bytes 1073741824]
  durward demo    [-listen 127.0.0.1:8080] [-keep DIR]
  durward version

serve    runs the gateway
check    loads the configuration, runs its tests and prints every problem with its line
explain  prints the decision about a request, step by step; -admin asks the running gateway
revoke   ends a token, a session, or all of a subject, client or issuer, through the running gateway
feed     init makes what the configured NATS and Redis feeds need on their servers, and checks it
demo     runs an issuer, an application and the gateway between them, on loopback

"durward COMMAND -h" lists a command's flags.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program without its process: it returns the exit status, 0 for
// success, 1 for a failure that was said on stderr, 2 for a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	flags := flag.NewFlagSet("durward "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage, "\nFlags of ", args[0], ":\n")
		flags.PrintDefaults()
	}
	c := command{flags: flags, args: args[1:], stdout: stdout, stderr: stderr}
	var err error
	switch args[0] {
	case "serve":
		err = c.serve(ctx)
	case "check":
		err = c.check()
	case "explain":
		err = c.explain(ctx)
	case "revoke":
		err = c.revoke(ctx)
	case "feed":
		err = c.feed(ctx)
	case "demo":
		err = c.demo(ctx)
	case "version":
		err = c.version()
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
	default:
		fmt.Fprintf(stderr, "durward: unknown command %q\n\n%s", args[0], usage)
		return 2
	}
	var wrongUse usageError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &wrongUse):
		if wrongUse.error != nil {
			fmt.Fprintf(stderr, "durward %s: %v\n", args[0], wrongUse.error)
		}
		return 2
	case errors.Is(err, errRefused):
		return 1
	}
	var wrong problems
	if errors.As(err, &wrong) {
		fmt.Fprintln(stderr, wrong.Error())
		return 1
	}
	fmt.Fprintf(stderr, "durward %s: %v\n", args[0], err)
	return 1
}

// A usageError is a wrong command line; nil inside means that it was said already.
type usageError struct{ error }

// A command is one invocation of a subcommand.
type command struct {
	flags          *flag.FlagSet
	args           []string
	stdout, stderr io.Writer
}

// parse reads the flags; want is how many arguments must be left.
func (c *command) parse(want int, names string) error {
	if err := c.flags.Parse(c.args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{}
	}
	if c.flags.NArg() != want {
		return usageError{fmt.Errorf("takes %d arguments after its flags (%s), not %d", want, names, c.flags.NArg())}
	}
	return nil
}

func (c *command) config() *string {
	return c.flags.String("config", "durward.yaml", "the configuration `file`")
}

func (c *command) serve(ctx context.Context) error {
	path := c.config()
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	return serve(ctx, *path, c.stderr, nil)
}

func (c *command) version() error {
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	revision := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = " " + s.Value
			}
		}
		revision += " " + info.GoVersion
	}
	_, err := fmt.Fprintf(c.stdout, "durward %s%s\n", version, revision)
	return err
}
