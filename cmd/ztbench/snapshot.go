package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	delta "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/xds"
)

// snapshots serves what the control plane would, by go-control-plane's SnapshotCache,
// used as its documentation says: a snapshot for each proxy that a change touches.
type snapshots struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cache  cache.SnapshotCache
	server delta.Server

	index     *policy.Index
	instances map[string][]member // by workload
	roots     []byte              // PEM
	revision  int
}

func newSnapshots() *snapshots {
	s := &snapshots{cache: cache.NewSnapshotCache(true, byID{}, nil), instances: map[string][]member{}}
	s.index = policy.New(trustDomain, nil)
	s.server = delta.NewServer(context.Background(), s.cache, nil)
	return s
}

// DeltaAggregatedResources is part of the discovery service.
func (s *snapshots) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.server.DeltaStreamHandler(stream, resource.AnyType)
}

func (s *snapshots) do(ctx context.Context, o order) (answer, error) {
	began := time.Now()
	switch o.Do {
	case "load":
		file, err := readFleet(o.Fleet)
		if err != nil {
			return answer{}, err
		}
		s.roots = []byte(file.Roots)
		for _, m := range file.Instances {
			s.instances[m.Workload] = append(s.instances[m.Workload], m)
		}
	case "endpoint":
		return answer{Began: began}, s.addEndpoint(ctx, o.IDs[0], o.IDs[1:])
	case "change":
	default:
		return answer{}, fmt.Errorf("no such order: %q", o.Do)
	}
	docs, problems := spec.Parse([]spec.File{{Name: "spec.yaml", Content: []byte(o.Spec)}})
	if len(problems) > 0 {
		return answer{}, errors.New(problems.Error())
	}
	next := s.index.With(docs, nil)
	keys := make([]spec.Key, len(docs))
	for i, d := range docs {
		keys[i] = d.Key()
	}
	touched := next.Touched(s.index, keys)
	s.index = next
	s.revision++
	return answer{Began: began}, s.tell(ctx, touched)
}

// addEndpoint adds an instance of a workload: the snapshots of its callers change.
func (s *snapshots) addEndpoint(ctx context.Context, workload string, callers []string) error {
	s.instances[workload] = append(s.instances[workload], member{ID: "added", Workload: workload, Address: "127.99.0.1"})
	s.revision++
	var refs []spec.Ref
	for _, c := range callers {
		ref, err := spec.ParseRef(c, "")
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	return s.tell(ctx, refs)
}

func (s *snapshots) tell(ctx context.Context, touched []spec.Ref) error {
	for _, ref := range touched {
		c, err := compile.Workload(s.index, nil, ref)
		if err != nil {
			return err
		}
		for _, m := range s.instances[ref.String()] {
			built, err := xds.Build(c, xds.Instance{ID: m.ID, Address: m.Address, Egress: "127.0.0.1", Secrets: xds.FromAgent})
			if err != nil {
				return err
			}
			snapshot, err := s.snapshot(built)
			if err != nil {
				return err
			}
			if err := s.cache.SetSnapshot(ctx, m.ID, snapshot); err != nil {
				return err
			}
		}
	}
	return nil
}

// snapshot is all that a proxy is told, at this revision.
func (s *snapshots) snapshot(built *xds.Resources) (*cache.Snapshot, error) {
	all := map[resource.Type][]types.Resource{}
	add := func(r *xds.Resource) error {
		m, err := r.Body.UnmarshalNew()
		if err != nil {
			return err
		}
		all[r.Type] = append(all[r.Type], m)
		return nil
	}
	for _, r := range built.All() {
		if err := add(r); err != nil {
			return nil, err
		}
	}
	for name := range (*built)[xds.ClusterType] {
		service, ok := strings.CutPrefix(name, "svc/")
		if !ok {
			continue // the application's own
		}
		var eps []xds.Endpoint
		for _, m := range s.instances[strings.TrimSuffix(service, "/http")] {
			eps = append(eps, xds.Endpoint{Address: m.Address, Port: servedPort})
		}
		if err := add(xds.Endpoints(name, eps)); err != nil {
			return nil, err
		}
	}
	for _, r := range []*xds.Resource{xds.Gates(nil), xds.Bundle(map[string][]byte{trustDomain: s.roots})} {
		if err := add(r); err != nil {
			return nil, err
		}
	}
	return cache.NewSnapshot(strconv.Itoa(s.revision), all)
}
