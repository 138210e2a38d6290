package decisions

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// Where Envoy's RBAC filters leave their verdicts: the enforced one and, of a
// filter before it, that of the shadow policy.
const (
	metadata       = "envoy.filters.http.rbac"
	enforcedResult = xds.RBACStatPrefix + "enforced_engine_result"
	enforcedPolicy = xds.RBACStatPrefix + "enforced_effective_policy_id"
	shadowResult   = xds.RBACStatPrefix + "shadow_engine_result"
	shadowPolicy   = xds.RBACStatPrefix + "shadow_effective_policy_id"

	allowed = "allowed"
	// deniedBy begins the details of an answer that RBAC gave; "]" ends them.
	deniedBy = "rbac_access_denied_matched_policy["
)

// called is how an entry says what was called: by the port of the proxy that took
// the request, and its host. The cluster that it was routed to would say it more
// simply, but Envoy names that only of requests that it sends on.
type called struct {
	port      uint32
	authority string
}

// difference reads an entry of a proxy, all but the service and the port. It is
// false for a request that no shadow policy has judged: one that was refused
// before.
func difference(e *accesslogv3.HTTPAccessLogEntry) (Difference, called, bool) {
	common, request := e.GetCommonProperties(), e.GetRequest()
	rbac := common.GetMetadata().GetFilterMetadata()[metadata].GetFields()
	would := rbac[shadowResult].GetStringValue()
	if would == "" {
		return Difference{}, called{}, false
	}
	d := Difference{
		Caller: peer(common.GetTlsProperties()),
		Method: request.GetRequestMethod().String(), Path: request.GetPath(),
		Allowed: rbac[enforcedResult].GetStringValue() == allowed, Reason: rbac[enforcedPolicy].GetStringValue(),
		WouldAllow: would == allowed, WouldReason: rbac[shadowPolicy].GetStringValue(),
	}
	if request.GetRequestMethod() == corev3.RequestMethod_METHOD_UNSPECIFIED {
		d.Method = ""
	}
	// The metadata of the filter that denies can be empty.
	if by, ok := strings.CutPrefix(e.GetResponse().GetResponseCodeDetails(), deniedBy); ok && !d.Allowed {
		d.Reason, _, _ = strings.Cut(by, "]")
	}
	return d, called{common.GetDownstreamLocalAddress().GetSocketAddress().GetPortValue(), request.GetAuthority()}, true
}

// peer is the one URI of the certificate that the caller has shown.
func peer(t *accesslogv3.TLSProperties) string {
	names := t.GetPeerCertificateProperties().GetSubjectAltName()
	if len(names) != 1 {
		return ""
	}
	return names[0].GetUri()
}
