package serve

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/xds"
)

// TestManyArrive: however many come at once, only a few are in OnConnect, and all of
// them are served.
func TestManyArrive(t *testing.T) {
	const proxies, most = 60, 3
	var inside, peak atomic.Int64
	var s *server
	s = newServer(t, func(c *Config) {
		c.Admission.Arriving = most
		c.OnConnect = func(instance string) {
			now := inside.Add(1)
			for was := peak.Load(); now > was && !peak.CompareAndSwap(was, now); was = peak.Load() {
			}
			time.Sleep(time.Millisecond) // it builds a configuration
			s.SetSecrets(instance, []*xds.Resource{})
			s.Set(1, map[string]*xds.Resources{instance: target("cluster app@1")})
			inside.Add(-1)
		}
	})
	var all sync.WaitGroup
	for i := range proxies {
		c := s.connect(fmt.Sprintf("web-%d", i))
		all.Go(func() {
			if err := c.Subscribe(xds.ClusterType); err != nil {
				t.Error(err)
				return
			}
			m, err := c.Recv()
			if err != nil || adsclient.Says(m) != "+app@1" {
				t.Errorf("received %v, %v", m, err)
				return
			}
			if err := c.Ack(m); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if peak.Load() > most {
		t.Errorf("%d were in OnConnect at the same time, of at most %d", peak.Load(), most)
	}
	s.until("all have ACKed", func() bool {
		n := 0
		for _, p := range s.Status() {
			if p.AckedRevision >= 1 {
				n++
			}
		}
		return n == proxies
	})
	if n := s.count("zt_serve_waiting_streams", ""); n != 0 {
		t.Errorf("%v still wait", n)
	}
}

// bulky is a target of about n bytes.
func bulky(n int) *xds.Resources {
	r := res(xds.ClusterType, "app", "1")
	r.Body = &anypb.Any{TypeUrl: xds.ClusterType, Value: []byte(strings.Repeat("x", n))}
	return &xds.Resources{xds.ClusterType: {"app": r}}
}

// TestFirstAnswersAreBounded: while the first answers on their way fill Bytes, the next
// proxy waits, until one ACKs or has had its time.
func TestFirstAnswersAreBounded(t *testing.T) {
	const hold = 300 * time.Millisecond
	var s *server
	s = newServer(t, func(c *Config) {
		c.Admission.Bytes, c.Admission.Hold = 300<<10, hold
		c.OnConnect = func(instance string) {
			s.Set(1, map[string]*xds.Resources{instance: bulky(200 << 10)})
		}
	})
	arrive := func(instance string) (*client, *discoveryv3.DeltaDiscoveryResponse, time.Duration) {
		began := time.Now()
		c := s.connect(instance)
		c.subscribe(xds.ClusterType)
		m, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return c, m, time.Since(began)
	}
	arrive("silent") // it never ACKs
	second, m, waited := arrive("second")
	if waited < hold/2 {
		t.Errorf("the second one waited %v for one that does not ACK, and is given up after %v", waited, hold)
	}
	second.must(second.Ack(m))
	s.status("second", func(p ProxyStatus) bool { return true })
	s.until("there is room again", func() bool {
		if s.admission.bytes.TryAcquire(s.admission.Bytes) {
			s.admission.bytes.Release(s.admission.Bytes)
			return true
		}
		s.notify()
		return false
	})
	gone, _, _ := arrive("gone")
	_ = gone.Close()
	if _, _, waited := arrive("fourth"); waited > patience/2 {
		t.Errorf("one that has gone was waited for: %v", waited)
	}
}

// TestFlapping: an instance that opens stream after stream waits, in the end for
// longer than it may, and nobody else does.
func TestFlapping(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Admission.Streams = 0.0001 })
	conn := s.dial("node/web-1")
	for range streamBurst {
		c := s.stream(conn, "web-1")
		c.subscribe(xds.ClusterType)
		_ = c.Close()
	}
	for range maxStreams {
		s.stream(conn, "web-1").subscribe(xds.ClusterType)
	}
	s.until("they wait", func() bool {
		s.notify()
		return s.count("zt_serve_waiting_streams", "") == maxStreams
	})
	c := s.stream(conn, "web-1")
	c.subscribe(xds.ClusterType)
	if _, err := c.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more stream: %v", err)
	}
	if n := s.count("zt_serve_refused_streams_total", refusedCrowd); n != 1 {
		t.Errorf("%v refused", n)
	}
	s.connected("web-2")
}

// TestCrowd: beyond what may wait, streams are turned away at once.
func TestCrowd(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Admission.Waiting, c.Admission.Streams = 2, 0.0001 })
	for i := range 2 {
		instance := fmt.Sprintf("web-%d", i)
		conn := s.dial("node/" + instance)
		for n := range streamBurst + 1 { // one after the other, so that only the last waits
			waiting := i
			if n == streamBurst {
				waiting++
			}
			s.stream(conn, instance).subscribe(xds.ClusterType)
			s.until("it has its turn", func() bool {
				s.notify()
				s.admission.mu.Lock()
				defer s.admission.mu.Unlock()
				from := s.admission.instances[instance]
				return from != nil && from.limit.Tokens() < streamBurst-float64(n)-0.5 && s.admission.waiting == waiting
			})
		}
	}
	c := s.connect("web-3")
	c.subscribe(xds.ClusterType)
	if _, err := c.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the third: %v", err)
	}
}

// TestChatter: a stream that asks without end is answered slowly, and it alone.
func TestChatter(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Admission.Requests = 1 })
	quiet := s.connected("quiet")
	chatty := s.connected("chatty")
	stop := make(chan struct{})
	var talk sync.WaitGroup
	talk.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if chatty.Subscribe(xds.RouteType, fmt.Sprintf("r%d", i%100)) != nil {
				return
			}
		}
	})
	s.until("it has used its burst up", func() bool {
		s.notify()
		p := s.known("chatty")
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.streams) > 0 && p.streams[0].requests.Tokens() < 1
	})
	s.Set(2, map[string]*xds.Resources{"quiet": with("cluster svc/a@2")})
	quiet.accept(xds.ClusterType, "+svc/a@2")
	quiet.accept(xds.EndpointType, "+svc/a@e1")
	s.status("quiet", func(p ProxyStatus) bool { return p.AckedRevision >= 2 })
	close(stop)
	s.stop() // the transport's window may hold it up
	talk.Wait()
}

// TestOneThatDoesNotReadTakesNoTurn: with a single turn, a stream whose peer does not
// read holds nobody up.
func TestOneThatDoesNotReadTakesNoTurn(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Admission.Sending = 1 })
	deaf := s.stream(s.dial("node/deaf", grpc.WithInitialWindowSize(64<<10), grpc.WithStaticStreamWindowSize(64<<10)), "deaf")
	deaf.subscribe(xds.ClusterType)
	s.await("deaf")
	s.SetSecrets("deaf", []*xds.Resource{})
	s.Set(1, map[string]*xds.Resources{"deaf": bulky(4 << 20)})
	reads := s.connected("reads")
	for i := range uint64(50) {
		s.Set(2+i, map[string]*xds.Resources{"reads": with(fmt.Sprintf("cluster svc/a@%d", 2+i))})
		reads.accept(xds.ClusterType, fmt.Sprintf("+svc/a@%d", 2+i))
		reads.accept(xds.EndpointType, "+svc/a@e1")
	}
}
