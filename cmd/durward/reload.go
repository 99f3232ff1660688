package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"durward/denylist"
	"durward/denylist/filefeed"
	"durward/token"
)

// reloadLoop is the one goroutine that changes the configuration: on SIGHUP, on
// POST /reload, and when the file's content changes.
func (g *gateway) reloadLoop(ctx context.Context, hangup <-chan os.Signal) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	changed := "" // content that was seen, and not yet tried
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			g.reload(ctx, "SIGHUP")
		case answer := <-g.reloads:
			answer <- g.reload(ctx, "POST /reload")
		case <-t.C:
			// Only what stays as it is: half of a file that somebody is writing may be
			// a good configuration, without the grants that its last route asks for.
			text, err := readRegular(g.path)
			switch {
			case err != nil || text == g.content:
			case text != changed:
				changed = text
			default:
				g.reload(ctx, "the file changed")
			}
		}
	}
}

// reload builds a whole new configuration and swaps it in, or says why not and
// changes nothing.
func (g *gateway) reload(ctx context.Context, why string) []problem {
	g.manager.reloading()
	defer g.manager.tell(daemon.SdNotifyReady)
	var next *built
	var wrong []problem
	if text, err := readRegular(g.path); err != nil {
		wrong = []problem{{File: g.path, Message: err.Error()}}
	} else {
		g.content = text
		next, wrong = buildFile(g.path, g.world())
	}
	if wrong == nil {
		wrong = fixed(g.current.Load().config, next.config)
	}
	if wrong == nil {
		wrong = g.renamed(next)
	}
	if wrong == nil {
		wrong = g.use(ctx, next)
	}
	g.metrics.Reloaded(wrong == nil, time.Now())
	if wrong != nil {
		text := problems(wrong).Error()
		g.reloadProblem.Store(&text)
		g.log.Error("the configuration was not reloaded; the old one stays", "why", why, "generation", g.generation, "problems", problems(wrong).Error())
		return wrong
	}
	g.reloadProblem.Store(nil)
	g.log.Info("the configuration was reloaded", "why", why, "generation", g.generation)
	for _, w := range next.warnings {
		g.log.Warn("configuration", "warning", w.Error())
	}
	return nil
}

// readRegular reads the configuration again. A pipe is good for the first time alone:
// who waits for somebody to write to it cannot even shut down.
func readRegular(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(errors.New("is not a regular file any more"), err)
	}
	text, err := io.ReadAll(f)
	return string(text), err
}

// fixed lists what cannot change while the process runs, and did.
func fixed(old, next *Config) (wrong []problem) {
	for _, f := range []struct {
		key       string
		old, next any
	}{
		{"listen", old.Listen, next.Listen}, {"tls", old.TLS, next.TLS}, {"admin", old.Admin, next.Admin}, {"health", old.Health, next.Health},
		{"state_dir", old.StateDir, next.StateDir}, {"instance", old.Instance, next.Instance}, {"admin_token_file", old.AdminTokenFile, next.AdminTokenFile}, {"log.format", old.Log.Format, next.Log.Format},
		{"limits.header_bytes", old.Limits.HeaderBytes, next.Limits.HeaderBytes}, {"limits.header_timeout", old.Limits.HeaderTimeout, next.Limits.HeaderTimeout},
		{"denylist.serve_feed", old.Denylist.ServeFeed, next.Denylist.ServeFeed}, {"denylist.source_keys", old.Denylist.SourceKeys, next.Denylist.SourceKeys},
		{"denylist.signing_key_file", old.Denylist.SigningKeyFile, next.Denylist.SigningKeyFile},
		{"limits.idle_timeout", old.Limits.IdleTimeout, next.Limits.IdleTimeout}, {"token_cache", old.TokenCache, next.TokenCache}, {"tracing", old.Tracing, next.Tracing},
	} {
		if !reflect.DeepEqual(f.old, f.next) {
			wrong = append(wrong, problem{File: next.path, Message: f.key + ": cannot change while the gateway runs; restart it, or take the change back"})
		}
	}
	return wrong
}

// renamed lists claims by whose values something is revoked, and which the next
// configuration reads elsewhere: it would lift that.
func (g *gateway) renamed(next *built) (wrong []problem) {
	held := g.list.Stats().Entries
	for _, old := range g.current.Load().issuers {
		for _, issuer := range next.issuers {
			if issuer.URL() != old.URL() {
				continue
			}
			for name, kind := range map[string]token.Kind{"jti": token.KindToken, "session": token.KindSession, "sub": token.KindSubject, "client": token.KindClient} {
				if from, to := old.Config().Claims[name], issuer.Config().Claims[name]; from != to && held[kind] > 0 {
					wrong = append(wrong, problem{File: next.config.path, Message: fmt.Sprintf("issuers[%s].claims.%s: is %q and cannot become %q while %d revocations by %s are held, as they would cover nothing any more; take the change back, or restart the gateway and revoke again what must stay revoked",
						issuer.Name(), name, from, to, held[kind], kind)})
				}
			}
		}
	}
	return wrong
}

// use brings a built configuration into force. What is new is started before the
// swap and what is no longer wanted is stopped after it, so that there is never
// a moment with less than either configuration asks for. A new feed that does
// not come into step refuses a reload; at start it makes the gateway not ready.
func (g *gateway) use(ctx context.Context, b *built) []problem {
	prev := g.current.Load()
	// Until the swap, what is revoked is remembered for as long as either
	// configuration needs it.
	limits := b.limits
	if prev != nil {
		limits = either(prev.limits, b.limits)
	}
	g.setIssuers(limits)
	g.list.SetMaxEntries(b.config.Denylist.MaxEntries)

	for _, issuer := range b.issuers {
		if keys := issuer.Keys(); g.keys[keys] == nil {
			life, stop := context.WithCancel(ctx)
			g.keys[keys] = stop
			g.run(func() { keys.Run(life, g.log) })
		}
	}
	wanted := map[string]*feed{}
	var begun []*feed
	for _, config := range b.config.Denylist.Feeds {
		f := g.feeds[config.Name]
		if f == nil || !reflect.DeepEqual(f.config, config) {
			f = g.follow(ctx, config, b)
			begun = append(begun, f)
		}
		wanted[config.Name] = f
	}
	undo := func(wrong []problem) []problem {
		for _, f := range begun {
			g.leave(f, g.feeds[f.config.Name] != nil)
		}
		if prev != nil {
			g.stopKeys(prev)
			g.setIssuers(prev.limits)
			g.list.SetMaxEntries(prev.config.Denylist.MaxEntries)
		}
		return wrong
	}
	if prev != nil {
		wrong := awaitFeeds(ctx, begun, b.config)
		wrong = append(wrong, g.readAgain(prev, b, wanted)...)
		if wrong = append(wrong, awaitKeys(ctx, prev, b)...); wrong != nil {
			return undo(wrong)
		}
	}
	if err := g.remember(b); err != nil {
		return undo([]problem{{File: b.config.path, Message: fmt.Sprintf("state_dir: %v", err)}})
	}
	for _, f := range begun {
		g.list.Join(f.source)
	}
	for _, f := range wanted {
		f.source.SetLease(b.config.Denylist.Lease)
	}

	g.setLevels(b)
	g.generation++
	g.handler.Use(b.snapshot)
	g.current.Store(b)
	g.setIssuers(b.limits)

	var hub forwarder
	for _, f := range wanted {
		if to := f.forwarder(); to != nil {
			hub = to
		}
	}
	g.fleet.hub.use(hub)
	if prev != nil {
		g.fleet.speak(b.config.Denylist, false, time.Now())
	}
	g.fleet.restored, g.fleet.cursors = nil, nil // a feed that a reload changes is followed anew
	old := g.feeds
	g.feeds = wanted
	g.following.Store(&wanted)
	for _, f := range old {
		if wanted[f.config.Name] != f {
			g.list.Remove(f.source)
			g.leave(f, wanted[f.config.Name] != nil)
		}
	}
	g.stopKeys(b)
	if prev != nil {
		retire(prev, b)
	}
	return nil
}

// setIssuers tells the denylist what lines are judged against. Feeds read all they
// have again when that changes.
func (g *gateway) setIssuers(limits denylist.Issuers) {
	if !slices.Equal(limits, g.list.Issuers()) {
		g.list.SetIssuers(limits)
	}
}

// either is the union of two configurations' limits, the longer of each.
func either(a, b denylist.Issuers) denylist.Issuers {
	union := slices.Clone(a)
	for _, l := range b {
		i := slices.IndexFunc(union, func(o denylist.IssuerLimits) bool { return o.URL == l.URL })
		if i < 0 {
			union = append(union, l)
			continue
		}
		o := &union[i]
		o.MaxLifetime, o.Leeway, o.Skew = max(o.MaxLifetime, l.MaxLifetime), max(o.Leeway, l.Leeway), max(o.Skew, l.Skew)
	}
	return union
}

// remember keeps which limits tokens are issued under from now on, before the
// first of them is accepted.
func (g *gateway) remember(b *built) error {
	history := map[string][]token.Limits{}
	maps.Copy(history, g.history)
	for _, issuer := range b.issuers {
		history[issuer.URL()] = issuer.History()
	}
	if reflect.DeepEqual(history, g.history) {
		return nil
	}
	if err := writeHistory(b.config.StateDir, history); err != nil {
		return err
	}
	g.history = history
	return nil
}

// awaitFeeds gives new feeds the time of a lease to come into step.
func awaitFeeds(ctx context.Context, begun []*feed, c *Config) (wrong []problem) {
	for _, f := range begun {
		if !within(ctx, c.Denylist.Lease, func(now time.Time) bool { return f.source.State(now) == denylist.Live }) {
			wrong = append(wrong, problem{File: c.path, Message: fmt.Sprintf("denylist.feeds: %q did not come into step within %s: %s",
				f.config.Name, c.Denylist.Lease, f.source.Status(time.Now()).Error)})
		}
	}
	return wrong
}

// readAgain reads the feeds that are followed already once more if the new
// configuration has an issuer that the old one had not: so far its lines were
// refused, and its revoked tokens must not pass until the next look.
func (g *gateway) readAgain(prev, next *built, feeds map[string]*feed) (wrong []problem) {
	known := func(l denylist.IssuerLimits) bool {
		return slices.ContainsFunc(prev.limits, func(o denylist.IssuerLimits) bool { return o.URL == l.URL })
	}
	if !slices.ContainsFunc(next.limits, func(l denylist.IssuerLimits) bool { return !known(l) }) {
		return nil
	}
	for name, f := range feeds {
		if g.feeds[name] != f {
			continue
		}
		if f.follower != nil {
			if !within(context.Background(), next.config.Denylist.Lease, func(time.Time) bool { return !f.follower.Lost() }) {
				wrong = append(wrong, problem{File: next.config.path, Message: fmt.Sprintf("denylist.feeds: %q gave no snapshot for the new issuer: %s", name, f.source.Status(time.Now()).Error)})
			}
			continue
		}
		if err := filefeed.Read(f.config.File, g.list, f.source, g.fleet.into(f.source), time.Now()); err != nil {
			wrong = append(wrong, problem{File: next.config.path, Message: fmt.Sprintf("denylist.feeds: %q cannot be read for the new issuer: %v", name, err)})
		}
	}
	return wrong
}

// keyPatience is how long a reload waits for keys that it has to fetch anew.
const keyPatience = 10 * time.Second

// awaitKeys waits for the keys of issuers that had good ones under the previous
// configuration and get them from elsewhere now: else their users would be locked
// out. An issuer that is new may still be down.
func awaitKeys(ctx context.Context, prev, next *built) (wrong []problem) {
	now := time.Now()
	for _, issuer := range next.issuers {
		i := slices.IndexFunc(prev.issuers, func(o *token.Issuer) bool { return o.URL() == issuer.URL() })
		keys := issuer.Keys()
		if i < 0 || prev.issuers[i].Keys() == keys || !prev.issuers[i].Keys().Status(now).Usable {
			continue
		}
		if !within(ctx, keyPatience, func(now time.Time) bool { return keys.Status(now).Usable }) {
			wrong = append(wrong, problem{File: next.config.path, Message: fmt.Sprintf("issuers: %q has no usable keys at its new place: %s", issuer.Name(), keys.Status(now).Error)})
		}
	}
	return wrong
}

// within polls until the condition holds, and tells whether it did in time.
func within(ctx context.Context, d time.Duration, condition func(now time.Time) bool) bool {
	deadline := time.Now().Add(d)
	for now := time.Now(); now.Before(deadline) && ctx.Err() == nil; now = time.Now() {
		if condition(now) {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

// stopKeys ends the fetching of keys that this configuration does not use.
func (g *gateway) stopKeys(b *built) {
	used := map[*token.KeySet]bool{}
	for _, issuer := range b.issuers {
		used[issuer.Keys()] = true
	}
	for keys, stop := range g.keys {
		if !used[keys] {
			stop()
			delete(g.keys, keys)
		}
	}
}

// retire closes the idle connections that only the old configuration used; those
// that carry a request go on to its end.
func retire(old, next *built) {
	for _, u := range old.upstreams {
		if !slices.Contains(next.upstreams, u) {
			u.Close()
		}
	}
}
