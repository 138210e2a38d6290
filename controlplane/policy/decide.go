package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// Request is one request, or one tcp connection, as it arrives at the proxy that
// judges it: the callee's, or, for an external service, the caller's own.
type Request struct {
	CallerID     string   // the URI SAN of the peer's verified certificate; empty: none
	Service      spec.Ref // a workload or an external service; see Resolve
	Port         string   // empty: the only port of the service
	TCP          bool     // a connection to a tcp port; Method, Path and Authority are empty then
	Method, Path string   // Path with its query, not normalized
	Authority    string   // empty: a host of the port

	Plaintext bool       // no TLS; CallerID is empty
	Source    netip.Addr // the TCP peer of the judging proxy; zero: 127.0.0.1
	Headers   []Header   // as sent, in order; without pseudo headers, host and authorization
	Upgrade   string     // "websocket" for an upgrade request and for extended CONNECT
	Token     Token      // what authorization says
	Time      time.Time  // when it begins; zero: no condition of time holds
	Denied    bool       // what the external authorizer answers, if it is asked: no
}

// Header is one header of a request. Its name is in lower case.
type Header struct{ Name, Value string }

// Token is what the authorization header of a request says.
type Token struct {
	State    TokenState
	Provider string         // of a valid one
	Claims   map[string]any // of a valid one, as encoding/json decodes them
}

// TokenState is what verifying a token gave.
type TokenState uint8

// The states of a token.
const (
	TokenNone    TokenState = iota // there is none
	TokenInvalid                   // there is one that does not verify, or more than one
	TokenValid
)

// The reasons of a Decision that name no document.
const (
	ReasonTransport = "transport" // denied: no identity that the mesh verifies
	ReasonForm      = "form"      // denied: not of canonical form, or not for this port
	ReasonToken     = "token"     // denied: tokens are judged here, and this one does not verify
	ReasonHealth    = "health"    // allowed: the callee's proxy answers it itself
	ReasonDefault   = "default"   // denied: no grant matches
)

// What the reasons that name a document begin with.
const (
	blockReason     = "block:"     // denied: a Block
	grantReason     = "grant:"     // allowed: a Grant
	externalReason  = "external:"  // denied: the external authorizer of a workload
	exceptionReason = "exception:" // allowed: an Exception, without TLS
)

// Decision is the verdict about one Request.
type Decision struct {
	Allowed bool
	// Reason is one of the constants above or "grant:namespace/name", the first of
	// Grants, and so on. A proxy may name any of Grants, or of Blocks.
	Reason string
	Grants []spec.Ref // of what is allowed: every grant that matches, sorted
	Blocks []spec.Ref // of what is denied by Blocks: every one that does, sorted
	Asks   spec.Ref   // the workload whose external authorizer was asked; zero: none
	Hints  []string   // for a denial: what is nearest to allowing it, at most three
}

// Decide is the verdict about one request. Every request has one. It is judged in
// the order in which a proxy does:
//
//	transport  who calls
//	form       the port, the path, an upgrade that the port does not take
//	block      Blocks of callers and services
//	health     answered to whom the gate holds, whatever the method and authority
//	form       the method; an authority that is none
//	token      on a workload where enforced grants or Blocks name users
//	block      Blocks of users
//	grant      or default
//	form       an authority of another service: there is no route
//	external   the external authorizer
func (ix *Index) Decide(r Request) Decision {
	if e, ok := ix.externals(r.Service); ok {
		return ix.decideEgress(r, e)
	}
	j := judgement{ix: ix, r: r}
	if !r.Plaintext {
		var ok bool
		if j.caller, ok = ix.principal(r.CallerID); !ok {
			return denied(ReasonTransport, ix.transportHint(r.CallerID))
		}
	}
	s, declared := ix.site(r.Service)
	if !declared {
		return denied(ReasonDefault, ix.nobody(r.Service))
	}
	var hint string
	if j.p, hint = pick(s.w, r.Port); j.p == nil {
		return denied(ReasonDefault, hint)
	}
	j.s, j.at, j.hosts = s, s.target, s.hosts(j.p.Name)
	if r.Plaintext {
		return j.plaintext()
	}
	for _, step := range []func() (Decision, bool){j.form, j.blocked, j.health, j.method, j.token, j.userBlocked} {
		if d, decided := step(); decided {
			return d
		}
	}
	return j.granted(ix.matching(&j, ix.rules(s, j.p, false)))
}

// decideEgress judges a call to an external service, in the caller's own proxy.
func (ix *Index) decideEgress(r Request, e *service) Decision {
	j := judgement{ix: ix, r: r, at: e.target(), p: externalPort(e.external), hosts: e.external.Hosts}
	var ok bool
	switch j.caller, ok = ix.principal(r.CallerID); {
	case !ok || !j.caller.own():
		return denied(ReasonTransport, ix.transportHint(r.CallerID))
	case r.Port != "" && r.Port != spec.ExternalPort:
		return denied(ReasonDefault, fmt.Sprintf("%s is external and has the port %s only", r.Service, spec.ExternalPort))
	case !ix.declared(j.caller):
		return denied(ReasonDefault, fmt.Sprintf("no workload %s is declared", j.caller))
	case e.external.Plaintext && !ix.excepted(spec.FindingPlaintextEgress, e.ref, "", r.Time):
		return denied(ReasonDefault, fmt.Sprintf("%s has no TLS, and no Exception plaintext-egress is for it", e.ref))
	}
	for _, step := range []func() (Decision, bool){j.form, j.blocked, j.method} {
		if d, decided := step(); decided {
			return d
		}
	}
	j.r.Token = Token{}
	return j.granted(ix.matching(&j, ix.externalRules(e, false)))
}

// judgement is a Request on its way through Decide.
type judgement struct {
	ix     *Index
	r      Request // Path becomes canonical, with its query as it came
	caller principal
	at     target
	s      *site // nil: an external service
	p      *Port
	hosts  []string
	path   string // canonical, without the query
}

func decided(d Decision) (Decision, bool) { return d, true }

func (j *judgement) form() (Decision, bool) {
	if j.r.TCP != (j.p.Protocol == TCP) {
		return decided(denied(ReasonForm, fmt.Sprintf("the port %s of %s is %s", j.p.Name, j.at.ref, j.p.Protocol)))
	}
	if j.r.TCP {
		return Decision{}, false
	}
	normalize, hint := NormalizePath, "it may hold letters, digits and -._~!$&'()*+,=:@/"
	if j.p.EncodedPaths {
		normalize, hint = NormalizeEncodedPath, "an encoded slash, a fragment or a control character is in it"
	}
	path, ok := normalize(j.r.Path)
	if !ok {
		return decided(denied(ReasonForm, fmt.Sprintf("the path %q is not canonical: %s", j.r.Path, hint)))
	}
	if u := j.r.Upgrade; u != "" && !(j.p.WebSocket && strings.EqualFold(u, webSocket)) {
		return decided(denied(ReasonForm, fmt.Sprintf("the port %s of %s takes no upgrade to %s", j.p.Name, j.at.ref, u)))
	}
	j.path = path
	if _, query, has := strings.Cut(j.r.Path, "?"); has {
		path += "?" + query
	}
	j.r.Path = path
	if j.r.Authority == "" {
		j.r.Authority = j.hosts[0]
	}
	return Decision{}, false
}

// blocked is the Blocks that deny the caller, or everybody.
func (j *judgement) blocked() (Decision, bool) {
	return j.blockedBy(func(b Block) bool {
		return b.Users == nil && (b.Callers == nil || !j.r.Plaintext && b.Callers.has(j.caller))
	})
}

// userBlocked is the Blocks that deny the user.
func (j *judgement) userBlocked() (Decision, bool) {
	if j.r.TCP || j.r.Token.State != TokenValid {
		return Decision{}, false
	}
	sub, _ := j.r.Token.Claims["sub"].(string)
	return j.blockedBy(func(b Block) bool {
		if b.Users == nil || b.Users.Provider != j.r.Token.Provider {
			return false
		}
		_, named := slices.BinarySearch(b.Users.Subjects, sub)
		return named
	})
}

func (j *judgement) blockedBy(denies func(Block) bool) (Decision, bool) {
	if j.ix.blocks.Len() == 0 {
		return Decision{}, false
	}
	d := Decision{}
	for _, b := range j.ix.blocksOn(j.at) {
		if b.activeAt(j.r.Time) && denies(b) {
			d.Blocks = append(d.Blocks, b.Name)
			if len(d.Hints) < maxHints {
				d.Hints = append(d.Hints, b.hint())
			}
		}
	}
	if d.Blocks == nil {
		return Decision{}, false
	}
	d.Blocks = slices.Compact(d.Blocks)
	d.Reason = blockReason + d.Blocks[0].String()
	return decided(d)
}

func (j *judgement) health() (Decision, bool) {
	if !j.r.TCP && j.r.Path == HealthPath && j.ix.holds(j.s, j.p, j.caller) {
		return decided(Decision{Allowed: true, Reason: ReasonHealth})
	}
	return Decision{}, false
}

func (j *judgement) method() (Decision, bool) {
	if hint := formHint(j.r); !j.r.TCP && hint != "" {
		return decided(denied(ReasonForm, hint))
	}
	return Decision{}, false
}

// token denies a token that does not verify where tokens are judged, and takes it
// away where they are not.
func (j *judgement) token() (Decision, bool) {
	providers := j.ix.Providers(j.s.ref)
	enforced := slices.ContainsFunc(providers, func(p Provider) bool { return p.Enforced })
	if j.r.TCP || !enforced || j.r.Token.State == TokenNone {
		j.r.Token = Token{}
		return Decision{}, false
	}
	if j.r.Token.State != TokenValid {
		return decided(denied(ReasonToken, "the token does not verify; without one, grants that name no users may match"))
	}
	for _, name := range []string{"sub", "jti"} {
		if v, has := j.r.Token.Claims[name]; has && !isString(v) {
			return decided(denied(ReasonToken, fmt.Sprintf("the token does not verify: %s is not a string", name)))
		}
	}
	if !slices.ContainsFunc(providers, func(p Provider) bool {
		return p.Enforced && p.Name == j.r.Token.Provider && p.Inline != noKeys
	}) {
		return decided(denied(ReasonToken, fmt.Sprintf("tokens of %s are not taken by %s", j.r.Token.Provider, j.s.ref)))
	}
	return Decision{}, false
}

// isString: what is registered as a string (RFC 7519, section 4.1) must be one in
// a token that verifies.
func isString(v any) bool {
	_, is := v.(string)
	return is
}

// matching is the grants whose rules allow the request.
func (ix *Index) matching(j *judgement, rules []Rule) []spec.Ref {
	var grants []spec.Ref
	if !ix.declared(j.caller) {
		return nil
	}
	for _, r := range rules {
		if r.Callers.has(j.caller) && (j.r.TCP || r.allows(j.r, j.path)) && r.failures(&j.r, ix.providerOf(r.Users)) == nil {
			grants = append(grants, r.Grant)
		}
	}
	return grants
}

func (ix *Index) providerOf(u *Users) *Provider {
	if u == nil {
		return nil
	}
	p, _ := ix.providers.Get([]byte(u.Provider))
	return p
}

// granted is the verdict when all but grants, the host and the external authorizer
// have been judged.
func (j *judgement) granted(grants []spec.Ref) Decision {
	if grants == nil {
		return denied(ReasonDefault, j.hints()...)
	}
	return j.admitted(Decision{Allowed: true, Reason: grantReason + grants[0].String(), Grants: grants})
}

// admitted is d, unless the host or the external authorizer denies.
func (j *judgement) admitted(d Decision) Decision {
	if !j.r.TCP && !answersTo(j.hosts, j.r.Authority) {
		return denied(ReasonForm, fmt.Sprintf("the port %s of %s is %s, not %q", j.p.Name, j.at.ref, strings.Join(j.hosts, " or "), j.r.Authority))
	}
	if j.r.TCP || j.s == nil || j.s.w.Authorizer == nil {
		return d
	}
	if j.r.Denied {
		d = denied(externalReason+j.s.ref.String(), fmt.Sprintf("the external authorizer of %s denies it, or cannot answer", j.s.ref))
	}
	d.Asks = j.s.ref
	return d
}

// plaintext judges a caller without TLS. It has no identity: what denies everybody
// denies it, and no grant is for it.
func (j *judgement) plaintext() Decision {
	var by []spec.Ref
	source := j.r.source()
	for _, e := range j.ix.Plaintext(j.s.ref, j.p.Name) {
		if e.admits(source, j.r.Time) {
			by = append(by, e.Exception)
		}
	}
	if by == nil {
		return denied(ReasonTransport, fmt.Sprintf("the caller at %s has no identity, and no Exception plaintext of %s:%s is for it", source, j.s.ref, j.p.Name))
	}
	for _, step := range []func() (Decision, bool){j.form, j.blocked, j.method, j.noUpgrade, j.plainHealth, j.token, j.userBlocked} {
		if d, decided := step(); decided {
			return d
		}
	}
	return j.admitted(Decision{Allowed: true, Reason: exceptionReason + by[0].String()})
}

// plainHealth: there is no gate, so whoever an Exception lets in may ask.
func (j *judgement) plainHealth() (Decision, bool) {
	if !j.r.TCP && j.r.Path == HealthPath {
		return decided(Decision{Allowed: true, Reason: ReasonHealth})
	}
	return Decision{}, false
}

func (j *judgement) noUpgrade() (Decision, bool) {
	if j.r.Upgrade != "" {
		return decided(denied(ReasonForm, "an Exception is for no upgrades"))
	}
	return Decision{}, false
}

func denied(reason string, hints ...string) Decision { return Decision{Reason: reason, Hints: hints} }

// nobody says why a name leads to no judge.
func (ix *Index) nobody(ref spec.Ref) string {
	if members := ix.Resolve(ref); members != nil {
		return fmt.Sprintf("%s is a service of %s; each of them judges", ref, listed(texts(members, spec.Ref.String)))
	}
	return fmt.Sprintf("no workload %s is declared", ref)
}

// allows tells whether the rule allows the request, its caller and conditions
// aside, with the canonical path.
func (r Rule) allows(q Request, path string) bool {
	return r.upgrade(q) && r.method(q.Method) && r.path(path)
}

// upgrade: an upgrade is a GET, also as an extended CONNECT.
func (r Rule) upgrade(q Request) bool {
	if q.Upgrade == "" {
		return r.Upgrades == nil
	}
	return q.Method == "GET" && slices.Contains(r.Upgrades, strings.ToLower(q.Upgrade))
}

func (r Rule) method(m string) bool { return r.Methods == nil || slices.Contains(r.Methods, m) }

func (r Rule) path(path string) bool {
	return r.Paths == nil || slices.ContainsFunc(r.Paths, func(p Path) bool { return p.Matches(path) })
}

// pick is the port that a request names, or the only one.
func pick(w *Workload, name string) (p *Port, hint string) {
	if name == "" {
		if len(w.Ports) == 1 {
			return &w.Ports[0], ""
		}
		return nil, fmt.Sprintf("%s has %s; name one of them", w.Ref, w.portList())
	}
	if p = w.port(name); p == nil {
		return nil, fmt.Sprintf("%s has no port %s; it has %s", w.Ref, name, w.portList())
	}
	return p, ""
}

// formHint says why the method or the authority has no canonical form; empty if
// they have one.
func formHint(r Request) string {
	switch {
	case !isToken(r.Method):
		return fmt.Sprintf("%q is not a method", r.Method)
	case r.Method == "CONNECT" || r.Method == "TRACE":
		return r.Method + " is always refused"
	case strings.ContainsAny(r.Authority, ",@"):
		return fmt.Sprintf("%q is not one host", r.Authority)
	}
	return ""
}

// answersTo tells whether an authority is one of hosts: the proxy cuts off a
// port and one trailing dot, and compares without regard to case (RFC 3986,
// section 3.2.2). An authority with "," or "@" is none of them.
func answersTo(hosts []string, authority string) bool {
	return slices.Contains(hosts, strings.ToLower(bareHost(authority)))
}

// isToken tells whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}
