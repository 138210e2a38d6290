package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// CodeTestFailed is the code of a problem that is a failed test.
const CodeTestFailed = "ZT2001"

// TestResult is one test or statement of an Assertion and what came of it.
type TestResult struct {
	Assertion spec.Key
	List      string     // "tests", "never" or "always"
	Index     int        // in List
	Test      *ztv1.Test // of "tests", with Decision; the others have none
	Decision  Decision
	// Notes is what the analysis of a statement that holds leaves open.
	Notes []string
	// Problem is why it failed, at its place in the file; nil if it passed.
	Problem *spec.Problem
}

// RunTests judges the tests and statements of all Assertions in docs by ix, in the
// order of docs. Tests that do not say when begin at now. What cannot be read, or
// decided, fails.
func RunTests(ix *Index, docs []*spec.Document, now time.Time) []TestResult {
	var results []TestResult
	for _, doc := range docs {
		a, namespace := doc.GetAssertion(), doc.Ref().Namespace
		add := func(r TestResult, code, failure, hint string) {
			r.Assertion = doc.Key()
			if code != "" {
				path := fmt.Sprintf("spec.%s[%d]", r.List, r.Index)
				r.Problem = &spec.Problem{Code: code, Path: path, Message: failure, Hint: hint}
				r.Problem.File, r.Problem.Line, r.Problem.Column = doc.At(path)
			}
			results = append(results, r)
		}
		for i, t := range a.GetTests() {
			r := TestResult{List: "tests", Index: i, Test: t}
			code, failure := "", ""
			if r.Decision, failure = ix.runTest(namespace, t, now); failure != "" {
				code = CodeTestFailed
			}
			add(r, code, failure, strings.Join(r.Decision.Hints, "; "))
		}
		for i, s := range a.GetNever() {
			code, failure := ix.never(namespace, s)
			add(TestResult{List: "never", Index: i}, code, failure, "")
		}
		for i, s := range a.GetAlways() {
			code, failure, notes := ix.always(namespace, s)
			add(TestResult{List: "always", Index: i, Notes: notes}, code, failure, "")
		}
	}
	return results
}

// TestProblems is the problems of what failed; empty if all passed.
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
func (ix *Index) runTest(namespace string, t *ztv1.Test, now time.Time) (d Decision, failure string) {
	decisions, err := ix.ask(namespace, t, now)
	if err != nil {
		return d, err.Error()
	}
	who := cmp.Or(t.GetAs().GetWorkload(), t.GetAs().GetSpiffeId())
	if u := t.GetAs().GetUser(); u != nil {
		who += " for a user of " + u.GetProvider()
	}
	for _, at := range decisions {
		d = at.Decision
		where := ""
		if len(decisions) > 1 {
			where = " at " + at.ref.String()
		}
		if got := verdict(d); got != t.GetWant() {
			return d, fmt.Sprintf("%s by %s gets %s (%s)%s, not %s", t.GetRequest(), who, got, d.Reason, where, t.GetWant())
		}
		if by := t.GetBy(); by != "" {
			want, err := spec.ParseRef(by, namespace)
			if err != nil {
				return d, err.Error()
			}
			if !slices.Contains(d.Grants, want) {
				return d, fmt.Sprintf("%s by %s is allowed by %s%s, not by %s", t.GetRequest(), who, reasons(d), where, want)
			}
		}
	}
	return d, ""
}

func verdict(d Decision) string {
	if d.Allowed {
		return "allow"
	}
	return "deny"
}

func reasons(d Decision) string {
	if len(d.Grants) == 0 {
		return d.Reason
	}
	return listed(texts(d.Grants, spec.Ref.String))
}

// Can is the decision about a request as a test writes it; its want and by do not
// count. What names no namespace is of namespace, and a test that does not say when
// begins at now. Of the workloads of a Service, the first that denies decides. An
// error is a mistake in the words.
func Can(ix *Index, namespace string, t *ztv1.Test, now time.Time) (Decision, error) {
	decisions, err := ix.ask(namespace, t, now)
	if err != nil {
		return Decision{}, err
	}
	for _, d := range decisions {
		if !d.Allowed {
			return d.Decision, nil
		}
	}
	return decisions[0].Decision, nil
}

// located is a decision and where it was made.
type located struct {
	ref spec.Ref
	Decision
}

// ask decides a test wherever its request may be judged: once, or at each workload
// of a Service.
func (ix *Index) ask(namespace string, t *ztv1.Test, now time.Time) ([]located, error) {
	r, err := ix.request(namespace, t, now)
	if err != nil {
		return nil, err
	}
	refs := ix.Resolve(r.Service)
	if refs == nil {
		refs = []spec.Ref{r.Service} // Decide says why
	}
	var out []located
	for _, ref := range refs {
		r.Service = ref
		out = append(out, located{ref, ix.Decide(r)})
	}
	return out, nil
}

// request is what a test asks.
func (ix *Index) request(namespace string, t *ztv1.Test, now time.Time) (Request, error) {
	words, err := spec.ParseRequest(t.GetRequest(), namespace)
	if err != nil {
		return Request{}, fmt.Errorf("request: %w", err)
	}
	r := Request{
		CallerID: t.GetAs().GetSpiffeId(), Service: words.Service, Port: words.Port, TCP: words.TCP,
		Method: words.Method, Path: words.Path, Upgrade: words.Upgrade, Time: now,
	}
	switch name := t.GetAs().GetWorkload(); {
	case (name == "") == (r.CallerID == ""):
		return Request{}, errors.New("caller: it is one workload or one SPIFFE ID")
	case name != "":
		ref, err := spec.ParseRef(name, namespace)
		if err != nil {
			return Request{}, fmt.Errorf("caller: %w", err)
		}
		r.CallerID = ID(ix.trustDomain, ref)
	}
	if at := t.GetAt(); at != nil {
		if !at.IsValid() {
			return Request{}, errors.New("at: it is no time")
		}
		r.Time = at.AsTime()
	}
	if s := t.GetSource(); s != "" {
		if r.Source, err = netip.ParseAddr(s); err != nil {
			return Request{}, fmt.Errorf("source: %q is not an address", s)
		}
	}
	for name, value := range t.GetHeaders() {
		r.Headers = append(r.Headers, Header{name, value})
	}
	slices.SortFunc(r.Headers, func(a, b Header) int { return cmp.Compare(a.Name, b.Name) })
	if u := t.GetAs().GetUser(); u != nil {
		if r.Token, err = ix.token(u); err != nil {
			return Request{}, fmt.Errorf("user: %w", err)
		}
	}
	return r, nil
}

// token is the verified token of a user.
func (ix *Index) token(u *ztv1.User) (Token, error) {
	p, ok := ix.Provider(u.GetProvider())
	if !ok {
		return Token{}, fmt.Errorf("there is no provider %s", u.GetProvider())
	}
	claims := map[string]any{"iss": p.Issuer}
	if u.GetSubject() != "" {
		claims["sub"] = u.GetSubject()
	}
	if u.GetAcr() != "" {
		claims["acr"] = u.GetAcr()
	}
	if len(u.GetAmr()) > 0 {
		claims["amr"] = list(u.GetAmr())
	}
	if at := u.GetAuthTime(); at != nil {
		claims["auth_time"] = float64(at.GetSeconds())
	}
	for _, c := range oneOfs(u.GetClaims()) {
		declared, ok := p.Claims[c.Name]
		if !ok {
			return Token{}, fmt.Errorf("%s does not declare the claim %s", p.Name, c.Name)
		}
		value, ok := valueOf(declared.Kind, c.Values)
		if !ok {
			return Token{}, fmt.Errorf("the claim %s is not one %s", c.Name, declared.Kind)
		}
		if !put(claims, declared.Path, value) {
			return Token{}, fmt.Errorf("the claim %s is in another one", c.Name)
		}
	}
	return Token{State: TokenValid, Provider: p.Name, Claims: claims}, nil
}

// valueOf is the values of a claim as encoding/json decodes it.
func valueOf(kind ClaimKind, values []string) (any, bool) {
	switch {
	case kind == ListClaim:
		return list(values), true
	case len(values) != 1:
		return nil, false
	case kind == StringClaim:
		return values[0], true
	}
	return values[0] == "true", kind == BooleanClaim && (values[0] == "true" || values[0] == "false")
}

// list is strings as encoding/json decodes a list of them.
func list(values []string) []any {
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}

// put puts a value where path leads from the outside in.
func put(claims map[string]any, path []string, value any) bool {
	for _, name := range path[:len(path)-1] {
		if claims[name] == nil {
			claims[name] = map[string]any{}
		}
		inner, ok := claims[name].(map[string]any)
		if !ok {
			return false
		}
		claims = inner
	}
	last := path[len(path)-1]
	if _, taken := claims[last]; taken {
		return false
	}
	claims[last] = value
	return true
}
