package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"durward/denylist"
	"durward/token"
)

// canMake tells whether the directory is there and writable, or could be made.
func canMake(dir string) bool {
	info, err := os.Stat(dir)
	if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
		return canMake(parent)
	}
	const writable = 2 // access(2), W_OK
	return err == nil && info.IsDir() && syscall.Access(dir, writable) == nil
}

// adminToken reads the token that the operators' interface asks for. With create
// it makes one where there is none.
func adminToken(file string, create bool) (string, error) {
	if file == "" {
		return "", errors.New("there is no admin token: configure state_dir or admin_token_file")
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && create {
		text = []byte(rand.Text() + rand.Text() + "\n")
		err = writeFile(file, text)
	}
	if err != nil {
		return "", fmt.Errorf("admin token: %w (state_dir, or $STATE_DIRECTORY of the running gateway, says where it is)", err)
	}
	t := strings.TrimSpace(string(text))
	if len(t) < 16 {
		return "", fmt.Errorf("admin token: %s holds fewer than 16 characters; put a long random one there", file)
	}
	return t, nil
}

const limitsFile = "limits.json"

// readHistory reads which limits on tokens were in force when; see token.Limits.
// Without a state directory, or before the first start, there is no history.
func readHistory(dir string) (map[string][]token.Limits, error) {
	if dir == "" {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, limitsFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // that the directory is none is told with the other problems
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var history map[string][]token.Limits
	if err := json.Unmarshal(text, &history); err != nil {
		return nil, fmt.Errorf("%s: %w; it says which limits tokens were issued under: restore it, or remove it if max_lifetime and leeway were never raised",
			filepath.Join(dir, limitsFile), err)
	}
	return history, nil
}

// writeHistory keeps the history before the limits that it ends with come into
// force. Issuers that are not configured any more are kept: they may come back.
func writeHistory(dir string, history map[string][]token.Limits) error {
	if dir == "" {
		return nil
	}
	text, err := json.MarshalIndent(history, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, limitsFile), text)
}

const lastRunFile = "last-run"

// readLastRun is the earlier of now and the time at which the gateway is known to
// have run before. A machine that starts with its clock ahead must forget nothing. It
// is zero if that is not known: at the first start, too, as nothing tells whether the
// clock is right then.
func readLastRun(dir string, now time.Time) (time.Time, error) {
	path := filepath.Join(dir, lastRunFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return now, err
	}
	last, err := time.Parse(time.RFC3339, string(text))
	if err != nil {
		return now, fmt.Errorf("%s: %w; it says when the gateway last ran: remove it if the clock is right", path, err)
	}
	if last.After(now) {
		return now, nil
	}
	return last, nil
}

// keepLastRun writes the time down each minute until the context ends. Not in the
// first minutes: that is when a wrong clock is set right.
func keepLastRun(ctx context.Context, dir string, log *slog.Logger) {
	const settle = 10 * time.Minute
	began := time.Now()
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			if now.Sub(began) < settle {
				continue
			}
			if err := writeFile(filepath.Join(dir, lastRunFile), now.UTC().AppendFormat(nil, time.RFC3339)); err != nil {
				log.Error("the state directory cannot be written", "error", err)
			}
		}
	}
}

// writeFile replaces the file as a whole or not at all, and durably.
func writeFile(path string, content []byte) error {
	tmp, err := denylist.CreateAnew(path + ".tmp")
	if err != nil {
		return err
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// defaultStateDir is where state is kept if the configuration does not say; ""
// if there is no such place. It makes nothing yet.
func defaultStateDir(dir string) string {
	if systemd, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); systemd != "" {
		return systemd
	}
	beside := filepath.Join(dir, "durward-state")
	if canMake(beside) {
		return beside
	}
	return ""
}
