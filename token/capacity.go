package token

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"durward/decision"
)

const (
	// capacityTimeout is how long a token waits for its turn to be verified.
	capacityTimeout = time.Second

	// breathEvery is after how many checks, while others wait, nothing is checked for
	// a breath.
	breathEvery = 4
	breath      = 50 * time.Microsecond
)

// A capacity limits how many signatures are checked at once. A flood of bad ones must
// leave time for those whose tokens are known, who need the processors for microseconds,
// but several times for one request.
//
// One processor is kept free of checks, if there is more than one. That is not enough:
// who hands its turn on wakes the next, which the scheduler then prefers to everybody,
// and while there is always somebody to run, it looks at the network every 10 ms only.
// So whoever had to wait goes to the end of what is to be run, and now and then all of
// them pause. With 64 connections that send forgeries to two processors, this took the
// p99 of good requests from some 30 ms to less than 10, three to four times of what it
// is at rest. Threads of a lower priority were refused: they would hold up the garbage
// collector.
type capacity struct {
	slots   chan struct{} // one for each check in progress
	waiting atomic.Int64
	checks  atomic.Uint64 // while somebody waited
}

func newCapacity() *capacity {
	return &capacity{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))}
}

// take waits for a turn, which give ends.
func (c *capacity) take(ctx context.Context) *Error {
	select {
	case c.slots <- struct{}{}:
		return nil
	default:
	}
	c.waiting.Add(1)
	defer c.waiting.Add(-1)
	timer := time.NewTimer(capacityTimeout)
	defer timer.Stop()
	select {
	case c.slots <- struct{}{}:
		runtime.Gosched()
		return nil
	case <-timer.C:
		return &Error{decision.Overloaded, fmt.Sprintf("no capacity to verify a signature within %v", capacityTimeout)}
	case <-ctx.Done():
		return &Error{decision.Overloaded, errLeft}
	}
}

func (c *capacity) give() {
	if c.waiting.Load() > 0 && c.checks.Add(1)%breathEvery == 0 {
		time.Sleep(breath)
	}
	<-c.slots
}

// errLeft is why a client that is gone got no answer.
const errLeft = "the request ended before its signature was verified"
