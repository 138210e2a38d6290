package xds

import (
	"fmt"
	"net/netip"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const actionException = "exception:"

// inspectTime is how long it may take to tell TLS from plaintext. Five bytes do;
// who has sent less by then, speaks plaintext.
const inspectTime = 2 * time.Second

// inspect tells TLS from plaintext.
func (b *builder) inspect(l *listenerv3.Listener) {
	l.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       "envoy.filters.listener.tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.any(&inspectorv3.TlsInspector{})},
	}}
	l.ListenerFiltersTimeout = durationpb.New(inspectTime)
	l.ContinueOnListenerFiltersTimeout = true
}

// plaintext is the way in without TLS, of the addresses that Exceptions name and
// until they end. Nobody who comes here has an identity, so there is no gate and
// no rule; Blocks of everybody, the form of requests, tokens and the external
// authorizer hold as for all others.
func (b *builder) plaintext(in *Inbound) *listenerv3.FilterChain {
	match := &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer"}
	var prefixes []string
	for _, p := range in.Plaintext {
		prefixes = append(prefixes, p.CIDRs...)
	}
	match.SourcePrefixRanges = ranges(set(prefixes))
	chain := &listenerv3.FilterChain{
		Name:                          InboundListener(in.Name) + "/plaintext",
		FilterChainMatch:              match,
		TransportSocketConnectTimeout: durationpb.New(handshakeTimeout),
	}
	if !in.Protocol.IsHTTP() {
		rbac := denyAllTCP()
		rbac.Rules.Policies = b.exceptedTCP(in)
		chain.Filters = []*listenerv3.Filter{b.networkFilter("envoy.filters.network.rbac", rbac), b.inboundTCP(in)}
		return chain
	}
	w := b.c.Workload
	chain.Filters = []*listenerv3.Filter{b.inboundManager(in, []*hcmv3.HttpFilter{
		b.httpSlot(PlaintextBlockName(w, in.Name), b.denyAllJudge()),
		// Before the health check: without a gate, this is who may ask.
		b.httpFilter("exceptions", b.judge(needs{path: true}, &httprbacv3.RBAC{
			Matcher: root(b.excepted(in)), RulesStatPrefix: RBACStatPrefix,
		})),
		b.healthFilter(in),
		b.httpSlot(TokensName(w, in.Name), b.denyAllJudge()),
		b.httpSlot(UserBlockName(w, in.Name), b.denyAllJudge()),
	})}
	return chain
}

// excepted allows every well-formed request, save upgrades, from the addresses of
// an Exception that has not ended.
func (b *builder) excepted(in *Inbound) *onMatch {
	form := b.action(ActionForm, rbacv3.RBAC_DENY)
	fields := []*fieldMatch{
		{Predicate: b.malformed(in.EncodedPaths), OnMatch: form},
		{Predicate: b.matches(b.headerInput("upgrade"), fullMatch(".+")), OnMatch: form},
	}
	for _, p := range in.Plaintext {
		fields = append(fields, &fieldMatch{
			Predicate: allOf(b.conditions(p.conditions())...),
			OnMatch:   b.action(actionException+p.Exception, rbacv3.RBAC_ALLOW),
		})
	}
	return nest(list(b.action(ActionDefault, rbacv3.RBAC_DENY), fields...))
}

// exceptedTCP is excepted for connections: a network matcher takes no CEL, so it
// is Envoy's other form.
func (b *builder) exceptedTCP(in *Inbound) map[string]*rbacv3.Policy {
	out := map[string]*rbacv3.Policy{}
	if _, shut := in.shut(); shut {
		return out
	}
	for _, p := range in.Plaintext {
		until, err := parseCEL(p.conditions().clock())
		if err != nil {
			b.errs = append(b.errs, fmt.Errorf("exception %s: %w", p.Exception, err))
			continue
		}
		out[actionException+p.Exception] = &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals:  sources(p.CIDRs),
			Condition:   until,
		}
	}
	return out
}

// plaintextBlock is block for callers without a certificate: only a Block of
// everybody is theirs. The other Blocks' filter cannot judge them, since Envoy's
// matcher denies, without a name, whom it has to ask for a certificate in vain.
func (b *builder) plaintextBlock(in *Inbound) proto.Message {
	block, shut := in.shut()
	if !shut {
		return pass()
	}
	return b.judge(needs{}, &httprbacv3.RBAC{Matcher: root(b.deny(block)), RulesStatPrefix: blockStatPrefix})
}

// shut says whether a Block denies everybody, and which.
func (in *Inbound) shut() (block string, ok bool) {
	for _, k := range in.Blocks {
		if k.Callers == nil && k.Users == nil {
			return k.Name, true
		}
	}
	return "", false
}

// sources are the TCP peers of these prefixes, each as a principal.
func sources(prefixes []string) []*rbacv3.Principal {
	var out []*rbacv3.Principal
	for _, r := range ranges(prefixes) {
		out = append(out, &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: r}})
	}
	return out
}

func (p *Plaintext) conditions() *Conditions {
	return &Conditions{Sources: p.CIDRs, Until: p.Until}
}

func (v *validation) plaintext(in *Inbound) {
	v.distinct(len(in.Plaintext), func(i int) string { return in.Plaintext[i].Exception })
	for _, p := range in.Plaintext {
		v.check(isRef(p.Exception), "exception %q is not namespace/name", p.Exception)
		v.check(len(p.CIDRs) > 0, "exception %s: no addresses", p.Exception)
		for _, c := range p.CIDRs {
			prefix, err := netip.ParsePrefix(c)
			v.check(err == nil && prefix == prefix.Masked(), "exception %s: %q is not a canonical prefix", p.Exception, c)
		}
		v.check(!p.Until.IsZero(), "exception %s: no end", p.Exception)
	}
	// Without a handshake there is nothing to judge before the server speaks.
	v.check(len(in.Plaintext) == 0 || !in.ServerFirst, "a server-first port takes no plaintext")
}
