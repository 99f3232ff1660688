//go:build race

package proxy

// underRace is how often more a decision allocates with the race detector, which has
// sync.Pool drop things.
const underRace = 1
