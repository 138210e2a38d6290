package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newVersion() *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of ztctl and of the server, and who you are to it",
		Example: `  ztctl version
  ztctl version --client`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.version(cmd.Context(), client) },
	}
	cmd.Flags().BoolVar(&client, "client", false, "only of ztctl; asks no server")
	return cmd
}

func (a *app) version(ctx context.Context, clientOnly bool) error {
	var out struct {
		Client string          `json:"client"`
		Server json.RawMessage `json:"server,omitempty"`
	}
	out.Client = clientVersion()
	if clientOnly {
		return a.print(out, func() error {
			_, err := fmt.Fprintf(a.out, "client: %s\n", out.Client)
			return err
		})
	}
	if a.set.Output == "table" {
		fmt.Fprintf(a.out, "client: %s\n", out.Client)
	}
	info, err := a.serverInfo(ctx)
	if err != nil {
		return err
	}
	if out.Server, err = toJSON(info); err != nil {
		return err
	}
	return a.print(out, func() error {
		you := info.GetYou()
		for _, l := range [][2]string{
			{"server", info.Version + " (" + info.Server + ")"},
			{"leader", info.Leader},
			{"trust domain", info.TrustDomain},
			{"revision", number(info.Revision)},
			{"you", strings.TrimSpace(you.GetName() + ", " + you.GetRole() + " " + strings.Join(you.GetNamespaces(), ","))},
		} {
			fmt.Fprintf(a.out, "%s: %s\n", l[0], printable(l[1]))
		}
		return nil
	})
}

func (a *app) serverInfo(ctx context.Context) (*ztv1.GetServerInfoResponse, error) {
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return call(ctx, a, c.GetServerInfo, &ztv1.GetServerInfoRequest{})
}

// clientVersion is the version that the Go tool has stamped into the binary.
func clientVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
