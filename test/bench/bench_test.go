//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test's program be the bare reverse proxy, as the rig starts itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "reverse-proxy" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestRig measures a few candidates for a moment: each answer is the right one, each
// has its row, and what was not measured is named.
func TestRig(t *testing.T) {
	for _, tool := range []string{"cc", "taskset"} {
		if _, err := exec.LookPath(tool); err != nil || runtime.NumCPU() < 2 {
			const missing = "the rig needs two processors, cc and taskset (apt-get install gcc util-linux)"
			if os.Getenv("DURWARD_TEST_REQUIRE") == "all" {
				t.Fatal(missing)
			}
			t.Skip(missing)
		}
	}
	file := filepath.Join(t.TempDir(), "table.md")
	r := &rig{rounds: 2, length: 200 * time.Millisecond, connections: 8, entries: 10_000, routes: 100}
	if err := run(t.Context(), r, "bare$|one token$|entries|no token|every|routes", file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{bareName, "Durward, one token", "Durward, 5,000 tokens, 10000 entries", "Durward, every token new", "Durward, refused: no token", "Durward, one token, 100 routes", "open loop, 6,000/s: Durward"} {
		if !strings.Contains(string(text), "\n| "+row) {
			t.Errorf("there is no row for %s in\n%s", row, text)
		}
	}
	if strings.Contains(string(text), "NaN") || strings.Contains(string(text), "Inf") {
		t.Errorf("a figure is none:\n%s", text)
	}
}
