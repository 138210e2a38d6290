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
func Workload(ix *policy.Index, ref spec.Ref) (*xds.Config, error) {
	w, ok := ix.Workload(ref)
	if !ok {
		return nil, fmt.Errorf("workload %s is not declared", ref)
	}
	c := &xds.Config{
		TrustDomain:      ix.TrustDomain(),
		Workload:         ref.String(),
		ID:               w.ID,
		MaxConnectionAge: ix.Mesh().MaxConnectionAge,
	}
	for _, p := range w.Ports {
		c.Inbound = append(c.Inbound, inbound(ix, w, p))
	}
	slices.SortFunc(c.Inbound, func(a, b xds.Inbound) int { return strings.Compare(a.Name, b.Name) })
	c.Destinations = destinations(ix, ref)
	c.TCPCalls = tcpCalls(ix, ref)
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("workload %s: %w", ref, err)
	}
	return c, nil
}

// Pairs is the gates of all ports of ref: every pair that may connect, by the
// name of the port.
func Pairs(ix *policy.Index, ref spec.Ref) map[string][]xds.GateEntry {
	w, ok := ix.Workload(ref)
	if !ok {
		return nil
	}
	pairs := make(map[string][]xds.GateEntry, len(w.Ports))
	for _, p := range w.Ports {
		pairs[p.Name] = gate(ix, ref, p.Name)
	}
	return pairs
}

func inbound(ix *policy.Index, w *policy.Workload, p policy.Port) xds.Inbound {
	in := xds.Inbound{
		Name: p.Name, Port: p.Number, Target: p.Target, Protocol: xds.Protocol(p.Protocol),
		Gate: gate(ix, w.Ref, p.Name),
	}
	if p.Protocol == policy.TCP {
		return in // the gate is all that is judged
	}
	in.Hosts = slices.Clone(w.Hosts(p.Name))
	slices.Sort(in.Hosts)
	for _, r := range ix.Rules(w.Ref, p.Name) {
		in.Rules = append(in.Rules, rule(ix.TrustDomain(), r))
	}
	return in
}

func gate(ix *policy.Index, ref spec.Ref, port string) []xds.GateEntry {
	callers := ix.Callers(ref, port)
	if len(callers) == 0 {
		return nil
	}
	entries := make([]xds.GateEntry, len(callers))
	for i, id := range callers {
		entries[i] = xds.GateEntry{ID: id, Key: policy.GateKey(ref, port, id)}
	}
	return entries
}

func rule(trustDomain string, r policy.Rule) xds.Rule {
	out := xds.Rule{Grant: r.Grant.String(), Callers: xds.Callers{Any: r.Callers.Any}, Methods: slices.Clone(r.Methods)}
	for _, w := range r.Callers.Workloads {
		out.Callers.IDs = append(out.Callers.IDs, policy.ID(trustDomain, w))
	}
	for _, ns := range r.Callers.Namespaces {
		out.Callers.Prefixes = append(out.Callers.Prefixes, policy.IDPrefix(trustDomain, ns))
	}
	for _, p := range r.Paths {
		out.Paths = append(out.Paths, path(p))
	}
	return out
}

func path(p policy.Path) xds.Path {
	switch p.Kind {
	case policy.Exact:
		return xds.Path{Value: p.Pattern, Kind: xds.Exact}
	case policy.Rest:
		return xds.Path{Value: p.Pattern, Kind: xds.Rest}
	}
	if base, ok := strings.CutSuffix(p.Pattern, "*"); ok && !strings.Contains(base, "*") {
		return xds.Path{Value: base, Kind: xds.OneSegment}
	}
	return xds.Path{Value: p.Pattern, Kind: xds.Pattern}
}

func destinations(ix *policy.Index, ref spec.Ref) []xds.Destination {
	reached := ix.Destinations(ref)
	out := make([]xds.Destination, 0, len(reached))
	for _, d := range reached {
		var aliases []string
		if len(d.Hosts) > 1 {
			aliases = slices.Clone(d.Hosts[1:])
		}
		out = append(out, xds.Destination{
			Service: d.Service.String(), Port: d.Port.Name, ID: d.ID, Protocol: xds.Protocol(d.Port.Protocol),
			Host: d.Hosts[0], Aliases: aliases, Number: d.Port.Number,
		})
	}
	return out
}

// tcpCalls has no call without a grant: it gets no listener, so that the
// application's connection is refused at once.
func tcpCalls(ix *policy.Index, ref spec.Ref) []xds.TCPCall {
	var out []xds.TCPCall
	for _, c := range ix.Calls(ref) {
		out = append(out, xds.TCPCall{LocalPort: c.LocalPort, Service: c.Service.String(), Port: c.Port})
	}
	return out
}
