package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestLocalPath(t *testing.T) {
	for _, tt := range []struct{ to, want string }{
		{"/", "/"},
		{"/admin/", "/admin/"},
		{"/api/orders?page=2&of=a%2Fb", "/api/orders?page=2&of=a%2Fb"},
		{"/a//b", "/a//b"},
		{"/?to=https://evil.example", "/?to=https://evil.example"},
		{"", "/"},
		{"admin", "/"},
		{"https://evil.example/", "/"},
		{"http:/admin", "/"},
		{"javascript:alert(1)", "/"},
		{"//evil.example/", "/"},
		{"///evil.example/", "/"},
		{`/\evil.example/`, "/"},
		{`\\evil.example/`, "/"},
		{"/\t/evil.example/", "/"},
		{"/\n/evil.example/", "/"},
		{" //evil.example/", "/"},
		{"/%zz", "/"},
	} {
		if got := localPath(tt.to); got != tt.want {
			t.Errorf("localPath(%q) is %q, want %q", tt.to, got, tt.want)
		}
	}
}

func TestDemoLogin(t *testing.T) {
	issuer, err := newDemoIssuer("http://issuer.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, site, form string
		status           int
		location         string
	}{
		{"from its own page", "same-origin", "user=alice&return_to=/admin/", 303, "/admin/"},
		{"without a browser", "", "user=alice", 303, "/"},
		{"and to another host", "same-origin", "user=alice&return_to=//evil.example/", 303, "/"},
		{"from another site", "cross-site", "user=alice&return_to=/admin/", 403, ""},
		{"as a stranger", "same-origin", "user=mallory", 400, ""},
		{"as nobody", "same-origin", "", 400, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/login/", strings.NewReader(tt.form))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			if tt.site != "" {
				r.Header.Set("Sec-Fetch-Site", tt.site)
			}
			w := httptest.NewRecorder()
			issuer.handler().ServeHTTP(w, r)
			res := w.Result()
			if res.StatusCode != tt.status || res.Header.Get("Location") != tt.location {
				t.Errorf("%d to %q, want %d to %q", res.StatusCode, res.Header.Get("Location"), tt.status, tt.location)
			}
			cookies := res.Cookies()
			if want := tt.status == 303; (len(cookies) == 1) != want {
				t.Fatalf("cookies %v, want one: %v", cookies, want)
			}
			for _, c := range cookies {
				if c.Name != "__Host-session" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" {
					t.Errorf("the cookie is %v", c)
				}
			}
		})
	}
}

func TestDemoLog(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{`{"level":"INFO","msg":"request","decision":{"method":"GET","path":"/","status":200,"reason":"public"}}`, "-      GET     /                        200 public\n"},
		{`{"level":"WARN","msg":"request","decision":{"method":"GET","path":"/x","subject":"bob","status":401,"reason":"revoked","detail":"by sid"}}`, "bob    GET     /x                       401 revoked: by sid\n"},
		{`{"level":"INFO","msg":"revoked","kind":"sid"}`, "revoked by its sid\n"},
		{`{"level":"INFO","msg":"the configuration was reloaded","why":"file"}`, "the configuration was reloaded\n"},
		{`{"level":"INFO","msg":"keys changed","keys":1}`, ""},
		{`{"level":"ERROR","msg":"the old one stays","problems":"a.yaml:1: bad"}`, "the old one stays\na.yaml:1: bad\n"},
		{`{"level":"WARN","msg":"odd"}`, "odd\n"},
		{"no JSON\n", "no JSON\n"},
	} {
		var out strings.Builder
		n, err := demoLog{&out}.Write([]byte(tt.line))
		if n != len(tt.line) || err != nil || out.String() != tt.want {
			t.Errorf("%s: %d, %v, wrote %q, want %q", tt.line, n, err, out.String(), tt.want)
		}
	}
}
