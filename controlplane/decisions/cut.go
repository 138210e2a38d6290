package decisions

import (
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/xds"
)

// Cut is one connection that was open when its caller was no longer admitted, and has
// ended.
type Cut struct {
	Port           string // of the reporter's workload
	Caller         string // SPIFFE ID
	Opened, Closed time.Time
}

// takeCut takes the entry of a connection that has ended: from the Envoy if its gate has
// ended it, else from its agent. One that was refused before anything was sent to its
// client was not open.
func (r *Receiver) takeCut(who Reporter, e *accesslogv3.TCPAccessLogEntry) {
	common := e.GetCommonProperties()
	details := common.GetConnectionTerminationDetails()
	byGate := strings.HasPrefix(details, xds.CutDetails) && e.GetConnectionProperties().GetSentBytes() > 0
	if !byGate && details != xds.CutByAgent {
		return
	}
	caller := text(peer(common.GetTlsProperties()), MaxText)
	service, port, ok := r.cfg.Called(who.Workload, common.GetDownstreamLocalAddress().GetSocketAddress().GetPortValue(), "")
	if !ok || service != who.Workload || caller == "" {
		return
	}
	lasted := common.GetDuration().AsDuration()
	opened := common.GetStartTime().AsTime()
	closed := opened.Add(lasted)
	// Of other times no JSON could be made, and so none of the receipt.
	if lasted < 0 || !timestamppb.New(opened).IsValid() || !timestamppb.New(closed).IsValid() {
		return
	}
	r.cfg.Cut(who, Cut{Port: port, Caller: caller, Opened: opened, Closed: closed})
}
