package proxy

import (
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"strings"
)

// relay does for a plain request what ReverseProxy does for all others, without what
// only others need: a second copy of the header, a goroutine that flushes, a trace.
// That is a fifth of what a request costs. What of an answer is passed on, and how an
// answer ends that breaks off, are the same; the tests of forwarding ask both.
func (h *Handler) relay(a *answer, rw *writer, out *http.Request, received func(*http.Response) error, failed func(error)) {
	res, err := a.direct.exchange(out, a, func(code int, header textproto.MIMEHeader) error {
		maps.Copy(rw.Header(), header)
		rw.WriteHeader(code)
		clear(rw.Header())
		return nil
	})
	if err != nil {
		failed(err)
		return
	}
	defer res.Body.Close()
	header := rw.Header()
	endToEnd(header, res.Header)
	res.Header = header
	if err := received(res); err != nil {
		clear(header)
		failed(err)
		return
	}
	announced := len(res.Trailer)
	for name := range res.Trailer {
		header.Add("Trailer", name)
	}
	rw.WriteHeader(res.StatusCode)
	if res.ContentLength != 0 && a.awaited() {
		rw.FlushError() // the header need not wait for what comes
	}
	h.pour(rw, res.Body)
	res.Body.Close()
	if len(res.Trailer) > 0 {
		rw.FlushError() // else a short answer would get a length, and no trailers
	}
	for name, values := range res.Trailer {
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		header[name] = values
	}
}

// pour passes each piece of a body on as it comes. If either side breaks off, so does
// the answer.
func (h *Handler) pour(rw *writer, body io.Reader) {
	buf := h.buffers.Get()
	defer h.buffers.Put(buf)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, err := rw.Write(buf[:n]); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
		switch {
		case err == io.EOF:
			return // the server sends what it holds
		case err != nil:
			rw.FlushError() // the client sees what came, and that it is not all
			panic(http.ErrAbortHandler)
		case rw.FlushError() != nil:
			panic(http.ErrAbortHandler)
		}
	}
}

// isPlain is whether a request is of the kind that is relayed.
func isPlain(r *http.Request) bool {
	return simple(r) && r.Header["Te"] == nil && r.Header["Trailer"] == nil
}

// endToEnd puts into a header what another has, without what is for the next recipient
// alone: the fields that Connection names, and those that are hop by hop by definition
// (RFC 9110 section 7.6.1). The values are shared.
func endToEnd(into, h http.Header) {
	for name, values := range h {
		switch name {
		case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		default:
			into[name] = values
		}
	}
	for _, field := range h["Connection"] {
		for name := range strings.SplitSeq(field, ",") {
			if name = textproto.TrimString(name); name != "" {
				into.Del(name)
			}
		}
	}
}
