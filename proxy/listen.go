package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Listen puts the front before the listener's connections. With a config they
// speak TLS; then the handshake is made before Accept, as only its outcome tells
// whether HTTP/2 is spoken. net/http must be willing to speak it without TLS
// (Protocols.SetUnencryptedHTTP2): it is not told of TLS below HTTP/2, or else it would
// want the *tls.Conn itself, and the frames could not be seen (pace).
func (f *Front) Listen(l net.Listener, config *tls.Config) net.Listener {
	if config == nil {
		return plainListener{l, f}
	}
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	ctx, cancel := context.WithCancel(context.Background())
	secure := &tlsListener{Listener: l, front: f, config: config, ctx: ctx, cancel: cancel, accepted: make(chan accepted)}
	secure.tasks.Go(secure.run)
	return secure
}

type plainListener struct {
	net.Listener
	front *Front
}

func (l plainListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &strict{Conn: conn, front: l.front}, nil
}

// A tlsListener makes handshakes, each in a goroutine with a time limit, as
// net/http would.
type tlsListener struct {
	net.Listener
	front    *Front
	config   *tls.Config
	ctx      context.Context // ends with the listener; the one who asks for a handshake is the listener itself
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	accepted chan accepted
}

type accepted struct {
	conn net.Conn
	err  error
}

func (l *tlsListener) run() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			// The server decides whether that was the last; until it asks again
			// nothing is tried.
			if !l.deliver(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		l.tasks.Go(func() { l.handshake(conn) })
	}
}

func (l *tlsListener) deliver(a accepted) bool {
	select {
	case l.accepted <- a:
		return true
	case <-l.ctx.Done():
		return false
	}
}

func (l *tlsListener) handshake(plain net.Conn) {
	conn := tls.Server(plain, l.config)
	if d := l.front.Limits().HeaderTimeout; d > 0 {
		conn.SetDeadline(time.Now().Add(d))
	}
	if err := conn.HandshakeContext(l.ctx); err != nil {
		l.front.Log.Debug("TLS handshake", "client", plain.RemoteAddr(), "error", err)
		if odd, ok := errors.AsType[tls.RecordHeaderError](err); ok && odd.Conn != nil && looksLikeHTTP(odd.RecordHeader) {
			io.WriteString(plain, "HTTP/1.0 400 Bad Request\r\n\r\nThis port speaks HTTPS.\n")
		}
		plain.Close()
		return
	}
	a := accepted{conn: conn}
	switch state := conn.ConnectionState(); {
	case state.NegotiatedProtocol != "h2":
		a.conn = &secured{strict{Conn: conn, front: l.front}, state}
	case state.Version == tls.VersionTLS12 && !isAEAD(state.CipherSuite):
		l.front.Log.Debug("TLS handshake", "client", plain.RemoteAddr(), "error", "HTTP/2 with "+tls.CipherSuiteName(state.CipherSuite)+", which RFC 9113 prohibits")
		conn.Close()
		return
	default:
		stop := context.AfterFunc(l.ctx, func() { plain.Close() })
		preface := make([]byte, len(http2Preface))
		_, err := io.ReadFull(conn, preface)
		if !stop() || err != nil || string(preface) != http2Preface {
			conn.Close()
			return
		}
		a.conn = &strict{Conn: conn, front: l.front, under: &state, at: beyond, buf: preface, pass: len(preface), pace: l.front.pace(conn, len(preface))}
	}
	conn.SetDeadline(time.Time{})
	if !l.deliver(a) {
		conn.Close()
	}
}

// isAEAD is whether a cipher suite of TLS 1.2 that crypto/tls agrees to is none of
// those that RFC 9113 section 9.2.2 prohibits: all of these have CBC or RC4, or no
// ephemeral key exchange.
func isAEAD(suite uint16) bool {
	name := tls.CipherSuiteName(suite)
	return strings.HasPrefix(name, "TLS_ECDHE_") && (strings.Contains(name, "_GCM_") || strings.Contains(name, "_CHACHA20_"))
}

// looksLikeHTTP tells whether somebody spoke HTTP to a port that speaks HTTPS.
func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

func (l *tlsListener) Accept() (net.Conn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends handshakes in progress too.
func (l *tlsListener) Close() error {
	err := l.Listener.Close()
	l.cancel()
	l.tasks.Wait()
	return err
}

// A secured connection is a strict one under TLS; the server learns of that by
// ConnectionState.
type secured struct {
	strict
	state tls.ConnectionState
}

// ConnectionState is how the handshake ended.
func (c *secured) ConnectionState() tls.ConnectionState { return c.state }
