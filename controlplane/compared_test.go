package controlplane_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

// TestStatesAreComparedAtEachChange: servers that ask one another once an hour find all
// the same, at a change, that their states agree after it.
func TestStatesAreComparedAtEachChange(t *testing.T) {
	c := newCluster(t, 1, func(cfg *controlplane.Config) { cfg.Autopilot.Check = time.Hour })
	c.Add(controlplane.JoinConfig{Replica: true})
	c.Together()
	first := c.Submit(shop).Revision
	calls := 0
	c.Until("both have compared", func() bool {
		if calls++; calls%50 == 0 { // of what another entry came behind, too soon to be compared
			c.Submit(workload("shop", fmt.Sprint("v", calls)))
		}
		return !slices.ContainsFunc(c.Servers, func(s *mesh.Server) bool {
			return s.Metric("zt_controlplane_state_agreed_index") < float64(first)
		})
	})
}
