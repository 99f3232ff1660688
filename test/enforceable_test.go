package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// note revokes one line, which must be applied, and returns what the answer notes.
func (g *gateway) note(line string) string {
	g.t.Helper()
	status, text := g.call("POST", "/revocations", line)
	var answer struct {
		Lines []struct{ Status, Note string }
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != 200 || len(answer.Lines) != 1 || answer.Lines[0].Status != "applied" {
		g.t.Fatalf("POST /revocations %s: %d %s, %v", line, status, text, err)
	}
	return answer.Lines[0].Note
}

// claimsOf is what /status tells of the first issuer's tokens, and all its warnings.
func (g *gateway) claimsOf() (claims map[string]float64, warning string, warnings []string) {
	g.t.Helper()
	var status struct {
		Issuers []struct {
			Claims  map[string]float64
			Warning string
		}
		Warnings []string
	}
	if err := json.Unmarshal([]byte(send(g.t, "GET", g.admin+"/status", "").Body), &status); err != nil {
		g.t.Fatal(err)
	}
	return status.Issuers[0].Claims, status.Issuers[0].Warning, status.Warnings
}

// TestUnenforceable: who revokes by a claim that the issuer's tokens lack is told,
// and who revokes by one that they carry is not.
func TestUnenforceable(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		claims jwt.MapClaims // of all tokens
		line   string
		kind   string // of the metric
		want   string // in the note; "" for none
	}{
		{"no sid", jwt.MapClaims{"sid": nil}, `{"sid":"s"}`, "sid", "only 0 % of the 20 tokens of issuer corp seen lately carry sid; what lacks it is not revoked; revoke the sub instead"},
		{"sid", jwt.MapClaims{"sid": "s0"}, `{"sid":"s"}`, "sid", ""},
		{"no sid, a cutoff", jwt.MapClaims{"sid": nil}, `{"sid":"s","before":1000}`, "sid", "carry sid"},
		{"neither sid nor sub", jwt.MapClaims{"sid": nil, "sub": nil}, `{"sid":"s"}`, "sid", "revoke all of the issuer's tokens instead"},
		{"no sub", jwt.MapClaims{"sub": nil}, `{"sub":"s"}`, "sub", "carry sub; what lacks it is not revoked; revoke all of the issuer's tokens instead"},
		{"sub", nil, `{"sub":"s"}`, "sub", ""},
		{"no client", nil, `{"client":"c"}`, "client", "carry client; what lacks it is not revoked; revoke all of the issuer's tokens instead"},
		{"client", jwt.MapClaims{"client_id": "c0"}, `{"client":"c"}`, "client", ""},
		{"jti", nil, `{"jti":"j"}`, "jti", ""},
		{"no jti", jwt.MapClaims{"jti": nil}, `{"jti":"j"}`, "jti", `what lacks it has no name but "sha256:"`},
		{"no jti, by the other name", jwt.MapClaims{"jti": nil}, `{"jti":"sha256:0123"}`, "jti", ""},
		{"no auth_time", nil, `{"sub":"s","before":1000,"by":"auth_time"}`, "auth_time", "carry auth_time; what lacks it is judged by its iat"},
		{"auth_time", jwt.MapClaims{"auth_time": 1000}, `{"sub":"s","before":1000,"by":"auth_time"}`, "auth_time", ""},
		{"the whole issuer", jwt.MapClaims{"sub": nil}, `{"iss":%q,"before":1000}`, "sub", ""},
		{"too far ahead as well", jwt.MapClaims{"sid": nil}, `{"sid":"s","before":9000000000}`, "sid", "was clamped; only 0 %"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			idp, app := newIssuer(t), newUpstream(t)
			g := serving(t, fmt.Sprintf("listen: 127.0.0.1:0\nissuers: [{name: corp, issuer: %q, audiences: [app], require_jti: false}]\nroutes: [{name: all, upstream: %q}]\n", idp.URL, app.URL))
			line := strings.Replace(tt.line, "%q", fmt.Sprintf("%q", idp.URL), 1)
			if note := g.note(line); strings.Contains(note, "carry") {
				t.Fatalf("no token was seen yet, and still: %s", note)
			}
			if claims, warning, _ := g.claimsOf(); claims["tokens"] != 0 || len(claims) != 1 || warning != "" {
				t.Errorf("before any token: %v %q", claims, warning)
			}
			for i := range 20 {
				claims := jwt.MapClaims{"n": i} // which makes each token another
				for name, v := range tt.claims {
					claims[name] = v
				}
				g.passes("a token", idp.token(claims))
			}
			note := g.note(line)
			metric := metric(t, g, fmt.Sprintf(`durward_denylist_unenforceable_total{issuer="corp",kind=%q}`, tt.kind))
			claims, warning, warnings := g.claimsOf()
			if claims["tokens"] != 20 {
				t.Errorf("%v tokens, want 20", claims["tokens"])
			}
			if tt.want == "" {
				if note != "" || metric != 0 || warning != "" {
					t.Errorf("a note %q, the metric %v, a warning %q", note, metric, warning)
				}
				return
			}
			if !strings.Contains(note, tt.want) {
				t.Errorf("the note is %q, want %q", note, tt.want)
			}
			if share, ok := claims[tt.kind]; metric != 1 || share != 0 || !ok {
				t.Errorf("the metric is %v, the claims %v", metric, claims)
			}
			if want := "1 revocations went by " + tt.kind + " "; !strings.Contains(warning, want) || !strings.Contains(strings.Join(warnings, "\n"), want) {
				t.Errorf("the warnings are %q and %q", warning, warnings)
			}
			if log := g.log.lines("a revocation does not reach all of its issuer's tokens"); len(log) != 1 {
				t.Errorf("%d lines of the log", len(log))
			}
		})
	}
}

// TestUnenforceableByCommand: durward revoke prints the note, also after a reload,
// which keeps what was counted.
func TestUnenforceableByCommand(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	admin := freeAddress(t)
	config := "admin: " + admin + "\n" + guarded(idp, "routes: [{name: all, upstream: %q}]\n", app.URL)
	g := serving(t, config)
	for i := range 3 {
		g.passes("a token", idp.token(jwt.MapClaims{"n": i}))
	}
	g.write(config + "hide_reasons: true\n")
	if status, text := g.call("POST", "/reload", ""); status != 200 {
		t.Fatal(status, text)
	}
	status, out, notes := durward(t, "revoke", "-config", g.config, "-sid", "s")
	if status != 0 || !strings.HasPrefix(out, "revoked: ") || !strings.Contains(notes, "only 0 % of the 3 tokens of issuer corp seen lately carry sid; ") {
		t.Errorf("by sid: %d %q %q", status, out, notes)
	}
	status, out, notes = durward(t, "revoke", "-config", g.config, "-sub", "mallory")
	if status != 0 || !strings.HasPrefix(out, "revoked: ") || notes != "" {
		t.Errorf("the twin, by sub: %d %q %q", status, out, notes)
	}
}

// TestUnenforceableRejected: on_unenforceable: reject refuses such a line, and no
// other one beside it; what a feed says is applied all the same.
func TestUnenforceableRejected(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newUpstream(t)
	feed := filepath.Join(t.TempDir(), "revoked.jsonl")
	if err := os.WriteFile(feed, []byte("{\"sid\":\"fed\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := serving(t, withIssuers(app, fmt.Sprintf("denylist: {on_unenforceable: reject, feeds: [{name: local, file: %q}]}", feed), corp(idp)))
	g.revoke(`{"sid":"early"}`) // no token was seen yet: nothing is known against it
	g.passes("a token", idp.token(nil))
	status, text := g.call("POST", "/revocations", "{\"sid\":\"s\"}\n{\"sub\":\"mallory\"}\n")
	if status != 207 || !strings.Contains(text, "revoke the sub instead (denylist.on_unenforceable: reject)") {
		t.Errorf("by sid and by sub: %d %s", status, text)
	}
	for name, want := range map[string]bool{"sid=s": false, "sub=mallory": true, "sid=early": true, "sid=fed": true} {
		if _, text := g.call("GET", "/revocations/check?"+name, ""); !strings.Contains(text, fmt.Sprintf(`"revoked": %v`, want)) {
			t.Errorf("%s: %s, want %v", name, text, want)
		}
	}
	exit, out, errOut := durward(t, "check", "-config", g.config)
	if exit != 0 {
		t.Errorf("check: %s%s", out, errOut)
	}
}
