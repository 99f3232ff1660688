package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"durward/denylist"
	"durward/denylist/filefeed"
	"durward/token"
)

// load builds the configuration as serve would, but for a single question: it
// listens to nothing and changes nothing.
func load(path string) (*built, []problem) {
	f, err := parseFile(path)
	if err != nil {
		return nil, []problem{{File: path, Message: err.Error()}}
	}
	if f.StateDir == "" {
		f.StateDir = defaultStateDir(f.dir)
	}
	history, err := readHistory(f.StateDir)
	if err != nil {
		return nil, []problem{{File: path, Message: err.Error()}}
	}
	list := denylist.New(f.Denylist.MaxEntries)
	b, wrong := buildFile(path, world{generation: 1, list: list, history: history, now: time.Now()})
	if wrong == nil {
		list.SetMaxEntries(b.config.Denylist.MaxEntries)
		list.SetIssuers(b.limits)
	}
	return b, wrong
}

// catchUp fetches keys and reads revocations once, as a running gateway would
// have done. What fails is said, and decides as it would there.
func (c *command) catchUp(ctx context.Context, b *built) {
	quiet := slog.New(slog.NewTextHandler(c.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for _, issuer := range b.issuers {
		if err := issuer.Keys().Refresh(ctx); err != nil {
			fmt.Fprintf(c.stderr, "issuer %q: %v\n", issuer.Name(), err)
		}
	}
	list := b.snapshot.Denied
	now := time.Now()
	if b.config.StateDir != "" {
		if s, err := denylist.OpenSnapshot(filepath.Join(b.config.StateDir, snapshotFile), nil); err == nil {
			if _, err := s.Restore(list, true); err != nil {
				fmt.Fprintf(c.stderr, "%v\n", err)
			}
			s.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(c.stderr, "%v\n", err)
		}
		held, err := denylist.ReadJournal(b.config.StateDir, quiet)
		if held == nil && err == nil {
			fmt.Fprintf(c.stderr, "no journal in %s: if the gateway keeps its state elsewhere (state_dir, $STATE_DIRECTORY), what was revoked through it is not seen here\n", b.config.StateDir)
		}
		if err == nil {
			_, err = list.Add(held, now)
		}
		if err != nil {
			fmt.Fprintf(c.stderr, "journal: %v\n", err)
		}
	}
	for _, config := range b.config.Denylist.Feeds {
		f := &feed{config: config, source: list.Candidate(config.Name, b.config.Denylist.Lease)}
		if err := f.readOnce(ctx, list, b, quiet); err != nil {
			fmt.Fprintf(c.stderr, "feed %q: %v\n", config.Name, err)
		}
		list.Join(f.source)
	}
}

// readOnce reads a feed until it is in step, for one question.
func (f *feed) readOnce(ctx context.Context, list *denylist.List, b *built, log *slog.Logger) error {
	if f.config.File != "" {
		return filefeed.Read(f.config.File, list, f.source, func(rs []denylist.Revocation, now time.Time) error {
			_, err := f.source.Apply(rs, now)
			return err
		}, time.Now())
	}
	if err := f.open(list, b, &fleet{}, nil, log); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.config.Denylist.Lease)
	defer cancel()
	if f.stream != nil {
		return f.stream.Sync(ctx)
	}
	return f.http.Sync(ctx)
}

func (c *command) revoke(ctx context.Context) error {
	path := c.config()
	line := map[string]any{}
	text := func(name, help string) *string { return c.flags.String(name, "", help) }
	issuer := text("iss", "name or URL of the `issuer` of what is revoked; may be left out where one is configured")
	named := map[string]*string{
		"jti": text("jti", "one token, by its `id`"), "sid": text("sid", "one session, by its `id`"),
		"sub": text("sub", "all tokens of a `subject`"), "client": text("client", "all tokens of an OAuth `client`"),
	}
	all := c.flags.Bool("all", false, "all tokens of the issuer")
	before := text("before", "revoke what was issued at or before this `time` (RFC 3339, or seconds since 1970); default now, for -sub, -client and -all")
	expiry := text("exp", "remember the revocation at least until this `time`")
	reason := text("reason", "a `text` for the log")
	wait := c.flags.Bool("wait", false, "wait until every gateway of the fleet has confirmed that it enforces the revocation, and list them; needs a NATS or Redis feed")
	within := c.flags.Duration("timeout", waitFor, "how long -wait waits at most")
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	count := 0
	for name, value := range named {
		if *value != "" {
			line[name] = *value
			count++
		}
	}
	if *all {
		count++
	}
	if count != 1 {
		return usageError{errors.New("give exactly one of -jti, -sid, -sub, -client and -all")}
	}
	for name, value := range map[string]string{"before": *before, "exp": *expiry} {
		if value == "" {
			continue
		}
		t, err := parseTime(value)
		if err != nil {
			return usageError{fmt.Errorf("-%s: %w", name, err)}
		}
		line[name] = t
	}
	if *reason != "" {
		line["reason"] = *reason
	}
	f, err := parseFile(*path)
	if err != nil {
		return err
	}
	if f.garbled {
		return problems(f.sorted())
	}
	if *issuer != "" {
		line["iss"] = *issuer
		for _, i := range f.Issuers {
			if i.Name == *issuer {
				line["iss"] = i.Issuer
			}
		}
	}
	if *all {
		if *issuer == "" && len(f.Issuers) == 1 {
			line["iss"] = f.Issuers[0].Issuer
		}
		if line["iss"] == nil {
			return usageError{errors.New("-all needs -iss: several issuers are configured")}
		}
		if line["before"] == nil {
			line["before"] = json.Number(strconv.FormatInt(time.Now().Add(f.skew(line["iss"])).Unix()+1, 10))
		}
	}
	question := ""
	if *wait {
		question = "?wait=all&timeout=" + within.String()
		if _, _, err := waiting(url.Values{"wait": {"all"}, "timeout": {within.String()}}); err != nil {
			return usageError{err}
		}
	}
	return c.post(ctx, &f.Config, line, question)
}

// skew is how far ahead the tokens of the issuer may be dated.
func (f *configFile) skew(issuer any) time.Duration {
	for _, i := range f.Issuers {
		if i.Issuer == issuer && i.Skew != nil {
			return *i.Skew
		}
	}
	return token.DefaultSkew
}

func parseTime(s string) (json.Number, error) {
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return json.Number(s), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return "", fmt.Errorf("%q is neither seconds since 1970 nor RFC 3339, such as 2026-01-31T12:00:00Z", s)
	}
	return json.Number(strconv.FormatInt(t.Unix(), 10)), nil
}

// post hands the line to the running gateway.
func (c *command) post(ctx context.Context, config *Config, line map[string]any, question string) error {
	body, err := json.Marshal(line)
	if err != nil {
		return err
	}
	answer, err := askGateway(ctx, config, "", "/revocations"+question, body)
	if err != nil {
		return err
	}
	var said struct {
		Lines    []lineResult
		Scope    string
		Problem  string `json:"scope_problem"`
		Enforced *struct {
			denylist.Enforced
			Problem string `json:"problem"`
		} `json:"enforced"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return fmt.Errorf("the gateway's answer: %w", err)
	}
	for _, l := range said.Lines {
		if l.Note != "" {
			fmt.Fprintln(c.stderr, l.Note)
		}
	}
	if said.Problem != "" {
		fmt.Fprintln(c.stderr, "not for the whole fleet yet:", said.Problem)
	}
	if _, err = fmt.Fprintf(c.stdout, "revoked: %s (scope: %s)\n", body, said.Scope); err != nil || said.Enforced == nil {
		return err
	}
	e := said.Enforced
	for _, at := range e.Each {
		fmt.Fprintf(c.stdout, "enforced at %s after %.1f ms\n", at.Name, at.Milliseconds)
	}
	for _, m := range e.Missing {
		if m.Problem == "" {
			m.Problem = "its lease has fenced it by " + m.FencedBy.Format(time.RFC3339Nano)
		}
		fmt.Fprintf(c.stdout, "not confirmed by %s: %s\n", m.Name, m.Problem)
	}
	switch {
	case e.Problem != "":
		return errors.New(e.Problem)
	case len(e.Missing) > 0:
		return fmt.Errorf("%d of %d gateways have confirmed", e.Confirmed, e.Gateways)
	}
	return nil
}

// adminAddress is where the running gateway's operators' interface is reached from
// this machine.
func adminAddress(address string) (string, error) {
	if address == "" {
		address = defaultAdmin
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("admin: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// askGateway posts to the operators' interface of the running gateway, at the
// configured address or another, and returns what it answers with 200.
func askGateway(ctx context.Context, config *Config, address, path string, body []byte) ([]byte, error) {
	if config.StateDir == "" {
		config.StateDir = defaultStateDir(config.dir)
	}
	if config.AdminTokenFile == "" && config.StateDir != "" {
		config.AdminTokenFile = filepath.Join(config.StateDir, "admin.token")
	}
	secret, err := adminToken(config.AdminTokenFile, false)
	if err != nil {
		return nil, err
	}
	if address == "" {
		address = config.Admin
	}
	if address, err = adminAddress(address); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, waitMost+10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	client := http.Client{Transport: &http.Transport{Proxy: nil}} // the token is for the gateway alone
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("is the gateway running? %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusAccepted {
		return nil, fmt.Errorf("the gateway answered %s: %s", res.Status, bytes.TrimSpace(answer))
	}
	return answer, nil
}
