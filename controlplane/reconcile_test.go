package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// TestStuck: a revision that this version cannot read is not served, in no part;
// the last good one is, and that is said; and the next good one is served again
// (CVE-2022-24687).
func TestStuck(t *testing.T) {
	metrics := prometheus.NewRegistry()
	m := newTestLoop(t, metrics)
	serves := func(revision uint64, stuck float64) {
		t.Helper()
		if err := m.loop.OnState(m.st, state.Changes{}); err != nil {
			t.Fatal(err)
		}
		if got, _ := m.loop.Served(); got != revision || m.loop.fleet.Revision() != revision {
			t.Errorf("revision %d is served, of the fleet %d, want %d", got, m.loop.fleet.Revision(), revision)
		}
		families, err := metrics.Gather()
		if err != nil || len(families) != 1 || families[0].GetName() != "zt_controlplane_stuck" {
			t.Fatalf("metrics: %v, %v", families, err)
		}
		if got := families[0].Metric[0].Gauge.GetValue(); got != stuck {
			t.Errorf("stuck is %v, want %v", got, stuck)
		}
	}
	if err := m.loop.OnState(m.st, state.Changes{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.loop.Served(); ok {
		t.Error("a state before the first entry is served")
	}
	m.begin()
	m.put("Workload", "web", "spec: {}")
	good := m.st.Revision()
	serves(good, 0)
	m.putDocument("Workload", "web", []byte("of a later version"))
	serves(good, 1)
	m.apply(&logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: "s"}}}})
	serves(good, 1)
	m.put("Workload", "web", "spec: {}")
	serves(m.st.Revision(), 0)
}

// testLoop is the reconcile loop with a fleet of its own, and a state that a test makes.
type testLoop struct {
	t     *testing.T
	loop  *reconciler
	st    *state.State
	index uint64
}

func newTestLoop(t *testing.T, metrics prometheus.Registerer) *testLoop {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	fleet := serve.New(serve.Config{
		Retain: true, Logger: quiet, Authorize: func(context.Context) (string, error) { return "", errors.New("nobody") },
	})
	t.Cleanup(fleet.Close)
	return &testLoop{t: t, st: state.New(), loop: newReconciler(&reconciler{
		fleet: fleet, views: view.NewCache(), log: quiet, now: time.Now,
		mayIssue: func() error { return nil }, forget: func(string) {},
		outside: newOutside(&outside{publish: fleet.SetEndpoints, log: quiet, now: time.Now}, prometheus.NewRegistry()),
	}, metrics)}
}

// begin agrees on the first entry.
func (m *testLoop) begin() {
	m.t.Helper()
	m.apply(&logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{TrustDomain: "shop.example", ClusterId: "c", Admin: &logv1.Admin{Name: "a", Role: "admin"}}}})
}

func (m *testLoop) apply(e *logv1.Entry) {
	m.t.Helper()
	m.index++
	e.Format, e.When = state.Format, timestamppb.Now()
	next, result := state.Apply(m.st, m.index, e)
	if result.Err != nil {
		m.t.Fatal(result.Err)
	}
	m.st = next
}

// put agrees on a document of namespace shop.
func (m *testLoop) put(kind, name, body string) {
	m.t.Helper()
	docs, problems := spec.Parse([]spec.File{{Name: "f", Content: fmt.Appendf(nil,
		"apiVersion: ztmesh.dev/v1alpha1\nkind: %s\nmetadata: {namespace: shop, name: %s}\n%s\n", kind, name, body)}})
	if len(problems) > 0 {
		m.t.Fatal(problems)
	}
	m.putDocument(kind, name, spec.Canonical(docs[0]))
}

// putDocument is put of what need not be one.
func (m *testLoop) putDocument(kind, name string, document []byte) {
	m.t.Helper()
	m.apply(&logv1.Entry{Op: &logv1.Entry_Apply{Apply: &logv1.Apply{ValidatedAt: m.st.Revision(), Puts: []*logv1.Put{
		{Key: &logv1.Key{Kind: kind, Namespace: "shop", Name: name}, Document: document},
	}}}})
}
