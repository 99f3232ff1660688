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
// saves a few hundredths of the time, and no later because many tokens and sessions
// are denied, which it does not look into: with GOGC=100, ten million would have a
// quarter of a gigabyte wait for it, which is cold wherever it is used again.
func tuneGC(ctx context.Context, list *denylist.List) {
	now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	t := time.NewTicker(time.Second) // a denylist that is being loaded grows fast
	defer t.Stop()
	var flat, before, cycle uint64
	for last := 0; ; {
		metrics.Read(now)
		// What is live is known of the last collection. What was forgotten since, be it in
		// the same second, is still a part of it.
		held := uint64(list.Stats().Flat)
		if run := now[1].Value.Uint64(); run != cycle {
			flat, cycle = before, run
		}
		flat, before = max(flat, held), held
		if percent := gcPercent(now[0].Value.Uint64(), flat); percent*10 < last*9 || percent*9 > last*10 {
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

// gcPercent is the value of GOGC for so many bytes in use, some of which the collector
// does not look into.
func gcPercent(live, flat uint64) int {
	live = max(live, 1)
	looked := live - min(live, flat)
	return int(min(400, max(10, 100*max(garbage, looked)/live)))
}
