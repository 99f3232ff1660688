package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"durward/policy"
	"durward/proxy"
)

// A schemer makes a JSON Schema (draft 2020-12) of the configuration's structs. The
// comments of their fields are the descriptions, so that there is no second copy.
type schemer struct {
	t     *testing.T
	docs  map[string]map[string]string // by package.Type, then by field; "" is the type's own
	types map[string]any               // $defs
}

// enums are the fields that take one of a few words. The words stand in the field's
// comment, too.
func enums() map[string][]string {
	return map[string][]string{
		"main.LogConfig.Level": {"debug", "info", "warn", "error"}, "main.LogConfig.Format": {"json", "text"},
		"main.DenylistConfig.OnStale": {"deny", "allow"}, "main.StreamsConfig.OnExpiry": {"cut", "keep"},
		"policy.RouteConfig.Auth": {"required", "optional", "none"}, "policy.RouteConfig.OnStale": {"deny", "allow"},
		"policy.RouteConfig.Preflight": {"deny", "forward"}, "policy.RouteConfig.EncodedSlash": {"deny", "allow"},
		"proxy.UpstreamConfig.PathCase": {"sensitive", "insensitive"}, "policy.TestConfig.Want": {"allow", "deny", "challenge"},
	}
}

// read takes the comments out of a package's sources.
func (s *schemer) read(dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || files == nil {
		s.t.Fatalf("%s: %v", dir, err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			s.t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			decl, ok := n.(*ast.GenDecl)
			if !ok {
				return true
			}
			for _, spec := range decl.Specs {
				spec, ok := spec.(*ast.TypeSpec)
				if !ok {
					continue
				}
				fields := map[string]string{"": decl.Doc.Text()}
				if body, ok := spec.Type.(*ast.StructType); ok {
					before := ""
					for _, f := range body.Fields.List {
						for _, name := range f.Names {
							text := f.Doc.Text() + f.Comment.Text()
							if text == "" && strings.Contains(before, name.Name) {
								text = before // of two fields that belong together
							}
							fields[name.Name], before = text, text
						}
					}
				}
				s.docs[file.Name.Name+"."+spec.Name.Name] = fields
			}
			return true
		})
	}
}

var requiredMark = regexp.MustCompile(`\bRequired(?:[.;:]|, unique)|At least one\.`)

func (s *schemer) scalar(kind string, more map[string]any) map[string]any {
	out := map[string]any{"type": kind}
	for k, v := range more {
		out[k] = v
	}
	return out
}

func anyOf(options ...any) map[string]any { return map[string]any{"anyOf": options} }

// schema is that of a type.
func (s *schemer) schema(t reflect.Type) map[string]any {
	text := s.scalar("string", nil)
	number := anyOf(s.scalar("integer", nil), s.scalar("string", map[string]any{"pattern": `^[0-9][0-9_]*$`})) // 10_000_000 is a number in YAML 1.1 alone
	switch t {
	case reflect.TypeFor[time.Duration]():
		return s.scalar("string", map[string]any{"pattern": `^-?([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$|^0$`, "examples": []string{"250ms", "30s", "24h"}})
	case reflect.TypeFor[policy.Size]():
		return anyOf(s.scalar("integer", map[string]any{"minimum": 1}), s.scalar("string", map[string]any{"pattern": `^[0-9_]+ ?(KiB|MiB|GiB)?$`, "examples": []string{"64KiB", "10MiB"}}))
	case reflect.TypeFor[policy.Strings]():
		return anyOf(text, s.scalar("array", map[string]any{"items": text, "minItems": 1}))
	case reflect.TypeFor[policy.Values]():
		one := map[string]any{"type": []string{"string", "number", "boolean"}}
		return anyOf(one, s.scalar("array", map[string]any{"items": one, "minItems": 1}))
	case reflect.TypeFor[policy.CrossSite]():
		return anyOf(map[string]any{"const": "allow"}, s.object(t))
	case reflect.TypeFor[proxy.HeaderConfig](), reflect.TypeFor[UpstreamRef](), reflect.TypeFor[SourceKeyConfig]():
		return anyOf(text, s.object(t))
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.schema(t.Elem())
	case reflect.Bool:
		return s.scalar("boolean", nil)
	case reflect.Int:
		return number
	case reflect.Float64:
		return s.scalar("number", nil)
	case reflect.String:
		return text
	case reflect.Slice:
		return s.scalar("array", map[string]any{"items": s.schema(t.Elem()), "minItems": 1})
	case reflect.Map:
		return s.scalar("object", map[string]any{"additionalProperties": s.schema(t.Elem())})
	case reflect.Interface:
		return map[string]any{}
	case reflect.Struct:
		return s.object(t)
	}
	s.t.Fatalf("no schema for %s", t)
	return nil
}

// object refers to the definition of a struct, and makes it first.
func (s *schemer) object(t reflect.Type) map[string]any {
	ref := map[string]any{"$ref": "#/$defs/" + t.String()}
	if _, made := s.types[t.String()]; made {
		return ref
	}
	properties, required := map[string]any{}, []string{}
	def := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	s.types[t.String()] = def
	if text := s.docs[t.String()][""]; text != "" {
		def["description"] = tidy(text, nil)
	}
	s.fields(t, properties, &required)
	if len(required) > 0 {
		def["required"] = required
	}
	return ref
}

func (s *schemer) fields(t reflect.Type, properties map[string]any, required *[]string) {
	keys := map[string]string{}
	for field := range t.Fields() {
		if key, _, _ := strings.Cut(field.Tag.Get("yaml"), ","); key != "" && key != "-" {
			keys[field.Name] = key
		}
	}
	for field := range t.Fields() {
		if strings.HasSuffix(field.Tag.Get("yaml"), ",inline") {
			s.fields(field.Type, properties, required)
		}
		key := keys[field.Name]
		if key == "" {
			continue
		}
		text := s.docs[t.String()][field.Name]
		if text == "" {
			s.t.Errorf("%s.%s has no comment", t, field.Name)
		}
		p := s.schema(field.Type)
		place := t.String() + "." + field.Name
		if words := enums()[place]; words != nil {
			p = map[string]any{"enum": words}
			for _, w := range words {
				if !strings.Contains(text, w) && place != "policy.RouteConfig.OnStale" {
					s.t.Errorf("the comment of %s does not name %q", place, w)
				}
			}
		}
		p["description"] = tidy(text, keys)
		properties[key] = p
		if requiredMark.MatchString(text) {
			*required = append(*required, key)
		}
	}
}

// tidy makes a description of a comment: on one line, with the keys of the file in
// place of the fields' names.
func tidy(text string, keys map[string]string) string {
	text = strings.Join(strings.Fields(text), " ")
	for name, key := range keys {
		before := `(^|[ (])`
		if strings.ToUpper(name) == name {
			before = `(^)` // elsewhere, TLS is TLS
		}
		text = regexp.MustCompile(before+name+`\b`).ReplaceAllString(text, "${1}"+key)
	}
	return text
}

// TestSchema makes the schema anew and compares it with the one that the program
// carries, and finds the example and all good configurations of check good.
func TestSchema(t *testing.T) {
	s := &schemer{t: t, docs: map[string]map[string]string{}, types: map[string]any{}}
	for _, dir := range []string{".", "../../policy", "../../proxy", "../../token", "../../denylist/httpfeed", "../../denylist/natsfeed", "../../denylist/redisfeed", "../../tracing"} {
		if _, err := os.Stat(dir); err == nil {
			s.read(dir)
		}
	}
	doc := s.object(reflect.TypeFor[Config]())
	doc["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	doc["title"] = "durward.yaml"
	doc["$defs"] = s.types
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "durward.schema.json", string(text)+"\n")
	if status, out, errOut := ran(t, "schema"); status != 0 || !*update && out != string(text)+"\n" {
		t.Errorf("durward schema: exit status %d: %s", status, errOut)
	}

	compiler := jsonschema.NewCompiler()
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiler.AddResource("durward.schema.json", parsed); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("durward.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	validate := func(text string) error {
		var value any
		if err := yaml.Unmarshal([]byte(text), &value); err != nil {
			return err
		}
		return schema.Validate(value)
	}
	example, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(example), strings.ReplaceAll(string(example), "#= ", "")} {
		if err := validate(text); err != nil {
			t.Errorf("the example: %v", err)
		}
	}
	// What the schema can see of a broken configuration it refuses, and nothing else.
	seen := map[string]bool{"misspelt-key": true, "wrong-units": true, "no-audience": true, "commented-out-grants": true}
	files, err := filepath.Glob("testdata/check/*.yaml")
	if err != nil || files == nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		if err := validate(string(text)); (err != nil) != seen[name] {
			t.Errorf("%s: refused %v wanted: %v", name, seen[name], err)
		}
	}
}
