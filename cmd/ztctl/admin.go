package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newAdmin() *cobra.Command {
	cmd := &cobra.Command{
		Use: "admin", Short: "Who may administer what", Args: knownCommand,
		Long: `The roles: an admin may do everything, an editor may change the namespaces that
it was given (specs, tokens, instances), a viewer may look.`,
		Example: "  ztctl admin add alice --role editor --namespaces shop --out alice.yaml\n  ztctl admin list",
		RunE:    showHelp,
	}
	var key string
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Take every right away, at once", Args: cobra.ExactArgs(1),
		Example: "  ztctl admin remove alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := commit(cmd.Context(), a, c.RemoveAdmin, &ztv1.RemoveAdminRequest{Name: args[0], IdempotencyKey: key}); err != nil {
				return err
			}
			a.note("admin %s is removed", args[0])
			return nil
		},
	}
	keyFlag(remove, &key)
	cmd.AddCommand(a.newAdminAdd(), a.newAdminList(), remove)
	return cmd
}

func (a *app) newAdminAdd() *cobra.Command {
	req := &ztv1.AddAdminRequest{}
	var out string
	cmd := &cobra.Command{
		Use:   "add NAME --role admin|editor|viewer",
		Short: "Give a role, and make a credential for it",
		Long: `add gives NAME a role. With --out it also makes a key here, has a certificate
signed for it and writes both as a context (mode 0600), to be handed over and
taken up with ztctl context import. Without --out it only changes the role of
one who has a credential.`,
		Example: `  ztctl admin add alice --role editor --namespaces shop,billing --out alice.yaml
  ztctl admin add ci --role viewer --out ci.yaml
  ztctl admin add alice --role viewer`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			if (req.Role == "editor") != (len(req.Namespaces) > 0) {
				return errors.New("--namespaces is for --role editor, which needs it")
			}
			return a.addAdmin(cmd.Context(), req, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Role, "role", "", "`ROLE`: admin, editor or viewer")
	f.StringSliceVar(&req.Namespaces, "namespaces", nil, "`NAMESPACE`s that an editor may change; repeatable, or several by comma")
	f.StringVar(&out, "out", "", "new `FILE` for the new context (mode 0600)")
	keyFlag(cmd, &req.IdempotencyKey)
	if err := cmd.MarkFlagRequired("role"); err != nil {
		panic(err) // the flag stands above
	}
	mustComplete(cmd, "role", "admin", "editor", "viewer")
	return cmd
}

func (a *app) addAdmin(ctx context.Context, req *ztv1.AddAdminRequest, out string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	var key identity.PrivateKey
	if out != "" {
		if err := mustBeNew(out); err != nil {
			return err
		}
		if key, err = identity.NewKey(); err != nil {
			return err
		}
		if req.Csr, err = identity.NewCSR(key); err != nil {
			return err
		}
	}
	resp, err := commit(ctx, a, c.AddAdmin, req)
	if err != nil {
		return err
	}
	if out != "" {
		if err := writeContext(out, c.context, req.Name, key, resp); err != nil {
			return fmt.Errorf("%s has the role %s, but no credential: %w", req.Name, req.Role, err)
		}
		a.note("context of %s is written to %s; its certificate ends on %s", req.Name, out, resp.NotAfter.AsTime().Format(time.DateOnly))
	}
	return a.print(&ztv1.AdminInfo{Name: req.Name, Role: req.Role, Namespaces: req.Namespaces}, func() error {
		a.note("%s has the role %s", req.Name, strings.TrimSpace(req.Role+" "+strings.Join(req.Namespaces, ",")))
		return nil
	})
}

// writeContext makes a context for another admin out of one's own.
func writeContext(path string, own identity.Context, name string, key identity.PrivateKey, issued *ztv1.AddAdminResponse) error {
	chain, err := identity.ParseDER(issued.Chain)
	if err != nil {
		return err
	}
	roots, err := identity.ParseDER(issued.Roots)
	if err != nil {
		return err
	}
	if _, err := identity.NewKeyPair(key, chain); err != nil {
		return err
	}
	secret, err := key.PEM()
	if err != nil {
		return err
	}
	x := identity.Context{
		Name: name + "@" + own.TrustDomain, TrustDomain: own.TrustDomain, Servers: own.Servers,
		Roots: string(identity.EncodePEM(roots)), Certificate: string(identity.EncodePEM(chain)), Key: identity.ContextKey(secret.Reveal()),
	}
	all := &identity.Contexts{}
	all.Put(x)
	return identity.SaveContexts(path, all)
}

func (a *app) newAdminList() *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use: "list", Short: "Show who may administer what", Args: cobra.NoArgs,
		Example: "  ztctl admin list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			resp, err := call(cmd.Context(), a, c.ListAdmins, &ztv1.ListAdminsRequest{Stale: stale})
			if err != nil {
				return err
			}
			return a.print(resp, func() error {
				a.showStaleness(resp.Staleness)
				var rows [][]string
				for _, x := range resp.Admins {
					rows = append(rows, []string{x.Name, x.Role, strings.Join(x.Namespaces, ",")})
				}
				return a.columns("NAME ROLE NAMESPACES", rows)
			})
		},
	}
	staleFlag(cmd, &stale)
	return cmd
}
