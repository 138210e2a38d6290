package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

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
