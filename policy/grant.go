package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"durward/decision"
	"durward/token"
)

// A grant is a compiled GrantConfig.
type grant struct {
	name    string // "allow[1]"
	methods []string
	scopes  []string
	claims  []claimRule
	acr     []string
	maxAge  time.Duration
	issuers []string
}

// A claimRule wants the claim to have, or contain, one of the values.
type claimRule struct {
	claim  string
	values []any
}

// A failure is what a grant found missing, as a set.
type failure uint8

const (
	lacksScope  failure = 1 << iota
	lacksStepUp         // acr or max_age: a fresh or stronger login would do
	lacksOther          // claims or issuer: nothing that the client can do
)

// speaksOf tells whether the grant covers the method. GET covers HEAD.
func (g *grant) speaksOf(method string) bool {
	return g.methods == nil || slices.Contains(g.methods, method) ||
		method == http.MethodHead && slices.Contains(g.methods, http.MethodGet)
}

// needsNothing tells whether the grant holds without a token.
func (g *grant) needsNothing() bool {
	return g.scopes == nil && g.claims == nil && g.acr == nil && g.maxAge == 0 && g.issuers == nil
}

// implied tells whether the grant holds wherever the other one does.
func (g *grant) implied(by *grant) bool {
	subset := func(some, all []string) bool {
		return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
	}
	switch {
	case g.methods != nil && (by.methods == nil || slices.ContainsFunc(by.methods, func(m string) bool { return !g.speaksOf(m) })):
		return false
	case !subset(g.scopes, by.scopes):
		return false
	case g.acr != nil && (by.acr == nil || !subset(by.acr, g.acr)):
		return false
	case g.maxAge > 0 && (by.maxAge == 0 || by.maxAge > g.maxAge):
		return false
	case g.issuers != nil && (by.issuers == nil || !subset(by.issuers, g.issuers)):
		return false
	}
	for _, rule := range g.claims {
		if !slices.ContainsFunc(by.claims, func(o claimRule) bool {
			return o.claim == rule.claim && !slices.ContainsFunc(o.values, func(v any) bool { return !slices.Contains(rule.values, v) })
		}) {
			return false
		}
	}
	return true
}

// Open tells whether anybody gets through the route without a token, and with
// which methods; nil are all.
func (rt *Route) Open() (methods []string, open bool) {
	if rt.Auth == Required {
		return nil, false
	}
	if rt.grants == nil {
		return nil, true
	}
	for _, g := range rt.grants {
		if !g.needsNothing() {
			continue
		}
		if g.methods == nil {
			return nil, true
		}
		methods, open = append(methods, g.methods...), true
	}
	return methods, open
}

// Uncovered are the standard methods that no grant of the route speaks of.
func (rt *Route) Uncovered() (methods []string) {
	if rt.grants == nil {
		return nil
	}
	for _, m := range standardMethods {
		covered := slices.ContainsFunc(rt.grants, func(g grant) bool { return g.speaksOf(m) })
		if !covered && !(m == http.MethodOptions && rt.Preflight) {
			methods = append(methods, m)
		}
	}
	return methods
}

func (g *grant) judge(c *token.Claims, now time.Time) failure {
	var f failure
	for _, scope := range g.scopes {
		if !slices.Contains(c.Scopes, scope) {
			f |= lacksScope
			break
		}
	}
	if g.acr != nil && !slices.Contains(g.acr, c.ACR) {
		f |= lacksStepUp
	}
	if g.maxAge > 0 && (c.AuthTime.IsZero() || now.Sub(c.AuthTime) > g.maxAge) {
		f |= lacksStepUp
	}
	for _, rule := range g.claims {
		if !rule.holds(c) {
			f |= lacksOther
			break
		}
	}
	if g.issuers != nil && !slices.Contains(g.issuers, c.Issuer.Name()) {
		f |= lacksOther
	}
	return f
}

// missing is what judge found, in the words of who has to mend it.
func (g *grant) missing(c *token.Claims, now time.Time) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	var scopes []string
	for _, scope := range g.scopes {
		if !slices.Contains(c.Scopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	switch {
	case scopes == nil:
	case c.Scopes == nil:
		add("the scope %s: the token has none", strings.Join(scopes, " "))
	default:
		add("the scope %s: the token has %s", strings.Join(scopes, " "), strings.Join(c.Scopes, " "))
	}
	if g.acr != nil && !slices.Contains(g.acr, c.ACR) {
		add("an acr of %s: the token has %q", strings.Join(g.acr, " "), c.ACR)
	}
	switch {
	case g.maxAge <= 0:
	case c.AuthTime.IsZero():
		add("a login at most %s ago: the token has no auth_time", g.maxAge)
	case now.Sub(c.AuthTime) > g.maxAge:
		add("a login at most %s ago: it was %s ago", g.maxAge, now.Sub(c.AuthTime).Round(time.Second))
	}
	for _, rule := range g.claims {
		if !rule.holds(c) {
			has := "the token lacks it"
			if v := c.Value(rule.claim); v != nil {
				has = fmt.Sprintf("the token has %v", v)
			}
			if len(has) > 200 {
				has = strings.ToValidUTF8(has[:200], "") + "…"
			}
			add("the claim %s with one of %v: %s", rule.claim, []any(rule.values), has)
		}
	}
	if g.issuers != nil && !slices.Contains(g.issuers, c.Issuer.Name()) {
		add("the issuer %s: the token comes from %s", strings.Join(g.issuers, " or "), c.Issuer.Name())
	}
	return strings.Join(parts, "; ")
}

func (r *claimRule) holds(c *token.Claims) bool {
	claim := c.Value(r.claim)
	if list, ok := claim.([]any); ok {
		return slices.ContainsFunc(list, r.equals)
	}
	return r.equals(claim)
}

// equals compares by value and type: the number 1 is not the text "1".
func (r *claimRule) equals(claim any) bool {
	for _, want := range r.values {
		switch have := claim.(type) {
		case string, bool:
			if have == want {
				return true
			}
		case json.Number:
			if sameNumber(have, want) {
				return true
			}
		}
	}
	return false
}

// exact is from where on unequal integers may be equal floats.
const exact = 1 << 53

func sameNumber(have json.Number, want any) bool {
	switch want.(type) {
	case int, int64, uint64:
		if text := fmt.Sprint(want); have.String() == text {
			return true
		}
	case float64:
	default:
		return false
	}
	h, err := have.Float64()
	w, werr := strconv.ParseFloat(fmt.Sprint(want), 64)
	return err == nil && werr == nil && h == w && -exact < h && h < exact
}

// String is the grant as explain shows it.
func (g *grant) String() string {
	var parts []string
	list := func(label string, values []string) {
		if values != nil {
			parts = append(parts, label+" "+strings.Join(values, " "))
		}
	}
	list("methods", g.methods)
	list("scopes", g.scopes)
	for _, rule := range g.claims {
		parts = append(parts, fmt.Sprintf("%s any of %v", rule.claim, rule.values))
	}
	list("acr", g.acr)
	if g.maxAge > 0 {
		parts = append(parts, "login at most "+g.maxAge.String()+" ago")
	}
	list("issuers", g.issuers)
	if parts == nil {
		return "anybody"
	}
	return strings.Join(parts, ", ")
}

func (f failure) String() string {
	var parts []string
	for _, p := range []struct {
		bit  failure
		text string
	}{{lacksScope, "a scope"}, {lacksStepUp, "a stronger or fresher login"}, {lacksOther, "a claim or issuer"}} {
		if f&p.bit != 0 {
			parts = append(parts, p.text)
		}
	}
	return strings.Join(parts, " and ")
}

// Decide judges the route's grants for a request that brought these verified
// claims, nil for none, and writes the outcome into rec. On a route of Auth None
// the claims count for nothing.
func (rt *Route) Decide(method string, c *token.Claims, rec *decision.Record) {
	if rt.Auth == None {
		c = nil
	}
	rt.judge(method, c, rec)
	if rt.Shadow && rec.Verdict != decision.Allow && !(c == nil && rt.Auth == Required) {
		shadow, detail := rec.Reason, rec.Detail
		if c == nil {
			rec.Allow(decision.Public)
		} else {
			rec.Allow(decision.Allowed)
		}
		rec.Shadow, rec.Detail, rec.Remedy = shadow, detail, nil
	}
}

func (rt *Route) judge(method string, c *token.Claims, rec *decision.Record) {
	if c == nil && rt.Auth == Required {
		// The walk refuses earlier; this is for hypothetical questions.
		rec.Refuse(decision.NoToken, "the route requires a token")
		return
	}
	if rt.grants == nil {
		if c == nil {
			rec.Allow(decision.Public)
			return
		}
		rec.Trace.Pass("grant", "the route has no allow: any valid token will do")
		rec.Allow(decision.Allowed)
		return
	}
	var covering []*grant
	for i := range rt.grants {
		g := &rt.grants[i]
		if !g.speaksOf(method) {
			if rec.Trace != nil {
				rec.Trace.Add("grant", "%s (%s) does not speak of %s", g.name, g, method)
			}
			continue
		}
		if c == nil {
			if g.needsNothing() {
				rec.Grant = g.name
				rec.Allow(decision.Public)
				return
			}
		}
		covering = append(covering, g)
	}
	if covering == nil {
		rec.Remedy = &decision.Remedy{Methods: rt.spokenMethods()}
		rec.Refuse(decision.MethodNotAllowed, "no grant of the route speaks of "+method)
		return
	}
	if c == nil {
		rec.Refuse(decision.NoToken, "every grant for this method asks for a token")
		return
	}
	var stepUp, scope *grant
	for _, g := range covering {
		f := g.judge(c, rec.Time)
		if rec.Trace != nil {
			if f == 0 {
				rec.Trace.Pass("grant", "%s (%s) holds", g.name, g)
			} else {
				rec.Trace.Fail("grant", "%s (%s) lacks %s", g.name, g, g.missing(c, rec.Time))
			}
		}
		switch {
		case f == 0:
			rec.Grant = g.name
			rec.Allow(decision.Allowed)
			return
		case f == lacksStepUp && stepUp == nil:
			stepUp = g
		case f&lacksScope != 0 && f&lacksOther == 0 && (scope == nil || f == lacksScope && scope.judge(c, rec.Time) != lacksScope):
			scope = g
		}
	}
	switch {
	case stepUp != nil:
		rec.Grant = stepUp.name
		rec.Remedy = &decision.Remedy{ACR: stepUp.acr, MaxAge: stepUp.maxAge}
		rec.Refuse(decision.StepUp, stepUp.name+" lacks "+lacksStepUp.String())
	case scope != nil:
		rec.Grant = scope.name
		rec.Remedy = &decision.Remedy{Scopes: scope.scopes}
		rec.Refuse(decision.InsufficientScope, fmt.Sprintf("%s needs %s, the token has %s",
			scope.name, strings.Join(scope.scopes, " "), cmp.Or(strings.Join(c.Scopes, " "), "none")))
	default:
		rec.Refuse(decision.Forbidden, "no grant for this method holds")
	}
}

// spokenMethods are the methods for the Allow field of a 405 (RFC 9110 section
// 15.5.6), in the order of the grants.
func (rt *Route) spokenMethods() []string {
	var ms []string
	for _, g := range rt.grants {
		for _, m := range g.methods {
			if !slices.Contains(ms, m) {
				ms = append(ms, m)
			}
			if m == http.MethodGet && !slices.Contains(ms, http.MethodHead) {
				ms = append(ms, http.MethodHead)
			}
		}
	}
	return ms
}
