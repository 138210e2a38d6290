package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// lookEvery is how often the closed gates are compared with the open connections, while
// there are any.
const lookEvery = time.Second

// maxConnections bounds what is remembered of connections, maxOver what is remembered of
// those that are over: for lateFor at least, if there is room.
const (
	maxConnections = 100_000
	maxOver        = 4096
	lateFor        = 5 * time.Second
)

// ends are both ends of a tcp connection: the peer, and the Envoy.
type ends struct{ peer, local netip.AddrPort }

// open is a connection that the Envoy has open.
type open struct {
	caller  string    // its SPIFFE ID
	gate    string    // the key that closes it
	started time.Time // by the Envoy's clock: tells it from another one with the same ends
	heard   time.Time
}

// connections are the tcp connections that peers have to the Envoy. It cuts those whose
// gate is closed: the Envoy does so by itself as soon as the peer says something, and a
// peer that only listens says nothing.
type connections struct {
	accesslogv3.UnimplementedAccessLogServiceServer

	workload string
	// closed are the keys of the gates that are closed in the Envoy.
	closed func(context.Context) (map[string]bool, error)
	// cut ends a connection of this host. errGone is returned when there is none.
	cut func(local, peer netip.AddrPort) error
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex // guards the following
	open    map[ends]open
	over    map[ends]ended  // what has ended just now: what is told of it later is late
	shut    map[string]bool // what closed has returned last
	untold  []*accesslogdatav3.TCPAccessLogEntry
	changed chan struct{} // holds one: something is open
	telling chan struct{} // holds one: something is untold
}

// ended is a connection that is over.
type ended struct{ started, heard time.Time }

func newConnections(c *connections) *connections {
	c.open, c.over = map[ends]open{}, map[ends]ended{}
	c.changed, c.telling = make(chan struct{}, 1), make(chan struct{}, 1)
	return c
}

// StreamAccessLogs is what the Envoy calls. It comes over the agent's own socket, which
// nobody else may open.
func (c *connections) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&accesslogv3.StreamAccessLogsResponse{})
		}
		if err != nil {
			return err
		}
		for _, entry := range m.GetTcpLogs().GetLogEntry() {
			c.note(entry.GetCommonProperties())
		}
	}
}

// note takes what is told of one connection. What is not of a peer of the mesh, or does
// not say whose it is, is not for the agent to cut.
func (c *connections) note(p *accesslogdatav3.AccessLogCommon) {
	peer, ok1 := addrPort(p.GetDownstreamDirectRemoteAddress())
	local, ok2 := addrPort(p.GetDownstreamLocalAddress())
	sans := p.GetTlsProperties().GetPeerCertificateProperties().GetSubjectAltName()
	port, ok3 := strings.CutPrefix(p.GetUpstreamCluster(), xds.AppCluster(""))
	if !ok1 || !ok2 || !ok3 || len(sans) != 1 || sans[0].GetUri() == "" {
		return
	}
	caller := sans[0].GetUri()
	c.mu.Lock()
	defer c.mu.Unlock()
	at := ends{peer, local}
	now := c.now()
	told := open{caller: caller, gate: xds.GateKey(c.workload, port, caller), started: p.GetStartTime().AsTime(), heard: now}
	if p.GetAccessLogType() == accesslogdatav3.AccessLogType_TcpConnectionEnd {
		c.endLocked(at, told, p)
		return
	}
	known, is := c.open[at]
	switch {
	case is && known.started.After(told.started): // of one before it
	case !told.started.After(c.over[at].started): // it is over; this comes late
	case !is && len(c.open) >= maxConnections: // maxConnectionAge ends it
	default:
		if len(c.open) == 0 { // nobody has looked since the last one ended
			c.shut = nil
		}
		c.open[at] = told
		signal(c.changed)
	}
}

// endLocked takes the end of a connection. The Envoy tells of one from another stream
// for each of its threads, and from a new one when a stream was lost: so an end may come
// before what was told earlier, and after the beginning of another connection with the
// same ends. mu is held.
func (c *connections) endLocked(at ends, last open, p *accesslogdatav3.AccessLogCommon) {
	c.overLocked(at, last.started, last.heard)
	known, is := c.open[at]
	if !is || known.started.After(last.started) {
		return
	}
	delete(c.open, at)
	// What its gate has cut, the Envoy tells the control plane itself.
	if c.shut[known.gate] && !strings.HasPrefix(p.GetConnectionTerminationDetails(), xds.CutDetails) {
		c.tellLocked(at, known, known.started.Add(p.GetDuration().AsDuration()))
	}
}

// overLocked notes that a connection is over. mu is held.
func (c *connections) overLocked(at ends, started, now time.Time) {
	if len(c.over) >= maxOver {
		maps.DeleteFunc(c.over, func(_ ends, e ended) bool { return now.Sub(e.heard) > lateFor })
	}
	if len(c.over) < maxOver && started.After(c.over[at].started) {
		c.over[at] = ended{started, now}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func addrPort(a *corev3.Address) (netip.AddrPort, bool) {
	s := a.GetSocketAddress()
	ip, err := netip.ParseAddr(s.GetAddress())
	return netip.AddrPortFrom(ip.Unmap(), uint16(s.GetPortValue())), err == nil && s.GetPortValue() < 1<<16
}

// run cuts what is to be cut, until ctx ends.
func (c *connections) run(ctx context.Context) error {
	told := false // that nothing can be cut
	for {
		if len(c.all()) == 0 {
			select {
			case <-c.changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if sleep(ctx, lookEvery) != nil {
			return ctx.Err()
		}
		if err := c.look(ctx); errors.Is(err, errNotPermitted) && !told {
			told = true
			c.log.Warn("silent connections of closed callers cannot be cut before their age ends them; give the agent CAP_NET_ADMIN", "error", err)
		} else if err != nil && !errors.Is(err, errNotPermitted) {
			c.log.Debug("closed gates not read", "error", err)
		}
	}
}

var (
	// errNotPermitted: the kernel does not let this process cut connections.
	errNotPermitted = errors.New("not permitted")
	// errGone: there is no such connection.
	errGone = errors.New("it is over")
)

// look cuts the connections whose gate is closed.
func (c *connections) look(ctx context.Context) error {
	all := c.all()
	if len(all) == 0 {
		return nil
	}
	closed, err := c.closed(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.shut = closed
	c.mu.Unlock()
	var errs []error
	for at, o := range all {
		switch {
		case !c.has(at, o): // it has ended meanwhile, and there may be another one
		case closed[o.gate]:
			err := c.cut(at.local, at.peer)
			if err != nil && !errors.Is(err, errGone) {
				errs = append(errs, err)
				continue
			}
			if err == nil {
				c.log.Info("silent connection cut: its caller may not connect any more", "caller", o.caller, "peer", at.peer, "local", at.local)
				c.hasCut(at, o)
			}
		case c.now().Sub(o.heard) > 3*xds.ConnectionLogEvery:
			c.forget(at, o) // its end was told while nobody listened
		}
	}
	return errors.Join(errs...)
}

// has says whether a connection is open still, as far as is known.
func (c *connections) has(at ends, o open) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, is := c.open[at]
	return is && known.started.Equal(o.started)
}

func (c *connections) all() map[ends]open {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.open)
}

// forget drops a connection of which nothing was heard for long: since o was read, either.
func (c *connections) forget(at ends, o open) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[at] == o {
		delete(c.open, at)
	}
}

// closedGates reads the gates that are closed in the Envoy.
func (a *admin) closedGates(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	body, err := a.get(ctx, "/runtime")
	if err != nil {
		return nil, err
	}
	var runtime struct {
		Entries map[string]struct {
			Final string `json:"final_value"`
		} `json:"entries"`
	}
	if err := json.Unmarshal(body, &runtime); err != nil {
		return nil, fmt.Errorf("runtime of the envoy: %w", err)
	}
	closed := map[string]bool{}
	for key, e := range runtime.Entries {
		if strings.HasPrefix(key, "zt.") && e.Final == "0" {
			closed[key] = true
		}
	}
	return closed, nil
}
