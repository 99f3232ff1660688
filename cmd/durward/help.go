package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"durward/decision"
)

// help prints the usage, the flags of a command, or a topic.
func (c *command) help(ctx context.Context) error {
	if err := c.flags.Parse(c.args); err != nil {
		return usageError{}
	}
	switch c.flags.NArg() {
	case 0:
		_, err := io.WriteString(c.stdout, usage)
		return err
	case 1:
	default:
		return usageError{fmt.Errorf("takes one command or topic, not %d", c.flags.NArg())}
	}
	name := c.flags.Arg(0)
	if name != "help" && slices.Contains(commands(), name) {
		of := false // the line, or one that it goes on in
		for line := range strings.Lines(usage) {
			if !strings.HasPrefix(line, "      ") {
				of = strings.HasPrefix(line, "  durward "+name+" ") || line == "  durward "+name+"\n" || strings.HasPrefix(line, name+" ")
			}
			if of {
				io.WriteString(c.stdout, strings.TrimPrefix(line, "  "))
			}
		}
		flags := c.flagsOf(ctx, name)
		flags.SetOutput(c.stdout)
		flags.PrintDefaults()
		return nil
	}
	text := topic(name)
	if text == "" {
		known := slices.Concat(commands(), topics())
		err := fmt.Errorf("%q is neither a command nor a topic; there are the topics %s", name, strings.Join(topics(), ", "))
		if near := nearest(name, known); near != "" {
			err = fmt.Errorf("%q is neither a command nor a topic; did you mean %q?", name, near)
		}
		return usageError{err}
	}
	_, err := io.WriteString(c.stdout, text)
	return err
}

// flagsOf are the flags that a command defines, for feed those of all its parts.
func (c *command) flagsOf(ctx context.Context, name string) *flag.FlagSet {
	all := flag.NewFlagSet(name, flag.ContinueOnError)
	ask := func(args ...string) {
		sub := newCommand(name, append(args, "-h"), io.Discard, io.Discard)
		sub.dispatch(ctx)
		sub.flags.VisitAll(func(f *flag.Flag) {
			if all.Lookup(f.Name) == nil {
				all.Var(f.Value, f.Name, f.Usage)
			}
		})
	}
	switch name {
	case "help":
	case "feed":
		for _, part := range words(name) {
			ask(part)
		}
	default:
		ask()
	}
	return all
}

func topics() []string {
	return []string{"config", "environment", "exit-codes", "reasons", "revocation"}
}

// topic is the text of help, "" for none.
func topic(name string) string {
	switch name {
	case "config":
		return `The configuration is one YAML file; config.example.yaml in the source shows every option with its meaning and
default. durward check -config FILE tells everything that is wrong with one, and what may surprise.

  listen: 127.0.0.1:8080
  issuers:
    - name: corp
      issuer: https://idp.example.com/realms/corp   # compared byte for byte with iss; keys are discovered from it
      audiences: [intranet]                         # aud must contain one of them
  routes:
    - name: assets
      path: /static/
      upstream: http://127.0.0.1:3000
      auth: none
    - name: app
      upstream: http://127.0.0.1:3000
      allow:                                        # any one is enough; inside one everything must hold
        - {methods: [GET], scopes: [read]}
        - {scopes: [write]}

A change of the file takes effect by itself, by SIGHUP or by POST /reload. A broken file changes nothing.

The keys at the top; durward schema has all of them, for editors:

` + optionsHelp()
	case "environment":
		return `DURWARD_CONFIG    the configuration file, where -config does not say
STATE_DIRECTORY   where state is kept, where state_dir does not say (systemd sets it)
NO_COLOR          explain prints no colours on a terminal; nor does it where TERM is dumb
`
	case "exit-codes":
		return `0   done. For explain: the decision was told, whatever it is. For check: nothing refuses the configuration
1   a problem, said on standard error: the configuration is refused, a file cannot be read, the gateway does
    not answer or does not take what it was told; for health: not alive, or not ready
2   a wrong command line
`
	case "revocation":
		return `durward revoke ends what it names at the running gateway, and with forward_revocations at the whole fleet:

  durward revoke -jti ID                    one token
  durward revoke -sid ID                    one session
  durward revoke -sub NAME                  all tokens of a user that were issued until now
  durward revoke -client ID                 all tokens of an OAuth client that were issued until now
  durward revoke -iss ISSUER -all           all tokens of an issuer that were issued until now

-wait answers once every gateway of the fleet has confirmed that it enforces it, or says who did not.
-before says until when they were issued, -exp how long to remember at least, -iss whose they are where several
issuers are configured. Once the command says revoked, no later request with such a token passes, open streams are
cut, and a restart does not change that. "scope: fleet" says that a hub took it, "scope: local" that it holds here.

Whether something is revoked: GET /revocations/check?iss=…&jti=… of the operators' interface; why a request is
refused: durward explain -admin -token-file FILE METHOD URL.
`
	case "reasons":
		var b strings.Builder
		table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprint(table, "REASON\tSTATUS\tWHEN\n")
		for _, r := range decision.Reasons() {
			when, _ := about(r)
			status := "-"
			if r.Status() != 0 {
				status = fmt.Sprint(r.Status())
			}
			fmt.Fprintf(table, "%s\t%s\t%s\n", r, status, when)
		}
		table.Flush()
		b.WriteString("\nWhat to do about one: durward explain tells it for a request.\n")
		return b.String()
	}
	return ""
}

// completion prints a script that makes a shell complete commands and flags.
func (c *command) completion(ctx context.Context) error {
	if err := c.parse(1, "bash, zsh or fish"); err != nil {
		return err
	}
	var b strings.Builder
	switch shell := c.flags.Arg(0); shell {
	case "bash":
		c.completeBash(ctx, &b)
	case "zsh":
		c.completeZsh(ctx, &b)
	case "fish":
		c.completeFish(ctx, &b)
	default:
		return usageError{fmt.Errorf("%q is no shell that is known here; write bash, zsh or fish", shell)}
	}
	_, err := io.WriteString(c.stdout, b.String())
	return err
}

// words are what may follow a command that is not a flag.
func words(command string) []string {
	switch command {
	case "help":
		return slices.Concat(commands(), topics())
	case "completion":
		return []string{"bash", "zsh", "fish"}
	case "feed":
		return []string{"init", "release"}
	}
	return nil
}

func (c *command) completeBash(ctx context.Context, b *strings.Builder) {
	fmt.Fprintf(b, `# durward completion bash; source it, or put it into /etc/bash_completion.d/
_durward() {
	local words
	if [ "$COMP_CWORD" -eq 1 ]; then
		words="%s"
	else
		case "${COMP_WORDS[1]}" in
`, strings.Join(commands(), " "))
	for _, name := range commands() {
		list := words(name)
		c.flagsOf(ctx, name).VisitAll(func(f *flag.Flag) { list = append(list, "-"+f.Name) })
		fmt.Fprintf(b, "\t\t%s) words=%q ;;\n", name, strings.Join(list, " "))
	}
	b.WriteString(`		esac
	fi
	COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _durward durward
`)
}

// does is the line of the usage text about a command.
func does(command string) string {
	for line := range strings.Lines(usage) {
		if name, text, ok := strings.Cut(line, " "); ok && name == command {
			return strings.TrimSpace(text)
		}
	}
	return ""
}

func (c *command) completeZsh(ctx context.Context, b *strings.Builder) {
	b.WriteString("#compdef durward\n# durward completion zsh; put it into a directory of $fpath as _durward\n_durward() {\n\tlocal -a commands=(\n")
	quote := strings.NewReplacer("'", `'\''`, ":", `\:`, "[", `\[`, "]", `\]`)
	for _, name := range commands() {
		fmt.Fprintf(b, "\t\t'%s:%s'\n", name, quote.Replace(does(name)))
	}
	b.WriteString("\t)\n\tif (( CURRENT == 2 )); then\n\t\t_describe command commands\n\t\treturn\n\tfi\n\tlocal command=$words[2]\n\tshift words\n\t(( CURRENT-- ))\n\tcase $command in\n")
	for _, name := range commands() {
		fmt.Fprintf(b, "\t\t%s) _arguments", name)
		c.flagsOf(ctx, name).VisitAll(func(f *flag.Flag) {
			value, help := flag.UnquoteUsage(f)
			fmt.Fprintf(b, " '-%s[%s]", f.Name, quote.Replace(help))
			if !isBool(f) {
				fmt.Fprintf(b, ":%s:_files", quote.Replace(value))
			}
			b.WriteString("'")
		})
		if list := words(name); list != nil {
			fmt.Fprintf(b, " '1:word:(%s)'", strings.Join(list, " "))
		}
		b.WriteString(" '*:file:_files' ;;\n")
	}
	b.WriteString("\tesac\n}\n_durward \"$@\"\n")
}

func (c *command) completeFish(ctx context.Context, b *strings.Builder) {
	b.WriteString("# durward completion fish; put it into ~/.config/fish/completions/durward.fish\n")
	quote := strings.NewReplacer(`\`, `\\`, "'", `\'`)
	for _, name := range commands() {
		fmt.Fprintf(b, "complete -c durward -n __fish_use_subcommand -f -a %s -d '%s'\n", name, quote.Replace(does(name)))
	}
	for _, name := range commands() {
		for _, word := range words(name) {
			fmt.Fprintf(b, "complete -c durward -n '__fish_seen_subcommand_from %s' -f -a %s\n", name, word)
		}
		c.flagsOf(ctx, name).VisitAll(func(f *flag.Flag) {
			_, help := flag.UnquoteUsage(f)
			required := " -r"
			if isBool(f) {
				required = ""
			}
			fmt.Fprintf(b, "complete -c durward -n '__fish_seen_subcommand_from %s' -o %s%s -d '%s'\n", name, f.Name, required, quote.Replace(help))
		})
	}
}

// isBool is whether a flag may stand without a value.
func isBool(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}
