package xds

import (
	"strconv"
	"strings"
)

// Names of resources are API: status, receipts and audits show them.
const (
	SVIDSecret          = "zt/svid"           // SDS: the workload's certificate and key
	BundleSecret        = "zt/bundle"         // SDS: SPIFFE validator of the mesh's trust domain
	NodeSecret          = "zt/node"           // SDS, agent or bootstrap only: the instance's certificate
	ControlBundleSecret = "zt/control-bundle" // SDS, agent or bootstrap only: validator of the control plane
	PublicRootsSecret   = "zt/public-roots"   // static, in the bootstrap: CAs of the proxy's host
	GatesName           = "zt/gates"          // RTDS: the layer of closed gates
	AuthorizerCluster   = "authz"             // CDS: the workload's external authorizer
	OutboundHTTP        = "out/http"          // LDS and RDS
	EgressBlocks        = "out/blocks"        // ECDS: Blocks of calls to external services
	EgressShadow        = "out/shadow"        // ECDS: what other rules would allow of them
	EgressPolicy        = "out/policy"        // ECDS: the rules of them
	XDSCluster          = "zt_xds"            // static: the control plane
	AgentCluster        = "zt_agent"          // static: the agent's SDS socket
)

// Type URLs of what Build, Endpoints, Gates, SVID and Bundle make.
const (
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ExtensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	RuntimeType   = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
	SecretType    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// ClusterName names the cluster (CDS) and the endpoints (EDS) of one port of a
// service, "shop/orders" and "http": "svc/shop/orders/http".
func ClusterName(service, port string) string { return "svc/" + service + "/" + port }

// ExternalPort is the name of an external service's only port.
const ExternalPort = "external"

// InboundListener names the listener of a served port.
func InboundListener(port string) string { return "in/" + port }

// TCPListener names the outbound listener of a TCP call.
func TCPListener(localPort uint32) string {
	return "out/tcp/" + strconv.FormatUint(uint64(localPort), 10)
}

// AppCluster names the cluster of the application behind a served port.
func AppCluster(port string) string { return "app/" + port }

// PolicyName names the ECDS resource of a port's HTTP policy.
func PolicyName(workload, port string) string { return "policy/" + workload + "/" + port }

// BlockName names the ECDS resource of a port's Blocks of callers.
func BlockName(workload, port string) string { return "block/" + workload + "/" + port }

// PlaintextBlockName names the ECDS resource of a port's Blocks of everybody, for
// callers without TLS.
func PlaintextBlockName(workload, port string) string {
	return BlockName(workload, port) + "/plaintext"
}

// TokensName names the ECDS resource that verifies the tokens of a port.
func TokensName(workload, port string) string { return "jwt/" + workload + "/" + port }

// UserBlockName names the ECDS resource of a port's Blocks of users.
func UserBlockName(workload, port string) string { return "userblock/" + workload + "/" + port }

// ShadowName names the ECDS resource of the policy that a port's would be.
func ShadowName(workload, port string) string { return "shadow/" + workload + "/" + port }

// TCPPolicyName names the ECDS resource of the policy of a tcp port.
func TCPPolicyName(workload, port string) string { return "tcppolicy/" + workload + "/" + port }

// GateName names the ECDS resource of a port's gate.
func GateName(workload, port string) string { return "gate/" + workload + "/" + port }

// ExternalCluster names the cluster (CDS) and the endpoints (EDS) of one host of
// an external service, "shop/stripe": "ext/shop/stripe/api.stripe.com".
func ExternalCluster(service, host string) string { return "ext/" + service + "/" + host }

// JWKSCluster names the cluster and the endpoints of where a provider's keys are
// fetched.
func JWKSCluster(provider string) string { return "jwks/" + provider }

// PeersSecret names the SDS secret that says who may connect to a server-first
// port.
func PeersSecret(port string) string { return "zt/peers/" + port }

// isEndpointName says whether a cluster name is one that takes endpoints.
func isEndpointName(name string) bool {
	return strings.HasPrefix(name, "svc/") || strings.HasPrefix(name, "ext/") || strings.HasPrefix(name, "jwks/")
}
