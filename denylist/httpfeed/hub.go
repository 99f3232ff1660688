package httpfeed

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"durward/denylist"
)

// Where everything is, below the address of a hub. See docs/revocation-feed.md.
const (
	headPath        = "/revlog/v1/head"
	logPath         = "/revlog/v1/log"
	streamPath      = "/revlog/v1/stream"
	snapshotPath    = "/revlog/v1/snapshot"
	revocationsPath = "/revlog/v1/revocations"
)

// viaField names the sources through which forwarded revocations came, so that
// gateways which forward to each other come to an end.
const viaField = "Revlog-Via"

const (
	maxVia      = 16
	maxReading  = 256 << 10 // bytes of records that are read from the log at once
	maxWait     = 25 * time.Second
	maxStreams  = 10_000
	maxForward  = 16 << 20
	writeWithin = 10 * time.Second // a follower that takes nothing for longer is left behind
)

// A Hub hands on what a gateway holds to those that follow it. All fields are set
// before the first request.
type Hub struct {
	List *denylist.List
	Log  *denylist.Log
	// Key signs snapshots; nil signs nothing.
	Key ed25519.PrivateKey
	// Token is what followers must send as bearer token; "" asks for none.
	Token string
	// Certificates is whether the listener has verified a client certificate of each
	// connection, which then authenticates it.
	Certificates bool
	// Whole is nil, or why a snapshot would not hold all that this gateway was told.
	Whole func() error
	// Accept takes revocations that a follower forwards, one a line, and answers with
	// a status and a JSON document, as POST /revocations of the operators' interface.
	// via are the sources through which they came.
	Accept func(ctx context.Context, body []byte, via []string) (status int, answer any)

	streams atomic.Int64
}

// Handler serves the hub's paths.
func (h *Hub) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+headPath, bodiless(h.serveHead))
	mux.HandleFunc("GET "+logPath, bodiless(h.serveLog))
	mux.HandleFunc("GET "+streamPath, bodiless(h.serveStream))
	mux.HandleFunc("GET "+snapshotPath, bodiless(h.serveSnapshot))
	mux.HandleFunc("POST "+revocationsPath, h.serveRevocations)
	return h.authorized(mux)
}

// bodiless refuses a request with a body, and lets any other answer take longer than
// the server gives a request to come.
func bodiless(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close") // nobody waits for it
			http.Error(w, "send no body", http.StatusBadRequest)
			return
		}
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		next(w, r)
	}
}

func (h *Hub) authorized(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(h.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		have := sha256.Sum256([]byte(given))
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeWithin))
		if h.Token != "" && (!strings.EqualFold(scheme, "Bearer") || len(r.Header["Authorization"]) != 1 || subtle.ConstantTimeCompare(have[:], want[:]) != 1) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			w.Header().Set("Connection", "close") // else a body that never comes would be waited for first
			http.Error(w, "send the content of the hub's serve_feed.token_file as Authorization: Bearer", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// A head is where a feed stands, as GET head tells it. A directory of files that
// are served by a plain web server has one too; there it names the files.
type head struct {
	Hub        bool             `json:"hub,omitempty"` // log and stream are there; a directory of files has none
	Places     []denylist.Place `json:"places"`
	Heartbeats []string         `json:"heartbeats"`
	Snapshot   string           `json:"snapshot,omitempty"` // relative to the head's own address
	Segments   []segment        `json:"segments,omitempty"` // of a directory of files; a hub has none
}

// A segment is a file of records, one a line.
type segment struct {
	URL    string `json:"url"` // relative to the head's own address
	Source string `json:"src"`
	Epoch  int64  `json:"e"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
}

func (h *Hub) head() head {
	at := head{Hub: true, Places: h.Log.Places(), Heartbeats: []string{}, Snapshot: "snapshot"}
	var after []denylist.Head
	for _, p := range at.Places {
		after = append(after, p.Head)
	}
	reading, _, _ := h.Log.Read(after, maxReading)
	for _, beat := range reading.Beats {
		at.Heartbeats = append(at.Heartbeats, string(beat))
	}
	return at
}

func (h *Hub) serveHead(w http.ResponseWriter, r *http.Request) {
	text, err := json.Marshal(h.head())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	sum := sha256.Sum256(text)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
}

// read is what comes after the places that the request names. It answers 400 or
// 410 by itself.
func (h *Hub) read(w http.ResponseWriter, r *http.Request) (reading denylist.Reading, changed <-chan struct{}, ok bool) {
	after, err := denylist.ParseHeads(r.FormValue("after"))
	if err != nil {
		http.Error(w, "after: "+err.Error(), http.StatusBadRequest)
		return denylist.Reading{}, nil, false
	}
	reading, changed, ok = h.Log.Read(after, maxReading)
	if !ok {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusGone)
		json.NewEncoder(w).Encode(h.head())
	}
	return reading, changed, ok
}

// serveLog answers with records and heartbeats, one a line. With wait, it waits
// for the next of either if there are no records: heartbeats come each second.
func (h *Hub) serveLog(w http.ResponseWriter, r *http.Request) {
	var wait time.Duration
	if text := r.FormValue("wait"); text != "" {
		seconds, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			http.Error(w, "wait: write a whole number of seconds", http.StatusBadRequest)
			return
		}
		wait = min(time.Duration(seconds)*time.Second, maxWait)
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + writeWithin))
	reading, changed, ok := h.read(w, r)
	if !ok {
		return
	}
	if len(reading.Records) == 0 && wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-r.Context().Done():
			return
		case <-t.C:
		case <-changed:
		}
		if reading, _, ok = h.read(w, r); !ok {
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Revlog-Next", denylist.FormatHeads(reading.Next))
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeWithin))
	for _, lines := range [][][]byte{reading.Records, reading.Beats} {
		for _, line := range lines {
			w.Write(line)
			w.Write([]byte{'\n'})
		}
	}
}

// serveStream is a stream of server-sent events: each is some records and
// heartbeats, one a line, and its id is where to go on after it.
func (h *Hub) serveStream(w http.ResponseWriter, r *http.Request) {
	if h.streams.Add(1) > maxStreams {
		h.streams.Add(-1)
		http.Error(w, "too many streams", http.StatusServiceUnavailable)
		return
	}
	defer h.streams.Add(-1)
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		if err := r.ParseForm(); err == nil {
			r.Form.Set("after", id)
		}
	}
	reading, changed, ok := h.read(w, r)
	if !ok {
		return
	}
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	var event bytes.Buffer
	event.WriteString("retry: 500\n\n")
	var sent [sha256.Size]byte // the heartbeats sent last
	for {
		beats := sha256.Sum256(bytes.Join(reading.Beats, []byte{'\n'}))
		if beats == sent {
			reading.Beats = nil
		}
		for _, lines := range [][][]byte{reading.Records, reading.Beats} {
			for _, line := range lines {
				event.WriteString("data: ")
				event.Write(line)
				event.WriteByte('\n')
			}
		}
		if len(reading.Records)+len(reading.Beats) > 0 {
			sent = beats
			fmt.Fprintf(&event, "id: %s\n\n", denylist.FormatHeads(reading.Next))
		}
		if event.Len() > 0 {
			control.SetWriteDeadline(time.Now().Add(writeWithin))
			if _, err := w.Write(event.Bytes()); err != nil || control.Flush() != nil {
				return
			}
			event.Reset()
		}
		if len(reading.Records) == 0 {
			select {
			case <-r.Context().Done():
				return
			case <-changed:
			}
		}
		if reading, changed, ok = h.Log.Read(reading.Next, maxReading); !ok {
			return // it asks again and is told
		}
	}
}

// serveSnapshot sends everything that is held.
func (h *Hub) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	if err := h.Whole(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	// The places first: everything up to them is in the list by now.
	header := denylist.SnapshotHeader{Made: time.Now().UTC(), Places: h.Log.Places()}
	w.Header().Set("Content-Type", "application/octet-stream")
	denylist.WriteSnapshot(&patientWriter{w: w, control: http.NewResponseController(w)}, h.List, header, func() (none denylist.SnapshotFooter) { return none }, h.Key) // a follower sees by its hash that it was cut off
}

// A patientWriter gives each write a deadline of its own.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (p *patientWriter) Write(b []byte) (int, error) {
	p.control.SetWriteDeadline(time.Now().Add(writeWithin))
	return p.w.Write(b)
}

// serveRevocations takes what a follower forwards. Reading without having been
// asked who one is may be in order on a loopback address; writing is not.
func (h *Hub) serveRevocations(w http.ResponseWriter, r *http.Request) {
	if h.Token == "" && !h.Certificates {
		http.Error(w, "this hub asks nobody who they are, so it takes no revocations; give serve_feed a token_file", http.StatusForbidden)
		return
	}
	control := http.NewResponseController(w)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxForward))
	control.SetWriteDeadline(time.Now().Add(writeWithin)) // reading took its own time
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	via := strings.FieldsFunc(r.Header.Get(viaField), func(c rune) bool { return c == ',' })
	if len(via) > maxVia {
		http.Error(w, "it came through too many gateways", http.StatusLoopDetected)
		return
	}
	status, answer := h.Accept(r.Context(), body, via)
	control.SetWriteDeadline(time.Now().Add(writeWithin)) // so did forwarding
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}
