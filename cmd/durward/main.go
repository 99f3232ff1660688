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
  durward revoke  [-config durward.yaml] [-iss ISSUER] (-jti ID | -sid ID | -sub NAME | -client ID | -all)
                  [-before TIME] [-exp TIME] [-wait [-timeout 2s]]
  durward feed init [-config durward.yaml] [-replicas 1] [-max-age 72h] [-max-bytes 1073741824]
  durward feed release [-config durward.yaml] -key NAME [-drop]
  durward health  [-config durward.yaml] [-ready] [-address HOST:PORT]
  durward demo    [-listen 127.0.0.1:8080] [-keep DIR]
  durward schema
  durward completion bash|zsh|fish
  durward help    [COMMAND | TOPIC]
  durward version

serve    runs the gateway
check    loads the configuration, runs its tests and prints every problem with its line
explain  prints the decision about a request, step by step; -admin asks the running gateway
revoke   ends a token, a session, or all of a subject, client or issuer, through the running gateway
feed     init makes what the configured NATS and Redis feeds need on their servers, and checks it;
         release decides, at the running gateway, about what a source revoked over its budget
health   asks the running gateway whether it is alive, or ready; for containers and scripts
demo     runs an issuer, an application and the gateway between them, on loopback
schema   prints the JSON Schema of the configuration, for editors
completion prints a script that completes commands and flags
help     says more about a command or a topic
version  prints version, revision and Go version

Flags may be written -flag or --flag; $DURWARD_CONFIG stands for -config. "durward COMMAND -h" lists a
command's flags; "durward help" has more on config, environment, exit-codes, reasons and revocation.
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
	name := args[0]
	switch name {
	case "-h", "-help", "--help":
		name = "help"
	case "-version", "--version":
		name = "version"
	}
	c := newCommand(name, args[1:], stdout, stderr)
	err := c.dispatch(ctx)
	var wrongUse usageError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &wrongUse):
		if wrongUse.error != nil {
			fmt.Fprintf(stderr, "durward %s: %v\n", name, wrongUse.error)
		}
		return 2
	case errors.Is(err, errUnknown):
		fmt.Fprintf(stderr, "durward: unknown command %q", name)
		if near := nearest(name, commands()); near != "" {
			fmt.Fprintf(stderr, "; did you mean %q?", near)
		}
		fmt.Fprintf(stderr, "\n\n%s", usage)
		return 2
	case errors.Is(err, errRefused):
		return 1
	}
	var wrong problems
	if errors.As(err, &wrong) {
		fmt.Fprintln(stderr, wrong.Error())
		return 1
	}
	fmt.Fprintf(stderr, "durward %s: %v\n", name, err)
	return 1
}

// errUnknown is a command that there is not.
var errUnknown = errors.New("unknown command")

// commands are all there are, as the usage text lists them.
func commands() []string {
	return []string{"serve", "check", "explain", "revoke", "feed", "health", "demo", "schema", "completion", "help", "version"}
}

func newCommand(name string, args []string, stdout, stderr io.Writer) *command {
	c := &command{name: name, flags: flag.NewFlagSet("durward "+name, flag.ContinueOnError), args: args, stdout: stdout, stderr: stderr}
	c.flags.SetOutput(stderr)
	c.flags.Usage = func() {
		fmt.Fprint(stderr, usage, "\nFlags of ", name, ":\n")
		c.flags.PrintDefaults()
	}
	return c
}

// dispatch runs the command. Each defines its flags first and then reads them, so
// that -h tells them and does nothing else.
func (c *command) dispatch(ctx context.Context) error {
	switch c.name {
	case "serve":
		return c.serve(ctx)
	case "check":
		return c.check()
	case "explain":
		return c.explain(ctx)
	case "revoke":
		return c.revoke(ctx)
	case "feed":
		return c.feed(ctx)
	case "health":
		return c.health(ctx)
	case "demo":
		return c.demo(ctx)
	case "schema":
		return c.schema()
	case "completion":
		return c.completion(ctx)
	case "help":
		return c.help(ctx)
	case "version":
		return c.version()
	}
	return errUnknown
}

// A usageError is a wrong command line; nil inside means that it was said already.
type usageError struct{ error }

// A command is one invocation of a subcommand.
type command struct {
	name           string
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
	file := "durward.yaml"
	if named := os.Getenv("DURWARD_CONFIG"); named != "" {
		file = named
	}
	return c.flags.String("config", file, "the configuration `file`; default: $DURWARD_CONFIG, else durward.yaml")
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
