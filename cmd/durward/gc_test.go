package main

import "testing"

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live, flat uint64
		want       int
	}{
		{0, 0, 400}, {1 << 20, 0, 400}, {16 << 20, 0, 400}, {32 << 20, 0, 200}, {64 << 20, 0, 100}, {10 << 30, 0, 100},
		{32 << 20, 16 << 20, 200}, {320 << 20, 256 << 20, 20}, {512 << 20, 256 << 20, 50}, {6400 << 20, 6390 << 20, 10},
		{16 << 20, 300 << 20, 400}, // what was allocated since the last collection is not in use yet
	} {
		if got := gcPercent(c.live, c.flat); got != c.want {
			t.Errorf("%d bytes in use, %d of them flat: %d, want %d", c.live, c.flat, got, c.want)
		}
	}
}
