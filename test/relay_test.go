package test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestRelay asks each of these upstreams the quick way and, by a TE field, through
// ReverseProxy: what the client gets is the same, and no more than the upstream said.
func TestRelay(t *testing.T) {
	t.Parallel()
	answers := map[string]string{
		"/length":       "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
		"/typed":        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\n<html>",
		"/empty":        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"/none":         "HTTP/1.1 204 No Content\r\n\r\n",
		"/unmodified":   "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
		"/to-the-end":   "HTTP/1.1 200 OK\r\n\r\n<html>",
		"/old":          "HTTP/1.0 200 OK\r\n\r\n<html>",
		"/chunked":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n<html>\r\n0\r\n\r\n",
		"/no-chunk":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"/trailer":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
		"/unannounced":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
		"/forbidden":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Durward-Reason, Set-Cookie\r\n\r\n2\r\nok\r\n0\r\nDurward-Reason: x\r\nSet-Cookie: a=b\r\n\r\n",
		"/hop-by-hop":   "HTTP/1.1 200 OK\r\nConnection: X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nX-Public: 1\r\nX-Public: 2\r\nContent-Length: 2\r\n\r\nok",
		"/ours":         "HTTP/1.1 200 OK\r\nDurward-Reason: no_token\r\nX-Request-Id: theirs\r\nSet-Cookie: __Host-session=x\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok",
		"/hints":        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nSet-Cookie: c=d\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/error":        "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",
		"/bad-length":   "HTTP/1.1 204 No Content\r\nContent-Length: two\r\nSet-Cookie: a=b\r\nX-Public: 1\r\n\r\n",
		"/good-length":  "HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\nX-Public: 1\r\n\r\n",
		"/short":        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
		"/short-chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok",
		"/bad-chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nok",
		"/large":        "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000),
	}
	g := serving(t, guarded(newIssuer(t), "routes: [{name: open, upstream: \"http://%s\", auth: none}]\n", literalUpstream(t, answers)))
	ask := func(method, path, field string) string {
		req, err := http.NewRequestWithContext(t.Context(), method, g.url(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		if name, value, ok := strings.Cut(field, ": "); ok {
			req.Header.Set(name, value)
		}
		transport := &http.Transport{DisableCompression: true}
		defer transport.CloseIdleConnections()
		res, err := transport.RoundTrip(req)
		if err != nil {
			return "error"
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil && len(body) == 0 {
			return "error" // whether the header went ahead is a matter of time
		}
		h := res.Header
		for name := range h {
			if said := strings.Contains(answers[path], "\r\n"+name+": "); name == "Content-Type" && !said && h["Durward-Reason"] == nil { // but for refusals, which are ours
				t.Errorf("%s %s, %q: a Content-Type was made up: %q", method, path, field, h[name])
			} else if name == "Date" || name == "X-Request-Id" || name == "Content-Length" && !said {
				delete(h, name) // of this answer, or found out by whoever had all of it at once
			}
		}
		text := fmt.Sprintf("%d %.20q %d, broken off: %t\n", res.StatusCode, body, len(body), err != nil)
		for _, fields := range []http.Header{h, res.Trailer} {
			for _, name := range slices.Sorted(maps.Keys(fields)) {
				text += fmt.Sprintf("%s: %q\n", name, fields[name])
			}
			text += "-\n"
		}
		return text
	}
	for _, path := range slices.Sorted(maps.Keys(answers)) {
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			want := ask(method, path, "Te: trailers")
			for _, field := range []string{"", "Connection: keep-alive", "Connection: close", "Connection: X-Other"} {
				if got := ask(method, path, field); got != want && field != "Connection: close" || strings.SplitN(got, "\n", 2)[0] != strings.SplitN(want, "\n", 2)[0] {
					t.Errorf("%s %s, %q: the client got\n%s\nand through ReverseProxy\n%s", method, path, field, got, want)
				}
			}
		}
	}
}
