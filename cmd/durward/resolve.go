package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"durward/proxy"
)

// A resolver turns references into the one thing that they refer to.
type resolver struct {
	*builder
	named      map[string]*proxy.Upstream
	used       map[string]bool
	assertions map[proxy.AssertionConfig]*proxy.Assertion
}

func (r *resolver) upstream(place, name string, cfg proxy.UpstreamConfig) *proxy.Upstream {
	var prev *proxy.Upstream
	if r.prev != nil {
		if i := slices.IndexFunc(r.prev.upstreams, func(u *proxy.Upstream) bool { return u.Name == name }); i >= 0 {
			prev = r.prev.upstreams[i]
		}
	}
	u, err := proxy.NewUpstream(name, cfg, prev)
	if err != nil {
		r.add(place, err)
		return nil
	}
	if u.PlainOffLoopback() {
		r.warn(place, "identity headers travel in the clear to %s; use https, or keep it on this machine", cfg.URL)
	}
	r.out.upstreams = append(r.out.upstreams, u)
	return u
}

// reference finds the upstream that a route names, or makes the one that it
// describes; routes with the same URL share it.
func (r *resolver) reference(place string, rc *RouteConfig) *proxy.Upstream {
	ref := rc.Upstream.Ref
	switch {
	case ref == "" && rc.Upstream.URL != "":
		return r.upstream(place+".upstream", rc.Name, rc.Upstream.UpstreamConfig)
	case ref == "":
		r.problem(place+".upstream", "is missing; write the name of an upstream or a URL such as http://127.0.0.1:3000")
		return nil
	}
	if u, known := r.named[ref]; known {
		r.used[ref] = true
		return u
	}
	if !strings.Contains(ref, ":") {
		names := slices.Sorted(maps.Keys(r.Upstreams))
		remedy := "write a URL such as http://127.0.0.1:3000"
		if near := nearest(ref, names); near != "" {
			remedy = fmt.Sprintf("did you mean %q?", near)
		} else if names != nil {
			remedy = "name one of " + strings.Join(names, ", ") + ", or " + remedy
		}
		r.problem(place+".upstream", "%q is neither a configured upstream nor a URL; %s", ref, remedy)
		return nil
	}
	u := r.upstream(place+".upstream", ref, proxy.UpstreamConfig{URL: ref})
	r.named[ref] = u
	return u
}

func (r *resolver) identity(place string, cfg proxy.IdentityConfig) (*proxy.Identity, error) {
	if cfg.Headers != nil && len(cfg.Headers) == 0 {
		r.problem(place+".headers", "is empty; leave the key out for the default, or list headers")
	}
	if cfg.Assertion == nil {
		return proxy.NewIdentity(cfg, nil)
	}
	if r.assertions == nil {
		r.assertions = map[proxy.AssertionConfig]*proxy.Assertion{}
	}
	a, known := r.assertions[*cfg.Assertion]
	if !known {
		var err error
		if a, err = proxy.NewAssertion(*cfg.Assertion); err != nil {
			r.add(place+".assertion", err)
		}
		r.assertions[*cfg.Assertion] = a
	}
	return proxy.NewIdentity(cfg, a)
}

func mergeIdentity(general, route proxy.IdentityConfig) proxy.IdentityConfig {
	if route.Headers == nil {
		route.Headers = general.Headers
	}
	if route.Assertion == nil {
		route.Assertion = general.Assertion
	}
	if route.ForwardToken == nil {
		route.ForwardToken = general.ForwardToken
	}
	return route
}
