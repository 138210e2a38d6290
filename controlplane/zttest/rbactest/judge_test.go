package rbactest_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/rbactest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// judges are the proxies of a spec, made when they are first asked.
type judges struct {
	ix       *policy.Index
	would    *policy.Index               // of the same spec with what is in shadow enforced; nil: nothing is
	issuers  map[string]string           // by provider
	external map[spec.Ref]*ztv1.External // the services outside the mesh
	callers  map[string]spec.Ref         // the workloads by their identities
	proxies  map[string]*rbactest.Proxy
}

func newJudges(trustDomain string, docs []*spec.Document) *judges {
	j := &judges{
		ix: policy.New(trustDomain, docs), issuers: map[string]string{}, external: map[spec.Ref]*ztv1.External{},
		callers: map[string]spec.Ref{}, proxies: map[string]*rbactest.Proxy{},
	}
	shadow := false
	for _, d := range docs {
		switch {
		case d.GetIdentityProvider() != nil:
			j.issuers[d.GetMetadata().GetName()] = d.GetIdentityProvider().GetIssuer()
		case d.GetService().GetExternal() != nil:
			j.external[d.Ref()] = d.GetService().GetExternal()
		case d.GetWorkload() != nil:
			j.callers[policy.ID(trustDomain, d.Ref())] = d.Ref()
		case d.GetGrant().GetMode() == "shadow":
			shadow = true
		}
	}
	if shadow {
		j.would = policy.New(trustDomain, enforced(docs))
	}
	return j
}

// enforced is the spec with its grants in shadow enforced.
func enforced(docs []*spec.Document) []*spec.Document {
	out := slices.Clone(docs)
	for i, d := range out {
		if d.GetGrant().GetMode() == "shadow" {
			out[i] = &spec.Document{Document: proto.CloneOf(d.Document)}
			out[i].GetGrant().Mode = "enforce"
		}
	}
	return out
}

// decide asks the evaluator about the spec as it holds at the request's time.
func (j *judges) decide(r policy.Request) policy.Decision {
	ix, _ := j.ix.Lift(r.Time)
	return ix.Decide(r)
}

// proxy is what the proxies of a workload are told at a time: without the Blocks
// and Exceptions that have ended.
func (j *judges) proxy(ref spec.Ref, now time.Time) (*rbactest.Proxy, error) {
	_, lifted := j.ix.Lift(now)
	key := fmt.Sprint(ref, lifted)
	if p := j.proxies[key]; p != nil {
		return p, nil
	}
	r, secrets, err := j.told(ref, now)
	if err != nil {
		return nil, err
	}
	p, err := rbactest.Load(r, secrets...)
	if err != nil {
		return nil, err
	}
	j.proxies[key] = p
	return p, nil
}

func (j *judges) told(ref spec.Ref, now time.Time) (r *xds.Resources, secrets []*xds.Resource, err error) {
	ix, _ := j.ix.Lift(now)
	c, err := compile.Workload(ix, nil, ref)
	if err != nil {
		return nil, nil, err
	}
	if r, err = xds.Build(c, xds.Instance{ID: "i", Address: "127.0.0.1", Egress: "127.0.0.1", Secrets: xds.FromADS}); err != nil {
		return nil, nil, err
	}
	domains := map[string][]byte{}
	for _, td := range slices.Concat([]string{c.TrustDomain}, c.Aliases, c.Federated) {
		domains[td] = []byte("roots")
	}
	secrets = []*xds.Resource{xds.Bundle(domains)}
	for _, in := range c.Inbound {
		if in.ServerFirst {
			secrets = append(secrets, xds.Peers(c, in.Name, domains))
		}
	}
	return r, secrets, nil
}

// port is the one that a request is for; false if no proxy judges such a request:
// there is no such port, or it is of another kind.
func (j *judges) port(r policy.Request) (policy.Port, *policy.Workload, bool) {
	w, ok := j.ix.Workload(r.Service)
	if !ok {
		return policy.Port{}, nil, false
	}
	for _, p := range w.Ports {
		if p.Name == r.Port || r.Port == "" && len(w.Ports) == 1 {
			return p, w, r.TCP == (p.Protocol == policy.TCP)
		}
	}
	return policy.Port{}, nil, false
}

// ask sends a request of the evaluator's form to the proxy that judges it: the
// callee's, or of a call that leaves the mesh the caller's.
func (j *judges) ask(r reqgen.Request) (v rbactest.Verdict, asked bool, err error) {
	judge := r.Service
	if e := j.external[r.Service]; e != nil {
		caller, ok := j.callers[r.CallerID]
		if !ok || r.TCP || e.GetProtocol() == policy.TCP {
			return v, false, nil // no proxy, or one that judges nothing of it
		}
		judge = caller
	} else if _, _, ok := j.port(r.Request); !ok {
		return v, false, nil
	}
	proxy, err := j.proxy(judge, r.Time)
	if err != nil {
		return v, true, err
	}
	v, err = j.askProxy(proxy, r)
	return v, true, err
}

// askProxy is for a request that the proxy judges.
func (j *judges) askProxy(proxy *rbactest.Proxy, r reqgen.Request) (rbactest.Verdict, error) {
	q := j.request(r)
	if e := j.external[r.Service]; e != nil {
		q.TLS, q.Peer = false, ""
		if q.Authority == "" {
			q.Authority = e.GetHosts()[0]
		}
		return proxy.Outbound(xds.EgressPort, q)
	}
	p, w, _ := j.port(r.Request)
	if q.Authority == "" && !r.TCP {
		q.Authority = w.Hosts(p.Name)[0]
	}
	return proxy.Inbound(p.Number, q)
}

func (j *judges) request(r reqgen.Request) rbactest.Request {
	q := rbactest.Request{
		Peer: r.CallerID, TLS: !r.Plaintext, Source: r.Source, Time: r.Time,
		Method: r.Method, Path: r.Path, Authority: r.Authority, Upgrade: r.Upgrade, Refused: r.Denied,
	}
	if !q.Source.IsValid() {
		q.Source = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	for _, h := range r.Headers {
		q.Headers = append(q.Headers, rbactest.Header(h))
	}
	for _, line := range r.Authorization {
		q.Headers = append(q.Headers, rbactest.Header{Name: "authorization", Value: line})
	}
	q.Tokens = func(compact string) (rbactest.Token, bool) {
		return rbactest.Token{Issuer: j.issuers[r.Token.Provider], Claims: r.Token.Claims}, compact == reqgen.GoodToken
	}
	return q
}

// disagreeInShadow says how what a proxy would do differs from what the evaluator
// would say; empty if it does not, or if the shadow policy was not asked.
func (j *judges) disagreeInShadow(r policy.Request, v rbactest.Verdict) string {
	judged := strings.HasPrefix(v.Policy, "grant:") || v.Policy == "default-deny" && v.Status == 403 // not by a gate
	if j.would == nil || !judged || r.Plaintext || r.TCP {
		return ""
	}
	ix, _ := j.would.Lift(r.Time)
	d := ix.Decide(r)
	name := cmp.Or(v.Shadow, v.Policy) // without a shadow policy it says the same
	switch {
	case d.Reason == policy.ReasonDefault && name == "default-deny":
		return ""
	case slices.ContainsFunc(d.Grants, func(g spec.Ref) bool { return name == "grant:"+g.String() }):
		return ""
	case d.Reason != policy.ReasonDefault && d.Grants == nil:
		return ""
	}
	return fmt.Sprintf("in shadow the evaluator says allow=%v because %s (grants %v), the proxy %q\n%+v", d.Allowed, d.Reason, d.Grants, name, r)
}

// disagree says how a proxy's verdict differs from the evaluator's; empty if it
// does not.
func disagree(r policy.Request, d policy.Decision, v rbactest.Verdict) string {
	reasons := reasonsOf(r, v)
	if d.Allowed == v.Allowed {
		for _, reason := range reasons {
			if reason == d.Reason || reason == "" && !d.Allowed || reason == "external" && strings.HasPrefix(d.Reason, "external:") {
				return ""
			}
			// The guard of paths stands behind Blocks and tokens: of several faults the
			// proxy names the first that it comes to.
			if d.Reason == policy.ReasonForm && (strings.HasPrefix(reason, "block:") || reason == "token") {
				return ""
			}
			if d.Allowed && slices.ContainsFunc(d.Grants, func(g spec.Ref) bool { return reason == "grant:"+g.String() }) {
				return ""
			}
			if !d.Allowed && strings.HasPrefix(reason, "block:") && slices.ContainsFunc(d.Blocks, func(b spec.Ref) bool { return reason == "block:"+b.String() }) {
				return ""
			}
		}
	}
	return fmt.Sprintf("the evaluator says allow=%v because %s (grants %v), the proxy allow=%v because %q (%+v)\n%+v", d.Allowed, d.Reason, d.Grants, v.Allowed, reasons, v, r)
}

// reasonsOf is the reasons of the evaluator that a verdict may stand for; an
// empty one is any denial.
func reasonsOf(r policy.Request, v rbactest.Verdict) []string {
	policyName, _, _ := strings.Cut(v.Policy, "#") // the second rule of a grant
	switch {
	case v.Filter == rbactest.StageTLS && r.TCP:
		return []string{""} // where the server speaks first all is judged there
	case v.Filter == rbactest.StageTLS:
		return []string{policy.ReasonTransport}
	case v.Filter == rbactest.StageRequest:
		// Before anything is judged; who has no identity has not come in at all.
		if r.Plaintext {
			return []string{policy.ReasonForm, policy.ReasonTransport}
		}
		return []string{policy.ReasonForm}
	case v.Filter == rbactest.StageRoute && !v.Allowed && v.Status == 404:
		return []string{policy.ReasonForm}
	case !v.Allowed && v.Status == 0:
		return []string{""} // the connection ends before its first request is read
	case v.Policy == "default-deny" && r.Plaintext:
		return []string{policy.ReasonTransport} // an Exception that has ended
	case v.Policy == "default-deny":
		return []string{policy.ReasonDefault}
	case v.Policy == "" && v.Status == 403:
		return []string{"unnamed"} // every filter that denies says why
	case v.Policy == xds.ReasonNoGrant: // the proxy does not know of a host that it may not call
		return []string{policy.ReasonDefault, policy.ReasonForm}
	}
	return []string{policyName}
}
