// Package proxy is one request's walk: it loads the snapshot, decides, then
// refuses or forwards, and reports one record.
//
//	ServeHTTP
//	  s   := current.Load()          one immutable snapshot, loaded once
//	  rec := decision record         Deny until somebody says otherwise
//	  defer finish(rec)              observed once, even if the upstream breaks off
//	  ├─ s.Decide(r, rec)            sends nothing; explain asks it too
//	  ├─ not allowed ─► refuse       fixed text, request id, never the detail
//	  ├─ own path    ─► serveOwn     session endpoint, public keys
//	  └─ allowed     ─► forward      relay, where nothing but an answer comes of
//	                                 it; else httputil.ReverseProxy with Rewrite alone
//
// Deciding inside ReverseProxy's hooks was refused: a Rewrite function cannot
// stop a request, so everything that can fail is done before it.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"durward/decision"
	"durward/token"
)

// A Handler is the public listener's http.Handler. Its fields are set before
// the first request and never changed.
type Handler struct {
	// Observe is called once per request, when it is over.
	Observe func(*decision.Record)
	// Revoke denies the token from now on, durably; the session endpoint's DELETE
	// calls it. An error means that it is not durable.
	Revoke func(context.Context, *token.Claims) error
	Log    *slog.Logger

	current        atomic.Pointer[Snapshot]
	buffers        bufferPool
	inflight       atomic.Int64
	streams        atomic.Int64
	live           live
	cookiesDropped atomic.Uint64
}

// Use makes every later request go by this snapshot. Requests in progress end
// by the one that they began with, and at once if their token is of an issuer that
// it does not have: nobody could revoke such a token any more.
func (h *Handler) Use(s *Snapshot) {
	h.current.Store(s)
	h.live.each(func(st *stream) {
		if !s.Tokens.Accepts(st.claims.Issuer) {
			h.live.cut(st, CutIssuer)
		}
	})
}

// Current is the snapshot in use.
func (h *Handler) Current() *Snapshot { return h.current.Load() }

// Inflight counts the requests in progress.
func (h *Handler) Inflight() int64 { return h.inflight.Load() }

// Streams counts the open WebSockets, event streams and gRPC calls.
func (h *Handler) Streams() int64 { return h.streams.Load() }

// CookiesDropped counts the session cookies that an upstream tried to set
// without being the login service, or with a token that does not verify.
func (h *Handler) CookiesDropped() uint64 { return h.cookiesDropped.Load() }

// ServeHTTP decides about the request, and refuses or forwards it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := h.current.Load()
	rec := &decision.Record{Time: time.Now(), Generation: s.Generation}
	rw := &writer{ResponseWriter: w, control: *http.NewResponseController(w), timeout: s.Limits.IdleTimeout, began: rec.Time, http2: r.ProtoMajor >= 2, http10: r.ProtoMajor == 1 && r.ProtoMinor == 0,
		empty: r.ContentLength == 0,
		// net/http drops Transfer-Encoding from HTTP/1.0 and would take the body for the next request.
		final: r.ProtoMajor == 1 && r.ProtoMinor == 0}
	rw.wire, _ = r.Context().Value(wireKey{}).(*strict)
	if rw.wire != nil && rw.http2 {
		r.TLS = rw.wire.under // net/http was not told
	}
	rw.crowded = h.inflight.Add(1)-h.streams.Load() >= crowd
	if rw.wire != nil && !rw.http2 {
		rw.wire.crowded = rw.crowded
	}
	defer h.finish(s, rw, r, rec)

	p := s.Decide(r, rec)
	rec.ID = requestID(r, p.peer)
	s.Tracing.trace(r, p.peer.trusted, rec)
	rec.Decided = time.Since(rec.Time)
	if rec.Reason == decision.Unset {
		rec.Refuse(decision.Internal, "nobody decided")
	}
	switch {
	case rec.Verdict != decision.Allow:
		s.refuse(rw, r, rec, &p)
	case p.own != "":
		h.serveOwn(s, rw, r, rec, &p)
	default:
		h.forward(s, rw, r, rec, &p)
	}
}

// finish completes the record and reports it, also after a panic. A broken
// upstream makes ReverseProxy panic with http.ErrAbortHandler, which is passed
// on so that the client's connection breaks off too; any other panic is a bug
// and is answered as one.
func (h *Handler) finish(s *Snapshot, rw *writer, r *http.Request, rec *decision.Record) {
	v := recover()
	if rec.ID == "" {
		rec.ID = rand.Text()
	}
	if err, isError := v.(error); v != nil && !(isError && errors.Is(err, http.ErrAbortHandler)) {
		h.Log.Error("a bug: the request was refused", "id", rec.ID, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		rec.Refuse(decision.Internal, fmt.Sprint(v))
		if rw.status == 0 {
			clear(rw.Header())
			s.refuse(rw, r, rec, &Passage{})
			v = nil
		} else {
			v = http.ErrAbortHandler
		}
	}
	rw.end()
	if rec.Status = rw.status; rec.Reason == decision.ClientGone {
		rec.Status = decision.ClientGone.Status()
	}
	rec.Bytes = rw.bytes
	rec.Took = time.Since(rec.Time)
	h.Observe(rec)
	h.inflight.Add(-1) // last: whoever waits for this one waits for its record too
	if v != nil {
		panic(v)
	}
}

// crowd is how many requests in progress make a crowd. In a crowd, whoever is about to
// write lets the others come as far first, so that many writes follow one another. The
// first of them wakes the process at the other end; it need not fall asleep and be woken
// for each of the others, which is a good part of what a write costs. A request on its
// own waits for nobody.
const crowd = 8

// requestID is what a trusted proxy calls the request, or a new random one.
func requestID(r *http.Request, p peer) string {
	if ids := r.Header["X-Request-Id"]; p.trusted && len(ids) == 1 && isRequestID(ids[0]) {
		return ids[0]
	}
	return rand.Text()
}

func isRequestID(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !isAlphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 128
}

// A bufferPool lends ReverseProxy its copy buffers; without one it makes a new
// buffer for each response.
type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *bufferPool) Put(buf []byte) { b.pool.Put(&buf) }
