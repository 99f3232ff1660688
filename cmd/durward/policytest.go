package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"durward/decision"
	"durward/policy"
	"durward/proxy"
	"durward/token"
)

// tests asks the policy what its author expects of it.
func (b *builder) tests(s *proxy.Snapshot) {
	for _, rt := range s.Policy.Routes() {
		b.out.coverage = append(b.out.coverage, routeCoverage{Route: rt.Name, Grants: make([]int, len(b.Routes[rt.Index].Allow))})
	}
	b.runTests(s, b.configFile, "tests", b.Tests)
	for i, path := range b.TestFiles {
		f, tests, err := parseTests(path)
		if err != nil {
			b.add(fmt.Sprintf("test_files[%d]", i), err)
			continue
		}
		if f.problems == nil {
			b.runTests(s, f, "", tests)
		}
		b.problems = append(b.problems, f.problems...)
	}
}

// parseTests reads a file of tests as strictly as the configuration.
func parseTests(path string) (*configFile, []policy.TestConfig, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	f := &configFile{Config: Config{path: path}, root: &yaml.Node{}, broken: map[int]bool{}}
	var tests []policy.TestConfig
	f.decode(text, &tests)
	return f, tests, nil
}

func (b *builder) runTests(s *proxy.Snapshot, f *configFile, place string, tests []policy.TestConfig) {
	for i, t := range tests {
		b.out.tests++
		if err := b.test(s, t); err != nil {
			f.add(fmt.Sprintf("%s[%d]", place, i), fmt.Errorf("%q: %w", t.Name, err))
		}
	}
}

// A routeCoverage counts the policy tests that a route, and each of its grants,
// took part in: a grant that lets somebody in, or that is named as what is lacking.
type routeCoverage struct {
	Route  string `json:"route"`
	Tests  int    `json:"tests"`
	Grants []int  `json:"grants"` // in the order of allow
}

// touch counts a test.
func (b *builder) touch(rec *decision.Record) {
	i := slices.IndexFunc(b.out.coverage, func(c routeCoverage) bool { return c.Route == rec.Route })
	if i < 0 {
		return
	}
	c := &b.out.coverage[i]
	c.Tests++
	for n := range c.Grants {
		if rec.Grant == fmt.Sprintf("allow[%d]", n) {
			c.Grants[n]++
		}
	}
}

// A testFailure is an answer of the policy that its author did not expect.
type testFailure struct{ text, diff string }

func (f *testFailure) Error() string { return f.text }

// failure compares what was wanted with what came, for a person: one line for logs,
// and the whole for check.
func (b *builder) failure(t policy.TestConfig, rec *decision.Record) *testFailure {
	want := strings.TrimSpace(t.Want + " " + t.Reason)
	f := &testFailure{text: fmt.Sprintf("%s: want %s, but the policy says %s (%s)", t.Request, want, rec.Verdict, strings.TrimSuffix(string(rec.Reason)+": "+rec.Detail, ": "))}
	line := func(mark, name, format string, args ...any) {
		f.diff += fmt.Sprintf("  %s %-8s %s\n", mark, name, fmt.Sprintf(format, args...))
	}
	line(" ", "request", "%s", t.Request)
	if t.Claims == nil {
		line(" ", "claims", "none: no credential")
	} else if text, err := json.Marshal(t.Claims); err == nil {
		line(" ", "claims", "%s", text)
	}
	line("-", "want", "%s", want)
	line("+", "got", "%s %s", rec.Verdict, rec.Reason)
	for _, step := range rec.Trace.Steps() {
		if step.Name != "request" {
			line(" ", step.Name, "%s", step.Text)
		}
	}
	if rec.Detail != "" {
		line(" ", "because", "%s", rec.Detail)
	}
	return f
}

func (b *builder) test(s *proxy.Snapshot, t policy.TestConfig) error {
	if t.Name == "" {
		return &token.FieldError{Field: "name", Err: errors.New("is missing; give the test one that says what it proves")}
	}
	if t.Want != "allow" && t.Want != "deny" && t.Want != "challenge" {
		return &token.FieldError{Field: "want", Err: fmt.Errorf("%q is not a verdict; write allow, deny or challenge", t.Want)}
	}
	if t.Reason != "" && !slices.Contains(decision.Reasons(), decision.Reason(t.Reason)) {
		return &token.FieldError{Field: "reason", Err: fmt.Errorf("%q is not a reason; use one that durward help reasons lists", t.Reason)}
	}
	method, target, ok := strings.Cut(t.Request, " ")
	r, err := proxy.Hypothetical(method, target, nil)
	if !ok || err != nil {
		return &token.FieldError{Field: "request", Err: fmt.Errorf("%q is not a method and an absolute URL, such as GET https://shop.example.com/", t.Request)}
	}
	claims, err := b.claims(t)
	if err != nil {
		return err
	}
	rec := &decision.Record{Time: b.now, Trace: &decision.Trace{}}
	s.Suppose(r, claims, rec)
	b.touch(rec)
	if rec.Verdict.String() != t.Want || t.Reason != "" && rec.Reason != decision.Reason(t.Reason) {
		return b.failure(t, rec)
	}
	if t.Reason == "" && (rec.Reason == decision.NoRoute || rec.Reason == decision.AmbiguousRequest) {
		return fmt.Errorf("%s: no rule was asked (%s: %s); if that is meant, say reason: %s", t.Request, rec.Reason, rec.Detail, rec.Reason)
	}
	return nil
}

// claims makes the test's claims, nil if it has none. A claim that nothing reads
// is probably misspelt, and would make the test prove nothing.
func (b *builder) claims(t policy.TestConfig) (*token.Claims, error) {
	issuer := b.out.issuers[0]
	if t.Issuer != "" {
		i := slices.IndexFunc(b.out.issuers, func(o *token.Issuer) bool { return o.Name() == t.Issuer })
		if i < 0 {
			return nil, &token.FieldError{Field: "issuer", Err: fmt.Errorf("%q is not a configured issuer", t.Issuer)}
		}
		issuer = b.out.issuers[i]
	}
	if t.Claims == nil {
		if t.Issuer != "" {
			return nil, &token.FieldError{Field: "issuer", Err: errors.New("says whose claims these are, but there are none; write claims: {} for a token without any")}
		}
		return nil, nil
	}
	read := b.claimsRead(issuer)
	if name := unread(t.Claims, "", read); name != "" {
		text := fmt.Sprintf("nothing reads the claim %q", name)
		if path, mapped := issuer.Config().Claims[name]; mapped {
			text += fmt.Sprintf("; issuer %q keeps %s in %q", issuer.Name(), name, path)
		} else if near := nearest(name, slices.Sorted(maps.Keys(read))); near != "" {
			text += fmt.Sprintf("; did you mean %q?", near)
		}
		return nil, &token.FieldError{Field: "claims." + name, Err: errors.New(text)}
	}
	claims, err := issuer.Suppose(t.Claims, b.now)
	if err != nil {
		return nil, &token.FieldError{Field: "claims", Err: err}
	}
	return claims, nil
}

// unread is the path of the first claim below a prefix that nothing reads, "" if all
// are: one is read if its path is, or that of an object around it.
func unread(claims map[string]any, prefix string, read map[string]bool) string {
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		path := prefix + name
		if !strings.Contains(name, "://") {
			path = prefix + strings.NewReplacer(`\`, `\\`, ".", `\.`).Replace(name)
		}
		if read[path] {
			continue
		}
		below, nested := claims[name].(map[string]any)
		if !nested || len(below) == 0 {
			return path
		}
		if found := unread(below, path+".", read); found != "" {
			return found
		}
	}
	return ""
}

// claimsRead are the paths of the claims that the gateway, a grant or an identity
// header looks at in this issuer's tokens.
func (b *builder) claimsRead(issuer *token.Issuer) map[string]bool {
	read := map[string]bool{}
	for _, name := range [...]string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "auth_time", "acr", "amr"} {
		read[name] = true
	}
	mapped := issuer.Config().Claims
	for _, path := range mapped {
		read[path] = true
	}
	add := func(name string) {
		if _, ok := mapped[name]; !ok {
			read[name] = true
		}
	}
	headers := func(cfg map[string]proxy.HeaderConfig) {
		for _, h := range cfg {
			add(h.Claim)
		}
	}
	headers(proxy.DefaultHeaders())
	headers(b.Identity.Headers)
	for _, rc := range b.Routes {
		headers(rc.Identity.Headers)
		for _, grant := range rc.Allow {
			for claim := range grant.Claims {
				add(claim)
			}
		}
	}
	return read
}
