package httpfeed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"durward/denylist"
)

// look reads the head, which tells a hub from a directory of files, and follows the
// latter for one step.
func (e *endpoint) look(whole context.Context) error {
	ctx, cancel := context.WithTimeout(whole, time.Minute)
	defer cancel()
	header := []string{}
	if e.etag != "" {
		header = append(header, "If-None-Match", e.etag)
	}
	res, err := e.get(ctx, e.base+headPath, header...)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotModified { // no heartbeat either
		wait(ctx, time.Second)
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxHead))
	if err != nil {
		return err
	}
	var at head
	if err := json.Unmarshal(text, &at); err != nil {
		return fmt.Errorf("read %s: %w", headPath, err)
	}
	e.known, e.static = true, !at.Hub
	if !e.static {
		return nil
	}
	e.back()
	if err := e.walk(whole, &at); err != nil {
		e.etag = ""
		return err
	}
	e.etag = res.Header.Get("ETag")
	wait(ctx, time.Second)
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// walk reads what is new in a directory of files.
func (e *endpoint) walk(ctx context.Context, at *head) error {
	base, err := url.Parse(e.base + headPath)
	if err != nil {
		return err
	}
	// A directory's files are its own: an address elsewhere would make us ask anybody.
	file := func(name string) (string, error) {
		u, err := base.Parse(name)
		if err != nil || u.Host != base.Host || u.Scheme != base.Scheme {
			return "", fmt.Errorf("%s names the file %q, which is not beside it", headPath, name)
		}
		return u.String(), nil
	}
	slices.SortStableFunc(at.Segments, func(a, b segment) int { // each chain in its order
		if a.Epoch != b.Epoch {
			return int(min(1, max(-1, a.Epoch-b.Epoch)))
		}
		if a.First < b.First {
			return -1
		}
		return 1
	})
	lost := e.behind(at)
	if !lost {
		for _, s := range at.Segments {
			if e.holds(s.Source, s.Epoch, s.Last) {
				continue
			}
			u, err := file(s.URL)
			if err != nil {
				return err
			}
			switch err := e.segment(ctx, u); {
			case errors.Is(err, denylist.ErrLost) || errors.Is(err, denylist.ErrGap):
				lost = true
			case err != nil:
				return err
			}
		}
	}
	if lost {
		if at.Snapshot == "" {
			return fmt.Errorf("records are missing, and %s names no snapshot", headPath)
		}
		u, err := file(at.Snapshot)
		if err != nil {
			return err
		}
		return e.load(ctx, u)
	}
	return e.follower.Take(lines(at.Heartbeats), time.Now())
}

// behind is whether the segments of a directory begin after the end of what is held.
func (e *endpoint) behind(at *head) bool {
	have := e.follower.After()
	for _, p := range at.Places {
		i := slices.IndexFunc(have, func(h denylist.Head) bool { return h.Source == p.Source })
		if i >= 0 && have[i].Epoch == p.Epoch && have[i].Number >= p.Number {
			continue
		}
		next := uint64(1)
		if i >= 0 && have[i].Epoch == p.Epoch {
			next = have[i].Number + 1
		}
		if !slices.ContainsFunc(at.Segments, func(s segment) bool {
			return s.Source == p.Source && s.Epoch == p.Epoch && s.First <= next && next <= s.Last
		}) {
			return true
		}
	}
	return false
}

func (e *endpoint) holds(source string, epoch int64, number uint64) bool {
	return slices.ContainsFunc(e.follower.After(), func(h denylist.Head) bool {
		return h.Source == source && (h.Epoch > epoch || h.Epoch == epoch && h.Number >= number)
	})
}

func (e *endpoint) segment(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := e.get(ctx, address)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, res.Status)
	}
	r := bufio.NewReaderSize(io.LimitReader(res.Body, maxSegment), 64<<10)
	for {
		line, err := readLine(r)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // of what is missing the chain will tell
		}
		if err != nil {
			return err
		}
		if len(line) > 0 {
			if err := e.follower.Take([][]byte{line}, time.Now()); err != nil {
				return err
			}
		}
	}
}
