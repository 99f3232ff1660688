package test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What a key may revoke, every gateway holds its records against: what is beyond its
// grant is refused, what is over its budget waits for an operator, and neither
// disturbs the rest.
func TestGrants(t *testing.T) {
	t.Parallel()
	private, public := sourceKey(t)
	f := startFleet(t, 0, fmt.Sprintf(", signing_key_file: %q", private), "")
	follow := func(grant string) *gateway {
		config := f.followerConfig(f.address, "", fmt.Sprintf(", source_keys: {hub: {file: %q%s}}", public, grant))
		config = strings.Replace(config, "listen:", "admin: "+freePort(t)+"\nlisten:", 1)
		g := startGateway(t, config)
		g.waitReady()
		return g
	}
	free := follow("")
	noIssuer := follow(", issuers: [corp], kinds: [jti, sid]")
	noMass := follow(", mass: false")
	id := func() string { return fmt.Sprintf("id-%d", jtis.Add(1)) }
	revoke := func(line string) {
		t.Helper()
		if status, answer := f.hub.call("POST", "/revocations", line); status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
	}
	jti, sub, client := id(), id(), id()
	tokens := map[string]string{
		"jti": f.idp.token(map[string]any{"jti": jti}), "sub": f.idp.token(map[string]any{"sub": sub}), "client": f.idp.token(map[string]any{"client_id": client}),
	}
	revoke(fmt.Sprintf(`{"sub":%q}`, sub))
	revoke(fmt.Sprintf(`{"client":%q}`, client))
	revoke(fmt.Sprintf(`{"jti":%q}`, jti))
	refusedAt(t, tokens["jti"], free, noIssuer, noMass) // the last one: all have read the others
	for _, c := range []struct {
		g    *gateway
		kind string
		want int
	}{
		{free, "sub", 401}, {free, "client", 401}, {noIssuer, "sub", 200}, {noIssuer, "client", 200}, {noMass, "sub", 401}, {noMass, "client", 200},
	} {
		if status, reason := c.g.status(tokens[c.kind], "/"); status != c.want {
			t.Errorf("%s: %d %s, want %d", c.kind, status, reason, c.want)
		}
	}
	for _, g := range []*gateway{noIssuer, noMass} {
		if text := send(t, "GET", g.admin+"/status", "").Body; !strings.Contains(text, "the grant of its key does not cover it") {
			t.Errorf("/status does not tell: %s", text)
		}
	}

	// Over the budget.
	bounded := follow(", per_minute: 50")
	many := f.idp.bearers(120)
	f.hub.revokes(many...)
	waits := func(g *gateway, n int) bool {
		return strings.Contains(send(t, "GET", g.admin+"/metrics", "").Body, fmt.Sprintf("durward_denylist_quarantined{feed=%q} %d\n", "hub", n))
	}
	refusedAt(t, many[119].text, free)
	eventually(t, 5*time.Second, "what is over the budget waits", func() bool {
		return waits(bounded, 70) || waits(bounded, 71) || waits(bounded, 72) || waits(bounded, 73)
	})
	bounded.says(many[0], "/", 401, "revoked")
	bounded.says(many[119], "/", 200, "")
	if lines := bounded.log.lines("a source revokes more than its budget: what is over it is not enforced and waits for an operator (durward feed release)"); len(lines) != 1 || lines[0]["level"] != "ERROR" {
		t.Errorf("the log has no alarm:\n%s", bounded.log)
	}
	// A restart forgets nothing of it.
	bounded.stop()
	bounded.start()
	bounded.waitReady()
	eventually(t, 5*time.Second, "it still waits", func() bool { return !waits(bounded, 0) })
	bounded.says(many[0], "/", 401, "revoked")
	release := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(binary, append([]string{"feed", "release", "-config", bounded.config, "-key"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := release("hub"); !strings.Contains(out, "are enforced now at this gateway") {
		t.Errorf("feed release: %s", out)
	}
	for _, b := range many {
		bounded.says(b, "/", 401, "revoked")
	}
	if !waits(bounded, 0) {
		t.Error("something still waits")
	}
	more := f.idp.bearers(120)
	f.hub.revokes(more...)
	eventually(t, 5*time.Second, "what is over the budget waits", func() bool { return !waits(bounded, 0) })
	if out := release("hub", "-drop"); !strings.Contains(out, "are dropped at this gateway") {
		t.Errorf("feed release -drop: %s", out)
	}
	bounded.says(more[119], "/", 200, "")
	if out, err := exec.Command(binary, "feed", "release", "-config", bounded.config, "-key", "nobody").CombinedOutput(); err == nil {
		t.Errorf("feed release of nobody's: %s", out)
	}
}
