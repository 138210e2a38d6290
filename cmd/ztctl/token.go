package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "One-use tokens, by which proxies and servers join", Args: knownCommand,
		Example: "  ztctl token create --workload shop/web --out web.token\n  ztctl token list",
		RunE:    showHelp,
	}
	var key string
	remove := &cobra.Command{
		Use: "delete ID", Short: "Make a token unusable", Args: cobra.ExactArgs(1),
		Example: "  ztctl token delete 4b1d90c2aa37f08e",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := commit(cmd.Context(), a, c.DeleteToken, &ztv1.DeleteTokenRequest{Id: args[0], IdempotencyKey: key}); err != nil {
				return err
			}
			a.note("token %s is deleted", args[0])
			return nil
		},
	}
	keyFlag(remove, &key)
	cmd.AddCommand(a.newTokenCreate(), a.newTokenList(), remove)
	return cmd
}

func (a *app) newTokenCreate() *cobra.Command {
	var workload, out, key string
	var server bool
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create (--workload NAMESPACE/NAME | --server)",
		Short: "Make a token for one proxy or one server",
		Long: `create makes a join token. It works once, until its time is over, for that
workload only, and is shown only now: on stdout, or in a file of mode 0600.`,
		Example: `  ztctl token create --workload shop/web --ttl 10m --out web.token
  ztctl token create --server > server.token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &ztv1.CreateTokenRequest{Server: server, Ttl: durationpb.New(ttl), IdempotencyKey: key}
			if !server {
				ref, err := spec.ParseRef(workload, a.set.Namespace)
				if err != nil {
					return fmt.Errorf("--workload: %w", err)
				}
				req.Workload = ref.String()
			}
			return a.createToken(cmd.Context(), req, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&workload, "workload", "", "the workload whose proxy may join, `NAMESPACE/NAME`")
	f.BoolVar(&server, "server", false, "for a server that joins the cluster")
	f.DurationVar(&ttl, "ttl", time.Hour, "how long it can be used, at most 24h")
	f.StringVar(&out, "out", "", "new `FILE` for it (mode 0600; default: stdout)")
	keyFlag(cmd, &key)
	cmd.MarkFlagsMutuallyExclusive("workload", "server")
	cmd.MarkFlagsOneRequired("workload", "server")
	return cmd
}

func (a *app) createToken(ctx context.Context, req *ztv1.CreateTokenRequest, out string) error {
	if out != "" {
		if err := mustBeNew(out); err != nil {
			return err
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := commit(ctx, a, c.CreateToken, req)
	if err != nil {
		return err
	}
	if out != "" {
		if err := writeNew(out, []byte(resp.Token+"\n")); err != nil {
			// Nobody has seen the token; it must not stay usable.
			_, derr := commit(ctx, a, c.DeleteToken, &ztv1.DeleteTokenRequest{Id: resp.Info.GetId()})
			return errors.Join(err, derr)
		}
		a.note("token %s is written to %s; it can be used once within %s", resp.Info.GetId(), out, a.left(resp.Info.GetExpires()))
		resp.Token = ""
		if a.set.Output == "table" {
			return nil
		}
	}
	return a.print(resp, func() error {
		_, err := fmt.Fprintln(a.out, resp.Token)
		return err
	})
}

func (a *app) newTokenList() *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use: "list", Short: "Show the tokens that can still be used", Args: cobra.NoArgs,
		Example: "  ztctl token list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			resp, err := call(cmd.Context(), a, c.ListTokens, &ztv1.ListTokensRequest{Stale: stale})
			if err != nil {
				return err
			}
			return a.print(resp, func() error {
				a.showStaleness(resp.Staleness)
				var rows [][]string
				for _, t := range resp.Tokens {
					what := t.Workload
					if t.Server {
						what = "(server)"
					}
					rows = append(rows, []string{t.Id, what, a.left(t.Expires), t.CreatedBy})
				}
				return a.columns("TOKEN FOR EXPIRES-IN CREATED-BY", rows)
			})
		},
	}
	staleFlag(cmd, &stale)
	return cmd
}
