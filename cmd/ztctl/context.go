package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/identity"
)

func (a *app) newContext() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "The clusters that you can reach, and your credentials for them",
		Long: `A context is a credential for one cluster and where its servers are. They are
kept in one file that only you can read (mode 0600): --config, ZTCTL_CONFIG or
~/.config/ztmesh/contexts.yaml.`,
		Example: `  ztctl context import /var/lib/ztd.admin.yaml
  ztctl context list
  ztctl context use prod`,
		Args: knownCommand,
		RunE: showHelp,
	}
	list := &cobra.Command{
		Use: "list", Short: "Show the contexts, without their keys", Args: cobra.NoArgs,
		Example: "  ztctl context list -o json",
		RunE:    func(*cobra.Command, []string) error { return a.listContexts() },
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: cobra.ExactArgs(1),
		Example: "  ztctl context use prod", ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.editContexts(func(all *identity.Contexts) error {
				if _, ok := all.Find(args[0]); !ok {
					return withHint(fmt.Errorf("no context %q", args[0]), "see ztctl context list")
				}
				all.Current = args[0]
				a.note("context %q is in use", args[0])
				return nil
			})
		},
	}
	var as string
	imports := &cobra.Command{
		Use: "import FILE", Short: "Take over the contexts of another file, and use the first", Args: cobra.ExactArgs(1),
		Long: `import copies every context of FILE, as written by ztd init or ztctl admin add,
into your contexts file, replaces those of the same name, and makes the first
one the current one.`,
		Example: "  ztctl context import ztd.admin.yaml\n  ztctl context import ztd.admin.yaml --name prod",
		RunE:    func(_ *cobra.Command, args []string) error { return a.importContexts(args[0], as) },
	}
	imports.Flags().StringVar(&as, "name", "", "`NAME` to call it by here (for a file with one context)")
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Forget a context and its credential", Args: cobra.ExactArgs(1),
		Example: "  ztctl context remove old", ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.editContexts(func(all *identity.Contexts) error {
				if !all.Remove(args[0]) {
					return withHint(fmt.Errorf("no context %q", args[0]), "see ztctl context list")
				}
				a.note("context %q is removed", args[0])
				return nil
			})
		},
	}
	cmd.AddCommand(list, use, imports, remove)
	return cmd
}

// shownContext is a context without what is secret, and without PEM.
type shownContext struct {
	Name        string   `json:"name"`
	Current     bool     `json:"current"`
	TrustDomain string   `json:"trustDomain"`
	Servers     []string `json:"servers"`
}

func (a *app) listContexts() error {
	_, all, err := a.contexts()
	if err != nil {
		return err
	}
	shown := []shownContext{}
	var rows [][]string
	for _, x := range all.Contexts {
		current := x.Name == all.Current
		shown = append(shown, shownContext{x.Name, current, x.TrustDomain, x.Servers})
		rows = append(rows, []string{x.Name, yesNo(current), x.TrustDomain, strings.Join(x.Servers, ",")})
	}
	return a.print(shown, func() error { return a.columns("NAME CURRENT TRUST-DOMAIN SERVERS", rows) })
}

func (a *app) importContexts(file, as string) error {
	from, err := identity.LoadContexts(file)
	if errors.Is(err, identity.ErrContextsMode) {
		return withHint(err, "run chmod 600 %s; if others had access to it, ask for a new credential", file)
	}
	if err != nil {
		return err
	}
	if len(from.Contexts) == 0 {
		return fmt.Errorf("%s has no contexts", file)
	}
	if as != "" {
		if len(from.Contexts) > 1 {
			return fmt.Errorf("--name is for a file with one context; %s has %d", file, len(from.Contexts))
		}
		from.Contexts[0].Name = as
	}
	return a.editContexts(func(all *identity.Contexts) error {
		for _, x := range from.Contexts {
			if _, err := a.contextTLS(x); err != nil {
				return fmt.Errorf("context %q: %w", x.Name, err)
			}
			all.Put(x)
			a.note("context %q is imported", x.Name)
		}
		all.Current = from.Contexts[0].Name
		a.note("context %q is in use", all.Current)
		return nil
	})
}

// editContexts changes the contexts file, unless edit errs.
func (a *app) editContexts(edit func(*identity.Contexts) error) error {
	path, all, err := a.contexts()
	if err != nil {
		return err
	}
	if err := edit(all); err != nil {
		return err
	}
	return identity.SaveContexts(path, all)
}

func (a *app) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	if err := a.settle(); err != nil { // no command runs while the shell completes
		return nil, cobra.ShellCompDirectiveError
	}
	_, all, err := a.contexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, x := range all.Contexts {
		names = append(names, x.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
