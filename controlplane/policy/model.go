package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// The protocols of a port.
const (
	HTTP  = "http"
	HTTP2 = "http2"
	GRPC  = "grpc"
	TCP   = "tcp"
)

// webSocket is the one upgrade that there is.
const webSocket = "websocket"

// Workload is one declared identity and what it serves. It is never changed.
type Workload struct {
	Ref        spec.Ref
	ID         string      // "spiffe://shop.example/ns/shop/sa/web"
	Ports      []Port      // sorted by Number, then Name
	TCPCalls   []TCPCall   // sorted by LocalPort
	Authorizer *Authorizer // nil: nobody

	hosts [][]string // of Ports
}

// Port is one port that a workload serves.
type Port struct {
	Name         string
	Number       uint32 // what peers dial
	Target       string // the application, "127.0.0.1:8080"; the default is filled in
	Protocol     string // HTTP, HTTP2, GRPC or TCP
	WebSocket    bool   // it takes upgrades to WebSocket; HTTP only
	ServerFirst  bool   // the application speaks first; TCP only
	EncodedPaths bool   // the strict guard of paths is off; not TCP
	HealthPath   string // where the application says whether it is ready; empty: nowhere; HTTP and HTTP2 only
}

// reached is p as a caller is told of it.
func (p Port) reached() Port {
	p.Target, p.EncodedPaths, p.HealthPath = "", false, ""
	return p
}

// Authorizer is an external authorizer beside a workload.
type Authorizer struct {
	Target       string // a loopback address and port
	Timeout      time.Duration
	MaxBodyBytes uint32
	Headers      []string // in lower case, sorted; that it may set
}

func (a *Authorizer) equal(o *Authorizer) bool {
	if a == nil || o == nil {
		return a == o
	}
	return a.Target == o.Target && a.Timeout == o.Timeout && a.MaxBodyBytes == o.MaxBodyBytes && slices.Equal(a.Headers, o.Headers)
}

// TCPCall is a tcp service that a workload calls on a local port. Index.Calls
// says where it leads.
type TCPCall struct {
	Service   spec.Ref
	Port      string // empty: the only tcp port of the service
	LocalPort uint32
}

// ID is the SPIFFE ID of a workload.
func ID(trustDomain string, ref spec.Ref) string {
	return IDPrefix(trustDomain, ref.Namespace) + ref.Name
}

// IDPrefix is what the SPIFFE IDs of a namespace begin with, and no others.
func IDPrefix(trustDomain, namespace string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/"
}

// parseID is the inverse of ID. It takes the one spelling of each identity only.
func parseID(trustDomain, id string) (spec.Ref, bool) {
	rest, ok := strings.CutPrefix(id, "spiffe://"+trustDomain+"/ns/")
	if !ok {
		return spec.Ref{}, false
	}
	namespace, name, ok := strings.Cut(rest, "/sa/")
	if !ok {
		return spec.Ref{}, false
	}
	ref, err := spec.ParseRef(namespace+"/"+name, "")
	return ref, err == nil
}

// Hosts is the names of the workload by which callers reach a port; nil for a
// port that does not exist. The first is the main one. Index.HostsOf has those of
// its Services, too.
//
// For a workload shop/orders with one HTTP port (http, http2 or grpc) this is
// orders.shop.mesh. With several, each is <port>.orders.shop.mesh, and the one
// with the lowest number is orders.shop.mesh as well. A tcp port has no requests
// and so no names to choose by; its host, orders.shop.mesh, is only the SNI.
// They must not be changed.
func (w *Workload) Hosts(port string) []string {
	for i := range w.Ports {
		if w.Ports[i].Name == port {
			return w.hosts[i]
		}
	}
	return nil
}

// hosts is the names of a port of ref, whose ports are sorted by number.
func hosts(ref spec.Ref, ports []Port, port string) []string {
	p := portOf(ports, port)
	if p == nil {
		return nil
	}
	plain := ref.Name + "." + ref.Namespace + ".mesh"
	if p.Protocol == TCP {
		return []string{plain}
	}
	first, count := -1, 0
	for i := range ports {
		if ports[i].Protocol == TCP {
			continue
		}
		count++
		if first < 0 {
			first = i
		}
	}
	switch {
	case count == 1:
		return []string{plain}
	case ports[first].Name == port:
		return []string{port + "." + plain, plain}
	}
	return []string{port + "." + plain}
}

func (w *Workload) port(name string) *Port { return portOf(w.Ports, name) }

func newWorkload(trustDomain string, ref spec.Ref, w *ztv1.Workload) *Workload {
	out := &Workload{Ref: ref, ID: ID(trustDomain, ref)}
	for _, p := range w.GetServes() {
		out.Ports = append(out.Ports, Port{
			Name: p.GetName(), Number: p.GetPort(), Protocol: p.GetProtocol(),
			Target:       cmp.Or(p.GetTarget(), fmt.Sprintf("127.0.0.1:%d", p.GetPort())),
			WebSocket:    p.GetProtocol() == HTTP && slices.Equal(set(p.GetUpgrades()), []string{webSocket}),
			ServerFirst:  p.GetProtocol() == TCP && p.GetServerFirst(),
			HealthPath:   p.GetHealthPath(),
			EncodedPaths: p.GetProtocol() != TCP && p.GetAllowEncodedPaths(),
		})
	}
	slices.SortFunc(out.Ports, comparePorts)
	for _, p := range out.Ports {
		out.hosts = append(out.hosts, hosts(ref, out.Ports, p.Name))
	}
	for _, c := range w.GetTcpCalls() {
		// A call that cannot be read leads nowhere. This narrows.
		if service, port, err := spec.ParseServicePort(c.GetService(), ref.Namespace); err == nil {
			out.TCPCalls = append(out.TCPCalls, TCPCall{Service: service, Port: port, LocalPort: c.GetLocalPort()})
		}
	}
	slices.SortFunc(out.TCPCalls, func(a, b TCPCall) int {
		return cmp.Or(cmp.Compare(a.LocalPort, b.LocalPort), a.Service.Compare(b.Service), cmp.Compare(a.Port, b.Port))
	})
	if a := w.GetExternalAuthorizer(); a != nil {
		out.Authorizer = &Authorizer{Target: a.GetTarget(), Timeout: spec.DefaultAuthorizerTimeout, MaxBodyBytes: a.GetMaxBodyBytes()}
		if t := a.GetTimeout(); t != nil {
			out.Authorizer.Timeout = t.AsDuration()
		}
		for _, h := range a.GetHeaders() {
			out.Authorizer.Headers = append(out.Authorizer.Headers, strings.ToLower(h))
		}
		out.Authorizer.Headers = set(out.Authorizer.Headers)
	}
	return out
}
