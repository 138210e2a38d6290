package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/store"
)

// reseedPatience is how long a reseed waits for the others by default.
const reseedPatience = time.Minute

func reseedCommand(stdout, stderr io.Writer) *cobra.Command {
	var peers []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "reseed",
		Short: "Put a new member in the place of this one, whose log is lost or damaged",
		Long: `reseed makes this server a new member of its cluster, in the place of the one
that it was. It needs no token: the identity in the data directory is enough.
The other servers must have a quorum without it; the old member loses its vote,
and the new one gets everything from them. While they have no leader, reseed waits
for one. What is damaged is moved aside in the
data directory and kept. The server must not run. Interrupted, it can be run again.`,
		Example: "  ztd reseed --data-dir /var/lib/ztd && ztd run --data-dir /var/lib/ztd",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := setUp(cmd, stderr)
			if err != nil {
				return err
			}
			done, err := controlplane.Reseed(cmd.Context(), c.server(log), peers, timeout)
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, "member %s is replaced by %s\n", done.Lost, done.Server)
			if done.Kept != "" {
				fmt.Fprintf(stdout, "what it had is kept in %s\n", done.Kept)
			}
			fmt.Fprintf(stdout, "next: ztd run --data-dir %s\n", c.DataDir)
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&peers, "peer", nil, "cluster port of a server to ask, `HOST:PORT`, beside those that this one knows; repeatable")
	cmd.Flags().DurationVar(&timeout, "timeout", reseedPatience, "how long to wait for the other servers to have a leader")
	withConfig(cmd, "data-dir", "kek", "log-level")
	return cmd
}

// serve runs a server until it ends. One whose log is lost or damaged, or whose state
// is not that of the others, is reseeded and runs on, once, if the configuration says so.
func serve(ctx context.Context, c config, log *slog.Logger) error {
	for tried := false; ; tried = true {
		s, err := controlplane.New(c.server(log))
		if err != nil {
			return err
		}
		err = s.Run(ctx)
		if !c.Reseed || tried || ctx.Err() != nil || !errors.Is(err, store.ErrUnreadable) && !errors.Is(err, store.ErrDiverged) {
			return err
		}
		log.Error("log lost or damaged, or state diverged: a new member is put in the place of this server", "error", err)
		done, rerr := controlplane.Reseed(ctx, c.server(log), nil, reseedPatience)
		if rerr != nil {
			return errors.Join(err, rerr)
		}
		log.Warn("reseeded", "lost", done.Lost, "server", done.Server, "kept", done.Kept)
	}
}
