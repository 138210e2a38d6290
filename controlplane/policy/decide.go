package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// Request is one request, or one tcp connection, as it arrives at the proxy of
// the service.
type Request struct {
	CallerID     string // the URI SAN of the peer's verified certificate; empty: none
	Service      spec.Ref
	Port         string // empty: the only port of the service
	TCP          bool   // a connection to a tcp port; what follows is empty then
	Method, Path string // Path with its query, not normalized
	Authority    string // empty: a host of the port

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

// The reasons of a Decision that name no grant.
const (
	ReasonTransport = "transport" // denied: no identity of this trust domain
	ReasonForm      = "form"      // denied: not of canonical form, or not for this port
	ReasonHealth    = "health"    // allowed: the callee's proxy answers it itself
	ReasonDefault   = "default"   // denied: no grant matches
)

const grantReason = "grant:"

// Decision is the verdict about one Request.
type Decision struct {
	Allowed bool
	// Reason is one of the constants above or "grant:namespace/name", the first
	// of Grants. A proxy may name any of Grants.
	Reason string
	Grants []spec.Ref // every grant that matches, sorted
	Hints  []string   // for a denial: what is nearest to allowing it, at most three
}

// Decide is the verdict about one request, in the order of SPEC.md: transport,
// form, grant, default. Every request has one.
//
// Health checks are judged right after the path, as the proxy does: it answers
// them whatever their method and authority. An authority that is well formed and
// another service's is judged last, as the proxy does: it finds no route.
func (ix *Index) Decide(r Request) Decision {
	caller, ok := parseID(ix.trustDomain, r.CallerID)
	if !ok {
		return denied(ReasonTransport, transportHint(ix.trustDomain, r.CallerID))
	}
	w, declared := ix.Workload(r.Service)
	if !declared {
		return denied(ReasonDefault, fmt.Sprintf("no workload %s is declared", r.Service))
	}
	p, hint := pick(w, r.Port)
	if p == nil {
		return denied(ReasonDefault, hint)
	}
	if r.TCP != (p.Protocol == TCP) {
		return denied(ReasonForm, fmt.Sprintf("the port %s of %s is %s", p.Name, r.Service, p.Protocol))
	}
	admitted := ix.Admits(r.Service, p.Name, caller)
	if !r.TCP {
		path, ok := NormalizePath(r.Path)
		if !ok {
			return denied(ReasonForm, fmt.Sprintf("the path %q is not canonical: it may hold letters, digits and -._~!$&'()*+,=:@/", r.Path))
		}
		if admitted && path == HealthPath && !strings.Contains(r.Path, "?") {
			return Decision{Allowed: true, Reason: ReasonHealth}
		}
		if hint := formHint(r); hint != "" {
			return denied(ReasonForm, hint)
		}
		r.Path = path
	}
	var grants []spec.Ref
	if admitted {
		for _, rule := range ix.Rules(r.Service, p.Name) {
			if rule.Callers.Has(caller) && (r.TCP || rule.allows(r.Method, r.Path)) {
				grants = append(grants, rule.Grant)
			}
		}
	}
	if len(grants) == 0 {
		return denied(ReasonDefault, ix.hints(caller, w, p, r)...)
	}
	if hint := hostHint(w, p, r); hint != "" {
		return denied(ReasonForm, hint)
	}
	return Decision{Allowed: true, Reason: grantReason + grants[0].String(), Grants: grants}
}

func denied(reason string, hints ...string) Decision { return Decision{Reason: reason, Hints: hints} }

// allows tells whether the rule allows the method on the canonical path.
func (r Rule) allows(method, path string) bool { return r.method(method) && r.path(path) }

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

// hostHint says why the authority is not one of the port; empty if it is.
func hostHint(w *Workload, p *Port, r Request) string {
	if r.TCP || r.Authority == "" || answersTo(w.Hosts(p.Name), r.Authority) {
		return ""
	}
	return fmt.Sprintf("the port %s of %s is %s, not %q", p.Name, w.Ref, strings.Join(w.Hosts(p.Name), " or "), r.Authority)
}

// answersTo tells whether an authority is one of hosts: the proxy cuts off a
// port and one trailing dot, and compares without regard to case (RFC 3986,
// section 3.2.2). An authority with "," or "@" is none of them.
func answersTo(hosts []string, authority string) bool {
	host := authority
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if port := host[i+1:]; port != "" && strings.Trim(port, "0123456789") == "" {
			host = host[:i]
		}
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return slices.Contains(hosts, host)
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
