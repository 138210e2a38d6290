package controlplane_test

import (
	"errors"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/store"
)

// TestDeadServerIsRemoved: of four servers one is silent for too long. The autopilot
// takes its record and its vote, and no other's; and it is told when it comes back.
func TestDeadServerIsRemoved(t *testing.T) {
	c := newCluster(t, 4, func(cfg *controlplane.Config) {
		cfg.Autopilot.DeadAfter, cfg.Autopilot.Contact = 4*time.Second, 2*time.Second
	})
	c.Submit(shop)
	dead := c.Others(c.Leader())[0]
	dead.Stop()
	c.Until("it is removed", func() bool { return c.member(dead) == nil })
	c.Until("three voters are left", func() bool { return len(c.voters()) == 3 })
	for _, m := range c.Servers {
		if m != dead && c.member(m) == nil {
			t.Errorf("%s is removed, too", m)
		}
	}
	if err := run(t, dead.Dir); !errors.Is(err, store.ErrRemoved) {
		t.Errorf("it comes back: %v", err)
	}
}
