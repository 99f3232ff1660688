//go:build linux

// Bench measures what the gateway costs, beside a bare reverse proxy and other
// gateways, in one interleaved run:
//
//	go run ./test/bench                        all that is installed, a few minutes
//	go run ./test/bench -only 'one token|bare' -rounds 9 -seconds 5
//
// The candidate runs alone on CPU 0, the upstream and the load generator (two small C
// programs, compiled with cc) on CPU 1. Rounds go through all candidates in turn, so
// that what disturbs the machine disturbs all of them. The figure that noise harms
// least is the CPU time of the candidate's process for each request. Every answer is
// checked: a wrong one ends the run.
//
// HAProxy, nginx and Caddy are measured where they are installed (apt-get install
// haproxy nginx caddy); what is missing is named.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "reverse-proxy" {
		if err := reverseProxy(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var r rig
	only := flag.String("only", "", "a regular `expression`: measure the candidates whose name it matches")
	output := flag.String("o", "", "write the table to this `file` rather than to standard output")
	flag.StringVar(&r.profile, "profile", "", "write a CPU profile of the gateway, cached and new tokens and refusals, to this `file`, and measure nothing")
	flag.StringVar(&r.against, "against", "", "measure this other build of the gateway, too: a `file`")
	flag.IntVar(&r.rounds, "rounds", 5, "how often each candidate is measured")
	flag.DurationVar(&r.length, "length", 3*time.Second, "of a measurement")
	flag.IntVar(&r.connections, "connections", 64, "that are kept alive")
	flag.IntVar(&r.entries, "entries", 10_000_000, "of the denylist, where it is full")
	flag.IntVar(&r.routes, "routes", 10_000, "where there are many")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, &r, *only, *output)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, r *rig, only, output string) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if err := r.prepare(ctx); err != nil {
		return err
	}
	defer r.close()
	if r.profile != "" {
		return r.record(ctx)
	}
	all := slices.DeleteFunc(r.candidates(), func(c *candidate) bool { return !wanted.MatchString(c.name) })
	if len(all) == 0 {
		return fmt.Errorf("no candidate's name matches %q", only)
	}
	for round := range r.rounds {
		for _, c := range all {
			if c.missing != "" {
				continue
			}
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-60s", round+1, r.rounds, c.name)
			if err := r.measure(ctx, c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	fmt.Fprintf(os.Stderr, "\r%80s\r", "")
	var out io.Writer = os.Stdout
	if output != "" {
		f, err := os.Create(output)
		if err != nil {
			return err
		}
		defer f.Close()
		out = f
	}
	_, err = io.WriteString(out, r.table(all))
	return err
}

// table is what was measured, in Markdown.
func (r *rig) table(all []*candidate) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d rounds of %s, %d connections, 1 KiB answers. Medians, in brackets the least and the most. One signature check of crypto/rsa here takes %.1f µs.\n\n", r.rounds, r.length, r.connections, r.verify.Seconds()*1e6)
	b.WriteString("| candidate | requests/s | CPU µs/request | × bare | p50 ms | p99 ms | peak MiB | ready after ms |\n|---|---|---|---|---|---|---|---|\n")
	var bare float64
	for _, c := range all {
		if c.name == bareName && c.missing == "" {
			bare = median(c.cpu)
		}
	}
	var missing []string
	for _, c := range all {
		if c.missing != "" {
			missing = append(missing, c.name+" ("+c.missing+")")
			continue
		}
		times := "–"
		if bare > 0 && !c.shared {
			times = fmt.Sprintf("%.2f", median(c.cpu)/bare)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %.0f | %.0f |\n", c.name, spread(c.rate, "%.0f"), spread(c.cpu, "%.1f"), times,
			spread(c.p50, "%.2f"), spread(c.p99, "%.2f"), float64(c.server.peak)/(1<<20), c.server.ready.Seconds()*1000)
	}
	if missing != nil {
		fmt.Fprintf(&b, "\nNot measured: %s.\n", strings.Join(missing, ", "))
	}
	return b.String()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func spread(values []float64, format string) string {
	return fmt.Sprintf(format+" ("+format+"–"+format+")", median(values), slices.Min(values), slices.Max(values))
}
