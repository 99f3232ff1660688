package token

import (
	"crypto/sha256"
	"encoding/binary"
)

// A Kind says what a revocation can name: one token, one session, all of a
// subject, all of a client, all of an issuer. The zero Kind names nothing.
type Kind uint8

const (
	KindToken   Kind = iota + 1 // one token, by jti
	KindSession                 // one session, by sid
	KindSubject                 // all tokens of a subject
	KindClient                  // all tokens of an OAuth client
	KindIssuer                  // all tokens of an issuer
)

// Kinds is how many kinds there are; they count from 1.
const Kinds = int(KindIssuer)

// String is the kind as revocation lines and metric labels spell it.
func (k Kind) String() string {
	switch k {
	case KindToken:
		return "jti"
	case KindSession:
		return "sid"
	case KindSubject:
		return "sub"
	case KindClient:
		return "client"
	case KindIssuer:
		return "iss"
	}
	return "unknown"
}

// An ID stands for one (kind, issuer, value) in 128 bits: equal input gives an
// equal ID on every gateway, so a look-up never misses what was revoked, and as
// the hash is cryptographic nobody can choose a jti that denies another's token. It is
// two numbers, the first and the last eight of its bytes in big-endian order, so that
// it goes from function to function in registers.
type ID struct{ High, Low uint64 }

// IDFrom is the identity of 16 bytes that [ID.Append] made.
func IDFrom(b [16]byte) ID {
	return ID{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// Append appends the 16 bytes of the identity.
func (id ID) Append(b []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, id.High), id.Low)
}

// Identify computes the ID: the first half of
//
//	SHA-256(0x01 ‖ kind ‖ len iss ‖ iss ‖ 0 ‖ len value ‖ value)
//
// where lengths are uvarints, so that "a|bc" and "ab|c" differ, and the 0 is the
// empty name of a watched claim. Nothing is normalised: matching is byte for
// byte. For KindIssuer the value is empty.
func Identify(kind Kind, issuer, value string) ID {
	b := make([]byte, 0, 192)
	b = append(b, 1, byte(kind))
	b = binary.AppendUvarint(b, uint64(len(issuer)))
	b = append(b, issuer...)
	b = append(b, 0)
	b = binary.AppendUvarint(b, uint64(len(value)))
	b = append(b, value...)
	sum := sha256.Sum256(b)
	return IDFrom([16]byte(sum[:16]))
}
