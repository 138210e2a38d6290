package xds

import (
	"cmp"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Assignment is where a cluster's instances listen, as proxies in each zone are told.
// It is a value that is shared.
type Assignment struct {
	anywhere *Resource
	zones    map[string]*Resource // of zones that have some instances but not all of them
}

// Everywhere is the assignment by which all proxies are told r.
func Everywhere(r *Resource) *Assignment { return &Assignment{anywhere: r} }

// Endpoints is what a proxy is told of a cluster whose zone is not known.
func Endpoints(cluster string, eps []Endpoint) *Resource { return Assign(cluster, eps).For("") }

// Assign is the assignment of a cluster. An empty list is a cluster without
// instances. Addresses are IP addresses; who registers them has checked that. The
// order of eps carries no meaning.
//
// A caller in a zone that has instances calls those as long as enough of them are well
// (seven in ten; Envoy's overprovisioning factor of 140), then the others, too, in
// proportion. All other callers call all instances, by their weights.
func Assign(cluster string, eps []Endpoint) *Assignment {
	zones := map[string][]Endpoint{}
	for _, e := range sortedEndpoints(eps) {
		zones[e.Zone] = append(zones[e.Zone], e)
	}
	// Equal weights are none.
	weighted := slices.ContainsFunc(eps, func(e Endpoint) bool { return e.weight() != eps[0].weight() })
	a := &Assignment{anywhere: assignment(cluster, zones, "", weighted)}
	if len(zones) > 1 {
		a.zones = map[string]*Resource{}
		for zone := range zones {
			if zone != "" {
				a.zones[zone] = assignment(cluster, zones, zone, weighted)
			}
		}
	}
	return a
}

// For is what a proxy in a zone is told; empty: its zone is not known.
func (a *Assignment) For(zone string) *Resource {
	if r := a.zones[zone]; r != nil {
		return r
	}
	return a.anywhere
}

// Equal tells whether every proxy is told the same by both.
func (a *Assignment) Equal(b *Assignment) bool {
	if a == nil || b == nil {
		return a == b
	}
	same := func(x, y *Resource) bool { return x.Version == y.Version }
	return same(a.anywhere, b.anywhere) && maps.EqualFunc(a.zones, b.zones, same)
}

func (e Endpoint) weight() uint32 { return cmp.Or(e.Weight, DefaultWeight) }

// assignment puts the instances in the zone near first, and all others behind them.
func assignment(cluster string, zones map[string][]Endpoint, near string, weighted bool) *Resource {
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	for _, zone := range slices.Sorted(maps.Keys(zones)) {
		group := &endpointv3.LocalityLbEndpoints{}
		if zone != "" {
			group.Locality = &corev3.Locality{Zone: zone}
		}
		if near != "" && zone != near {
			group.Priority = 1
		}
		for _, e := range zones[zone] {
			ep := lbEndpoint(socketAddress(e.Address, e.Port))
			if weighted {
				ep.LoadBalancingWeight = wrapperspb.UInt32(e.weight())
			}
			group.LbEndpoints = append(group.LbEndpoints, ep)
		}
		cla.Endpoints = append(cla.Endpoints, group)
	}
	return mustResource(cluster, cla)
}
