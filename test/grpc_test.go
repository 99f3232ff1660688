package test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// talk is a gRPC service with one bidirectional stream, which answers each word
// before it hears the next; "fail" ends it with an error. Header and trailer say
// who was heard.
type talk struct{ cancelled chan error }

func (s *talk) chat(_ any, stream grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	user := strings.Join(md["x-forwarded-user"], " and ")
	for _, hidden := range []string{"authorization", "x-user", "x_user"} {
		if md[hidden] != nil {
			return status.Errorf(codes.Internal, "the upstream received %s", hidden)
		}
	}
	if err := stream.SendHeader(metadata.Pairs("x-heard", user)); err != nil {
		return err
	}
	stream.SetTrailer(metadata.Pairs("x-sum", user, "x-sum-bin", "\x00\x01\xff"))
	for {
		var word wrapperspb.StringValue
		err := stream.RecvMsg(&word)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			s.cancelled <- err
			return err
		case word.Value == "fail":
			return status.Error(codes.ResourceExhausted, "genug: 100 % voll")
		}
		if err := stream.SendMsg(wrapperspb.String("you said " + word.Value)); err != nil {
			return err
		}
	}
}

var talkService = grpc.ServiceDesc{
	ServiceName: "durward.test.Talk", HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "Chat", ClientStreams: true, ServerStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
		return srv.(*talk).chat(srv, stream)
	}}},
}

func serveGRPC(t testing.TB, options ...grpc.ServerOption) (service *talk, state *health.Server, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	service, state = &talk{cancelled: make(chan error, 16)}, health.NewServer()
	server.RegisterService(&talkService, service)
	healthpb.RegisterHealthServer(server, state)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return service, state, listener.Addr().String()
}

// TestGRPC calls a real gRPC server through the gateway, in the clear and over TLS
// on either side.
func TestGRPC(t *testing.T) {
	t.Parallel()
	idp, ca := newIssuer(t), newAuthority(t)
	plainService, plainHealth, plainAddress := serveGRPC(t)
	secureService, secureHealth, secureAddress := serveGRPC(t, grpc.Creds(credentials.NewServerTLSFromCert(new(ca.certificate(t)))))
	cert, key := ca.pair(t)
	for _, up := range []struct {
		name, upstream string
		service        *talk
		state          *health.Server
	}{
		{"h2c", fmt.Sprintf("{url: %q}", "h2c://"+plainAddress), plainService, plainHealth},
		{"https", fmt.Sprintf("{url: %q, tls: {ca_file: %q}}", "https://"+secureAddress, ca.file), secureService, secureHealth},
	} {
		routes := fmt.Sprintf("routes:\n  - {name: all, upstream: %s}\n", up.upstream)
		for _, front := range []struct {
			name   string
			config string
			creds  credentials.TransportCredentials
		}{
			{"h2c", routes, insecure.NewCredentials()},
			{"TLS", fmt.Sprintf("tls: {cert_file: %q, key_file: %q}\n", cert, key) + routes, credentials.NewTLS(&tls.Config{RootCAs: ca.pool()})},
		} {
			t.Run(front.name+" to "+up.name, func(t *testing.T) {
				g := serving(t, guarded(idp, "%s", front.config))
				conn, err := grpc.NewClient(g.public[0], grpc.WithTransportCredentials(front.creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				callGRPC(t, ctx, idp, conn, up.service, up.state)
				eventually(t, 5*time.Second, "no stream is open", func() bool { return metric(t, g, "durward_streams_open") == 0 })
			})
		}
	}
}

func callGRPC(t *testing.T, ctx context.Context, idp *issuer, conn *grpc.ClientConn, service *talk, state *health.Server) {
	t.Helper()
	signedIn := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+idp.token(nil), "x-user", "mallory", "x_user", "mallory", "x-forwarded-user", "mallory")
	checks := healthpb.NewHealthClient(conn)

	// Unary: answered, refused by the gateway, refused by the server (a response
	// that is nothing but trailers).
	if answer, err := checks.Check(signedIn, &healthpb.HealthCheckRequest{}); err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("unary: %v %v", answer, err)
	}
	if _, err := checks.Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("unary without a token: %v", err)
	}
	if _, err := checks.Check(signedIn, &healthpb.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound || status.Convert(err).Message() != "unknown service" {
		t.Errorf("unary, refused by the server: %v", err)
	}

	// A server's stream: each message arrives when it is sent.
	watching, stop := context.WithCancel(signedIn)
	watch, err := checks.Watch(watching, &healthpb.HealthCheckRequest{Service: "app"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVICE_UNKNOWN, healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		if i > 0 {
			state.SetServingStatus("app", want)
		}
		if got, err := watch.Recv(); err != nil || got.Status != want {
			t.Errorf("message %d of the server's stream: %v %v, want %v", i, got, err, want)
		}
	}
	stop()
	if _, err := watch.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("a cancelled stream: %v", err)
	}
	state.SetServingStatus("app", healthpb.HealthCheckResponse_SERVICE_UNKNOWN)

	// Both ways at once.
	open := func(ctx context.Context) grpc.ClientStream {
		t.Helper()
		stream, err := conn.NewStream(ctx, &talkService.Streams[0], "/durward.test.Talk/Chat")
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	say := func(stream grpc.ClientStream, word string) (string, error) {
		t.Helper()
		if err := stream.SendMsg(wrapperspb.String(word)); err != nil {
			t.Fatalf("send %.20q: %v", word, err)
		}
		var heard wrapperspb.StringValue
		err := stream.RecvMsg(&heard)
		return heard.Value, err
	}
	stream := open(signedIn)
	for _, word := range []string{"a", "", "b", strings.Repeat("long ", 500_000)} {
		if heard, err := say(stream, word); err != nil || heard != "you said "+word {
			t.Errorf("both ways: %.20q %v", heard, err)
		}
	}
	if header, err := stream.Header(); err != nil || fmt.Sprint(header["x-heard"]) != "[alice]" {
		t.Errorf("header: %v %v", header, err)
	}
	stream.CloseSend()
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
	if trailer := stream.Trailer(); fmt.Sprint(trailer["x-sum"]) != "[alice]" || fmt.Sprintf("%q", trailer["x-sum-bin"]) != `["\x00\x01\xff"]` {
		t.Errorf("trailer: %v", trailer)
	}

	// The server ends it with an error, in the middle.
	stream = open(signedIn)
	say(stream, "a")
	if _, err := say(stream, "fail"); status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != "genug: 100 % voll" {
		t.Errorf("an error in the middle: %v", err)
	}
	if trailer := stream.Trailer(); fmt.Sprint(trailer["x-sum"]) != "[alice]" {
		t.Errorf("trailer of the error: %v", trailer)
	}

	// The client gives up: the server hears of it.
	leaving, leave := context.WithCancel(signedIn)
	stream = open(leaving)
	say(stream, "a")
	leave()
	select {
	case err := <-service.cancelled:
		if status.Code(err) != codes.Canceled {
			t.Errorf("the server heard %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the server did not hear that the client gave up")
	}
}
