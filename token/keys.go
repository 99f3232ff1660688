package token

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"durward/decision"
)

const (
	// RefreshInterval is how often keys are fetched, less up to a tenth at random: a
	// key that the issuer withdraws verifies nothing after this and a fetch.
	RefreshInterval = 30 * time.Second

	// UnknownKidInterval is the least time between two fetches that tokens with an
	// unknown kid cause, from the end of one to the beginning of the next. It is short
	// enough for a rotation to be noticed within a second, and one for the whole
	// issuer, so that a flood of junk kids costs two fetches a second and no memory.
	UnknownKidInterval = 500 * time.Millisecond

	fileInterval = time.Second            // how often jwks_file is looked at
	firstPause   = 250 * time.Millisecond // after a failure; doubles up to the interval
	fetchTimeout = 10 * time.Second       // for one fetch, discovery included
	kidTimeout   = 3 * time.Second        // how long a request waits for its key
	maxWaiters   = 256                    // requests that wait for keys; the next is refused at once
)

// A KeySet is the keys of one issuer, and of nobody else. It keeps the last good
// set when a fetch fails, until it is older than jwks_max_age.
//
//	Run ──────► Refresh ──► source (URL, discovery or file) ──► snapshot
//	  ▲ wake       ▲ one at a time; whoever comes meanwhile waits
//	  │            │
//	request with an unknown kid: orders a fetch, at most one per UnknownKidInterval
//
// A request never fetches by itself: its own life would end the fetch of all who
// wait for it.
type KeySet struct {
	issuer string // URL, for the log
	source source
	period time.Duration
	maxAge time.Duration

	current           atomic.Pointer[snapshot] // nil before the first success
	refreshed, failed atomic.Uint64
	wake              chan struct{} // tells Run to look at wanted

	mu      sync.Mutex
	running bool      // Run is there to fetch
	flight  *flight   // the fetch that is ordered or under way; nil if none
	wanted  bool      // a request lacks a key, and no fetch has begun, or succeeded, since
	opens   time.Time // when a fetch for an unknown kid may begin
	waiting int       // requests that wait for flight
	last    string    // the last error; "" after a success
}

// A snapshot is one good set of keys. It never changes.
type snapshot struct {
	keys       []jwk
	rejected   []error
	generation uint64    // differs from that of a set with other keys
	at         time.Time // when the fetch that last found it valid began
	stamp      stamp
}

// A flight is one fetch that several wait for.
type flight struct {
	flying bool          // guarded by KeySet.mu
	done   chan struct{} // closed at the end
	err    error         // to be read after done
}

func newKeySet(cfg IssuerConfig, pool *x509.CertPool) *KeySet {
	k := &KeySet{issuer: cfg.Issuer, period: RefreshInterval, maxAge: cfg.JWKSMaxAge, wake: make(chan struct{}, 1)}
	if cfg.JWKSFile != "" {
		k.source, k.period = fileSource(cfg.JWKSFile), fileInterval
	} else {
		k.source = newHTTPSource(cfg.Issuer, cfg.JWKSURL, pool)
	}
	return k
}

// KeyStatus is what there is to know about a KeySet at one moment.
type KeyStatus struct {
	Keys      int           // usable keys
	Age       time.Duration // since the last successful refresh; negative if there was none
	Usable    bool          // there are keys, not older than jwks_max_age
	Error     string        // of the last refresh; "" if it succeeded
	Refreshed uint64        // successful refreshes, those that found nothing new included
	Failed    uint64        // refreshes that failed
	Rejected  int           // keys of the present set that were left out
}

// Status is the state of the set.
func (k *KeySet) Status(now time.Time) KeyStatus {
	s := k.current.Load()
	status := KeyStatus{Age: -1, Refreshed: k.refreshed.Load(), Failed: k.failed.Load()}
	if s != nil {
		status.Keys, status.Age, status.Rejected = len(s.keys), s.age(now), len(s.rejected)
		status.Usable = status.Age <= k.maxAge
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	status.Error = k.last
	return status
}

// age is the greater of what the monotonic and the wall clock say: the one stops
// while the machine sleeps, the other can be set back.
func (s *snapshot) age(now time.Time) time.Duration {
	return max(0, now.Sub(s.at), now.Round(0).Sub(s.at.Round(0)))
}

// usable is the present set, or nil if there is none that may be used.
func (k *KeySet) usable(now time.Time) *snapshot {
	if s := k.current.Load(); s != nil && s.age(now) <= k.maxAge {
		return s
	}
	return nil
}

// Run keeps the keys fresh until ctx ends, and then returns nil. It is an error to
// run a KeySet twice. It logs once when the issuer's keys cannot be had any more,
// once when they are back, and every change of the set; not every failure.
func (k *KeySet) Run(ctx context.Context, log *slog.Logger) error {
	log = log.With("issuer", k.issuer)
	k.mu.Lock()
	if k.running {
		k.mu.Unlock()
		return fmt.Errorf("the keys of %q are being refreshed already", k.issuer)
	}
	k.running = true
	k.mu.Unlock()
	defer k.stop()

	var next time.Time
	pause, lost := firstPause, false
	for k.sleep(ctx, next) {
		before := k.current.Load()
		err := k.Refresh(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if !lost {
				log.Warn("keys lost: the last good ones stay in use until jwks_max_age", "error", err, "usable", k.usable(time.Now()) != nil)
			}
			lost = true
			next = time.Now().Add(pause - rand.N(pause/2))
			pause = min(2*pause, k.period)
			continue
		}
		if lost {
			log.Info("keys are back")
		}
		if s := k.current.Load(); before == nil || before.generation != s.generation {
			log.Info("keys changed", "keys", len(s.keys), "rejected", len(s.rejected))
			if len(s.rejected) > 0 {
				log.Warn("keys left out", "first", s.rejected[0])
			}
		}
		pause, lost = firstPause, false
		next = time.Now().Add(k.period - rand.N(k.period/10))
	}
	return nil
}

// stop ends what was ordered from Run and cannot be delivered any more.
func (k *KeySet) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running, k.wanted = false, false
	if f := k.flight; f != nil && !f.flying {
		k.flight = nil
		f.err = errors.New("the refreshing of keys has ended")
		close(f.done)
	}
	k.source.rest()
}

// sleep waits until it is time to fetch: at next, or as soon as a fetch for an
// unknown kid is wanted and may begin. It reports false if ctx ended before.
func (k *KeySet) sleep(ctx context.Context, next time.Time) bool {
	for ctx.Err() == nil {
		wait := time.Until(next)
		k.mu.Lock()
		if k.wanted {
			wait = min(wait, time.Until(k.opens))
		}
		k.mu.Unlock()
		if wait <= 0 {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.wake:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return false
}

// Refresh fetches the keys once, now, or waits for the fetch that is under way.
// Run calls it by itself; who runs no KeySet calls it once before verifying.
func (k *KeySet) Refresh(ctx context.Context) error {
	k.mu.Lock()
	f := k.flight
	if f != nil && f.flying {
		k.mu.Unlock()
		select {
		case <-f.done:
			return f.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if f == nil {
		f = &flight{done: make(chan struct{})}
		k.flight = f
	}
	f.flying = true
	forKid := k.wanted
	k.wanted = false
	k.mu.Unlock()

	err := k.fetch(ctx)

	k.mu.Lock()
	defer k.mu.Unlock()
	k.flight, k.last = nil, ""
	if err != nil {
		k.last = err.Error()
	} else {
		k.wanted = false // who wanted keys meanwhile has them
	}
	if forKid || k.wanted {
		k.opens = time.Now().Add(UnknownKidInterval)
	}
	f.err = err
	close(f.done)
	return err
}

// fetch reads the source and takes over what it finds. Only one runs at a time.
func (k *KeySet) fetch(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			k.failed.Add(1)
		} else {
			k.refreshed.Add(1)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	s := snapshot{at: time.Now()}
	old := k.current.Load()
	var known stamp
	if old != nil {
		known, s.generation = old.stamp, old.generation
	}
	document, found, err := k.source.read(ctx, known)
	if err != nil {
		return err
	}
	if document == nil { // unchanged
		s.keys, s.rejected, s.stamp = old.keys, old.rejected, old.stamp
		k.current.Store(&s)
		return nil
	}
	if s.keys, s.rejected, err = parseKeys(document); err != nil {
		return fmt.Errorf("keys from %s: %w", k.source, err)
	}
	// In a fixed order, so that an issuer that shuffles its set has not changed it.
	slices.SortFunc(s.keys, func(a, b jwk) int { return bytes.Compare(a.print[:], b.print[:]) })
	if old == nil || !slices.EqualFunc(s.keys, old.keys, func(a, b jwk) bool { return a.print == b.print }) {
		s.generation++
	}
	s.stamp = found
	k.current.Store(&s)
	return nil
}

// load reads a jwks_file at start.
func (k *KeySet) load() error { return k.Refresh(context.Background()) }

// find is the key for a token with this header. known reports whether the set has
// the kid at all, so that fetching it again would be in vain.
//
// Of several keys with the kid, only one may fit the algorithm; trying one after
// the other was refused, as it lets an issuer's careless second key verify what
// the first was named for. A token without kid is verified only if there is
// nothing to choose.
func (s *snapshot) find(t *parsed) (key *jwk, known bool) {
	fitting := 0
	for n := range s.keys {
		k := &s.keys[n]
		if t.named && k.kid != t.kid {
			continue
		}
		known = true
		if k.fits(t.alg) {
			key = k
			fitting++
		}
	}
	if fitting != 1 {
		return nil, known
	}
	return key, true
}

// key is the key for a token and the set that it comes from. For an unknown kid
// it waits, within bounds, for a fetch.
func (k *KeySet) key(ctx context.Context, t *parsed, now time.Time) (*jwk, *snapshot, *Error) {
	s := k.usable(now)
	if s == nil {
		k.order()
		return nil, nil, &Error{decision.KeysUnavailable, k.complain(now)}
	}
	key, known := s.find(t)
	if key == nil && !known {
		ctx, cancel := context.WithTimeout(ctx, kidTimeout)
		defer cancel()
		// Twice at most: a fetch that was under way may have asked before the rotation.
		for try := 0; try < 2 && key == nil && !known && k.learn(ctx); try++ {
			s = k.current.Load()
			key, known = s.find(t)
		}
	}
	switch {
	case key != nil:
		return key, s, nil
	case !t.named:
		return nil, nil, &Error{decision.TokenSignature, fmt.Sprintf("without a kid, and not exactly one key fits %s", t.alg)}
	case known:
		return nil, nil, &Error{decision.TokenSignature, fmt.Sprintf("not exactly one key with kid %q fits %s", clip(t.kid), t.alg)}
	}
	return nil, nil, &Error{decision.TokenSignature, fmt.Sprintf("kid %q is unknown", clip(t.kid))}
}

// complain says why there are no usable keys.
func (k *KeySet) complain(now time.Time) string {
	status := k.Status(now)
	switch {
	case status.Age < 0 && status.Error == "":
		return "the keys were not fetched yet"
	case status.Age < 0:
		return "no keys: " + status.Error
	}
	return fmt.Sprintf("the keys are %v old, more than jwks_max_age %v: %s", status.Age.Round(time.Second), k.maxAge, status.Error)
}

// order wakes Run for a fetch, as soon as UnknownKidInterval allows one, without
// waiting for it: while an issuer is away this ends the long pauses of Run when
// requests come, so that its return is noticed at once.
func (k *KeySet) order() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running {
		k.want()
	}
}

// want is called with mu held.
func (k *KeySet) want() {
	k.wanted = true
	select {
	case k.wake <- struct{}{}:
	default: // Run was told already
	}
}

// learn waits for the fetch that is under way, or orders one if it may begin now.
// If it may not yet, Run fetches as soon as it may, for the next request's sake,
// and this one is refused. It reports whether a fetch succeeded meanwhile.
func (k *KeySet) learn(ctx context.Context) bool {
	k.mu.Lock()
	if !k.running || k.waiting >= maxWaiters {
		k.mu.Unlock()
		return false
	}
	f := k.flight
	if f == nil {
		k.want()
		if time.Now().Before(k.opens) {
			k.mu.Unlock()
			return false
		}
		f = &flight{done: make(chan struct{})}
		k.flight = f
	}
	k.waiting++
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.waiting--
		k.mu.Unlock()
	}()
	select {
	case <-f.done:
		return f.err == nil
	case <-ctx.Done():
		return false
	}
}
