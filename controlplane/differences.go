package controlplane

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/decisions"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// askTimeout is how long one server may take to tell what its proxies reported.
const askTimeout = 3 * time.Second

// differences is api.Differences: what the proxies have reported of shadow
// policies, here and elsewhere.
type differences struct {
	receiver *decisions.Receiver
	cluster  *cluster
}

func (d *differences) Local() ([]*ztv1.ShadowDifference, uint64) { return d.receiver.Differences() }

func (d *differences) All(ctx context.Context) ([]*ztv1.ShadowDifference, uint64, []string) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	local, dropped := d.Local()
	var (
		wg          sync.WaitGroup
		mu          sync.Mutex // guards all, dropped and unreachable
		all         = [][]*ztv1.ShadowDifference{local}
		unreachable []string
	)
	for id, address := range d.cluster.addresses() {
		wg.Go(func() {
			resp, err := d.ask(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unreachable = append(unreachable, id)
				return
			}
			all = append(all, resp.Differences)
			dropped += resp.Dropped
		})
	}
	wg.Wait()
	slices.Sort(unreachable)
	return decisions.Merge(all...), dropped, unreachable
}

func (d *differences) ask(ctx context.Context, address string) (*ztv1.ListDifferencesResponse, error) {
	conn, err := d.cluster.conn(address)
	if err != nil {
		return nil, err
	}
	return ztv1.NewPeerServiceClient(conn).ListDifferences(ctx, &ztv1.ListDifferencesRequest{})
}
