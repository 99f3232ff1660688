package httpfeed

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"time"

	"durward/denylist"
)

// An endpoint is one address of a feed.
type endpoint struct {
	*Feed
	base      string
	static    bool      // a directory of files
	known     bool      // static was found out
	etag      string    // of the head of a directory of files
	has       []string  // the sources that are handed on there; nil: not known yet
	pollUntil time.Time // streams do not get through
	lost      bool      // and that was logged
}

func (e *endpoint) run(ctx context.Context) {
	pause := shortPause
	for ctx.Err() == nil {
		began, looking := time.Now(), !e.known
		err := e.session(ctx)
		if ctx.Err() != nil {
			return
		}
		// That a hub is there, which is looked at after each failure, is not yet success.
		if err == nil && !(looking && !e.static) || time.Since(began) > silence {
			pause = shortPause
		}
		if err == nil {
			wait(ctx, 2*time.Millisecond) // whatever answers at once must not take all of a processor
			continue
		}
		e.known = false // another kind of server may have taken its place
		e.source.Failed(fmt.Errorf("%s: %w", e.base, err))
		if !e.lost && !errors.Is(err, denylist.ErrGap) && !errors.Is(err, denylist.ErrLost) {
			e.lost = true
			e.log.Error("a hub of the revocation feed is not followed; what it said so far stays in force", "feed", e.source.Name(), "hub", e.base, "error", err)
		}
		if errors.Is(err, denylist.ErrFull) {
			pause = 10 * time.Second // a snapshot is large, and room does not come by itself
		}
		wait(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, longPause)
	}
}

// back is called for each sign that the address is followed.
func (e *endpoint) back() {
	if e.lost {
		e.lost = false
		e.log.Info("a hub of the revocation feed is followed again", "feed", e.source.Name(), "hub", e.base)
	}
}

// session follows the address until something goes wrong, or for one answer.
func (e *endpoint) session(ctx context.Context) error {
	if !e.known || e.static {
		return e.look(ctx)
	}
	if e.cfg.Poll || time.Now().Before(e.pollUntil) {
		return e.poll(ctx)
	}
	return e.stream(ctx)
}

func (e *endpoint) get(ctx context.Context, path string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	if token := e.bearer(); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusNotModified, http.StatusGone:
		return res, nil
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	return nil, fmt.Errorf("%s: %q", res.Status, bytes.TrimSpace(text))
}

// after says where to go on at this address. Other addresses may hand on sources
// that this one never heard of.
func (e *endpoint) after() string {
	heads := slices.DeleteFunc(e.follower.After(), func(h denylist.Head) bool { return e.has != nil && !slices.Contains(e.has, h.Source) })
	return "?after=" + url.QueryEscape(denylist.FormatHeads(heads))
}

// hands notes which sources are handed on at this address.
func (e *endpoint) hands(next string) {
	heads, err := denylist.ParseHeads(next)
	if err != nil || len(heads) == 0 {
		return
	}
	e.has = nil
	for _, h := range heads {
		e.has = append(e.has, h.Source)
	}
}

// poll asks for what comes next, once.
func (e *endpoint) poll(whole context.Context) error {
	ctx, cancel := context.WithTimeout(whole, maxWait+silence)
	defer cancel()
	res, err := e.get(ctx, e.base+logPath+e.after()+"&wait=2")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxHead))
	if err != nil {
		return err
	}
	if res.StatusCode == http.StatusGone {
		return e.gone(whole, text)
	}
	var lines [][]byte
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, line)
		}
	}
	e.back()
	e.hands(res.Header.Get("Revlog-Next"))
	return e.follower.Take(lines, time.Now())
}

// stream follows server-sent events until they end.
func (e *endpoint) stream(whole context.Context) error {
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()
	heard := false
	// silent is the error of a connection that ended, and whether streams get through
	// at all: what holds them back may hold back the beginning of the answer too.
	silent := func(err error) error {
		if err = first(context.Cause(ctx), err); err == errSilent && !heard {
			e.pollUntil = time.Now().Add(pollFor)
			e.log.Warn("nothing comes through a stream; the feed is polled for a while", "feed", e.source.Name(), "hub", e.base)
		}
		return err
	}
	res, err := e.get(ctx, e.base+streamPath+e.after(), "Accept", "text/event-stream")
	if err != nil {
		return silent(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusGone {
		text, err := io.ReadAll(io.LimitReader(res.Body, maxHead))
		if err != nil {
			return first(context.Cause(ctx), err)
		}
		return e.gone(whole, text)
	}
	r := bufio.NewReaderSize(res.Body, 64<<10)
	for {
		lines, next, err := readEvent(r)
		if err != nil {
			return silent(err)
		}
		if len(lines) == 0 {
			continue // retry: and comments are no sign of life
		}
		heard = true
		quiet.Reset(silence)
		e.back()
		e.hands(next)
		if err := e.follower.Take(lines, time.Now()); err != nil {
			return err
		}
	}
}

var errSilent = errors.New("nothing came, not even a heartbeat, for three seconds")

// first is why the context ended, if it did, or else the error.
func first(cause, err error) error {
	if cause != nil {
		return cause
	}
	return err
}

// readEvent reads the data lines of one server-sent event, and its id.
func readEvent(r *bufio.Reader) (lines [][]byte, id string, err error) {
	size := 0
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, "", err
		}
		if size += len(line); size > maxEvent {
			return nil, "", fmt.Errorf("an event is longer than %d bytes", maxEvent)
		}
		if len(line) == 0 {
			return lines, id, nil
		}
		if text, ok := bytes.CutPrefix(line, []byte("id:")); ok {
			id = string(bytes.TrimSpace(text))
		}
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			lines = append(lines, bytes.TrimPrefix(data, []byte(" ")))
		}
	}
}

// readLine reads a line of at most maxEvent bytes, without its end, into memory of
// its own.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxEvent {
			return nil, fmt.Errorf("a line is longer than %d bytes", maxEvent)
		}
		line = append(line, part...)
		if err == nil {
			return bytes.TrimRight(line, "\r\n"), nil
		}
		if err != bufio.ErrBufferFull {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// gone takes a snapshot, as the hub does not keep what comes after the places that
// this feed is at. Its head says what the heartbeats are: of a source that went
// back, only they can tell, and until they have, a snapshot does not help.
func (e *endpoint) gone(ctx context.Context, text []byte) error {
	var at head
	if err := json.Unmarshal(text, &at); err == nil {
		e.follower.Take(lines(at.Heartbeats), time.Now()) // what is missing is known
	}
	before := e.follower.After()
	if err := e.load(ctx, e.base+snapshotPath); err != nil {
		return err
	}
	if slices.Equal(before, e.follower.After()) {
		return fmt.Errorf("the hub has neither the records that come next nor a snapshot that reaches further: %w", denylist.ErrLost)
	}
	return nil
}

func lines(text []string) (all [][]byte) {
	for _, line := range text {
		all = append(all, []byte(line))
	}
	return all
}

// load fetches a snapshot into a file, checks it there, and loads it.
func (e *endpoint) load(ctx context.Context, address string) error {
	before := e.follower.Count(denylist.Resynced)
	// One that takes its time, or never ends, must not keep the others out.
	for until := time.Now().Add(silence); ; wait(ctx, 10*time.Millisecond) {
		if e.loading.TryLock() {
			defer e.loading.Unlock()
			break
		}
		if time.Now().After(until) || ctx.Err() != nil {
			break
		}
	}
	if e.follower.Count(denylist.Resynced) != before && e.has == nil {
		return nil // by another address, meanwhile, which may hand on the same sources
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stalled := time.AfterFunc(stall, cancel)
	defer stalled.Stop()
	res, err := e.get(ctx, address)
	if err != nil {
		return fmt.Errorf("fetch a snapshot: %w", err)
	}
	defer res.Body.Close()
	s, err := e.follower.Receive(res.Body, e.dir, func() { stalled.Reset(stall) })
	if err != nil {
		return fmt.Errorf("fetch a snapshot: %w", err)
	}
	defer s.Close()
	if err := e.follower.Load(s); err != nil {
		return err
	}
	e.has = []string{}
	for _, p := range s.Places {
		e.has = append(e.has, p.Source)
	}
	e.back()
	e.log.Info("a snapshot of the revocation feed was loaded", "feed", e.source.Name(), "hub", e.base, "entries", s.Entries, "made", s.Made)
	return nil
}
