package proxy

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
)

func TestTrustedProxiesProblems(t *testing.T) {
	for _, c := range []struct {
		list []string
		want string // "" is good
	}{
		{[]string{"10.0.0.0/8", "192.0.2.7", "fd00::/8", "::1", "unix"}, ""},
		{[]string{"0.0.0.0/0"}, "trusts every address"},
		{[]string{"::/0"}, "trusts every address"},
		{[]string{"0.0.0.0/1", "128.0.0.0/1"}, "trusts every address"},
		{[]string{"8000::/1", "::/2", "4000::/2"}, "trusts every address"},
		{[]string{"0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/1", "10.0.0.0/8"}, "trusts every address"},
		{[]string{"::ffff:0.0.0.0/96"}, "trusts every address"},
		{[]string{"0.0.0.0/1", "128.0.0.0/2"}, ""},
		{[]string{"10.0.0.0/33"}, "is no address or CIDR"},
		{[]string{"proxy.example"}, "is no address or CIDR"},
		{[]string{"fe80::1%eth0"}, "is no address or CIDR"},
	} {
		_, err := ParseTrustedProxies(c.list, false)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v, want %q", c.list, err, c.want)
		}
	}
	if _, err := ParseTrustedProxies(nil, true); err == nil {
		t.Error("forwarded_host without trusted proxies was accepted")
	}
}

func TestPeer(t *testing.T) {
	trusted, err := ParseTrustedProxies([]string{"10.0.0.0/8", "unix"}, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, remote  string
		tls           bool
		header        http.Header
		client, chain string
		https         bool
		host          string
		wantErr       bool
	}{
		{name: "direct", remote: "192.0.2.1:5", client: "192.0.2.1", chain: "192.0.2.1", host: "app.test"},
		{name: "direct TLS", remote: "192.0.2.1:5", tls: true, client: "192.0.2.1", chain: "192.0.2.1", https: true, host: "app.test"},
		{name: "IPv4 in IPv6", remote: "[::ffff:192.0.2.1]:5", client: "192.0.2.1", chain: "192.0.2.1", host: "app.test"},
		{name: "forged by a client", remote: "192.0.2.1:5", client: "192.0.2.1", chain: "192.0.2.1", host: "app.test",
			header: http.Header{"X-Forwarded-For": {"10.1.1.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"evil.test"}}},
		{name: "through a proxy", remote: "10.0.0.1:5", client: "192.0.2.1", chain: "192.0.2.1, 10.0.0.1", https: true, host: "public.test",
			header: http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"public.test"}}},
		{name: "through two, forged left part", remote: "10.0.0.1:5", client: "192.0.2.1", chain: "192.0.2.1, 10.0.0.2, 10.0.0.1", host: "app.test",
			header: http.Header{"X-Forwarded-For": {"1.1.1.1, 192.0.2.1", "10.0.0.2"}}},
		{name: "junk in the chain", remote: "10.0.0.1:5", client: "10.0.0.2", chain: "10.0.0.2, 10.0.0.1", host: "app.test",
			header: http.Header{"X-Forwarded-For": {"1.1.1.1, unknown, 10.0.0.2"}}},
		{name: "with ports", remote: "10.0.0.1:5", client: "192.0.2.1", chain: "192.0.2.1, 10.0.0.1", host: "app.test",
			header: http.Header{"X-Forwarded-For": {"192.0.2.1:4711"}}},
		{name: "unix socket", remote: "@", client: "192.0.2.1", chain: "192.0.2.1", host: "app.test",
			header: http.Header{"X-Forwarded-For": {"192.0.2.1"}}},
		{name: "two hosts", remote: "10.0.0.1:5", header: http.Header{"X-Forwarded-Host": {"a.test", "b.test"}}, wantErr: true},
		{name: "a list of hosts", remote: "10.0.0.1:5", header: http.Header{"X-Forwarded-Host": {"a.test, b.test"}}, wantErr: true},
		{name: "two schemes", remote: "10.0.0.1:5", header: http.Header{"X-Forwarded-Proto": {"http", "https"}}, wantErr: true},
		{name: "odd scheme", remote: "10.0.0.1:5", header: http.Header{"X-Forwarded-Proto": {"ftp"}}, wantErr: true},
	} {
		r := &http.Request{RemoteAddr: c.remote, Host: "app.test", Header: c.header}
		if c.tls {
			r.TLS = &tls.ConnectionState{}
		}
		p, err := trusted.peer(r)
		if c.wantErr {
			if err == nil {
				t.Errorf("%s: accepted as %+v", c.name, p)
			}
			continue
		}
		if err != nil || p.client.String() != c.client || p.forwardedFor() != c.chain || p.https != c.https || p.host != c.host {
			t.Errorf("%s: got %+v, %v", c.name, p, err)
		}
	}
}

func TestResembles(t *testing.T) {
	own := []string{"__Host-session"}
	for line, want := range map[string]bool{
		"__Host-session=x; Path=/": true, "__host-SESSION=x": true, " __Host-session =x": true, "__Host-session": true, "=__Host-session=x": true,
		"\"__Host-session\"=x": true, "\t__Host-session\t=": true,
		"other=x": false, "__Host-session2=x": false, "x=__Host-session=y": false, "x__Host-session=y": false, "": false,
	} {
		if got := resembles(line, own); got != want {
			t.Errorf("%q: got %v", line, got)
		}
	}
}

func TestHypothetical(t *testing.T) {
	r, err := Hypothetical("GET", "https://app.test:8443/a/../b?x=1;y", http.Header{"Host": {"other.test"}})
	if err != nil || r.Host != "other.test" || r.RequestURI != "/a/../b?x=1;y" || r.TLS == nil {
		t.Errorf("got %+v, %v", r, err)
	}
	r, err = Hypothetical("GET", "http://app.test", nil)
	if err != nil || r.Host != "app.test" || r.RequestURI != "/" || r.TLS != nil {
		t.Errorf("got %+v, %v", r, err)
	}
	for _, bad := range []string{"", "/x", "ftp://a/", "app.test/x"} {
		if _, err := Hypothetical("GET", bad, nil); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
