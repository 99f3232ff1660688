package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// health asks the running gateway for healthz, or readyz, at its health address or
// else that of the operators' interface: what an image without a shell can do to
// find out.
func (c *command) health(ctx context.Context) error {
	path := c.config()
	ready := c.flags.Bool("ready", false, "ask whether it is ready, not merely alive")
	address := c.flags.String("address", "", "`host:port` to ask; default: health of the configuration, else admin")
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	if *address == "" {
		f, err := parseFile(*path)
		if err != nil {
			return err
		}
		if f.garbled {
			return problems(f.sorted())
		}
		if *address = f.Health; *address == "" {
			*address = f.Admin
		}
	}
	at, err := adminAddress(*address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	probe := "/healthz"
	if *ready {
		probe = "/readyz"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+probe, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{Proxy: nil}}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("is the gateway running? %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	text := strings.TrimSpace(string(answer))
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s: %s", at, res.Status, text)
	}
	_, err = fmt.Fprintln(c.stdout, text)
	return err
}
