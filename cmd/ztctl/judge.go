package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// judge reads files and makes an index of them, as if they were all there is.
func (a *app) judge(paths []string) ([]*spec.Document, *policy.Index, error) {
	files, err := a.readSpec(paths)
	if err != nil {
		return nil, nil, err
	}
	docs, problems := spec.Parse(files)
	problems = append(problems, spec.Check(docs, "")...)
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(a, b spec.Problem) int {
			return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		a.list(problems)
		return nil, nil, errors.New(plural(len(problems), "problem", "problems"))
	}
	if len(docs) == 0 {
		return nil, nil, errors.New("the files hold no documents")
	}
	// Without a Mesh any trust domain gives the same verdicts.
	return docs, policy.New(cmp.Or(spec.MeshOf(docs).GetTrustDomain(), "mesh.invalid"), docs), nil
}

func (a *app) newValidate() *cobra.Command {
	var paths []string
	var server, merge bool
	cmd := &cobra.Command{
		Use:   "validate -f FILE|FOLDER|-",
		Short: "Find every problem of a spec, without a server",
		Long: `validate reads the files as if they were all there is: it parses them, checks
what refers to what, runs the tests of Assertions and compiles every workload.
All problems are reported at once, as file:line:column: code path: message.

With --server the cluster judges, against what it has stored: the same as
apply --dry-run, without the changes.`,
		Example: `  ztctl validate -f shop/
  ztctl validate -f shop/orders.yaml --server`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if server {
				return a.validateOnServer(cmd.Context(), paths, merge)
			}
			return a.validate(paths)
		},
	}
	fileFlag(cmd, &paths, true)
	cmd.Flags().BoolVar(&server, "server", false, "ask the cluster, against what it has stored")
	cmd.Flags().BoolVar(&merge, "merge", false, "with --server: as apply --merge")
	return cmd
}

func (a *app) validate(paths []string) error {
	docs, ix, err := a.judge(paths)
	if err != nil {
		return err
	}
	results := policy.RunTests(ix, docs, time.Now())
	if failed := policy.TestProblems(results); len(failed) > 0 {
		a.list(failed)
		return &exit{exitDenied, fmt.Errorf("%d of %s failed", len(failed), plural(len(results), "test", "tests"))}
	}
	var errs []error
	workloads := 0
	ix.Workloads(func(w *policy.Workload) bool {
		workloads++
		c, err := compile.Workload(ix, nil, w.Ref)
		if err == nil {
			err = c.Validate()
		}
		if err != nil {
			errs = append(errs, withHint(fmt.Errorf("compile %s: %w", w.Ref, err), "this is not your mistake; please report it"))
		}
		return true
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	a.note("%s valid: %s, %s passed", plural(len(docs), "document is", "documents are"),
		plural(workloads, "workload", "workloads"), plural(len(results), "test", "tests"))
	return nil
}

func (a *app) validateOnServer(ctx context.Context, paths []string, merge bool) error {
	files, err := a.readSpec(paths)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	req := &ztv1.ApplyRequest{DryRun: true, Merge: merge, Files: wireFiles(files)}
	plan, err := call(ctx, a, c.Apply, req)
	if err != nil {
		return err
	}
	a.note("valid on top of revision %d: %s", plan.Revision, plural(len(plan.Changes), "change", "changes"))
	return nil
}

func wireFiles(files []spec.File) []*ztv1.File {
	var out []*ztv1.File
	for _, f := range files {
		out = append(out, &ztv1.File{Name: f.Name, Content: f.Content})
	}
	return out
}

func (a *app) newTest() *cobra.Command {
	var paths []string
	cmd := &cobra.Command{
		Use:   "test -f FILE|FOLDER|-",
		Short: "Run the tests of Assertions, without a server",
		Long: `test runs every test of the Assertions in the files, as if the files were all
there is, and shows each verdict. Exit code 3: one failed.`,
		Example: "  ztctl test -f shop/",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.test(paths) },
	}
	fileFlag(cmd, &paths, true)
	return cmd
}

// shownTest is one test in json and yaml.
type shownTest struct {
	Assertion string `json:"assertion"` // namespace/name
	Test      int    `json:"test"`      // its place in the assertion, from 0
	As        string `json:"as"`
	Request   string `json:"request"`
	Want      string `json:"want"`
	Got       string `json:"got"`
	Reason    string `json:"reason"`
	Passed    bool   `json:"passed"`
}

func (a *app) test(paths []string) error {
	docs, ix, err := a.judge(paths)
	if err != nil {
		return err
	}
	results := policy.RunTests(ix, docs, time.Now())
	shown := []shownTest{}
	var rows [][]string
	for _, r := range results {
		t := shownTest{
			Assertion: r.Assertion.Namespace + "/" + r.Assertion.Name, Test: r.Index,
			As: r.Test.GetAs().GetWorkload(), Request: r.Test.GetRequest(), Want: r.Test.GetWant(),
			Got: verdict(r.Decision.Allowed), Reason: r.Decision.Reason, Passed: r.Problem == nil,
		}
		if r.Test == nil { // a statement
			t.Request, t.Got = r.List, ""
		}
		shown = append(shown, t)
		result := "pass"
		if !t.Passed {
			result = "FAIL"
		}
		rows = append(rows, []string{result, t.Assertion, t.As, t.Request, t.Want, t.Got, t.Reason})
	}
	if err := a.print(shown, func() error { return a.columns("RESULT ASSERTION AS REQUEST WANT GOT REASON", rows) }); err != nil {
		return err
	}
	if failed := policy.TestProblems(results); len(failed) > 0 {
		a.list(failed)
		return &exit{exitDenied, fmt.Errorf("%d of %s failed", len(failed), plural(len(results), "test", "tests"))}
	}
	return nil
}

func verdict(allowed bool) string {
	if allowed {
		return "allow"
	}
	return "deny"
}

func (a *app) newCan() *cobra.Command {
	var paths []string
	cmd := &cobra.Command{
		Use:   `can CALLER "METHOD SERVICE[:PORT] /PATH"`,
		Short: "Say whether a request is allowed, and why",
		Long: `can decides one request by the committed spec, or with -f by files, without a
server. The request is "METHOD service[:port] /path", "GRPC service[:port]
pkg.Service/Method" or "TCP service[:port]"; names without a namespace are of
-n, otherwise of the caller's. A caller without a namespace is looked for in all
of them. Exit code 3: denied.`,
		Example: `  ztctl can web "POST orders /orders/7"
  ztctl can shop/web "GRPC stock shop.v1.Stock/Get"
  ztctl can shop/orders "TCP db" -f shop/`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.can(cmd.Context(), paths, args[0], args[1]) },
	}
	fileFlag(cmd, &paths, false)
	return cmd
}

func (a *app) can(ctx context.Context, paths []string, caller, request string) error {
	var resp *ztv1.CanResponse
	var err error
	if len(paths) > 0 {
		resp, caller, err = a.canOffline(paths, caller, request)
	} else {
		resp, caller, err = a.canOnline(ctx, caller, request)
	}
	if err != nil {
		return err
	}
	if err := a.print(resp, func() error {
		color := red
		if resp.Allowed {
			color = green
		}
		fmt.Fprintf(a.out, "%s   %s   %s   %s\n", a.paint(color, verdict(resp.Allowed)), caller, printable(request), resp.Reason)
		for _, g := range resp.Grants {
			fmt.Fprintf(a.out, "  by grant %s\n", g)
		}
		for _, h := range resp.Hints {
			fmt.Fprintf(a.out, "  %s\n", printable(h))
		}
		return nil
	}); err != nil {
		return err
	}
	if !resp.Allowed {
		return &exit{code: exitDenied}
	}
	return nil
}

func (a *app) canOffline(paths []string, caller, request string) (*ztv1.CanResponse, string, error) {
	_, ix, err := a.judge(paths)
	if err != nil {
		return nil, "", err
	}
	var refs []string
	ix.Workloads(func(w *policy.Workload) bool {
		refs = append(refs, w.Ref.String())
		return true
	})
	if caller, err = a.caller(caller, func() ([]string, error) { return refs, nil }); err != nil {
		return nil, "", err
	}
	d, err := policy.Can(ix, a.namespaceOf(caller), &ztv1.Test{As: &ztv1.Subject{Workload: caller}, Request: request}, time.Now())
	if err != nil {
		return nil, "", err
	}
	resp := &ztv1.CanResponse{Allowed: d.Allowed, Reason: d.Reason, Hints: d.Hints}
	for _, g := range d.Grants {
		resp.Grants = append(resp.Grants, g.String())
	}
	return resp, caller, nil
}

func (a *app) canOnline(ctx context.Context, caller, request string) (*ztv1.CanResponse, string, error) {
	c, err := a.connect()
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	caller, err = a.caller(caller, func() ([]string, error) {
		docs, err := a.listDocuments(ctx, c, spec.KindWorkload, "")
		var refs []string
		for _, d := range docs {
			refs = append(refs, d.Document.GetMetadata().GetNamespace()+"/"+d.Document.GetMetadata().GetName())
		}
		return refs, a.explain(err)
	})
	if err != nil {
		return nil, "", err
	}
	resp, err := call(ctx, a, c.Can, &ztv1.CanRequest{Caller: caller, Request: request, Namespace: a.namespaceOf(caller)})
	return resp, caller, err
}

// namespaceOf is the namespace of bare names in a request of caller.
func (a *app) namespaceOf(caller string) string {
	ns, _, _ := strings.Cut(caller, "/")
	return cmp.Or(a.set.Namespace, ns)
}

// caller completes the name of a caller: by -n, or by the one workload of that
// name.
func (a *app) caller(name string, workloads func() ([]string, error)) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	if a.set.Namespace != "" {
		return a.set.Namespace + "/" + name, nil
	}
	all, err := workloads()
	if err != nil {
		return "", err
	}
	found := slices.DeleteFunc(all, func(ref string) bool { return !strings.HasSuffix(ref, "/"+name) })
	switch len(found) {
	case 0:
		return "", withHint(fmt.Errorf("no workload %q in any namespace", name), "see ztctl get workloads")
	case 1:
		return found[0], nil
	}
	return "", withHint(fmt.Errorf("workload %q is in several namespaces: %s", name, strings.Join(found, ", ")), "name one of them in full, or use -n")
}
