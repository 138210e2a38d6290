package xds

// part is a part of what a workload is told. make knows no more of the configuration than
// of, so that it need not be made again as long as that is equal.
type part struct {
	name string
	of   *Config
	make func(*builder)
}

// parts divides a configuration, which is sorted, by what changes together: a grant changes
// who may connect to a port and the policy of it, and no listener.
func parts(c *Config) []part {
	inward := *c
	inward.Inbound, inward.Destinations, inward.TCPCalls, inward.Egress = nil, nil, nil, nil
	outward := *c
	outward.Inbound = nil
	all := []part{
		{"keys", &inward, (*builder).asked},
		{"outward", &outward, (*builder).outbound},
	}
	for i := range c.Inbound {
		port := c.Inbound[i]
		add := func(name string, of Inbound, make func(*builder, *Inbound)) {
			only := inward
			only.Inbound = []Inbound{of}
			all = append(all, part{name + " " + port.Name, &only, func(b *builder) { make(b, &b.c.Inbound[0]) }})
		}
		add("frame", port.frame(), (*builder).frame)
		add("gate", port.without(true, false, false), func(b *builder, in *Inbound) {
			b.extensionResource(GateName(b.c.Workload, in.Name), b.gate(in))
		})
		if !port.Protocol.IsHTTP() {
			add("policy", port.without(false, true, true), func(b *builder, in *Inbound) {
				b.extensionResource(TCPPolicyName(b.c.Workload, in.Name), b.tcpPolicy(in))
			})
			continue
		}
		add("policy", port.without(false, true, false), func(b *builder, in *Inbound) {
			b.extensionResource(PolicyName(b.c.Workload, in.Name), b.policy(in))
		})
		blocks := port.without(false, false, true)
		blocks.Shadow = port.Shadow
		add("blocks", blocks, (*builder).blocks)
	}
	return all
}

// without is a port of whose judging there is no more than what is asked for.
func (in Inbound) without(gate, rules, blocks bool) Inbound {
	if !gate {
		in.Gate = nil
	}
	if !rules {
		in.Rules = nil
	}
	if !blocks {
		in.Blocks = nil
	}
	in.Shadow = nil
	return in
}

// frame is what the listener of a port is made of. Where the handshake judges, or plaintext
// is taken, some of the judging stands in the listener itself.
func (in Inbound) frame() Inbound {
	return in.without(in.ServerFirst, false, len(in.Plaintext) > 0)
}

// frame is the listener of a port and the way to the application.
func (b *builder) frame(in *Inbound) {
	b.addListener(b.inbound(in), in.Port, false)
	b.add(AppCluster(in.Name), b.app(in))
}

// blocks are the resources that judge requests to a port, but the policy.
func (b *builder) blocks(in *Inbound) {
	w := b.c.Workload
	b.extensionResource(BlockName(w, in.Name), b.block(in))
	if len(in.Plaintext) > 0 {
		b.extensionResource(PlaintextBlockName(w, in.Name), b.plaintextBlock(in))
	}
	b.extensionResource(TokensName(w, in.Name), b.tokens())
	b.extensionResource(UserBlockName(w, in.Name), b.userBlock(in))
	b.extensionResource(ShadowName(w, in.Name), b.shadow(in))
}

// asked are those who are asked when requests are judged.
func (b *builder) asked() {
	for i := range b.c.Providers {
		if p := &b.c.Providers[i]; p.URI != "" {
			b.add(JWKSCluster(p.Name), b.keys(p))
		}
	}
	if b.c.Authorizer != nil {
		b.add(AuthorizerCluster, b.authorizer())
	}
}
