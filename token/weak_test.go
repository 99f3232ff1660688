package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// Moduli of the shape that the faulty library made are recognised, however their
// factors were chosen; others are not.
func TestROCA(t *testing.T) {
	k := keysOnce()
	for _, n := range []*big.Int{k.rsa.N, k.rsa2.N} {
		if fromROCA(n) {
			t.Errorf("an honest modulus is refused: %x", n)
		}
	}
	product := big.NewInt(1) // of the 126 primes that the library used for 2048 bits
	for p, n := int64(2), 0; n < 126; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			product.Mul(product, big.NewInt(p))
			n++
		}
	}
	prime := func() *big.Int {
		for {
			factor, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 40))
			power, _ := rand.Int(rand.Reader, product)
			candidate := new(big.Int).Exp(big.NewInt(65537), power, product)
			if candidate.Add(candidate, factor.Mul(factor, product)).ProbablyPrime(20) {
				return candidate
			}
		}
	}
	for range 3 {
		n := new(big.Int).Mul(prime(), prime())
		if !fromROCA(n) {
			t.Errorf("a modulus that can be factored is taken: %x", n)
		}
		if one := new(big.Int).Add(n, big.NewInt(2)); fromROCA(one) {
			t.Errorf("its neighbour is refused: %x", one)
		}
	}
	for _, v := range vectors(t, "json_web_key") {
		if strings.Contains(v.comment, "Roca") {
			if _, _, err := parseKeys([]byte(v.keys)); err == nil || !strings.Contains(err.Error(), "CVE-2017-15361") {
				t.Errorf("%s: %v", v.id, err)
			}
		}
	}
}

// For a point of small order anybody finds a signature that crypto/ed25519 takes,
// so a key that is one verifies nothing here.
func TestSmallOrder(t *testing.T) {
	points := []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
	}
	respelled := []string{
		"0100000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	}
	forged := func(key ed25519.PublicKey) bool {
		for n := range 200 {
			for _, r := range points {
				signature, _ := hex.DecodeString(r + strings.Repeat("00", 32))
				if ed25519.Verify(key, fmt.Append(nil, n), signature) {
					return true
				}
			}
		}
		return false
	}
	good := public(keysOnce().ed, object{"kid": "good"})
	takes := func(key ed25519.PublicKey) bool {
		keys, _, err := parseKeys([]byte(keySet(object{"kty": "OKP", "crv": "Ed25519", "x": segment(key)}, good)))
		if err != nil {
			t.Fatal(err)
		}
		return len(keys) == 2
	}
	for _, text := range slices.Concat(points, respelled) {
		key, _ := hex.DecodeString(text)
		if forgeable := forged(key); !forgeable && slices.Contains(points, text) {
			t.Errorf("%s: no signature was found, so it is no point of small order", text)
		}
		if takes(key) {
			t.Errorf("%s: is taken", text)
		}
	}
	if honest := keysOnce().ed.Public().(ed25519.PublicKey); forged(honest) || !takes(honest) {
		t.Error("an honest key is refused")
	}
}

// TestOnCurve: every key pair is taken, and of arbitrary bytes about every second
// is no point of the curve.
func TestOnCurve(t *testing.T) {
	seed := make([]byte, ed25519.SeedSize)
	taken := 0
	for n := range 200 {
		binary.BigEndian.PutUint64(seed, uint64(n))
		if key := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey); weakness(key) != "" {
			t.Errorf("the key pair of seed %d: %s", n, weakness(key))
		}
		arbitrary := sha256.Sum256(seed)
		if weakness(ed25519.PublicKey(arbitrary[:])) == "" {
			taken++
		}
	}
	if taken < 60 || taken > 140 {
		t.Errorf("%d of 200 arbitrary keys were taken", taken)
	}
	for _, text := range []string{
		"0200000000000000000000000000000000000000000000000000000000000000", // y = 2: x² has no root
		"f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // y = p + 3, another spelling of 3
		strings.Repeat("ff", 32),
	} {
		key, _ := hex.DecodeString(text)
		if got := weakness(ed25519.PublicKey(key)); got != "the Ed25519 key is no point of the curve" {
			t.Errorf("%s: %q", text, got)
		}
	}
}
