package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// Whatever the file says, loading it never panics, and every problem has its line.
// What loads means the same written in another way, and does not load with a key
// that nobody knows, wherever that stands.
func FuzzParse(f *testing.F) {
	text, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	const small = "listen: 127.0.0.1:0\nissuers: [{name: corp, issuer: 'https://idp.example.com', audiences: [app]}]\n"
	for _, seed := range []string{
		string(text),
		small + "routes: [{name: a, upstream: 'http://127.0.0.1:3000'}]\n",
		small + "routes:\n- {name: a, path: /a/, upstream: u, allow: [{methods: GET, claims: {groups: [ops, 7, true]}, acr: [mfa], max_age: 15m}]}\nupstreams: {u: {url: 'http://127.0.0.1:3000', timeout: {dial: 1s}}}\n",
		small + "x: &x {url: 'http://127.0.0.1:3000'}\nroutes: [{name: a, upstream: *x}]\n",
		small + "upstreams: {u: &u {url: 'http://127.0.0.1:3000'}, v: {<<: *u, host: upstream}}\nroutes: [{name: a, upstream: u}, {name: b, path: /b, upstream: v}]\n",
		small + "routes: [{name: a, upstream: {url: 'http://127.0.0.1:3000'}, identity: {headers: {X-A: sub, X-B: {claim: groups, separator: '|'}}}}]\ntests: [{name: t, request: GET http://a/, claims: {sub: a, x: {y: [1, 2.5, null]}}, want: allow}]\n",
		"---\n---\n", "routes:\n- allow: null\n", "a: &a [*a]", "listen: [", "\xff", "? [a]\n: b", "!!binary x: y", "listen: 127.0.0.1:0 # {",
	} {
		f.Add(seed, uint(0))
		f.Add(seed, uint(7))
	}
	dir := f.TempDir()
	path := filepath.Join(dir, "durward.yaml")
	attempt := func(t *testing.T, text string) (*Config, []problem) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, wrong := load(path)
		if (b == nil) == (wrong == nil) {
			t.Fatalf("%q: got %v and %v", text, b, wrong)
		}
		if b == nil {
			return nil, wrong
		}
		b.cache.Close()
		return b.config, nil
	}
	f.Fuzz(func(t *testing.T, text string, n uint) {
		config, wrong := attempt(t, text)
		if config == nil {
			lines := strings.Count(text, "\n") + strings.Count(text, "\r") + strings.Count(text, "\u0085") + strings.Count(text, "\u2028") + strings.Count(text, "\u2029") + 1
			for _, p := range wrong {
				placed := p.Line > 0 && p.Line <= lines+1 && strings.HasPrefix(p.Error(), fmt.Sprintf("%s:%d: ", path, p.Line))
				if p.Message == "" || p.File != path || !placed && !strings.HasPrefix(p.Message, "the file is empty") && !yamlAnywhere.MatchString(p.Message) {
					t.Fatalf("%q: a problem without place or text: %q", text, p.Error())
				}
			}
			return
		}
		var tree yaml.Node
		if err := yaml.Unmarshal([]byte(text), &tree); err != nil || len(tree.Content) != 1 {
			t.Fatalf("%q: loads, and is no YAML: %v", text, err)
		}
		w := rewriter{places: 1 << 16}
		if w.write(tree.Content[0], ""); w.places < 0 {
			return // aliases blow it up
		}
		again, wrong := attempt(t, w.String())
		if again == nil || !reflect.DeepEqual(config, again) {
			t.Fatalf("%q, written as\n%s\nis no longer the same: %v", text, w.String(), wrong)
		}
		w = rewriter{places: 1 << 16, spoil: int(n%uint(w.mappings)) + 1}
		w.write(tree.Content[0], "")
		if spoiled, wrong := attempt(t, w.String()); spoiled != nil || !strings.Contains(fmt.Sprint(wrong), `unknown key "zz_unknown"`) {
			t.Fatalf("%q: an unknown key loads in\n%s\n%v", text, w.String(), wrong)
		}
	})
}

// A rewriter writes a document in one line, all strings quoted and all aliases
// spelled out.
type rewriter struct {
	strings.Builder
	places   int // how many nodes may still be written
	mappings int // how many were written whose keys are fixed
	spoil    int // the one, from 1, that gets a key that nobody knows
}

// freeKeys are the places whose keys are the user's own.
var freeKeys = regexp.MustCompile(`^(/upstreams|/issuers/\d+/claims|(/routes/\d+)?/identity/headers|/routes/\d+/allow/\d+/claims(/.*)?|/tests/\d+/claims(/.*)?)$`)

func (w *rewriter) write(n *yaml.Node, place string) {
	if w.places--; w.places < 0 {
		return
	}
	switch n.Kind {
	case yaml.AliasNode:
		w.write(n.Alias, place)
	case yaml.SequenceNode:
		w.WriteString("[")
		for i, child := range n.Content {
			w.write(child, fmt.Sprintf("%s/%d", place, i))
			w.WriteString(", ")
		}
		w.WriteString("]")
	case yaml.MappingNode:
		w.WriteString("{")
		if !freeKeys.MatchString(place) {
			if w.mappings++; w.mappings == w.spoil {
				w.WriteString(`"zz_unknown": 1, `)
			}
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, inner := n.Content[i], place+"/"+n.Content[i].Value
			if key.ShortTag() == "!!merge" {
				inner = place
			}
			w.write(key, "")
			w.WriteString(": ")
			w.write(n.Content[i+1], inner)
			w.WriteString(", ")
		}
		w.WriteString("}")
	case yaml.ScalarNode:
		if n.Style&yaml.TaggedStyle != 0 {
			w.WriteString(n.Tag + " ")
		}
		switch n.ShortTag() {
		case "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!merge":
			w.WriteString(n.Value)
		default:
			quoted, _ := json.Marshal(n.Value)
			w.Write(quoted)
		}
	}
}
