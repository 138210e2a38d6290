package controlplane_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/store"
)

// A cluster that was down for longer than its intermediates live comes back by
// itself.
func TestServerDownForLongerThanItsIntermediate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	log := slog.New(slog.DiscardHandler)
	if _, err := controlplane.Init(t.Context(), controlplane.InitConfig{DataDir: dir, TrustDomain: "shop.example", Logger: log}); err != nil {
		t.Fatal(err)
	}
	for _, late := range []time.Duration{0, 8 * 24 * time.Hour} {
		cfg := controlplane.Default()
		cfg.DataDir, cfg.Logger = dir, log
		cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		cfg.Timing = store.Timing{Heartbeat: 100 * time.Millisecond, Election: 100 * time.Millisecond, Lease: 50 * time.Millisecond}
		cfg.Now = func() time.Time { return time.Now().Add(late) }
		s, err := controlplane.New(cfg)
		if err != nil {
			t.Fatalf("%v later: %v", late, err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		select {
		case <-s.Ready():
		case err := <-done:
			t.Fatalf("%v later: %v", late, err)
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("%v later: %v", late, err)
		}
	}
}
