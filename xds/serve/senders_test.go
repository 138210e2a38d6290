package serve

import (
	"context"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	protocol "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/xds"
)

// Who is subscribed to what is what go-control-plane says, for any requests.
func TestSubscriptions(t *testing.T) {
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))
	names := func() (out []string) {
		for _, n := range []string{"a", "b", "c", wildcard} {
			if random.IntN(4) == 0 {
				out = append(out, n)
			}
		}
		return out
	}
	for range 2000 {
		typeURL := inOrder[random.IntN(len(inOrder))]
		r := &discoveryv3.DeltaDiscoveryRequest{
			TypeUrl: typeURL, ResourceNamesSubscribe: names(), ResourceNamesUnsubscribe: names(),
			InitialResourceVersions: map[string]string{},
		}
		for _, n := range []string{"a", "b", "d"} {
			if random.IntN(3) == 0 {
				r.InitialResourceVersions[n] = "1"
			}
		}
		legacy := typeURL == xds.ListenerType || typeURL == xds.ClusterType
		want := protocol.NewDeltaSubscription(r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe, maps.Clone(r.InitialResourceVersions), legacy)
		f := New(Config{})
		w := newWatch(&stream{fleet: f, proxy: f.newProxy("web-1")}, r)
		for range random.IntN(6) {
			more := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names(), ResourceNamesUnsubscribe: names()}
			want.UpdateResourceSubscriptions(more.ResourceNamesSubscribe, more.ResourceNamesUnsubscribe)
			w.subscribe(more)
		}
		got := map[string]struct{}{}
		for name := range w.subscribed.each() {
			got[name] = struct{}{}
		}
		if diff := cmp.Diff(want.SubscribedResources(), got); diff != "" || w.all != want.IsWildcard() {
			t.Fatalf("seed %d, %s: all is %t, want %t; %s", seed, typeLabel(typeURL), w.all, want.IsWildcard(), diff)
		}
	}
}

// pipe is a transport whose peer reads when the test does.
type pipe struct {
	ctx      context.Context
	requests chan *discoveryv3.DeltaDiscoveryRequest
	writes   chan *discoveryv3.DeltaDiscoveryResponse // begun
	read     chan struct{}                            // one for each that is read
}

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	select {
	case r := <-p.requests:
		return r, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *pipe) Send(m *discoveryv3.DeltaDiscoveryResponse) error {
	p.writes <- m
	select {
	case <-p.read:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// As many responses are under way as may be; one that is not read at once gives its turn
// to the next, and in the end loses its stream, and no other.
func TestSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Config{
			Authorize: func(ctx context.Context) (string, error) { return ctx.Value(instanceKey{}).(string), nil },
			Retain:    true, Admission: Admission{Sending: 2}, SendTimeout: time.Second,
		})
		f.SetEndpoints(nil)
		pipes, ends := map[string]*pipe{}, map[string]chan error{}
		for _, i := range []string{"a", "b", "c"} {
			f.Set(1, map[string]*xds.Resources{i: base()})
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), instanceKey{}, i))
			p := &pipe{ctx, make(chan *discoveryv3.DeltaDiscoveryRequest), make(chan *discoveryv3.DeltaDiscoveryResponse, 8), make(chan struct{}, 8)}
			pipes[i], ends[i] = p, make(chan error, 1)
			go func() {
				ends[i] <- f.serve(p, "")
				cancel() // as gRPC does
			}()
			r := nodeRequest(i)
			p.requests <- r
			synctest.Wait()
		}
		writing := func() (n int) {
			for _, p := range pipes {
				n += len(p.writes)
			}
			return n
		}
		if n := writing(); n != 2 {
			t.Fatalf("%d responses are under way, want as many as may be: 2", n)
		}
		time.Sleep(atOnce)
		synctest.Wait()
		if n := writing(); n != 3 {
			t.Fatalf("%d responses are under way when two were not read at once, want 3", n)
		}
		pipes["b"].read <- struct{}{}
		pipes["c"].read <- struct{}{}
		if err := <-ends["a"]; status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("the stream that is not read ended with %v", err)
		}
		synctest.Wait()
		if got := f.Connected(); len(got) != 2 {
			t.Errorf("connected are %v", got)
		}
		f.Close()
		for _, i := range []string{"b", "c"} {
			if err := <-ends[i]; status.Code(err) != codes.Unavailable {
				t.Errorf("%s ended with %v", i, err)
			}
		}
		synctest.Wait()
		if f.senders.active != 0 || len(f.senders.ready) != 0 {
			t.Errorf("%d senders are active when nobody is ready", f.senders.active)
		}
	})
}

type instanceKey struct{}

func nodeRequest(instance string) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType, Node: &corev3.Node{Id: instance}}
}
