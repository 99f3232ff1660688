package token

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	maxDocument    = 1 << 20   // bytes of a key set or a discovery document
	discoveryValid = time.Hour // how long a discovered address is used without asking again
)

// A source is where a key set comes from: httpSource or fileSource.
type source interface {
	// read returns the document and its stamp, or no document if it is still the one
	// with the known stamp.
	read(ctx context.Context, known stamp) ([]byte, stamp, error)
	rest()          // give back connections that wait for the next read
	String() string // for messages
}

// A stamp tells whether a document has changed. The zero stamp is none.
type stamp struct {
	url, etag string
	sum       [sha256.Size]byte // of a file
}

// A fileSource is the path of a file with a key set.
type fileSource string

func (f fileSource) String() string { return fmt.Sprintf("%q", string(f)) }
func (f fileSource) rest()          {}

// read compares the content: its size and times stay as they were if it is replaced
// by a tool that keeps them, as some that deploy do.
func (f fileSource) read(_ context.Context, known stamp) ([]byte, stamp, error) {
	// Without O_NONBLOCK, opening a pipe would block.
	file, err := os.OpenFile(string(f), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, stamp{}, fmt.Errorf("%q is not a regular file", string(f))
	}
	document, err := readAll(file)
	if err != nil {
		return nil, stamp{}, fmt.Errorf("read %q: %w", string(f), err)
	}
	now := stamp{sum: sha256.Sum256(document)}
	if now == known {
		return nil, known, nil
	}
	return document, now, nil
}

// An httpSource fetches a key set, and finds out its address if none is given.
// Only one read runs at a time.
type httpSource struct {
	client  *http.Client
	issuer  string
	address string // of the key set; "" means discovery

	discovered string // the address that discovery found; "" asks again
	at         time.Time
}

func newHTTPSource(issuer, address string, pool *x509.CertPool) *httpSource {
	return &httpSource{issuer: issuer, address: address, client: &http.Client{
		Timeout: fetchTimeout,
		// A redirect would let the issuer's host, or whoever can speak for it in plain
		// HTTP, hand the choice of the keys to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  nil, // HTTP_PROXY must not choose who delivers the keys
			DialContext:            (&net.Dialer{Timeout: fetchTimeout}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
			TLSHandshakeTimeout:    fetchTimeout,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // the limit is on bytes received
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        2 * RefreshInterval,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}}
}

func (h *httpSource) rest() { h.client.CloseIdleConnections() }

func (h *httpSource) String() string {
	if address := cmp.Or(h.address, h.discovered); address != "" {
		return shown(address)
	}
	return h.discovery()
}

// shown is an address without its query, which may hold a key of its own; messages
// and status pages are read by many.
func shown(address string) string {
	if u, err := url.Parse(address); err == nil {
		address = u.Redacted()
	}
	before, _, _ := strings.Cut(address, "?")
	return before
}

// discovery is the address of the metadata (OpenID Connect Discovery section 4).
func (h *httpSource) discovery() string {
	return strings.TrimSuffix(h.issuer, "/") + "/.well-known/openid-configuration"
}

func (h *httpSource) read(ctx context.Context, known stamp) ([]byte, stamp, error) {
	address := h.address
	if address == "" {
		if h.discovered == "" || time.Since(h.at) > discoveryValid {
			found, err := h.discover(ctx)
			if err != nil {
				return nil, stamp{}, fmt.Errorf("discover keys at %s: %w", h.discovery(), err)
			}
			h.discovered, h.at = found, time.Now()
		}
		address = h.discovered
	}
	if known.url != address {
		known = stamp{}
	}
	document, etag, err := h.get(ctx, address, known.etag)
	if err != nil {
		h.discovered = "" // it may have moved
		return nil, stamp{}, fmt.Errorf("fetch keys from %s: %w", shown(address), err)
	}
	return document, stamp{url: address, etag: etag}, nil
}

// discover finds the address of the keys. The metadata must be the issuer's own,
// byte for byte (section 4.3): else one tenant of a host could name another's keys.
func (h *httpSource) discover(ctx context.Context) (string, error) {
	document, _, err := h.get(ctx, h.discovery(), "")
	if err != nil {
		return "", err
	}
	var metadata map[string]json.RawMessage // a map, as its names keep their case
	if err := json.Unmarshal(document, &metadata); err != nil {
		return "", errors.New("not a JSON object")
	}
	var issuer, address string
	if err := json.Unmarshal(metadata["issuer"], &issuer); err != nil || issuer != h.issuer {
		return "", fmt.Errorf("the document is of issuer %q, not %q", clip(issuer), h.issuer)
	}
	if err := json.Unmarshal(metadata["jwks_uri"], &address); err != nil {
		return "", errors.New("no jwks_uri")
	}
	if err := checkURL(address); err != nil {
		return "", fmt.Errorf("jwks_uri %w", err)
	}
	if u, err := url.Parse(h.issuer); err == nil && u.Scheme == "https" && !strings.HasPrefix(foldASCII(address), "https:") {
		return "", fmt.Errorf("jwks_uri %q is plain http, the issuer is not", clip(shown(address)))
	}
	return address, nil
}

// get fetches one document. It is nil if the server says that it still has the
// etag. The content type is not checked: too many servers get it wrong.
func (h *httpSource) get(ctx context.Context, address, etag string) ([]byte, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, "", errors.New("not a URL")
	}
	request.Header.Set("Accept", "application/json")
	if etag != "" {
		request.Header.Set("If-None-Match", etag)
	}
	response, err := h.client.Do(request)
	if err != nil {
		var wrapped *url.Error // it repeats method and address
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, "", err
	}
	defer response.Body.Close()
	switch status := response.StatusCode; {
	case status == http.StatusNotModified && etag != "":
		return nil, etag, nil
	case 300 <= status && status < 400:
		return nil, "", fmt.Errorf("%s to %q: redirects are not followed, configure the final address", response.Status, clip(shown(response.Header.Get("Location"))))
	case status != http.StatusOK:
		return nil, "", errors.New(response.Status)
	}
	document, err := readAll(response.Body)
	return document, response.Header.Get("ETag"), err
}

// readAll reads a document to its end. The result is not nil without an error.
func readAll(r io.Reader) ([]byte, error) {
	document, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(document) > maxDocument {
		return nil, fmt.Errorf("more than %d bytes", maxDocument)
	}
	return document, nil
}
