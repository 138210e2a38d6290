package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane/refusals"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// serverRefusal is what was refused, and where.
type serverRefusal struct {
	Server string `json:"server"`
	refusals.Record
}

func (a *app) newLogRefusals() *cobra.Command {
	var limit uint32
	var since time.Duration
	var who, from string
	cmd := &cobra.Command{
		Use:   "refusals",
		Short: "Show what every server has refused: who asked for what, from where, how often",
		Example: `  ztctl log refusals --since 1h
  ztctl log refusals --from 192.0.2.7 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			after := time.Time{}
			if since > 0 {
				after = a.now().Add(-since)
			}
			return a.logRefusals(cmd.Context(), int(limit), func(r refusals.Record) bool {
				return !r.Last.Before(after) && strings.Contains(r.Who, who) && strings.Contains(r.From, from)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&who, "who", "", "only of callers whose SPIFFE ID has this `TEXT` in it")
	f.StringVar(&from, "from", "", "only from addresses that have this in them")
	f.DurationVar(&since, "since", 0, "only those of so long ago at most")
	f.Uint32Var(&limit, "limit", 20, "how many lines, the newest")
	return cmd
}

func (a *app) logRefusals(ctx context.Context, limit int, wanted func(refusals.Record) bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	all := struct {
		Refusals []serverRefusal `json:"refusals"`
	}{[]serverRefusal{}}
	var errs []error // of servers that do not answer; what the others say is shown
	for i, conn := range c.conns {
		_, err := readRefusals(ctx, ztv1.NewAdminServiceClient(conn), func(server string, line []byte) error {
			r, err := refusals.Read(line)
			if err == nil && wanted(r) {
				all.Refusals = append(all.Refusals, serverRefusal{server, r})
			}
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("server %s: %w", c.context.Servers[i], err))
		}
	}
	slices.SortStableFunc(all.Refusals, func(x, y serverRefusal) int { return y.Last.Compare(x.Last) })
	all.Refusals = all.Refusals[:min(len(all.Refusals), limit)]
	err = a.print(all, func() error {
		return a.columns("LAST COUNT SINCE SERVER WHO FROM WHAT CODE REASON", refusalRows(all.Refusals))
	})
	return errors.Join(append(errs, err)...)
}

func refusalRows(all []serverRefusal) (rows [][]string) {
	for _, r := range all {
		what := r.What[strings.LastIndexByte(r.What, '/')+1:]
		if r.Lost > 0 {
			what += fmt.Sprintf(" (and %d before that could not be recorded)", r.Lost)
		}
		rows = append(rows, []string{
			r.Last.UTC().Format(time.RFC3339), strconv.FormatUint(r.Count, 10), r.First.UTC().Format(time.RFC3339),
			r.Server[:min(len(r.Server), 8)], caller(r.Who), r.From, what, r.Code, r.Reason,
		})
	}
	return rows
}

// caller is the short form of a SPIFFE ID of the control domain.
func caller(id string) string {
	if _, rest, ok := strings.Cut(id, "spiffe://control."); ok {
		if _, who, ok := strings.Cut(rest, "/"); ok {
			return who
		}
	}
	return id
}

func (a *app) newLogAccept() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "accept SERVER --reason TEXT",
		Short: "Let a server sign again whose issuance journal was cut",
		Long: `A server whose issuance journal does not lead through what the cluster remembers of it
signs nothing. Find out who changed the file first: certificates may have been signed
that are on record nowhere. accept takes the journal as it is now; the reason goes into
the audit log. The server signs again as soon as it has said what it has.`,
		Example: `  ztctl log accept 5f0c7e2a9b1d4c6e8f0a2b4c6d8e0f1a --reason "disk replaced, ticket 4711"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := commit(cmd.Context(), a, c.AcceptJournal, &ztv1.AcceptJournalRequest{Server: args[0], Reason: reason}); err != nil {
				return err
			}
			a.note("the issuance journal of %s is accepted as it is", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}
