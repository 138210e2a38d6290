package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// application is one `ztctl apply`.
type application struct {
	paths   []string
	bases   map[string]string // --base, as written
	merge   bool
	dryRun  bool
	noWait  bool
	timeout time.Duration
	message string
	key     string
}

func (a *app) newApply() *cobra.Command {
	var o application
	cmd := &cobra.Command{
		Use:   "apply -f FILE|FOLDER|-",
		Short: "Make files the whole truth for the namespaces that they name",
		Long: `apply makes the files the whole truth for every namespace that they name, as
one revision, all or nothing: what is stored there and not in the files is
removed. --merge only adds and changes.

It shows what changes, commits it, and waits until every proxy that is affected
has confirmed (ACKed) its new configuration. Running it again is safe: with
nothing to change it waits for the newest revision.

The commit is refused (exit code 5) when somebody else changed one of these
namespaces after this command has read it, or after the revision that --base
names. When no server answers in time, the outcome is not known; the message
then names the idempotency key with which to ask again.`,
		Example: `  ztctl apply -f shop/
  ztctl apply -f shop/ --dry-run
  kustomize build . | ztctl apply -f - --message "JIRA-7"
  ztctl apply -f shop/ --base shop=41 --timeout 2m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.apply(cmd.Context(), o) },
	}
	fileFlag(cmd, &o.paths, true)
	f := cmd.Flags()
	f.BoolVar(&o.merge, "merge", false, "only add and change; remove nothing")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would change, and commit nothing")
	f.BoolVar(&o.noWait, "no-wait", false, "do not wait for the proxies")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait for the proxies")
	f.StringVarP(&o.message, "message", "m", "", "free text, kept with the revision")
	f.StringToStringVar(&o.bases, "base", nil, "NAMESPACE=REVISION that was reviewed; repeatable (default: as read now)")
	f.Lookup("base").DefValue = ""
	f.StringVar(&o.key, "idempotency-key", "", "repeat the apply whose outcome is not known (default: a new key)")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "no-wait")
	return cmd
}

func (a *app) apply(ctx context.Context, o application) error {
	files, err := a.readSpec(o.paths)
	if err != nil {
		return err
	}
	docs, ps := spec.Parse(files)
	if len(ps) > 0 {
		a.list(ps)
		return fmt.Errorf("%s; nothing was committed", plural(len(ps), "problem", "problems"))
	}
	if len(docs) == 0 {
		return errors.New("the files hold no documents")
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	req := &ztv1.ApplyRequest{Files: wireFiles(files), Merge: o.merge, Message: o.message}
	err = a.throughElection(ctx, func() error {
		req.Bases, err = a.bases(ctx, c, docs, o.bases)
		return err
	})
	if err != nil {
		return a.explain(err)
	}
	if o.key == "" {
		// With a key of an earlier try, the plan would show what that try changed.
		if err := a.plan(ctx, c, req, o.dryRun); err != nil || o.dryRun {
			return err
		}
	}
	if req.IdempotencyKey = o.key; o.key == "" {
		req.IdempotencyKey = identity.NewID()
	}
	resp, err := a.commit(ctx, c, req)
	if err != nil {
		return err
	}
	return a.afterCommit(ctx, c, o, resp)
}

// plan shows what the apply would change.
func (a *app) plan(ctx context.Context, c *client, req *ztv1.ApplyRequest, last bool) error {
	var plan *ztv1.ApplyResponse
	req.DryRun = true
	err := a.throughElection(ctx, func() (err error) {
		plan, err = a.try(ctx, c, req)
		return err
	})
	req.DryRun = false
	if err != nil {
		return a.explain(err)
	}
	if a.set.Output != "table" {
		if last {
			return a.print(plan, nil)
		}
		return nil
	}
	a.showChanges(plan.Changes)
	if last {
		fmt.Fprintf(a.out, "%s affected; nothing was committed (--dry-run)\n", plural(len(plan.Affected), "proxy is", "proxies are"))
	}
	return nil
}

// bases are the revisions that the commit builds on: for every namespace that
// the files name, the one given by --base, otherwise the one of now.
func (a *app) bases(ctx context.Context, c *client, docs []*spec.Document, given map[string]string) (map[string]uint64, error) {
	call, cancel := a.deadline(ctx)
	defer cancel()
	now, err := c.ListDocuments(call, &ztv1.ListDocumentsRequest{PageSize: 1})
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for _, d := range docs {
		ns := d.GetMetadata().GetNamespace()
		out[ns] = now.Namespaces[ns] // 0: it does not exist yet
	}
	for ns, text := range given {
		if _, named := out[ns]; !named {
			return nil, fmt.Errorf("--base names namespace %q, which the files do not", ns)
		}
		if out[ns], err = strconv.ParseUint(text, 10, 64); err != nil {
			return nil, withHint(fmt.Errorf("--base %s=%s is not a revision", ns, text), "write --base %s=12", ns)
		}
	}
	return out, nil
}

// throughElection makes a read again while a server answers that it can ask no
// leader, for as long as a call may take. That no server can be reached is told at
// once.
func (a *app) throughElection(ctx context.Context, read func() error) error {
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 400*time.Millisecond) {
		err := read()
		var away *unreachable
		if status.Code(err) != codes.Unavailable || errors.As(err, &away) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// commit applies for good. An outcome that is not known is asked for again, with
// the same key, which takes effect at most once.
func (a *app) commit(ctx context.Context, c *client, req *ztv1.ApplyRequest) (*ztv1.ApplyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*a.set.RequestTimeout)
	defer cancel()
	sent := false
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		resp, err := a.try(ctx, c, req)
		if err == nil {
			return resp, nil
		}
		var away *unreachable
		reached := !errors.As(err, &away)
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
			sent = sent || reached
		default:
			return nil, a.explain(err)
		}
		select {
		case <-time.After(wait):
			continue
		case <-ctx.Done():
		}
		if !sent {
			return nil, a.explain(err)
		}
		return nil, withHint(
			fmt.Errorf("the outcome is not known: the change may or may not be committed: %w", a.explain(err)),
			"ask again with the same files and --idempotency-key %s; it takes effect at most once", req.IdempotencyKey)
	}
}

func (a *app) try(ctx context.Context, c *client, req *ztv1.ApplyRequest) (*ztv1.ApplyResponse, error) {
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	return c.Apply(ctx, req)
}

// afterCommit waits for the proxies and tells how it went.
func (a *app) afterCommit(ctx context.Context, c *client, o application, resp *ztv1.ApplyResponse) error {
	if o.noWait {
		return a.print(resp, func() error {
			fmt.Fprintf(a.out, "%s committed; %s affected\n", a.revision(resp), plural(len(resp.Affected), "proxy is", "proxies are"))
			return nil
		})
	}
	receipt, err := a.awaitReceipt(ctx, c, resp.Revision, o.timeout)
	if a.set.Output != "table" {
		if perr := a.printApplied(resp, receipt); perr != nil {
			return perr
		}
	} else if perr := a.showReceipt(receipt); perr != nil {
		return perr
	}
	switch {
	case err != nil:
		return &exit{exitUnconfirmed, fmt.Errorf("%s is committed, but its receipt cannot be read: %w", a.revision(resp), a.explain(err))}
	case !receipt.GetComplete():
		return &exit{exitUnconfirmed, unconfirmed(a.revision(resp), receipt)}
	case a.set.Output == "table":
		fmt.Fprintf(a.out, "%s is confirmed by %s\n", a.revision(resp), plural(len(receipt.Proxies), "affected proxy", "affected proxies"))
	}
	return nil
}

func (a *app) revision(resp *ztv1.ApplyResponse) string {
	return fmt.Sprintf("revision %d", resp.Revision)
}

// printApplied is what apply says in json and yaml.
func (a *app) printApplied(resp *ztv1.ApplyResponse, receipt *ztv1.WatchReceiptResponse) error {
	var out struct {
		Apply   json.RawMessage `json:"apply"`
		Receipt json.RawMessage `json:"receipt"`
	}
	var err, err2 error
	out.Apply, err = toJSON(resp)
	out.Receipt, err2 = toJSON(receipt)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	return a.print(out, nil)
}
