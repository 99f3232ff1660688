package token

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// appended is a token whose payload is the good claims with some members appended
// as they are written, duplicates and all.
func appended(members string) string {
	payload := strings.TrimSuffix(jsonOf(goodClaims()), "}") + "," + members + "}"
	return sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es"}`, payload)
}

// newKey is a P-256 key that is in no set.
func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// serving answers every request with the text.
func serving(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

// One claim has one name: another case, and a letter that folds to one of its own
// (ſ to s, K to k), is another claim, which neither stands in for it nor overrides
// it. The same name twice, however it is written, is two answers to one question.
func TestClaimNames(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	now := testNow.Unix()
	for _, c := range []struct {
		name    string
		forms   string // other names, which are not this one
		evil    string // a value that must not come to count
		missing string // the reason if only such a name is there
	}{
		{"iss", "Iss ISS i\\u017fs is\\u017f", `"https://evil.example"`, "token_issuer"},
		{"aud", "Aud AUD aUd", `["intranet"]`, "token_audience"},
		{"exp", "Exp EXP exP", fmt.Sprint(now + 60), "token_claims"},
		{"iat", "Iat IAT", fmt.Sprint(now - 1), "token_claims"},
		{"nbf", "Nbf NBF", fmt.Sprint(now + 3600), "accepted"},
		{"jti", "Jti JTI", `"another"`, "token_claims"},
		{"sub", "Sub SUB \\u017fub ſub", `"root"`, "accepted"},
		{"sid", "Sid SID \\u017fid", `"another"`, "accepted"},
		{"client_id", "Client_Id CLIENT_ID clientId client-id", `"admin"`, "accepted"},
		{"scope", "Scope SCOPE \\u017fcope ſcope scopes", `"admin"`, "accepted"},
		{"acr", "Acr ACR", `"top"`, "accepted"},
		{"auth_time", "Auth_Time AUTH_TIME authTime", fmt.Sprint(now), "accepted"},
		{"realm_access", "Realm_Access REALM_ACCESS realm_acce\\u017fs", `{"roles":["root"]}`, "accepted"},
	} {
		for form := range strings.FieldsSeq(c.forms) {
			raw := appended(fmt.Sprintf(`"%s":%s`, form, c.evil))
			check(t, v, form+" beside "+c.name, raw, "accepted")
			claims, refused := verify(v, raw)
			if refused != nil {
				continue
			}
			plain, _ := verify(v, es256(goodClaims()))
			if claims.Subject != plain.Subject || claims.TokenID != plain.TokenID || claims.Session != plain.Session || claims.Client != plain.Client || claims.ACR != plain.ACR ||
				fmt.Sprint(claims.Scopes) != fmt.Sprint(plain.Scopes) || !claims.Expiry.Equal(plain.Expiry) || !claims.IssuedAt.Equal(plain.IssuedAt) || !claims.AuthTime.Equal(plain.AuthTime) ||
				!claims.notBefore.IsZero() || claims.ids != plain.ids || fmt.Sprint(claims.Value("groups")) != "[ops sre]" {
				t.Errorf("%s beside %s: %+v", form, c.name, claims)
			}
			alone := strings.Replace(jsonOf(with(goodClaims(), object{"nbf": now - 60})), `"`+c.name+`":`, `"`+form+`":`, 1)
			check(t, v, form+" without "+c.name, sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es"}`, alone), c.missing)
		}
		if _, given := goodClaims()[c.name]; !given {
			continue
		}
		escaped := fmt.Sprintf(`\u%04x%s`, c.name[0], c.name[1:])
		for _, form := range []string{c.name, escaped} {
			check(t, v, form+" twice", appended(fmt.Sprintf(`"%s":%s`, form, c.evil)), "token_malformed")
			check(t, v, form+" twice, equal", appended(fmt.Sprintf(`"%s":%s`, form, jsonOf(goodClaims()[c.name]))), "token_malformed")
		}
		once := strings.Replace(jsonOf(goodClaims()), `"`+c.name+`":`, `"`+escaped+`":`, 1)
		check(t, v, escaped+" once", sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es"}`, once), "accepted")
	}
}

// The members of a header have one name each, too. Those that the gateway does
// not know say nothing, as RFC 7515 section 4 has it.
func TestHeaderNames(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	for _, c := range []struct{ header, want string }{
		{`{"alg":"ES256","kid":"es"}`, "accepted"},
		{`{"kid":"es","typ":"JWT","alg":"ES256"}`, "accepted"},
		{" {\"alg\" :\"ES256\",\n\t\"kid\": \"es\"} ", "accepted"},
		{`{"\u0061lg":"ES256","k\u0069d":"es"}`, "accepted"},
		{`{"alg":"ES256","kid":"es","Alg":"none","ALG":"HS256"}`, "accepted"},
		{`{"alg":"ES256","kid":"es","Kid":"rs","\u212aid":"rs","KID":1}`, "accepted"},
		{`{"alg":"ES256","kid":"es","Typ":"logout+jwt","TYP":1}`, "accepted"},
		{`{"alg":"ES256","kid":"es","Crit":["x"],"B64":false,"Zip":"DEF","Cty":"JWT"}`, "accepted"},
		{`{"alg":"ES256","kid":"es","x5t":"AA","x5t#S256":"AA","apu":1,"p2c":100000000,"enc":"A128GCM"}`, "accepted"},
		{`{"Alg":"ES256","kid":"es"}`, "token_malformed"},
		{`{"ALG":"ES256","kid":"es"}`, "token_malformed"},
		{`{"alg":"ES256","alg":"ES256","kid":"es"}`, "token_malformed"},
		{`{"alg":"ES256","\u0061lg":"none","kid":"es"}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","k\u0069d":"rs"}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","kid":"es"}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","typ":"JWT","typ":"JWT"}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","jwk":{"kty":"EC","kty":"oct"}}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","\u0063rit":[]}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","crit":null}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","crit":["b64"],"b64":false}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","b64":null}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","zip":""}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es","cty":""}`, "token_malformed"},
		{`{"alg":null,"kid":"es"}`, "token_malformed"},
		{`{"alg":"ES256","kid":["es"]}`, "token_malformed"},
		{`{"alg":"ES256","kid":{"x":"es"}}`, "token_malformed"},
		{`{"alg":"ES256","kid":true}`, "token_malformed"},
		{`{"alg":"ES256","kid":"es\u0000"}`, "token_signature"},
		{`{"alg":"ES256","kid":"ES"}`, "token_signature"},
		{`{"alg":"ES256","kid":"e\u017f"}`, "token_signature"},
		{`{"alg":"ES256\u0000","kid":"es"}`, "token_algorithm"},
		{`{"alg":"E\u017f256","kid":"es"}`, "token_algorithm"},
		{`{"alg":"HS256","kid":"es"}`, "token_algorithm"},
		{`{"alg":"dir","kid":"es"}`, "token_algorithm"},
		{`{"alg":"ES256K","kid":"es"}`, "token_algorithm"},
		{`{"alg":"Ed25519","kid":"ed"}`, "token_algorithm"},
		{`{}`, "token_malformed"},
		{`{"kid":"es"}{"alg":"ES256"}`, "token_malformed"},
	} {
		check(t, v, c.header, sign("ES256", keysOnce().p256, c.header, jsonOf(goodClaims())), c.want)
	}
}

// Every time of a token is a number within the years 1970 to 9999, or the token is
// none of ours: what is no number, or wraps when it is converted, would be read as
// "no limit" somewhere.
func TestTimes(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	now := testNow.Unix()
	near := map[string]int64{"exp": now + 60, "iat": now - 60, "nbf": now - 60, "auth_time": now - 60}
	for name, at := range near {
		for _, c := range []struct{ text, want string }{
			{fmt.Sprint(at), "accepted"},
			{fmt.Sprintf("%d.000000", at), "accepted"},
			{fmt.Sprintf("%d.999999", at), "accepted"},
			{fmt.Sprintf("%de-3", at*1000), "accepted"},
			{fmt.Sprintf("%d%se-400", at, strings.Repeat("0", 400)), "accepted"},
			{"null", "token_claims"},
			{"true", "token_claims"},
			{"false", "token_claims"},
			{`""`, "token_claims"},
			{`"0"`, "token_claims"},
			{fmt.Sprintf(`"%d"`, at), "token_claims"},
			{fmt.Sprintf("[%d]", at), "token_claims"},
			{fmt.Sprintf(`{"seconds":%d}`, at), "token_claims"},
			{"0", "token_claims"},
			{"-0", "token_claims"},
			{"0.0", "token_claims"},
			{"0e99", "token_claims"},
			{"1e-999", "token_claims"},
			{"-1", "token_claims"},
			{fmt.Sprint(-at), "token_claims"},
			{"-1e308", "token_claims"},
			{"1e308", "token_claims"},
			{"1e309", "token_claims"},
			{"9e18", "token_claims"},
			{"9223372036854775807", "token_claims"},
			{"9223372036854775808", "token_claims"},
			{"18446744073709551616", "token_claims"},
			{"253402300800", "token_claims"},
			{fmt.Sprintf("%d000", at), "token_claims"},
			{fmt.Sprintf("+%d", at), "token_malformed"},
			{fmt.Sprintf("0%d", at), "token_malformed"},
			{fmt.Sprintf("0x%x", at), "token_malformed"},
			{fmt.Sprintf("%d.", at), "token_malformed"},
			{"NaN", "token_malformed"},
			{"Infinity", "token_malformed"},
			{"-Infinity", "token_malformed"},
			{"1_000_000_000", "token_malformed"},
		} {
			payload := strings.TrimSuffix(jsonOf(with(goodClaims(), object{name: nil})), "}") + fmt.Sprintf(`,"%s":%s}`, name, c.text)
			check(t, v, name+" "+c.text, sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es"}`, payload), c.want)
		}
	}
}

// A token is for what its typ says. What other tokens the same keys sign is not
// an access token, unless an administrator says so.
func TestTokenTypes(t *testing.T) {
	const none = "(none)"
	configured := func(types ...string) *Verifier {
		cfg := testConfig(t)
		cfg.TokenTypes = types
		return NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
	}
	usual, strict, own := configured(), configured("at+jwt"), configured("Application/Acme-Session+jwt")
	for _, c := range []struct{ typ, usual, strict, own string }{
		{none, "accepted", "token_type", "token_type"},
		{"JWT", "accepted", "token_type", "token_type"},
		{"jwt", "accepted", "token_type", "token_type"},
		{"application/jwt", "accepted", "token_type", "token_type"},
		{"at+jwt", "accepted", "accepted", "token_type"},
		{"AT+JWT", "accepted", "accepted", "token_type"},
		{"application/at+jwt", "accepted", "accepted", "token_type"},
		{"APPLICATION/AT+JWT", "accepted", "accepted", "token_type"},
		{"acme-session+jwt", "token_type", "token_type", "accepted"},
		{"application/acme-SESSION+jwt", "token_type", "token_type", "accepted"},
		{"logout+jwt", "token_type", "token_type", "token_type"},
		{"application/logout+jwt", "token_type", "token_type", "token_type"},
		{"secevent+jwt", "token_type", "token_type", "token_type"},
		{"dpop+jwt", "token_type", "token_type", "token_type"},
		{"statuslist+jwt", "token_type", "token_type", "token_type"},
		{"token-introspection+jwt", "token_type", "token_type", "token_type"},
		{"oauth-authz-req+jwt", "token_type", "token_type", "token_type"},
		{"client-authentication+jwt", "token_type", "token_type", "token_type"},
		{"kb+jwt", "token_type", "token_type", "token_type"},
		{"dc+sd-jwt", "token_type", "token_type", "token_type"},
		{"entity-statement+jwt", "token_type", "token_type", "token_type"},
		{"JOSE", "token_type", "token_type", "token_type"},
		{"JWS", "token_type", "token_type", "token_type"},
		{"", "token_type", "token_type", "token_type"},
		{" JWT", "token_type", "token_type", "token_type"},
		{"JWT ", "token_type", "token_type", "token_type"},
		{"at+jwt; charset=utf-8", "token_type", "token_type", "token_type"},
		{"at+jwt,logout+jwt", "token_type", "token_type", "token_type"},
		{"application/application/at+jwt", "token_type", "token_type", "token_type"},
		{"text/at+jwt", "token_type", "token_type", "token_type"},
		{"at+jwt\\u0000", "token_type", "token_type", "token_type"},
		{"at jwt", "token_type", "token_type", "token_type"},
		{"acme-\\u017fession+jwt", "token_type", "token_type", "token_type"},
	} {
		header := fmt.Sprintf(`{"alg":"ES256","kid":"es","typ":"%s"}`, c.typ)
		if c.typ == none {
			header = `{"alg":"ES256","kid":"es"}`
		}
		raw := sign("ES256", keysOnce().p256, header, jsonOf(goodClaims()))
		check(t, usual, c.typ, raw, c.usual)
		check(t, strict, c.typ+" where at+jwt is wanted", raw, c.strict)
		check(t, own, c.typ+" where a type of its own is wanted", raw, c.own)
	}
}

// Tokens of other kinds that say JWT, or nothing, about their type are told by
// their claims. An ID token (OpenID Connect Core section 2) is meant for its
// client, and its audience says so; an issuer may well be one whose ID tokens
// are the session, and then they are what the audience is configured for. Who
// wants none of them at all sets token_types to at+jwt.
func TestOtherTokens(t *testing.T) {
	usual := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	cfg := testConfig(t)
	cfg.TokenTypes = []string{"at+jwt"}
	strict := NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
	id := object{"nonce": "n-0S6_WzA2Mj", "at_hash": "77QmUPtjPfzWtF2AnpK9RA", "c_hash": "LDktKdoQak3Pk0cnXxCltA", "azp": "shop", "aud": "shop", "scope": nil, "client_id": nil}
	for _, c := range []struct {
		name          string
		changes       object
		usual, strict string
	}{
		{"access token", nil, "accepted", "token_type"},
		{"ID token", id, "token_audience", "token_type"},
		{"ID token for several clients", with(id, object{"aud": []string{"shop", "mail"}}), "token_audience", "token_type"},
		{"ID token that names us in azp alone", with(id, object{"azp": "intranet"}), "token_audience", "token_type"},
		{"ID token for us", with(id, object{"aud": "intranet"}), "accepted", "token_type"},
		{"logout token", object{"events": object{"http://schemas.openid.net/event/backchannel-logout": object{}}}, "token_claims", "token_type"},
		{"logout token with an empty events", object{"events": object{}}, "token_claims", "token_type"},
		{"security event", object{"events": object{"https://schemas.openid.net/secevent/caep/event-type/session-revoked": object{}}, "exp": nil}, "token_claims", "token_type"},
		{"DPoP proof", object{"iss": nil, "aud": nil, "exp": nil, "htm": "GET", "htu": "https://shop.example.com/", "ath": "x"}, "token_issuer", "token_type"},
		{"client assertion", object{"iss": "shop", "sub": "shop", "aud": testIssuer}, "token_issuer", "token_type"},
		{"introspection answer", object{"aud": "intranet", "token_introspection": object{"active": true}, "exp": nil, "jti": nil}, "token_claims", "token_type"},
		{"status list", object{"aud": nil, "jti": nil, "status_list": object{"bits": 1, "lst": "eNrbuRgAAhcBXQ"}}, "token_audience", "token_type"},
		{"bound to a DPoP key", object{"cnf": object{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}, "token_claims", "token_type"},
		{"bound to a certificate", object{"cnf": object{"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}}, "token_claims", "token_type"},
		{"bound to null", object{"cnf": rawJSON("null")}, "token_claims", "token_type"},
		{"Events is not events", object{"Events": object{}, "CNF": object{}}, "accepted", "token_type"},
	} {
		raw := sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es","typ":"JWT"}`, jsonOf(with(goodClaims(), c.changes)))
		check(t, usual, c.name, raw, c.usual)
		check(t, strict, c.name+" where at+jwt is wanted", raw, c.strict)
	}
	check(t, strict, "an access token that says so", es256(goodClaims()), "accepted")
}

// The audience and the issuer are compared byte for byte, and never taken as not
// asked for.
func TestAudiences(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	for _, c := range []struct {
		name, text, want string
	}{
		{"aud", `"intranet"`, "accepted"},
		{"aud", `["intranet"]`, "accepted"},
		{"aud", `["other","intranet"]`, "accepted"},
		{"aud", `["intranet","intranet"]`, "accepted"},
		{"aud", `["","intranet"]`, "accepted"},
		{"aud", `"in\u0074ranet"`, "accepted"},
		{"aud", `""`, "token_audience"},
		{"aud", `[]`, "token_audience"},
		{"aud", `[""]`, "token_audience"},
		{"aud", `[[ "intranet" ]]`, "token_audience"},
		{"aud", `["intranet",null]`, "token_audience"},
		{"aud", `["intranet",["x"]]`, "token_audience"},
		{"aud", `["intranet",{}]`, "token_audience"},
		{"aud", `["intranet",true]`, "token_audience"},
		{"aud", `{"0":"intranet"}`, "token_audience"},
		{"aud", `0`, "token_audience"},
		{"aud", `true`, "token_audience"},
		{"aud", `"*"`, "token_audience"},
		{"aud", `"intranet "`, "token_audience"},
		{"aud", `"intranet\u0000"`, "token_audience"},
		{"aud", `"intranet,other"`, "token_audience"},
		{"aud", `"intranet other"`, "token_audience"},
		{"aud", `"Intranet"`, "token_audience"},
		{"aud", `"ıntranet"`, "token_audience"},
		{"aud", `"intranet2"`, "token_audience"},
		{"aud", `"intrane"`, "token_audience"},
		{"iss", `"https://idp.example.com/realms/corp"`, "accepted"},
		{"iss", `"https:\/\/idp.example.com\/realms\/corp"`, "accepted"},
		{"iss", `""`, "token_issuer"},
		{"iss", `null`, "token_issuer"},
		{"iss", `0`, "token_issuer"},
		{"iss", `{}`, "token_issuer"},
		{"iss", `["https://idp.example.com/realms/corp"]`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/corp/"`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/corp#"`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/corp?"`, "token_issuer"},
		{"iss", `"https://idp.example.com:443/realms/corp"`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/./corp"`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/%63orp"`, "token_issuer"},
		{"iss", `"https://IDP.example.com/realms/corp"`, "token_issuer"},
		{"iss", `"https://idp.example.com./realms/corp"`, "token_issuer"},
		{"iss", `"http://idp.example.com/realms/corp"`, "token_issuer"},
		{"iss", `" https://idp.example.com/realms/corp"`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/corp\u0000"`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/corp2"`, "token_issuer"},
		{"iss", `"https://idp.example.com/realms/cor"`, "token_issuer"},
		{"iss", `"https://idp.example.com@evil.example/realms/corp"`, "token_issuer"},
		{"iss", `"corp"`, "token_issuer"},
	} {
		payload := strings.TrimSuffix(jsonOf(with(goodClaims(), object{c.name: nil})), "}") + fmt.Sprintf(`,"%s":%s}`, c.name, c.text)
		check(t, v, c.name+" "+c.text, sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"es"}`, payload), c.want)
	}
}

// Which key of a set verifies a token, if any. The token is ES256, signed by the
// P-256 key, with the kid es or none.
func TestKeyChoice(t *testing.T) {
	k := keysOnce()
	p256 := func(members object) object { return public(k.p256, members) }
	other := func(members object) object { return public(newKey(t), members) }
	private := with(p256(object{"kid": "es"}), object{"d": segment(bytes.Repeat([]byte{1}, 32))})
	for _, c := range []struct {
		name         string
		keys         []any
		named, plain string // with the kid, without one
	}{
		{"the key", []any{p256(object{"kid": "es"})}, "accepted", "accepted"},
		{"the key, without a kid of its own", []any{p256(nil)}, "token_signature", "accepted"},
		{"the key with an empty kid", []any{p256(object{"kid": ""})}, "token_signature", "accepted"},
		{"the key with another kid", []any{p256(object{"kid": "es2"})}, "token_signature", "accepted"},
		{"the key with the kid in capitals", []any{p256(object{"kid": "ES"})}, "token_signature", "accepted"},
		{"another key under the kid", []any{other(object{"kid": "es"})}, "token_signature", "token_signature"},
		{"two keys that fit", []any{p256(object{"kid": "es"}), other(object{"kid": "o"})}, "accepted", "token_signature"},
		{"two keys that fit, in the other order", []any{other(object{"kid": "o"}), p256(object{"kid": "es"})}, "accepted", "token_signature"},
		{"two keys of one kid that fit", []any{p256(object{"kid": "es"}), other(object{"kid": "es"})}, "token_signature", "token_signature"},
		{"the key twice", []any{p256(object{"kid": "es"}), p256(object{"kid": "es"})}, "token_signature", "token_signature"},
		{"a key of another type beside", []any{p256(object{"kid": "es"}), public(k.rsa, object{"kid": "rs"})}, "accepted", "accepted"},
		{"a key of another type under the kid", []any{p256(object{"kid": "es"}), public(k.rsa, object{"kid": "es"})}, "accepted", "accepted"},
		{"a key of another curve under the kid", []any{p256(object{"kid": "es"}), public(k.p384, object{"kid": "es"})}, "accepted", "accepted"},
		{"a key of another type alone", []any{public(k.rsa, object{"kid": "es"})}, "token_signature", "token_signature"},
		{"a key of another curve alone", []any{public(k.p384, object{"kid": "es"})}, "token_signature", "token_signature"},
		{"alg ES256", []any{p256(object{"kid": "es", "alg": "ES256"})}, "accepted", "accepted"},
		{"use sig", []any{p256(object{"kid": "es", "use": "sig"})}, "accepted", "accepted"},
		{"key_ops verify", []any{p256(object{"kid": "es", "key_ops": []string{"verify"}})}, "accepted", "accepted"},
		{"alg ECDH-ES", []any{p256(object{"kid": "es", "alg": "ECDH-ES"})}, "keys_unavailable", "keys_unavailable"},
		{"alg ES384", []any{p256(object{"kid": "es", "alg": "ES384"})}, "keys_unavailable", "keys_unavailable"},
		{"use enc", []any{p256(object{"kid": "es", "use": "enc"})}, "keys_unavailable", "keys_unavailable"},
		{"use enc, alg ECDH-ES", []any{p256(object{"kid": "es", "use": "enc", "alg": "ECDH-ES"})}, "keys_unavailable", "keys_unavailable"},
		{"key_ops sign", []any{p256(object{"kid": "es", "key_ops": []string{"sign"}})}, "keys_unavailable", "keys_unavailable"},
		{"key_ops empty", []any{p256(object{"kid": "es", "key_ops": []string{}})}, "keys_unavailable", "keys_unavailable"},
		{"use enc beside the key", []any{p256(object{"kid": "es"}), other(object{"kid": "es", "use": "enc"})}, "accepted", "accepted"},
		{"the key beside itself for encryption", []any{p256(object{"kid": "es", "use": "enc"}), p256(object{"kid": "es"})}, "accepted", "accepted"},
		{"the private key", []any{private}, "keys_unavailable", "keys_unavailable"},
		{"the private key beside the public one", []any{private, p256(object{"kid": "es"})}, "accepted", "accepted"},
		{"a symmetric key beside", []any{p256(object{"kid": "es"}), object{"kty": "oct", "kid": "es", "k": "AAAA"}}, "accepted", "accepted"},
		{"an empty symmetric key alone", []any{object{"kty": "oct", "kid": "es", "k": "="}}, "keys_unavailable", "keys_unavailable"},
		{"junk beside", []any{nil, 1, "x", []any{}, object{}, object{"kty": "EC"}, p256(object{"kid": "es"}), object{"kty": "RSA", "n": "AQAB", "e": "AQAB"}}, "accepted", "accepted"},
		{"junk alone", []any{nil, 1, "x", []any{}, object{}}, "keys_unavailable", "keys_unavailable"},
		{"another curve in its name", []any{with(p256(object{"kid": "es"}), object{"crv": "P-521"})}, "keys_unavailable", "keys_unavailable"},
		{"another type in its name", []any{with(p256(object{"kid": "es"}), object{"kty": "OKP"})}, "keys_unavailable", "keys_unavailable"},
		{"members in another case", []any{object{"KTY": "EC", "crv": "P-256", "x": p256(nil)["x"], "y": p256(nil)["y"]}}, "keys_unavailable", "keys_unavailable"},
		{"Use is not use", []any{p256(object{"kid": "es", "Use": "enc", "ALG": "ECDH-ES", "D": "AA"})}, "accepted", "accepted"},
		{"a member twice", []any{rawJSON(strings.Replace(jsonOf(p256(object{"kid": "es"})), `"kid":`, `"kid":"x","kid":`, 1))}, "keys_unavailable", "keys_unavailable"},
	} {
		cfg := testConfig(t)
		cfg.JWKSFile = ""
		cfg.JWKSURL = provider(t, serving(jsonOf(object{"keys": c.keys}))).URL
		issuer := newIssuer(t, cfg)
		_ = issuer.Keys().Refresh(t.Context()) // its failure is what keys_unavailable says
		v := NewVerifier([]*Issuer{issuer}, newCache(t), 8192)
		check(t, v, c.name+", named", sign("ES256", k.p256, `{"alg":"ES256","kid":"es"}`, jsonOf(goodClaims())), c.named)
		check(t, v, c.name+", not named", sign("ES256", k.p256, `{"alg":"ES256"}`, jsonOf(goodClaims())), c.plain)
	}
}

// Whatever a key server sends in place of a key set, or of the metadata that leads
// to it, the keys that were there stay, no others come in, nobody follows where it
// points, and the fetch ends. The twin is the same server when it is well again.
func TestHostileKeyServer(t *testing.T) {
	var trap atomic.Int32
	elsewhere := provider(t, func(w http.ResponseWriter, _ *http.Request) {
		trap.Add(1)
		io.WriteString(w, keySet(public(newKey(t), object{"kid": "es"})))
	})
	redirect := func(status int) http.HandlerFunc {
		return http.RedirectHandler(elsewhere.URL+"/keys", status).ServeHTTP
	}
	status := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); io.WriteString(w, allKeys()) }
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"nothing", serving(""), "not a JSON object"},
		{"blanks", serving(" \n"), "not a JSON object"},
		{"HTML", serving("<!doctype html><title>Sign in</title>"), "not a JSON object"},
		{"null", serving("null"), `no array "keys"`},
		{"a string", serving(`"keys"`), "not a JSON object"},
		{"a list of keys", serving("[" + jsonOf(public(keysOnce().p256, nil)) + "]"), "not a JSON object"},
		{"an error in JSON", serving(`{"error":"try later"}`), `no array "keys"`},
		{"a byte order mark", serving("\ufeff" + allKeys()), "not a JSON object"},
		{"two documents", serving(allKeys() + allKeys()), "not a JSON object"},
		{"half a document", serving(allKeys()[:100]), "not a JSON object"},
		{"deep nesting", serving(strings.Repeat(`{"keys":[`, 100_000)), "not a JSON object"},
		{"gzip that nobody asked for", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			io.WriteString(z, allKeys())
			z.Close()
		}, "not a JSON object"},
		{"a little too much", serving(allKeys() + strings.Repeat(" ", maxDocument)), "more than 1048576 bytes"},
		{"no end", func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := io.WriteString(w, strings.Repeat(" ", 64<<10)); err != nil {
					return
				}
			}
		}, "more than 1048576 bytes"},
		{"a byte at a time", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, " ")
				http.NewResponseController(w).Flush()
				time.Sleep(time.Millisecond)
			}
		}, "deadline exceeded"},
		{"no answer", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline exceeded"},
		{"no answer but a hang-up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		{"a header section without end", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 100<<10))
			io.WriteString(w, allKeys())
		}, "server response headers exceeded"},
		{"301", redirect(301), "redirects are not followed"},
		{"302", redirect(302), "redirects are not followed"},
		{"303", redirect(303), "redirects are not followed"},
		{"307", redirect(307), "redirects are not followed"},
		{"308", redirect(308), "redirects are not followed"},
		{"300 with keys", status(300), "300 Multiple Choices"},
		{"201 with keys", status(201), "201 Created"},
		{"203 with keys", status(203), "203 Non-Authoritative Information"},
		{"401 with keys", status(401), "401 Unauthorized"},
		{"429 with keys", status(429), "429 Too Many Requests"},
		{"500 with keys", status(500), "500 Internal Server Error"},
	} {
		for _, stage := range []string{"keys", "metadata"} {
			var spoiled atomic.Bool
			var address string
			server := provider(t, func(w http.ResponseWriter, r *http.Request) {
				isKeys := r.URL.Path == "/keys"
				switch {
				case spoiled.Load() && isKeys == (stage == "keys"):
					c.answer(w, r)
				case isKeys:
					io.WriteString(w, allKeys())
				default:
					io.WriteString(w, jsonOf(object{"issuer": address, "jwks_uri": address + "/keys"}))
				}
			})
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			address = server.URL
			cfg := testConfig(t)
			cfg.JWKSFile, cfg.Issuer = "", address
			issuer := newIssuer(t, cfg)
			v := NewVerifier([]*Issuer{issuer}, nil, 8192)
			raw := es256(with(goodClaims(), object{"iss": address}))
			refresh := func() error {
				patience := 10 * time.Second
				if c.want == "deadline exceeded" {
					patience = 200 * time.Millisecond // the rest end by themselves
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				return issuer.Keys().Refresh(ctx)
			}

			spoiled.Store(true)
			want := c.want
			if stage == "metadata" {
				want = strings.Replace(want, `no array "keys"`, `the document is of issuer ""`, 1)
			}
			if err := refresh(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s in place of %s: %v, want %s", c.name, stage, err, want)
			}
			if _, refused := verify(v, raw); reason(refused) != "keys_unavailable" {
				t.Errorf("%s in place of %s: %v", c.name, stage, refused)
			}
			spoiled.Store(false)
			if err := issuer.Keys().Refresh(t.Context()); err != nil {
				t.Errorf("%s in place of %s, and well again: %v", c.name, stage, err)
			}
			spoiled.Store(true)
			issuer.keys.source.(*httpSource).discovered = "" // as after an hour
			if err := refresh(); err == nil {
				t.Errorf("%s in place of %s is taken the second time", c.name, stage)
			}
			if _, refused := verify(v, raw); refused != nil {
				t.Errorf("%s in place of %s: the last good keys were lost: %v", c.name, stage, refused)
			}
			if status := issuer.Keys().Status(time.Now()); status.Keys != 5 || !status.Usable || status.Error == "" || status.Failed != 2 {
				t.Errorf("%s in place of %s: %+v", c.name, stage, status)
			}
		}
	}
	if n := trap.Load(); n != 0 {
		t.Errorf("keys were fetched from elsewhere %d times", n)
	}
}

// What was refused is not remembered: a flood of junk pushes no good token out,
// and is judged anew each time.
func TestJunkIsNotCached(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	good := es256(goodClaims())
	cached := func(raw string) bool {
		v.cache.entries.Wait()
		digest := sha256.Sum256([]byte(raw))
		return v.cache.get(&digest) != nil
	}
	junk := map[string]string{
		"x":                             "token_malformed",
		good + ".":                      "token_malformed",
		good[:len(good)-4] + "AAAA":     "token_signature",
		hmacToken(jsonOf(goodClaims())): "token_algorithm",
		es256(with(goodClaims(), object{"aud": "x"})):                                      "token_audience",
		es256(with(goodClaims(), object{"exp": testNow.Unix() - 40})):                      "token_expired",
		es256(with(goodClaims(), object{"nbf": testNow.Unix() + 40})):                      "token_not_yet_valid",
		sign("ES256", newKey(t), `{"alg":"ES256","kid":"es"}`, jsonOf(goodClaims())):       "token_signature",
		sign("ES256", keysOnce().p256, `{"alg":"ES256","kid":"zz"}`, jsonOf(goodClaims())): "token_signature",
	}
	for range 3 {
		for raw, want := range junk {
			if _, refused := verify(v, raw); reason(refused) != want {
				t.Errorf("%q: got %v, want %s", raw, refused, want)
			}
			if cached(raw) {
				t.Errorf("%q is remembered", raw)
			}
		}
	}
	if hits, misses := v.cache.Stats(); hits != 0 || misses != uint64(3*len(junk)) {
		t.Errorf("%d hits, %d misses", hits, misses)
	}
	if _, refused := verify(v, good); refused != nil || !cached(good) {
		t.Errorf("the good token: %v, remembered: %v", refused, cached(good))
	}
}

// A token that the cache remembers is verified anew as soon as what verified it
// is not what it was: the issuer's configuration, its keys, or that it is one of
// ours at all. Each row has the cache warm before the change.
func TestCacheIsVoid(t *testing.T) {
	es := public(keysOnce().p256, object{"kid": "es"})
	for _, c := range []struct {
		name   string
		change func(*IssuerConfig)
		keys   string // the new content of the key file; "" leaves it
		hit    bool
		want   string
	}{
		{"nothing", func(*IssuerConfig) {}, "", true, "accepted"},
		{"the same keys in another order", func(*IssuerConfig) {}, keySet(public(keysOnce().ed, object{"kid": "ed"}), es), true, "accepted"},
		{"another key added", func(*IssuerConfig) {}, keySet(es, public(keysOnce().rsa, object{"kid": "new"}), public(keysOnce().ed, object{"kid": "ed"})), false, "accepted"},
		{"another key withdrawn", func(*IssuerConfig) {}, keySet(es), false, "accepted"},
		{"the key withdrawn", func(*IssuerConfig) {}, keySet(public(keysOnce().ed, object{"kid": "ed"})), false, "token_signature"},
		{"the key replaced under its kid", func(*IssuerConfig) {}, keySet(public(newKey(t), object{"kid": "es"})), false, "token_signature"},
		{"the key renamed", func(*IssuerConfig) {}, keySet(public(keysOnce().p256, object{"kid": "other"})), false, "token_signature"},
		{"a broken key file", func(*IssuerConfig) {}, "broken", true, "accepted"},
		{"audience", func(c *IssuerConfig) { c.Audiences = []string{"extranet"} }, "", false, "token_audience"},
		{"another audience too", func(c *IssuerConfig) { c.Audiences = []string{"extranet", "intranet"} }, "", false, "accepted"},
		{"iss", func(c *IssuerConfig) { c.Issuer += "/" }, "", false, "token_issuer"},
		{"algorithms", func(c *IssuerConfig) { c.Algorithms = []string{"EdDSA"} }, "", false, "token_algorithm"},
		{"token types", func(c *IssuerConfig) { c.TokenTypes = []string{"JWT"} }, "", false, "token_type"},
		{"lifetime", func(c *IssuerConfig) { c.MaxLifetime = time.Minute }, "", false, "token_lifetime"},
		{"where the session is", func(c *IssuerConfig) { c.Claims = map[string]string{"session": "aud_"} }, "", false, "accepted"},
		{"where the jti is", func(c *IssuerConfig) { c.Claims = map[string]string{"jti": "id"} }, "", false, "token_claims"},
	} {
		cfg := testConfig(t)
		rewrite(t, cfg.JWKSFile, keySet(es, public(keysOnce().ed, object{"kid": "ed"})))
		issuer, cache, raw := newIssuer(t, cfg), newCache(t), es256(goodClaims())
		first, refused := verify(NewVerifier([]*Issuer{issuer}, cache, 8192), raw)
		if refused != nil {
			t.Fatalf("%s: before: %v", c.name, refused)
		}
		cache.entries.Wait()
		c.change(&cfg)
		next, err := NewIssuer(cfg, nil, issuer)
		if err != nil {
			t.Fatal(err)
		}
		if c.keys != "" {
			rewrite(t, cfg.JWKSFile, c.keys)
			_ = next.Keys().Refresh(t.Context()) // the broken file's error is not the point
		}
		got, refused := verify(NewVerifier([]*Issuer{next}, cache, 8192), raw)
		if hits, _ := cache.Stats(); (hits > 0) != c.hit || (got == first) != c.hit || reason(refused) != c.want {
			t.Errorf("%s: %d hits, %v; want %s, from the cache: %v", c.name, hits, refused, c.want, c.hit)
		}
	}

	// An issuer that is not configured any more, and one that is again.
	issuer, cache, raw := newIssuer(t, testConfig(t)), newCache(t), es256(goodClaims())
	check(t, NewVerifier([]*Issuer{issuer}, cache, 8192), "configured", raw, "accepted")
	other := testConfig(t)
	other.Issuer = "https://partner.example"
	check(t, NewVerifier([]*Issuer{newIssuer(t, other)}, cache, 8192), "not configured", raw, "token_issuer")
	check(t, NewVerifier([]*Issuer{issuer}, cache, 8192), "configured again", raw, "accepted")
}

// Two tokens whose hashes begin alike share a place in the cache, and neither is
// taken for the other; nor is a token for its own prefix or extension.
func TestCacheTellsApart(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	alice, bob := es256(goodClaims()), es256(with(goodClaims(), object{"sub": "bob"}))
	claims, refused := verify(v, alice)
	if refused != nil {
		t.Fatal(refused)
	}
	// The entry of alice's token, where bob's is looked for.
	place := sha256.Sum256([]byte(bob))
	digest := sha256.Sum256([]byte(alice))
	copy(digest[:8], place[:8])
	v.cache.set(&entry{digest, claims, claims.Issuer.keys.current.Load().generation}, time.Hour)
	v.cache.entries.Wait()
	if v.cache.get(&digest) == nil {
		t.Fatal("the entry is not there")
	}
	if c, refused := verify(v, bob); refused != nil || c.Subject != "bob" {
		t.Errorf("bob is %+v, %v", c, refused)
	}
	for _, raw := range []string{alice[:len(alice)-1], alice + "A", alice + " ", strings.ToLower(alice)} {
		if c, refused := verify(v, raw); refused == nil {
			t.Errorf("%q is %s", raw, c.Subject)
		}
	}
}
