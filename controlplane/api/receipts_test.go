package api

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// fleet is proxies that all enforce the newest revision, save those that have gone.
type fleet struct {
	Proxies
	held map[string]*ztv1.HeldProxy
}

func (f fleet) Of(instance string) (*ztv1.HeldProxy, uint64) { return f.held[instance], 5 }
func (f fleet) Unreachable() []string                        { return nil }
func (f fleet) Cuts(_, _, _ string, _ time.Time) (uint32, time.Time) {
	return 0, time.Time{}
}

// newFleet is a server with so many proxies, of which every gone-th is not connected, and
// a revision that affects all of them.
func newFleet(t testing.TB, n, gone int) (*Server, *effect) {
	t.Helper()
	l := newFakeLog(t)
	l.put(t, putWorkload("shop", "web"))
	f := fleet{held: map[string]*ztv1.HeldProxy{}}
	e := &effect{revision: &logv1.Revision{Revision: 5, When: timestamppb.New(epoch)}}
	now := &ztv1.Progress{Current: true, Spans: []*ztv1.ProgressSpan{{From: timestamppb.New(epoch)}}}
	for i := range n {
		id := fmt.Sprintf("%032x", i)
		secret := sha256.Sum256([]byte(id))
		l.put(t, &logv1.Entry{Op: &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: &logv1.Token{
			Id: id, SecretHash: secret[:], Workload: "shop/web", Expires: timestamppb.New(epoch.Add(time.Hour)),
		}}}})
		l.put(t, &logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: &logv1.Redeem{Id: id, SecretHash: secret[:], Instance: &logv1.Instance{
			Id: id, Workload: "shop/web", Address: "10.0.0.1", KeyHash: secret[:], Agent: true,
		}}}})
		e.affected = append(e.affected, &ztv1.InstanceRef{Instance: id, Workload: "shop/web"})
		if i%gone != 0 {
			f.held[id] = &ztv1.HeldProxy{Proxy: &ztv1.Proxy{Instance: id, Server: strings.Repeat("5", 32), Agent: true}, Sent: now, Acked: now, Enforced: now}
		}
	}
	s := newServer(l)
	s.cfg.Proxies = f
	return s, e
}

// The receipt of a large fleet counts all, and names those that are not confirmed, up to
// a bound; all, when they are asked for.
func TestReceiptOfALargeFleet(t *testing.T) {
	const n = 2000
	s, e := newFleet(t, n, 50)
	r := s.receipt(e, false, false)
	if c := r.Counts; c.Affected != n || c.Enforced != n-n/50 || c.Unconfirmed != n/50 || r.Complete {
		t.Errorf("counts %v", c)
	}
	if len(r.Proxies) != n/50 || r.Omitted != n-n/50 || r.Proxies[0].State != stateUnconfirmed {
		t.Errorf("%d are named, %d not", len(r.Proxies), r.Omitted)
	}
	if size := proto.Size(r); size > 32<<10 {
		t.Errorf("%d bytes", size)
	}
	s, e = newFleet(t, n, 2)
	if r = s.receipt(e, false, false); len(r.Proxies) != maxNamed || r.Omitted != n-maxNamed {
		t.Errorf("of %d that are gone %d are named, %d not", n/2, len(r.Proxies), r.Omitted)
	}
	if r = s.receipt(e, false, true); len(r.Proxies) != n || r.Omitted != 0 || r.Proxies[0].State != stateUnconfirmed || r.Proxies[n-1].State != stateEnforced {
		t.Errorf("all: %d are named, %d not", len(r.Proxies), r.Omitted)
	}
}

// BenchmarkReceipt is what one look at 10,000 proxies costs, of which 100 are gone: while
// somebody waits, there is one at most every 50 ms, and only when something has changed.
func BenchmarkReceipt(b *testing.B) {
	s, e := newFleet(b, 10_000, 100)
	for name, all := range map[string]bool{"counted": false, "named": true} {
		b.Run(name, func(b *testing.B) {
			size := 0
			for b.Loop() {
				r := s.receipt(e, false, all)
				size = proto.Size(r)
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}
