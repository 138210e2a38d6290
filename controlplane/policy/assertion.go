package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// CodeTestFailed is the code of a problem that is a failed test.
const CodeTestFailed = "ZT2001"

// TestResult is one test of an Assertion and what came of it.
type TestResult struct {
	Assertion spec.Key
	Index     int // in spec.tests
	Test      *ztv1.Test
	Decision  Decision
	// Problem is why the test failed, at its place in the file; nil if it passed.
	Problem *spec.Problem
}

// RunTests runs the tests of all Assertions in docs against ix, in the order of
// docs. A test that cannot be read fails.
func RunTests(ix *Index, docs []*spec.Document) []TestResult {
	var results []TestResult
	for _, doc := range docs {
		for i, t := range doc.GetAssertion().GetTests() {
			r := TestResult{Assertion: doc.Key(), Index: i, Test: t}
			var failure string
			r.Decision, failure = ix.runTest(doc.Ref().Namespace, t)
			if failure != "" {
				path := fmt.Sprintf("spec.tests[%d]", i)
				p := spec.Problem{Code: CodeTestFailed, Path: path, Message: failure, Hint: strings.Join(r.Decision.Hints, "; ")}
				p.File, p.Line, p.Column = doc.At(path)
				r.Problem = &p
			}
			results = append(results, r)
		}
	}
	return results
}

// TestProblems is the problems of the tests that failed; empty if all passed.
func TestProblems(results []TestResult) spec.Problems {
	var out spec.Problems
	for _, r := range results {
		if r.Problem != nil {
			out = append(out, *r.Problem)
		}
	}
	return out
}

// runTest is the decision about a test, and why it fails; empty if it passes.
func (ix *Index) runTest(namespace string, t *ztv1.Test) (d Decision, failure string) {
	d, err := Can(ix, namespace, t.GetAs().GetWorkload(), t.GetRequest())
	if err != nil {
		return d, err.Error()
	}
	verdict := "deny"
	if d.Allowed {
		verdict = "allow"
	}
	if verdict != t.GetWant() {
		return d, fmt.Sprintf("%s by %s gets %s (%s), not %s", t.GetRequest(), t.GetAs().GetWorkload(), verdict, d.Reason, t.GetWant())
	}
	if by := t.GetBy(); by != "" {
		want, err := spec.ParseRef(by, namespace)
		if err != nil {
			return d, err.Error()
		}
		if !slices.Contains(d.Grants, want) {
			return d, fmt.Sprintf("%s by %s is allowed by %s, not by %s", t.GetRequest(), t.GetAs().GetWorkload(), reasons(d), want)
		}
	}
	return d, ""
}

func reasons(d Decision) string {
	if len(d.Grants) == 0 {
		return d.Reason
	}
	return listed(texts(d.Grants, spec.Ref.String))
}

// Can is the decision about a request as a person writes it (spec.ParseRequest)
// by a workload, "name" or "namespace/name"; what names no namespace is of
// namespace. An error is a mistake in the words.
func Can(ix *Index, namespace, caller, request string) (Decision, error) {
	ref, err := spec.ParseRef(caller, namespace)
	if err != nil {
		return Decision{}, fmt.Errorf("caller: %w", err)
	}
	r, err := spec.ParseRequest(request, namespace)
	if err != nil {
		return Decision{}, fmt.Errorf("request: %w", err)
	}
	return ix.Decide(Request{
		CallerID: ID(ix.trustDomain, ref), Service: r.Service, Port: r.Port, TCP: r.TCP, Method: r.Method, Path: r.Path,
	}), nil
}
