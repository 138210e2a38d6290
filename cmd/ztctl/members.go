package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newMembers() *cobra.Command {
	cmd := &cobra.Command{
		Use: "members", Short: "The servers of the cluster", Args: knownCommand,
		Example: "  ztctl members list\n  ztctl members remove 0f3c9a…",
		RunE:    showHelp,
	}
	list := &cobra.Command{
		Use: "list", Short: "Show the servers", Args: cobra.NoArgs, Example: "  ztctl members list",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listMembers(cmd.Context()) },
	}
	remove := &cobra.Command{
		Use: "remove ID", Short: "Take a server out of the cluster", Args: cobra.ExactArgs(1),
		Long: `remove takes a server out of the cluster: its vote is gone and its identity is
refused from then on. It comes back only as a new member, by a new token.`,
		Example: "  ztctl members remove 5f0c7e2a9b1d4c6e8f0a2b4c6d8e0f1a",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := call(cmd.Context(), a, c.RemoveMember, &ztv1.RemoveMemberRequest{Id: args[0]}); err != nil {
				return err
			}
			a.note("member %s is removed", args[0])
			return nil
		},
	}
	cmd.AddCommand(list, remove)
	return cmd
}

func (a *app) listMembers(ctx context.Context) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := call(ctx, a, c.ListMembers, &ztv1.ListMembersRequest{})
	if err != nil {
		return err
	}
	return a.print(resp, func() error { return a.showMembers(resp.Members) })
}

func (a *app) showMembers(members []*ztv1.Member) error {
	var rows [][]string
	for _, m := range members {
		role := "replica"
		switch {
		case m.Leader:
			role = "leader"
		case m.Voter:
			role = "voter"
		}
		rows = append(rows, []string{
			m.Id, role, yesNo(m.Reachable), number(m.Revision),
			m.AdminAddress, m.NodeAddress, m.ClusterAddress, m.Version,
		})
	}
	if err := a.columns("SERVER ROLE REACHABLE REVISION ADMIN NODE CLUSTER VERSION", rows); err != nil {
		return err
	}
	for _, m := range members {
		if m.DiskFull {
			fmt.Fprintln(a.out, a.paint(red, fmt.Sprintf("\nthe disk of %s is nearly full: while it leads, changes are refused", m.Id)))
		}
	}
	return nil
}

func (a *app) newDeregister() *cobra.Command {
	return &cobra.Command{
		Use:   "deregister INSTANCE",
		Short: "Remove an enrolled proxy",
		Long: `deregister removes an instance: its endpoint is withdrawn, its streams are
closed and its certificates are not renewed any more. To come back it must
enrol again with a new token.`,
		Example: "  ztctl deregister 9d7e2c41f0a84b6c8e55aa10b3f2d4c6",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := call(cmd.Context(), a, c.DeregisterInstance, &ztv1.DeregisterInstanceRequest{Instance: args[0]}); err != nil {
				return err
			}
			a.note("instance %s is deregistered", args[0])
			return nil
		},
	}
}
