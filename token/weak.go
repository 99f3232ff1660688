package token

import (
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
)

// weakness says why a public key must not verify tokens although it is well
// formed, "" if nothing is known against it: a signature by it proves little.
func weakness(public any) string {
	switch public := public.(type) {
	case *rsa.PublicKey:
		switch bits := public.N.BitLen(); {
		case bits < 2048 || bits > 8192:
			return fmt.Sprintf("an RSA modulus of %d bits, not 2048 to 8192", bits)
		case public.E < 3 || public.E%2 == 0:
			return fmt.Sprintf("the RSA exponent is %d", public.E)
		case public.N.Bit(0) == 0:
			return "the RSA modulus is even"
		case fromROCA(public.N):
			return "the RSA modulus can be factored (ROCA, CVE-2017-15361); make a new key elsewhere"
		}
	case ed25519.PublicKey:
		if smallOrder(public) {
			return "the Ed25519 key is a point of small order, so that anybody can sign for it"
		}
		if !onCurve(public) {
			return "the Ed25519 key is no point of the curve"
		}
	}
	return ""
}

// fromROCA reports a modulus of the faulty library of CVE-2017-15361, which made
// primes of the form k·M + (65537^a mod M), where M is the product of the first
// primes: so modulo each of them the modulus is a power of 65537. One in some
// hundred million other moduli looks like that, too, and is refused with them.
func fromROCA(n *big.Int) bool {
	for p := int64(3); p <= 167; p += 2 {
		if !big.NewInt(p).ProbablyPrime(0) {
			continue
		}
		residue := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power := int64(1)
		for power != residue {
			if power = power * 65537 % p; power == 1 {
				return false
			}
		}
	}
	return true
}

// smallOrder reports one of the eight points whose order divides the cofactor, in
// any of their spellings. An all-zero key, as a broken export leaves it, is one of
// them. crypto/ed25519 takes such keys, and then about every eighth guess for a
// signature is right.
func smallOrder(key ed25519.PublicKey) bool {
	y := []byte(key)
	y = append(y[:len(y)-1:len(y)-1], y[len(y)-1]&0x7f) // without the sign of x
	switch hex.EncodeToString(y) {
	case "0100000000000000000000000000000000000000000000000000000000000000", // 1, the neutral element
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // 1 + p
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // -1, of order 2
		"0000000000000000000000000000000000000000000000000000000000000000", // 0, of order 4
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // 0 + p
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // of order 8
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a":
		return true
	}
	return false
}

// onCurve reports whether the bytes are those of a point (RFC 8032 section 5.1.3).
// crypto/ed25519 takes any 32 bytes for a key and lets every signature fail, so that
// a garbled key would pass for a usable one and take the place of good ones. For NIST
// curves jwkset sees to it.
func onCurve(key ed25519.PublicKey) bool {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	bigEndian := slices.Clone(key)
	slices.Reverse(bigEndian)
	bigEndian[0] &= 0x7f // without the sign of x
	y := new(big.Int).SetBytes(bigEndian)
	if y.Cmp(p) >= 0 {
		return false
	}
	// x² = (y² − 1) / (d y² + 1), where d = −121665/121666, has a root.
	d := new(big.Int).ModInverse(big.NewInt(121666), p)
	d.Mul(d, big.NewInt(-121665))
	y2 := new(big.Int).Mul(y, y)
	v := new(big.Int).Mul(d, y2)
	v.Add(v, big.NewInt(1)).Mod(v, p)
	x2 := new(big.Int).Sub(y2, big.NewInt(1))
	x2.Mul(x2, v.ModInverse(v, p)).Mod(x2, p)
	return big.Jacobi(x2, p) == 1
}
