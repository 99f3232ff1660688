package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the files that tests compare with anew")

// golden compares with a file of testdata.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s\ngot:\n%s\nwant:\n%s(if that is meant: go test ./cmd/durward -update)", path, got, want)
	}
}

// ran is what a command printed, standard output first.
func ran(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = run(t.Context(), args, &out, &errOut)
	return status, out.String(), errOut.String()
}

// TestCheck gives broken configurations to check, each with what it must say
// beside it: every message names a line and what to do.
func TestCheck(t *testing.T) {
	t.Chdir("testdata/check")
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) < 11 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(file, ".yaml")
		status, out, errOut := ran(t, "check", "-config", file)
		golden(t, name+".txt", strings.ReplaceAll(errOut+out, dir, "DIR"))
		jsonStatus, out, errOut := ran(t, "check", "-config", file, "-format", "json")
		var report checkReport
		if err := json.Unmarshal([]byte(out), &report); err != nil || errOut != "" {
			t.Fatalf("%s: %v: %s%s", file, err, out, errOut)
		}
		wrong := 0
		for _, p := range report.Problems {
			if p.Severity == "error" {
				wrong++
			}
			if p.Line == 0 || p.File == "" {
				t.Errorf("%s: no line: %s", file, p.Message)
			}
			if p.Remedy == "" && p.Diff == "" {
				t.Errorf("%s: what is to be done? %s", file, p.Message)
			}
			if p.Diff != "" && !(strings.Contains(p.Diff, "\n  - want") && strings.Contains(p.Diff, "\n  + got")) {
				t.Errorf("%s: no difference: %s", file, p.Diff)
			}
		}
		if want := map[bool]int{true: 0, false: 1}[report.Good]; report.Good != (wrong == 0) || status != want || jsonStatus != want {
			t.Errorf("%s: good %v with %d errors, exit status %d and %d", file, report.Good, wrong, status, jsonStatus)
		}
	}
	if status, out, errOut := ran(t, "check", "-config", "lint.yaml", "-format", "json"); status != 0 {
		t.Errorf("exit status %d: %s%s", status, out, errOut)
	} else {
		golden(t, "lint.json", out)
	}
	for _, file := range []string{"failing-tests", "lint"} {
		if _, out, errOut := ran(t, "check", "-config", file+".yaml", "-format", "github"); errOut != "" {
			t.Errorf("%s: %s", file, errOut)
		} else {
			golden(t, file+".github", out)
		}
	}
	if status, out, errOut := ran(t, "check", "-config", "lint.yaml", "-format", "xml"); status != 2 || out != "" || !strings.Contains(errOut, "write text, json or github") {
		t.Errorf("an unknown format: exit status %d: %s%s", status, out, errOut)
	}
}
