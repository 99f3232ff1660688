package denylist

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"durward/token"
)

const (
	corp    = "https://idp.example.com/realms/corp"
	partner = "https://partner.example.org"
)

func limits() IssuerLimits {
	return IssuerLimits{URL: corp, MaxLifetime: 24 * time.Hour, Leeway: 30 * time.Second, Skew: 2 * time.Second}
}

func unix(sec int64) time.Time { return time.Unix(sec, 0).UTC() }

func TestParse(t *testing.T) {
	one := Issuers{limits()}
	now := unix(1790000000).Add(123456 * time.Microsecond)
	tests := []struct {
		line string
		want Revocation
	}{
		{`{"jti":"a"}`, Revocation{Kind: token.KindToken, Value: "a"}},
		{`{"iss":"https://idp.example.com/realms/corp","jti":"a","exp":1790003600}`, Revocation{Kind: token.KindToken, Value: "a", Expiry: unix(1790003600)}},
		{" \t{ \"jti\" :\r\"a\" , \"reason\":\"leaked\" } ", Revocation{Kind: token.KindToken, Value: "a", Reason: "leaked"}},
		{`{"sid":"s"}`, Revocation{Kind: token.KindSession, Value: "s"}},
		{`{"sid":"s","before":1790000000}`, Revocation{Kind: token.KindSession, Value: "s", Before: unix(1790000000)}},
		{`{"sub":"alice","before":1790000000.25}`, Revocation{Kind: token.KindSubject, Value: "alice", Before: unix(1790000000).Add(250 * time.Millisecond)}},
		{`{"sub":"alice","before":1790000000.9999999999}`, Revocation{Kind: token.KindSubject, Value: "alice", Before: unix(1790000000).Add(999999999)}},
		{`{"sub":"alice","before":1.79e9}`, Revocation{Kind: token.KindSubject, Value: "alice", Before: unix(1790000000)}},
		{`{"sub":"alice","before":1790000000,"by":"iat"}`, Revocation{Kind: token.KindSubject, Value: "alice", Before: unix(1790000000)}},
		{`{"sub":"alice","before":1790000000,"by":"auth_time"}`, Revocation{Kind: token.KindSubject, Value: "alice", Before: unix(1790000000), ByAuthTime: true}},
		{`{"sub":"alice","before":1790000000,"except":["sid:b","jti:x:y","sid:b"]}`, Revocation{Kind: token.KindSubject, Value: "alice", Before: unix(1790000000), Except: []string{"jti:x:y", "sid:b"}}},
		{`{"client":"app","before":1790000000}`, Revocation{Kind: token.KindClient, Value: "app", Before: unix(1790000000)}},
		{`{"iss":"https://idp.example.com/realms/corp","before":1790000000}`, Revocation{Kind: token.KindIssuer, Before: unix(1790000000)}},
		{`{"sub":"\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t","before":1}`, Revocation{Kind: token.KindSubject, Value: "é😀\"\\/\b\f\n\r\t", Before: unix(1)}},
		{`{"sub":"a","before":1790000060.123}`, Revocation{Kind: token.KindSubject, Value: "a", Before: unix(1790000060).Add(123 * time.Millisecond)}},
		{`{"sub":"a","before":1790000060.124}`, Revocation{Kind: token.KindSubject, Value: "a", Before: unix(1790000060).Add(123 * time.Millisecond), Clamped: unix(1790000060).Add(124 * time.Millisecond)}},
	}
	for _, tt := range tests {
		tt.want.Issuer = corp
		got, err := Parse([]byte(tt.line), one, now, false)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", tt.line, got, err, tt.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	two := Issuers{limits(), {URL: partner}}
	const in = `{"iss":"https://partner.example.org",`
	tests := []struct{ line, want string }{
		{``, "not one JSON object"},
		{`{}`, "names no jti"},
		{`[]`, "not one JSON object"},
		{`null`, "not one JSON object"},
		{`"jti"`, "not one JSON object"},
		{`{"jti":"a"}`, "iss is missing"},
		{`{"before":1790000000}`, "names no jti"},
		{in + `"jti":"a"`, "not one JSON object"},
		{in + `"jti":"a"} {}`, "not one JSON object"},
		{in + `"jti":"a"}x`, "not one JSON object"},
		{in + `"jti":"a","jti":"b"}`, "jti is given twice"},
		{in + `"iss":"https://partner.example.org","jti":"a"}`, "iss is given twice"},
		{in + `"jti":"a","exp":1790000000,"\u0065xp":1}`, "exp is given twice"},
		{in + `"JTI":"a"}`, `unknown member "JTI"`},
		{in + `"jti":"a","note":1}`, `unknown member "note"`},
		{in + `"jti":"a","sub":"b"}`, "both jti and sub"},
		{in + `"jti":""}`, "jti is empty"},
		{in + `"jti":7}`, "jti must be a string"},
		{in + `"jti":null}`, "jti must be a string"},
		{in + `"jti":["a"]}`, "jti must be a string"},
		{in + `"jti":"\ud800"}`, "half a surrogate pair"},
		{in + `"jti":"\ud800\u0041"}`, "half a surrogate pair"},
		{in + `"jti":"\udc00\ud800"}`, "half a surrogate pair"},
		{in + `"jti":"` + "\xff" + `"}`, "not UTF-8"},
		{in + `"jti":"a","before":1790000000}`, "before does not go with jti"},
		{in + `"jti":"a","by":"iat"}`, "by and except need a before"},
		{in + `"sid":"a","by":"iat"}`, "by and except need a before"},
		{in + `"sid":"a","except":["jti:x"]}`, "by and except need a before"},
		{in + `"sub":"a"}`, "before is missing"},
		{in + `"client":"a","exp":1790000000}`, "before is missing"},
		{in + `"reason":"r"}`, "before is missing"},
		{in + `"sub":"a","before":"1790000000"}`, "before must be a number"},
		{in + `"sub":"a","before":null}`, "before must be a number"},
		{in + `"sub":"a","before":0}`, "before is 0"},
		{in + `"sub":"a","before":-1}`, "before is -1"},
		{in + `"sub":"a","before":1e-400}`, "before is 1e-400"},
		{in + `"sub":"a","before":1e-10}`, "before is 1e-10"},
		{in + `"sub":"a","before":1e999999999}`, "before is 1e999999999"},
		{in + `"sub":"a","before":1790000000000}`, "milliseconds"},
		{in + `"sub":"a","before":253370764800}`, "before the year 9999"},
		{in + `"sub":"a","before":1.` + strings.Repeat("0", 63) + `}`, "at most 64 characters"},
		{in + `"sub":"a","before":1,"by":"nbf"}`, "must be iat or auth_time"},
		{in + `"sub":"a","before":1,"except":[]}`, "except has 0 entries"},
		{in + `"sub":"a","before":1,"except":"sid:a"}`, "except must be an array"},
		{in + `"sub":"a","before":1,"except":[["sid:a"]]}`, "except must be an array"},
		{in + `"sub":"a","before":1,"except":["a"]}`, `except has the entry "a"`},
		{in + `"sub":"a","before":1,"except":["sid:"]}`, `except has the entry "sid:"`},
		{in + `"sub":"a","before":1,"except":["sub:a"]}`, `except has the entry "sub:a"`},
		{in + `"sub":"a","before":1,"except":["sid:1","sid:2","sid:3","sid:4","sid:5","sid:6","sid:7","sid:8","sid:9"]}`, "except has 9 entries"},
		{`{"iss":"https://partner.example.org/","jti":"a"}`, `iss "https://partner.example.org/" is not a configured issuer`},
		{`{"iss":"","jti":"a"}`, "iss is empty"},
		{in + `"jti":"` + strings.Repeat("a", MaxLine) + `"}`, "longer than 65536 bytes"},
		{in + `"jti":"` + strings.Repeat("\u2028", MaxLine/4) + `"}`, "longer than 65536 bytes when written in full"},
	}
	for _, tt := range tests {
		got, err := Parse([]byte(tt.line), two, unix(1790000000), false)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !reflect.DeepEqual(got, Revocation{}) {
			t.Errorf("%.120s: got %+v, %v; want an error with %q", tt.line, got, err, tt.want)
		}
	}
}

func TestParseFills(t *testing.T) {
	now := unix(1790000000).Add(999999 * time.Microsecond)
	want := unix(1790000002).Add(999 * time.Millisecond)
	for _, line := range []string{`{"sub":"alice"}`, `{"client":"app"}`} {
		got, err := Parse([]byte(line), Issuers{limits()}, now, true)
		if err != nil || !got.Before.Equal(want) {
			t.Errorf("%s: before %v, %v; want %v", line, got.Before, err, want)
		}
	}
	for _, line := range []string{`{}`, `{"iss":"` + corp + `"}`, `{"before":1790000000}`} {
		if got, err := Parse([]byte(line), Issuers{limits()}, now, true); err == nil {
			t.Errorf("%s revokes %+v", line, got)
		}
	}
	got, err := Parse([]byte(`{"sid":"s"}`), Issuers{limits()}, now, true)
	if err != nil || !got.Denial() {
		t.Errorf("a sid without before is %+v, %v; want a denial", got, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range []string{
		`{"jti":"B70BA622","exp":1790003600}`, `{"sid":"08a5019c"}`, `{"sub":"alice","before":1790000000.5,"by":"auth_time","except":["sid:a"]}`,
		`{"client":"é😀\n","before":1.79e9,"reason":"<&>"}`, `{"iss":"https://idp.example.com/realms/corp","before":1}`, `{}`, `{"sub":"\ud800"}`,
		`{"sub":"a","before":0.000000001}`, `{"sub":"a","before":99999999999.999999999}`, "{\"sub\":\"\u2028\",\"before\":1e-9}",
	} {
		f.Add([]byte(line), false)
		f.Add([]byte(line), true)
	}
	issuers, now := Issuers{limits()}, unix(1790000000)
	f.Fuzz(func(t *testing.T, line []byte, fill bool) {
		r, err := Parse(line, issuers, now, fill)
		if err != nil {
			if !reflect.DeepEqual(r, Revocation{}) {
				t.Fatalf("%q is refused (%v) and gives %+v", line, err, r)
			}
			return
		}
		if r.Issuer != corp || r.Kind == 0 || (r.Value == "") != (r.Kind == token.KindIssuer) || r.Denial() && !r.identity() {
			t.Fatalf("%q gives %+v", line, r)
		}
		r.Clamped = time.Time{}
		canonical := r.Line()
		again, err := Parse(canonical, issuers, now, false)
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("%q gives\n%+v, written as %q and read as\n%+v, %v", line, r, canonical, again, err)
		}
		if second := again.Line(); string(second) != string(canonical) {
			t.Fatalf("%q is written as %q and then as %q", line, canonical, second)
		}
	})
}
