package compile

import (
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/xds"
)

func (c *compiler) destinations() []xds.Destination {
	reached := c.ix.Destinations(c.w.Ref)
	if len(reached) == 0 {
		return nil
	}
	out := make([]xds.Destination, 0, len(reached))
	for i := range reached {
		d := &reached[i]
		to := xds.Destination{
			Service: d.Service.String(), Port: d.Port.Name, ID: d.ID, Protocol: xds.Protocol(d.Port.Protocol),
			Host: d.Hosts[0], Number: d.Port.Number, Upgrades: upgrades(d.Port), ServerFirst: d.Port.ServerFirst,
		}
		if len(d.Hosts) > 1 {
			to.Aliases = d.Hosts[1:]
		}
		for _, m := range d.Members {
			to.IDs = append(to.IDs, policy.ID(c.ix.TrustDomain(), m))
		}
		out = append(out, to)
	}
	return out
}

// tcpCalls has no call without a grant: it gets no listener, so that the
// application's connection is refused at once.
func (c *compiler) tcpCalls() []xds.TCPCall {
	var out []xds.TCPCall
	for _, call := range c.ix.Calls(c.w.Ref) {
		out = append(out, xds.TCPCall{LocalPort: call.LocalPort, Service: call.Service.String(), Port: call.Port})
	}
	return out
}

// egress is the external services that it may call, judged in its own proxy. One
// that only the shadow policy lets it call is not among them.
func (c *compiler) egress() []xds.Egress {
	reached := c.ix.Externals(c.w.Ref)
	if len(reached) == 0 {
		return nil
	}
	shadow := map[spec.Ref][]xds.Rule{}
	if c.shadow != nil {
		for _, e := range c.shadow.ShadowExternals(c.w.Ref) {
			shadow[e.Service] = c.own(e)
		}
	}
	out := make([]xds.Egress, 0, len(reached))
	for _, e := range reached {
		to := xds.Egress{
			Service: e.Service.String(), Hosts: e.Hosts, Port: e.Port, Protocol: xds.Protocol(e.Protocol), CA: e.CA,
			Plaintext: e.Plaintext, Rules: c.own(e), Blocks: c.blocks(e.Blocks),
		}
		if c.shadow != nil && to.Protocol.IsHTTP() { // a proposal may make another of it; calls are judged as what it is
			to.Shadow = differing(to.Rules, shadow[e.Service])
		}
		out = append(out, to)
	}
	return out
}

// own is the rules of an external service, all of whose callers are the workload
// itself. A tcp service has none: that it may be called is all that they say.
func (c *compiler) own(e policy.External) []xds.Rule {
	if e.Protocol == policy.TCP {
		return nil
	}
	rules := c.rules(e.Rules)
	for i := range rules {
		rules[i].Callers = xds.Callers{IDs: []string{c.w.ID}}
	}
	return rules
}
