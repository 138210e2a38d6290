package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newHistory() *cobra.Command {
	var limit, before uint64
	var changes, stale bool
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Show who changed what, newest first",
		Example: `  ztctl history
  ztctl history --changes --limit 1
  ztctl history --before 40 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.history(cmd.Context(), &ztv1.ListRevisionsRequest{PageSize: uint32(min(limit, 1000)), Before: before, Stale: stale, Receipts: !changes && limit <= 100}, changes)
		},
	}
	cmd.Flags().Uint64Var(&limit, "limit", 20, "how many, at most 1000; up to 100, with how far each has got on the proxies that it affects")
	cmd.Flags().Uint64Var(&before, "before", 0, "only revisions before this `REVISION`")
	cmd.Flags().BoolVar(&changes, "changes", false, "show what each changed")
	staleFlag(cmd, &stale)
	return cmd
}

func (a *app) history(ctx context.Context, req *ztv1.ListRevisionsRequest, changes bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if a.set.Output == "table" {
		req.Detail = ztv1.Detail_DETAIL_NAMES
		if changes {
			req.Detail = ztv1.Detail_DETAIL_DIFFERENCES
		}
	}
	resp, err := call(ctx, a, c.ListRevisions, req)
	if err != nil {
		return err
	}
	return a.print(resp, func() error {
		a.showStaleness(resp.Staleness)
		if changes {
			for _, r := range resp.Revisions {
				fmt.Fprintf(a.out, "revision %d by %s at %s %s\n", r.Revision, printable(r.Who), r.When.AsTime().Format(time.RFC3339), printable(r.Message))
				a.showChanges(r.Changes)
			}
			return nil
		}
		var rows [][]string
		for _, r := range resp.Revisions {
			namespaces := map[string]bool{}
			var names []string
			for _, ch := range r.Changes {
				if !namespaces[ch.Namespace] {
					namespaces[ch.Namespace] = true
					names = append(names, ch.Namespace)
				}
			}
			rows = append(rows, []string{
				strconv.FormatUint(r.Revision, 10), a.age(r.When), r.Who,
				strconv.Itoa(len(r.Changes)), strings.Join(names, ","), states(r.Receipt), r.Message,
			})
		}
		return a.columns("REVISION AGE BY CHANGES NAMESPACES PROXIES MESSAGE", rows)
	})
}
