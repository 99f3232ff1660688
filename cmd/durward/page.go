package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"durward/decision"
)

//go:embed status.html
var statusHTML string

// statusPage needs nothing from elsewhere and no script; what is of people is not on it.
var statusPage = template.Must(template.New("status").Funcs(template.FuncMap{
	"ago": func(seconds *float64) string {
		if seconds == nil {
			return "never"
		}
		return roughly(time.Duration(*seconds*float64(time.Second))) + " ago"
	},
	"clock":  func(t time.Time) string { return t.UTC().Format("15:04:05") },
	"bytes":  megabytes,
	"number": thousands,
	"short": func(s string) string {
		if len(s) > 12 {
			return s[:12]
		}
		return s
	},
}).Parse(statusHTML))

// roughly is a duration as people say it.
func roughly(d time.Duration) string {
	switch {
	case d < time.Second:
		return "less than a second"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func megabytes(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", (n+1023)/1024)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// thousands sets a number's digits apart.
func thousands(v any) string {
	text := fmt.Sprint(v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return text
}

// A bar is five seconds on the chart: heights of what was let through and, on top, of
// what was refused, as parts of a hundred.
type bar struct{ X, AllowedY, Allowed, RefusedY, Refused float64 }

// chart draws the last ten minutes; most is the highest rate, in requests a second.
func chart(slots []slot) (bars []bar, most float64) {
	top := 1
	for _, s := range slots {
		top = max(top, s.allowed+s.refused)
	}
	scale := 100 / float64(top)
	for i, s := range slots {
		if s.allowed+s.refused == 0 {
			continue
		}
		a, r := float64(s.allowed)*scale, float64(s.refused)*scale
		bars = append(bars, bar{float64(i) * 5, 100 - a, a, 100 - a - r, r})
	}
	return bars, float64(top) / boardSlot.Seconds()
}

// A routeLine is a route on the page.
type routeLine struct {
	Name, Path, Upstream string
	Requests             uint64
	Refused              []count
}

// wantsPage is whether a browser asks, and not a program: that says what it takes.
func wantsPage(r *http.Request) bool {
	for _, accepted := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(accepted, ",") {
			kind, _, _ := strings.Cut(strings.TrimSpace(part), ";")
			switch kind {
			case "application/json":
				return false
			case "text/html":
				return true
			}
		}
	}
	return false
}

// serveStatusPage shows the status to people.
func (g *gateway) serveStatusPage(w http.ResponseWriter, said map[string]any) {
	now := time.Now()
	b := g.current.Load()
	var routes []routeLine
	for _, rt := range b.snapshot.Policy.Routes() {
		line := routeLine{Name: rt.Name, Path: rt.Pattern(), Upstream: b.snapshot.Routes[rt.Index].Upstream.Name}
		line.Requests, line.Refused = g.board.route(rt.Name)
		routes = append(routes, line)
	}
	elsewhere, refused := g.board.route("")
	slots := g.board.recent(now)
	bars, most := chart(slots)
	stats := g.list.Stats()
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	statusPage.Execute(w, map[string]any{ // who is gone does not mind
		"Said": said, "Now": now.UTC().Format("2006-01-02 15:04:05 MST"), "Name": b.config.Instance,
		"Routes": routes, "Elsewhere": elsewhere, "ElsewhereRefused": refused, "Latest": g.board.latest(),
		"Bars": bars, "Most": fmt.Sprintf("%.1f", most), "Full": float64(stats.Total) / float64(max(stats.Max, 1)) * 100,
		"Reload": g.reloadProblem.Load(), "Live": g.list.State("", now).String() == "live",
		"Bytes": stats.Bytes, "Total": stats.Total, "Max": stats.Max,
		"Quiet": !slices.ContainsFunc(slots, func(s slot) bool { return s.allowed+s.refused > 0 }),
		"Bug":   decision.Internal,
	})
}
