package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/MicahParks/jwkset"

	"durward/decision"
)

// A bearer token is found where every reader finds the same one, refused where one
// reader could find a bearer token and another not, and not seen where none can.
func FuzzAuthorization(f *testing.F) {
	for _, seed := range []string{"Bearer x", "bEARER   x.y.z", "Basic eDp5", "Bearer", "Bearer ", "Bearer\tx", "Bearer,x", " Bearer x", "\"Bearer\" x", "BearerX y", "Bearer x, Basic y", "Bearer\u00a0x", "\xa0Bearer x", "DPoP x", "", "Bearer x\x00"} {
		f.Add(seed, "", false)
		f.Add(seed, "Basic eDp5", true)
	}
	f.Fuzz(func(t *testing.T, field, second string, two bool) {
		h := map[string][]string{"Authorization": {field}}
		if two {
			h["Authorization"] = []string{field, second}
		}
		got, refused := Finder{Bearer: true}.Find(h)
		if got.Cookie || refused != nil && got != (Credential{}) {
			t.Fatalf("%q: got %+v, %v", field, got, refused)
		}
		if off, err := (Finder{Cookie: session}).Find(h); err != nil || off != (Credential{}) {
			t.Fatalf("%q: found without being asked: %+v, %v", field, off, err)
		}
		if two {
			if refused == nil || refused.Reason != decision.AmbiguousCredentials {
				t.Fatalf("%q and %q: got %+v, %v", field, second, got, refused)
			}
			return
		}
		// The strict reader: RFC 9110 section 11.4, the scheme's name and blanks.
		scheme, rest, spaced := strings.Cut(field, " ")
		strict := spaced && strings.EqualFold(scheme, "bearer") && isASCII(scheme)
		token := strings.TrimLeft(rest, " ")
		switch {
		case strict && token != "":
			if refused != nil || got.Raw != token {
				t.Fatalf("%q: got %+v, %v, want %q", field, got, refused, token)
			}
		case got.Raw != "":
			t.Fatalf("%q: only a lenient reader finds %q", field, got.Raw)
		case refused == nil:
			// The lenient reader: whatever separates words, and quotes, are blanks.
			word := strings.TrimLeftFunc(field, func(r rune) bool {
				return unicode.IsSpace(r) || unicode.IsControl(r) || r == '"' || r == '\'' || r > unicode.MaxASCII
			})
			if end := strings.IndexFunc(word, func(r rune) bool { return r > unicode.MaxASCII || !tokenChar(byte(r)) }); end >= 0 {
				word = word[:end]
			}
			if strings.EqualFold(word, "bearer") {
				t.Fatalf("%q: a lenient reader finds a bearer token", field)
			}
		}
	})
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII }) < 0
}

// fuzzNow is the moment, and fuzzKey the key, of fuzzed tokens: always the same, so
// that a seed neither expires nor belongs to another process's keys.
var (
	fuzzNow = time.Unix(1700000000, 0)
	fuzzKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
)

func fuzzClaims() object {
	return with(goodClaims(), object{"iat": fuzzNow.Unix() - 60, "exp": fuzzNow.Unix() + 600, "auth_time": fuzzNow.Unix() - 120})
}

// fuzzVerify gives a function that verifies what fuzzKey, called ed, signed.
func fuzzVerify(f *testing.F) func(*testing.T, string) (*Claims, *Error) {
	cfg := testConfig(f)
	cfg.JWKSFile = write(f, "jwks.json", keySet(public(fuzzKey, object{"kid": "ed"})))
	v := NewVerifier([]*Issuer{newIssuer(f, cfg)}, nil, 8192)
	return func(t *testing.T, raw string) (*Claims, *Error) { return v.Verify(t.Context(), raw, nil, fuzzNow, nil) }
}

// Whatever is offered as a token: it is refused, or it is one of those that were
// signed. What can be taken apart can be put together again, to the same text.
func FuzzToken(f *testing.F) {
	verify := fuzzVerify(f)
	claims := jsonOf(fuzzClaims())
	good := []string{sign("EdDSA", fuzzKey, `{"alg":"EdDSA","kid":"ed","typ":"at+jwt"}`, claims), sign("EdDSA", fuzzKey, `{"alg":"EdDSA"}`, claims)}
	for _, raw := range good {
		f.Add(raw)
		f.Add(raw + "=")
		f.Add(raw[:len(raw)-1])
	}
	for _, seed := range []string{
		"", "..", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "eyJhbGciOiJFUzI1NiJ9.e30.AA", hmacToken(claims),
		sign("EdDSA", fuzzKey, `{"alg":"EdDSA","kid":"ed","crit":[]}`, claims), sign("EdDSA", fuzzKey, `{"alg":"EdDSA","kid":"ed"}`, `{"iss":"x","iss":"y"}`),
		segment([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + segment([]byte(claims)) + ".AA",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		c, refused := verify(t, raw)
		if (c == nil) == (refused == nil) {
			t.Fatalf("%q: claims %v, refusal %v", raw, c, refused)
		}
		if (c != nil) != slices.Contains(good, raw) {
			t.Fatalf("%q: what was signed verifies, and nothing else: %v", raw, refused)
		}
		if refused != nil && (refused.Detail == "" || len(raw) > 60 && strings.Contains(refused.Detail, raw) || len(refused.Detail) > 1000) {
			t.Fatalf("%q: the detail is %q", raw, refused.Detail)
		}
		p, err := open(raw, nil)
		if err != nil {
			if p != nil {
				t.Fatalf("%q: %v, and yet %v", raw, err, p)
			}
			return
		}
		head, _, _ := strings.Cut(raw, ".")
		text, err := base64.RawURLEncoding.DecodeString(head)
		if err != nil {
			t.Fatalf("%q: the header is no base64url: %v", raw, err)
		}
		if again := segment(text) + "." + segment(p.text) + "." + segment(p.signature); again != raw {
			t.Fatalf("%q is spelled %q, too", raw, again)
		}
		var header map[string]any
		if err := json.Unmarshal(text, &header); err != nil {
			t.Fatalf("%q: encoding/json refuses the header: %v", raw, err)
		}
		typ, hasTyp := header["typ"]
		kid, hasKid := header["kid"]
		if header["alg"] != p.alg || hasTyp && typ != p.typ || !hasTyp && p.typ != "JWT" || hasKid != p.named || hasKid && kid != p.kid {
			t.Fatalf("%q: the header is %v, and was read as %+v", raw, header, p)
		}
		for _, name := range []string{"crit", "b64", "zip", "cty"} {
			if _, ok := header[name]; ok {
				t.Fatalf("%q: %s was overlooked", raw, name)
			}
		}
	})
}

// What a signed payload is taken to say is what an independent reader finds in
// it, with exact arithmetic; and nothing is accepted that this reader would not.
func FuzzClaims(f *testing.F) {
	verify := fuzzVerify(f)
	good := jsonOf(fuzzClaims())
	f.Add([]byte(good))
	for _, swap := range [][2]string{
		{`"sub":"alice"`, `"sub":"alice","Sub":"root"`}, {`"sub":"alice"`, `"sub":"alice","sub":"root"`}, {`"alice"`, `"\ud83d\ude00\u0000é"`}, {`"alice"`, `"\ud800"`},
		{`"aud":"intranet"`, `"aud":["x","intranet"]`}, {`"exp":`, `"exp":0`}, {`"exp":`, `"exp":1e308,"x":`}, {`"iat":`, `"nbf":1e3,"iat":`}, {`"iat":`, `"auth_time_":1,"iat":`},
		{`"scope":"orders:read orders:write"`, `"scope":["a","b c"]`}, {`"jti":"B70BA622"`, `"jti":""`}, {`"jti"`, `"cnf":null,"jti"`}, {`"jti"`, `"events":{},"jti"`},
	} {
		f.Add([]byte(strings.Replace(good, swap[0], swap[1], 1)))
	}
	f.Add([]byte(`{"iss":"https://idp.example.com/realms/corp","aud":["intranet"],"jti":"x","iat":1,"exp":2}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		raw := sign("EdDSA", fuzzKey, `{"alg":"EdDSA","kid":"ed"}`, string(payload))
		c, refused := verify(t, raw)
		if (c == nil) == (refused == nil) {
			t.Fatalf("%q: claims %v, refusal %v", payload, c, refused)
		}
		if refused != nil {
			switch refused.Reason {
			case decision.TokenMalformed, decision.TokenIssuer, decision.TokenAudience, decision.TokenClaims, decision.TokenExpired, decision.TokenNotYetValid, decision.TokenLifetime:
				return
			}
			t.Fatalf("%q: refused with %v", payload, refused)
		}
		d := json.NewDecoder(bytes.NewReader(payload))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil {
			t.Fatalf("%q: encoding/json refuses it: %v", payload, err)
		}
		audience, _ := want["aud"].([]any)
		_, event := want["events"]
		_, bound := want["cnf"]
		if want["iss"] != testIssuer || want["aud"] != "intranet" && !slices.Contains(audience, any("intranet")) || event || bound {
			t.Fatalf("%q: accepted", payload)
		}
		for name, got := range map[string]string{"jti": c.TokenID, "sub": c.Subject, "sid": c.Session, "client_id": c.Client, "acr": c.ACR} {
			if s, _ := want[name].(string); s != got || name == "jti" && s == "" {
				t.Fatalf("%q: %s was read as %q", payload, name, got)
			}
		}
		exact := func(name string) *big.Rat { // seconds, as they are written
			n, ok := want[name].(json.Number)
			if !ok {
				return nil
			}
			f, ok := new(big.Float).SetPrec(200).SetString(n.String())
			if !ok {
				t.Fatalf("%q: %s is no number", payload, name)
			}
			r, _ := f.Rat(nil)
			return r
		}
		for name, got := range map[string]time.Time{"exp": c.Expiry, "iat": c.IssuedAt, "nbf": c.notBefore, "auth_time": c.AuthTime} {
			r := exact(name)
			if r == nil {
				if !got.IsZero() || name == "exp" || name == "iat" {
					t.Fatalf("%q: %s was read as %v", payload, name, got)
				}
				continue
			}
			off := new(big.Rat).Sub(r, big.NewRat(got.UnixMicro(), 1e6))
			if off.Abs(off).Cmp(big.NewRat(50, 1e6)) > 0 || r.Sign() <= 0 || got.Year() < 1970 || got.Year() > 9999 {
				t.Fatalf("%q: %s was read as %v", payload, name, got)
			}
		}
		if fuzzNow.Sub(c.Expiry) >= 30*time.Second || c.IssuedAt.Sub(fuzzNow) > 2*time.Second || c.Expiry.Sub(c.IssuedAt) > 24*time.Hour || c.notBefore.Sub(fuzzNow) > 30*time.Second {
			t.Fatalf("%q: accepted at %v: %+v", payload, fuzzNow, c)
		}
		// Nothing is added and nothing lost: the payload says the same written anew.
		read, err := decodeObject([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(read)
		if err != nil {
			t.Fatal(err)
		}
		wanted, err := json.Marshal(want)
		if err != nil || !bytes.Equal(text, wanted) {
			t.Fatalf("%q: read as\n%s, want\n%s", payload, text, wanted)
		}
		again, refused := verify(t, sign("EdDSA", fuzzKey, `{"alg":"EdDSA","kid":"ed"}`, string(text)))
		if len(text) < 4096 && (refused != nil || again.ids != c.ids || !again.Expiry.Equal(c.Expiry) || !slices.Equal(again.Scopes, c.Scopes)) {
			t.Fatalf("%q: written anew it is %+v, %v", payload, again, refused)
		}
	})
}

// Whatever stands in a key set: nothing private, symmetric or weak is usable, the
// good key beside it is, and what is usable is what an independent reader finds.
func FuzzKeys(f *testing.F) {
	k := keysOnce()
	for _, key := range []object{
		public(k.rsa, object{"kid": "rs", "use": "sig"}), public(k.p256, object{"alg": "ES256"}), public(k.p384, nil), public(k.p521, nil), public(k.ed, object{"key_ops": []string{"verify"}}),
		public(k.p256, object{"d": "AA"}), public(k.p256, object{"use": "enc"}), {"kty": "oct", "k": "AAAA"}, {"kty": "OKP", "crv": "Ed25519", "x": segment(make([]byte, 32))},
		{"kty": "RSA", "n": segment(bytes.Repeat([]byte{0xff}, 256)), "e": "Aw"}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "OKP", "crv": "X25519", "x": segment(make([]byte, 32))},
	} {
		f.Add([]byte(jsonOf(key)))
		f.Add([]byte(keySet(key, key)))
	}
	for _, seed := range []string{"null", "[]", "{}", `{"keys":null}`, `{"keys":[{}]}`, `{"Keys":[]}`, `{"kty":"EC","kty":"RSA"}`, `{"x5u":"http://127.0.0.1/"}`, "1", `"x"`} {
		f.Add([]byte(seed))
	}
	good := public(k.ed, object{"kid": "good"})
	f.Fuzz(func(t *testing.T, text []byte) {
		// As a whole document.
		keys, rejected, err := parseKeys(text)
		if (len(keys) == 0) != (err != nil) || len(keys) > maxKeys {
			t.Fatalf("%q: %d keys, %v", text, len(keys), err)
		}
		if err == nil {
			var set map[string]any
			if err := json.Unmarshal(text, &set); err != nil {
				t.Fatalf("%q: encoding/json refuses it: %v", text, err)
			}
			if members, _ := set["keys"].([]any); len(members) != len(keys)+len(rejected) {
				t.Fatalf("%q: %d keys and %d rejected of %d", text, len(keys), len(rejected), len(members))
			}
		}
		for _, key := range keys {
			sound(t, text, key)
		}

		// As one key beside a good one.
		if !json.Valid(text) {
			return
		}
		keys, rejected, err = parseKeys([]byte(`{"keys":[` + string(text) + `,` + jsonOf(good) + `]}`))
		if err != nil || len(keys)+len(rejected) != 2 || keys[len(keys)-1].kid != "good" {
			t.Fatalf("%q: spoils the good key: %d keys, %v, %v", text, len(keys), rejected, err)
		}
		if len(keys) == 1 {
			return
		}
		key := keys[0]
		sound(t, text, key)
		var members map[string]any
		if err := json.Unmarshal(text, &members); err != nil {
			t.Fatalf("%q: encoding/json refuses it: %v", text, err)
		}
		for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
			if _, ok := members[name]; ok {
				t.Fatalf("%q: usable, with the member %s", text, name)
			}
		}
		use, hasUse := members["use"]
		operations, hasOperations := members["key_ops"]
		list, _ := operations.([]any)
		if hasUse && use != "sig" || hasOperations && !slices.Contains(list, any("verify")) || members["kty"] == "oct" {
			t.Fatalf("%q: usable", text)
		}
		if kid, _ := members["kid"].(string); kid != key.kid {
			t.Fatalf("%q: its kid is %q", text, key.kid)
		}
	})
}

// sound checks that a key verifies at least one algorithm, is strong enough, and
// is read the same when another library has written it.
func sound(t *testing.T, text []byte, key jwk) {
	t.Helper()
	fits := 0
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} {
		if key.fits(alg) {
			fits++
		}
	}
	if fits == 0 || key.fits("none") || key.fits("HS256") || key.fits("") {
		t.Fatalf("%q: a key that fits %d algorithms", text, fits)
	}
	switch public := key.public.(type) {
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < 2048 || bits > 8192 || public.N.Bit(0) == 0 || public.E < 3 || public.E%2 == 0 {
			t.Fatalf("%q: a weak RSA key", text)
		}
	case *ecdsa.PublicKey:
		if !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, public.Curve) || fits != 1 {
			t.Fatalf("%q: a key on %v", text, public.Curve.Params().Name)
		}
		if _, err := public.ECDH(); err != nil { // checks the point
			t.Fatalf("%q: %v", text, err)
		}
	case ed25519.PublicKey:
		if len(public) != ed25519.PublicKeySize || fits != 1 {
			t.Fatalf("%q: an Ed25519 key of %d bytes", text, len(public))
		}
	default:
		t.Fatalf("%q: a key of type %T", text, public)
	}
	made, err := jwkset.NewJWKFromKey(key.public, jwkset.JWKOptions{})
	if err != nil {
		t.Fatalf("%q: cannot be written: %v", text, err)
	}
	again, err := parseKey([]byte(jsonOf(made.Marshal())))
	if err != nil {
		t.Fatalf("%q: written anew it is refused: %v", text, err)
	}
	if same, ok := key.public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(again.public) {
		t.Fatalf("%q: written anew it is another key", text)
	}
}
