// Package e2e_test runs whole meshes: real servers, real Envoys, raw requests.
package e2e_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// render writes documents as YAML, with the ports led to applications of this
// test.
func render(docs []*spec.Document, httpApp, tcpApp string) string {
	var out []string
	for _, d := range docs {
		for _, p := range d.GetWorkload().GetServes() {
			p.Target = httpApp
			if p.Protocol == policy.TCP {
				p.Target = tcpApp
			}
		}
		out = append(out, spec.YAML(d))
	}
	return strings.Join(out, "---\n")
}

// judges are the Envoys of the services of one spec, and what they have been
// asked.
type judges struct {
	t     *testing.T
	m     *mesh.Mesh
	ix    *policy.Index
	envoy map[spec.Ref]*mesh.Instance
	certs map[string]*tls.Certificate // by caller
	cases []*verdict
}

// verdict is what an Envoy has said about one request, and what it should say.
type verdict struct {
	what    string // for messages: all that is needed to ask again
	request policy.Request
	accepts func(allowed bool, reason string) bool
	want    string

	judge  *mesh.Instance
	gated  bool // no grant at all admits the caller to the port
	send   func() mesh.Answer
	answer mesh.Answer
}

func newJudges(t *testing.T, m *mesh.Mesh, ix *policy.Index) *judges {
	return &judges{t: t, m: m, ix: ix, envoy: map[spec.Ref]*mesh.Instance{}, certs: map[string]*tls.Certificate{}}
}

// port is the one that a request is for, and false if no proxy judges such a
// request: there is no such port, or it is of another kind.
func port(ix *policy.Index, r policy.Request) (policy.Port, bool) {
	w, ok := ix.Workload(r.Service)
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

func (j *judges) of(service spec.Ref) *mesh.Instance {
	if j.envoy[service] == nil {
		j.envoy[service] = j.m.Run(service.String()).Acked()
	}
	return j.envoy[service]
}

func (j *judges) cert(caller string) *tls.Certificate {
	if caller != "" && j.certs[caller] == nil {
		j.certs[caller] = j.m.Certificate(caller)
	}
	return j.certs[caller]
}

// ask notes a request that settle sends, by HTTP/1.1 and by HTTP/2, or a tcp
// connection. target, if any, is what stands for the path in HTTP/1.1.
func (j *judges) ask(v verdict, target string) {
	j.t.Helper()
	r := v.request
	p, _ := port(j.ix, r)
	v.judge = j.of(r.Service)
	v.gated = !slices.Contains(j.ix.Callers(r.Service, p.Name), r.CallerID)
	as := j.cert(r.CallerID)
	note := func(protocol string, send func() mesh.Answer) {
		v := v
		v.what, v.send = v.what+" by "+protocol, send
		j.cases = append(j.cases, &v)
	}
	if r.TCP {
		note("tcp", func() mesh.Answer { return echo(j.t, v.judge, p.Number, as) })
		return
	}
	host := r.Authority
	if host == "" {
		w, _ := j.ix.Workload(r.Service)
		host = w.Hosts(p.Name)[0]
	}
	if target == "" {
		target = r.Path
	}
	if r.Method == strings.ToUpper(r.Method) { // Envoy's parser of HTTP/1.1 knows no other
		note("HTTP/1.1", func() mesh.Answer { return v.judge.Raw(p.Number, as, mesh.Request(r.Method, host, target)) })
	}
	if r.Method != "CONNECT" { // which has no path in HTTP/2
		note("HTTP/2", func() mesh.Answer { return v.judge.RawHTTP2(p.Number, as, r.Method, host, r.Path) })
	}
}

// atOnce is how many requests are under way: Envoy takes a second to close what
// it refuses as malformed.
const atOnce = 8

func (j *judges) send() {
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, v := range j.cases {
		g.Go(func() error {
			v.answer = v.send()
			return nil
		})
	}
	_ = g.Wait() // nothing fails but verdicts
}

// echo says whether a tcp port lets bytes through: 200 if so.
func echo(t *testing.T, in *mesh.Instance, port uint32, as *tls.Certificate) mesh.Answer {
	t.Helper()
	c, err := in.Dial(port, as)
	if err != nil {
		return in.Ended(err)
	}
	defer c.Close()
	sent := []byte("x\n")
	if _, err := c.Write(sent); err != nil {
		return in.Ended(err)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return in.Ended(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%s sent back %q", in.Workload, got)
	}
	return mesh.Answer{Status: 200}
}

// logLine is what these tests read of an access log.
type logLine struct{ Path, Matched, Caller, Flags, Peer string }

// settle sends all requests, stops the Envoys, which then write out their logs,
// and holds every verdict to what it should be. It returns how many there were.
func (j *judges) settle() int {
	j.t.Helper()
	j.send()
	logs := map[*mesh.Instance]map[string]logLine{}
	for _, in := range j.envoy {
		check(j.t, in.Stop(mesh.Patience))
		logs[in] = map[string]logLine{}
		for line := range strings.Lines(in.Log()) {
			var l logLine
			if strings.HasPrefix(line, "{") {
				check(j.t, json.Unmarshal([]byte(line), &l))
				logs[in][l.Peer] = l
			}
		}
	}
	for _, v := range j.cases {
		line := logs[v.judge][v.answer.From]
		allowed, reasons := v.said(line)
		agreed := false
		for _, reason := range reasons {
			agreed = agreed || v.accepts(allowed, reason)
		}
		if !agreed {
			j.t.Errorf("%s: want %s; Envoy says allow=%v because %q (%+v, log %+v)", v.what, v.want, allowed, reasons, v.answer, line)
		}
		if allowed && line.Matched != "" && v.request.Method != "HEAD" {
			j.received(v, line)
		}
	}
	return len(j.cases)
}

// received holds what reached the application to what was judged.
func (j *judges) received(v *verdict, line logLine) {
	j.t.Helper()
	words := strings.Fields(v.answer.RequestLine())
	path, _ := policy.NormalizePath(v.request.Path)
	if len(words) != 3 || words[0] != v.request.Method || strings.SplitN(words[1], "?", 2)[0] != path || line.Path != path {
		j.t.Errorf("%s: judged as %s, logged as %q, and the application got %q", v.what, path, line.Path, words)
	}
	if v.answer.Caller() != v.request.CallerID || line.Caller != v.request.CallerID {
		j.t.Errorf("%s: the application was told %q, the log %q", v.what, v.answer.Caller(), line.Caller)
	}
}

// said reads a verdict from what came back: the reasons that it may stand for.
func (v *verdict) said(line logLine) (allowed bool, reasons []string) {
	a := v.answer
	switch {
	case a.Refused:
		return false, []string{policy.ReasonTransport}
	case a.Status == 400, a.Status == 404, a.Status == 0 && line.Flags == "DPE":
		return false, []string{policy.ReasonForm}
	case a.Status == 0 && v.gated:
		// The gate reads no request: it has one answer to all that this caller says.
		return false, []string{policy.ReasonDefault, policy.ReasonTransport, policy.ReasonForm}
	case a.Status == 403 && a.Reason == "rbac_access_denied_matched_policy[form]":
		return false, []string{policy.ReasonForm}
	case a.Status == 403 && a.Reason == "rbac_access_denied_matched_policy[default-deny]":
		return false, []string{policy.ReasonDefault}
	case a.Status == 200 && v.request.TCP:
		// A gate names no grant: any of those that match.
		return true, strings.Split(v.want, ", ")
	case a.Status == 200 && line == (logLine{}) && a.Body == "":
		return true, []string{policy.ReasonHealth}
	case a.Status == 200:
		return true, []string{line.Matched}
	}
	return false, nil
}
