package api

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
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
		enrol(t, l, "shop/web", id)
		e.affected = append(e.affected, &ztv1.InstanceRef{Instance: id, Workload: "shop/web"})
		if i%gone != 0 {
			f.held[id] = &ztv1.HeldProxy{Proxy: &ztv1.Proxy{Instance: id, Server: strings.Repeat("5", 32), Agent: true}, Sent: now, Acked: now, Enforced: now}
		}
	}
	s := newServer(l)
	s.cfg.Proxies = f
	return s, e
}

// enrol agrees on an instance of a workload, by two entries.
func enrol(t testing.TB, l *fakeLog, workload, id string) {
	t.Helper()
	secret := sha256.Sum256([]byte(id))
	l.put(t, &logv1.Entry{Op: &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: &logv1.Token{
		Id: id, SecretHash: secret[:], Workload: workload, Expires: timestamppb.New(l.now().Add(24 * time.Hour)),
	}}}})
	l.put(t, &logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: &logv1.Redeem{Id: id, SecretHash: secret[:], Instance: &logv1.Instance{
		Id: id, Workload: workload, Address: "10.0.0.1", KeyHash: secret[:], Agent: true,
	}}}})
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

// However many proxies are gone, those that have refused a revision are named.
func TestRefusalsAreNamed(t *testing.T) {
	const n = 500
	s, e := newFleet(t, n, 1)
	refused := s.cfg.Proxies.(fleet)
	for _, i := range e.affected[n-3:] {
		refused.held[i.Instance] = &ztv1.HeldProxy{Proxy: &ztv1.Proxy{Instance: i.Instance, Nacks: []*ztv1.Nack{{Message: "no"}}}}
	}
	r := s.receipt(e, false, false)
	if len(r.Proxies) != maxNamed || r.Counts.Nacked != 3 || r.Proxies[2].State != stateNacked || r.Proxies[3].State != stateUnconfirmed {
		t.Errorf("of %d that refuse, named are %v", r.Counts.Nacked, r.Proxies[:4])
	}
}

// applyYAML agrees on documents, and returns their revision.
func applyYAML(t testing.TB, l *fakeLog, yaml string) (revision uint64) {
	t.Helper()
	docs, problems := spec.Parse([]spec.File{{Content: []byte(yaml)}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	op := &logv1.Apply{}
	for _, d := range docs {
		op.Puts = append(op.Puts, &logv1.Put{Key: logKey(d.Key()), Document: spec.Canonical(d)})
	}
	l.put(t, &logv1.Entry{Op: &logv1.Entry_Apply{Apply: op}})
	return l.State().Revision()
}

// untilYAML is a grant that ends.
func untilYAML(until time.Time) string {
	return strings.Replace(grantYAML("shop", "g", "web", "orders", "/"), "spec: {", "spec: {until: "+until.Format(time.RFC3339)+", ", 1)
}

// Whom the clock has closed counts for the revision that was the newest then, and is
// bound by that moment.
func TestLapsed(t *testing.T) {
	l := newFakeLog(t)
	l.pace = time.Hour
	applyYAML(t, l, workloadYAML("shop", "web")+workloadYAML("shop", "orders"))
	enrol(t, l, "shop/orders", strings.Repeat("7", 32))
	ended, goesOn := epoch.Add(8*time.Hour), epoch.Add(10*time.Hour)
	first := applyYAML(t, l, untilYAML(ended)) // it is 16:00
	l.put(t, &logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: "eve", Role: "viewer"}}}})
	second := applyYAML(t, l, untilYAML(goesOn)) // it is 18:00
	s := newServer(l)
	s.cfg.Now = func() time.Time { return epoch.Add(30 * 24 * time.Hour) }
	for revision, want := range map[uint64]time.Time{first: {}, second: goesOn} {
		e, err := s.effectOf(l.State(), revision)
		if err != nil {
			t.Fatal(err)
		}
		if len(e.affected) != 1 {
			t.Errorf("revision %d: affected are %v", revision, e.affected)
		}
		if want.IsZero() {
			if len(e.closed) != 0 {
				t.Errorf("revision %d: closed are %v, by what a later one has replaced before", revision, e.closed)
			}
			continue
		}
		if open := e.over.Sub(want); len(e.closed) != 1 || open <= drains || open > 24*time.Hour {
			t.Errorf("revision %d: closed are %v, over %v after their grant has ended", revision, e.closed, open)
		}
	}
}

// The newest change by the clock is found looking back, as by going through all of them;
// also where there are those of years.
func TestLastChange(t *testing.T) {
	l := newFakeLog(t)
	grants := workloadYAML("shop", "web") + workloadYAML("shop", "orders")
	for n, when := range []string{`start: "09:00", end: "17:30"`, `start: "22:00", end: "06:00"`, `days: [mon], start: "12:00", end: "12:01"`} {
		g := strings.Replace(grantYAML("shop", "g"+fmt.Sprint(n), "web", "orders", "/"), "spec: {", "spec: {when: {windows: [{zone: Europe/Berlin, "+when+"}]}, ", 1)
		grants += g
	}
	applyYAML(t, l, grants)
	v, err := newServer(l).cfg.Views.At(l.State())
	if err != nil {
		t.Fatal(err)
	}
	for minutes := range 4 * 24 * 6 {
		until := epoch.Add(time.Duration(10*minutes) * time.Minute)
		from := until.Add(-time.Duration(minutes*minutes%5000) * time.Minute)
		want := from
		for at, ok := v.Index.NextChange(want); ok && !at.After(until); at, ok = v.Index.NextChange(want) {
			want = at
		}
		if got := lastChange(v.Index, from, until); !got.Equal(want) {
			t.Fatalf("from %v until %v: %v, want %v", from, until, got, want)
		}
	}
	if got := lastChange(v.Index, epoch.AddDate(-100, 0, 0), epoch); got.After(epoch) || epoch.Sub(got) > 24*time.Hour {
		t.Errorf("after a hundred years %v", got)
	}
	if got := lastChange(v.Index, epoch, epoch.Add(-time.Hour)); !got.Equal(epoch) {
		t.Errorf("of a clock that goes back %v", got)
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
