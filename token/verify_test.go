package token

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/big"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"durward/decision"
)

func verify(v *Verifier, raw string) (*Claims, *Error) {
	return v.Verify(context.Background(), raw, nil, testNow, nil)
}

// check verifies with a cold cache, with a warm one and with a trace, and wants
// the same of each.
func check(t *testing.T, v *Verifier, name, raw, want string) {
	t.Helper()
	trace := &decision.Trace{}
	cold, err1 := v.Verify(t.Context(), raw, nil, testNow, nil)
	v.cache.entries.Wait()
	warm, err2 := v.Verify(t.Context(), raw, nil, testNow, nil)
	told, err3 := v.Verify(t.Context(), raw, nil, testNow, trace)
	for when, err := range map[string]*Error{"cold": err1, "warm": err2, "traced": err3} {
		if got := reason(err); got != want {
			t.Errorf("%s, %s: got %s (%v), want %s", name, when, got, err, want)
		}
	}
	for _, c := range []*Claims{cold, warm, told} {
		if (c != nil) != (want == "accepted") {
			t.Errorf("%s: claims are %v", name, c)
		}
	}
	for _, step := range trace.Steps() {
		if parts := strings.Split(raw, "."); raw != "" && strings.Contains(step.Text, raw) || len(parts) == 3 && len(parts[2]) > 8 && strings.Contains(step.Text, parts[2]) {
			t.Errorf("%s: the trace shows the token: %s", name, step.Text)
		}
	}
}

func TestVerifyForm(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	key := keysOnce().p256
	good := es256(goodClaims())
	claims := jsonOf(goodClaims())
	headed := func(header string) string { return sign("ES256", key, header, claims) }
	bodied := func(payload string) string { return sign("ES256", key, `{"alg":"ES256","kid":"es"}`, payload) }
	parts := strings.Split(good, ".")
	sig := func(s string) string { return parts[0] + "." + parts[1] + "." + s }
	r := parts[2]
	slack := func(s string) string { // another spelling of the last byte
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		return s[:len(s)-1] + string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])+1])
	}
	swap := func(from, to string) string { return bodied(strings.Replace(claims, from, to, 1)) }
	long := func(n int) string {
		pad := ""
		for {
			if token := es256(with(goodClaims(), object{"pad": pad})); len(token) >= n {
				return token
			}
			pad += "x"
			if missing := n - len(es256(with(goodClaims(), object{"pad": pad}))); missing > 8 {
				pad += strings.Repeat("x", missing*3/4-4)
			}
		}
	}
	for _, c := range []struct{ name, raw, want string }{
		{"good", good, "accepted"},
		{"8 KiB", long(8190), "accepted"},
		{"more than 8 KiB", long(8193), "token_malformed"},
		{"empty", "", "token_malformed"},
		{"dots", "..", "token_malformed"},
		{"two parts", parts[0] + "." + parts[1], "token_malformed"},
		{"no signature", sig(""), "token_malformed"},
		{"four parts", good + ".x", "token_malformed"},
		{"trailing dot", good + ".", "token_malformed"},
		{"five parts", "a.b.c.d.e", "token_malformed"},
		{"JSON serialisation", `{"payload":"x"}`, "token_malformed"},
		{"padding", good + "=", "token_malformed"},
		{"space before", " " + good, "token_malformed"},
		{"newline behind", good + "\n", "token_malformed"},
		{"newline inside", parts[0][:4] + "\r\n" + good[4:], "token_malformed"},
		{"newline in signature", sig(r[:8] + "\n" + r[8:]), "token_malformed"},
		{"slack bits", sig(slack(r)), "token_malformed"},
		{"standard alphabet", sig("+" + r[1:]), "token_malformed"},
		{"NUL", good + "\x00", "token_malformed"},
		{"header is null", headed(`null`), "token_malformed"},
		{"header is an array", headed(`["ES256"]`), "token_malformed"},
		{"header with two alg", headed(`{"alg":"ES256","alg":"ES256","kid":"es"}`), "token_malformed"},
		{"header with Alg", headed(`{"Alg":"ES256","kid":"es"}`), "token_malformed"},
		{"alg and Alg", headed(`{"alg":"ES256","Alg":"none","kid":"es"}`), "accepted"},
		{"alg is a number", headed(`{"alg":1,"kid":"es"}`), "token_malformed"},
		{"kid is a number", headed(`{"alg":"ES256","kid":1}`), "token_malformed"},
		{"kid is null", headed(`{"alg":"ES256","kid":null}`), "token_malformed"},
		{"typ is null", headed(`{"alg":"ES256","kid":"es","typ":null}`), "token_malformed"},
		{"typ is a list", headed(`{"alg":"ES256","kid":"es","typ":["JWT"]}`), "token_malformed"},
		{"crit", headed(`{"alg":"ES256","kid":"es","crit":["exp"],"exp":1}`), "token_malformed"},
		{"empty crit", headed(`{"alg":"ES256","kid":"es","crit":[]}`), "token_malformed"},
		{"b64", headed(`{"alg":"ES256","kid":"es","b64":true}`), "token_malformed"},
		{"zip", headed(`{"alg":"ES256","kid":"es","zip":"DEF"}`), "token_malformed"},
		{"cty", headed(`{"alg":"ES256","kid":"es","cty":"JWT"}`), "token_malformed"},
		{"foreign jwk, ignored", headed(`{"alg":"ES256","kid":"es","jwk":{"kty":"oct","k":"AA"},"jku":"http://evil.example","x5u":"http://evil.example","x5c":["AA"]}`), "accepted"},
		{"payload is null", bodied(`null`), "token_malformed"},
		{"payload is a string", bodied(`"x"`), "token_malformed"},
		{"payload and more", bodied(claims + "{}"), "token_malformed"},
		{"two sub", swap(`"sub":"alice"`, `"sub":"alice","sub":"root"`), "token_malformed"},
		{"two roles inside", swap(`{"roles":`, `{"roles":["root"],"roles":`), "token_malformed"},
		{"Sub is another claim", swap(`"sub":"alice"`, `"sub":"alice","Sub":"root","ſub":"root"`), "accepted"},
		{"invalid UTF-8", swap("alice", "alice\xff"), "token_malformed"},
		{"lone surrogate", swap("alice", `alice\ud800`), "token_malformed"},
		{"too deep", swap(`"sub"`, `"x":`+strings.Repeat("[", 16)+strings.Repeat("]", 16)+`,"sub"`), "token_malformed"},
		{"deep", swap(`"sub"`, `"x":`+strings.Repeat("[", 15)+strings.Repeat("]", 15)+`,"sub"`), "accepted"},
		{"typ missing", headed(`{"alg":"ES256","kid":"es"}`), "accepted"},
		{"typ JWT", headed(`{"alg":"ES256","kid":"es","typ":"jwt"}`), "accepted"},
		{"typ with application", headed(`{"alg":"ES256","kid":"es","typ":"Application/AT+JWT"}`), "accepted"},
		{"typ empty", headed(`{"alg":"ES256","kid":"es","typ":""}`), "token_type"},
		{"logout token", headed(`{"alg":"ES256","kid":"es","typ":"logout+jwt"}`), "token_type"},
		{"security event", headed(`{"alg":"ES256","kid":"es","typ":"secevent+jwt"}`), "token_type"},
		{"kid missing, one key fits", headed(`{"alg":"ES256"}`), "accepted"},
		{"kid unknown", headed(`{"alg":"ES256","kid":"../../etc/passwd"}`), "token_signature"},
		{"kid empty", headed(`{"alg":"ES256","kid":""}`), "token_signature"},
		{"kid of another key", headed(`{"alg":"ES256","kid":"rs"}`), "token_signature"},
		{"alg none", segment([]byte(`{"alg":"none","kid":"es"}`)) + "." + parts[1] + ".AA", "token_algorithm"},
		{"alg nOnE", headed(`{"alg":"nOnE","kid":"es"}`), "token_algorithm"},
		{"alg es256", headed(`{"alg":"es256","kid":"es"}`), "token_algorithm"},
		{"HS256 with the public key", hmacToken(claims), "token_algorithm"},
		{"another signature", sig(strings.Split(es256(with(goodClaims(), object{"sub": "root"})), ".")[2]), "token_signature"},
		{"zero r and s", sig(segment(make([]byte, 64))), "token_signature"},
		{"short signature", sig(segment(make([]byte, 63))), "token_signature"},
	} {
		check(t, v, c.name, c.raw, c.want)
	}
}

// hmacToken is signed with the text of the public keys as the secret.
func hmacToken(claims string) string {
	return sign("HS256", []byte(allKeys()), `{"alg":"HS256","kid":"es"}`, claims)
}

func TestVerifyClaims(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	now := testNow.Unix()
	raw := func(text string) any { return rawJSON(text) }
	for _, c := range []struct {
		name    string
		changes object
		want    string
	}{
		{"nothing", nil, "accepted"},
		{"iss missing", object{"iss": nil}, "token_issuer"},
		{"iss of another", object{"iss": "https://evil.example"}, "token_issuer"},
		{"iss with a slash", object{"iss": testIssuer + "/"}, "token_issuer"},
		{"iss in capitals", object{"iss": strings.ToUpper(testIssuer)}, "token_issuer"},
		{"iss is a list", object{"iss": []string{testIssuer}}, "token_issuer"},
		{"aud missing", object{"aud": nil}, "token_audience"},
		{"aud is null", object{"aud": raw("null")}, "token_audience"},
		{"aud of another", object{"aud": "extranet"}, "token_audience"},
		{"aud in capitals", object{"aud": "Intranet"}, "token_audience"},
		{"aud list", object{"aud": []any{"x", "intranet"}}, "accepted"},
		{"aud list is empty", object{"aud": []any{}}, "token_audience"},
		{"aud list with a number", object{"aud": []any{"intranet", 1}}, "token_audience"},
		{"aud is an object", object{"aud": object{"intranet": true}}, "token_audience"},
		{"exp missing", object{"exp": nil}, "token_claims"},
		{"exp null", object{"exp": raw("null")}, "token_claims"},
		{"exp string", object{"exp": fmt.Sprint(now + 600)}, "token_claims"},
		{"exp bool", object{"exp": true}, "token_claims"},
		{"exp zero", object{"exp": 0}, "token_claims"},
		{"exp negative", object{"exp": -now}, "token_claims"},
		{"exp 1e308", object{"exp": raw("1e308")}, "token_claims"},
		{"exp 1e999", object{"exp": raw("1e999")}, "token_claims"},
		{"exp in milliseconds", object{"exp": (now + 600) * 1000}, "token_claims"},
		{"exp in the year 9999", object{"exp": latest - 1}, "token_lifetime"},
		{"exp with an exponent", object{"exp": raw(fmt.Sprintf("%d.5e1", (now+600)/10))}, "accepted"},
		{"expired within leeway", object{"exp": raw(fmt.Sprintf("%d.001", now-30))}, "accepted"},
		{"expired at leeway", object{"exp": now - 30}, "token_expired"},
		{"iat missing", object{"iat": nil}, "token_claims"},
		{"iat string", object{"iat": "1"}, "token_claims"},
		{"iat 1e308", object{"iat": raw("1e308")}, "token_claims"},
		{"iat at skew", object{"iat": now + 2}, "accepted"},
		{"iat beyond skew", object{"iat": now + 3}, "token_not_yet_valid"},
		{"nbf within leeway", object{"nbf": now + 30}, "accepted"},
		{"nbf beyond leeway", object{"nbf": now + 31}, "token_not_yet_valid"},
		{"nbf 1e308", object{"nbf": raw("1e308")}, "token_claims"},
		{"nbf null", object{"nbf": raw("null")}, "token_claims"},
		{"nbf string", object{"nbf": "1"}, "token_claims"},
		{"longest lifetime", object{"iat": now - 60, "exp": now - 60 + 86400}, "accepted"},
		{"longer lifetime", object{"iat": now - 60, "exp": now - 60 + 86401}, "token_lifetime"},
		{"iat long ago", object{"iat": 1}, "token_lifetime"},
		{"jti missing", object{"jti": nil}, "token_claims"},
		{"jti empty", object{"jti": ""}, "token_claims"},
		{"jti number", object{"jti": 7}, "token_claims"},
		{"jti null", object{"jti": raw("null")}, "token_claims"},
		{"sub missing", object{"sub": nil}, "accepted"},
		{"sub number", object{"sub": 7}, "token_claims"},
		{"sid list", object{"sid": []string{"a"}}, "token_claims"},
		{"client number", object{"client_id": 7}, "token_claims"},
		{"acr number", object{"acr": 1}, "token_claims"},
		{"auth_time string", object{"auth_time": "1"}, "token_claims"},
		{"auth_time missing", object{"auth_time": nil}, "accepted"},
		{"auth_time at skew", object{"auth_time": now + 2}, "accepted"},
		{"auth_time beyond skew", object{"auth_time": now + 3}, "token_not_yet_valid"},
		{"auth_time in the year 9999", object{"auth_time": latest - 1}, "token_not_yet_valid"},
		{"scope list", object{"scope": []string{"a", "b"}}, "accepted"},
		{"scope list with a number", object{"scope": []any{"a", 1}}, "token_claims"},
		{"scope object", object{"scope": object{"a": true}}, "token_claims"},
		{"scope null", object{"scope": raw("null")}, "token_claims"},
		{"events", object{"events": object{"http://schemas.openid.net/event/backchannel-logout": object{}}}, "token_claims"},
		{"events null", object{"events": raw("null")}, "token_claims"},
		{"cnf", object{"cnf": object{"jkt": "x"}}, "token_claims"},
	} {
		check(t, v, c.name, es256(with(goodClaims(), c.changes)), c.want)
	}
}

// A claim that is mapped to a place inside of an object is missing only if that
// object, or its member, is.
func TestVerifyMappedClaims(t *testing.T) {
	cfg := testConfig(t)
	cfg.RequireJTI = deref(false)
	for _, name := range []string{"sub", "session", "client", "scopes", "auth_time", "acr", "jti"} {
		cfg.Claims[name] = "user.about." + name
	}
	v := NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
	for _, c := range []struct{ user, want string }{
		{`{"about":{"sub":"a","session":"b","client":"c","scopes":"d e","auth_time":1000,"acr":"f","jti":"g"}}`, "accepted"},
		{`{"about":{}}`, "accepted"},
		{`{}`, "accepted"},
		{`"a"`, "token_claims"},
		{`null`, "token_claims"},
		{`["a"]`, "token_claims"},
		{`{"about":"a"}`, "token_claims"},
		{`{"about":null}`, "token_claims"},
		{`{"about":[{"sub":"a"}]}`, "token_claims"},
		{`{"about":{"sub":null}}`, "token_claims"},
	} {
		check(t, v, "user "+c.user, es256(with(goodClaims(), object{"user": rawJSON(c.user)})), c.want)
	}
	check(t, v, "no user", es256(goodClaims()), "accepted")
}

type rawJSON string

func (r rawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }

// The header of a token that verified is not read again, and means the same; one of a
// token that did not is not remembered.
func TestVerifyHeaders(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	made := func(header string, n int) string {
		return sign("ES256", keysOnce().p256, header, jsonOf(with(goodClaims(), object{"jti": fmt.Sprint(n)})))
	}
	held := func(want int) {
		t.Helper()
		if n := len(v.headers.held); n != want {
			t.Errorf("%d headers are held, want %d", n, want)
		}
	}
	const good = `{"alg":"ES256","kid":"es","typ":"at+jwt"}`
	forged := made(good, 0)
	forged = forged[:len(forged)-8] + "AAAAAAAA"
	check(t, v, "forged", forged, "token_signature")
	check(t, v, "of another key", made(`{"alg":"ES256","kid":"rs"}`, 0), "token_signature")
	check(t, v, "with crit", made(`{"alg":"ES256","kid":"es","crit":["exp"]}`, 0), "token_malformed")
	held(0)
	for n := range 3 {
		check(t, v, "good", made(good, n), "accepted")
	}
	held(1)
	check(t, v, "forged, with a known header", forged, "token_signature")
	check(t, v, "logout token", made(`{"alg":"ES256","kid":"es","typ":"logout+jwt"}`, 4), "token_type")
	held(1)
	for n := range 2 * maxHeaders {
		check(t, v, "each its own", made(fmt.Sprintf(`{"alg":"ES256","kid":"es","n":%d}`, n), n), "accepted")
	}
	held(maxHeaders)
	check(t, v, "good after all others", made(good, 5), "accepted")
}

// The order in which a token's faults are told: the cheap and local ones first.
func TestVerifyOrder(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	changes, header := object{}, `{"alg":"XS256","kid":"unknown","typ":"logout+jwt"}`
	faults := []struct {
		want string
		mend func()
		add  object
	}{
		{"token_type", func() { header = `{"alg":"XS256","kid":"unknown"}` }, nil},
		{"token_issuer", func() { delete(changes, "iss") }, object{"iss": "x"}},
		{"token_audience", func() { delete(changes, "aud") }, object{"aud": "x"}},
		{"token_claims", func() { delete(changes, "jti") }, object{"jti": 1}},
		{"token_expired", func() { changes["exp"] = testNow.Unix() + 86400 }, object{"exp": testNow.Unix() - 100}},
		{"token_not_yet_valid", func() { delete(changes, "nbf") }, object{"nbf": testNow.Unix() + 100}},
		{"token_lifetime", func() { delete(changes, "iat"); delete(changes, "exp") }, object{"iat": testNow.Unix() - 86400}},
		{"token_algorithm", func() { header = `{"alg":"ES256","kid":"unknown"}` }, nil},
		{"token_signature", func() { header = `{"alg":"ES256","kid":"es"}` }, nil},
	}
	for _, f := range faults {
		maps.Copy(changes, f.add)
	}
	for _, f := range faults {
		check(t, v, f.want, sign("ES256", keysOnce().p256, header, jsonOf(with(goodClaims(), changes))), f.want)
		f.mend()
	}
	check(t, v, "mended", sign("ES256", keysOnce().p256, header, jsonOf(with(goodClaims(), changes))), "accepted")
}

func TestVerifyAlgorithms(t *testing.T) {
	k := keysOnce()
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	cfg := testConfig(t)
	cfg.Algorithms = nil
	standard := NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
	for _, c := range []struct {
		alg, kid    string
		key         any
		want, usual string
	}{
		{"RS256", "rs", k.rsa, "accepted", "accepted"},
		{"RS384", "rs", k.rsa, "accepted", "token_algorithm"},
		{"RS512", "rs", k.rsa, "accepted", "token_algorithm"},
		{"PS256", "rs", k.rsa, "accepted", "token_algorithm"},
		{"PS384", "rs", k.rsa, "accepted", "token_algorithm"},
		{"PS512", "rs", k.rsa, "accepted", "token_algorithm"},
		{"ES256", "es", k.p256, "accepted", "accepted"},
		{"ES384", "es384", k.p384, "accepted", "token_algorithm"},
		{"ES512", "es512", k.p521, "accepted", "token_algorithm"},
		{"EdDSA", "ed", k.ed, "accepted", "accepted"},
		{"RS256", "rs", k.rsa2, "token_signature", "token_signature"},
		{"RS256", "es", k.rsa, "token_signature", "token_signature"},
		{"ES256", "rs", k.p256, "token_signature", "token_signature"},
		{"EdDSA", "es", k.ed, "token_signature", "token_signature"},
		{"ES384", "es", k.p384, "token_signature", "token_algorithm"},
		{"ES512", "es384", k.p521, "token_signature", "token_algorithm"},
	} {
		raw := sign(c.alg, c.key, fmt.Sprintf(`{"alg":%q,"kid":%q}`, c.alg, c.kid), jsonOf(goodClaims()))
		check(t, v, c.alg+" with "+c.kid, raw, c.want)
		check(t, standard, c.alg+" with "+c.kid+" by default", raw, c.usual)
	}

	// RFC 7518 section 3.5: the salt is as long as the hash.
	for salt, want := range map[int]string{rsa.PSSSaltLengthEqualsHash: "accepted", 0: "token_signature", 20: "token_signature"} {
		signed := segment([]byte(`{"alg":"PS256","kid":"rs"}`)) + "." + segment([]byte(jsonOf(goodClaims())))
		digest := sha256.Sum256([]byte(signed))
		sig, err := rsa.SignPSS(rand.Reader, k.rsa, 5, digest[:], &rsa.PSSOptions{SaltLength: salt})
		if err != nil {
			t.Fatal(err)
		}
		check(t, v, fmt.Sprintf("PS256 with salt %d", salt), signed+"."+segment(sig), want)
	}
}

// An ECDSA signature (r, s) has the twin (r, n-s), so one token has two texts:
// they are the same token to the denylist.
func TestMalleable(t *testing.T) {
	cfg := testConfig(t)
	cfg.RequireJTI = deref(false)
	v := NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
	raw := es256(with(goodClaims(), object{"jti": nil}))
	at := strings.LastIndexByte(raw, '.') + 1
	sig, err := decodeSegment(raw[at:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(sig[32:])
	s.Sub(keysOnce().p256.Params().N, s).FillBytes(sig[32:])
	first, err1 := verify(v, raw)
	second, err2 := verify(v, raw[:at]+segment(sig))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	a, ok := first.ID(KindToken)
	if b, _ := second.ID(KindToken); a != b || !ok {
		t.Errorf("two spellings of one token have the identities %x and %x", a, b)
	}
	sum := sha256.Sum256([]byte(raw[:at-1]))
	if want := "sha256:" + hex.EncodeToString(sum[:]); first.TokenID != want {
		t.Errorf("token id %s, want %s", first.TokenID, want)
	}
}

func TestVerifiedClaims(t *testing.T) {
	cfg := testConfig(t)
	cfg.Claims["url"] = "https://example.com/x.y"
	v := NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
	c, refused := verify(v, es256(with(goodClaims(), object{"https://example.com/x.y": "z", "a.b": "dot", "iat": rawJSON(fmt.Sprintf("%d.123456", testNow.Unix()-1))})))
	if refused != nil {
		t.Fatal(refused)
	}
	if c.Subject != "alice" || c.TokenID != "B70BA622" || c.Session != "08a5019c" || c.Client != "shop" || c.ACR != "mfa" || c.Issuer != v.Issuers()[0] {
		t.Errorf("got %+v", c)
	}
	if want := []string{"orders:read", "orders:write"}; !reflect.DeepEqual(c.Scopes, want) {
		t.Errorf("scopes %q, want %q", c.Scopes, want)
	}
	if want := testNow.Add(-time.Second + 123456*time.Microsecond); !c.IssuedAt.Equal(want) {
		t.Errorf("issued %v, want %v", c.IssuedAt, want)
	}
	if !c.Expiry.Equal(testNow.Add(10*time.Minute)) || !c.AuthTime.Equal(testNow.Add(-2*time.Minute)) {
		t.Errorf("expiry %v, auth_time %v", c.Expiry, c.AuthTime)
	}
	for kind, value := range map[Kind]string{KindToken: c.TokenID, KindSession: c.Session, KindSubject: c.Subject, KindClient: c.Client, KindIssuer: ""} {
		if id, ok := c.ID(kind); !ok || id != Identify(kind, testIssuer, value) {
			t.Errorf("identity by %v is %x, %v", kind, id, ok)
		}
	}
	for _, kind := range []Kind{0, Kind(Kinds + 1), 255} {
		if id, ok := c.ID(kind); ok {
			t.Errorf("kind %d gives %x", kind, id)
		}
	}
	for name, want := range map[string]any{
		"groups": []any{"ops", "sre"}, "realm_access.roles": []any{"ops", "sre"}, "sub": "alice", "session": "08a5019c", "url": "z",
		"https://example.com/x.y": "z", `a\.b`: "dot", "a.b": nil, "missing": nil, "realm_access.missing": nil, "sub.x": nil, "": nil, `x\y`: nil, "Sub": nil,
	} {
		if got := c.Value(name); !reflect.DeepEqual(got, want) {
			t.Errorf("Value(%q) is %v, want %v", name, got, want)
		}
	}
	cfg = testConfig(t)
	cfg.Claims["auth_time"] = "login.at"
	mapped := NewVerifier([]*Issuer{newIssuer(t, cfg)}, newCache(t), 8192)
	for _, login := range []any{nil, object{"at": testNow.Unix() - 7}} {
		c, refused := verify(mapped, es256(with(goodClaims(), object{"login": login})))
		if refused != nil {
			t.Fatal(refused)
		}
		if want := testNow.Add(-7 * time.Second); c.AuthTime.IsZero() != (login == nil) || login != nil && !c.AuthTime.Equal(want) {
			t.Errorf("auth_time from elsewhere is %v with %v", c.AuthTime, login)
		}
	}
	check(t, mapped, "a mapped auth_time", es256(with(goodClaims(), object{"login": object{"at": "1"}})), "token_claims")
	bare, refused := verify(v, es256(with(goodClaims(), object{"sub": nil, "sid": "", "client_id": nil, "scope": nil, "acr": nil})))
	if refused != nil {
		t.Fatal(refused)
	}
	for _, kind := range []Kind{KindSession, KindSubject, KindClient} {
		if id, ok := bare.ID(kind); ok {
			t.Errorf("a token without it has the identity %x by %v", id, kind)
		}
	}
}

// Issuers cannot speak for each other, even with equal kids and the same audience.
func TestIssuersApart(t *testing.T) {
	k := keysOnce()
	one := testConfig(t)
	two := testConfig(t)
	two.Name, two.Issuer = "partner", "https://partner.example"
	two.JWKSFile = write(t, "jwks.json", keySet(public(k.rsa2, object{"kid": "rs"}), public(k.p384, object{"kid": "es"})))
	v := NewVerifier([]*Issuer{newIssuer(t, one), newIssuer(t, two)}, newCache(t), 8192)
	header := `{"alg":"RS256","kid":"rs"}`
	ours, theirs := jsonOf(goodClaims()), jsonOf(with(goodClaims(), object{"iss": two.Issuer}))
	check(t, v, "ours", sign("RS256", k.rsa, header, ours), "accepted")
	check(t, v, "theirs", sign("RS256", k.rsa2, header, theirs), "accepted")
	check(t, v, "ours signed by them", sign("RS256", k.rsa2, header, ours), "token_signature")
	check(t, v, "theirs signed by us", sign("RS256", k.rsa, header, theirs), "token_signature")

	raw := sign("RS256", k.rsa2, header, theirs)
	for _, c := range []struct {
		accept []string
		want   string
	}{
		{nil, "accepted"}, {[]string{"corp", "partner"}, "accepted"}, {[]string{"corp"}, "token_issuer"}, {[]string{}, "token_issuer"},
	} {
		for _, when := range []string{"cold or warm", "warm"} {
			if _, refused := v.Verify(t.Context(), raw, c.accept, testNow, nil); reason(refused) != c.want {
				t.Errorf("%s, accepting %q: got %v, want %s", when, c.accept, refused, c.want)
			}
			v.cache.entries.Wait()
		}
	}

	twice := NewVerifier([]*Issuer{v.Issuers()[0], newIssuer(t, one), newIssuer(t, one)}, newCache(t), 8192)
	check(t, twice, "two issuers with one URL", sign("RS256", k.rsa, header, ours), "token_issuer")
	check(t, NewVerifier(nil, newCache(t), 8192), "no issuer", raw, "token_type")
	if _, refused := verify(NewVerifier(v.Issuers(), nil, 8192), raw); refused != nil {
		t.Errorf("without a cache: %v", refused)
	}
	if _, refused := verify(NewVerifier(v.Issuers(), nil, 0), raw); reason(refused) != "token_malformed" {
		t.Errorf("without a length: %v", refused)
	}
}

func TestCached(t *testing.T) {
	cfg := testConfig(t)
	issuer := newIssuer(t, cfg)
	cache := newCache(t)
	v := NewVerifier([]*Issuer{issuer}, cache, 8192)
	raw := es256(goodClaims())
	c, refused := verify(v, raw)
	if refused != nil {
		t.Fatal(refused)
	}
	cache.entries.Wait()
	hit := func(v *Verifier, want bool) {
		t.Helper()
		before, _ := cache.Stats()
		again, refused := verify(v, raw)
		if refused != nil {
			t.Fatal(refused)
		}
		after, _ := cache.Stats()
		if got := again == c; got != want || (after > before) != want {
			t.Errorf("from the cache: %v (hits %d to %d), want %v", got, before, after, want)
		}
		cache.entries.Wait()
	}
	hit(v, true)
	hit(NewVerifier([]*Issuer{issuer}, cache, 8192), true) // another Verifier, the same issuer

	// Time counts on every hit.
	for after, want := range map[time.Duration]string{0: "accepted", 10*time.Minute + 29*time.Second: "accepted", 10*time.Minute + 30*time.Second: "token_expired", -time.Hour: "token_not_yet_valid"} {
		if _, refused := v.Verify(t.Context(), raw, nil, testNow.Add(after), nil); reason(refused) != want {
			t.Errorf("after %v: %v, want %s", after, refused, want)
		}
	}
	// So does the age of the keys.
	if _, refused := v.Verify(t.Context(), es256(with(goodClaims(), object{"iat": testNow.Unix() + 90000, "exp": testNow.Unix() + 91000})), nil, testNow.Add(25*time.Hour), nil); reason(refused) != "keys_unavailable" {
		t.Errorf("with old keys: %v", refused)
	}

	// A changed configuration makes the entry void, a changed key set too.
	cfg.MaxLifetime = 2 * time.Hour
	changed, err := NewIssuer(cfg, nil, issuer)
	if err != nil {
		t.Fatal(err)
	}
	hit(NewVerifier([]*Issuer{changed}, cache, 8192), false)
	if c, refused = verify(v, raw); refused != nil {
		t.Fatal(refused)
	}
	cache.entries.Wait()
	c, _ = verify(v, raw)
	rewrite(t, cfg.JWKSFile, keySet(public(keysOnce().p256, object{"kid": "es"})))
	if err := issuer.Keys().Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	hit(v, false)
	c, _ = verify(v, raw)
	hit(v, true)
	rewrite(t, cfg.JWKSFile, keySet(public(keysOnce().p384, object{"kid": "es"})))
	if err := issuer.Keys().Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, v, "withdrawn key", raw, "token_signature")
}

// A key with the same first 64 bits must not be answered with another's claims.
func TestCacheCollision(t *testing.T) {
	cache := newCache(t)
	c, err := newIssuer(t, testConfig(t)).Suppose(nil, testNow)
	if err != nil {
		t.Fatal(err)
	}
	e := &entry{claims: c}
	cache.set(e, time.Hour)
	cache.entries.Wait()
	other := e.digest
	other[31] ^= 1
	if cache.get(&e.digest) != e || cache.get(&other) != nil {
		t.Error("the whole digest does not count")
	}
	cache.set(&entry{digest: other, claims: c}, 0)
	cache.entries.Wait()
	if cache.get(&other) != nil {
		t.Error("an expired token was kept")
	}
}

func TestOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, nil, 8192)
		now := time.Now()
		raw := es256(with(goodClaims(), object{"iat": now.Unix(), "exp": now.Unix() + 600, "auth_time": nil}))
		v.capacity = &capacity{}
		began := time.Now()
		if _, refused := v.Verify(t.Context(), raw, nil, now, nil); reason(refused) != "overloaded" || time.Since(began) != capacityTimeout {
			t.Errorf("after %v: %v", time.Since(began), refused)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, refused := v.Verify(gone, raw, nil, now, nil); reason(refused) != "overloaded" {
			t.Errorf("of a client that left: %v", refused)
		}
		go func() { time.Sleep(time.Second / 2); v.capacity.give(true, 0) }()
		if _, refused := v.Verify(t.Context(), raw, nil, now, nil); refused != nil {
			t.Errorf("with a free slot: %v", refused)
		}
		// A good token makes nobody wait, a bad one does.
		v.capacity = &capacity{free: 1}
		forged := raw[:strings.LastIndexByte(raw, '.')+1] + segment(make([]byte, 64))
		for _, c := range []struct {
			first string
			want  time.Duration
		}{{raw, 0}, {forged, shortestPause}} {
			v.Verify(t.Context(), c.first, nil, now, nil)
			began := time.Now()
			if _, refused := v.Verify(t.Context(), raw, nil, now, nil); refused != nil || time.Since(began) != c.want {
				t.Errorf("the next one waited %v, want %v: %v", time.Since(began), c.want, refused)
			}
		}
		for took, want := range map[time.Duration]time.Duration{50 * time.Microsecond: 200 * time.Microsecond, time.Second: longestPause} {
			v.capacity.take(t.Context())
			v.capacity.give(false, took)
			began := time.Now()
			if v.capacity.take(t.Context()); time.Since(began) != want {
				t.Errorf("a bad one that took %v: the next one waited %v, want %v", took, time.Since(began), want)
			}
			v.capacity.give(true, 0)
		}
	})
}

// TestTurns: who came last is next, who leaves takes nobody's turn with it, and none is
// lost or made up, whatever happens at the same time.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &capacity{}
		var order []int
		for i := range 4 {
			ctx, leave := context.WithCancel(t.Context())
			go func() {
				if c.take(ctx) == nil {
					order = append(order, i)
					c.give(true, 0)
				}
			}()
			synctest.Wait()
			if i == 2 {
				leave()
			}
			defer leave()
		}
		synctest.Wait()
		c.end()
		synctest.Wait()
		if fmt.Sprint(order) != "[3 1 0]" || c.free != 1 || c.waiting.Len() != 0 {
			t.Errorf("in the order %v; %d are free, %d wait", order, c.free, c.waiting.Len())
		}
	})
	c := &capacity{free: 3}
	var all sync.WaitGroup
	var held, most atomic.Int64
	for i := range 64 {
		all.Go(func() {
			for n := range 200 {
				ctx, leave := context.WithTimeout(t.Context(), time.Duration((i*37+n*11)%300)*time.Microsecond)
				if c.take(ctx) == nil {
					if now := held.Add(1); now > most.Load() {
						most.Store(now)
					}
					held.Add(-1)
					c.give((i+n)%8 != 0, 0)
				}
				leave()
			}
		})
	}
	all.Wait()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		free, waiting := c.free, c.waiting.Len()
		c.mu.Unlock()
		if free == 3 && waiting == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 3 turns are free, %d wait", free, waiting)
		}
	}
	if most.Load() > 3 {
		t.Errorf("%d had a turn at once", most.Load())
	}
}

// TestFirstOnce: those who bring the same token at the same time have its signature
// checked once; one who leaves fails nobody else, and those with another token of the
// same signing input are on their own.
func TestFirstOnce(t *testing.T) {
	for _, c := range []struct {
		name    string
		leave   bool // who came first leaves before its turn
		forge   bool // the signature is bad
		want    string
		checked uint64 // good tokens
	}{
		{"a good token", false, false, "accepted", 1},
		{"the first one leaves", true, false, "accepted", 1},
		{"a forged one", false, true, "token_signature", 0},
		{"a forged one, and the first leaves", true, true, "token_signature", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			issuer := newIssuer(t, testConfig(t))
			v := NewVerifier([]*Issuer{issuer}, nil, 8192) // without a cache, which might know it by then
			now := time.Now()
			raw := es256(with(goodClaims(), object{"iat": now.Unix(), "exp": now.Unix() + 600, "auth_time": nil}))
			twin := raw[:strings.LastIndexByte(raw, '.')+1] + segment(make([]byte, 64))
			if c.forge {
				raw, twin = twin, raw
			}
			v.capacity = &capacity{} // nobody's turn yet
			first, leave := context.WithCancel(t.Context())
			defer leave()
			results := make(chan string, 20)
			ask := func(ctx context.Context, raw string) {
				claims, refused := v.Verify(ctx, raw, nil, now, nil)
				if (claims == nil) == (refused == nil) {
					t.Errorf("%s: %v and %v", c.name, claims, refused)
				}
				results <- reason(refused)
			}
			go ask(first, raw)
			synctest.Wait()
			for range 10 {
				go ask(t.Context(), raw)
			}
			synctest.Wait()
			if c.leave {
				leave()
				synctest.Wait()
				if got := <-results; got != "overloaded" {
					t.Errorf("%s: who left got %s", c.name, got)
				}
			}
			go ask(t.Context(), twin)
			synctest.Wait()
			v.capacity.end()
			released := time.Now()
			alike, other := 11, map[string]string{"accepted": "token_signature", "token_signature": "accepted"}[c.want]
			if c.leave {
				alike = 10
			}
			got := map[string]int{}
			for range alike + 1 {
				got[<-results]++
			}
			if took := time.Since(released); took > shortestPause { // one bad signature was checked
				t.Errorf("%s: it took %v", c.name, took)
			}
			if got[c.want] != alike || got[other] != 1 {
				t.Errorf("%s: %v", c.name, got)
			}
			want := c.checked
			if c.forge {
				want++ // the twin
			}
			if n := issuer.Shares()[0].Tokens; n != want {
				t.Errorf("%s: %d tokens were found good, want %d", c.name, n, want)
			}
		})
	}
}

func TestVerifyConcurrently(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	tokens := make([]string, 20)
	for i := range tokens {
		tokens[i] = es256(with(goodClaims(), object{"sub": fmt.Sprint(i)}))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for round := range 5 {
				for i, raw := range tokens {
					if c, refused := verify(v, raw); refused != nil || c.Subject != fmt.Sprint(i) {
						t.Errorf("round %d, token %d: got %v, %v", round, i, c, refused)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestTrace(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	trace := &decision.Trace{}
	if _, refused := v.Verify(t.Context(), es256(goodClaims()), nil, testNow, trace); refused != nil {
		t.Fatal(refused)
	}
	var names, text string
	for _, s := range trace.Steps() {
		names += s.Name + " "
		text += s.Text + "\n"
	}
	if names != "form type issuer audience claims times algorithm keys signature " {
		t.Errorf("steps %s", names)
	}
	for _, want := range []string{testIssuer, `"corp"`, "intranet", "alice", "B70BA622", "(in 10m0s)", "(1m0s ago)", "P-256", "ES256 verifies"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	v := NewVerifier([]*Issuer{newIssuer(t, testConfig(t))}, newCache(t), 8192)
	raw, accept := es256(goodClaims()), []string{"corp"}
	if _, refused := verify(v, raw); refused != nil {
		t.Fatal(refused)
	}
	v.cache.entries.Wait()
	if n := testing.AllocsPerRun(1000, func() {
		if _, refused := v.Verify(context.Background(), raw, accept, testNow, nil); refused != nil {
			t.Fatal(refused)
		}
	}); n >= 1 {
		t.Errorf("a cached token costs %v allocations", n)
	}
}

func BenchmarkVerify(b *testing.B) {
	k := keysOnce()
	i := newIssuer(b, testConfig(b))
	hit := NewVerifier([]*Issuer{i}, newCache(b), 8192)
	miss := NewVerifier([]*Issuer{i}, nil, 8192)
	token := func(alg, kid string, key any) string {
		return sign(alg, key, fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, kid), jsonOf(goodClaims()))
	}
	for _, c := range []struct {
		name string
		v    *Verifier
		raw  string
	}{
		{"hit", hit, token("RS256", "rs", k.rsa)},
		{"RS256", miss, token("RS256", "rs", k.rsa)},
		{"ES256", miss, token("ES256", "es", k.p256)},
		{"EdDSA", miss, token("EdDSA", "ed", k.ed)},
	} {
		b.Run(c.name, func(b *testing.B) {
			verify(c.v, c.raw)
			if c.v.cache != nil {
				c.v.cache.entries.Wait()
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, refused := verify(c.v, c.raw); refused != nil {
					b.Fatal(refused)
				}
			}
		})
	}
}

// A changed token never verifies: not with a bit flipped, not with a piece cut out
// or put in. What verifies has one spelling, and golang-jwt agrees with it.
func FuzzVerify(f *testing.F) {
	k := keysOnce()
	v := NewVerifier([]*Issuer{newIssuer(f, testConfig(f))}, nil, 8192)
	good := []string{
		es256(goodClaims()),
		sign("RS256", k.rsa, `{"alg":"RS256","kid":"rs"}`, jsonOf(goodClaims())),
		sign("EdDSA", k.ed, `{"alg":"EdDSA","kid":"ed"}`, jsonOf(goodClaims())),
	}
	for _, raw := range good {
		if _, refused := verify(v, raw); refused != nil {
			f.Fatal(refused)
		}
		end := uint(len(raw))
		f.Add(uint(0), uint(0), "", uint(0))
		f.Add(end, uint(0), "\n", end*8-1)
		f.Add(end, uint(0), ".", end*4)
		f.Add(uint(40), uint(1), "\r\n", uint(40))
		f.Add(end-1, uint(1), "=", uint(320))
	}
	f.Fuzz(func(t *testing.T, at, cut uint, text string, bit uint) {
		for _, g := range good {
			b := []byte(g)
			b[bit/8%uint(len(b))] ^= 1 << (bit % 8)
			if c, refused := verify(v, string(b)); refused == nil || c != nil {
				t.Fatalf("with bit %d flipped %q verifies", bit, b)
			}
			from := at % uint(len(g)+1)
			raw := g[:from] + text + g[from+cut%(uint(len(g))-from+1):]
			c, refused := verify(v, raw)
			if (c == nil) != (refused != nil) || (c != nil) != (raw == g) {
				t.Fatalf("%q, made of %q: claims %v, refusal %v", raw, g, c, refused)
			}
			if c == nil {
				continue
			}
			parsed, err := jwt.NewParser(jwt.WithoutClaimsValidation(), jwt.WithStrictDecoding()).Parse(raw, func(tok *jwt.Token) (any, error) {
				return map[string]any{"ES256": k.p256.Public(), "RS256": k.rsa.Public(), "EdDSA": k.ed.Public()}[tok.Method.Alg()], nil
			})
			if err != nil {
				t.Fatalf("%q: verified here, not by golang-jwt: %v", raw, err)
			}
			parts := strings.Split(raw, ".")
			if again := parts[0] + "." + parts[1] + "." + segment(parsed.Signature); again != raw {
				t.Fatalf("%q is spelled %q, too", raw, again)
			}
		}
	})
}
