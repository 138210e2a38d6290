package controlplane

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/api"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// How often an agent is asked about an ACK that its Envoy does not work by yet: what
// is warming may wait for something for long.
const (
	firstAsk = 50 * time.Millisecond
	lastAsk  = 2 * time.Second
	// maxAnswer is how long an agent may take for an answer. It reads for 5 s at most.
	maxAnswer = 20 * time.Second
)

var (
	errNewerCall = status.Error(codes.Aborted, "another call of this agent came")
	errNoAnswer  = status.Error(codes.DeadlineExceeded, "the agent did not answer")
)

// agentCall is a call of Confirm.
type agentCall struct {
	wake chan struct{} // holds one: something is told of the instance
	end  context.CancelCauseFunc
}

// wake makes the calls of the agents of instances look again.
func (p *proxies) wake(instances []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.agents) == 0 {
		return
	}
	for _, i := range instances {
		if c := p.agents[i]; c != nil {
			select {
			case c.wake <- struct{}{}:
			default:
			}
		}
	}
}

// begin makes a call the one of its instance's agent; an earlier one ends.
func (p *proxies) begin(instance string, c *agentCall) {
	p.mu.Lock()
	earlier := p.agents[instance]
	p.agents[instance] = c
	p.mu.Unlock()
	if earlier != nil {
		earlier.end(errNewerCall)
	}
}

// finish undoes begin, unless there is a later call.
func (p *proxies) finish(instance string, c *agentCall) {
	p.mu.Lock()
	last := p.agents[instance] == c
	if last {
		delete(p.agents, instance)
	}
	p.mu.Unlock()
	if last {
		p.fleet.AgentSpeaks(instance, false)
	}
}

// Confirm is api.Proxies. It asks after each ACK of the instance's Envoy, here, and
// until the Envoy works by what it has ACKed.
func (p *proxies) Confirm(ctx context.Context, instance string, a api.Agent) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	c := &agentCall{wake: make(chan struct{}, 1), end: end}
	p.begin(instance, c)
	defer p.finish(instance, c)
	asked, pause := uint64(0), firstAsk
	for {
		if err := a.Allowed(); err != nil {
			return err
		}
		if address := p.elsewhere(instance); address != "" {
			return a.Ask(ctx, &ztv1.ConfirmResponse{Elsewhere: address})
		}
		p.fleet.AgentSpeaks(instance, true) // of a new stream it is not known
		var again <-chan time.Time
		if seen, ok := p.fleet.Unconfirmed(instance); ok {
			if seen != asked {
				asked, pause = seen, firstAsk
			}
			enforced, err := p.confirm(ctx, instance, seen, a)
			if err != nil {
				return err
			}
			if !enforced {
				again, pause = time.After(pause), min(2*pause, lastAsk)
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.wake:
		case <-again:
		}
	}
}

// confirm asks once.
func (p *proxies) confirm(ctx context.Context, instance string, seen uint64, a api.Agent) (enforced bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxAnswer, errNoAnswer)
	defer cancel()
	if err := a.Ask(ctx, &ztv1.ConfirmResponse{Ask: seen}); err != nil {
		return false, err
	}
	answer, err := a.Answer(ctx)
	if err != nil {
		return false, err
	}
	if answer.Ask != seen {
		return false, status.Error(codes.InvalidArgument, "this answers something else")
	}
	if err := a.Allowed(); err != nil {
		return false, err
	}
	return p.fleet.Confirm(instance, seen, serve.Reading{
		Digests: answer.Digests, Warming: answer.Warming,
		Live: map[string]map[string]string{xds.RouteType: answer.Routes, xds.ExtensionType: answer.Extensions, xds.RuntimeType: answer.Layers},
	}), nil
}

// elsewhere is the node port of another server that holds the Envoy of an instance;
// empty: none is known to.
func (p *proxies) elsewhere(instance string) string {
	h, _ := p.Of(instance)
	if h == nil || h.Proxy.Server == p.self {
		return ""
	}
	if s, ok := p.cluster.store.State().Server(h.Proxy.Server); ok {
		return s.NodeAddress
	}
	return ""
}
