package policy

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Plaintext is an Exception by which peers connect to a port without TLS.
type Plaintext struct {
	Exception spec.Ref
	CIDRs     []netip.Prefix // sorted
	Until     time.Time      // half-open
}

// exception is an Exception document.
type exception struct {
	ref     spec.Ref
	finding string
	subject spec.Ref
	port    string // of a plaintext port
	peers   []netip.Prefix
	until   time.Time
}

// newException reads an Exception; nil for one that excepts nothing, as
// spec.Check would refuse it.
func newException(ref spec.Ref, d *ztv1.Exception) *exception {
	subject, port, err := spec.ParseServicePort(d.GetSubject(), ref.Namespace)
	e := &exception{ref: ref, finding: d.GetFinding(), subject: subject, port: port}
	if err != nil || subject.Namespace != ref.Namespace || d.GetUntil() == nil || !d.GetUntil().IsValid() ||
		(e.finding == spec.FindingPlaintext) != (port != "") {
		return nil
	}
	e.until = d.GetUntil().AsTime()
	for _, s := range d.GetPeers() {
		if p, err := netip.ParsePrefix(s); err == nil && p == p.Masked() && !p.Addr().Is4In6() {
			e.peers = append(e.peers, p)
		}
	}
	slices.SortFunc(e.peers, comparePrefix)
	e.peers = slices.Compact(e.peers)
	return e
}

// exceptionKey is where Index.bySubject lists the exceptions of a subject.
func exceptionKey(finding string, subject spec.Ref, port string) []byte {
	return append([]byte(finding+"\x00"), append(key(subject), port+"\x00"...)...)
}

// exceptions is those of a finding and subject that have not ended at now, sorted;
// a zero now is before every end.
func (ix *Index) exceptions(finding string, subject spec.Ref, port string, now time.Time) []*exception {
	var out []*exception
	walk(ix.bySubject, exceptionKey(finding, subject, port), func(e *exception) bool {
		if now.Before(e.until) {
			out = append(out, e)
		}
		return true
	})
	return out
}

func (ix *Index) excepted(finding string, subject spec.Ref, port string, now time.Time) bool {
	return len(ix.exceptions(finding, subject, port, now)) > 0
}

// Plaintext is the Exceptions by which peers may connect to a port of the workload
// ref without TLS, sorted.
func (ix *Index) Plaintext(ref spec.Ref, port string) []Plaintext {
	w, ok := ix.Workload(ref)
	if !ok || ix.bySubject.Len() == 0 {
		return nil
	}
	// Where the server speaks first, the handshake judges, and there is none.
	if p := w.port(port); p == nil || p.ServerFirst {
		return nil
	}
	var out []Plaintext
	for _, e := range ix.exceptions(spec.FindingPlaintext, ref, port, time.Time{}) {
		if len(e.peers) > 0 {
			out = append(out, Plaintext{Exception: e.ref, CIDRs: e.peers, Until: e.until})
		}
	}
	return out
}

func (p Plaintext) equal(o Plaintext) bool {
	return p.Exception == o.Exception && slices.Equal(p.CIDRs, o.CIDRs) && p.Until.Equal(o.Until)
}

func (p Plaintext) admits(source netip.Addr, at time.Time) bool {
	return at.Before(p.Until) && !at.IsZero() && slices.ContainsFunc(p.CIDRs, func(c netip.Prefix) bool { return c.Contains(source) })
}
