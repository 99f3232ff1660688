package main

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"durward/denylist"
	"durward/denylist/httpfeed"
	"durward/token"
)

// fleetConfig checks what the configuration says about other gateways, and reads
// the keys.
func (b *builder) fleetConfig() {
	d := &b.Denylist
	if d.SigningKeyFile != "" {
		key, err := readPEM(d.SigningKeyFile, x509.ParsePKCS8PrivateKey)
		private, ok := key.(ed25519.PrivateKey)
		switch {
		case err != nil:
			b.problem("denylist.signing_key_file", "%v; make one with: openssl genpkey -algorithm ed25519 -out ed25519.pem", err)
		case !ok:
			b.problem("denylist.signing_key_file", "%s holds another kind of key than Ed25519", d.SigningKeyFile)
		}
		b.out.signing = private
	}
	if d.SourceKeys != nil && len(d.SourceKeys) == 0 {
		b.problem("denylist.source_keys", "is empty; leave the key out to follow unsigned records")
	}
	var keys []denylist.Key
	names := map[string]string{} // by key
	for _, name := range slices.Sorted(maps.Keys(d.SourceKeys)) {
		source := d.SourceKeys[name]
		file := source.File
		key, err := readPEM(file, x509.ParsePKIXPublicKey)
		public, ok := key.(ed25519.PublicKey)
		switch {
		case err != nil:
			b.problem("denylist.source_keys."+name, "%v; make one with: openssl pkey -in ed25519.pem -pubout -out ed25519.pub", err)
		case !ok:
			b.problem("denylist.source_keys."+name, "%s holds another kind of key than Ed25519", file)
		case twin(d.SourceKeys, names[string(public)], source):
			b.problem("denylist.source_keys."+name, "is the key of %s with another grant, and only one can hold; leave one of the two out", names[string(public)])
		default:
			names[string(public)] = name
			keys = append(keys, denylist.Key{Name: name, Public: public, Grant: b.grant("denylist.source_keys."+name, source)})
		}
	}
	b.out.sourceKeys = denylist.NewKeys(keys...)
	b.serveFeed()
}

// twin is whether there is a key of this name, with another grant.
func twin(keys map[string]SourceKeyConfig, name string, other SourceKeyConfig) bool {
	key, ok := keys[name]
	key.File = other.File
	return ok && !reflect.DeepEqual(key, other)
}

// grant is what the holder of a source key may say.
func (b *builder) grant(place string, c SourceKeyConfig) denylist.Grant {
	g := denylist.Grant{NoMass: c.Mass != nil && !*c.Mass, PerMinute: c.PerMinute}
	if c.PerMinute < 0 {
		b.problem(place+".per_minute", "is negative; leave it out for no limit")
	}
	if c.Issuers != nil && len(c.Issuers) == 0 || c.Kinds != nil && len(c.Kinds) == 0 {
		b.problem(place, "has an empty list, with which it could say nothing; leave the key out for all")
	}
	for _, name := range c.Issuers {
		i := slices.IndexFunc(b.Issuers, func(i token.IssuerConfig) bool { return i.Name == name })
		if i < 0 {
			b.problem(place+".issuers", "%q is not the name of a configured issuer", name)
			continue
		}
		g.Issuers = append(g.Issuers, b.Issuers[i].Issuer)
	}
	for _, name := range c.Kinds {
		kind := token.Kind(0)
		for k := token.Kind(1); int(k) <= token.Kinds; k++ {
			if k.String() == name {
				kind = k
			}
		}
		if kind == 0 {
			b.problem(place+".kinds", "%q is not known; write jti, sid, sub, client or iss", name)
			continue
		}
		g.Kinds = append(g.Kinds, kind)
	}
	return g
}

// readPEM reads the key in a PEM file.
func readPEM(file string, parse func([]byte) (any, error)) (any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key", file)
	}
	key, err := parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

func (b *builder) serveFeed() {
	c := b.Denylist.ServeFeed
	if c == nil {
		return
	}
	const place = "denylist.serve_feed"
	checkAddress(c.Listen, false, func(format string, args ...any) { b.problem(place+".listen", format, args...) })
	host, _, _ := net.SplitHostPort(c.Listen)
	open := !httpfeed.IsLoopback(host)
	if c.TokenFile != "" {
		text, err := os.ReadFile(c.TokenFile)
		switch b.out.hubToken = strings.TrimSpace(string(text)); {
		case err != nil:
			b.problem(place+".token_file", "%v", err)
		case b.out.hubToken == "":
			b.problem(place+".token_file", "%s is empty; put a long random token there", c.TokenFile)
		case len(b.out.hubToken) < 16:
			b.warn(place+".token_file", "%s holds fewer than 16 characters, which can be guessed; put a long random token there", c.TokenFile)
		}
	}
	certificates := c.TLS != nil && c.TLS.ClientCAFile != ""
	switch {
	case c.TokenFile != "" || certificates:
	case open:
		b.problem(place, "anybody could read who was revoked; give it a token_file, or tls with a client_ca_file")
	default:
		b.warn(place, "without token_file anybody on this machine can read who was revoked, and no gateway can forward revocations")
	}
	if open && c.TLS == nil && b.Denylist.SigningKeyFile == "" {
		b.problem(place, "is plain http off loopback, where anybody between could hold revocations back; give it tls, or sign the records (signing_key_file)")
	}
	if c.TLS != nil {
		if _, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile); err != nil {
			b.problem(place+".tls", "%v; cert_file and key_file must be a PEM certificate chain and its private key", err)
		}
	}
	if certificates {
		text, err := os.ReadFile(c.TLS.ClientCAFile)
		b.out.hubClients = x509.NewCertPool()
		if err != nil {
			b.problem(place+".tls.client_ca_file", "%v", err)
		} else if !b.out.hubClients.AppendCertsFromPEM(text) {
			b.problem(place+".tls.client_ca_file", "%s holds no PEM certificate", c.TLS.ClientCAFile)
		}
	}
	follows := slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.HTTP != nil })
	if follows && !slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.ForwardRevocations }) {
		b.warn(place, "hands on what other hubs say, but what is revoked here does not come to them and to those who follow them; let a feed forward_revocations")
	}
	file := slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.File != "" })
	if file && slices.ContainsFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.HTTP != nil }) {
		b.warn(place, "hands on what a file here says to those alone who follow this gateway; whoever follows the hub beside it may be in step without it: give the file to the hub")
	}
	if len(b.Denylist.SourceKeys) > 0 && b.Denylist.SigningKeyFile == "" {
		b.problem(place, "hands on snapshots, which must be signed where source_keys are configured; give this gateway a signing_key_file whose public key its followers know")
	}
}

// feedConfig checks one feed.
func (b *builder) feedConfig(place string, feed FeedConfig) {
	signed := len(b.Denylist.SourceKeys) > 0
	var kinds []string
	for _, k := range []struct {
		name string
		has  bool
	}{{"file", feed.File != ""}, {"http", feed.HTTP != nil}, {"nats", feed.NATS != nil}, {"redis", feed.Redis != nil}} {
		if k.has {
			kinds = append(kinds, k.name)
		}
	}
	switch {
	case len(kinds) == 0:
		b.problem(place, "has no source; give it a file, http, nats or redis")
		return
	case len(kinds) > 1:
		b.problem(place, "has %s; give it one, and the other a feed of its own", strings.Join(kinds, " and "))
		return
	case feed.File != "":
		if feed.ForwardRevocations || feed.Mass != nil {
			b.problem(place, "is a file; forward_revocations and mass are for feeds that come from elsewhere")
		}
		return
	case feed.HTTP != nil:
		b.add(place+".http", feed.HTTP.Check(signed))
		for _, address := range feed.HTTP.URLs {
			if u, err := url.Parse(address); err == nil && u.Scheme == "http" && feed.HTTP.TokenFile != "" && !httpfeed.IsLoopback(u.Hostname()) {
				b.warn(place+".http", "the token travels in the open to %s: whoever listens can revoke in this gateway's name; use https", u.Host)
			}
		}
	case feed.NATS != nil:
		b.add(place+".nats", feed.NATS.Check(signed))
	case feed.Redis != nil:
		b.add(place+".redis", feed.Redis.Check(signed))
	}
	if b.Denylist.Lease < 2*time.Second {
		b.problem("denylist.lease", "%s is too short for feed %q, whose heartbeats come each second; write 2s or more", b.Denylist.Lease, feed.Name)
	}
	if !feed.ForwardRevocations {
		return
	}
	if i := slices.IndexFunc(b.Denylist.Feeds, func(f FeedConfig) bool { return f.ForwardRevocations }); b.Denylist.Feeds[i].Name != feed.Name {
		b.problem(place+".forward_revocations", "feed %q has it already; what is revoked here goes one way", b.Denylist.Feeds[i].Name)
	}
	if _, known := b.out.sourceKeys[denylist.Signer(b.out.signing)]; signed && !known && feed.HTTP == nil {
		b.problem(place+".forward_revocations", "others would refuse what this gateway writes: it needs a signing_key_file whose public key is one of source_keys")
	}
}
