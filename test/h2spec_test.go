package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// h2specFails are the cases that net/http decides otherwise, each with the reason
// why that is no harm here.
var h2specFails = map[string]string{
	"http2/6.5.3/1":   "a SETTINGS frame that names one setting twice ends the connection; no client sends one",
	"http2/8.1.2.2/1": "a connection-specific field gets 400 in place of a reset; the request is refused either way",
	"http2/8.1.2.2/2": "a TE other than trailers gets 400 in place of a reset; the request is refused either way",
}

// TestH2Spec runs every case of h2spec, the strict ones too, against the TLS
// listener. What RFC 9113 (and before it RFC 7540) asks of a server is net/http's
// to do; this says whether it does, and that nothing around it is in its way. A
// case that fails without standing in h2specFails, and one that stands there and
// passes, is an error.
func TestH2Spec(t *testing.T) {
	t.Parallel()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, strings.Repeat("hello ", 20))
	}))
	t.Cleanup(app.Close)
	cert, key := newAuthority(t).pair(t)
	g := serving(t, guarded(newIssuer(t), "tls: {cert_file: %q, key_file: %q}\nroutes: [{name: open, upstream: %q, auth: none}]\n", cert, key, app.URL))
	host, port, err := net.SplitHostPort(g.public[0])
	if err != nil {
		t.Fatal(err)
	}
	conf := &config.Config{Host: host, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true, TLS: true, Insecure: true}
	conf.Port, _ = strconv.Atoi(port)

	cases, listed := 0, 0
	var walk func(t *testing.T, group *spec.TestGroup)
	walk = func(t *testing.T, group *spec.TestGroup) {
		for i, c := range append(group.Tests, group.StrictTests...) {
			name := fmt.Sprintf("%s/%d", group.ID(), i+1)
			reason, fails := h2specFails[name]
			if cases++; fails {
				listed++
			}
			err := runH2Spec(conf, c)
			switch {
			case errors.Is(err, spec.ErrSkipped):
				t.Errorf("%s, %s: left out", name, c.Desc)
			case err != nil && !fails:
				t.Errorf("%s, %s: %v; %s", name, c.Desc, err, c.Requirement)
			case err == nil && fails:
				t.Errorf("%s, %s: passes, though it is listed: %s", name, c.Desc, reason)
			}
		}
		for _, inner := range group.Groups {
			walk(t, inner)
		}
	}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		walk(t, group)
	}
	t.Logf("%d cases, %d of them listed", cases, listed)
	if cases != 146 || listed != len(h2specFails) {
		t.Errorf("%d cases, %d of %d listed ones among them", cases, listed, len(h2specFails))
	}
	if status, _ := rawSendTLS(t, g.public[0], "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"); status != 200 {
		t.Errorf("afterwards: %d", status)
	}
}

func runH2Spec(conf *config.Config, c *spec.TestCase) error {
	conn, err := spec.Dial(conf)
	if err != nil {
		return err
	}
	defer conn.Close()
	return c.Run(conf, conn)
}
