package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The status tells what was refused and why, as JSON to programs and as a page to
// browsers, and nothing of whom.
func TestStatus(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 1, "", "")
	g := f.gateways[0]
	subject, path := fmt.Sprintf("alice-%d", jtis.Add(1)), "/private-path"
	good := f.idp.token(jwt.MapClaims{"sub": subject})
	dead := f.idp.bearer()
	f.hub.revokes(dead)
	refusedAt(t, dead.text, g)
	for range 5 {
		g.status(good, path)
	}
	send(t, "GET", g.url(path), "")
	g.status("garbage", path)

	var said struct {
		Ready  bool
		Routes []struct {
			Name     string
			Requests int
			Refused  map[string]int
		}
		Latest []struct {
			Route, Method, Reason, ID string
			Status                    int
		} `json:"latest_refusals"`
		Reload *string `json:"reload_problem"`
	}
	text := send(t, "GET", g.admin+"/status", "").Body
	if err := json.Unmarshal([]byte(text), &said); err != nil {
		t.Fatal(err)
	}
	app := said.Routes[len(said.Routes)-1]
	if app.Name != "app" || app.Requests < 8 || app.Refused["no_token"] != 1 || app.Refused["token_malformed"] != 1 || app.Refused["revoked"] < 1 {
		t.Errorf("%+v", app)
	}
	if len(said.Latest) < 3 || said.Latest[0].Reason != "token_malformed" || said.Latest[0].Route != "app" || said.Latest[0].Status != 401 || said.Latest[0].ID == "" || said.Latest[1].Reason != "no_token" {
		t.Errorf("%+v", said.Latest)
	}
	if said.Reload != nil {
		t.Errorf("a reload was refused: %s", *said.Reload)
	}
	page := send(t, "GET", g.admin+"/status", "", "Accept: text/html,application/xhtml+xml,*/*;q=0.8")
	if !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") || !strings.Contains(page.Body, "token_malformed") {
		t.Errorf("no page for a browser: %s", page.Body)
	}
	secrets := []string{subject, path, dead.jti, dead.text[:40], good[:40], hubToken}
	for _, secret := range secrets {
		if strings.Contains(text+page.Body, secret) {
			t.Errorf("the status tells %s", secret)
		}
	}
	good2, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	g.write(string(good2) + "\nunknown: <b>bold</b>\n")
	if status, _ := g.call("POST", "/reload", ""); status != 422 {
		t.Fatalf("a wrong configuration: %d", status)
	}
	page = send(t, "GET", g.admin+"/status", "", "Accept: text/html")
	if !strings.Contains(page.Body, "The last change of the configuration was refused") || strings.Contains(page.Body, "<b>bold") {
		t.Error("the page does not tell that a reload was refused, or not as text")
	}
	g.write(string(good2))
	if status, answer := g.call("POST", "/reload", ""); status != 200 {
		t.Fatal(status, answer)
	}

	// As people see it.
	node := need(t, "node", "apt-get install nodejs npm")
	chromium := need(t, "chromium", "apt-get install chromium")
	if _, err := os.Stat("node/node_modules/playwright-core"); err != nil {
		lack(t, "playwright-core is missing; install it with: (cd test/node && npm ci --ignore-scripts)")
	}
	screenshots := os.Getenv("SCREENSHOTS")
	if screenshots == "" {
		screenshots = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	browser := exec.CommandContext(ctx, node, "status.mjs", g.admin+"/status")
	browser.Dir = "node"
	browser.Env = append(os.Environ(), "CHROMIUM="+chromium, "SCREENSHOTS="+screenshots, "SECRETS="+strings.Join(secrets, " "))
	browser.WaitDelay = 5 * time.Second
	if out, err := browser.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	if taken, _ := filepath.Glob(filepath.Join(screenshots, "status-*.png")); len(taken) != 3 {
		t.Errorf("%d pictures were taken", len(taken))
	}
}
