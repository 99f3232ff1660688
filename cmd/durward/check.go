package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// check tells everything that can be said about a configuration without running
// it. What refuses it makes the exit status 1; warnings and notes do not.
func (c *command) check() error {
	path := c.config()
	format := c.flags.String("format", "text", "how to tell: `text`, json, or github for annotations of a workflow")
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	if !slices.Contains([]string{"text", "json", "github"}, *format) {
		return usageError{fmt.Errorf("-format: %q is not known; write text, json or github", *format)}
	}
	b, wrong := load(*path)
	r := checkReport{File: *path, Good: wrong == nil, Problems: []reported{}, Coverage: []routeCoverage{}, all: wrong}
	if b != nil {
		b.cache.Close()
		r.Issuers, r.Routes, r.Tests, r.Coverage = len(b.issuers), len(b.config.Routes), b.tests, b.coverage
		r.all = slices.Concat(b.warnings, b.notes)
		slices.SortStableFunc(r.all, func(a, b problem) int { return a.Line - b.Line })
	}
	var err error
	switch *format {
	case "json":
		err = r.json(c.stdout)
	case "github":
		err = r.github(c.stdout)
	default:
		err = r.text(c.stdout, c.stderr)
	}
	if err == nil && !r.Good {
		err = errRefused
	}
	return err
}

// errRefused ends a command with status 1 whose output says why already.
var errRefused = errors.New("the configuration is refused")

// A checkReport is what check found.
type checkReport struct {
	File     string          `json:"file"`
	Good     bool            `json:"good"`
	Issuers  int             `json:"issuers"`
	Routes   int             `json:"routes"`
	Tests    int             `json:"tests"` // that passed; 0 if the configuration is refused
	Problems []reported      `json:"problems"`
	Coverage []routeCoverage `json:"coverage"`

	all []problem
}

// A reported problem is one as JSON.
type reported struct {
	Severity string `json:"severity"` // error, warning, note
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Place    string `json:"place,omitempty"`
	Message  string `json:"message"`
	Remedy   string `json:"remedy,omitempty"`
	Diff     string `json:"diff,omitempty"`
}

// text is for people: problems on stderr, the rest on stdout.
func (r *checkReport) text(out, errOut io.Writer) error {
	for _, p := range r.all {
		suffix := ""
		if p.Severity != refusal {
			suffix = " (" + p.Severity.String() + ")"
		}
		fmt.Fprintf(errOut, "%s%s\n%s", p.Error(), suffix, p.Diff)
	}
	if !r.Good {
		return nil
	}
	if _, err := fmt.Fprintf(out, "%s: good: %d issuers, %d routes, %d tests passed\n", r.File, r.Issuers, r.Routes, r.Tests); err != nil || r.Tests == 0 {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "\nROUTE\tTESTS\tGRANTS\n")
	count := func(n int) string {
		if n == 0 {
			return "-"
		}
		return fmt.Sprint(n)
	}
	var routes, grants, missedRoutes, missedGrants int
	for _, rt := range r.Coverage {
		var each []string
		for i, n := range rt.Grants {
			each = append(each, fmt.Sprintf("allow[%d] %s", i, count(n)))
			if grants++; n == 0 {
				missedGrants++
			}
		}
		if routes++; rt.Tests == 0 {
			missedRoutes++
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", rt.Route, count(rt.Tests), strings.Join(each, ", "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "no test touches %d of %d routes and %d of %d grants\n", missedRoutes, routes, missedGrants, grants)
	return err
}

func (r *checkReport) json(out io.Writer) error {
	for _, p := range r.all {
		r.Problems = append(r.Problems, reported{p.Severity.String(), p.File, p.Line, p.Column, p.Place, p.Message, p.remedy(), p.Diff})
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// github is for the log of a GitHub workflow, which shows such lines beside the
// file that they speak of.
func (r *checkReport) github(out io.Writer) error {
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	message := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	for _, p := range r.all {
		command := p.Severity.String()
		if p.Severity == note {
			command = "notice"
		}
		at := "file=" + property.Replace(p.File)
		if p.Line > 0 {
			at += fmt.Sprintf(",line=%d", p.Line)
		}
		if p.Column > 0 {
			at += fmt.Sprintf(",col=%d", p.Column)
		}
		text := p.Message
		if p.Diff != "" {
			text += "\n" + strings.TrimSuffix(p.Diff, "\n")
		}
		if _, err := fmt.Fprintf(out, "::%s %s,title=durward check::%s\n", command, at, message.Replace(text)); err != nil {
			return err
		}
	}
	return nil
}
