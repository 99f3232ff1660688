package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

// signingMethod verifies signatures of the algorithm. It is nil for all others,
// the symmetric ones and none included, whatever the library has registered.
func signingMethod(alg string) jwt.SigningMethod {
	switch alg {
	case "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA":
		return jwt.GetSigningMethod(alg)
	case "PS256":
		return pss(alg, crypto.SHA256)
	case "PS384":
		return pss(alg, crypto.SHA384)
	case "PS512":
		return pss(alg, crypto.SHA512)
	}
	return nil
}

// pss insists on a salt as long as the hash (RFC 7518 section 3.5); the library's
// own methods take any length.
func pss(alg string, hash crypto.Hash) jwt.SigningMethod {
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	return &jwt.SigningMethodRSAPSS{
		SigningMethodRSA: &jwt.SigningMethodRSA{Name: alg, Hash: hash},
		Options:          options,
		VerifyOptions:    options,
	}
}

// A jwk is one usable public key of an issuer.
type jwk struct {
	kid    string
	alg    string // the only algorithm that it is for; "" for any that its type fits
	public any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	print  [sha256.Size]byte
}

// fits reports whether the key is for this algorithm: by its own alg, its type
// and its curve. The library does not tie ES512 to P-521.
func (k *jwk) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		return slices.Contains([]string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, alg)
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256():
			return alg == "ES256"
		case elliptic.P384():
			return alg == "ES384"
		case elliptic.P521():
			return alg == "ES512"
		}
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// describe is the kind of key, for traces.
func (k *jwk) describe() string {
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", public.N.BitLen())
	case *ecdsa.PublicKey:
		return public.Curve.Params().Name
	}
	return "Ed25519"
}

// maxKeys is how many keys one set may hold.
const maxKeys = 256

// noUsableKey begins the error about a set that verifies nothing.
const noUsableKey = "no usable key"

// parseKeys reads a JWK set (RFC 7517 section 5). Each key stands for itself: one
// that is broken or meant for something else is left out, with the reason among
// the rejected, and spoils nothing. A set without a single usable key is an error.
func parseKeys(document []byte) (keys []jwk, rejected []error, err error) {
	var set map[string]json.RawMessage // a map, as its names keep their case
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, nil, errors.New("not a JSON object")
	}
	var members []json.RawMessage
	if err := json.Unmarshal(set["keys"], &members); err != nil {
		return nil, nil, errors.New(`no array "keys": this is not a key set`)
	}
	if len(members) > maxKeys {
		return nil, nil, fmt.Errorf("%d keys, more than the %d that are read", len(members), maxKeys)
	}
	for n, member := range members {
		key, err := parseKey(member)
		if err != nil {
			rejected = append(rejected, fmt.Errorf("key %d: %w", n+1, err))
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, rejected, errors.Join(append([]error{errors.New(noUsableKey)}, rejected[:min(len(rejected), 3)]...)...)
	}
	return keys, rejected, nil
}

// parseKey reads one public key and refuses those that must not verify tokens.
func parseKey(text []byte) (jwk, error) {
	object, err := decodeObject(text)
	if err != nil {
		return jwk{}, err
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if _, ok := object[private]; ok {
			return jwk{}, fmt.Errorf("has the private or symmetric member %q", private)
		}
	}
	str := func(name string) string {
		v, ok := object[name]
		s, isString := v.(string)
		if ok && !isString && err == nil {
			err = fmt.Errorf("%s is not a string", name)
		}
		return s
	}
	// Only what makes the key goes to the library: with x5u it would follow URLs.
	marshal := jwkset.JWKMarshal{
		KTY: jwkset.KTY(str("kty")),
		CRV: jwkset.CRV(str("crv")), X: str("x"), Y: str("y"),
		N: str("n"), E: str("e"),
	}
	key := jwk{kid: str("kid"), alg: str("alg")}
	use := str("use")
	if err != nil {
		return jwk{}, err
	}
	if _, ok := object["use"]; ok && use != "sig" {
		return jwk{}, fmt.Errorf("kid %q: use is %q, not sig", clip(key.kid), clip(use))
	}
	if ops, ok := object["key_ops"]; ok {
		list, _ := ops.([]any)
		if !slices.Contains(list, any("verify")) {
			return jwk{}, fmt.Errorf("kid %q: key_ops lack verify", clip(key.kid))
		}
	}
	made, err := jwkset.NewJWKFromMarshal(marshal, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return jwk{}, fmt.Errorf("kid %q: %w", clip(key.kid), err)
	}
	key.public = made.Key()
	if why := weakness(key.public); why != "" {
		return jwk{}, fmt.Errorf("kid %q: %s", clip(key.kid), why)
	}
	if key.alg == "Ed25519" { // RFC 9864 section 2.2: the new name of EdDSA with this curve
		key.alg = "EdDSA"
	}
	algorithms := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	if !slices.ContainsFunc(algorithms, key.fits) {
		return jwk{}, fmt.Errorf("kid %q: no algorithm for a %s key with alg %q", clip(key.kid), clip(string(marshal.KTY)), clip(key.alg))
	}
	canonical, err := json.Marshal([]any{key.kid, key.alg, marshal})
	if err != nil {
		return jwk{}, err
	}
	key.print = sha256.Sum256(canonical)
	return key, nil
}
