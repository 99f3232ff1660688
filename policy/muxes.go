package policy

import (
	"hash/maphash"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// Muxes are the ServeMuxes that share the patterns of one table: one, unless there are
// many. ServeMux holds each subtree against each other one when it is registered, so
// that ten thousand would take seconds.
//
// A path belongs to one of them by its first segments, as many as depth says; so does a
// pattern that begins with as many literal ones. All other patterns are in each of
// them, so that whatever could match a path, and whatever could conflict, is in one.
type muxes struct {
	depth int
	seed  maphash.Seed
	parts []*http.ServeMux
	short *http.ServeMux // for paths with fewer segments

	questions sync.Pool // of *question
}

// A question is a request with the path that a ServeMux is asked about, which keeps
// nothing of it.
type question struct {
	http.Request
	url.URL
}

const (
	fewPatterns = 200 // that one takes
	manyMuxes   = 64
	deepest     = 6
)

func newMuxes(patterns []string) *muxes {
	m := &muxes{seed: maphash.MakeSeed(), parts: make([]*http.ServeMux, 1), short: http.NewServeMux()}
	if len(patterns) > fewPatterns {
		m.parts = make([]*http.ServeMux, manyMuxes)
		least := len(patterns)
		for depth := 1; depth <= deepest; depth++ {
			if n := m.crowd(patterns, depth); n < least {
				m.depth, least = depth, n
			}
		}
	}
	for i := range m.parts {
		m.parts[i] = http.NewServeMux()
	}
	return m
}

// crowd is how many patterns the fullest mux would have.
func (m *muxes) crowd(patterns []string, depth int) int {
	count, all := make([]int, len(m.parts)), 0
	fullest := 0
	for _, pattern := range patterns {
		lead, ok := leading(pattern, depth)
		if !ok || strings.Contains(lead, "{") {
			all++
			continue
		}
		part := &count[m.part(lead)]
		*part++
		fullest = max(fullest, *part)
	}
	return all + fullest
}

// leading is the first segments of a path or pattern, unescaped; false if it has
// fewer.
func leading(path string, depth int) (string, bool) {
	end := 0
	for range depth {
		if end+1 >= len(path) {
			return "", false
		}
		if i := strings.IndexByte(path[end+1:], '/'); i >= 0 {
			end += 1 + i
		} else {
			end = len(path)
		}
	}
	if lead, err := url.PathUnescape(path[:end]); err == nil {
		return lead, true
	}
	return path[:end], true
}

func (m *muxes) part(lead string) int {
	return int(maphash.String(m.seed, lead) % uint64(len(m.parts)))
}

// of is the mux for a path.
func (m *muxes) of(escaped string) *http.ServeMux {
	if m.depth == 0 {
		return m.parts[0]
	}
	lead, ok := leading(escaped, m.depth)
	if !ok {
		return m.short
	}
	return m.parts[m.part(lead)]
}

// handler is what the pattern that matches the path leads to.
func (m *muxes) handler(decoded, escaped string) http.Handler {
	q, _ := m.questions.Get().(*question)
	if q == nil {
		q = &question{Request: http.Request{Method: http.MethodGet}}
		q.Request.URL = &q.URL
	}
	q.URL = url.URL{Path: decoded, RawPath: escaped}
	h, _ := m.of(escaped).Handler(&q.Request)
	m.questions.Put(q)
	return h
}

func (m *muxes) register(pattern string, e entry) error {
	if m.depth == 0 {
		return register(m.parts[0], pattern, e)
	}
	if lead, ok := leading(pattern, m.depth); ok && !strings.Contains(lead, "{") {
		return register(m.parts[m.part(lead)], pattern, e)
	}
	if err := register(m.short, pattern, e); err != nil {
		return err
	}
	for _, mux := range m.parts {
		if err := register(mux, pattern, e); err != nil {
			return err
		}
	}
	return nil
}
