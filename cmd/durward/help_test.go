package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"durward/decision"
)

// TestHelp: every command and topic says something, and everything that can be
// refused has a remedy.
func TestHelp(t *testing.T) {
	for _, name := range append(commands(), topics()...) {
		if name == "help" {
			continue
		}
		status, out, errOut := ran(t, "help", name)
		if status != 0 || len(out) < 20 || errOut != "" {
			t.Errorf("help %s: exit status %d: %s%s", name, status, out, errOut)
		}
		for line := range strings.Lines(out) {
			if len(line) > 140 && name != "reasons" {
				t.Errorf("help %s: a line of %d characters: %s", name, len(line), line)
			}
		}
	}
	for _, name := range commands() {
		if !strings.Contains(usage, "\n  durward "+name) {
			t.Errorf("the usage text does not know %s", name)
		}
	}
	for _, reason := range decision.Reasons() {
		if when, remedy := about(reason); when == "" || remedy == "" || reason != decision.Internal && strings.HasPrefix(when, "a bug") {
			t.Errorf("%s: %q, %q", reason, when, remedy)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"help raesons", `did you mean "reasons"?`}, {"help nonsense", "there are the topics config, "}, {"help a b", "takes one command or topic"},
		{"srve", `unknown command "srve"; did you mean "serve"?`},
		{"completion tcsh", "write bash, zsh or fish"}, {"completion", "takes 1 arguments"},
	} {
		if status, out, errOut := ran(t, strings.Fields(c.args)...); status != 2 || out != "" || !strings.Contains(errOut, c.want) {
			t.Errorf("%s: exit status %d: %s%s", c.args, status, out, errOut)
		}
	}
}

// TestReadmeReasons: the README's table says of each reason what help and explain say.
func TestReadmeReasons(t *testing.T) {
	const path, head = "../../README.md", "| reason | status | when | what to do |\n|---|---|---|---|\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), head)
	_, after, ended := strings.Cut(rest, "\n\n")
	if !found || !ended {
		t.Fatalf("%s has no table of reasons", path)
	}
	var table strings.Builder
	for _, r := range decision.Reasons() {
		when, remedy := about(r)
		status := "the application's"
		switch {
		case r == decision.TooLarge:
			status = "413, 431"
		case r.Status() != 0:
			status = fmt.Sprint(r.Status())
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", r, status, when, remedy)
	}
	golden(t, path, before+head+table.String()+"\n"+after)
}

// TestCompletion: each shell's script knows each command's flags, and each shell
// that is installed reads it.
func TestCompletion(t *testing.T) {
	for shell, dash := range map[string]string{"bash": "-", "zsh": "'-", "fish": "-o "} {
		status, script, errOut := ran(t, "completion", shell)
		if status != 0 || errOut != "" {
			t.Fatalf("%s: exit status %d: %s", shell, status, errOut)
		}
		for _, name := range commands() {
			c := newCommand("completion", nil, io.Discard, io.Discard)
			flags := 0
			c.flagsOf(t.Context(), name).VisitAll(func(f *flag.Flag) {
				flags++
				if !strings.Contains(script, dash+f.Name) {
					t.Errorf("%s does not complete -%s of %s", shell, f.Name, name)
				}
			})
			if needs := map[string]int{"serve": 1, "check": 2, "explain": 6, "revoke": 9, "feed": 6, "health": 3, "demo": 2}[name]; flags < needs {
				t.Errorf("%s: %d flags, want %d or more", name, flags, needs)
			}
		}
		path, err := exec.LookPath(shell)
		if err != nil && os.Getenv("DURWARD_TEST_REQUIRE") == "all" {
			t.Errorf("%s is missing; install it with: apt-get install %[1]s", shell)
		}
		if err == nil {
			cmd := exec.Command(path, "-n")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", shell, err, out)
			}
		}
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		return
	}
	_, script, _ := ran(t, "completion", "bash")
	for _, c := range []struct{ words, want string }{
		{"durward ex", "explain"}, {"durward check -for", "-format"}, {"durward help reas", "reasons"}, {"durward serve -x", ""},
	} {
		words := strings.Fields(c.words)
		out, err := exec.Command(bash, "-c", script+"\nCOMP_WORDS=("+c.words+"); COMP_CWORD="+string(rune('0'+len(words)-1))+"; _durward; echo \"${COMPREPLY[*]}\"").Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != c.want {
			t.Errorf("%s completes to %q, want %q (%v)", c.words, got, c.want, err)
		}
	}
}
