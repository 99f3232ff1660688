package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"durward/denylist/natsfeed"
	"durward/denylist/redisfeed"
)

// feed is durward feed init and durward feed release.
func (c *command) feed(ctx context.Context) error {
	switch {
	case len(c.args) > 0 && c.args[0] == "init":
		return c.feedInit(ctx)
	case len(c.args) > 0 && c.args[0] == "release":
		return c.feedRelease(ctx)
	}
	return usageError{errors.New("write: durward feed init, or durward feed release")}
}

// feedRelease decides about what a source said over its budget, at the running
// gateway of this configuration.
func (c *command) feedRelease(ctx context.Context) error {
	path := c.config()
	key := c.flags.String("key", "", "the `name` in source_keys of whose operations are decided about")
	drop := c.flags.Bool("drop", false, "forget them; default: enforce them")
	c.args = c.args[1:]
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	if *key == "" {
		return usageError{errors.New("give -key, one of source_keys")}
	}
	f, err := parseFile(*path)
	if err != nil {
		return err
	}
	if f.garbled {
		return problems(f.sorted())
	}
	body, err := json.Marshal(map[string]any{"key": *key, "drop": *drop})
	if err != nil {
		return err
	}
	answer, err := askGateway(ctx, &f.Config, "", "/quarantine", body)
	if err != nil {
		return err
	}
	var said struct{ Operations int }
	if err := json.Unmarshal(answer, &said); err != nil {
		return fmt.Errorf("the gateway's answer: %w", err)
	}
	what := "enforced now"
	if *drop {
		what = "dropped"
	}
	_, err = fmt.Fprintf(c.stdout, "%d operations of %s are %s at this gateway\n", said.Operations, *key, what)
	return err
}

// feedInit makes what the engines of the configured feeds need where it is missing,
// and checks it where it is there.
func (c *command) feedInit(ctx context.Context) error {
	path := c.config()
	replicas := c.flags.Int("replicas", 1, "`servers` of a NATS cluster that keep each message and snapshot: 1, 3 or 5")
	maxAge := c.flags.Duration("max-age", 72*time.Hour, "how long NATS keeps messages; who was away for longer needs a snapshot")
	maxBytes := c.flags.Int64("max-bytes", 1<<30, "how many `bytes` of messages NATS keeps at most; when they are full, nothing more can be revoked")
	c.args = c.args[1:]
	if err := c.parse(0, "none"); err != nil {
		return err
	}
	b, wrong := load(*path)
	if wrong != nil {
		return problems(wrong)
	}
	defer b.cache.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	engines := 0
	for _, feed := range b.config.Denylist.Feeds {
		var did []string
		var err error
		switch {
		case feed.NATS != nil:
			did, err = natsfeed.Init(ctx, *feed.NATS, natsfeed.Storage{Replicas: *replicas, MaxAge: *maxAge, MaxBytes: *maxBytes})
		case feed.Redis != nil:
			did, err = redisfeed.Init(ctx, *feed.Redis)
		default:
			continue
		}
		engines++
		for _, line := range did {
			fmt.Fprintf(c.stdout, "feed %q: %s\n", feed.Name, line)
		}
		if err != nil {
			return fmt.Errorf("feed %q: %w", feed.Name, err)
		}
	}
	if engines == 0 {
		return fmt.Errorf("%s has no feed of NATS or Redis", *path)
	}
	return nil
}
