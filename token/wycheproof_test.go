package token

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/c2sp/wycheproof"

	"durward/decision"
)

// A vector is a test case of the Wycheproof project (https://github.com/C2SP/wycheproof):
// a text, the keys to verify it with, and whether that must succeed.
type vector struct {
	id      string // file and number
	group   string
	comment string
	valid   bool
	text    string // compact, or whatever else is offered as a token
	keys    string // a JWK set, of public keys where the vector has them
	secrets string // a JWK set of private or symmetric keys
}

// vectors are those of one file.
func vectors(t *testing.T, file string) []vector {
	t.Helper()
	document, err := fs.ReadFile(wycheproof.TestVectors, file+"_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var suite struct {
		NumberOfTests int
		TestGroups    []struct {
			Comment         string
			Public, Private json.RawMessage
			Tests           []struct {
				TcID            int
				Comment, Result string
				JWS, JWE        json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(document, &suite); err != nil {
		t.Fatal(err)
	}
	set := func(key json.RawMessage) string {
		var compact bytes.Buffer
		if err := json.Compact(&compact, key); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(compact.String(), `{"keys":`) {
			return compact.String()
		}
		return `{"keys":[` + compact.String() + `]}`
	}
	var all []vector
	for _, g := range suite.TestGroups {
		public := g.Public
		if public == nil {
			public = g.Private
		}
		for _, c := range g.Tests {
			v := vector{id: fmt.Sprintf("%s %d", file, c.TcID), group: g.Comment, comment: c.Comment, valid: c.Result == "valid", keys: set(public), secrets: set(g.Private)}
			if v.valid == (c.Result == "invalid") {
				t.Fatalf("%s: the result is %q", v.id, c.Result)
			}
			for _, text := range []json.RawMessage{c.JWS, c.JWE} {
				if text != nil && json.Unmarshal(text, &v.text) != nil {
					v.text = string(text) // JSON serialisation
				}
			}
			all = append(all, v)
		}
	}
	if len(all) != suite.NumberOfTests || len(all) == 0 {
		t.Fatalf("%s: %d vectors, and there should be %d", file, len(all), suite.NumberOfTests)
	}
	return all
}

// judge loads the vector's keys as the JWKS of an issuer that may use every
// algorithm there is, and takes the text through the steps of Verifier.Verify:
// all but those about claims, because what the vectors sign is no claims.
func (v vector) judge(t *testing.T) decision.Reason {
	t.Helper()
	cfg := testConfig(t)
	cfg.JWKSFile = write(t, "jwks.json", v.keys)
	issuer, err := NewIssuer(cfg, nil, nil)
	if err != nil {
		return decision.KeysUnavailable
	}
	parsed, err := open(v.text, nil)
	if err != nil {
		return decision.TokenMalformed
	}
	keys, refused := NewVerifier([]*Issuer{issuer}, nil, 8192).authenticate(t.Context(), parsed, issuer, time.Now(), nil)
	if refused != nil {
		return refused.Reason
	}
	if len(keys.keys) == 0 {
		t.Errorf("%s: verified without keys", v.id)
	}
	return decision.Allowed
}

// stricter says why a text that the vectors call valid is refused here, and with
// which reason; "" if it must be accepted.
func (v vector) stricter() (reason decision.Reason, why string) {
	switch {
	case strings.HasPrefix(v.group, "jwe"):
		return decision.KeysUnavailable, "an encrypted token, and no key here decrypts"
	case strings.Contains(v.keys, `"kty":"oct"`):
		if strings.Contains(v.text, "?") {
			return decision.KeysUnavailable, "a symmetric key, and a character that is not base64url besides"
		}
		return decision.KeysUnavailable, "symmetric keys do not exist here: whoever can verify could sign"
	case v.comment == "emptyPayload":
		return decision.TokenMalformed, "no claims are in an empty payload"
	case v.comment == "Figure20":
		return decision.TokenSignature, "the key says PS256, the token PS384; a key is for its own alg alone"
	case v.comment == "Figure27":
		return decision.KeysUnavailable, "the key says ES521, which does not exist"
	}
	return "", ""
}

// TestWycheproof: nothing that the vectors call invalid is accepted, and of what
// they call valid nothing is refused but for a reason that is told above.
func TestWycheproof(t *testing.T) {
	files := []string{"json_web_signature", "json_web_key", "json_web_crypto"}
	for _, file := range files {
		all := vectors(t, file)
		said := map[string]bool{} // texts that are valid elsewhere in the file, with the same keys
		for _, v := range all {
			said[v.keys+v.text] = said[v.keys+v.text] || v.valid
		}
		counts := map[string]int{}
		for _, v := range all {
			got := v.judge(t)
			want, why := v.stricter()
			switch {
			case !v.valid && got == decision.Allowed:
				t.Errorf("%s, %s: %s: a false accept", v.id, v.group, v.comment)
			case v.valid && want == "" && got != decision.Allowed:
				t.Errorf("%s, %s: %s: refused with %s, and no reason for it is known", v.id, v.group, v.comment, got)
			case v.valid && want != "" && got != want:
				t.Errorf("%s, %s: %s: got %s, want %s because %s", v.id, v.group, v.comment, got, want, why)
			}
			// Those about base64 come with a symmetric key and the encrypted ones with a
			// private one, which are refused anyhow: see that the text alone is, too.
			badly := strings.HasPrefix(v.group, "jwe") || v.group == "base64" && !v.valid && !said[v.keys+v.text]
			if _, err := open(v.text, nil); badly && err == nil {
				t.Errorf("%s, %s: %s: the form is accepted", v.id, v.group, v.comment)
			}
			switch {
			case v.valid && want == "":
				counts["accepted as demanded"]++
			case v.valid:
				counts["valid, refused for a known reason"]++
			default:
				counts["refused as demanded"]++
				counts["by "+string(got)]++
			}
		}
		t.Logf("%s: %d vectors: %v", file, len(all), counts)
	}
}

// TestWycheproofSecrets: no private and no symmetric key of any vector is usable,
// and none spoils the good key beside it.
func TestWycheproofSecrets(t *testing.T) {
	good := public(keysOnce().ed, object{"kid": "good"})
	seen := map[string]bool{}
	for _, file := range []string{"json_web_signature", "json_web_key", "json_web_crypto", "json_web_encryption"} {
		for _, v := range vectors(t, file) {
			var set struct{ Keys []object }
			if err := json.Unmarshal([]byte(v.secrets), &set); err != nil {
				t.Fatalf("%s: %v", v.id, err)
			}
			for _, secret := range set.Keys {
				if secret["d"] == nil && secret["k"] == nil || seen[jsonOf(secret)] {
					continue
				}
				seen[jsonOf(secret)] = true
				keys, rejected, err := parseKeys([]byte(keySet(secret, good, secret)))
				if err != nil || len(keys) != 1 || keys[0].kid != "good" || len(rejected) != 2 {
					t.Errorf("%s: %d keys are usable, %d were left out: %v", v.id, len(keys), len(rejected), err)
				}
			}
		}
	}
	if t.Logf("%d private or symmetric keys", len(seen)); len(seen) < 20 {
		t.Error("there should be more of them")
	}
}
