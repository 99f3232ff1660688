package test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestOverloaded floods a gateway with forged signatures that are as slow to check
// as signatures can be: some are turned away with 503, while whoever's token is
// known goes on as before. When the flood is over, new tokens pass again.
//
// It does not run beside other tests, which would stand in the queue as well.
func TestOverloaded(t *testing.T) {
	b64 := base64.RawURLEncoding.EncodeToString
	idp, app := newIssuer(t), newUpstream(t)
	modulus := make([]byte, 1024) // no private key belongs to it, and none is needed to be slow
	rand.Read(modulus)
	modulus[0] |= 0x80
	modulus[len(modulus)-1] |= 1
	slow, _ := json.Marshal(map[string]string{"kty": "RSA", "kid": "slow", "n": b64(modulus), "e": b64([]byte{0x7f, 0xff, 0xff, 0xff})})
	keys := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(keys, bytes.Replace(idp.jwks(), []byte(`"keys":[`), []byte(`"keys":[`+string(slow)+`,`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	g := serving(t, fmt.Sprintf("listen: 127.0.0.1:0\nissuers: [{name: corp, issuer: %q, audiences: [app], jwks_file: %q}]\nroutes: [{name: all, upstream: %q}]\n", idp.URL, keys, app.URL))

	known := "Authorization: Bearer " + idp.token(nil)
	for range 3 { // the cache takes tokens in its own time
		if a := send(t, "GET", g.url("/"), "", known); a.StatusCode != 200 {
			t.Fatalf("before the flood: %s %s", a.Status, a.reason())
		}
	}
	payload, _ := json.Marshal(idp.claims(nil))
	header := b64([]byte(`{"alg":"RS256","kid":"slow","typ":"at+jwt"}`))
	flood := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024}}
	var overloaded, refused atomic.Int64
	for n := 800; overloaded.Load() == 0 && n <= 6400; n *= 2 { // a fast machine takes more
		var clients sync.WaitGroup
		for range n {
			clients.Go(func() {
				signature := make([]byte, 1024)
				rand.Read(signature)
				signature[0] &= 0x7f
				req, _ := http.NewRequest("GET", g.url("/"), nil)
				req.Header.Set("Authorization", "Bearer "+strings.Join([]string{header, b64(payload), b64(signature)}, "."))
				res, err := flood.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
				switch reason := res.Header.Get("Durward-Reason"); {
				case res.StatusCode == 503 && reason == "overloaded" && res.Header.Get("Retry-After") == "1":
					overloaded.Add(1)
				case res.StatusCode == 401 && reason == "token_signature":
					refused.Add(1)
				default:
					t.Errorf("%s %s", res.Status, reason)
				}
			})
		}
		for range 20 {
			if a := send(t, "GET", g.url("/"), "", known); a.StatusCode != 200 {
				t.Errorf("a known token during the flood: %s %s", a.Status, a.reason())
			}
		}
		clients.Wait()
	}
	t.Logf("%d turned away, %d refused", overloaded.Load(), refused.Load())
	if overloaded.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d turned away, %d refused", overloaded.Load(), refused.Load())
	}
	if a := send(t, "GET", g.url("/"), "", "Authorization: Bearer "+idp.token(nil)); a.StatusCode != 200 {
		t.Errorf("the twin, a new token after the flood: %s %s", a.Status, a.reason())
	}
}
