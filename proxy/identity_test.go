package proxy

import (
	"encoding/json"
	"mime"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"durward/token"
)

func TestStrip(t *testing.T) {
	id, err := NewIdentity(IdentityConfig{Headers: map[string]HeaderConfig{"X-App-User": {Claim: "sub"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	set := newNameSet([]*Identity{id})
	for _, name := range []string{
		"X-App-User", "x-app-user", "X_App_User", "X.App.User", "X--App-User", "XAppUser", "x_app-USER",
		"X-Forwarded-User", "X_Forwarded_Email", "X-Forwarded-For", "X-Forwarded-Anything", "X_forwarded_proto", "Forwarded", "FORWARDED",
		"Durward-Reason", "durward_identity", "Remote-User", "REMOTE_USER", "X-Real-IP", "X-Original-URL", "X-Rewrite-Url", "X_Http_Method_Override",
		"X-Auth-Request-User", "X-Pomerium-Jwt-Assertion", "Cf-Access-Jwt-Assertion", "X-Amzn-Oidc-Data", "X-Goog-Iap-Jwt-Assertion", "Remote-Groups", "X_Request_Id", "Client-IP",
	} {
		h := http.Header{name: {"mallory"}}
		if set.strip(h); len(h) != 0 {
			t.Errorf("%s was left on", name)
		}
	}
	for _, name := range []string{"Accept", "X-App-Users", "X-Ap-User", "X-Request-Ids", "Client-Ips", "User-Agent", "Cookie", "Content-Type", "X-Requested-With", "Forward"} {
		h := http.Header{name: {"fine"}}
		if set.strip(h); len(h) != 1 {
			t.Errorf("%s was stripped", name)
		}
	}
}

func FuzzStrip(f *testing.F) {
	f.Add("X_User")
	f.Add("x.forwarded-for")
	f.Fuzz(func(t *testing.T, name string) {
		h := http.Header{name: {"mallory"}}
		newNameSet(nil).strip(h)
		folded := strings.Map(func(r rune) rune {
			if r < 0x80 && isAlphanumeric(byte(r)) {
				return r
			}
			return -1
		}, strings.Map(func(r rune) rune {
			if 'A' <= r && r <= 'Z' {
				return r | 0x20
			}
			return r
		}, name))
		if len(h) != 0 && (folded == "remoteuser" || strings.HasPrefix(folded, "xforwarded") || strings.HasPrefix(folded, "durward")) {
			t.Errorf("%q was left on", name)
		}
	})
}

func TestEncodeValue(t *testing.T) {
	for _, s := range []string{"alice", "Alice B. Example", "a@b.test", "a,b", "x=1?"} {
		if got := encodeValue(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	for _, s := range []string{"Carol Ærø", " admin", "admin ", "\tadmin", "a\r\nX-Evil: 1", "=?utf-8?q?admin?=", "nul\x00", "日本語", strings.Repeat("é", 200)} {
		got := encodeValue(s)
		for i := 0; i < len(got); i++ {
			if got[i] < ' ' || got[i] >= 0x7f {
				t.Errorf("%q became %q", s, got)
				break
			}
		}
		if got == s || strings.TrimSpace(got) != got {
			t.Errorf("%q stayed %q", s, got)
		}
		if back, err := new(mime.WordDecoder).DecodeHeader(got); err != nil || back != s {
			t.Errorf("%q became %q, which is read as %q, %v", s, got, back, err)
		}
	}
}

func FuzzEncodeValue(f *testing.F) {
	f.Add("alice")
	f.Add("é=?")
	f.Fuzz(func(t *testing.T, s string) {
		got := encodeValue(s)
		for i := 0; i < len(got); i++ {
			if got[i] < ' ' || got[i] >= 0x7f {
				t.Fatalf("%q became %q", s, got)
			}
		}
		if strings.TrimSpace(got) != got {
			t.Fatalf("%q became %q, whose ends a receiver cuts off", s, got)
		}
	})
}

func testIssuer(t testing.TB) *token.Issuer {
	t.Helper()
	i, err := token.NewIssuer(token.IssuerConfig{Name: "corp", Issuer: "https://corp.test", Audiences: []string{"app"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestSetIdentity(t *testing.T) {
	id, err := NewIdentity(IdentityConfig{Headers: map[string]HeaderConfig{
		"x-user": {Claim: "sub"}, "X-Groups": {Claim: "groups"}, "X-Roles": {Claim: "realm.roles", Separator: "|"},
		"X-Level": {Claim: "level"}, "X-Admin": {Claim: "admin"}, "X-None": {Claim: "missing"}, "X-Empty": {Claim: "empty"}, "X-Object": {Claim: "realm"},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := testIssuer(t).Suppose(map[string]any{
		"sub": "alice", "groups": []any{"a", "b,c", "", "d"}, "realm": map[string]any{"roles": []any{"x", "y,z"}},
		"level": 3, "admin": true, "empty": "",
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewIdentity(IdentityConfig{Headers: map[string]HeaderConfig{"X-User": {Claim: "level"}, "X-Groups": {Claim: "groups", Separator: ";"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Several requests with one token, on two routes: what one route makes of it is
	// nothing to the other, and each request has headers of its own.
	const requests = 100
	var asking sync.WaitGroup
	for range requests {
		for id, want := range map[*Identity]string{
			id:    `{"X-Admin":["true"],"X-Groups":["a,d"],"X-Level":["3"],"X-Roles":["x|y,z"],"X-User":["alice"]}`,
			other: `{"X-Groups":["a;b,c;d"],"X-User":["3"]}`,
		} {
			asking.Go(func() {
				h := http.Header{}
				id.set(h, claims)
				if got, _ := json.Marshal(h); string(got) != want {
					t.Errorf("got %s, want %s", got, want)
				}
				for name := range h {
					h.Add(name, "mallory")
				}
			})
		}
	}
	asking.Wait()
	if id.Omitted() != requests || other.Omitted() != 0 {
		t.Errorf("omitted are %d and %d", id.Omitted(), other.Omitted())
	}
}

func TestIdentityProblems(t *testing.T) {
	for name, want := range map[string]string{"Authorization": "meaning of its own", "X_User": "portable", "": "empty", "X User": "portable", "Host": "meaning", "x-forwarded-for": "meaning"} {
		_, err := NewIdentity(IdentityConfig{Headers: map[string]HeaderConfig{name: {Claim: "sub"}}}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	_, err := NewIdentity(IdentityConfig{Headers: map[string]HeaderConfig{"X-User": {Claim: "sub"}, "XUser": {Claim: "a..b", Separator: "ab"}}}, nil)
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("got %v, want three problems", err)
	}
}
