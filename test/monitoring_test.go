package test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The alerts are what promtool takes, and fire when they are to; each is in the runbook.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool := need(t, "promtool", "apt-get install prometheus")
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", args, err, out)
		}
	}
	rules, err := os.ReadFile("../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	runbook, err := os.ReadFile("../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	for _, name := range names {
		if !strings.Contains(string(runbook), "\n## "+name[1]+"\n") || !strings.Contains(string(rules), "docs/runbook.md#"+strings.ToLower(name[1])+"\n") {
			t.Errorf("the runbook does not know %s", name[1])
		}
	}
	if len(names) == 0 {
		t.Error("there are no alerts")
	}
}

// Every query of the dashboard has an answer from a Prometheus that looks at a hub and
// a gateway behind it, and the metrics are spelled as Prometheus would have them.
func TestDashboard(t *testing.T) {
	t.Parallel()
	program := need(t, "prometheus", "apt-get install prometheus")
	promtool := need(t, "promtool", "apt-get install prometheus")
	f := startFleet(t, 1, "", "")
	g := f.gateways[0]
	lint := exec.Command(promtool, "check", "metrics")
	lint.Stdin = strings.NewReader(send(t, "GET", g.admin+"/metrics", "").Body)
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	dir, address := t.TempDir(), freePort(t)
	config := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: durward\n    static_configs: [{targets: [%q, %q]}]\n",
		strings.TrimPrefix(f.hub.admin, "http://"), strings.TrimPrefix(g.admin, "http://"))
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	query := func(expr string) (answers int, problem string) {
		a, err := attempt("GET", "http://"+address+"/api/v1/query?query="+url.QueryEscape(expr), "")
		if err != nil {
			return 0, err.Error()
		}
		var said struct {
			Error string
			Data  struct{ Result []json.RawMessage }
		}
		if err := json.Unmarshal([]byte(a.Body), &said); err != nil {
			return 0, a.Body
		}
		return len(said.Data.Result), said.Error
	}
	dead, good := f.idp.bearer(), f.idp.bearer()
	f.hub.revokes(dead)
	traffic := func() {
		for _, b := range []bearer{dead, good} {
			f.hub.status(b.text, "/")
			g.status(b.text, "/")
		}
	}

	var dashboard struct {
		Title  string
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../deploy/grafana/durward.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			asked++
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "20s")
			eventually(t, 30*time.Second, fmt.Sprintf("%s: an answer to %s", p.Title, expr), func() bool {
				traffic()
				n, problem := query(expr)
				if problem != "" && strings.Contains(problem, "parse error") {
					t.Fatalf("%s: %s: %s", p.Title, expr, problem)
				}
				return n > 0
			})
		}
	}
	if asked < 20 {
		t.Errorf("the dashboard asks %d questions", asked)
	}
}
