package rbactest_test

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/rbactest"
	"github.com/ztmesh/ztmesh/xds"
)

// judges are the proxies of a spec, made when they are first asked.
type judges struct {
	ix      *policy.Index
	issuers map[string]string // by provider
	proxies map[spec.Ref]*rbactest.Proxy
}

func newJudges(trustDomain string, docs []*spec.Document) *judges {
	j := &judges{ix: policy.New(trustDomain, docs), issuers: map[string]string{}, proxies: map[spec.Ref]*rbactest.Proxy{}}
	for _, d := range docs {
		if p := d.GetIdentityProvider(); p != nil {
			j.issuers[d.GetMetadata().GetName()] = p.GetIssuer()
		}
	}
	return j
}

// proxy is what the proxies of a workload are told.
func (j *judges) proxy(ref spec.Ref) (*rbactest.Proxy, error) {
	if p := j.proxies[ref]; p != nil {
		return p, nil
	}
	c, err := compile.Workload(j.ix, ref)
	if err != nil {
		return nil, err
	}
	r, err := xds.Build(c, xds.Instance{ID: "i", Address: "127.0.0.1", Egress: "127.0.0.1", Secrets: xds.FromADS})
	if err != nil {
		return nil, err
	}
	p, err := rbactest.Load(r, xds.Bundle(map[string][]byte{j.ix.TrustDomain(): []byte("roots")}))
	if err != nil {
		return nil, err
	}
	j.proxies[ref] = p
	return p, nil
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

// ask sends a request of the evaluator's form to the proxy that judges it.
func (j *judges) ask(r policy.Request) (v rbactest.Verdict, asked bool, err error) {
	p, w, ok := j.port(r)
	if !ok {
		return v, false, nil
	}
	proxy, err := j.proxy(r.Service)
	if err != nil {
		return v, true, err
	}
	q := j.request(r)
	if q.Authority == "" && !r.TCP {
		q.Authority = w.Hosts(p.Name)[0]
	}
	v, err = proxy.Inbound(p.Number, q)
	return v, true, err
}

// goodToken stands for the compact form of the token that a request bears.
const goodToken = "good.token.x"

func (j *judges) request(r policy.Request) rbactest.Request {
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
	switch r.Token.State {
	case policy.TokenInvalid:
		q.Headers = append(q.Headers, rbactest.Header{Name: "authorization", Value: "Bearer bad.token.x"})
	case policy.TokenValid:
		q.Headers = append(q.Headers, rbactest.Header{Name: "authorization", Value: "Bearer " + goodToken})
	}
	q.Tokens = func(compact string) (rbactest.Token, bool) {
		return rbactest.Token{Issuer: j.issuers[r.Token.Provider], Claims: r.Token.Claims}, compact == goodToken
	}
	return q
}

// disagree says how a proxy's verdict differs from the evaluator's; empty if it
// does not.
func disagree(r policy.Request, d policy.Decision, v rbactest.Verdict) string {
	reasons := reasonsOf(r, v)
	if d.Allowed == v.Allowed {
		for _, reason := range reasons {
			if reason == d.Reason || reason == "" && !d.Allowed {
				return ""
			}
			for _, g := range d.Grants {
				if d.Allowed && (reason == "grant:"+g.String() || reason == "gate") {
					return ""
				}
			}
			if strings.HasPrefix(d.Reason, "external:") && reason == "external" {
				return ""
			}
		}
	}
	return fmt.Sprintf("the evaluator says allow=%v because %s (grants %v), the proxy allow=%v because %q (%+v)\n%+v", d.Allowed, d.Reason, d.Grants, v.Allowed, reasons, v, r)
}

// reasonsOf is the reasons of the evaluator that a verdict may stand for; an
// empty one is any denial.
func reasonsOf(r policy.Request, v rbactest.Verdict) []string {
	switch {
	case v.Filter == rbactest.StageTLS:
		return []string{policy.ReasonTransport}
	case v.Filter == rbactest.StageRequest:
		return []string{policy.ReasonForm}
	case v.Filter == rbactest.StageRoute && !v.Allowed && v.Status == 404:
		return []string{policy.ReasonForm}
	case !v.Allowed && v.Status == 0:
		return []string{""} // the connection ends before its first request is read
	case v.Policy == "default-deny":
		return []string{policy.ReasonDefault}
	}
	return []string{v.Policy}
}
