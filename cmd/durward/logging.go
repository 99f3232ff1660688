package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"math"
	"strings"
	"time"

	"durward/decision"
)

// A leveled handler is one of several that write through the same, each from a
// level of its own.
type leveled struct {
	slog.Handler
	level slog.Leveler
}

func (h leveled) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

func (h leveled) WithAttrs(as []slog.Attr) slog.Handler {
	return leveled{h.Handler.WithAttrs(as), h.level}
}

func (h leveled) WithGroup(name string) slog.Handler {
	return leveled{h.Handler.WithGroup(name), h.level}
}

// A stray writer takes what libraries say to the standard logger, without what they
// quote: net/http quotes what an upstream sent unasked, be it a session cookie.
type stray struct{ log *slog.Logger }

func (s stray) Write(line []byte) (int, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(line)), `"`)
	s.log.Warn("a library says", "text", text[:min(len(text), 200)])
	return len(line), nil
}

// setLevels says what is logged from now on. In audit mode, requests and
// revocations are whatever the level, and what is no warning of the rest is not.
func (g *gateway) setLevels(b *built) {
	all, audit := b.level, b.level
	if b.config.Log.Audit {
		all, audit = max(all, slog.LevelWarn), min(audit, slog.LevelInfo)
	}
	g.level.Set(all)
	g.auditLevel.Set(audit)
}

// logged is whether the log has a line for the request. A request that passed and
// was cut, or that passes for a trial alone, is no ordinary one.
func (g *gateway) logged(rec *decision.Record, c *LogConfig) bool {
	switch {
	case rec.Verdict != decision.Allow:
		return g.sampler.pass(rec.Reason, time.Now(), c.Refusals)
	case rec.Cut != "" || rec.Shadow != decision.Unset:
		return true
	}
	return !c.Audit && inSample(rec.ID, *c.Sample)
}

// inSample goes by the request's id, so that gateways that a request passes one
// after the other agree.
func inSample(id string, share float64) bool {
	if share >= 1 || share <= 0 {
		return share >= 1
	}
	sum := sha256.Sum256([]byte(id))
	return float64(binary.BigEndian.Uint64(sum[:])) < share*math.MaxUint64
}

// logRequest writes the request's one line.
func (g *gateway) logRequest(rec *decision.Record) {
	level := slog.LevelInfo
	switch {
	case rec.Reason == decision.Internal:
		level = slog.LevelError
	case rec.Verdict != decision.Allow:
		level = slog.LevelWarn
	}
	switch {
	case !g.audit.Enabled(context.Background(), level):
	case !g.logsText:
		line := g.lines.Get().(*[]byte)
		b := rec.Time.Add(rec.Took).AppendFormat(append((*line)[:0], `{"time":"`...), time.RFC3339Nano)
		b = append(append(append(b, `","level":"`...), level.String()...), `","msg":"request","decision":`...)
		*line = append(rec.AppendJSON(b), "}\n"...)
		g.logs.note(*line)
		g.lines.Put(line)
	default:
		g.audit.LogAttrs(context.Background(), level, "request", slog.Any("decision", rec))
	}
}
