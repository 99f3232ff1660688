package policy

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"testing"
)

// TestMuxes: however the patterns are shared out, each path finds what one ServeMux with
// all of them finds, and what conflicts there does here.
func TestMuxes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	parted, conflicts := 0, 0
	for round := range 60 {
		var patterns []string
		prefix := pick("", "/api", "/api/v1")
		for i := range 400 {
			pattern := prefix
			if random.IntN(10) == 0 {
				pattern = pick("", "/{x}", "/api")
			}
			for range random.IntN(3) {
				pattern += "/" + pick("a", "b", "c", "%61", "a%2Fb", fmt.Sprint("r", i), "{y"+fmt.Sprint(len(pattern))+"}")
			}
			patterns = append(patterns, pattern+pick("", "/", "/{$}", "/{rest...}", "/"+fmt.Sprint("s", i), "/"+fmt.Sprint("s", i)+"/"))
		}
		one, many := http.NewServeMux(), newMuxes(patterns)
		if many.depth > 0 {
			parted++
		}
		entries := map[string]entry{}
		for _, pattern := range patterns {
			if pattern == "" {
				continue
			}
			e := entry{depth: len(entries)}
			fails := register(one, pattern, e) != nil
			if fails {
				conflicts++
				// What one of them refuses is in none, as the configuration is refused.
				again := newMuxes(patterns)
				for p, e := range entries {
					if err := again.register(p, e); err != nil {
						t.Fatal(err)
					}
				}
				if again.register(pattern, e) == nil {
					t.Fatalf("round %d: %q conflicts in one mux alone", round, pattern)
				}
				if conflicts > 200 {
					break
				}
				continue
			}
			if err := many.register(pattern, e); err != nil {
				t.Fatalf("round %d: %q conflicts where it should not: %v", round, pattern, err)
			}
			entries[pattern] = e
		}
		for range 2000 {
			path := prefix
			if random.IntN(10) == 0 {
				path = pick("", "/x", "/api")
			}
			for range random.IntN(4) {
				path += "/" + pick("a", "b", "c", "a%2Fb", fmt.Sprint("r", random.IntN(400)), fmt.Sprint("s", random.IntN(400)))
			}
			if path += pick("", "", "/"); path == "" {
				path = "/"
			}
			decoded, err := url.PathUnescape(path)
			if err != nil {
				t.Fatal(err)
			}
			r := &http.Request{Method: "GET", URL: &url.URL{Path: decoded, RawPath: path}}
			_, want := one.Handler(r)
			if _, got := many.of(path).Handler(r); got != want {
				t.Fatalf("round %d: %q finds %q, want %q (%d deep)", round, path, got, want, many.depth)
			}
		}
	}
	if parted < 20 || conflicts < 20 {
		t.Errorf("%d rounds were shared out, %d conflicts: that shows little", parted, conflicts)
	}
	// Ten thousand below one prefix are shared out.
	var all []string
	for i := range 10_000 {
		all = append(all, fmt.Sprintf("/api/v1/r%d/", i))
	}
	m := newMuxes(all)
	if crowd := m.crowd(all, m.depth); m.depth != 3 || crowd > 1000 {
		t.Errorf("%d segments, %d in the fullest", m.depth, crowd)
	}
}
