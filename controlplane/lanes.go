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
	"github.com/ztmesh/ztmesh/xds"
)

// How long a handshake waits for its turn. What was computed for a client that gives up
// meanwhile is lost, so this leaves time for the rest of the handshake.
const (
	proxyWait = xds.ServerTimeout * 7 / 10 // of an Envoy, which says by its server name that it is as patient
	otherWait = 1500 * time.Millisecond    // of others; Envoys of before that name wait 2 s
	begunWait = 10 * time.Second           // of one for which something was computed already
)

// errGone is why nothing is computed for a peer that has closed its connection.
var errGone = errors.New("TLS: the client has given up")

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
	all, renewals                    *lane
	begun                            *lane         // those of all for which something was computed already
	patience                         time.Duration // of who does not say that it has more
	refused, gone                    prometheus.Counter
}

func newLanes(config *tls.Config, metrics prometheus.Registerer) *lanes {
	waiting := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "zt_controlplane_waiting_handshakes", Help: "TLS handshakes on the node port that wait for a processor.",
	})
	waits := func(more int) { waiting.Add(float64(more)) }
	l := &lanes{
		all: newLane(runtime.GOMAXPROCS(0), waits), begun: newLane(runtime.GOMAXPROCS(0), waits), renewals: newLane(1, waits),
		patience: otherWait,
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zt_controlplane_crowded_handshakes_total", Help: "TLS handshakes on the node port that were closed, since they would have waited for too long.",
		}),
		gone: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zt_controlplane_gone_handshakes_total", Help: "TLS handshakes on the node port whose client had given up when its turn came.",
		}),
	}
	metrics.MustRegister(waiting, l.refused, l.gone)
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
	lanes    *lanes
	lane     *lane         // nil: not in one
	patience time.Duration // how long it waits for a turn
	in       bool          // it has a turn
}

func (c *laneConn) enter(name string) error {
	c.lane, c.patience = c.lanes.all, c.lanes.patience
	switch name {
	case identity.RenewalServerName:
		c.lane = c.lanes.renewals
	case xds.ServerName:
		c.patience = proxyWait
	}
	return c.take()
}

func (c *laneConn) take() error {
	if err := c.lane.take(c.patience); err != nil {
		c.lanes.refused.Inc()
		return err
	}
	if gone(c.Conn) {
		c.lanes.gone.Inc()
		c.lane.give(false)
		return errGone
	}
	c.in = true
	return nil
}

func (c *laneConn) give() {
	if c.in {
		c.in = false
		c.lane.give(true)
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
		c.lane, c.patience = c.lanes.begun, begunWait // not behind those that have just come: its signature would be lost
	}
	return n, c.take()
}
