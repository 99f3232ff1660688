//go:build !race

package proxy

const underRace = 0
