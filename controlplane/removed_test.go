package controlplane_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/store"
)

// TestRemovedWhileAway: a server that was removed while it could not hear of it is told
// when it comes back, and ends; otherwise it would serve what it knew for ever. A
// member that comes back is told no such thing.
func TestRemovedWhileAway(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.Submit(shop)
	away := c.Others(c.Leader())[0]
	away.Stop()
	away.Start()
	away.Stop()
	c.remove(away)
	cfg := controlplane.Default()
	const port = "127.0.0.1:0"
	cfg.DataDir, cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = away.Dir, port, port, port, port
	cfg.Logger = slog.New(slog.NewTextHandler(c.Log, nil))
	server, err := controlplane.New(cfg)
	c.check(err)
	ctx, cancel := context.WithTimeout(c.ctx(), patience)
	defer cancel()
	if err := server.Run(ctx); !errors.Is(err, store.ErrRemoved) {
		t.Errorf("a removed server ends with %v", err)
	}
}
