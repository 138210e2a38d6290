package judge

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/xds"
)

// anyReason stands for every reason of the same verdict: where a connection ends
// without a word.
const anyReason = "*"

// Difference says how the answer to a question differs from what the evaluator
// says; empty if it does not. The evaluator is asked about the moments before and
// after, either of which may be that at which the proxy judged.
func (h *Hearing) Difference(q Question, a Answer) string {
	r := q.Request.Request
	r.Time = a.Before
	d := h.Index.Decide(r)
	diff := h.differs(q, a, d)
	if diff == "" {
		return ""
	}
	r.Time = a.After
	if later := h.Index.Decide(r); h.differs(q, a, later) == "" {
		return ""
	}
	return diff
}

func (h *Hearing) differs(q Question, a Answer, d policy.Decision) string {
	allowed, reasons := h.said(q, a)
	if !agree(d, allowed, reasons) {
		return fmt.Sprintf("the evaluator says allow=%v because %s (grants %v, blocks %v), Envoy allow=%v because %q (%+v)",
			d.Allowed, d.Reason, d.Grants, d.Blocks, allowed, reasons, a)
	}
	if asks := d.Asks != (spec.Ref{}); asks != a.Asked {
		return fmt.Sprintf("the external authorizer was asked: %v, but the evaluator says %v (%s)", a.Asked, asks, d.Reason)
	}
	if a.Received != nil {
		return h.received(q, a)
	}
	return ""
}

// agree tells whether one of the reasons of a proxy is one of the evaluator's.
func agree(d policy.Decision, allowed bool, reasons []string) bool {
	return d.Allowed == allowed && slices.ContainsFunc(reasons, func(reason string) bool {
		name, ref, _ := strings.Cut(reason, ":")
		is := func(r spec.Ref) bool { return ref == r.String() }
		switch {
		case reason == anyReason, reason == d.Reason:
			return true
		case name == "grant":
			return slices.ContainsFunc(d.Grants, is)
		case name == "block" && slices.ContainsFunc(d.Blocks, is):
			return true
		case name == "block", name == policy.ReasonToken:
			// The guard of paths stands behind Blocks and tokens: of several faults the
			// proxy names the first that it comes to.
			return d.Reason == policy.ReasonForm
		}
		return false
	})
}

// said reads a verdict from an answer: the reasons that it may stand for, none if
// it is none that a proxy should give.
func (h *Hearing) said(q Question, a Answer) (allowed bool, reasons []string) {
	details := a.Reason
	if details == "" {
		details = a.Line.Details
	}
	matched, _ := strings.CutPrefix(details, "rbac_access_denied_matched_policy[")
	matched = strings.TrimSuffix(matched, "]")
	switch {
	case q.TCP && a.Status == 200:
		return true, []string{anyReason} // a connection bears no name
	case a.Received != nil:
		name, _, _ := strings.Cut(a.Line.Matched, "#") // the second rule of a grant
		return true, []string{name}
	case a.Status == 200 && h.external(q.Service) == nil:
		return true, []string{policy.ReasonHealth}
	case a.Refused && !h.serverFirst(q):
		return false, []string{policy.ReasonTransport}
	case q.TCP:
		return false, []string{anyReason}
	case a.Reset, a.Status == 0 && a.Line.Flags == "DPE", a.Status == 400, a.Status == 404, a.Status == 403 && details == "upgrade_failed":
		return false, h.malformed(q)
	case a.Status == 0:
		return false, h.silent(q)
	case strings.HasPrefix(details, "jwt_authn_access_denied"):
		return false, []string{policy.ReasonToken}
	case a.Status == 403 && strings.HasPrefix(details, "ext_authz_denied"):
		return false, []string{"external:" + h.workload.String()}
	case a.Status == 403 && details == xds.ReasonNoGrant:
		// There is no route to such a host, and nothing more is asked: who may call the
		// service, or is blocked, may have named another one.
		return false, []string{anyReason}
	case a.Status == 403 && matched == xds.ActionDefault && q.Plaintext:
		return false, []string{policy.ReasonTransport} // an Exception that has ended
	case a.Status == 403 && matched == xds.ActionDefault:
		return false, []string{policy.ReasonDefault}
	case a.Status == 403 && (matched == xds.ActionForm || strings.HasPrefix(matched, "block:")):
		return false, []string{matched}
	}
	return false, nil
}

func (h *Hearing) serverFirst(q Question) bool {
	p, _ := h.port(q.Request.Request)
	return p.ServerFirst
}

// malformed is refused before anything is judged, be it of whom nobody knows.
func (h *Hearing) malformed(q Question) []string {
	if q.Plaintext {
		return []string{policy.ReasonForm, policy.ReasonTransport}
	}
	return []string{policy.ReasonForm}
}

// silent is a connection that ends without an answer: of a caller whom the gate
// does not hold, or of one without TLS whom no Exception is for.
func (h *Hearing) silent(q Question) []string {
	p, _ := h.port(q.Request.Request)
	if q.TCP || q.Plaintext || !slices.Contains(h.Index.Callers(q.Service, p.Name), q.CallerID) {
		return []string{anyReason}
	}
	return nil
}

// received holds what reached the application to what was judged; empty if it is
// the same and nothing in it is the client's that only proxies may write.
func (h *Hearing) received(q Question, a Answer) string {
	got := a.Received
	normalize := policy.NormalizePath
	if p, _ := h.port(q.Request.Request); p.EncodedPaths {
		normalize = policy.NormalizeEncodedPath
	}
	path, _ := normalize(q.Path)
	whole := path
	if _, query, has := strings.Cut(q.Path, "?"); has {
		whole += "?" + query
	}
	switch {
	case got.Method != q.Method || got.Path != whole:
		return fmt.Sprintf("judged as %s %s, but the application got %s %s", q.Method, whole, got.Method, got.Path)
	case h.external(q.Service) != nil:
		if id := got.Header("x-forwarded-client-cert"); id != nil {
			return fmt.Sprintf("a server outside the mesh was told of %q", id)
		}
	case a.Line.Path != path:
		return fmt.Sprintf("judged as %s, but logged as %s", path, a.Line.Path)
	case !isCaller(got.Header("x-forwarded-client-cert"), q.CallerID) || strings.Trim(a.Line.Caller, "-") != q.CallerID:
		return fmt.Sprintf("the application was told of %q, the log of %q", got.Header("x-forwarded-client-cert"), a.Line.Caller)
	case a.Reason != "":
		return fmt.Sprintf("the application gave the reason %q", a.Reason)
	}
	for _, name := range []string{"x-original-url", "x-http-method-override", "x-envoy-original-path"} {
		if value := got.Header(name); value != nil {
			return fmt.Sprintf("the application got %s: %s", name, value)
		}
	}
	for _, name := range h.Index.Strip() {
		// Outside of the mesh it is the calling application's own header.
		if h.external(q.Service) == nil && slices.Contains(got.Header(name), forged) {
			return fmt.Sprintf("the application got %s of the client", name)
		}
	}
	return ""
}

// isCaller tells whether the identity header names the caller, and nobody else.
func isCaller(header []string, id string) bool {
	if id == "" {
		return header == nil
	}
	return len(header) == 1 && strings.HasSuffix(header[0], ";URI="+id) && strings.Count(header[0], "URI=") == 1 && !strings.Contains(header[0], ",")
}
