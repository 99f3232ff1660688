package metrics

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"durward/decision"
	"durward/denylist"
	"durward/token"
)

func newMetrics(t *testing.T) (*Metrics, *denylist.List) {
	t.Helper()
	issuer, err := token.NewIssuer(token.IssuerConfig{Name: "corp", Issuer: "https://corp.test", Audiences: []string{"app"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	list := denylist.New(100)
	hub := denylist.NewFollower(denylist.FollowerConfig{List: list, Source: list.Candidate("hub", time.Minute)})
	issuer.MissedBy("sid")
	return New("1.2.3", Sources{
		Followers: func() map[string]*denylist.Follower { return map[string]*denylist.Follower{"hub": hub} },
		Inflight:  func() int64 { return 3 }, Streams: func() int64 { return 2 }, CookiesDropped: func() uint64 { return 1 }, Omitted: func() uint64 { return 4 },
		LogLost: func() uint64 { return 6 },
		Paced:   func() uint64 { return 7 },
		Cuts:    map[string]func() uint64{"revoked": func() uint64 { return 5 }},
		Cache:   func() (hits, misses uint64) { return 7, 8 },
		Issuers: func() []*token.Issuer { return []*token.Issuer{issuer} }, List: list,
	}), list
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body, err := io.ReadAll(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("%d, %v: %s", w.Code, err, body)
	}
	return string(body)
}

func TestScrape(t *testing.T) {
	m, list := newMetrics(t)
	source := list.Source("local", time.Minute)
	source.Synced(time.Now())
	allowed := &decision.Record{Route: "orders", Took: time.Millisecond, Waited: time.Millisecond}
	allowed.Allow(decision.Allowed)
	m.Observe(allowed)
	m.Observe(allowed)
	refused := &decision.Record{}
	refused.Refuse(decision.NoRoute, "/wp-login.php")
	m.Observe(refused)
	m.Unparsed(2)
	m.Applied(time.Millisecond)
	m.Reloaded(true, time.Unix(1790000000, 0))
	m.Reloaded(false, time.Unix(1790000001, 0))
	got := scrape(t, m)
	for _, want := range []string{
		`durward_requests_total{reason="allowed",route="orders",verdict="allow"} 2`,
		`durward_denylist_feed_events_total{event="gap",feed="hub"} 0`,
		`durward_requests_total{reason="no_route",route="-",verdict="deny"} 1`,
		`durward_request_duration_seconds_count{route="orders"} 2`,
		`durward_decision_duration_seconds_count 3`,
		`durward_upstream_duration_seconds_count{route="orders"} 2`,
		`durward_inflight_requests 3`, `durward_streams_open 2`, `durward_streams_cut_total{cause="revoked"} 5`,
		`durward_token_cache_hits_total 7`, `durward_token_cache_misses_total 8`,
		`durward_jwks_refresh_total{issuer="corp",result="error"} 0`,
		`durward_denylist_unenforceable_total{issuer="corp",kind="sid"} 1`, `durward_denylist_unenforceable_total{issuer="corp",kind="auth_time"} 0`,
		`durward_denylist_entries{kind="jti"} 0`, `durward_denylist_bytes 0`,
		`durward_denylist_feed_state{feed="local",state="live"} 1`, `durward_denylist_feed_state{feed="local",state="stale"} 0`,
		`durward_denylist_feed_age_seconds{feed="local"}`, `durward_denylist_apply_delay_seconds_count 1`,
		`durward_config_last_reload_successful 0`, `durward_config_last_reload_success_timestamp_seconds 1.79e+09`,
		`durward_build_info{version="1.2.3"} 1`, `durward_requests_unparsed_total 2`, `durward_log_lines_lost_total 6`, `durward_http2_paced_total 7`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in the scrape", want)
		}
	}
	if strings.Contains(got, "wp-login") {
		t.Error("a path became a label")
	}
}

func TestNames(t *testing.T) {
	m, _ := newMetrics(t)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
