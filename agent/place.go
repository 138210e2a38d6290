package agent

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// placeTimeout bounds one round over the servers.
const placeTimeout = 10 * time.Second

// place is where the instance is to be, by the configuration or as it was.
func (a *Agent) place(h *holding) (zone string, weight uint32) {
	zone, weight = h.Zone, h.Weight
	if a.cfg.Zone != "" {
		zone = a.cfg.Zone
	}
	if a.cfg.Weight != 0 {
		weight = a.cfg.Weight
	}
	return zone, weight
}

// keepPlace tells the control plane where the instance is now, if the configuration
// says another place than before, until it has heard. Nothing waits for it: an agent
// serves without the control plane.
func (a *Agent) keepPlace(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, maxRetry) {
		err := a.tellPlace(ctx)
		switch {
		case err == nil:
			<-ctx.Done()
			return ctx.Err()
		case status.Code(err) == codes.FailedPrecondition:
			a.log.Error("zone and weight not taken", "error", err, "retry_in", wait)
		default:
			a.log.Warn("zone and weight not told yet", "error", err, "retry_in", wait)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func (a *Agent) tellPlace(ctx context.Context) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	h := a.holding.Load()
	zone, weight := a.place(h)
	if zone == h.Zone && weight == h.Weight {
		return nil
	}
	c, err := a.caller(h)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	var resp *ztv1.PlaceResponse
	if err := c.each(ctx, a.servers(h), func(ctx context.Context, node ztv1.NodeServiceClient) (err error) {
		resp, err = node.Place(ctx, &ztv1.PlaceRequest{Zone: zone, Weight: weight})
		return err
	}); err != nil {
		return err
	}
	next := *h
	next.record = next.record.at(resp)
	next.Zone, next.Weight = zone, weight
	a.log.Info("placed", "zone", zone, "weight", weight)
	return a.take(&next)
}
