// Package metrics counts what decisions say and exports what the parts of the
// gateway know about themselves, in Prometheus' format, from a registry of its
// own. Labels come from fixed sets alone: route, verdict, reason, issuer, feed.
package metrics

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"durward/decision"
	"durward/denylist"
	"durward/token"
)

// noRoute labels requests that no route matched, so that scanners add no series.
const noRoute = "-"

// Metrics holds the counters that requests and reloads write.
type Metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	decided   prometheus.Histogram
	upstream  *prometheus.HistogramVec
	unparsed  prometheus.Counter
	apply     prometheus.Histogram
	canary    *prometheus.HistogramVec
	canaryT   *prometheus.GaugeVec
	reloadOK  prometheus.Gauge
	reloadedT prometheus.Gauge

	outcomes sync.Map // *series by outcome
}

// Sources are the functions that a scrape asks. All must be set.
type Sources struct {
	Inflight       func() int64
	Streams        func() int64
	CookiesDropped func() uint64
	Omitted        func() uint64            // identity elements left out
	LogLost        func() uint64            // lines of log that nobody took
	Paced          func() uint64            // waits of clients that send too many frames
	Cuts           map[string]func() uint64 // requests in progress that were cut, by cause
	Cache          func() (hits, misses uint64)
	Issuers        func() []*token.Issuer
	List           *denylist.List
	// Followers are the feeds that travel in records, by name.
	Followers func() map[string]*denylist.Follower
}

// New makes the registry. version is the program's, for build_info.
func New(version string, src Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "durward_requests_total", Help: "Requests by route, verdict and reason."}, []string{"route", "verdict", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "durward_request_duration_seconds", Help: "From arrival to the last byte sent.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}}, []string{"route"}),
		decided: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "durward_decision_duration_seconds", Help: "From arrival to the verdict.",
			Buckets: []float64{1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2, .1, 1}}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "durward_upstream_duration_seconds", Help: "From forwarding to the upstream's response header.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}}, []string{"route"}),
		unparsed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "durward_requests_unparsed_total", Help: "Requests that could not be read, or were lost, before any decision."}),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "durward_denylist_apply_delay_seconds", Help: "From a revocation's making to its enforcement here.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 5, 30}}),
		canary: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "durward_denylist_canary_seconds", Help: "From the making of a revocation that is only there to be looked for until it was found revoked here.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10}}, []string{"feed"}),
		canaryT: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "durward_denylist_canary_timestamp_seconds", Help: "When the last revocation that is only there to be looked for was found."}, []string{"feed"}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "durward_config_last_reload_successful", Help: "1 if the last load of the configuration succeeded."}),
		reloadedT: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "durward_config_last_reload_success_timestamp_seconds", Help: "When the configuration in use was loaded."}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "durward_build_info", Help: "Always 1; the label says which version runs.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	counter := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f)
	}
	m.registry.MustRegister(
		m.requests, m.duration, m.decided, m.upstream, m.unparsed, m.apply, m.canary, m.canaryT, m.reloadOK, m.reloadedT, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("durward_inflight_requests", "Requests in progress.", func() float64 { return float64(src.Inflight()) }),
		gauge("durward_streams_open", "Open WebSockets, event streams and gRPC calls.", func() float64 { return float64(src.Streams()) }),
		counter("durward_session_cookies_dropped_total", "Session cookies that an upstream had no business to set.", func() float64 { return float64(src.CookiesDropped()) }),
		counter("durward_identity_elements_omitted_total", "Elements of array claims left out because they contain the separator.", func() float64 { return float64(src.Omitted()) }),
		counter("durward_token_cache_hits_total", "Tokens that needed no signature check.", func() float64 { hits, _ := src.Cache(); return float64(hits) }),
		counter("durward_token_cache_misses_total", "Tokens that were not in the cache.", func() float64 { _, misses := src.Cache(); return float64(misses) }),
		counter("durward_log_lines_lost_total", "Lines of log that were lost because whoever reads it took none.", func() float64 { return float64(src.LogLost()) }),
		counter("durward_http2_paced_total", "How often a client was made to wait because it sends more frames of HTTP/2 than it has use for.", func() float64 { return float64(src.Paced()) }),
		state{src},
	)
	return m
}

// Handler answers a scrape.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Observe counts a finished request.
func (m *Metrics) Observe(rec *decision.Record) {
	route := rec.Route
	if route == "" {
		route = noRoute
	}
	s := m.of(outcome{route, rec.Verdict, rec.Reason, rec.Waited > 0})
	s.requests.Inc()
	s.duration.Observe(rec.Took.Seconds())
	m.decided.Observe(rec.Decided.Seconds())
	if s.upstream != nil {
		s.upstream.Observe(rec.Waited.Seconds())
	}
}

// An outcome is what tells the series of requests apart. There are as few as there
// are series.
type outcome struct {
	route   string
	verdict decision.Verdict
	reason  decision.Reason
	waited  bool // for an upstream; without, there is no series of one
}

// series are those that requests of one outcome count in.
type series struct {
	requests           prometheus.Counter
	duration, upstream prometheus.Observer
}

// of finds the series once for each outcome: by its labels it takes longer than all
// else about them.
func (m *Metrics) of(o outcome) *series {
	if s, known := m.outcomes.Load(o); known {
		return s.(*series)
	}
	s := &series{requests: m.requests.WithLabelValues(o.route, o.verdict.String(), string(o.reason)), duration: m.duration.WithLabelValues(o.route)}
	if o.waited {
		s.upstream = m.upstream.WithLabelValues(o.route)
	}
	m.outcomes.Store(o, s)
	return s
}

// Unparsed counts requests that never reached a decision.
func (m *Metrics) Unparsed(n int) { m.unparsed.Add(float64(n)) }

// Canary notes how long a revocation that is only there to be looked for took, from
// its making until it was found here.
func (m *Metrics) Canary(feed string, delay time.Duration) {
	m.canary.WithLabelValues(feed).Observe(delay.Seconds())
	m.canaryT.WithLabelValues(feed).SetToCurrentTime()
}

// Applied notes how long a revocation took from its making to its enforcement.
func (m *Metrics) Applied(delay time.Duration) { m.apply.Observe(delay.Seconds()) }

// Reloaded notes the outcome of a load of the configuration.
func (m *Metrics) Reloaded(ok bool, now time.Time) {
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloadedT.Set(float64(now.UnixNano()) / 1e9)
}

// state collects what the parts know about themselves at the time of a scrape.
type state struct{ Sources }

// Describe leaves the collector unchecked: its series follow the configuration.
func (state) Describe(chan<- *prometheus.Desc) {}

// Collect asks keys and denylist.
func (s state) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	send := func(kind prometheus.ValueType, name, help string, value float64, labels []string, values ...string) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, labels, nil), kind, value, values...)
	}
	for cause, count := range s.Cuts {
		send(prometheus.CounterValue, "durward_streams_cut_total", "Requests in progress that were cut.", float64(count()), []string{"cause"}, cause)
	}
	for _, issuer := range s.Issuers() {
		status := issuer.Keys().Status(now)
		if status.Age >= 0 {
			send(prometheus.GaugeValue, "durward_jwks_age_seconds", "Since the issuer's keys were last fetched.", status.Age.Seconds(), []string{"issuer"}, issuer.Name())
		}
		const refresh, help = "durward_jwks_refresh_total", "Fetches of the issuer's keys."
		send(prometheus.CounterValue, refresh, help, float64(status.Refreshed), []string{"issuer", "result"}, issuer.Name(), "ok")
		send(prometheus.CounterValue, refresh, help, float64(status.Failed), []string{"issuer", "result"}, issuer.Name(), "error")
		for _, share := range issuer.Shares() {
			send(prometheus.CounterValue, "durward_denylist_unenforceable_total", "Revocations by a claim that not all of the issuer's tokens carry.", float64(share.Missed), []string{"issuer", "kind"}, issuer.Name(), share.Claim)
		}
	}
	stats := s.List.Stats()
	for kind := 1; kind <= token.Kinds; kind++ {
		send(prometheus.GaugeValue, "durward_denylist_entries", "Revocations in force.", float64(stats.Entries[kind]), []string{"kind"}, token.Kind(kind).String())
	}
	send(prometheus.GaugeValue, "durward_denylist_bytes", "Estimated memory of the denylist.", float64(stats.Bytes), nil)
	send(prometheus.GaugeValue, "durward_denylist_max_entries", "How many revocations fit.", float64(stats.Max), nil)
	for feed, follower := range s.Followers() {
		for e := range denylist.Event(denylist.Events) {
			send(prometheus.CounterValue, "durward_denylist_feed_events_total", "What happened to the feed's records: applied, duplicate, gap, fork, rewind, renewed, forged, garbled, resynced.",
				float64(follower.Count(e)), []string{"feed", "event"}, feed, e.String())
		}
		waits := 0
		for _, n := range follower.Quarantined() {
			waits += n
		}
		send(prometheus.GaugeValue, "durward_denylist_quarantined", "Operations over a source's budget, which are not enforced and wait for an operator.", float64(waits), []string{"feed"}, feed)
	}
	for _, source := range s.List.Sources() {
		status := source.Status(now)
		if status.Age >= 0 {
			send(prometheus.GaugeValue, "durward_denylist_feed_age_seconds", "Since the feed's last sign of life.", status.Age.Seconds(), []string{"feed"}, status.Name)
		}
		for _, state := range [...]denylist.State{denylist.Cold, denylist.Syncing, denylist.Live, denylist.Stale} {
			value := 0.0
			if state == status.State {
				value = 1
			}
			send(prometheus.GaugeValue, "durward_denylist_feed_state", "1 for the state that the feed is in.", value, []string{"feed", "state"}, status.Name, state.String())
		}
		send(prometheus.CounterValue, "durward_denylist_feed_applied_total", "Revocations taken from the feed, repetitions included.", float64(status.Applied), []string{"feed"}, status.Name)
		send(prometheus.CounterValue, "durward_denylist_feed_refused_total", "Lines of the feed that were not understood.", float64(status.Refused), []string{"feed"}, status.Name)
	}
}
