package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// rolling is one `ztctl rollback`.
type rolling struct {
	revision   uint64
	namespaces []string
	dryRun     bool
	wait       waiting
	message    string
	key        string
}

func (a *app) newRollback() *cobra.Command {
	var o rolling
	cmd := &cobra.Command{
		Use:   "rollback REVISION",
		Short: "Make the spec what it was at a revision",
		Long: `rollback makes the documents what they were at a revision, as a new revision: those
of the namespaces that --namespaces names, or of all that have changed since. It shows
what changes, commits it, and waits for the proxies as apply does. Nothing of the
history is lost: roll back again to undo it.

It is validated as an apply of the same documents: an assertion that has been added
since holds, and so does who may change which namespace. A Block of ztctl block is
neither lifted nor written again. The last 1,000 revisions are kept; ztctl history
shows them.

Files in a repository do not roll back: bring them in line before the next apply.`,
		Example: `  ztctl history --changes
  ztctl rollback 41 --dry-run
  ztctl rollback 41 --namespaces shop --message "INC-42"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.revision, err = parseRevision(args[0]); err != nil {
				return err
			}
			return a.rollback(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.namespaces, "namespaces", nil, "only these `NAMESPACE`s; repeatable, or several by comma (default: all that have changed since)")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would change, and commit nothing")
	o.wait.flags(cmd)
	f.StringVarP(&o.message, "message", "m", "", "free `TEXT`, kept with the revision")
	keyFlag(cmd, &o.key)
	cmd.MarkFlagsMutuallyExclusive("dry-run", "no-wait")
	return cmd
}

// parseRevision reads the number of a revision.
func parseRevision(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return 0, withHint(fmt.Errorf("%q is not a revision", text), "ztctl history lists them")
	}
	return n, nil
}

func (a *app) rollback(ctx context.Context, o rolling) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	req := &ztv1.RollbackRequest{Revision: o.revision, Namespaces: o.namespaces, Message: o.message}
	if req.Detail = ztv1.Detail_DETAIL_DIFFERENCES; a.set.Output != "table" {
		req.Detail = ztv1.Detail_DETAIL_ALL
	}
	if o.key == "" || o.dryRun {
		// With a key of an earlier try, it would show what that try has changed.
		if err := a.planRollback(ctx, c, req, o.dryRun); err != nil || o.dryRun {
			return err
		}
	}
	req.IdempotencyKey = o.key
	resp, err := commit(ctx, a, c.Rollback, req)
	if err != nil {
		return err
	}
	return a.afterCommit(ctx, c, o.wait, "rollback", resp)
}

// planRollback shows what the rollback would change, and makes that what is
// committed: if one of its namespaces changes meanwhile, nothing is.
func (a *app) planRollback(ctx context.Context, c *client, req *ztv1.RollbackRequest, last bool) error {
	var plan *ztv1.RollbackResponse
	req.DryRun = true
	err := a.throughElection(ctx, func() (err error) {
		call, cancel := a.deadline(ctx)
		defer cancel()
		plan, err = c.Rollback(call, req)
		return err
	})
	req.DryRun = false
	if err != nil {
		return a.explain(err)
	}
	req.Bases = plan.Bases
	if a.set.Output != "table" {
		if last {
			return a.print(plan, nil)
		}
		return nil
	}
	a.showChanges(plan.Changes)
	a.warn(problemsOf(plan.Warnings))
	if last {
		fmt.Fprintf(a.out, "%s affected; nothing was committed (--dry-run)\n", proxies(plan))
	}
	return nil
}
