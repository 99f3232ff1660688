package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"durward/token"
)

// TrustedProxies are the peers whose X-Forwarded-For, -Proto and, where asked
// for, -Host are believed. The zero value trusts nobody.
type TrustedProxies struct {
	prefixes []netip.Prefix
	unix     bool // peers on a unix-socket listener
	host     bool // forwarded_host
}

// ParseTrustedProxies reads addresses and CIDR blocks, and the word unix for
// whoever connects to a unix-socket listener. Everybody, spelled in whatever
// way, is refused: then any client could name its own address. The error joins
// all problems, each a *token.FieldError.
func ParseTrustedProxies(list []string, forwardedHost bool) (TrustedProxies, error) {
	t := TrustedProxies{host: forwardedHost}
	var errs []error
	for i, s := range list {
		if s == "unix" {
			t.unix = true
			continue
		}
		prefix, err := netip.ParsePrefix(s)
		if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			errs = append(errs, &token.FieldError{Field: fmt.Sprintf("trusted_proxies[%d]", i),
				Err: fmt.Errorf(`%q is no address or CIDR block; write 10.0.0.0/8, 192.0.2.7 or unix`, s)})
			continue
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		t.prefixes = append(t.prefixes, prefix.Masked())
	}
	for _, all := range []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")} {
		if t.covers(all) {
			errs = append(errs, &token.FieldError{Field: "trusted_proxies",
				Err: fmt.Errorf("trusts every address (%s): any client could claim any other's; name the proxies in front of this gateway", all)})
		}
	}
	if forwardedHost && len(list) == 0 {
		errs = append(errs, &token.FieldError{Field: "forwarded_host", Err: errors.New("needs trusted_proxies: X-Forwarded-Host is believed from them alone")})
	}
	if errs != nil {
		return TrustedProxies{}, errors.Join(errs...)
	}
	return t, nil
}

// covers tells whether the listed blocks together make up the whole prefix, so
// that 0.0.0.0/1 and 128.0.0.0/1 are seen for what they are.
func (t TrustedProxies) covers(p netip.Prefix) bool {
	inside := false
	for _, q := range t.prefixes {
		if q.Addr().BitLen() != p.Addr().BitLen() {
			continue
		}
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return true
		}
		inside = inside || p.Contains(q.Addr())
	}
	if !inside || p.Bits() == p.Addr().BitLen() {
		return false
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	bytes := p.Addr().AsSlice()
	bytes[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	addr, _ := netip.AddrFromSlice(bytes)
	return t.covers(low) && t.covers(netip.PrefixFrom(addr, p.Bits()+1))
}

func (t TrustedProxies) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(t.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// A peer is where a request came from, as far as trusted proxies vouch for it.
type peer struct {
	trusted bool       // the connection's other end is a trusted proxy
	client  netip.Addr // the first address from the right that is not a trusted proxy; invalid on a unix socket
	chain   string     // from a trusted proxy: see forwardedFor
	https   bool       // the client's scheme
	host    string     // as it was asked for
}

// forwardedFor is what trusted proxies vouch for of X-Forwarded-For, then the
// connection's other end; "" on a unix socket.
func (p peer) forwardedFor() string {
	if p.chain == "" && p.client.IsValid() {
		return p.client.String()
	}
	return p.chain
}

// other is a connection's other end, invalid on a unix socket, and whether it is a
// trusted proxy.
func (t TrustedProxies) other(address string) (addr netip.Addr, trusted bool) {
	addrPort, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Addr{}, t.unix
	}
	addr = addrPort.Addr().Unmap().WithZone("")
	return addr, t.contains(addr)
}

// peer reads the connection and, from a trusted proxy, the forwarding headers.
// Left of the first address that no trusted proxy vouches for, everything may be
// forged; it is dropped, as upstreams like to believe the leftmost entry.
func (t TrustedProxies) peer(r *http.Request) (peer, error) {
	p := peer{https: r.TLS != nil, host: r.Host}
	if p.client, p.trusted = t.other(r.RemoteAddr); !p.trusted {
		return p, nil
	}
	if p.client.IsValid() {
		p.chain = p.client.String()
	}
	t.walkBack(&p, r.Header.Values("X-Forwarded-For"))
	switch proto := r.Header.Values("X-Forwarded-Proto"); {
	case len(proto) > 1:
		return p, errors.New("a trusted proxy sent X-Forwarded-Proto twice")
	case len(proto) == 1:
		switch strings.ToLower(proto[0]) {
		case "https", "wss": // some say ws and wss for a WebSocket handshake
			p.https = true
		case "http", "ws":
			p.https = false
		default:
			return p, errors.New("a trusted proxy sent an X-Forwarded-Proto that is neither http nor https")
		}
	}
	if hosts := r.Header.Values("X-Forwarded-Host"); t.host && len(hosts) > 0 {
		if len(hosts) > 1 || strings.Contains(hosts[0], ",") {
			return p, errors.New("a trusted proxy sent several X-Forwarded-Host")
		}
		p.host = hosts[0]
	}
	return p, nil
}

// walkBack goes through the X-Forwarded-For chain from its right end.
func (t TrustedProxies) walkBack(p *peer, fields []string) {
	hops := strings.Split(strings.Join(fields, ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := strings.TrimSpace(hops[i])
		if hop == "" {
			continue // RFC 9110 section 5.6.1.2: empty list elements are ignored
		}
		addr, err := netip.ParseAddr(hop)
		if host, _, splitErr := net.SplitHostPort(hop); err != nil && splitErr == nil {
			addr, err = netip.ParseAddr(host) // some proxies add the port
		}
		if err != nil {
			return
		}
		addr = addr.Unmap().WithZone("")
		p.client = addr
		if p.chain == "" {
			p.chain = addr.String()
		} else {
			p.chain = addr.String() + ", " + p.chain
		}
		if !t.contains(addr) {
			return
		}
	}
}
