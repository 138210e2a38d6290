package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/xds"
)

// refused expects the server to end the stream with a code, having said nothing.
func (c *client) refused(code codes.Code) {
	c.t.Helper()
	m, err := c.Recv()
	if status.Code(err) != code {
		c.t.Errorf("received %v, %v; want %v", m, err, code)
	}
	if message := status.Convert(err).Message(); strings.Contains(message, "web") {
		c.t.Errorf("the refusal reveals %q", message)
	}
}

func TestRefusals(t *testing.T) {
	var log syncBuffer
	s := newServer(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	for _, test := range []struct {
		reason   string
		identity string
		code     codes.Code
		first    *discoveryv3.DeltaDiscoveryRequest
		node     string
	}{
		{refusedAuth, "admin/web", codes.PermissionDenied, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType}, "web-1"},
		{refusedNode, "node/web-1", codes.PermissionDenied, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType}, "web-2"},
		{refusedNode, "node/web-1", codes.PermissionDenied, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType}, ""},
		{refusedType, "node/web-1", codes.InvalidArgument, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"}, "web-1"},
		{refusedType, "node/web-1", codes.InvalidArgument, &discoveryv3.DeltaDiscoveryRequest{}, "web-1"},
		{refusedExcess, "node/web-1", codes.ResourceExhausted, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.EndpointType, ResourceNamesSubscribe: []string{strings.Repeat("x", maxNameLength+1)}}, "web-1"},
		{refusedExcess, "node/web-1", codes.ResourceExhausted, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType, InitialResourceVersions: map[string]string{strings.Repeat("x", maxNameLength+1): "1"}}, "web-1"},
		{refusedExcess, "node/web-1", codes.ResourceExhausted, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.EndpointType, ResourceNamesSubscribe: manyNames(maxNames + 1)}, "web-1"},
	} {
		before := s.count("zt_serve_refused_streams_total", test.reason)
		c := s.stream(s.dial(test.identity), test.node)
		if err := c.Send(test.first); !errors.Is(err, io.EOF) { // who is known by its certificate is refused before
			c.must(err)
		}
		c.refused(test.code)
		if n := s.count("zt_serve_refused_streams_total", test.reason) - before; n != 1 {
			t.Errorf("%s: counted %v times", test.reason, n)
		}
	}
	s.until("end of the streams", func() bool { return len(s.Connected()) == 0 })
	if !strings.Contains(log.String(), "reason=node instance=web-1") {
		t.Errorf("log: %s", log.String())
	}
}

func TestSilentStream(t *testing.T) {
	s := newServer(t, func(c *Config) { c.FirstRequest = 50 * time.Millisecond })
	s.connect("web-1").refused(codes.DeadlineExceeded)
	if n := s.count("zt_serve_refused_streams_total", refusedSilent); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

func manyNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	return names
}

// Who is who is settled by the certificate on every request that names a node.
func TestNodeCannotChange(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.connected("web-2")
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType, Node: &corev3.Node{Id: "web-2"}}
	c.must(c.Send(r))
	c.refused(codes.PermissionDenied)
}

func TestLogIsLimited(t *testing.T) {
	var log syncBuffer
	s := newServer(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.Now = func() time.Time { return time.Unix(0, 0) }
	})
	conn := s.dial("admin/x")
	for range 50 {
		s.stream(conn, "x").refused(codes.PermissionDenied)
	}
	if n := strings.Count(log.String(), "\n"); n != 10 {
		t.Errorf("%d lines for 50 refusals at one moment, want the burst of 10", n)
	}
	if n := s.count("zt_serve_refused_streams_total", refusedAuth); n != 50 {
		t.Errorf("counted %v", n)
	}
}

func TestStateOfTheWorldIsRefused(t *testing.T) {
	s := newServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := s.dial("node/web-1")
	ads, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ads.Recv(); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	sds, err := secretservicev3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sds.Recv(); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if _, err := secretservicev3.NewSecretDiscoveryServiceClient(conn).FetchSecrets(ctx, &discoveryv3.DiscoveryRequest{}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if n := s.count("zt_serve_refused_streams_total", refusedSotW); n != 2 {
		t.Errorf("counted %v", n)
	}
}

// An instance that is no more loses its streams, and what was set for it.
func TestDeregistered(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	other := s.connected("web-2")
	s.Set(2, map[string]*xds.Resources{"web-1": nil, "nobody": nil})
	c.refused(codes.PermissionDenied)
	s.until("its end", func() bool { return slices.Equal(s.Connected(), []string{"web-2"}) })
	other.silent()

	// It may try again, and stays without an answer.
	c = s.connect("web-1")
	c.subscribe(xds.ClusterType)
	s.await("web-1")
	s.SetSecrets("web-1", []*xds.Resource{})
	c.silent()
	if n := s.count("zt_serve_connected_proxies", ""); n != 2 {
		t.Errorf("%v proxies counted", n)
	}
}

func TestClose(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	mute := s.connect("web-1")
	s.Close()
	c.refused(codes.Unavailable)
	mute.refused(codes.Unavailable)
	c = s.connect("web-2")
	c.refused(codes.Unavailable)
}

// Connections are reported in order and alternate, whatever overlaps.
func TestConnectAndDisconnect(t *testing.T) {
	var (
		mu     sync.Mutex
		events []string
		inside int
	)
	record := func(event string) func(string) {
		return func(string) {
			mu.Lock()
			defer mu.Unlock()
			if inside++; inside > 1 {
				t.Error("two callbacks of one instance at a time")
			}
			events = append(events, event)
			inside--
		}
	}
	s := newServer(t, func(c *Config) {
		c.OnConnect, c.OnDisconnect = record("+"), record("-")
		c.Admission.Streams = 1e6
	})
	conn := s.dial("node/web-1")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 25 {
				c := s.stream(conn, "web-1")
				if err := c.Subscribe(xds.ClusterType); err != nil {
					t.Error(err)
				}
				c.Close()
			}
		})
	}
	all.Wait()
	s.until("the end", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(s.Connected()) == 0 && len(events) > 0 && events[len(events)-1] == "-"
	})
	mu.Lock()
	defer mu.Unlock()
	want := strings.Repeat("+-", len(events)/2)
	if diff := cmp.Diff(want, strings.Join(events, "")); diff != "" {
		t.Error(diff)
	}
	if n := s.count("zt_serve_connected_proxies", ""); n != 0 {
		t.Errorf("%v proxies counted", n)
	}
}

// What was set for one connection is not told to the next: by then it may be
// old, and the proxy may have newer from another server.
func TestForgetsAtDisconnect(t *testing.T) {
	gone := make(chan struct{}, 1)
	s := newServer(t, func(c *Config) { c.OnDisconnect = func(string) { gone <- struct{}{} } })
	c := s.connected("web-1")
	c.Close()
	<-gone
	s.Set(2, map[string]*xds.Resources{"web-1": base()}) // for nobody
	c = s.connect("web-1")
	c.subscribe(xds.ClusterType)
	s.await("web-1")
	s.SetSecrets("web-1", []*xds.Resource{})
	c.silent()
	s.Set(3, map[string]*xds.Resources{"web-1": with("cluster svc/a@3")})
	c.accept(xds.ClusterType, "+app/http@1 +svc/a@3")
}

// Two streams of one instance are both served; the newest speaks for Status, and
// after it the one before.
func TestTwoStreams(t *testing.T) {
	s := newServer(t)
	old := s.connected("web-1")
	young := s.connect("web-1")
	young.subscribe(xds.ClusterType)
	young.accept(xds.ClusterType, "+app/http@1 +svc/a@1")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 0 })
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension policy/http@2")})
	old.accept(xds.ExtensionType, "+policy/http@2")
	old.silent()
	if got := s.Status(); len(got) != 1 || got[0].AckedRevision != 0 {
		t.Errorf("%+v", got)
	}
	young.Close()
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 2 })
	if n := s.count("zt_serve_connected_proxies", ""); n != 1 {
		t.Errorf("%v proxies counted", n)
	}
}

// An instance cannot hold more than maxStreams: the oldest makes room.
func TestTooManyStreams(t *testing.T) {
	s := newServer(t)
	conn := s.dial("node/web-1")
	first := s.stream(conn, "web-1")
	first.subscribe(xds.ClusterType)
	s.await("web-1")
	for range maxStreams {
		s.stream(conn, "web-1").subscribe(xds.ClusterType)
	}
	first.refused(codes.ResourceExhausted)
}

// The bound of names is of all types together.
func TestTooManyNames(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Admission.Requests = 1e9 })
	c := s.stream(s.dial("node/web-1"), "web-1")
	half := manyNames(maxNames/2 + 1)
	c.subscribe(xds.EndpointType, half...)
	c.subscribe(xds.EndpointType, half...) // the same ones
	s.await("web-1")
	c.subscribe(xds.SecretType, half...)
	c.refused(codes.ResourceExhausted)
}

// What a proxy asks for that it does not ACK is not looked through for each name: its
// requests would take all senders from the others.
func TestManyNamesAwaitAnAck(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Admission.Requests = 1e9 })
	c := s.connected("web-1")
	c.subscribe(xds.ExtensionType, manyNames(maxNames/2)...)
	if m, err := c.Recv(); err != nil || len(m.GetRemovedResources()) != maxNames/2 {
		t.Fatalf("told that %d are not there, %v", len(m.GetRemovedResources()), err)
	}
	for range 50 {
		c.subscribe(xds.ExtensionType, "0") // of which the ACK is awaited
		c.subscribe(xds.SecretType, "fence")
		c.accept(xds.SecretType, "-fence")
	}
}

// A proxy that does not ACK holds one response of a type, and then gets the
// newest.
func TestSlowToAck(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension policy/http@2", "route out/http@2")})
	slow := c.recvAny(xds.ExtensionType, xds.RouteType)
	for revision := uint64(3); revision <= 50; revision++ {
		s.Set(revision, map[string]*xds.Resources{"web-1": with(
			fmt.Sprintf("extension policy/http@%d", revision), fmt.Sprintf("route out/http@%d", revision))})
	}
	c.silent()
	c.must(c.Ack(slow[xds.ExtensionType]))
	c.accept(xds.ExtensionType, "+policy/http@50")
	c.must(c.Ack(slow[xds.RouteType]))
	c.accept(xds.RouteType, "+out/http@50")
	c.silent()
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 50 })
}

// heavy is base with a policy of 1 MiB, more than any window of HTTP/2.
func heavy(version string) *xds.Resources {
	r := with("extension policy/http@" + version)
	(*r)[xds.ExtensionType]["policy/http"].Body = &anypb.Any{TypeUrl: xds.ExtensionType, Value: bytes.Repeat([]byte{'x'}, 1<<20)}
	return r
}

// A proxy that does not read blocks its own stream and no other, nor who sets.
// When it reads again it gets what was under way and then the newest; other
// types, which were waiting behind it, come in their newest version at once.
func TestDoesNotRead(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	other := s.connected("web-2")
	for revision := uint64(2); revision <= 40; revision++ {
		version := fmt.Sprint(revision)
		next := heavy(version)
		(*next)[xds.RouteType]["out/http"] = res(xds.RouteType, "out/http", version)
		s.Set(revision, map[string]*xds.Resources{"web-1": next, "web-2": with("route out/http@" + version)})
		other.accept(xds.RouteType, "+out/http@"+version)
	}
	var got []string
	for s.Status()[0].AckedRevision != 40 {
		m, err := c.Recv()
		c.must(err)
		got = append(got, adsclient.Says(m))
		c.must(c.Ack(m))
		if slices.Contains(got, "+policy/http@40") && slices.Contains(got, "+out/http@40") {
			s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 40 })
		}
	}
	if len(got) > 4 {
		t.Errorf("received %d responses of two types, want at most the first and the newest of each: %v", len(got), got)
	}
}

// A proxy that never reads loses its stream, not the server's memory: gRPC takes
// one response whatever its size, and the next one waits for a reader.
func TestNeverReads(t *testing.T) {
	s := newServer(t, func(c *Config) { c.SendTimeout = 50 * time.Millisecond })
	s.connected("web-1")
	next := heavy("2")
	(*next)[xds.RouteType]["out/http"] = res(xds.RouteType, "out/http", "2")
	s.Set(2, map[string]*xds.Resources{"web-1": next})
	s.until("its end", func() bool { return len(s.Connected()) == 0 })
	if n := s.count("zt_serve_refused_streams_total", refusedUnread); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// One that does not read is ended at once when it is deregistered.
func TestDeregisteredWhileNotReading(t *testing.T) {
	s := newServer(t)
	s.connected("web-1")
	next := heavy("2")
	(*next)[xds.RouteType]["out/http"] = res(xds.RouteType, "out/http", "2")
	s.Set(2, map[string]*xds.Resources{"web-1": next})
	s.status("web-1", func(p ProxyStatus) bool { return p.SentRevision == 2 }) // the second one is being sent
	s.Set(3, map[string]*xds.Resources{"web-1": nil})
	s.until("its end", func() bool { return len(s.Connected()) == 0 })
	if n := s.count("zt_serve_refused_streams_total", refusedUnread); n != 0 {
		t.Errorf("it was ended by its timeout")
	}
}

// Also where what is set outlives the streams, an instance that is no more
// leaves nothing.
func TestDeregisteredIsForgotten(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Retain = true })
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": nil})
	c.refused(codes.PermissionDenied)
	s.until("its end", func() bool { return len(s.Connected()) == 0 })
	c = s.connect("web-1")
	c.subscribe(xds.ClusterType)
	s.await("web-1")
	s.SetSecrets("web-1", []*xds.Resource{})
	c.silent()
}

// The agent's use: secrets only, set before the Envoy comes and kept after it
// goes, on several streams.
func TestSecretsService(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Retain = true })
	s.SetSecrets("web-1", []*xds.Resource{res(xds.SecretType, xds.SVIDSecret, "k1"), res(xds.SecretType, xds.BundleSecret, "b1")})
	conn := s.dial("node/web-1")
	open := func() *client {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		t.Cleanup(cancel)
		c, err := adsclient.OpenSecrets(ctx, conn, "web-1")
		if err != nil {
			t.Fatal(err)
		}
		return &client{Client: c, t: t}
	}
	svid, bundle := open(), open()
	svid.subscribe("", xds.SVIDSecret) // the service implies the type
	svid.accept(xds.SecretType, "+zt/svid@k1")
	bundle.subscribe(xds.SecretType, xds.BundleSecret)
	bundle.accept(xds.SecretType, "+zt/bundle@b1")
	s.SetSecrets("web-1", []*xds.Resource{res(xds.SecretType, xds.SVIDSecret, "k2"), res(xds.SecretType, xds.BundleSecret, "b1")})
	svid.accept(xds.SecretType, "+zt/svid@k2")
	bundle.silent()
	if got := s.Status(); len(got) != 0 {
		t.Errorf("status of streams that are not ADS: %+v", got)
	}
	bundle.subscribe(xds.ClusterType)
	bundle.refused(codes.InvalidArgument)
	svid.Close()
	s.until("the end", func() bool { return len(s.Connected()) == 0 })
	again := open()
	again.must(again.Resume(xds.SecretType, map[string]string{xds.SVIDSecret: "k2", xds.BundleSecret: "b0"}, xds.SVIDSecret, xds.BundleSecret))
	again.accept(xds.SecretType, "+zt/bundle@b1")
}

// Gates that are set before a revision are part of what must be ACKed for it.
func TestGatesCountForTheirRevision(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	c.subscribe(xds.RuntimeType, xds.GatesName)
	s.SetGates("web-1", res(xds.RuntimeType, xds.GatesName, "g1"))
	c.accept(xds.RuntimeType, "+zt/gates@g1")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 1 })
	s.SetGates("web-1", res(xds.RuntimeType, xds.GatesName, "g2"))
	s.Set(2, nil)
	m := c.recv(xds.RuntimeType, "+zt/gates@g2")
	c.silent()
	if got := s.Status()[0]; got.AckedRevision != 1 {
		t.Errorf("ACKed without its gates: %+v", got)
	}
	c.must(c.Ack(m))
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 2 && p.SentRevision == 2 })
}

// The same revision may be set again with another target: it was not ACKed.
func TestRevisionSetTwice(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(5, nil)
	if got := s.Status()[0].AckedRevision; got != 5 {
		t.Errorf("revision %d", got)
	}
	s.Set(5, map[string]*xds.Resources{"web-1": with("route out/http@5")})
	if got := s.Status()[0].AckedRevision; got != 4 {
		t.Errorf("revision %d before the ACK", got)
	}
	c.accept(xds.RouteType, "+out/http@5")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 5 })
}

// syncBuffer is a log that several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
