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

// ExternalPort is the port that calls to a service outside of the mesh are
// counted by: it has only one.
const ExternalPort = "external"

// difference reads an entry of a proxy whose workload, "shop/web", has the ID
// self. It is false for a request that no shadow policy has judged: one that was
// refused before.
//
// What was called is told by the cluster that the request was routed to: that of
// the application behind a port, or of a host outside.
func difference(workload, self string, e *accesslogv3.HTTPAccessLogEntry) (Difference, bool) {
	common, request := e.GetCommonProperties(), e.GetRequest()
	rbac := common.GetMetadata().GetFilterMetadata()[metadata].GetFields()
	would := rbac[shadowResult].GetStringValue()
	if would == "" {
		return Difference{}, false
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
	kind, name, _ := strings.Cut(common.GetUpstreamCluster(), "/")
	switch kind {
	case "app":
		d.Service, d.Port = workload, name
	case "ext":
		// ext/namespace/name/host
		if i := strings.LastIndexByte(name, '/'); i > 0 {
			d.Service, d.Port, d.Caller = name[:i], ExternalPort, self
		}
	}
	return d, true
}

// peer is the one URI of the certificate that the caller has shown.
func peer(t *accesslogv3.TLSProperties) string {
	names := t.GetPeerCertificateProperties().GetSubjectAltName()
	if len(names) != 1 {
		return ""
	}
	return names[0].GetUri()
}
