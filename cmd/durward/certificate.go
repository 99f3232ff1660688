package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// A certificate is the listeners' key pair. It is read again when its files
// change; if they cannot be read, the last good one stays.
type certificate struct {
	files  TLSConfig
	pair   atomic.Pointer[tls.Certificate]
	stamps [2]os.FileInfo // as last tried; used by load alone
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if pair := c.pair.Load(); pair != nil {
		return pair, nil
	}
	return nil, errors.New("no certificate is loaded")
}

// changed notes what the files look like and tells whether that is news.
func (c *certificate) changed() bool {
	changed := false
	for i, file := range [...]string{c.files.CertFile, c.files.KeyFile} {
		info, err := os.Stat(file)
		if err != nil {
			continue // between the removal and the renaming of a replacement
		}
		old := c.stamps[i]
		if old == nil || !os.SameFile(old, info) || !old.ModTime().Equal(info.ModTime()) || old.Size() != info.Size() {
			c.stamps[i], changed = info, true
		}
	}
	return changed
}

func (c *certificate) load() error {
	c.changed()
	pair, err := tls.LoadX509KeyPair(c.files.CertFile, c.files.KeyFile)
	if err != nil {
		return err
	}
	c.pair.Store(&pair)
	return nil
}

// run looks at the files each second until the context ends.
func (c *certificate) run(ctx context.Context, log *slog.Logger) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	failed := false // to try again: key and certificate are seldom replaced at one moment
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if !c.changed() && !failed {
			continue
		}
		err := c.load()
		switch {
		case err != nil && !failed:
			log.Error("the new TLS certificate cannot be used; the old one stays", "error", err)
		case err == nil:
			log.Info("the TLS certificate was replaced", "not_after", c.pair.Load().Leaf.NotAfter)
		}
		failed = err != nil
	}
}
