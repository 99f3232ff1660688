package main

import (
	"fmt"
	"slices"
	"strings"
)

// A problem is one thing about the configuration that somebody should look at.
type problem struct {
	File     string
	Line     int // 0 where none can be named
	Column   int // likewise
	Place    string
	Severity severity
	Message  string // begins with the place
	Diff     string // of a policy test that failed: what was wanted and what came
}

// Error is file:line: and what is wrong.
func (p problem) Error() string {
	if p.Line == 0 {
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
}

// remedy is what to do about it: what a message says after its last semicolon, if
// that is an order.
func (p problem) remedy() string {
	i := strings.LastIndex(p.Message, "; ")
	if i < 0 {
		return ""
	}
	said := p.Message[i+2:]
	verb, _, _ := strings.Cut(said, " ")
	if slices.Contains(strings.Fields("add choose did give keep leave list make merge move name put remove repeat restart say start use write"), verb) {
		return said
	}
	return ""
}

// A severity says what follows from a problem. Its zero value refuses.
type severity uint8

const (
	refusal severity = iota // the configuration is not used
	warning                 // allowed, and often not meant
	note                    // true, and perhaps not known
)

// String is the severity as check spells it.
func (s severity) String() string {
	switch s {
	case warning:
		return "warning"
	case note:
		return "note"
	}
	return "error"
}

// problems is a wrong configuration as an error: a line each.
type problems []problem

func (ps problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}
