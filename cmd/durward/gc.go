package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// garbage is how much memory, beside what is in use, may wait for the collector
// before it runs, as long as that is no more than four times what is in use.
const garbage = 64 << 20

// tuneGC has the garbage collector run less often while little memory is in use, which
// saves a few hundredths of the time, and as often as ever when the denylist is large:
// with GOGC=400 all along, ten million entries would take a gigabyte more.
func tuneGC(ctx context.Context) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	t := time.NewTicker(time.Second) // a denylist that is being loaded grows fast
	defer t.Stop()
	for last := 0; ; {
		metrics.Read(live)
		if percent := gcPercent(live[0].Value.Uint64()); percent*10 < last*9 || percent*9 > last*10 {
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

// gcPercent is the value of GOGC for so many bytes in use.
func gcPercent(live uint64) int {
	return int(min(400, max(100, 100*garbage/max(live, 1))))
}
