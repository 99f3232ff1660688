package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// TestProtectedNames sends every name that means somebody's identity somewhere, in
// spellings that a folding server takes for it, on every path that a request can
// take through the gateway. None of them reaches the upstream (M1, M2, M3); a name
// that merely begins alike does.
func TestProtectedNames(t *testing.T) {
	t.Parallel()
	idp, app := newIssuer(t), newRawUpstream(t)
	_, key := newAuthority(t).pair(t)
	g := serving(t, fmt.Sprintf(`
listen: 127.0.0.1:0
issuers: [%s]
identity:
  headers: {X-Forwarded-User: sub, X-Staff-Number: number}
  assertion: {header: X-Proof, key_file: %q}
routes:
  - {name: open, path: /open/, upstream: %q, auth: none}
  - {name: optional, path: /optional/, upstream: %[3]q, auth: optional}
  - {name: cors, path: /cors/, upstream: %[3]q, preflight: forward}
  - {name: own, path: /own/, upstream: %[3]q, identity: {headers: {X-Badge: sub}}}
  - {name: app, upstream: %[3]q}
`, corp(idp), key, app.url))

	names := strings.Fields(`
		X-Forwarded-User X-Staff-Number X-Proof X-Badge X-Forwarded-Email X-Forwarded-Groups Durward-Reason Durward-User
		Remote-User Remote-Groups Remote-Email Remote-Name X-Remote-User X-Remote-Group X-Remote-Extra-Scopes
		X-Auth-Request-User X-Auth-Request-Email X-Auth-Request-Groups X-Auth-Request-Preferred-Username X-Auth-Request-Access-Token X-Forwarded-Preferred-Username X-Forwarded-Access-Token
		X-Authentik-Username X-Authentik-Uid X-Authentik-Jwt X-Authentik-Meta-Outpost X-Pomerium-Jwt-Assertion X-Pomerium-Claim-Email X-Pomerium-Claim-Anything
		X-Goog-Iap-Jwt-Assertion X-Goog-Authenticated-User-Email X-Goog-Authenticated-User-Id X-Amzn-Oidc-Identity X-Amzn-Oidc-Data X-Amzn-Oidc-Accesstoken
		Cf-Access-Jwt-Assertion Cf-Access-Authenticated-User-Email Cf-Connecting-Ip True-Client-Ip Tailscale-User-Login X-Ms-Client-Principal X-Ms-Client-Principal-Id X-Ms-Token-Aad-Id-Token
		X-Vouch-User X-Vouch-Idp-Claims-Groups X-Webauth-User X-Webauth-Role X-Consumer-Username X-Authenticated-Userid X-User X-User-Id X-Email X-Groups X-Roles X-Auth-User
		Oidc-Claim-Sub Oidc-Access-Token Mellon-Name-Id Shib-Session-Id Sm-User Iv-User Iv-Groups
		X-Ssl-Client-S-Dn Ssl-Client-Verify X-Client-Cert Client-Cert X-Forwarded-Client-Cert
		X-Real-Ip X-Client-Ip X-Cluster-Client-Ip X-Original-Url X-Original-Uri X-Original-Host X-Original-Method X-Original-Forwarded-For X-Rewrite-Url
		X-Forwarded-Uri X-Forwarded-Method X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Path X-Forwarded-Server X-Forwarded-Ssl Forwarded
		X-Http-Method X-Http-Method-Override X-Method-Override X-Http-Host-Override X-Host X-Url-Scheme X-Scheme X-Script-Name X-Accel-Redirect Proxy Front-End-Https
		Client-Ip Proxy-Client-Ip Wl-Proxy-Client-Ip X-Azure-Clientip X-Azure-Socketip X-Appengine-User-Ip X-Request-Id
		X-Userinfo X-Endpoint-Api-Userinfo X-Apigateway-Api-Userinfo X-Jwt-Assertion X-Id-Token X-Override-Url X-Http-Path-Override`)
	spell := []func(string) string{
		func(s string) string { return s },
		strings.ToLower,
		func(s string) string { return strings.ReplaceAll(strings.ToUpper(s), "-", "_") },
		func(s string) string { return strings.ReplaceAll(s, "-", ".") },
		func(s string) string { return strings.ReplaceAll(s, "-", "--") + "~" },
		func(s string) string { return "!" + strings.ReplaceAll(s, "-", "") },
	}
	token := idp.token(jwt.MapClaims{"number": "4711"})
	const handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, way := range []struct{ name, line, fields string }{
		{"open", "GET /open/x", ""},
		{"open, with a token", "GET /open/x", bearing(token) + "\r\n"},
		{"open, a handshake", "GET /open/x", handshake},
		{"optional, anonymous", "GET /optional/x", ""},
		{"optional, with a token", "GET /optional/x", bearing(token) + "\r\n"},
		{"protected", "GET /x", bearing(token) + "\r\n"},
		{"protected, an upload", "POST /x", bearing(token) + "\r\nContent-Length: 0\r\n"},
		{"protected, a handshake", "GET /x", bearing(token) + "\r\n" + handshake},
		{"own headers", "GET /own/x", bearing(token) + "\r\n"},
		{"preflight", "OPTIONS /cors/x", "Origin: https://a.test\r\nAccess-Control-Request-Method: PUT\r\n"},
	} {
		for i, spelled := range spell {
			// As many as fit under the limit of fields at a time.
			for rest := names; len(rest) > 0; rest = rest[min(len(rest), 100):] {
				var fields, connection strings.Builder
				for _, name := range rest[:min(len(rest), 100)] {
					fmt.Fprintf(&fields, "%s: mallory\r\n", spelled(name))
					fmt.Fprintf(&connection, ", %s", name)
				}
				app.take()
				if way.fields == "" && i == 0 { // named in Connection as well, which would take off ours too
					fields.WriteString("Connection: close" + connection.String() + "\r\n")
				}
				status, reason := rawSend(t, g.public[0], way.line+" HTTP/1.1\r\nHost: app.test\r\n"+way.fields+fields.String()+"X-Forwardable: yes\r\nX-Usermanual: yes\r\n\r\n")
				got := app.take()
				if status != 200 || strings.Contains(strings.ToLower(got), "mallory") {
					t.Errorf("%s, spelling %d: %d %q, the upstream received %q", way.name, i, status, reason, got)
				}
				if !strings.Contains(got, "X-Usermanual: yes\r\n") {
					t.Errorf("%s, spelling %d: the twin did not pass: %q", way.name, i, got)
				}
				ours := strings.Contains(way.fields, token) && !strings.HasPrefix(way.name, "open")
				header := "X-Forwarded-User: alice\r\n"
				if way.name == "own headers" {
					header = "X-Badge: alice\r\n"
				}
				if strings.Contains(got, header) != ours || strings.Contains(got, "X-Proof: ey") != ours || strings.Contains(got, "X-Staff-Number: 4711\r\n") != (ours && way.name != "own headers") {
					t.Errorf("%s, spelling %d: the upstream received %q", way.name, i, got)
				}
			}
		}
	}

	// Over HTTP/2 names are in lower case.
	for _, path := range []string{"/open/x", "/x"} {
		for rest := names; len(rest) > 0; rest = rest[min(len(rest), 60):] {
			fields := []string{":method: GET", ":scheme: http", ":path: " + path, ":authority: app.test", "authorization: Bearer " + token}
			for _, name := range rest[:min(len(rest), 60)] {
				fields = append(fields, strings.ToLower(name)+": mallory", strings.ReplaceAll(strings.ToLower(name), "-", "_")+": mallory")
			}
			app.take()
			status, reason := frames(t, g.public[0], fields)
			if got := app.take(); status != 200 || strings.Contains(got, "mallory") || !strings.HasPrefix(got, "GET "+path+" ") {
				t.Errorf("HTTP/2, %s: %d %q, the upstream received %q", path, status, reason, got)
			}
		}
	}
}
