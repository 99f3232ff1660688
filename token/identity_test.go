package token

import (
	"encoding/hex"
	"testing"
)

func TestIdentify(t *testing.T) {
	id := Identify(KindToken, "https://idp.example.com", "B70BA622-9515-4353-A866-823539EECBC8")
	b := id.Append(nil)
	if got, want := hex.EncodeToString(b), "9f41b7b13408355be0528e840e1dc405"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if again := IDFrom([16]byte(b)); again != id {
		t.Errorf("its bytes made %x", again)
	}
	if Identify(KindToken, "a", "bc") == Identify(KindToken, "ab", "c") {
		t.Error("the border between issuer and value is not part of the identity")
	}
	if Identify(KindToken, "a", "b") == Identify(KindSession, "a", "b") {
		t.Error("the kind is not part of the identity")
	}
}
