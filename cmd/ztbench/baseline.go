package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/xds"
)

// baseline is a server to measure the control plane against. It listens without TLS,
// and believes what a proxy says it is.
type baseline interface {
	discoveryv3.AggregatedDiscoveryServiceServer
	do(context.Context, order) (answer, error)
}

func serveBaseline(ctx context.Context, b baseline, in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		return err
	}
	g := grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}), // as the control plane
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, b)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	err = json.NewEncoder(out).Encode(answer{Plain: l.Addr().String()})
	if err == nil {
		err = obey(ctx, in, out, b.do)
	}
	g.Stop()
	return errors.Join(err, <-done)
}

// floor sends so many bytes to streams and waits for their ACKs: what no server of
// these streams can be faster than.
type floor struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	mu      sync.Mutex // guards what follows
	bytes   int        // sent to whoever connects
	streams map[string]*floorStream
}

// floorStream is one proxy's.
type floorStream struct {
	out  chan *discoveryv3.DeltaDiscoveryResponse
	acks chan time.Time
}

// message is a response of about so many bytes.
func message(bytes int) *discoveryv3.DeltaDiscoveryResponse {
	return &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: xds.ClusterType, Nonce: "1",
		Resources: []*discoveryv3.Resource{{Name: "r", Version: "1", Resource: &anypb.Any{TypeUrl: xds.ClusterType, Value: make([]byte, bytes)}}},
	}
}

func (f *floor) do(ctx context.Context, o order) (answer, error) {
	if o.Do == "load" {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.bytes = o.Bytes
		return answer{}, nil
	}
	if o.Do != "push" {
		return answer{}, fmt.Errorf("no such order: %q", o.Do)
	}
	f.mu.Lock()
	to := map[string]*floorStream{}
	for id, s := range f.streams {
		to[id] = s
	}
	f.mu.Unlock()
	if len(o.IDs) > 0 {
		all := to
		to = map[string]*floorStream{}
		for _, id := range o.IDs {
			if all[id] == nil {
				return answer{}, fmt.Errorf("%s has no stream", id)
			}
			to[id] = all[id]
		}
	}
	a := answer{At: map[string]time.Time{}, Began: time.Now()}
	m := message(o.Bytes)
	for _, s := range to {
		s.out <- m
	}
	for id, s := range to {
		select {
		case a.At[id] = <-s.acks:
		case <-ctx.Done():
			return answer{}, errors.New("an ACK did not come")
		}
	}
	return a, nil
}

// DeltaAggregatedResources is part of the discovery service.
func (f *floor) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	hello, err := stream.Recv()
	if err != nil {
		return err
	}
	s := &floorStream{out: make(chan *discoveryv3.DeltaDiscoveryResponse, 1), acks: make(chan time.Time, 1)}
	f.mu.Lock()
	bytes := f.bytes
	f.mu.Unlock()
	if err := stream.Send(message(bytes)); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	id := hello.GetNode().GetId()
	f.mu.Lock()
	f.streams[id] = s
	f.mu.Unlock()
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				ended <- err
				return
			}
			s.acks <- time.Now()
		}
	}()
	for {
		select {
		case m := <-s.out:
			if err := stream.Send(m); err != nil {
				return err
			}
		case err := <-ended:
			return err
		}
	}
}

// byID is go-control-plane's NodeHash: a proxy is what it says it is.
type byID struct{}

func (byID) ID(n *corev3.Node) string { return n.GetId() }
