package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/xds"
)

func address(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// told is what an Envoy says of a connection from a port of the peer's.
func told(port uint32, caller string, kind accesslogdatav3.AccessLogType) *accesslogdatav3.AccessLogCommon {
	return &accesslogdatav3.AccessLogCommon{
		DownstreamDirectRemoteAddress: address("10.0.0.9", port), DownstreamLocalAddress: address("10.0.0.7", 7000),
		UpstreamCluster: xds.AppCluster("feed"), AccessLogType: kind,
		TlsProperties: &accesslogdatav3.TLSProperties{PeerCertificateProperties: &accesslogdatav3.TLSProperties_CertificateProperties{
			SubjectAltName: []*accesslogdatav3.TLSProperties_CertificateProperties_SubjectAltName{{
				San: &accesslogdatav3.TLSProperties_CertificateProperties_SubjectAltName_Uri{Uri: caller},
			}},
		}},
	}
}

// fromHost has another host be the peer.
func fromHost(n uint32, p *accesslogdatav3.AccessLogCommon) *accesslogdatav3.AccessLogCommon {
	p.DownstreamDirectRemoteAddress.GetSocketAddress().Address = netip.AddrFrom4([4]byte{10, 1, 0, byte(n)}).String()
	return p
}

const (
	begins = accesslogdatav3.AccessLogType_TcpUpstreamConnected
	goesOn = accesslogdatav3.AccessLogType_TcpPeriodic
	isOver = accesslogdatav3.AccessLogType_TcpConnectionEnd
)

func TestConnections(t *testing.T) {
	const web, cart = "spiffe://shop.example/ns/feed/sa/web", "spiffe://shop.example/ns/feed/sa/cart"
	now := time.Unix(1e9, 0)
	var cut []uint16
	var closed map[string]bool
	var refused error
	c := newConnections(&connections{
		workload: "feed/prices", log: slog.New(slog.DiscardHandler), now: func() time.Time { return now },
		closed: func(context.Context) (map[string]bool, error) { return closed, nil },
		cut: func(local, peer netip.AddrPort) error {
			if local != netip.MustParseAddrPort("10.0.0.7:7000") || peer.Addr() != netip.MustParseAddr("10.0.0.9") {
				t.Errorf("cuts %s from %s", local, peer)
			}
			if refused == nil {
				cut = append(cut, peer.Port())
			}
			return refused
		},
	})
	look := func() error { return c.look(t.Context()) }
	c.note(told(1, web, begins))
	c.note(told(2, cart, begins))
	c.note(told(3, web, begins))
	c.note(told(3, web, isOver))
	c.note(told(4, web, goesOn)) // of before the agent was started
	other := told(5, web, begins)
	other.UpstreamCluster = "svc/shop/orders/http" // no port of the workload's own
	c.note(other)
	nobody := told(6, web, begins)
	nobody.TlsProperties = nil
	c.note(nobody)
	if err := look(); err != nil || cut != nil {
		t.Fatalf("cut %v, %v while no gate is closed", cut, err)
	}

	closed = map[string]bool{xds.GateKey("feed/prices", "feed", web): true}
	refused = errNotPermitted
	if err := look(); !errors.Is(err, errNotPermitted) {
		t.Errorf("not permitted: %v", err)
	}
	refused = nil
	if err := look(); err != nil {
		t.Error(err)
	}
	slices.Sort(cut)
	if !slices.Equal(cut, []uint16{1, 4}) {
		t.Errorf("cut those from ports %v", cut)
	}

	// What is not told of any more is forgotten.
	now = now.Add(4 * xds.ConnectionLogEvery)
	if err := look(); err != nil || len(c.all()) != 0 {
		t.Errorf("%v is remembered, %v", c.all(), err)
	}
	for i := range uint32(maxConnections + 5) {
		c.note(fromHost(i/60000, told(1+i%60000, web, begins)))
	}
	now = now.Add(2 * xds.ConnectionLogEvery)
	c.note(fromHost(0, told(1, web, goesOn))) // of a known one it is heard, however many there are
	now = now.Add(2 * xds.ConnectionLogEvery)
	closed = nil
	if err := look(); err != nil || len(c.all()) != 1 {
		t.Errorf("%d are remembered, %v", len(c.all()), err)
	}
	for i := range uint32(maxConnections + 5) {
		c.note(fromHost(i/60000, told(1+i%60000, web, begins)))
	}
	if n := len(c.all()); n > maxConnections {
		t.Errorf("%d are remembered", n)
	}
}

// at has a connection have begun at a second of the Envoy's clock, and lasted for some.
func at(begun, lasted int64, p *accesslogdatav3.AccessLogCommon) *accesslogdatav3.AccessLogCommon {
	p.StartTime, p.Duration = &timestamppb.Timestamp{Seconds: begun}, durationpb.New(time.Duration(lasted)*time.Second)
	return p
}

// ofConnections are connections with these closed gates, whose cuts are counted.
func ofConnections(now *time.Time, cuts *int, gone error, closed ...string) *connections {
	shut := map[string]bool{}
	for _, caller := range closed {
		shut[xds.GateKey("feed/prices", "feed", caller)] = true
	}
	return newConnections(&connections{
		workload: "feed/prices", log: slog.New(slog.DiscardHandler), now: func() time.Time { return *now },
		closed: func(context.Context) (map[string]bool, error) { return shut, nil },
		cut:    func(_, _ netip.AddrPort) error { *cuts++; return gone },
	})
}

// What is told of a connection counts for that one alone: not for the next with the same
// ends, and not any more once it is over, in whatever order it comes.
func TestLateWords(t *testing.T) {
	const web, cart = "spiffe://shop.example/ns/feed/sa/web", "spiffe://shop.example/ns/feed/sa/cart"
	now, cuts := time.Unix(1e9, 0), 0
	for name, told := range map[string][]*accesslogdatav3.AccessLogCommon{
		"its beginning after its end":              {at(5, 1, told(1, web, isOver)), at(5, 0, told(1, web, begins))},
		"a sign of life after its end":             {at(5, 0, told(1, web, begins)), at(5, 1, told(1, web, isOver)), at(5, 1, told(1, web, goesOn))},
		"its end after the beginning of the next":  {at(5, 0, told(1, web, begins)), at(7, 0, told(1, cart, begins)), at(5, 1, told(1, web, isOver)), at(7, 0, told(1, cart, goesOn))},
		"its beginning after that of the next one": {at(7, 0, told(1, cart, begins)), at(5, 0, told(1, web, begins))},
	} {
		c := ofConnections(&now, &cuts, nil, web)
		for _, p := range told {
			c.note(p)
		}
		want := 0
		if told[len(told)-1].StartTime.Seconds == 7 || told[0].StartTime.Seconds == 7 {
			want = 1
		}
		if err := c.look(t.Context()); err != nil || cuts != 0 || len(c.all()) != want {
			t.Errorf("%s: %d cut, open are %v, %v", name, cuts, c.all(), err)
		}
		if len(c.untold) != 0 {
			t.Errorf("%s: tells of %v", name, c.untold)
		}
		cuts = 0
	}
}

// While it is looked at what is to be cut, a connection ends and another one takes its
// place: that one is neither cut nor forgotten.
func TestEndWhileLooking(t *testing.T) {
	const web, cart = "spiffe://shop.example/ns/feed/sa/web", "spiffe://shop.example/ns/feed/sa/cart"
	now, cuts := time.Unix(1e9, 0), 0
	c := ofConnections(&now, &cuts, nil, web)
	c.note(at(5, 0, told(1, web, begins)))
	c.note(at(5, 0, told(2, cart, begins)))
	now = now.Add(4 * xds.ConnectionLogEvery)
	closed := c.closed
	c.closed = func(ctx context.Context) (map[string]bool, error) {
		c.note(at(5, 2, told(1, web, isOver)))
		c.note(at(7, 0, told(1, cart, begins)))
		c.note(at(5, 2, told(2, cart, isOver)))
		c.note(at(7, 0, told(2, cart, begins)))
		return closed(ctx)
	}
	if err := c.look(t.Context()); err != nil || cuts != 0 || len(c.all()) != 2 {
		t.Errorf("%d cut, open are %v, %v", cuts, c.all(), err)
	}
}

// Two streams of an Envoy tell of the same connections while they are looked at.
func TestConnectionsAtOnce(t *testing.T) {
	const web = "spiffe://shop.example/ns/feed/sa/web"
	now, cuts := time.Unix(1e9, 0), 0
	c := ofConnections(&now, &cuts, nil)
	var all sync.WaitGroup
	for stream := range 2 {
		all.Go(func() {
			for i := range int64(2000) {
				port := 1 + uint32(i%7)
				if stream == 0 {
					c.note(at(i, 0, told(port, web, begins)))
				} else {
					c.note(at(i, 1, told(port, web, isOver)))
				}
			}
		})
	}
	all.Go(func() {
		for range 200 {
			if err := c.look(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
	if len(c.all()) != 0 {
		t.Errorf("each has begun and ended, and open are %v", c.all())
	}
}

// What ends while its gate is closed is told once, by whoever has ended it: the kernel at
// the agent's word, its age, its peer; by its gate, the Envoy tells it.
func TestToldEnds(t *testing.T) {
	const web = "spiffe://shop.example/ns/feed/sa/web"
	now, cuts := time.Unix(1e9, 0), 0
	c := ofConnections(&now, &cuts, errNotPermitted, web)
	for port := range uint32(4) {
		c.note(at(1e9, 0, told(1+port, web, begins)))
	}
	if err := c.look(t.Context()); !errors.Is(err, errNotPermitted) {
		t.Fatal(err)
	}
	c.note(at(1e9, 3600, told(1, web, isOver))) // by its age
	byGate := at(1e9, 7, told(2, web, isOver))
	byGate.ConnectionTerminationDetails = xds.CutDetails + "default-deny]"
	c.note(byGate)
	c.cut = func(_, peer netip.AddrPort) error {
		if peer.Port() == 4 {
			return errGone // its end comes
		}
		c.note(at(1e9, 9, told(uint32(peer.Port()), web, isOver))) // at once
		return nil
	}
	now = now.Add(9 * time.Second)
	if err := c.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.note(at(1e9, 8, told(4, web, isOver)))
	var took []time.Duration
	got := make(chan []*accesslogdatav3.TCPAccessLogEntry, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	synctest.Test(t, func(t *testing.T) {
		// The channel of signals belongs to this bubble.
		c.telling = make(chan struct{}, 1)
		signal(c.telling)
		calls := 0
		err := c.tell(ctx, func(_ context.Context, all []*accesslogdatav3.TCPAccessLogEntry) error {
			if calls++; calls < 3 {
				return errors.New("no server answers")
			}
			got <- all
			stop()
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	for _, e := range <-got {
		p := e.GetCommonProperties()
		took = append(took, p.GetDuration().AsDuration())
		if p.GetConnectionTerminationDetails() != xds.CutByAgent || p.GetDownstreamLocalAddress().GetSocketAddress().GetPortValue() != 7000 ||
			p.GetTlsProperties().GetPeerCertificateProperties().GetSubjectAltName()[0].GetUri() != web {
			t.Errorf("tells %v", e)
		}
	}
	slices.Sort(took)
	if !slices.Equal(took, []time.Duration{8 * time.Second, 9 * time.Second, time.Hour}) {
		t.Errorf("told of connections that lasted %v", took)
	}
}

// What the kernel has cut is told once, whatever the Envoy says of it late; and a gate that
// was closed while connections were open says nothing of the next ones.
func TestToldOnce(t *testing.T) {
	const web = "spiffe://shop.example/ns/feed/sa/web"
	now, cuts := time.Unix(1e9, 0), 0
	c := ofConnections(&now, &cuts, nil, web)
	c.note(at(5, 0, told(1, web, begins)))
	if err := c.look(t.Context()); err != nil || cuts != 1 || len(c.untold) != 1 {
		t.Fatalf("%d cut, tells of %v, %v", cuts, c.untold, err)
	}
	c.note(at(5, 20, told(1, web, goesOn))) // by another thread
	c.note(at(5, 21, told(1, web, isOver)))
	if len(c.all()) != 0 || len(c.untold) != 1 {
		t.Errorf("open are %v, tells of %v", c.all(), c.untold)
	}
	c.closed = func(context.Context) (map[string]bool, error) { return nil, nil }
	c.note(at(90, 0, told(1, web, begins))) // it is let in again
	c.note(at(90, 1, told(1, web, isOver)))
	if len(c.untold) != 1 {
		t.Errorf("tells of %v, which no gate has concerned", c.untold)
	}
}
