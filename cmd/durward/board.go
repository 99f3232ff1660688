package main

import (
	"slices"
	"sync"
	"time"

	"durward/decision"
)

// A board counts what the status page shows of requests: by route and reason since
// the start, by time for the last ten minutes, and the latest refusals. There are no
// paths, subjects or tokens on it, so that it can be shown to whoever reaches it.
type board struct {
	mu      sync.Mutex
	routes  map[string]*tally // by name; "" where none was found
	slots   [boardSlots]slot  // by time, in a circle
	refused [boardLatest]refused
	next    int // where the next refusal goes
}

const (
	boardSlots  = 120
	boardSlot   = 5 * time.Second
	boardLatest = 20
	boardRoutes = 10_000 // names, of this configuration and those before
)

// A tally is a route's requests.
type tally struct {
	requests uint64
	refused  map[decision.Reason]uint64
}

// A slot is the requests of five seconds.
type slot struct {
	number           int64 // of the slot, since 1970
	allowed, refused int
}

// A refused is one of the latest refusals.
type refused struct {
	Time   time.Time       `json:"time"`
	Route  string          `json:"route"`
	Method string          `json:"method"`
	Status int             `json:"status"`
	Reason decision.Reason `json:"reason"`
	ID     string          `json:"id"` // of the request, as its log line has it
}

func newBoard() *board { return &board{routes: map[string]*tally{}} }

// note takes a finished request.
func (b *board) note(rec *decision.Record) {
	denied := rec.Verdict != decision.Allow
	number := rec.Time.UnixNano() / int64(boardSlot)
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.routes[rec.Route]
	if t == nil {
		if len(b.routes) >= boardRoutes {
			return
		}
		t = &tally{refused: map[decision.Reason]uint64{}}
		b.routes[rec.Route] = t
	}
	t.requests++
	s := &b.slots[number%boardSlots]
	if s.number < number {
		*s = slot{number: number}
	}
	if !denied {
		if s.number == number {
			s.allowed++
		}
		return
	}
	if s.number == number {
		s.refused++
	}
	t.refused[rec.Reason]++
	method := rec.Method
	if len(method) > 20 { // one that is none
		method = method[:20]
	}
	b.refused[b.next%boardLatest] = refused{rec.Time, rec.Route, method, rec.Status, rec.Reason, rec.ID}
	b.next++
}

// A count is how often a route refused for a reason.
type count struct {
	Reason decision.Reason
	Times  uint64
}

// route is what was counted of a route, the commonest reasons first.
func (b *board) route(name string) (requests uint64, refused []count) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.routes[name]
	if t == nil {
		return 0, nil
	}
	for reason, n := range t.refused {
		refused = append(refused, count{reason, n})
	}
	slices.SortFunc(refused, func(a, b count) int {
		if a.Times != b.Times {
			return int(int64(b.Times) - int64(a.Times))
		}
		if a.Reason < b.Reason {
			return -1
		}
		return 1
	})
	return t.requests, refused
}

// recent are the slots up to now, oldest first.
func (b *board) recent(now time.Time) []slot {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := now.UnixNano() / int64(boardSlot)
	all := make([]slot, boardSlots)
	for i := range all {
		number := last - boardSlots + 1 + int64(i)
		all[i].number = number
		if s := b.slots[number%boardSlots]; s.number == number {
			all[i] = s
		}
	}
	return all
}

// latest are the latest refusals, the newest first.
func (b *board) latest() []refused {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := []refused{}
	for i := b.next - 1; i >= 0 && i >= b.next-boardLatest; i-- {
		all = append(all, b.refused[i%boardLatest])
	}
	return all
}
