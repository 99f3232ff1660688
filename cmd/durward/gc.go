package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"durward/denylist"
)

// garbage is how much memory, beside what is in use, may wait for the collector
// before it runs, as long as that is no more than four times what is in use.
const garbage = 64 << 20

// tuneGC has the garbage collector run less often while little memory is in use, which
// saves a few hundredths of the time, and no later because the denylist is large, which
// it does not look into: with GOGC=100, ten million entries would have a quarter of a
// gigabyte wait for it, which is cold wherever it is used again.
func tuneGC(ctx context.Context, list *denylist.List) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	t := time.NewTicker(time.Second) // a denylist that is being loaded grows fast
	defer t.Stop()
	for last := 0; ; {
		metrics.Read(live)
		if percent := gcPercent(live[0].Value.Uint64(), uint64(list.Stats().Bytes)); percent*10 < last*9 || percent*9 > last*10 {
			debug.SetGCPercent(percent)
			last = percent
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// gcPercent is the value of GOGC for so many bytes in use, of which the denylist takes
// some.
func gcPercent(live, listed uint64) int {
	live = max(live, 1)
	looked := live - min(live, listed)
	return int(min(400, max(10, 100*max(garbage, looked)/live)))
}
