package judge

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	"github.com/ztmesh/ztmesh/xds"
)

// Spec is one spec as it holds now: without the Blocks and Exceptions that have
// ended.
type Spec struct {
	Docs  []*spec.Document
	Index *policy.Index
}

// NewSpec reads documents that have passed spec.Check.
func NewSpec(trustDomain string, docs []*spec.Document) *Spec {
	ix, _ := policy.New(trustDomain, docs).Lift(time.Now())
	return &Spec{Docs: docs, Index: ix}
}

// The protocols in which a question is asked.
const (
	HTTP1 = "HTTP/1.1"
	HTTP2 = "HTTP/2"
	TCP   = "tcp"
)

// Question is a request and how it is sent. Its time is when it is sent.
type Question struct {
	reqgen.Request
	Protocol string
}

func (q Question) String() string {
	return fmt.Sprintf("%s %+v target %q authorization %q", q.Protocol, q.Request.Request, q.Target, q.Authorization)
}

// Judge is the workload whose proxy judges a request: the callee, or, of an
// external service, the caller.
func (s *Spec) Judge(r policy.Request) (spec.Ref, bool) {
	if d := s.external(r.Service); d != nil {
		if r.TCP != (d.GetService().GetExternal().GetProtocol() == policy.TCP) || r.Port != "" && r.Port != spec.ExternalPort {
			return spec.Ref{}, false
		}
		namespace, name, ok := strings.Cut(strings.TrimPrefix(r.CallerID, "spiffe://"+s.Index.TrustDomain()+"/ns/"), "/sa/")
		ref := spec.Ref{Namespace: namespace, Name: name}
		w, declared := s.Index.Workload(ref)
		if !ok || !declared || w.ID != r.CallerID {
			return spec.Ref{}, false
		}
		// Without a local port for it a tcp service cannot be called.
		return ref, !r.TCP || slices.ContainsFunc(w.TCPCalls, func(c policy.TCPCall) bool { return c.Service == r.Service })
	}
	_, ok := s.port(r)
	return r.Service, ok
}

// external is the external service of that name; nil if there is none.
func (s *Spec) external(ref spec.Ref) *spec.Document {
	i := slices.IndexFunc(s.Docs, func(d *spec.Document) bool { return d.GetService().GetExternal() != nil && d.Ref() == ref })
	if i < 0 {
		return nil
	}
	return s.Docs[i]
}

// port is the one that a request is for, and false if no proxy judges such a
// request: there is no such port, or it is of another kind.
func (s *Spec) port(r policy.Request) (policy.Port, bool) {
	w, ok := s.Index.Workload(r.Service)
	if !ok {
		return policy.Port{}, false
	}
	for _, p := range w.Ports {
		if p.Name == r.Port || r.Port == "" && len(w.Ports) == 1 {
			return p, r.TCP == (p.Protocol == policy.TCP)
		}
	}
	return policy.Port{}, false
}

// methods are those that Envoy's parser of HTTP/1.1 knows.
var methods = []string{"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT"}

// Questions are the ways in which a request can be asked here: none if no proxy
// judges it, or if it comes from where no test can call from.
func (s *Spec) Questions(r reqgen.Request) []Question {
	if _, ok := s.Judge(r.Request); !ok {
		return nil
	}
	if r.Source.IsValid() && (!r.Source.Is4() || !r.Source.IsLoopback()) {
		return nil
	}
	if r.TCP {
		return []Question{{r, TCP}}
	}
	// The health check answers what has ended, and so never an upgrade.
	if path, _ := policy.NormalizeEncodedPath(r.Path); r.Upgrade != "" && path == policy.HealthPath {
		return nil
	}
	var out []Question
	// An extended CONNECT has no method of its own, and CONNECT of HTTP/2 no path.
	if r.Target == "" && r.Method != "CONNECT" && (r.Upgrade == "" || r.Method == "GET") {
		out = append(out, Question{r, HTTP2})
	}
	// Envoy takes no notice of an upgrade to h2c in HTTP/1.1: it is none.
	if slices.Contains(methods, r.Method) && !strings.EqualFold(r.Upgrade, "h2c") {
		out = append(out, Question{r, HTTP1})
	}
	return out
}

// Slow tells whether Envoy ends the connection, a second later and without a word,
// for what HTTP/2 calls malformed (RFC 9113, section 8.3.1; RFC 8441, section 4).
func (s *Spec) Slow(q Question) bool {
	p, _ := s.port(q.Request.Request)
	takes := q.Upgrade == "" || p.WebSocket && strings.EqualFold(q.Upgrade, "websocket")
	return q.Protocol == HTTP2 && (!takes || !strings.HasPrefix(q.Path, "/") || strings.ContainsAny(q.Authority, "@"))
}

// config is what a workload's proxies are told, with everything that stands behind
// them led to the court's own.
func (s *Spec) config(c *Court, ref spec.Ref) (*xds.Config, error) {
	conf, err := compile.Workload(s.Index, nil, ref)
	if err != nil {
		return nil, err
	}
	for i := range conf.Inbound {
		conf.Inbound[i].Target = c.app.listener.Addr().String()
		if conf.Inbound[i].ServerFirst {
			conf.Inbound[i].Target = c.app.greeter.Addr().String()
		}
	}
	for i := range conf.Providers {
		if p := &conf.Providers[i]; p.Inline != noKeys {
			p.Inline, p.URI, p.CA = specgen.JWKS(p.Name), "", ""
		}
	}
	if a := conf.Authorizer; a != nil {
		a.Target, a.Timeout = c.authorizer.address, authorizerTimeout
	}
	for i := range conf.Egress {
		conf.Egress[i].CA = ""
	}
	return conf, nil
}

const (
	noKeys            = `{"keys":[]}`
	authorizerTimeout = 10 * time.Second // a slow test is no denial
)

// endpoints lead every external host to the application.
func (c *Court) endpoints(conf *xds.Config) {
	at := c.app.listener.Addr().String()
	host, port, _ := strings.Cut(at, ":")
	var number uint32
	_, _ = fmt.Sscan(port, &number)
	clusters := map[string]*xds.Assignment{}
	for _, e := range conf.Egress {
		for _, h := range e.Hosts {
			name := xds.ExternalCluster(e.Service, h)
			clusters[name] = xds.Assign(name, []xds.Endpoint{{Address: host, Port: number}})
		}
	}
	c.fleet.SetEndpoints(clusters)
}

// Scripted is Questions of a script's line; none of one that names a time.
func (s *Spec) Scripted(l script.Line) []Question {
	if l.Timed {
		return nil
	}
	r := reqgen.Request{Request: l.Request, Authorization: s.scripted(l)}
	MoveTo(&r, time.Now())
	return s.Questions(r)
}

// MoveTo makes a request one of another time: its user has logged in as long ago.
func MoveTo(r *reqgen.Request, now time.Time) {
	if at, ok := r.Token.Claims["auth_time"].(float64); ok && !r.Time.IsZero() {
		r.Token.Claims = maps.Clone(r.Token.Claims)
		r.Token.Claims["auth_time"] = at + float64(now.Unix()-r.Time.Unix())
	}
	r.Time = now
}

// YAML is the documents, for people.
func (s *Spec) YAML() string {
	var out []string
	for _, d := range s.Docs {
		out = append(out, spec.YAML(d))
	}
	return strings.Join(out, "---\n")
}
