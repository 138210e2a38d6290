package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

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

// Workload is one declared identity and what it serves. It is never changed.
type Workload struct {
	Ref      spec.Ref
	ID       string    // "spiffe://shop.example/ns/shop/sa/web"
	Ports    []Port    // sorted by Number, then Name
	TCPCalls []TCPCall // sorted by LocalPort
}

// Port is one port that a workload serves.
type Port struct {
	Name     string
	Number   uint32 // what peers dial
	Target   string // the application, "127.0.0.1:8080"; the default is filled in
	Protocol string // HTTP, HTTP2, GRPC or TCP
}

// TCPCall is a tcp service that a workload calls on a local port. Index.Calls
// says where it leads.
type TCPCall struct {
	Service   spec.Ref
	Port      string // empty: the only tcp port of the service
	LocalPort uint32
}

// Provider verifies the tokens of users.
type Provider struct {
	Name   string
	Claims map[string]Claim // that grants may name
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

// Hosts is the names by which callers reach a port; nil for a port that does not
// exist. The first is the main one.
//
// For a workload shop/orders with one HTTP port (http, http2 or grpc) this is
// orders.shop.mesh. With several, each is <port>.orders.shop.mesh, and the one
// with the lowest number is orders.shop.mesh as well. A tcp port has no requests
// and so no names to choose by; its host, orders.shop.mesh, is only the SNI.
func (w *Workload) Hosts(port string) []string {
	p := w.port(port)
	if p == nil {
		return nil
	}
	plain := w.Ref.Name + "." + w.Ref.Namespace + ".mesh"
	if p.Protocol == TCP {
		return []string{plain}
	}
	first, count := -1, 0
	for i := range w.Ports {
		if w.Ports[i].Protocol == TCP {
			continue
		}
		count++
		if first < 0 {
			first = i // Ports are sorted by number
		}
	}
	switch {
	case count == 1:
		return []string{plain}
	case w.Ports[first].Name == port:
		return []string{port + "." + plain, plain}
	}
	return []string{port + "." + plain}
}

func (w *Workload) port(name string) *Port {
	for i := range w.Ports {
		if w.Ports[i].Name == name {
			return &w.Ports[i]
		}
	}
	return nil
}

func newWorkload(trustDomain string, ref spec.Ref, w *ztv1.Workload) *Workload {
	out := &Workload{Ref: ref, ID: ID(trustDomain, ref)}
	for _, p := range w.GetServes() {
		out.Ports = append(out.Ports, Port{
			Name: p.GetName(), Number: p.GetPort(), Protocol: p.GetProtocol(),
			Target: cmp.Or(p.GetTarget(), fmt.Sprintf("127.0.0.1:%d", p.GetPort())),
		})
	}
	slices.SortFunc(out.Ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Name, b.Name))
	})
	for _, c := range w.GetTcpCalls() {
		// A call that cannot be read leads nowhere. This narrows.
		if service, port, err := spec.ParseServicePort(c.GetService(), ref.Namespace); err == nil {
			out.TCPCalls = append(out.TCPCalls, TCPCall{Service: service, Port: port, LocalPort: c.GetLocalPort()})
		}
	}
	slices.SortFunc(out.TCPCalls, func(a, b TCPCall) int {
		return cmp.Or(cmp.Compare(a.LocalPort, b.LocalPort), a.Service.Compare(b.Service), cmp.Compare(a.Port, b.Port))
	})
	return out
}

func meshSettings(m *ztv1.Mesh) MeshSettings {
	s := MeshSettings{SVIDTTL: spec.DefaultSVIDTTL, MaxConnectionAge: spec.DefaultMaxConnectionAge}
	if d := m.GetSvidTtl(); d != nil {
		s.SVIDTTL = d.AsDuration()
	}
	if d := m.GetMaxConnectionAge(); d != nil {
		s.MaxConnectionAge = d.AsDuration()
	}
	return s
}
