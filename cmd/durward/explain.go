package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"durward/decision"
	"durward/proxy"
	"durward/token"
)

// headerFlags collects -header flags.
type headerFlags map[string][]string

func (h headerFlags) String() string { return "" }

func (h headerFlags) Set(s string) error {
	name, value, ok := strings.Cut(s, ":")
	if !ok {
		return errors.New("write 'Name: value'")
	}
	name = http.CanonicalHeaderKey(strings.TrimSpace(name))
	h[name] = append(h[name], strings.TrimSpace(value))
	return nil
}

// An adminFlag is -admin, or -admin=ADDRESS.
type adminFlag struct {
	set     bool
	address string // "": the configured one
}

func (a *adminFlag) String() string { return a.address }

// IsBoolFlag lets the flag stand without a value.
func (a *adminFlag) IsBoolFlag() bool { return true }

func (a *adminFlag) Set(s string) error {
	switch s {
	case "true":
		a.set = true
	case "false":
		*a = adminFlag{}
	default:
		*a = adminFlag{true, s}
	}
	return nil
}

// explain prints the decision about a request: by the configuration file, with keys
// and revocations read for this question, or by the running gateway with its own.
func (c *command) explain(ctx context.Context) error {
	path := c.config()
	tokenFile := c.flags.String("token-file", "", "a `file` with the token, sent as bearer token")
	claims := c.flags.String("claims", "", "suppose a verified token with these claims, a `JSON` object")
	issuer := c.flags.String("iss", "", "name or URL of the `issuer` of -claims; default: the first")
	asJSON := c.flags.Bool("json", false, "print JSON")
	var admin adminFlag
	c.flags.Var(&admin, "admin", "ask the running gateway, with its keys and revocations of now; -admin=`address` where it listens elsewhere than the file says")
	headers := headerFlags{}
	c.flags.Var(headers, "header", "a header `field` of the request, 'Name: value'; may be repeated")
	if err := c.parse(2, "METHOD URL"); err != nil {
		return err
	}
	q := explainQuestion{Method: c.flags.Arg(0), URL: c.flags.Arg(1), Headers: headers, Issuer: *issuer}
	if _, err := proxy.Hypothetical(q.Method, q.URL, nil); err != nil {
		return usageError{err} // before any key is fetched
	}
	if *tokenFile != "" && *claims != "" {
		return usageError{errors.New("-token-file brings a token and -claims supposes one; give one of them")}
	}
	if *tokenFile != "" {
		raw, err := os.ReadFile(*tokenFile)
		if err != nil {
			return err
		}
		headers["Authorization"] = append(headers["Authorization"], "Bearer "+strings.TrimSpace(string(raw)))
	}
	if *claims != "" {
		d := json.NewDecoder(strings.NewReader(*claims))
		d.UseNumber()
		err := d.Decode(&q.Claims)
		if err == nil && (q.Claims == nil || d.More()) {
			err = errors.New(`write one, such as {"sub":"alice"}`)
		}
		if err != nil {
			return usageError{fmt.Errorf("-claims is not a JSON object: %w", err)}
		}
	}
	var e explanation
	var err error
	if admin.set {
		e, err = c.explainRunning(ctx, *path, admin.address, q)
	} else {
		e, err = c.explainFile(ctx, *path, q)
	}
	if err != nil {
		return err
	}
	if *asJSON {
		encoder := json.NewEncoder(c.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(e)
	}
	_, err = io.WriteString(c.stdout, e.text(isTerminal(c.stdout)))
	return err
}

// explainRunning asks the gateway that serves.
func (c *command) explainRunning(ctx context.Context, path, address string, q explainQuestion) (e explanation, err error) {
	f, err := parseFile(path)
	if err != nil {
		return e, err
	}
	if f.garbled {
		return e, problems(f.sorted())
	}
	body, err := json.Marshal(q)
	if err != nil {
		return e, err
	}
	answer, err := askGateway(ctx, &f.Config, address, "/explain", body)
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(answer, &e); err != nil {
		return e, fmt.Errorf("the gateway's answer: %w", err)
	}
	return e, nil
}

// explainFile decides by the file.
func (c *command) explainFile(ctx context.Context, path string, q explainQuestion) (e explanation, err error) {
	b, wrong := load(path)
	if wrong != nil {
		return e, problems(wrong)
	}
	defer b.cache.Close()
	if q.Claims == nil {
		c.catchUp(ctx, b)
	}
	rec, err := b.explain(ctx, q)
	if err != nil {
		return e, usageError{err}
	}
	e = newExplanation(rec)
	e.Asked = path + ", with the keys and revocations that were found now"
	return e, nil
}

// isTerminal tells whether the output is looked at by a person whose terminal takes
// colours (https://no-color.org).
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// text is the explanation for a person: a line for each step, marked as it went,
// then the verdict, and what would change it.
func (e explanation) text(colour bool) string {
	const red, green, dim, bold, off = "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"
	paint := func(code, s string) string {
		if !colour {
			return s
		}
		return code + s + off
	}
	var b strings.Builder
	line := func(name, mark, text string) { fmt.Fprintf(&b, "%-11s %s %s\n", name, mark, text) }
	for _, s := range e.Steps {
		switch s.Mark {
		case decision.Passed:
			line(s.Name, paint(green, "✓"), printable(s.Text))
		case decision.Failed:
			line(s.Name, paint(red, "✗"), printable(s.Text))
		default:
			line(s.Name, "·", printable(s.Text))
		}
	}
	verdict := fmt.Sprintf("%s (%s)", e.Verdict, e.Reason)
	mark, code := "✗", red
	if e.Verdict == decision.Allow.String() {
		mark, code = "✓", green
	}
	verdict = paint(bold+code, verdict)
	if e.Detail != "" {
		verdict += ": " + printable(e.Detail)
	}
	if e.Shadow != decision.Unset {
		verdict += fmt.Sprintf("; under trial: would be %s (%s)", e.Shadow.Verdict(), e.Shadow)
	}
	line("verdict", paint(code, mark), verdict)
	if e.Status != 0 {
		line("answer", "·", fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status)))
	}
	if e.Verdict != decision.Allow.String() {
		_, remedy := about(e.Reason)
		line("what to do", "·", remedy)
	}
	line("asked", "·", paint(dim, e.Asked))
	return b.String()
}

// printable lets nothing of a request steer the terminal that it is shown on.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '�'
		}
		return r
	}, s)
}

// An explainQuestion is the body of POST /explain: a request, as it would come,
// or claims that its token is supposed to have.
type explainQuestion struct {
	Method  string              `json:"method"`
	URL     string              `json:"url"`
	Headers map[string][]string `json:"headers"`
	Claims  map[string]any      `json:"claims"`
	Issuer  string              `json:"issuer"`
}

// UnmarshalJSON lets a header have one value without a list around it.
func (q *explainQuestion) UnmarshalJSON(text []byte) error {
	type plain explainQuestion
	raw := struct {
		*plain
		Headers map[string]any `json:"headers"`
	}{plain: (*plain)(q)}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&raw); err != nil {
		return err
	}
	q.Headers = map[string][]string{}
	for name, v := range raw.Headers {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, e := range list {
			s, ok := e.(string)
			if !ok {
				return fmt.Errorf("header %q: a value is not a string", name)
			}
			q.Headers[name] = append(q.Headers[name], s)
		}
	}
	return nil
}

// serveExplain decides about a request with the live keys and denylist, and sends
// nothing on.
func (g *gateway) serveExplain(w http.ResponseWriter, r *http.Request) {
	var q explainQuestion
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&q); err != nil {
		adminError(w, http.StatusBadRequest, fmt.Sprintf("%v; send method, url, and headers or claims", err))
		return
	}
	b := g.current.Load()
	rec, err := b.explain(r.Context(), q)
	if err != nil {
		adminError(w, http.StatusBadRequest, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, newExplanation(rec))
}

// explain asks the snapshot about a hypothetical request.
func (b *built) explain(ctx context.Context, q explainQuestion) (*decision.Record, error) {
	header := http.Header{}
	for name, values := range q.Headers {
		for _, v := range values {
			header.Add(name, v)
		}
	}
	r, err := proxy.Hypothetical(q.Method, q.URL, header)
	if err != nil {
		return nil, err
	}
	rec := &decision.Record{Time: time.Now(), Generation: b.snapshot.Generation, Trace: &decision.Trace{}}
	if q.Claims == nil {
		b.snapshot.Decide(r.WithContext(ctx), rec)
		return rec, nil
	}
	at := 0
	if q.Issuer != "" {
		at = slices.IndexFunc(b.issuers, func(i *token.Issuer) bool { return i.Name() == q.Issuer || i.URL() == q.Issuer })
	}
	if at < 0 {
		return nil, fmt.Errorf("%q is neither the name nor the URL of a configured issuer", q.Issuer)
	}
	issuer := b.issuers[at]
	claims, err := issuer.Suppose(q.Claims, rec.Time)
	if err != nil {
		return nil, err
	}
	b.snapshot.Suppose(r.WithContext(ctx), claims, rec)
	return rec, nil
}

// An explanation is a decision as JSON.
type explanation struct {
	Verdict string          `json:"verdict"`
	Reason  decision.Reason `json:"reason"`
	Shadow  decision.Reason `json:"shadow,omitempty"`
	Status  int             `json:"status,omitempty"` // of the refusal
	Detail  string          `json:"detail,omitempty"`
	Route   string          `json:"route,omitempty"`
	Grant   string          `json:"grant,omitempty"`
	Steps   []decision.Step `json:"steps"`
	Asked   string          `json:"asked"` // who decided
}

func newExplanation(rec *decision.Record) explanation {
	status := rec.Status
	if status == 0 {
		status = rec.Reason.Status()
	}
	return explanation{rec.Verdict.String(), rec.Reason, rec.Shadow, status, rec.Detail, rec.Route, rec.Grant, rec.Trace.Steps(), fmt.Sprintf("the running gateway, configuration generation %d", rec.Generation)}
}
