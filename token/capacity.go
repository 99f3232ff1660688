package token

import (
	"container/list"
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"durward/decision"
)

const (
	// capacityTimeout is how long a token waits for its turn to be verified.
	capacityTimeout = time.Second

	// A check that fails keeps its turn for so many times as long as it took, within
	// these bounds: it may have been interrupted, or be very quick.
	failurePause  = 4
	shortestPause = 100 * time.Microsecond
	longestPause  = 500 * time.Microsecond
)

// A capacity limits how many signatures are checked at once, and what share of the
// processors bad ones get. A flood of those must leave time for those whose tokens
// are known, who need the processors for microseconds, but several times for one
// request.
//
// One processor is kept free of checks, if there is more than one. That is not enough:
// while there is always somebody to run, the scheduler looks at the network every 10 ms
// only. So a turn in which a check has failed goes on for a while: its client has its
// answer, and whoever waits waits longer, forgers for the most part. Good tokens, of
// which each is checked once, cause no pause, however many are new at once.
//
// Of those who wait, who came last is next: in a flood, those who have waited long are
// the ones who wait again and again, or have gone; somebody with a good token has no
// queue before it.
//
// To count failures by client was refused: behind a shared proxy all are one, and a
// botnet is many. Threads of a lower priority were refused: they would hold up the
// garbage collector.
type capacity struct {
	mu      sync.Mutex
	free    int       // turns that nobody has
	waiting list.List // of chan struct{}, closed when it is its turn
}

func newCapacity() *capacity {
	return &capacity{free: max(1, runtime.GOMAXPROCS(0)-1)}
}

// take waits for a turn, which give ends.
func (c *capacity) take(ctx context.Context) *Error {
	c.mu.Lock()
	if c.free > 0 {
		c.free--
		c.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	place := c.waiting.PushBack(turn)
	c.mu.Unlock()
	timer := time.NewTimer(capacityTimeout)
	defer timer.Stop()
	why := errLeft
	select {
	case <-turn:
		// Whoever ended its turn has woken this one, which the scheduler then prefers to
		// everybody; it goes to the end of what is to be run instead.
		runtime.Gosched()
		return nil
	case <-timer.C:
		why = fmt.Sprintf("no capacity to verify a signature within %v", capacityTimeout)
	case <-ctx.Done():
	}
	c.mu.Lock()
	select {
	case <-turn: // at the last moment
		c.mu.Unlock()
		c.end()
	default:
		c.waiting.Remove(place)
		c.mu.Unlock()
	}
	return &Error{decision.Overloaded, why}
}

// give ends the turn of a check that took so long.
func (c *capacity) give(verified bool, took time.Duration) {
	if verified {
		c.end()
		return
	}
	time.AfterFunc(min(max(failurePause*took, shortestPause), longestPause), c.end)
}

// end makes it somebody else's turn.
func (c *capacity) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.waiting.Back()
	if last == nil {
		c.free++
		return
	}
	close(c.waiting.Remove(last).(chan struct{}))
}

// errLeft is why a client that is gone got no answer.
const errLeft = "the request ended before its signature was verified"
