package controlplane

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// meshLoop is the reconcile loop and a fleet of services with two proxies each, all of
// which are told what they are to hold, without a stream.
type meshLoop struct {
	*testLoop
	held *proxies
}

func newMeshLoop(t *testing.T, services int) *meshLoop {
	m := &meshLoop{testLoop: newTestLoop(t, prometheus.NewRegistry())}
	others := newCluster(&cluster{})
	m.held = newProxies(&proxies{cluster: others, moved: others.moved, fleet: m.loop.fleet, full: func() bool { return false }, now: time.Now})
	m.begin()
	m.put("Workload", "ops", "spec: {}")
	for s := range services {
		m.put("Workload", m.name(s), "spec: {serves: [{name: http, port: 8080, protocol: http}]}")
	}
	for s := range services {
		m.grant(s, "GET")
		for k := range 2 {
			id := fmt.Sprintf("%s-%d", m.name(s), k)
			hash := sha256.Sum256([]byte(id))
			m.apply(&logv1.Entry{Op: &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: &logv1.Token{
				Id: id, SecretHash: hash[:], Workload: "shop/" + m.name(s), Expires: timestamppb.New(time.Now().Add(time.Hour)),
			}}}})
			m.apply(&logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: &logv1.Redeem{Id: id, SecretHash: hash[:], Instance: &logv1.Instance{
				Id: id, Workload: "shop/" + m.name(s), Address: fmt.Sprintf("10.0.%d.%d", s, k), EgressAddress: "127.0.0.1", KeyHash: hash[:], Agent: true,
			}}}})
		}
	}
	m.serve()
	for s := range services {
		for k := range 2 {
			m.loop.OnConnect(fmt.Sprintf("%s-%d", m.name(s), k))
		}
	}
	m.held.take()
	return m
}

func (m *meshLoop) name(s int) string { return fmt.Sprintf("s%03d", s) }

func (m *meshLoop) grant(s int, method string) {
	m.t.Helper()
	m.put("Grant", m.name(s), fmt.Sprintf("spec: {from: {workloads: [ops]}, to: {services: [%s], methods: [%s]}}", m.name(s), method))
}

func (m *meshLoop) serve() {
	m.t.Helper()
	if err := m.loop.OnState(m.st, state.Changes{}); err != nil {
		m.t.Fatal(err)
	}
	if got, _ := m.loop.Served(); got != m.st.Revision() {
		m.t.Fatalf("revision %d is served of %d", got, m.st.Revision())
	}
}

// TestOneChangeCostsWhatItChanges: what a changed grant takes, from the state that has it to
// the fleet and to what is told of its proxies, does not grow with the proxies that it does
// not concern. Counted is what is allocated, which a busy machine does not change.
func TestOneChangeCostsWhatItChanges(t *testing.T) {
	cost := func(services int) float64 {
		m := newMeshLoop(t, services)
		round := 0
		return testing.AllocsPerRun(20, func() {
			round++
			m.grant(0, []string{"GET", "PUT"}[round%2])
			m.serve()
			m.held.take()
		})
	}
	small, large := cost(10), cost(200)
	t.Logf("%.0f allocations among 20 proxies, %.0f among 400", small, large)
	if large > 1.2*small {
		t.Errorf("one changed grant costs %.0f allocations among 400 proxies, and %.0f among 20", large, small)
	}
}
