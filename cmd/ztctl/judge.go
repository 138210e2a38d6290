package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	if problems = spec.Join(problems, spec.Check(docs, "")); len(problems) > 0 {
		a.list(problems)
		return nil, nil, withHint(errors.New(plural(len(problems), "problem", "problems")), fixProblems)
	}
	if len(docs) == 0 {
		return nil, nil, errNoDocuments()
	}
	return docs, index(docs), nil
}

// index is what documents mean. Without a Mesh any trust domain gives the same
// verdicts.
func index(docs []*spec.Document) *policy.Index {
	return policy.New(cmp.Or(spec.MeshOf(docs).GetTrustDomain(), "mesh.invalid"), docs)
}

const fixProblems = "each line says where, what is wrong, and what to write instead; docs/problems.md has the codes"

func errNoDocuments() error {
	return withHint(errors.New("the files hold no documents"), "ztctl init writes some to start from")
}

func (a *app) newValidate() *cobra.Command {
	var paths []string
	var server, merge bool
	cmd := &cobra.Command{
		Use:   "validate -f FILE|FOLDER|-",
		Short: "Find every problem of a spec, without a server",
		Long: `validate reads the files as if they were all there is: it parses them, checks
what refers to what, runs the tests of Assertions and compiles every workload.
All problems are reported at once, as file:line:column: code path: message. What is
allowed and worth a second look is a warning, as of ztctl lint.

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
	results := policy.RunTests(ix, docs, a.now())
	if err := a.passed(results); err != nil {
		return err
	}
	workloads, err := compiles(ix, a.now())
	if err != nil {
		return err
	}
	a.warn(placed(ix.Lint(), docs))
	a.note("%s valid: %s, %s passed", plural(len(docs), "document is", "documents are"),
		plural(workloads, "workload", "workloads"), plural(len(results), "test", "tests"))
	return nil
}

// compiles compiles every workload, as a server would at now, and counts them.
func compiles(ix *policy.Index, now time.Time) (workloads int, err error) {
	ix, _ = ix.Lift(now)
	var errs []error
	ix.Workloads(func(w *policy.Workload) bool {
		workloads++
		if _, err := compile.Workload(ix, nil, w.Ref); err != nil {
			errs = append(errs, withHint(fmt.Errorf("compile %s: %w", w.Ref, err), "this is not your mistake; please report it"))
		}
		return true
	})
	return workloads, errors.Join(errs...)
}

// passed tells of the tests that failed.
func (a *app) passed(results []policy.TestResult) error {
	failed := policy.TestProblems(results)
	if len(failed) == 0 {
		return nil
	}
	a.list(failed)
	err := fmt.Errorf("%d of %s failed", len(failed), plural(len(results), "test", "tests"))
	return &exit{exitDenied, withHint(err, "ztctl can says for one request which grants are near")}
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
	req := &ztv1.ApplyRequest{DryRun: true, Merge: merge, Files: wireFiles(files), Detail: ztv1.Detail_DETAIL_NAMES}
	plan, err := call(ctx, a, c.Apply, req)
	if err != nil {
		return err
	}
	a.warn(problemsOf(plan.Warnings))
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
	var at string
	cmd := &cobra.Command{
		Use:   "test [-f FILE|FOLDER|-]",
		Short: "Run the tests of Assertions",
		Long: `test runs every test and statement of the Assertions in the files, as if the files
were all there is, and shows each verdict; no server is asked. Without -f it takes
what the cluster has stored, but for the Blocks of ztctl block. Exit code 3: one
failed.

Tests that do not say when their request begins have it begin now, or at --at: what
holds today need not hold on a Sunday, or after a grant has ended.`,
		Example: `  ztctl test -f shop/
  ztctl test -f shop/ --at 2026-12-24T22:00:00+01:00
  ztctl test`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.test(cmd.Context(), paths, at) },
	}
	fileFlag(cmd, &paths, false)
	cmd.Flags().StringVar(&at, "at", "", "when requests begin: a `TIME` such as 2026-08-01T18:00:00Z (default: now)")
	return cmd
}

// shownTest is one test or statement in json and yaml.
type shownTest struct {
	Assertion string   `json:"assertion"` // namespace/name
	List      string   `json:"list"`      // tests, never or always
	Test      int      `json:"test"`      // its place in the list, from 0
	As        string   `json:"as"`
	Request   string   `json:"request"`
	Want      string   `json:"want"`
	Got       string   `json:"got"`
	Reason    string   `json:"reason"`
	Notes     []string `json:"notes"` // what the proof of a statement leaves open
	Passed    bool     `json:"passed"`
}

func (a *app) test(ctx context.Context, paths []string, at string) error {
	now := a.now()
	var err error
	if at != "" {
		if now, err = timeOf("--at", at); err != nil {
			return err
		}
	}
	var docs []*spec.Document
	var ix *policy.Index
	if len(paths) > 0 {
		docs, ix, err = a.judge(paths)
	} else {
		docs, ix, err = a.judgeStored(ctx)
	}
	if err != nil {
		return err
	}
	results := policy.RunTests(ix, docs, now)
	shown := []shownTest{}
	var rows [][]string
	for _, r := range results {
		t := shownTest{
			Assertion: r.Assertion.Namespace + "/" + r.Assertion.Name, List: r.List, Test: r.Index,
			Notes: append([]string{}, r.Notes...), Passed: r.Problem == nil,
		}
		request := fmt.Sprintf("%s[%d]", r.List, r.Index)
		if r.Test != nil {
			t.As, t.Request, t.Want = asWhom(r.Test.As), r.Test.Request, r.Test.Want
			t.Got, t.Reason, request = verdict(r.Decision.Allowed), r.Decision.Reason, r.Test.Request
		}
		shown = append(shown, t)
		result := "pass"
		if !t.Passed {
			result = "FAIL"
		}
		rows = append(rows, []string{result, t.Assertion, t.As, request, t.Want, t.Got, cmp.Or(t.Reason, strings.Join(t.Notes, "; "))})
	}
	if err := a.print(shown, func() error { return a.columns("RESULT ASSERTION AS REQUEST WANT GOT REASON", rows) }); err != nil {
		return err
	}
	return a.passed(results)
}

// asWhom is the caller of a test, and the user for whom it calls.
func asWhom(s *ztv1.Subject) string {
	who := cmp.Or(s.GetWorkload(), s.GetSpiffeId())
	if u := s.GetUser(); u != nil {
		who += " for " + u.Provider + ":" + u.Subject
	}
	return who
}

// judgeStored makes an index of what the files of all namespaces have made, as the
// cluster has stored it.
func (a *app) judgeStored(ctx context.Context) ([]*spec.Document, *policy.Index, error) {
	c, err := a.connect()
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	stored, _, err := a.listDocuments(ctx, c, "", "", false)
	if err != nil {
		return nil, nil, a.explain(err)
	}
	var docs []*spec.Document
	for _, d := range stored {
		if doc := (&spec.Document{Document: d.Document}); !doc.Operator() {
			docs = append(docs, doc)
		}
	}
	return docs, index(docs), nil
}

func (a *app) newLint() *cobra.Command {
	var paths []string
	var strict bool
	cmd := &cobra.Command{
		Use:   "lint -f FILE|FOLDER|-",
		Short: "Show what a spec may say and an audit would ask about",
		Long: `lint shows what is allowed in a spec and worth a second look, with its place, a
code and what to do about it: grants across namespaces, implicit trust that is kept,
grants that get slow in number. The files are read as if they were all there is.
Warnings change nothing; with --strict one is exit code 1.`,
		Example: `  ztctl lint -f shop/
  ztctl lint -f shop/ --strict`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.lint(paths, strict) },
	}
	fileFlag(cmd, &paths, true)
	cmd.Flags().BoolVar(&strict, "strict", false, "a warning is exit code 1")
	return cmd
}

// shownWarning is one warning in json and yaml.
type shownWarning struct {
	Code    string `json:"code"`
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Path    string `json:"path"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

func (a *app) lint(paths []string, strict bool) error {
	docs, ix, err := a.judge(paths)
	if err != nil {
		return err
	}
	warnings := placed(ix.Lint(), docs)
	shown := []shownWarning{}
	for _, w := range warnings {
		shown = append(shown, shownWarning(w))
	}
	if err := a.print(shown, func() error {
		for _, w := range warnings {
			fmt.Fprintln(a.out, printable(w.Error()))
		}
		return nil
	}); err != nil {
		return err
	}
	switch {
	case len(warnings) == 0:
		a.note("nothing to warn of in %s", plural(len(docs), "document", "documents"))
	case strict:
		return withHint(errors.New(plural(len(warnings), "warning", "warnings")), "do what the lines say, or leave out --strict")
	}
	return nil
}

// placed gives warnings the places of their documents in the files.
func placed(warnings []policy.Warning, docs []*spec.Document) spec.Problems {
	byKey := map[spec.Key]*spec.Document{}
	for _, d := range docs {
		byKey[d.Key()] = d
	}
	var out spec.Problems
	for _, w := range warnings {
		p := spec.Problem{Code: w.Code, File: w.Key.String(), Path: w.Path, Message: w.Message, Hint: w.Hint}
		if d := byKey[w.Key]; d != nil {
			p.File, p.Line, p.Column = d.At(w.Path)
		}
		out = append(out, p)
	}
	return spec.Join(out)
}

// warn prints warnings, one line each.
func (a *app) warn(warnings spec.Problems) {
	for _, w := range warnings {
		fmt.Fprintf(a.err, "warning: %s\n", printable(w.Error()))
	}
}

func verdict(allowed bool) string {
	if allowed {
		return "allow"
	}
	return "deny"
}
