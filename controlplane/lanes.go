package controlplane

import (
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/identity"
)

// maxLaneWait is how long a handshake waits for its turn. An Envoy gives up after 2 s, and
// what was computed for one that has given up is lost; so whoever has waited longer is
// closed before anything is computed for it, and comes again.
const maxLaneWait = 1500 * time.Millisecond

var errCrowdedLane = errors.New("TLS: too many handshakes at once")

// lanes are the credentials of the node port. A handshake costs most of a millisecond
// of a processor, so that thousands at once would take both from all else that the
// server does; only as many compute at the same time as there are processors. A peer
// that is silent takes no turn: it is given back while bytes are waited for.
//
// Renewals of certificates have a lane of their own, which whoever calls the name
// identity.RenewalServerName takes: a fleet that comes back does not stand before them.
type lanes struct {
	credentials.TransportCredentials // over tls
	tls                              *tls.Config
	all, renewals                    lane
	begun                            lane // those of all for which something was computed already
	waiting                          prometheus.Gauge
	refused                          prometheus.Counter
	patience                         time.Duration // how long one waits for its turn
}

// lane holds one for each handshake that computes.
type lane chan struct{}

func newLanes(config *tls.Config, metrics prometheus.Registerer) *lanes {
	l := &lanes{
		all: make(lane, runtime.GOMAXPROCS(0)), begun: make(lane, runtime.GOMAXPROCS(0)), renewals: make(lane, 1), patience: maxLaneWait,
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zt_controlplane_waiting_handshakes", Help: "TLS handshakes on the node port that wait for a processor.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zt_controlplane_crowded_handshakes_total", Help: "TLS handshakes on the node port that were closed, since they had waited for too long.",
		}),
	}
	metrics.MustRegister(l.waiting, l.refused)
	l.tls = config.Clone()
	forConnection := config.GetConfigForClient
	l.tls.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c, ok := hello.Conn.(*laneConn); ok {
			if err := c.enter(hello.ServerName); err != nil {
				return nil, err
			}
		}
		if forConnection == nil {
			return nil, nil
		}
		return forConnection(hello)
	}
	l.TransportCredentials = credentials.NewTLS(l.tls)
	return l
}

func (l *lanes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c := &laneConn{Conn: raw, lanes: l}
	defer c.leave()
	return l.TransportCredentials.ServerHandshake(c)
}

func (l *lanes) Clone() credentials.TransportCredentials { return l }

// laneConn is a connection that is in a lane until its handshake is done. Until then one
// goroutine uses it.
type laneConn struct {
	net.Conn
	lanes *lanes
	lane  lane // nil: not in one
	in    bool // it has a turn
}

func (c *laneConn) enter(name string) error {
	c.lane = c.lanes.all
	if name == identity.RenewalServerName {
		c.lane = c.lanes.renewals
	}
	return c.take()
}

func (c *laneConn) take() error {
	select {
	case c.lane <- struct{}{}:
	default:
		c.lanes.waiting.Inc()
		defer c.lanes.waiting.Dec()
		late := time.NewTimer(c.lanes.patience)
		defer late.Stop()
		select {
		case c.lane <- struct{}{}:
		case <-late.C:
			c.lanes.refused.Inc()
			return errCrowdedLane
		}
	}
	c.in = true
	return nil
}

func (c *laneConn) give() {
	if c.in {
		c.in = false
		<-c.lane
	}
}

func (c *laneConn) leave() {
	c.give()
	c.lane = nil
}

func (c *laneConn) Read(b []byte) (int, error) {
	if c.lane == nil {
		return c.Conn.Read(b)
	}
	c.give()
	n, err := c.Conn.Read(b)
	if err != nil {
		return n, err
	}
	if c.lane == c.lanes.all {
		c.lane = c.lanes.begun // not behind those that have just come: its signature would be lost
	}
	return n, c.take()
}
