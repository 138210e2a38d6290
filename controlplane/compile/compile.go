// Package compile lowers the policy of one workload to what its proxies are told
// (xds.Config).
//
// It owns that lowering and nothing else: what a spec means is policy's, how
// Envoy is told is xds's. It refuses to know instances, addresses, certificates
// and time. The result depends on the documents alone: the same set in any order
// gives the same bytes, since every list keeps the order of policy.Index: by
// namespace, name and port. Nothing here decides either: every list is what
// policy.Index says, so a difference between policy.Decide and a configuration
// is a bug of this package or of xds.
//
// It is called from the reconcile loop, from the applier's dry run and by ztctl,
// and is safe for concurrent use.
package compile

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/xds"
)

// Workload is the configuration of the proxies of ref. It errs when ref is not
// declared and when the result is not one that xds can build, which a spec that
// passed spec.Check does not cause.
//
// Worked example. Of
//
//	Workload shop/web, shop/admin; Workload shop/orders serves http 8080 (http)
//	Grant shop/web-reads: from web to orders, GET /orders/**
//	Grant shop/all-post:  from namespace shop to orders, POST
//
// shop/orders gets
//
//	inbound http 8080 → 127.0.0.1:8080, host orders.shop.mesh
//	  gate   spiffe://td/ns/shop/sa/{admin,orders,web}           who may connect
//	  rules  shop/all-post   spiffe://td/ns/shop/sa/  POST       what they may call
//	         shop/web-reads  spiffe://td/ns/shop/sa/web  GET /orders/**
//
// and shop/web gets the destination shop/orders http, SAN exactly
// spiffe://td/ns/shop/sa/orders. The gate is the union of the callers, declared
// ones only, and so at most as wide as the rules; the rules keep a namespace as
// one prefix. Neither widens.
//
// ix has no Blocks and Exceptions that have ended: see policy.Index.Lift. shadow
// is ix with the proposals that stand beside it in the place of what they would
// replace, or nil for none. Of a port whose verdicts neither they nor the shadow
// grants of ix would change nothing is said.
func Workload(ix, shadow *policy.Index, ref spec.Ref) (*xds.Config, error) {
	w, ok := ix.Workload(ref)
	if !ok {
		return nil, fmt.Errorf("workload %s is not declared", ref)
	}
	c := newCompiler(ix, shadow, w)
	out := &xds.Config{
		TrustDomain:      ix.TrustDomain(),
		Workload:         ref.String(),
		ID:               w.ID,
		MaxConnectionAge: ix.Settings(ref).MaxConnectionAge,
		Aliases:          c.trust.Aliases,
		Federated:        c.trust.Federated,
		Destinations:     c.destinations(),
		TCPCalls:         c.tcpCalls(),
		Egress:           c.egress(),
	}
	if len(w.Ports) > 0 {
		out.Inbound = make([]xds.Inbound, len(w.Ports))
		for i := range w.Ports {
			c.inbound(&out.Inbound[i], &w.Ports[i])
		}
		slices.SortFunc(out.Inbound, func(a, b xds.Inbound) int { return strings.Compare(a.Name, b.Name) })
		out.Providers, out.Strip, out.Authorizer = c.providers(), ix.Strip(), c.authorizer()
	}
	if err := out.Validate(); err != nil {
		return nil, fmt.Errorf("workload %s: %w", ref, err)
	}
	return out, nil
}

// compiler is one run of Workload.
type compiler struct {
	ix     *policy.Index
	shadow *policy.Index // of the shadow policy; nil: there is none
	w      *policy.Workload
	trust  policy.Trust
}

func newCompiler(ix, shadow *policy.Index, w *policy.Workload) *compiler {
	if shadow == nil && ix.HasShadow(w.Ref) {
		shadow = ix
	}
	return &compiler{ix: ix, shadow: shadow, w: w, trust: ix.Trust()}
}

func (c *compiler) inbound(in *xds.Inbound, p *policy.Port) {
	judged := c.ix.Inbound(c.w.Ref, p.Name)
	*in = xds.Inbound{
		Name: p.Name, Port: p.Number, Target: p.Target, Protocol: xds.Protocol(p.Protocol),
		Gate:        gate(c.w.Ref, p.Name, judged.Callers),
		Rules:       c.rules(judged.Rules),
		Blocks:      c.blocks(judged.Blocks),
		Plaintext:   plaintext(judged.Plaintext),
		ServerFirst: p.ServerFirst, EncodedPaths: p.EncodedPaths, Upgrades: upgrades(p), HealthPath: p.HealthPath,
	}
	if !in.Protocol.IsHTTP() {
		return // shadow is of requests
	}
	in.Hosts = judged.Hosts
	if c.shadow != nil {
		in.Shadow = differing(in.Rules, c.shadowRules(p))
	}
}

// shadowRules is the shadow policy of a port. A port that a proposal takes away,
// or makes another protocol's, lets nobody in.
func (c *compiler) shadowRules(p *policy.Port) []xds.Rule {
	w, ok := c.shadow.Workload(c.w.Ref)
	if !ok || !slices.ContainsFunc(w.Ports, func(o policy.Port) bool { return o.Name == p.Name && o.Protocol == p.Protocol }) {
		return nil
	}
	rules := c.rules(c.shadow.ShadowRules(c.w.Ref, p.Name))
	out := rules[:0]
	for _, r := range rules {
		// The port refuses such upgrades, and its TLS such identities, before any
		// policy is asked.
		r.Callers.IDs = slices.DeleteFunc(r.Callers.IDs, func(id string) bool { return !c.verifies(id) })
		nobody := len(r.Callers.IDs) == 0 && len(r.Callers.Prefixes) == 0 && !r.Callers.Any
		if !nobody && (r.Upgrades == nil || p.WebSocket) {
			out = append(out, r)
		}
	}
	return out
}

// verifies tells whether certificates of an identity are accepted here.
func (c *compiler) verifies(id string) bool {
	of := func(domain string) bool { return strings.HasPrefix(id, "spiffe://"+domain+"/") }
	return of(c.ix.TrustDomain()) || slices.ContainsFunc(c.trust.Aliases, of) || slices.ContainsFunc(c.trust.Federated, of)
}

// differing is the shadow policy, unless it says what is enforced.
func differing(enforced, shadow []xds.Rule) *xds.Shadow {
	if len(enforced) == len(shadow) && (len(shadow) == 0 || reflect.DeepEqual(enforced, shadow)) {
		return nil
	}
	return &xds.Shadow{Rules: shadow}
}

func gate(ref spec.Ref, port string, callers []string) []xds.GateEntry {
	if len(callers) == 0 {
		return nil
	}
	keys := xds.GateKeys(ref.String(), port, callers)
	entries := make([]xds.GateEntry, len(callers))
	for i, id := range callers {
		entries[i] = xds.GateEntry{ID: id, Key: keys[i]}
	}
	return entries
}

// webSocket is the one upgrade that a port may take.
const webSocket = "websocket"

func upgrades(p *policy.Port) []string {
	if p.WebSocket {
		return []string{webSocket}
	}
	return nil
}

func plaintext(list []policy.Plaintext) []xds.Plaintext {
	var out []xds.Plaintext
	for _, p := range list {
		out = append(out, xds.Plaintext{Exception: p.Exception.String(), CIDRs: prefixes(p.CIDRs), Until: p.Until})
	}
	return out
}

// providers are those that judge tokens here. One that only the shadow policy
// names never refuses a request.
func (c *compiler) providers() []xds.Provider {
	list := c.ix.Providers(c.w.Ref)
	if c.shadow != nil && c.shadow != c.ix {
		for _, p := range c.shadow.Providers(c.w.Ref) {
			if !slices.ContainsFunc(list, func(o policy.Provider) bool { return o.Name == p.Name }) {
				p.Enforced = false
				list = append(list, p)
			}
		}
	}
	var out []xds.Provider
	for _, p := range list {
		to := xds.Provider{
			Name: p.Name, Issuer: p.Issuer, Audiences: p.Audiences, Inline: p.Inline, URI: p.URI, CA: p.CA,
			ClockSkew: p.ClockSkew, Enforced: p.Enforced, KeepToken: p.KeepToken,
		}
		for _, h := range p.Headers {
			if h.Path != nil { // nil: only stripped
				to.Headers = append(to.Headers, xds.ClaimHeader{Header: h.Header, Path: h.Path})
			}
		}
		out = append(out, to)
	}
	slices.SortFunc(out, func(a, b xds.Provider) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (c *compiler) authorizer() *xds.Authorizer {
	a, ok := c.ix.Authorizer(c.w.Ref)
	if !ok {
		return nil
	}
	return &xds.Authorizer{Target: a.Target, Timeout: a.Timeout, MaxBodyBytes: a.MaxBodyBytes, Headers: a.Headers}
}
