package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newMembers() *cobra.Command {
	var stale bool
	list := func(cmd *cobra.Command, _ []string) error { return a.listMembers(cmd.Context(), stale) }
	cmd := &cobra.Command{
		Use: "members", Short: "The servers of the cluster", Args: knownCommand,
		Long: `members shows the servers as the leader sees them; with --stale, as the server sees
them that answers, which needs no quorum.

A server that has joined is "joining" until it has been up to date for a while, and
then votes. A replica never does. LAG is how many log entries a server lacks, and SKEW
how far its clock is ahead of that of the server that answers.`,
		Example: "  ztctl members\n  ztctl members --stale -o json\n  ztctl members remove 5f0c7e2a9b1d4c6e8f0a2b4c6d8e0f1a",
		RunE:    list,
	}
	staleFlag(cmd, &stale)
	show := &cobra.Command{
		Use: "list", Short: "Show the servers", Args: cobra.NoArgs, Example: "  ztctl members list", RunE: list,
	}
	staleFlag(show, &stale)
	cmd.AddCommand(show, a.newMemberRemove(), a.newMemberPromote(), a.newMemberDemote(), a.newMemberTransfer())
	return cmd
}

func (a *app) newMemberRemove() *cobra.Command {
	var force bool
	var key string
	cmd := &cobra.Command{
		Use: "remove ID", Short: "Take a server out of the cluster", Args: cobra.ExactArgs(1),
		Long: `remove takes a server out of the cluster: its vote is gone and its identity is
refused from then on. It comes back only as a new member, by a new token.

It is refused if no majority of the voters that are left can be reached. With --force
it is done all the same: nothing can then be changed any more until enough of them are
back.`,
		Example: "  ztctl members remove 5f0c7e2a9b1d4c6e8f0a2b4c6d8e0f1a",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			req := &ztv1.RemoveMemberRequest{Id: args[0], Force: force, IdempotencyKey: key}
			if _, err := commit(cmd.Context(), a, c.RemoveMember, req); err != nil {
				return err
			}
			a.note("member %s is removed", args[0])
			return nil
		},
	}
	keyFlag(cmd, &key)
	cmd.Flags().BoolVar(&force, "force", false, "also if the cluster cannot change anything afterwards")
	return cmd
}

func (a *app) newMemberPromote() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "promote ID", Short: "Give a server a vote, at once", Args: cobra.ExactArgs(1),
		Long: `promote gives a vote to a replica, or to a server that has joined and would get one by
itself a little later. It must be up to date, unless --force is given: a vote that
nobody casts makes a majority harder.`,
		Example: "  ztctl members promote 5f0c7e2a9b1d4c6e8f0a2b4c6d8e0f1a",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := commit(cmd.Context(), a, c.PromoteMember, &ztv1.PromoteMemberRequest{Id: args[0], Force: force}); err != nil {
				return err
			}
			a.note("member %s votes", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if it is out of reach or behind")
	return cmd
}

func (a *app) newMemberDemote() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "demote ID", Short: "Make a server a read replica", Args: cobra.ExactArgs(1),
		Long: `demote takes the vote of a server, which goes on as a read replica: it serves proxies
and stale reads. It is refused if no majority of the voters that are left can be
reached, unless --force is given.`,
		Example: "  ztctl members demote 5f0c7e2a9b1d4c6e8f0a2b4c6d8e0f1a",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := commit(cmd.Context(), a, c.DemoteMember, &ztv1.DemoteMemberRequest{Id: args[0], Force: force}); err != nil {
				return err
			}
			a.note("member %s is a replica", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if the cluster cannot change anything afterwards")
	return cmd
}

func (a *app) newMemberTransfer() *cobra.Command {
	return &cobra.Command{
		Use: "transfer [ID]", Short: "Make another server the leader", Args: cobra.MaximumNArgs(1),
		Long: `transfer makes another voter the leader; without an ID, the one that is most up to
date. Do so before you stop a leader for long; a leader that is stopped gracefully
does it by itself.`,
		Example: "  ztctl members transfer",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			id := ""
			if len(args) > 0 {
				id = args[0]
			} else if id, err = a.successor(cmd.Context(), c); err != nil {
				return err
			}
			if _, err := call(cmd.Context(), a, c.TransferLeadership, &ztv1.TransferLeadershipRequest{Id: id}); err != nil {
				return err
			}
			a.note("member %s has been told to lead", id)
			return nil
		},
	}
}

// successor is the voter beside the leader that lacks the fewest entries.
func (a *app) successor(ctx context.Context, c *client) (string, error) {
	resp, err := call(ctx, a, c.ListMembers, &ztv1.ListMembersRequest{})
	if err != nil {
		return "", err
	}
	var best *ztv1.Member
	for _, m := range resp.Members {
		if m.Voter && !m.Leader && m.Reachable && (best == nil || m.GetLag() < best.GetLag()) {
			best = m
		}
	}
	if best == nil {
		return "", withHint(errors.New("there is no other voter that can be reached"), "see ztctl members")
	}
	return best.Id, nil
}

func (a *app) listMembers(ctx context.Context, stale bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := call(ctx, a, c.ListMembers, &ztv1.ListMembersRequest{Stale: stale})
	if err != nil {
		return orHint(err, "ztctl members --stale shows what the server that is asked knows")
	}
	return a.print(resp, func() error {
		a.showStaleness(resp.Staleness)
		return a.showMembers(resp.Members)
	})
}

func (a *app) showMembers(members []*ztv1.Member) error {
	var rows [][]string
	for _, m := range members {
		role := "joining"
		switch {
		case m.Leader:
			role = "leader"
		case m.Voter:
			role = "voter"
		case m.Replica:
			role = "replica"
		}
		lag, skew := "", ""
		if m.Lag != nil {
			lag = strconv.FormatUint(*m.Lag, 10)
		}
		if m.ClockSkew != nil {
			skew = m.ClockSkew.AsDuration().Round(time.Millisecond).String()
		}
		rows = append(rows, []string{
			m.Id, role, yesNo(m.Reachable), number(m.Revision), lag, skew,
			m.AdminAddress, m.NodeAddress, m.ClusterAddress, m.Version, number(uint64(m.Format)), m.Zone,
		})
	}
	if err := a.columns("SERVER ROLE REACHABLE REVISION LAG SKEW ADMIN NODE CLUSTER VERSION FORMAT ZONE", rows); err != nil {
		return err
	}
	for _, m := range members {
		if m.DiskFull {
			fmt.Fprintln(a.out, a.paint(red, fmt.Sprintf("\nthe disk of %s is nearly full: while it leads, changes are refused", m.Id)))
		}
		if m.Differs {
			fmt.Fprintln(a.out, a.paint(red, fmt.Sprintf("\nthe state of %s differs from that of others: one of them serves what is wrong; its log says which, or what to do", m.Id)))
		}
	}
	return nil
}

func (a *app) newDeregister() *cobra.Command {
	var key string
	cmd := &cobra.Command{
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
			if _, err := commit(cmd.Context(), a, c.DeregisterInstance, &ztv1.DeregisterInstanceRequest{Instance: args[0], IdempotencyKey: key}); err != nil {
				return err
			}
			a.note("instance %s is deregistered", args[0])
			return nil
		},
	}
	keyFlag(cmd, &key)
	return cmd
}
