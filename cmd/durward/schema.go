package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// schemaText is the JSON Schema of the configuration. It is made of the structs
// and their comments by TestSchema, which keeps it equal to them: the comments are
// not in the program.
//
//go:embed durward.schema.json
var schemaText string

// schema prints the JSON Schema of the configuration, for editors.
func (c *command) schema() error {
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	_, err := io.WriteString(c.stdout, schemaText)
	return err
}

// optionsHelp lists the keys at the top of the configuration, with the first
// sentence about each.
func optionsHelp() string {
	var schema struct {
		Defs map[string]struct {
			Properties map[string]struct{ Description string }
		} `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(schemaText), &schema); err != nil {
		return ""
	}
	properties := schema.Defs[reflect.TypeFor[Config]().String()].Properties
	var b strings.Builder
	for field := range reflect.TypeFor[Config]().Fields() {
		key := field.Tag.Get("yaml")
		if key == "" {
			continue
		}
		first, _, _ := strings.Cut(properties[key].Description, ". ")
		first, _, _ = strings.Cut(strings.TrimSuffix(first, "."), "; ")
		fmt.Fprintf(&b, "  %-17s %s\n", key, first)
	}
	return b.String()
}
