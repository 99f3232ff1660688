package test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestBusyHTTP2 is the other side of TestHTTP2Floods: whoever uses one connection as
// much as a load balancer does is never made to wait.
func TestBusyHTTP2(t *testing.T) {
	t.Parallel()
	idp, ca := newIssuer(t), newAuthority(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upload":
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n)
		case "/download":
			io.CopyN(w, zeros{}, 32*mebibyte)
		case "/silence":
			<-r.Context().Done()
		default:
			io.WriteString(w, r.Header.Get("X-Forwarded-Proto"))
		}
	}))
	t.Cleanup(app.Close)
	_, _, rpc := serveGRPC(t)
	cert, key := ca.pair(t)
	g := serving(t, guarded(idp, "tls: {cert_file: %q, key_file: %q}\nroutes: [{name: rpc, path: /durward.test.Talk/, upstream: %q}, {name: all, upstream: %q}]\n", cert, key, "h2c://"+rpc, app.URL))
	var dials atomic.Int64
	client := &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true,
		HTTP2:             &http.HTTP2Config{StrictMaxConcurrentRequests: true},
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return (&tls.Dialer{Config: &tls.Config{RootCAs: ca.pool(), NextProtos: []string{"h2"}}}).DialContext(ctx, network, address)
		},
	}}
	t.Cleanup(client.CloseIdleConnections)
	token := idp.token(jwt.MapClaims{"groups": strings.Repeat("x", 5000)})
	ask := func(ctx context.Context, method, path string, body io.Reader) (string, error) {
		req, err := http.NewRequestWithContext(ctx, method, "https://"+g.public[0]+path, body)
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("X-Pad", strings.Repeat("x", 20_000))
		res, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if res.StatusCode != 200 {
			return "", fmt.Errorf("%s %q", res.Status, res.Header.Get("Durward-Reason"))
		}
		return string(text), err
	}
	want := func(method, path string, body io.Reader, text string) {
		if got, err := ask(t.Context(), method, path, body); err != nil || got != text && len(got) != 32*mebibyte {
			t.Errorf("%s %s: %.100q %v", method, path, got, err)
		}
	}
	want("GET", "/", nil, "https")

	var all sync.WaitGroup
	for range 60 {
		all.Go(func() {
			for i := range 50 {
				want("GET", "/", nil, "https")
				if i%10 == 9 { // some lose patience
					ctx, cancel := context.WithCancel(t.Context())
					gone := make(chan struct{})
					go func() { ask(ctx, "GET", "/silence", nil); close(gone) }()
					want("GET", "/", nil, "https")
					cancel()
					<-gone
				}
			}
		})
	}
	all.Go(func() { want("POST", "/upload", io.LimitReader(zeros{}, 32*mebibyte), fmt.Sprint(32*mebibyte)) })
	all.Go(func() { want("GET", "/download", nil, "") })
	all.Go(func() {
		conn, err := grpc.NewClient(g.public[0], grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: ca.pool()})))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		chat, err := conn.NewStream(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+idp.token(nil)), &talkService.Streams[0], "/durward.test.Talk/Chat")
		if err != nil {
			t.Error(err)
			return
		}
		for i := range 2000 {
			var heard wrapperspb.StringValue
			word := fmt.Sprint(i)
			if err := chat.SendMsg(wrapperspb.String(word)); err != nil {
				t.Errorf("message %d: %v", i, err)
				return
			}
			if err := chat.RecvMsg(&heard); err != nil || heard.Value != "you said "+word {
				t.Errorf("message %d: %q %v", i, heard.Value, err)
				return
			}
		}
	})
	all.Wait()
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if n := metric(t, g, "durward_http2_paced_total"); n != 0 {
		t.Errorf("they were made to wait %v times", n)
	}
}
