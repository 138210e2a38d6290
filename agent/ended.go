package agent

import (
	"context"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/xds"
)

// Of what is told of connections that have ended.
const (
	maxUntold = 10_000 // what is kept until it is told; beyond it the oldest are lost
	perTell   = 1_000  // in one message
	// tellPause is how long ended connections are gathered, and how long a server is
	// waited for at first; at most maxConfirm.
	tellPause = time.Second
)

// hasCut notes that the kernel has ended a connection. If its end was told before, that
// is noted already.
func (c *connections) hasCut(at ends, o open) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, is := c.open[at]; is && known.started.Equal(o.started) {
		delete(c.open, at)
		now := c.now()
		c.overLocked(at, o.started, now)
		c.tellLocked(at, o, now)
	}
}

// tellLocked has the control plane told of a connection whose caller may not connect any
// more, and that has ended otherwise than by its gate. The entry is as the Envoy writes
// those of its gate. mu is held.
func (c *connections) tellLocked(at ends, o open, end time.Time) {
	if len(c.untold) >= maxUntold {
		c.untold = c.untold[1:]
	}
	c.untold = append(c.untold, &accesslogdatav3.TCPAccessLogEntry{CommonProperties: &accesslogdatav3.AccessLogCommon{
		DownstreamLocalAddress: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: at.local.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(at.local.Port())},
		}}},
		TlsProperties: &accesslogdatav3.TLSProperties{PeerCertificateProperties: &accesslogdatav3.TLSProperties_CertificateProperties{
			SubjectAltName: []*accesslogdatav3.TLSProperties_CertificateProperties_SubjectAltName{{
				San: &accesslogdatav3.TLSProperties_CertificateProperties_SubjectAltName_Uri{Uri: o.caller},
			}},
		}},
		StartTime: timestamppb.New(o.started), Duration: durationpb.New(max(0, end.Sub(o.started))),
		ConnectionTerminationDetails: xds.CutByAgent,
	}})
	signal(c.telling)
}

// tell has send told of what has ended, until ctx ends. What cannot be sent is sent
// later.
func (c *connections) tell(ctx context.Context, send func(context.Context, []*accesslogdatav3.TCPAccessLogEntry) error) error {
	for {
		select {
		case <-c.telling:
		case <-ctx.Done():
			return ctx.Err()
		}
		wait := tellPause
		for {
			if sleepAbout(ctx, wait) != nil {
				return ctx.Err()
			}
			c.mu.Lock()
			all := c.untold
			c.untold = nil
			c.mu.Unlock()
			if len(all) == 0 { // told with what came before
				break
			}
			err := send(ctx, all)
			if err == nil {
				break
			}
			c.mu.Lock()
			all = append(all, c.untold...)
			c.untold = all[max(0, len(all)-maxUntold):]
			c.mu.Unlock()
			wait = min(2*wait, maxConfirm)
			c.log.Debug("connections that have ended are not told", "error", err, "again_in", wait)
		}
	}
}

// tellEnded tells the first server that takes it of connections that have ended.
func (a *Agent) tellEnded(ctx context.Context, all []*accesslogdatav3.TCPAccessLogEntry) error {
	h := a.holding.Load()
	c, err := a.caller(h)
	if err != nil {
		return err
	}
	for _, server := range a.servers(h) {
		if err = c.log(ctx, server, h.Instance, all); err == nil || ctx.Err() != nil {
			break
		}
	}
	return err
}

// log sends entries to the access log service of a server, as an Envoy does.
func (c caller) log(ctx context.Context, server, instance string, all []*accesslogdatav3.TCPAccessLogEntry) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	_, err := c.dial(ctx, server, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		stream, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(ctx)
		if err != nil {
			return err
		}
		first := &accesslogv3.StreamAccessLogsMessage_Identifier{Node: &corev3.Node{Id: instance}, LogName: xds.CutLog}
		for ; len(all) > 0; all = all[min(perTell, len(all)):] {
			m := &accesslogv3.StreamAccessLogsMessage{Identifier: first, LogEntries: &accesslogv3.StreamAccessLogsMessage_TcpLogs{
				TcpLogs: &accesslogv3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: all[:min(perTell, len(all))]},
			}}
			if err := stream.Send(m); err != nil {
				break // CloseAndRecv says why
			}
			first = nil
		}
		_, err = stream.CloseAndRecv()
		return err
	})
	return err
}
