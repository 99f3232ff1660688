package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
)

const example = "../../config.example.yaml"

// The example is good as it stands, and good with every line that needs files.
func TestExample(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeKeys(t, dir)
	path := filepath.Join(dir, "durward.yaml")
	for name, content := range map[string]string{
		"as it stands": string(text),
		"with files":   strings.ReplaceAll(string(text), "#= ", ""),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		b, wrong := load(path)
		if wrong != nil {
			t.Errorf("%s:\n%v", name, problems(wrong))
			continue
		}
		b.cache.Close()
	}
}

// writeKeys makes the files that the example's #= lines name.
func writeKeys(t *testing.T, dir string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	another, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if spki, err = x509.MarshalPKIXPublicKey(another); err != nil {
		t.Fatal(err)
	}
	anotherPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"tls.crt": cert, "tls.key": key, "idp-ca.pem": cert, "ca.pem": cert, "client.crt": cert, "client.key": key, "assertion.pem": key,
		"hub-ca.pem": cert, "fleet-ca.pem": cert, "me.crt": cert, "me.key": key, "hub.crt": cert, "hub.key": key,
		"ed25519.pem": key, "hub-1.pub": publicPEM, "hub-2.pub": anotherPEM, "hub.token": []byte("0123456789abcdef\n"),
		"more-tests.yaml": []byte("- {name: pictures are public, request: GET https://intranet.example/static/x.png, want: allow}\n"),
		"admin.token":     []byte("0123456789abcdef0123456789abcdef\n"), "redis.password": []byte("secret\n"), "nats.creds": nil, "nats.nk": seed,
		"partner-keys.json": []byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k","use":"sig",` +
			`"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Every option stands in the example.
func TestExampleIsComplete(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[reflect.Type]bool{}
	var visit func(reflect.Type)
	visit = func(s reflect.Type) {
		for s.Kind() == reflect.Pointer || s.Kind() == reflect.Slice || s.Kind() == reflect.Map {
			s = s.Elem()
		}
		if s.Kind() != reflect.Struct || seen[s] {
			return
		}
		seen[s] = true
		for i := range s.NumField() {
			field := s.Field(i)
			key, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
			if key != "" && key != "-" && !regexp.MustCompile(`(?m)(^|[ {])`+key+`:`).Match(text) {
				t.Errorf("%s of %s is not in the example", key, s)
			}
			if field.IsExported() && key != "-" {
				visit(field.Type)
			}
		}
	}
	visit(reflect.TypeFor[Config]())
}

// One key under two names has one grant, or the configuration is refused: which of the
// two held would be chance.
func TestSourceKeyTwice(t *testing.T) {
	dir := t.TempDir()
	writeKeys(t, dir)
	path := filepath.Join(dir, "durward.yaml")
	for keys, good := range map[string]bool{
		"{a: hub-1.pub, b: hub-2.pub}":                                                     true,
		"{a: {file: hub-1.pub, kinds: [jti]}, b: {file: hub-2.pub, kinds: [sid]}}":         true,
		"{a: {file: hub-1.pub, kinds: [jti]}, b: {file: ./hub-1.pub, kinds: [jti]}}":       true,
		"{a: {file: hub-1.pub, kinds: [jti]}, b: hub-1.pub}":                               false,
		"{a: {file: hub-1.pub, per_minute: 10}, b: {file: ./hub-1.pub, issuers: [corp]}}":  false,
		"{a: hub-1.pub, b: hub-2.pub, c: {file: hub-2.pub, mass: false, issuers: [corp]}}": false,
	} {
		text := "listen: 127.0.0.1:0\nissuers: [{name: corp, issuer: https://corp.test, audiences: [app]}]\n" +
			"routes: [{name: all, upstream: \"http://127.0.0.1:1\"}]\ndenylist: {feeds: [{name: hub, http: {urls: [\"http://127.0.0.1:1\"]}}], source_keys: " + keys + "}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, wrong := load(path)
		if good != (wrong == nil) || !good && !strings.Contains(problems(wrong).Error(), "with another grant, and only one can hold") {
			t.Errorf("%s: %v", keys, problems(wrong))
		}
		if wrong == nil {
			b.cache.Close()
		}
	}
}
