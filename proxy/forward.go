package proxy

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"durward/decision"
	"durward/policy"
	"durward/token"
)

var (
	errTooLarge = errors.New("the request body is larger than the route takes")
	errCut      = errors.New("the request was cut")
	errStatus   = errors.New("the upstream's status is not one of 100 to 999")
	errSwitch   = errors.New("the upstream switched to another protocol than it was asked for")
	errLength   = errors.New("the upstream's Content-Length has more than one reading")
)

// forward sends an allowed request to its upstream. Whatever can fail is done
// before ReverseProxy is asked.
func (h *Handler) forward(s *Snapshot, rw *writer, r *http.Request, rec *decision.Record, p *Passage) {
	rt := &s.Routes[p.route.Index]
	var assertion string
	if a := rt.Identity.assertion; a != nil && p.claims != nil {
		var err error
		if assertion, err = a.sign(p.claims, rt.Upstream.Name, rec.ID, rec.Time); err != nil {
			rec.Refuse(decision.Internal, fmt.Sprintf("sign the assertion: %v", err))
			s.refuse(rw, r, rec, p)
			return
		}
	}
	var upload *body
	if r.Body != nil && r.Body != http.NoBody {
		upload = &body{from: r.Body, writer: rw, left: -1, patience: rt.Upstream.patience}
		if p.route.MaxBody > 0 {
			upload.left = p.route.MaxBody
		}
		if r.ProtoMajor == 1 {
			// Without it the server discards what the upstream has not read yet as
			// soon as the response begins.
			rw.control.EnableFullDuplex()
		}
		rw.upload = upload
		defer upload.end()
	}
	// A relayed request is ended by its answer, and needs no context of its own.
	ctx := r.Context()
	sent := rw.now()
	watched := rw.wire != nil && !rw.http2 && rw.wire.quiet
	var a *answer
	if d, ok := rt.Upstream.transport.(*direct); ok && isPlain(r) {
		a = &answer{direct: d, crowded: rw.crowded, sent: sent}
		rw.cancel = a.cancel
		if !watched {
			defer context.AfterFunc(ctx, rw.cancel)()
		}
	} else {
		ctx, rw.cancel = context.WithCancel(ctx)
		defer rw.cancel()
	}
	if watched {
		defer rw.wire.watch(rw.cancel).stop()
	}
	if upload != nil {
		upload.giveUp = rw.cancel
	}
	var st *stream
	if p.claims != nil {
		st = &stream{claims: p.claims, began: rec.Time, until: p.claims.Until(), writer: rw}
		h.live.add(s, &h.current, st)
		defer st.leave()
	}
	isStream := false
	received := func(res *http.Response) error {
		rec.Waited = time.Since(sent)
		switch {
		case res.StatusCode > 999:
			return errStatus // at which the server would panic, as at 000 to 099
		case res.StatusCode >= 200:
		case res.StatusCode != http.StatusSwitchingProtocols:
			return errStatus
		case !isOnlyWebSocket(res.Request.Header) || !isOnlyWebSocket(res.Header) || !understood(res):
			// ReverseProxy takes two missing Upgrade fields for agreement, and would
			// open a tunnel past every later decision; so would an upstream that answers
			// everything with what it was sent.
			return errSwitch
		}
		if err := oneLength(res); err != nil {
			return err
		}
		h.checkResponse(s, res, ctx, rec, p)
		if rw.grpc = rw.http2 && st != nil && isGRPC(res.Header.Get("Content-Type")); rw.grpc {
			res.Body = &closing{res.Body, res, st}
		}
		if isStream = streams(res); isStream {
			h.streams.Add(1)
		}
		return nil
	}
	failed := func(err error) {
		rec.Waited = time.Since(sent)
		reason, detail := classify(err, ctx.Err() != nil || a != nil && a.gone.Load(), upload)
		if rw.hints > maxHints {
			reason, detail = decision.UpstreamUnreachable, "the upstream sent informational responses without end"
		}
		if rw.switched {
			reason, detail = decision.UpstreamUnreachable, errSwitch.Error()
		}
		if cause := st.cut(); cause != NotCut {
			reason, detail = cause.reason(), "cut before the upstream answered: "+cause.String()
			rw.revive()
		}
		rec.Refuse(reason, detail)
		if rw.status == 0 && reason != decision.ClientGone {
			s.refuse(rw, r, rec, p)
		}
	}
	defer func() {
		if isStream {
			h.streams.Add(-1)
		}
		if cause := st.cut(); cause != NotCut {
			rec.Cut = cause.String()
		}
	}()
	out := r.WithContext(ctx)
	if a != nil {
		out.Header, out.Body = make(http.Header, len(r.Header)+added), nil
		endToEnd(out.Header, r.Header)
		s.address(out, rt.Upstream, p)
		s.cleanse(out, p)
		s.introduce(out, rt, p, rec, assertion)
		h.relay(a, rw, out, received, failed)
	} else {
		var rp httputil.ReverseProxy
		rp = httputil.ReverseProxy{
			Transport:  rt.Upstream.transport,
			BufferPool: &h.buffers,
			// Pass on each piece as it comes. For a short answer that is the one write
			// that it takes anyway.
			FlushInterval: -1,
			ErrorLog:      slog.NewLogLogger(h.Log.Handler(), slog.LevelDebug),
			Rewrite: func(pr *httputil.ProxyRequest) {
				// Here and not in r: the server must find its own body in its own request,
				// or it resets the connection of a client that still sends instead of
				// closing it gently.
				if upload != nil && pr.Out.Body != nil {
					pr.Out.Body = upload
					// An upstream that does not expect a body leaves it unread, and takes it for
					// the next request on the connection: one that nobody judged. So let there be
					// no next one.
					pr.Out.Close = !takesBody(pr.Out.Method)
				}
				s.address(pr.Out, rt.Upstream, p)
				s.cleanse(pr.Out, p)
				s.introduce(pr.Out, rt, p, rec, assertion)
			},
			ModifyResponse: func(res *http.Response) error {
				if res.ContentLength == 0 {
					// Nothing will come that could be late, and a header sent on its own
					// would turn gRPC's "trailers only" into a header without trailers.
					rp.FlushInterval = 0
				}
				return received(res)
			},
			ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed(err) },
		}
		rp.ServeHTTP(rw, out)
	}
	st.leave() // from here on nothing is cut any more: what comes next on the connection is another request
	switch {
	case rec.Reason == decision.ClientGone && rw.status == 0:
		panic(http.ErrAbortHandler) // returning would tell whoever is still there 200
	case rw.ended.Load() && rw.status != http.StatusSwitchingProtocols && !rw.grpc:
		panic(http.ErrAbortHandler) // cut while it was answered: the connection is of no use any more, see revive
	}
}

// takesBody is whether every upstream reads the body of such a request (RFC 9110
// section 9.3).
func takesBody(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// understood is whether the upstream has understood the WebSocket handshake that it
// answers (RFC 6455 section 4.2.2).
func understood(res *http.Response) bool {
	const guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	keys, accepts := res.Request.Header["Sec-Websocket-Key"], res.Header["Sec-Websocket-Accept"]
	if len(keys) != 1 || len(accepts) != 1 {
		return false
	}
	sum := sha1.Sum([]byte(strings.Trim(keys[0], " \t") + guid))
	return accepts[0] == base64.StdEncoding.EncodeToString(sum[:])
}

// oneLength sees to it that the length that goes to the client is one number in its
// only spelling. The HTTP/2 transport passes others on as they are.
func oneLength(res *http.Response) error {
	if res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified {
		res.Body.Close() // the HTTP/2 transport would wait for what the length says
		res.Body = http.NoBody
	}
	values := res.Header["Content-Length"]
	if len(values) == 0 {
		return nil
	}
	n, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil || len(values) > 1 {
		return errLength
	}
	if text := values[0]; text[0] == '0' && len(text) > 1 {
		res.Header["Content-Length"] = []string{strconv.FormatUint(n, 10)}
	}
	return nil
}

// address points the request at its upstream, with the method, host and path
// that were judged and the query as it came.
func (s *Snapshot) address(out *http.Request, u *Upstream, p *Passage) {
	out.URL = &url.URL{
		Scheme:     u.scheme,
		Host:       u.address,
		Path:       p.path.Decoded(),
		RawPath:    p.path.Escaped(),
		RawQuery:   strings.TrimPrefix(p.query, "?"),
		ForceQuery: p.query == "?",
	}
	if out.Host = u.host; out.Host == "" {
		out.Host = p.host.String()
	}
}

// cleanse takes off what a client may not say to an upstream: credentials,
// identity in any spelling, forwarding headers, upgrades other than to WebSocket or
// by HTTP/1.0 (RFC 9110 section 7.8), and trailers, which come after everything was
// judged.
func (s *Snapshot) cleanse(out *http.Request, p *Passage) {
	h := out.Header
	if !(p.route.Auth == policy.None && p.route.PassAuthorization) || p.preflight {
		delete(h, "Authorization")
	}
	token.StripCookies(h, s.cookies)
	if p.preflight {
		delete(h, "Cookie")
		out.Body, out.ContentLength, out.TransferEncoding = http.NoBody, 0, nil
	}
	s.protected.strip(h)
	// Nor with a body: the transport would go on reading it from a connection that is
	// the WebSocket's by then.
	if h["Upgrade"] != nil && (!isOnlyWebSocket(h) || out.Method != http.MethodGet || !out.ProtoAtLeast(1, 1) || p.preflight || out.Body != nil && out.Body != http.NoBody) {
		delete(h, "Upgrade")
		delete(h, "Connection")
	}
	delete(h, "Http2-Settings")
	delete(h, "Trailer")
	out.Trailer = nil
}

// added is how many fields introduce sets, as a rule.
const added = 8

// introduce says who is asking, and for whom the gateway speaks.
func (s *Snapshot) introduce(out *http.Request, rt *Route, p *Passage, rec *decision.Record, assertion string) {
	h := out.Header
	values := []string{p.peer.forwardedFor(), p.host.String(), p.peer.proto(), rec.ID} // one array for four headers
	if values[0] != "" {
		h["X-Forwarded-For"] = values[0:1:1]
	}
	h["X-Forwarded-Host"] = values[1:2:2]
	h["X-Forwarded-Proto"] = values[2:3:3]
	h["X-Request-Id"] = values[3:4:4]
	passTrace(h, rec)
	if p.claims == nil {
		return
	}
	rt.Identity.set(h, p.claims)
	if assertion != "" {
		h[http.CanonicalHeaderKey(rt.Identity.assertion.header)] = []string{assertion}
	}
	if rt.Identity.forwardToken {
		h["Authorization"] = []string{"Bearer " + p.cred.Raw}
	}
}

func (p peer) proto() string {
	if p.https {
		return "https"
	}
	return "http"
}

// checkResponse takes off what an upstream may not say to a client: the
// gateway's own headers, and a session cookie that it has no business to set.
func (h *Handler) checkResponse(s *Snapshot, res *http.Response, ctx context.Context, rec *decision.Record, p *Passage) {
	for name := range res.Header {
		if strings.HasPrefix(name, "Durward-") {
			delete(res.Header, name)
		}
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		cleanseTrailer(res.Trailer) // those announced, which have no value yet
		res.Body = &trailing{res.Body, res}
	}
	// Under this name the log has it, whatever the upstream calls it.
	res.Header["X-Request-Id"] = []string{rec.ID}
	if lines := res.Header["Set-Cookie"]; lines != nil {
		h.checkCookies(s, res, ctx, rec, p)
	}
}

// A trailing body takes off of the trailers, which come after it, what an upstream
// may not say in its header either.
type trailing struct {
	io.ReadCloser
	res *http.Response
}

func (b *trailing) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		cleanseTrailer(b.res.Trailer)
	}
	return n, err
}

func cleanseTrailer(trailer http.Header) {
	for name := range trailer {
		switch name {
		case "Set-Cookie", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Trailer":
			delete(trailer, name)
		}
		if strings.HasPrefix(name, "Durward-") {
			delete(trailer, name)
		}
	}
}

// A closing body ends a gRPC call that was cut with a status in place of a reset,
// which a client would take for a fault of the network.
type closing struct {
	io.ReadCloser
	res    *http.Response
	stream *stream
}

func (b *closing) Read(p []byte) (n int, err error) {
	cause := b.stream.cut()
	if cause == NotCut {
		if n, err = b.ReadCloser.Read(p); err == nil || err == io.EOF {
			return n, err
		}
		if cause = b.stream.cut(); cause == NotCut {
			return n, err
		}
	}
	b.res.Trailer = http.Header{"Grpc-Status": {cause.grpcStatus()}, "Grpc-Message": {"cut: " + cause.String()}}
	return 0, io.EOF
}

// isGRPC tells gRPC, whose status stands in the trailers, from gRPC-Web, where it
// is part of the body.
func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// streams tells whether the response has no foreseeable end.
func streams(res *http.Response) bool {
	contentType, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
	return res.StatusCode == http.StatusSwitchingProtocols || contentType == "text/event-stream" ||
		strings.HasPrefix(contentType, "application/grpc")
}

// classify says why forwarding failed.
func classify(err error, gone bool, upload *body) (decision.Reason, string) {
	var timeout net.Error
	tooLarge, failed, stalled, broken := upload.fault()
	switch {
	case broken:
		return decision.AmbiguousRequest, fmt.Sprintf("the body's framing is broken: %v", err)
	case stalled:
		return decision.UpstreamTimeout, "the upstream did not take the request's body"
	case tooLarge:
		return decision.TooLarge, errTooLarge.Error()
	case failed:
		return decision.ClientGone, fmt.Sprintf("the client did not deliver its body: %v", err)
	case gone:
		return decision.ClientGone, "the client went away before the upstream answered"
	case errors.As(err, &timeout) && timeout.Timeout():
		return decision.UpstreamTimeout, quoteless(err)
	}
	return decision.UpstreamUnreachable, quoteless(err)
}

// quoteless is an error without what it quotes of an answer that could not be read:
// as many bytes as an upstream likes, and a session cookie may be among them.
func quoteless(err error) string {
	if _, odd := errors.AsType[textproto.ProtocolError](err); odd {
		return "the upstream's header is malformed"
	}
	text, _, quotes := strings.Cut(err.Error(), `"`)
	if quotes {
		text += "…"
	}
	return clip(text)
}
