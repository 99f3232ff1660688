package test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A history is what the clients of a fleet saw: each request with its start and its
// outcome, each revocation with the time of its answer. All times are monotonic, and
// of one process, so that they can be compared.
type history struct {
	t       testing.TB
	mu      sync.Mutex
	seen    []sight
	revoked map[string]revoking // by jti
	stop    chan struct{}
	clients sync.WaitGroup
}

// A sight is one request.
type sight struct {
	at         int // which of the gateways
	jti        string
	start, end time.Time
	status     int // 0: no answer
	reason     string
	retry      string // Retry-After
}

// A revoking is one revocation; it is answered once it was taken.
type revoking struct{ sent, answered time.Time }

// watch lets a client hammer each of the gateways with these tokens, in an order of
// its own, until end is called or the test ends.
func watch(t testing.TB, tokens []bearer, gateways ...*gateway) *history {
	h := &history{t: t, revoked: map[string]revoking{}, stop: make(chan struct{})}
	for i, g := range gateways {
		address := g.url("/")
		h.clients.Go(func() { h.hammer(i, address, tokens) })
	}
	t.Cleanup(h.end)
	return h
}

func (h *history) hammer(at int, address string, tokens []bearer) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-tick.C:
			h.ask(at, address, tokens[rand.N(len(tokens))])
		}
	}
}

// ask makes a request and notes what came of it. The address was taken before:
// somebody else may be starting the gateway anew.
func (h *history) ask(at int, address string, b bearer) {
	s := sight{at: at, jti: b.jti, start: time.Now()}
	if a, err := attempt("GET", address, "", "Authorization: Bearer "+b.text); err == nil {
		s.status, s.reason, s.retry = a.StatusCode, a.reason(), a.Header.Get("Retry-After")
	}
	s.end = time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, s)
}

// revoke revokes through the operators' interface of a gateway. It is false if that
// did not answer or did not take them; then they may be revoked or not.
func (h *history) revoke(at *gateway, tokens ...bearer) bool {
	h.sending(tokens...)
	a, err := attempt("POST", at.admin+"/revocations", linesOf(tokens), "Authorization: Bearer "+at.adminToken())
	if err != nil || a.StatusCode != 200 {
		return false
	}
	h.taken(tokens...)
	return true
}

// sending notes that tokens are about to be revoked, taken that they are.
func (h *history) sending(tokens ...bearer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range tokens {
		h.revoked[b.jti] = revoking{sent: time.Now()}
	}
}

func (h *history) taken(tokens ...bearer) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range tokens {
		h.revoked[b.jti] = revoking{h.revoked[b.jti].sent, now}
	}
}

// end stops the clients.
func (h *history) end() {
	select {
	case <-h.stop:
	default:
		close(h.stop)
	}
	h.clients.Wait()
}

// check waits until the clients have seen a token pass and one refused, ends the
// history, and fails the test for whatever is wrong with it.
func (h *history) check(bound time.Duration) {
	h.t.Helper()
	eventually(h.t, 10*time.Second, "a token passed and one was refused", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		saw := func(status int) bool {
			return slices.ContainsFunc(h.seen, func(s sight) bool { return s.status == status })
		}
		return saw(200) && saw(401)
	})
	h.end()
	wrong, summary := h.judge(bound)
	for _, w := range wrong {
		h.t.Error(w)
	}
	h.t.Log("history:", summary)
}

// judge holds every answer against the history. A revoked token that passes later
// than the bound after its revocation was answered is a late accept; nobody else's
// token is ever refused with 401, and whoever does not know says so with 503 and
// Retry-After.
func (h *history) judge(bound time.Duration) (wrong []string, summary string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	var passed, refused, stale, late int
	var latest time.Duration
	for _, s := range h.seen {
		r := h.revoked[s.jti]
		switch {
		case s.status == 0 || s.reason == "keys_unavailable": // it was just started
		case s.status == 200:
			passed++
			if r.answered.IsZero() {
				continue
			}
			after := s.start.Sub(r.answered)
			latest = max(latest, after)
			if after > bound {
				late++
				complain("late accept: %s passed %v after its revocation was answered, at gateway %d", s.jti, after, s.at)
			}
		case s.status == 401 && s.reason == "revoked":
			refused++
			if r.sent.IsZero() || s.end.Before(r.sent) {
				complain("%s was refused as revoked and nobody had revoked it", s.jti)
			}
		case s.status == 503 && s.reason == "denylist_stale":
			stale++
			if s.retry != "1" {
				complain("503 with Retry-After %q", s.retry)
			}
		default:
			complain("%s: %d %s", s.jti, s.status, s.reason)
		}
	}
	return wrong, fmt.Sprintf("%d requests passed, %d were refused as revoked, %d for want of news; the latest pass of a revoked token began %v after the answer (bound %v); %d late accepts",
		passed, refused, stale, latest, bound, late)
}

// last is when the last request began that a gateway let pass.
func (h *history) last(at int) (last time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.seen {
		if s.at == at && s.status == 200 && s.start.After(last) {
			last = s.start
		}
	}
	return last
}

// The checker finds what it is there for.
func TestHistory(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	one := func(jti string, start, status int, reason, retry string) sight {
		return sight{jti: jti, start: at(start), end: at(start), status: status, reason: reason, retry: retry}
	}
	revoked := map[string]revoking{"ended": {at(1), at(2)}, "asked": {sent: at(1)}}
	good := []sight{
		one("other", 9, 200, "", ""), one("ended", 3, 200, "", ""), one("ended", 2, 401, "revoked", ""), one("asked", 9, 200, "", ""),
		one("ended", 9, 0, "", ""), one("other", 9, 503, "denylist_stale", "1"),
	}
	for _, c := range []struct {
		wrong string
		seen  sight
	}{
		{"", one("other", 9, 200, "", "")},
		{"late accept", one("ended", 4, 200, "", "")},
		{"nobody had revoked", one("other", 9, 401, "revoked", "")},
		{"nobody had revoked", one("ended", 0, 401, "revoked", "")},
		{"Retry-After", one("other", 9, 503, "denylist_stale", "")},
		{"401 token_signature", one("other", 9, 401, "token_signature", "")},
	} {
		h := &history{revoked: revoked, seen: append(good[:len(good):len(good)], c.seen)}
		wrong, _ := h.judge(time.Second)
		if found := strings.Join(wrong, "; "); (found == "") != (c.wrong == "") || !strings.Contains(found, c.wrong) {
			t.Errorf("%+v: %q, want %q", c.seen, found, c.wrong)
		}
	}
}
