package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	fractionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/runtime_fraction/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
)

const networkRBACType = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"

// gate lowers who may connect to a port. It is judged on every read, so closing
// a runtime key cuts what that identity has open, within milliseconds and with
// nobody else touched:
//
//	caller = spiffe://td/ns/shop/sa/web  if runtime zt.1f… is 100% (its default) → ALLOW
//	otherwise                                                                   → DENY
//
// Taking an entry away refuses new connections only; that is why closing is a
// runtime key and not an edit of the map.
func (b *builder) gate(in *Inbound) proto.Message {
	entries := make(map[string]*onMatch, len(in.Gate))
	for _, g := range in.Gate {
		entries[g.ID] = nest(list(nil, &fieldMatch{
			Predicate: b.isOpen(g.Key),
			OnMatch:   b.action(actionGate, rbacv3.RBAC_ALLOW),
		}))
	}
	deny := b.action(ActionDefault, rbacv3.RBAC_DENY)
	rbac := denyAllNetwork()
	rbac.Rules, rbac.Matcher = nil, root(b.byExact(b.callerInput(), entries, deny))
	return rbac
}

// denyAllNetwork is what a gate does before, and without, its resource.
func denyAllNetwork() *networkrbacv3.RBAC {
	return &networkrbacv3.RBAC{
		Rules:           &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW},
		StatPrefix:      "zt_gate_",
		EnforcementType: networkrbacv3.RBAC_CONTINUOUS,
	}
}

func (b *builder) isOpen(key string) *predicate {
	return b.custom(b.callerInput(), "open", &fractionv3.RuntimeFraction{RuntimeFraction: &corev3.RuntimeFractionalPercent{
		DefaultValue: &typev3.FractionalPercent{Numerator: 100, Denominator: typev3.FractionalPercent_HUNDRED},
		RuntimeKey:   key,
	}})
}

// networkSlot is the place of a network RBAC in a listener. The filter's name is
// the name of its resource. It denies until that has come, and after it is gone.
func (b *builder) networkSlot(name string, closed *networkrbacv3.RBAC) *listenerv3.Filter {
	return &listenerv3.Filter{
		Name:       name,
		ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: b.discovered(closed, networkRBACType)},
	}
}

// httpSlot is the same for a filter of requests, and what it does while its
// resource is missing.
func (b *builder) httpSlot(name string, missing proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name:       name,
		ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: b.discovered(missing, judgeType)},
	}
}

// discovered is a filter by ECDS, and what it does while its resource is missing.
func (b *builder) discovered(missing proto.Message, typeURL string) *corev3.ExtensionConfigSource {
	return &corev3.ExtensionConfigSource{
		ConfigSource:                     ads(),
		DefaultConfig:                    b.any(missing),
		ApplyDefaultConfigWithoutWarming: true,
		TypeUrls:                         []string{typeURL},
	}
}

// extensionResource makes m an ECDS resource of that name.
func (b *builder) extensionResource(name string, m proto.Message) {
	b.add(name, &corev3.TypedExtensionConfig{Name: name, TypedConfig: b.any(m)})
}

// GateKey is the runtime key of the gate that lets source, a SPIFFE ID, connect
// to a port of a workload, "shop/orders". It is a hash of the three, so no two gates share a key and
// one pair has the same key for ever, on every server.
func GateKey(workload, port, source string) string {
	return GateKeys(workload, port, []string{source})[0]
}

// GateKeys is the GateKey of each of sources.
func GateKeys(workload, port string, sources []string) []string {
	const prefix, hashed = "zt.", 16
	const size = len(prefix) + 2*hashed
	hashing := []byte(workload + "\x00" + port + "\x00")
	common := len(hashing)
	var text strings.Builder // all keys are one piece of memory
	text.Grow(size * len(sources))
	for _, source := range sources {
		hashing = append(hashing[:common], source...)
		sum := sha256.Sum256(hashing)
		var digits [2 * hashed]byte
		hex.Encode(digits[:], sum[:hashed])
		text.WriteString(prefix)
		text.Write(digits[:])
	}
	keys := make([]string, len(sources))
	for i := range keys {
		keys[i] = text.String()[i*size : (i+1)*size]
	}
	return keys
}
