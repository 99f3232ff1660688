package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"durward/decision"
	"durward/denylist"
	"durward/policy"
	"durward/token"
)

// maxAdminBody bounds what the operators' interface reads.
const (
	maxAdminBody = 16 << 20
	maxLines     = 100_000 // of one body: each is answered, and takes some hundred bytes for it
)

// adminHandler is the operators' interface. What only tells how the gateway
// fares is open to whoever reaches the address; what changes or reveals more
// asks for the admin token, from loopback too: where a connection comes from is
// no authority.
func (g *gateway) adminHandler(address string) http.Handler {
	open, closed := http.NewServeMux(), http.NewServeMux()
	g.probes(open)
	open.HandleFunc("GET /status", g.serveStatus)
	open.Handle("/", g.authorized(closed))
	closed.HandleFunc("POST /reload", g.serveReload)
	closed.HandleFunc("POST /revocations", g.serveRevocations)
	closed.HandleFunc("GET /revocations/check", g.serveRevocationsCheck)
	closed.HandleFunc("POST /explain", g.serveExplain)
	closed.HandleFunc("POST /quarantine", g.serveQuarantine)
	closed.HandleFunc("/debug/pprof/", pprof.Index)
	closed.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	closed.HandleFunc("/debug/pprof/profile", pprof.Profile)
	closed.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	closed.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return sameSite(address, hurried(open))
}

// hurried leaves a client that does not read its answer, unless it turns out to be
// an operator: those may profile for minutes.
func hurried(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(10 * time.Second))
		next.ServeHTTP(w, r)
	})
}

// healthHandler is for probes that cannot reach the operators' interface.
func (g *gateway) healthHandler() http.Handler {
	mux := http.NewServeMux()
	g.probes(mux)
	return mux
}

func (g *gateway) probes(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", g.serveReady)
	mux.Handle("GET /metrics", g.metrics.Handler())
}

// sameSite keeps web pages out, which a browser on an operator's machine might be
// made to load: those of other sites by Origin and Fetch Metadata, those that had
// their name resolve to this address (DNS rebinding) by Host.
func sameSite(address string, next http.Handler) http.Handler {
	own, _, _ := net.SplitHostPort(address)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, err := policy.ReadHost(r.Host)
		_, addrErr := netip.ParseAddr(host.Name)
		site := r.Header.Get("Sec-Fetch-Site")
		origin, originErr := url.Parse(r.Header.Get("Origin"))
		switch {
		case len(r.Header["Origin"]) > 1 || len(r.Header["Sec-Fetch-Site"]) > 1:
			adminError(w, http.StatusForbidden, "Origin and Sec-Fetch-Site may be there once")
		case err != nil || addrErr != nil && host.Name != "localhost" && !strings.EqualFold(host.Name, own):
			adminError(w, http.StatusForbidden, "the Host is neither an address, localhost, nor the one configured as admin")
		case site != "" && site != "same-origin" && site != "none":
			adminError(w, http.StatusForbidden, "the request comes from another site")
		case r.Header.Get("Origin") != "" && (originErr != nil || origin.Host != r.Host):
			adminError(w, http.StatusForbidden, "the request comes from another origin")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// authorized asks for the admin token.
func (g *gateway) authorized(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(g.token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		bearer := strings.EqualFold(scheme, "Bearer") && len(r.Header["Authorization"]) == 1
		have := sha256.Sum256([]byte(given))
		if g.token == "" || !bearer || subtle.ConstantTimeCompare(have[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			adminError(w, http.StatusUnauthorized, "send the content of admin_token_file as Authorization: Bearer")
			return
		}
		http.NewResponseController(w).SetWriteDeadline(time.Time{})
		next.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(body.Bytes())
}

func adminError(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

// issuerStatus and feedStatus are what readyz and status say of the two things
// that the gateway depends on.
type issuerStatus struct {
	Name    string   `json:"name"`
	Issuer  string   `json:"issuer"`
	Ready   bool     `json:"ready"`
	Keys    int      `json:"keys"`
	Left    int      `json:"keys_left_out,omitempty"`
	Age     *float64 `json:"age_seconds"` // null: never fetched
	Problem string   `json:"problem,omitempty"`
	// In /status alone.
	Claims  map[string]any `json:"claims,omitempty"`
	Warning string         `json:"warning,omitempty"`
}

type feedStatus struct {
	Name        string         `json:"name"`
	State       string         `json:"state"`
	Age         *float64       `json:"age_seconds"`           // null: never heard from
	Quarantined map[string]int `json:"quarantined,omitempty"` // operations that wait for an operator, by the key that said them
	Applied     uint64         `json:"applied"`
	Refused     uint64         `json:"refused"`
	Problem     string         `json:"problem,omitempty"`

	Unvouched []string          `json:"issuers_not_vouched_for,omitempty"`
	Places    []string          `json:"places,omitempty"` // source:epoch:number of each chain that is followed
	Events    map[string]uint64 `json:"events,omitempty"`
}

func age(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	s := d.Seconds()
	return &s
}

func (g *gateway) dependencies(now time.Time) (issuers []issuerStatus, feeds []feedStatus, ready bool) {
	issuers, feeds, ready = []issuerStatus{}, []feedStatus{}, true
	for _, issuer := range g.current.Load().issuers {
		s := issuer.Keys().Status(now)
		issuers = append(issuers, issuerStatus{Name: issuer.Name(), Issuer: issuer.URL(), Ready: s.Usable, Keys: s.Keys, Left: s.Rejected, Age: age(s.Age), Problem: s.Error})
		ready = ready && s.Usable
	}
	for _, source := range g.list.Sources() {
		s := source.Status(now)
		status := feedStatus{Name: s.Name, State: s.State.String(), Age: age(s.Age), Applied: s.Applied, Refused: s.Refused, Problem: s.Error, Unvouched: s.Marked}
		if f := (*g.following.Load())[s.Name]; f != nil && f.follower != nil {
			status.Events = map[string]uint64{}
			for e := range denylist.Event(denylist.Events) {
				status.Events[e.String()] = f.follower.Count(e)
			}
			status.Quarantined = f.follower.Quarantined()
			for _, head := range f.follower.After() {
				status.Places = append(status.Places, head.String())
			}
		}
		feeds = append(feeds, status)
		ready = ready && s.Synced
	}
	return issuers, feeds, ready
}

// serveReady says 200 once every issuer has had keys and every feed has been in
// step. It latches: going stale later must not take all gateways out of the
// balancer at once; the routes' on_stale acts instead.
func (g *gateway) serveReady(w http.ResponseWriter, _ *http.Request) {
	issuers, feeds, ready := g.dependencies(time.Now())
	if ready {
		g.ready.Store(true)
	}
	status, verdict := http.StatusOK, "ready"
	switch {
	case g.draining.Load():
		status, verdict = http.StatusServiceUnavailable, "draining"
	case !g.ready.Load():
		status, verdict = http.StatusServiceUnavailable, "not ready"
	}
	writeJSON(w, status, map[string]any{"status": verdict, "issuers": issuers, "feeds": feeds})
}

// serveStatus tells an operator how the gateway fares. It names no subject and
// no token.
func (g *gateway) serveStatus(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	issuers, feeds, _ := g.dependencies(now)
	b := g.current.Load()
	for _, issuer := range b.issuers {
		if i := slices.IndexFunc(issuers, func(s issuerStatus) bool { return s.Issuer == issuer.URL() }); i >= 0 { // a reload may have come between
			issuers[i].Claims, issuers[i].Warning = claimsStatus(issuer)
		}
	}
	stats := g.list.Stats()
	entries := map[string]int{}
	for kind := 1; kind <= token.Kinds; kind++ {
		entries[token.Kind(kind).String()] = stats.Entries[kind]
	}
	warnings := []string{}
	if g.journal != nil && g.journal.Broken() > 0 {
		warnings = append(warnings, fmt.Sprintf("%d lines of the journal could not be read: what they revoked is not enforced; the log of the start names them", g.journal.Broken()))
	}
	if g.fleet.broken != "" {
		warnings = append(warnings, "what the last run knew was lost at the start: "+g.fleet.broken)
	}
	if stats.Total > 0 && g.list.Near() {
		warnings = append(warnings, fmt.Sprintf("the denylist is nearly full: %d of %d entries; raise denylist.max_entries", stats.Total, stats.Max))
	}
	if w := g.fleet.hub.warning(); w != "" {
		warnings = append(warnings, w)
	}
	for _, w := range b.warnings {
		warnings = append(warnings, w.Error())
	}
	for _, s := range issuers {
		if s.Warning != "" {
			warnings = append(warnings, fmt.Sprintf("issuer %q: %s", s.Name, s.Warning))
		}
	}
	routes := []map[string]any{}
	for _, rt := range b.snapshot.Policy.Routes() {
		requests, refused := g.board.route(rt.Name)
		reasons := map[decision.Reason]uint64{}
		for _, c := range refused {
			reasons[c.Reason] = c.Times
		}
		routes = append(routes, map[string]any{"name": rt.Name, "path": rt.Pattern(), "upstream": b.snapshot.Routes[rt.Index].Upstream.Name, "requests": requests, "refused": reasons})
	}
	hits, misses := b.cache.Stats()
	said := map[string]any{
		"version": version, "generation": b.snapshot.Generation, "ready": g.ready.Load(), "draining": g.draining.Load(),
		"issuers": issuers, "feeds": feeds, "routes": routes, "warnings": warnings,
		"denylist": map[string]any{
			"state": g.list.State("", now).String(), "entries": entries, "total": stats.Total, "max_entries": stats.Max, "bytes": stats.Bytes,
			"revoking": g.journal != nil, "hub": g.fleet.writer != nil,
		},
		"token_cache": map[string]uint64{"hits": hits, "misses": misses},
		"inflight":    g.handler.Inflight(), "streams": g.handler.Streams(),
		"latest_refusals": g.board.latest(), "reload_problem": g.reloadProblem.Load(),
	}
	w.Header().Set("Vary", "Accept")
	if wantsPage(r) {
		g.serveStatusPage(w, said)
		return
	}
	writeJSON(w, http.StatusOK, said)
}

// serveReload asks the reloading goroutine for its answer.
func (g *gateway) serveReload(w http.ResponseWriter, r *http.Request) {
	answer := make(chan []problem, 1)
	select {
	case g.reloads <- answer:
	case <-r.Context().Done():
		return
	}
	wrong := <-answer
	if wrong == nil {
		writeJSON(w, http.StatusOK, map[string]any{"status": "reloaded", "generation": g.current.Load().snapshot.Generation})
		return
	}
	texts := make([]string, len(wrong))
	for i, p := range wrong {
		texts[i] = p.Error()
	}
	writeJSON(w, http.StatusUnprocessableEntity, map[string]any{"status": "refused; the old configuration stays", "problems": texts})
}

// A lineResult is what became of one line of POST /revocations.
type lineResult struct {
	Line    int    `json:"line"`
	Status  string `json:"status"` // applied, refused
	Problem string `json:"problem,omitempty"`
	Note    string `json:"note,omitempty"`
}

// errNoState is why revoking through this gateway is off.
var errNoState = errors.New("there is no state_dir, so nothing revoked here would survive a restart; configure one")

// serveRevocations applies one or many lines. Once it has answered 200, no later
// request with such a token passes here, and a restart does not change that.
func (g *gateway) serveRevocations(w http.ResponseWriter, r *http.Request) {
	if g.journal == nil {
		adminError(w, http.StatusServiceUnavailable, errNoState.Error())
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAdminBody))
	if err != nil {
		adminError(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("read the body: %v; send fewer lines at once (%d MiB)", err, maxAdminBody>>20))
		return
	}
	wait, within, err := waiting(r.URL.Query())
	if err == nil && wait && g.fleet.hub.stream() == nil {
		err = errors.New("wait=all asks all gateways of a fleet, by the NATS or Redis feed to which they write; none here has forward_revocations")
	}
	if err != nil {
		adminError(w, http.StatusBadRequest, err.Error()+"; nothing was revoked")
		return
	}
	began := time.Now()
	status, answer := g.accept(r.Context(), body, began, false, nil)
	if wait && (status == http.StatusOK || status == http.StatusMultiStatus) {
		all := false
		answer["enforced"], all = g.enforced(r.Context(), answer["scope"], began.Add(within))
		if !all {
			status = http.StatusAccepted
		}
	}
	writeJSON(w, status, answer)
}

const waitFor, waitMost = 2 * time.Second, time.Minute

// waiting reads whether, and how long, a question is to wait for all gateways.
func waiting(q url.Values) (wait bool, within time.Duration, err error) {
	switch q.Get("wait") {
	case "":
		return false, 0, nil
	case "all":
	default:
		return false, 0, fmt.Errorf("wait=%.40q is not known; write wait=all", q.Get("wait"))
	}
	within = waitFor
	if text := q.Get("timeout"); text != "" {
		if within, err = time.ParseDuration(text); err != nil || within <= 0 || within > waitMost {
			return false, 0, fmt.Errorf("timeout=%.40q must be a duration of at most %s, such as 2s", text, waitMost)
		}
	}
	return true, within, nil
}

// enforced is which gateways have confirmed that they enforce what was just revoked,
// and whether all have.
func (g *gateway) enforced(ctx context.Context, scope any, until time.Time) (answer any, all bool) {
	if scope != "fleet" {
		return map[string]string{"problem": "it is enforced here, and not in the log of the fleet yet; nobody else was asked"}, false
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	e, err := g.fleet.hub.stream().Enforced(ctx)
	if err != nil {
		return map[string]string{"problem": err.Error()}, false
	}
	return e, len(e.Missing) == 0
}

// accept applies the lines of a body, as far as they are good. Its answer says
// whether that holds for the fleet, or for this gateway alone. Those forwarded were
// accepted by other gateways; via are the sources of these.
func (g *gateway) accept(ctx context.Context, body []byte, now time.Time, forwarded bool, via []string) (status int, answer map[string]any) {
	results, accepted := []lineResult{}, []denylist.Revocation{}
	for number, line := range linesIn(body) {
		if len(results) == maxLines {
			return http.StatusRequestEntityTooLarge, map[string]any{"error": fmt.Sprintf("more than %d lines; send fewer at once; nothing was revoked", maxLines)}
		}
		revocation, err := denylist.Parse(line, g.list.Issuers(), now, true)
		if err != nil {
			results = append(results, lineResult{Line: number, Status: "refused", Problem: err.Error()})
			continue
		}
		result := lineResult{Line: number, Status: "applied"}
		if !revocation.Clamped.IsZero() {
			result.Note = fmt.Sprintf("before was more than %s ahead and was clamped", denylist.MaxAhead)
			g.log.Warn("a revocation's before lies too far ahead and was clamped", "line", number, "before", revocation.Clamped)
		}
		if lacking := g.unenforceable(revocation); lacking != "" {
			result.Note = strings.TrimPrefix(result.Note+"; "+lacking, "; ")
			g.log.Warn("a revocation does not reach all of its issuer's tokens", "line", number, "kind", revocation.Kind.String(), "why", lacking)
			// Refusing is for who can write another line at once. What other gateways
			// accepted must not be lost between them.
			if !forwarded && g.current.Load().config.Denylist.OnUnenforceable == "reject" {
				results = append(results, lineResult{Line: number, Status: "refused", Problem: lacking + " (denylist.on_unenforceable: reject)"})
				continue
			}
		}
		results = append(results, result)
		accepted = append(accepted, revocation)
	}
	status = http.StatusOK
	switch {
	case len(accepted) == 0:
		status = http.StatusBadRequest
	case len(accepted) < len(results):
		status = http.StatusMultiStatus
	}
	answer = map[string]any{"applied": len(accepted), "refused": len(results) - len(accepted), "lines": results}
	if len(accepted) > 0 {
		scope, err := g.revoke(ctx, accepted, now, via)
		answer["scope"] = scope.name
		if scope.problem != "" {
			answer["scope_problem"] = scope.problem
		}
		switch {
		case errors.Is(err, denylist.ErrFull):
			// Which of the lines still fitted is not told: all are to be sent again.
			status = http.StatusInsufficientStorage
			answer = map[string]any{"applied": 0, "refused": len(results), "error": err.Error()}
		case err != nil:
			status = http.StatusInternalServerError
			answer["error"] = "applied, not durable: " + err.Error()
		}
	}
	return status, answer
}

// serveQuarantine releases what a source said over its budget, at this gateway, or
// drops it: {"key":"ingest-a","drop":false}.
func (g *gateway) serveQuarantine(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Key  string `json:"key"`
		Drop bool   `json:"drop"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(&asked); err != nil || asked.Key == "" {
		adminError(w, http.StatusBadRequest, `write {"key":"the name in source_keys"}, and "drop":true to forget what it said`)
		return
	}
	if _, known := g.current.Load().config.Denylist.SourceKeys[asked.Key]; !known {
		adminError(w, http.StatusNotFound, fmt.Sprintf("%q is none of source_keys", asked.Key))
		return
	}
	total := 0
	for name, f := range *g.following.Load() {
		if f.follower == nil {
			continue
		}
		n, err := f.follower.Release(asked.Key, asked.Drop, time.Now())
		if err != nil {
			adminError(w, http.StatusInsufficientStorage, fmt.Sprintf("feed %q: %v", name, err))
			return
		}
		total += n
	}
	g.log.Warn("what a source revoked over its budget was decided about", "key", asked.Key, "operations", total, "dropped", asked.Drop)
	writeJSON(w, http.StatusOK, map[string]any{"operations": total, "dropped": asked.Drop})
}

// linesIn are the lines of a body that are not blank, with their numbers; one object
// over several lines counts as one.
func linesIn(body []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		if json.Valid(body) {
			yield(1, bytes.TrimSpace(body))
			return
		}
		number := 0
		for line := range bytes.Lines(body) {
			number++
			if line = bytes.TrimSpace(line); len(line) > 0 && !yield(number, line) {
				return
			}
		}
	}
}

// A scope is how far a revocation reaches once it is answered.
type scope struct {
	name    string // fleet, or local
	problem string // why not the fleet, where it should
}

// revoke enforces the revocations, makes them durable, and hands them to the
// fleet. Without room for all of them nothing is promised; with a journal that
// cannot be written they are enforced all the same. What came through this gateway
// before goes no further, so that gateways which forward to each other come to an
// end; that it is known here says nothing about the hub.
func (g *gateway) revoke(ctx context.Context, rs []denylist.Revocation, now time.Time, via []string) (scope, error) {
	kept := make([]denylist.Revocation, len(rs))
	for i, r := range rs {
		kept[i] = r
		kept[i].Expiry = g.list.Retention(r, now)
	}
	var written error
	if err := g.fleet.learn(func() (news []denylist.Revocation, err error) {
		// With the expiry that it has from now on: that a session is revoked again is
		// news to those who would forget it sooner.
		if news, err = g.list.Add(kept, now); err == nil {
			g.metrics.Applied(time.Since(now))
			written = g.journal.Append(kept)
		}
		return news, err
	}); err != nil {
		g.log.Error("a revocation could not be applied", "error", err)
		return scope{name: "local"}, err
	}
	reach := g.reach(ctx, kept, via)
	for _, r := range rs {
		g.audit.Info("revoked", "issuer", r.Issuer, "kind", r.Kind.String(), "reason", r.Reason, "durable", written == nil, "scope", reach.name)
	}
	g.logs.settle() // once for all of them: each would wait for the one before
	if written != nil {
		g.undurable.Store(true)
		g.log.Error("the journal cannot be written; what was revoked is enforced, but a restart would forget it", "error", written)
	}
	return reach, written
}

// reach forwards revocations to a hub, if one is configured for that. What a gateway
// that follows a hub publishes by itself does not come to that hub, nor to those who
// follow it.
func (g *gateway) reach(ctx context.Context, rs []denylist.Revocation, via []string) scope {
	if w := g.fleet.writer; w != nil {
		if slices.Contains(via, w.Source()) {
			return scope{"local", "it came through this gateway before: its feeds forward to each other"}
		}
		via = append(slices.Clone(via), w.Source())
	}
	configured, err := g.fleet.hub.now(context.WithoutCancel(ctx), rs, via)
	switch {
	case err != nil:
		g.log.Error("a revocation is enforced here, and not by the fleet yet", "error", err)
		return scope{"local", err.Error()}
	case configured || g.fleet.writer != nil && !g.follows():
		return scope{name: "fleet"}
	case g.fleet.writer != nil:
		return scope{"local", "only those who follow this gateway hear of it; let its feed forward_revocations"}
	}
	return scope{name: "local"}
}

// follows is whether this gateway follows others.
func (g *gateway) follows() bool {
	for _, f := range *g.following.Load() {
		if f.follower != nil {
			return true
		}
	}
	return false
}

// revokeToken denies one verified token, for the session endpoint's DELETE.
func (g *gateway) revokeToken(ctx context.Context, c *token.Claims) error {
	if g.journal == nil {
		return errNoState
	}
	// Signing out again writes nothing, so that nobody can fill the journal with one
	// token; but once a write has failed, what is enforced may not be on disk.
	if g.list.Check(c, time.Now()) != 0 && !g.undurable.Load() {
		return nil
	}
	_, err := g.revoke(ctx, []denylist.Revocation{{Issuer: c.Issuer.URL(), Kind: token.KindToken, Value: c.TokenID, Expiry: c.Expiry, Reason: "signed out"}}, time.Now(), nil)
	return err
}

// serveRevocationsCheck tells whether something is revoked: iss, and one of jti,
// sid, sub and client, or none for the whole issuer.
func (g *gateway) serveRevocationsCheck(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	issuer := q.Get("iss")
	if issuers := g.list.Issuers(); issuer == "" && len(issuers) == 1 {
		issuer = issuers[0].URL
	}
	if issuer == "" {
		adminError(w, http.StatusBadRequest, "iss is missing, and more than one issuer is configured")
		return
	}
	kind, value, named := token.KindIssuer, "", 0
	for _, k := range [...]token.Kind{token.KindToken, token.KindSession, token.KindSubject, token.KindClient} {
		if q.Has(k.String()) {
			kind, value = k, q.Get(k.String())
			named++
		}
	}
	if named > 1 || named == 1 && value == "" {
		adminError(w, http.StatusBadRequest, "name one of jti, sid, sub and client")
		return
	}
	entry, revoked := g.list.Lookup(kind, issuer, value)
	answer := map[string]any{"revoked": revoked, "kind": kind.String(), "state": g.list.State(issuer, time.Now()).String()}
	if revoked {
		answer["until"] = entry.Until.UTC()
		if !entry.Before.IsZero() {
			answer["before"] = entry.Before.UTC()
		}
	}
	writeJSON(w, http.StatusOK, answer)
}
