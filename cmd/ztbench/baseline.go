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
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(8<<10), // all as the control plane
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
	came    chan struct{} // closed and replaced when there is another one
}

// floorStream is one proxy's, which has ACKed what it was sent at first.
type floorStream struct {
	out   chan *discoveryv3.DeltaDiscoveryResponse
	acks  chan time.Time
	ended <-chan struct{}
}

func newFloor() *floor {
	return &floor{streams: map[string]*floorStream{}, came: make(chan struct{})}
}

// stream is a proxy's stream. One that comes again is waited for.
func (f *floor) stream(ctx context.Context, id string) (*floorStream, error) {
	for {
		f.mu.Lock()
		s, came := f.streams[id], f.came
		f.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-came:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s has no stream", id)
		}
	}
}

// join has s be a proxy's stream until the function that it returns is called.
func (f *floor) join(id string, s *floorStream) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[id] = s
	close(f.came)
	f.came = make(chan struct{})
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.streams[id] == s {
			delete(f.streams, id)
		}
	}
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
	return f.push(ctx, o.IDs, message(o.Bytes))
}

// push begins when each of them has a stream.
func (f *floor) push(ctx context.Context, ids []string, m *discoveryv3.DeltaDiscoveryResponse) (answer, error) {
	to := make(map[string]*floorStream, len(ids))
	for _, id := range ids {
		s, err := f.stream(ctx, id)
		if err != nil {
			return answer{}, err
		}
		to[id] = s
	}
	a := answer{At: make(map[string]time.Time, len(ids)), Began: time.Now()}
	for _, s := range to {
		s.send(m)
	}
	for id, s := range to {
		for a.At[id].IsZero() {
			select {
			case a.At[id] = <-s.acks:
			case <-s.ended:
				var err error
				if s, err = f.stream(ctx, id); err != nil {
					return answer{}, err
				}
				s.send(m)
			case <-ctx.Done():
				return answer{}, fmt.Errorf("the ACK of %s did not come", id)
			}
		}
	}
	return a, nil
}

func (s *floorStream) send(m *discoveryv3.DeltaDiscoveryResponse) {
	select {
	case s.out <- m:
	case <-s.ended:
	}
}

// DeltaAggregatedResources is part of the discovery service.
func (f *floor) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	hello, err := stream.Recv()
	if err != nil {
		return err
	}
	gone := stream.Context().Done()
	s := &floorStream{out: make(chan *discoveryv3.DeltaDiscoveryResponse, 1), acks: make(chan time.Time, 1), ended: gone}
	f.mu.Lock()
	bytes := f.bytes
	f.mu.Unlock()
	if err := stream.Send(message(bytes)); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	defer f.join(hello.GetNode().GetId(), s)()
	ended := make(chan error, 1)
	go func() { // until the stream ends, which ends Recv
		for {
			if _, err := stream.Recv(); err != nil {
				ended <- err
				return
			}
			select {
			case s.acks <- time.Now():
			case <-gone:
			}
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
