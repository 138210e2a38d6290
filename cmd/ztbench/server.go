package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane"
)

// The kinds of server that are measured.
const (
	kindMesh     = "ztmesh"   // the control plane
	kindFloor    = "floor"    // sends bytes and waits for ACKs, nothing else
	kindSnapshot = "snapshot" // go-control-plane's SnapshotCache
)

func serverCommand(in io.Reader, out io.Writer) *cobra.Command {
	var kind, dir string
	cmd := &cobra.Command{
		Use: "server", Short: "Serve one kind, by orders on standard input", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch kind {
			case kindMesh:
				return serveMesh(cmd.Context(), dir, in, out)
			case kindFloor:
				return serveBaseline(cmd.Context(), newFloor(), in, out)
			case kindSnapshot:
				return serveBaseline(cmd.Context(), newSnapshots(), in, out)
			}
			return fmt.Errorf("no such kind of server: %q", kind)
		},
	}
	cmd.Flags().StringVar(&kind, "kind", kindMesh, "which")
	cmd.Flags().StringVar(&dir, "dir", "", "data directory of the control plane")
	return cmd
}

// trustDomain is that of every cluster that is measured.
const trustDomain = "bench.example"

// serveMesh runs the control plane as ztd does, with one more port, without TLS, until
// its input ends. A data directory that is empty is made a cluster.
func serveMesh(ctx context.Context, dir string, in io.Reader, out io.Writer) error {
	if _, err := os.Stat(filepath.Join(dir, "server.json")); os.IsNotExist(err) {
		_, err := controlplane.Init(ctx, controlplane.InitConfig{DataDir: dir, TrustDomain: trustDomain, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
	}
	c := controlplane.Default()
	c.DataDir = dir
	c.AdminListen, c.NodeListen, c.ClusterListen, c.LocalListen, c.PlaintextNodes = anyPort, anyPort, anyPort, anyPort, anyPort
	c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := controlplane.New(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-s.Ready():
	}
	a := s.Addresses()
	if err := json.NewEncoder(out).Encode(answer{Admin: a.Admin, Node: a.Node, Plain: a.Plaintext, Local: a.Local}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in) // until the parent ends
	if err != nil {
		return err
	}
	cancel()
	return <-done
}

// anyPort is one that nobody else has.
const anyPort = "127.0.0.1:0"
