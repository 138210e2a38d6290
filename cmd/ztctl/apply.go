package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/parallel"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// application is one `ztctl apply`.
type application struct {
	paths   []string
	bases   map[string]string // --base, as written
	merge   bool
	dryRun  bool
	shadow  bool
	wait    waiting
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

It commits what changes and shows it, and waits until every proxy that is affected
has confirmed its new configuration: its Envoy works by it (enforced), or, without an
agent, has ACKed it. Running it again is safe: with nothing to change it waits for the
newest revision.

The commit is refused (exit code 5) when somebody else changed one of these
namespaces after this command has read it, or after the revision that --base
names. When no server answers in time, the outcome is not known; the message
then names the idempotency key with which to ask again.

With --shadow the files are proposed instead: no verdict changes, and the proxies
report the requests whose verdict would change, which ztctl shadow shows. An apply
of the namespace, or ztctl shadow end, ends the proposal.`,
		Example: `  ztctl apply -f shop/
  ztctl apply -f shop/ --dry-run
  kustomize build . | ztctl apply -f - --message "JIRA-7"
  ztctl apply -f shop/ --base shop=41 --timeout 2m
  ztctl apply -f shop/ --shadow && ztctl shadow -n shop`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.apply(cmd.Context(), o) },
	}
	fileFlag(cmd, &o.paths, true)
	f := cmd.Flags()
	f.BoolVar(&o.merge, "merge", false, "only add and change; remove nothing")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would change, and commit nothing")
	f.BoolVar(&o.shadow, "shadow", false, "propose it: change no verdict, and report what it would change")
	o.wait.flags(cmd)
	f.StringVarP(&o.message, "message", "m", "", "free `TEXT`, kept with the revision")
	f.StringToStringVar(&o.bases, "base", nil, "`NAMESPACE=REVISION` that was reviewed; repeatable (default: as read now)")
	f.Lookup("base").DefValue = ""
	keyFlag(cmd, &o.key)
	cmd.MarkFlagsMutuallyExclusive("dry-run", "no-wait")
	cmd.MarkFlagsMutuallyExclusive("shadow", "no-wait")
	return cmd
}

// forMiB is how much longer than others a call may take for each MiB of files.
const forMiB = 3 * time.Second

func (a *app) apply(ctx context.Context, o application) error {
	files, err := a.readSpec(o.paths)
	if err != nil {
		return err
	}
	done := a.count("reading " + plural(len(files), "file", "files"))
	docs, ps := spec.ParseBy(files, parallel.Each)
	done()
	if len(ps) > 0 {
		a.list(ps)
		return withHint(fmt.Errorf("%s; nothing was committed", plural(len(ps), "problem", "problems")), fixProblems)
	}
	if len(docs) == 0 {
		return errNoDocuments()
	}
	for _, f := range files {
		a.set.RequestTimeout += time.Duration(len(f.Content)>>20) * forMiB
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	req := &ztv1.ApplyRequest{Files: wireFiles(files), Merge: o.merge, Message: o.message, Shadow: o.shadow}
	err = a.throughElection(ctx, func() error {
		req.Bases, err = a.bases(ctx, c, docs, o.bases)
		return err
	})
	if err != nil {
		return a.explain(err)
	}
	if req.DryRun, req.Detail = o.dryRun, ztv1.Detail_DETAIL_DIFFERENCES; a.set.Output != "table" {
		req.Detail = ztv1.Detail_DETAIL_ALL
	}
	if !o.dryRun {
		req.IdempotencyKey = o.key
	}
	resp, err := a.send(ctx, c, req, len(docs))
	if err != nil {
		return err
	}
	if a.set.Output == "table" {
		a.showChanges(resp.Changes)
		a.warn(problemsOf(resp.Warnings))
	}
	switch {
	case o.dryRun:
		return a.print(resp, func() error {
			fmt.Fprintf(a.out, "%s affected; nothing was committed (--dry-run)\n", proxies(resp))
			return nil
		})
	case o.shadow:
		return a.afterProposal(resp)
	}
	return a.afterCommit(ctx, c, o.wait, "apply", resp)
}

// send has the documents of a request judged by a server, and committed unless it is a
// dry run.
func (a *app) send(ctx context.Context, c *client, req *ztv1.ApplyRequest, documents int) (*ztv1.ApplyResponse, error) {
	doing := "applying "
	if req.DryRun {
		doing = "checking "
	}
	watched := func(ctx context.Context, req *ztv1.ApplyRequest, opts ...grpc.CallOption) (*ztv1.ApplyResponse, error) {
		defer a.count(doing + plural(documents, "document", "documents"))()
		return c.Apply(ctx, req, opts...)
	}
	if !req.DryRun {
		return commit(ctx, a, watched, req)
	}
	var plan *ztv1.ApplyResponse
	err := a.throughElection(ctx, func() (err error) {
		plan, err = watched(ctx, req)
		return err
	})
	return plan, a.explain(err)
}

// afterProposal tells what has become of `apply --shadow`.
func (a *app) afterProposal(resp *ztv1.ApplyResponse) error {
	return a.print(resp, func() error {
		for _, ns := range slices.Sorted(maps.Keys(resp.Bases)) {
			fmt.Fprintf(a.out, "proposed for namespace %s; no verdict changes\n", ns)
			a.note("see what would: ztctl shadow -n %[1]s; take it back: ztctl shadow end %[1]s", ns)
		}
		return nil
	})
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
			return nil, withHint(fmt.Errorf("--base names namespace %q, which the files do not", ns), "name a namespace of the files, or leave it out")
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
