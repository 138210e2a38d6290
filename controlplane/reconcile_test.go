package controlplane

import (
	"context"
	"errors"
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
	fleet := serve.New(serve.Config{
		Server: "s", Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Now: time.Now,
		Authorize: func(context.Context) (string, error) { return "", errors.New("nobody") },
	})
	t.Cleanup(fleet.Close)
	metrics := prometheus.NewRegistry()
	r := newReconciler(&reconciler{
		fleet: fleet, views: view.NewCache(), log: slog.New(slog.DiscardHandler), now: time.Now,
		mayIssue: func() bool { return true }, forget: func(string) {},
		outside: newOutside(&outside{publish: fleet.SetEndpoints, log: slog.New(slog.DiscardHandler), now: time.Now}, prometheus.NewRegistry()),
	}, metrics)
	st, index := state.New(), uint64(0)
	apply := func(e *logv1.Entry) {
		t.Helper()
		index++
		e.Format, e.When = state.Format, timestamppb.Now()
		next, result := state.Apply(st, index, e)
		if result.Err != nil {
			t.Fatal(result.Err)
		}
		st = next
	}
	put := func(document []byte) *logv1.Entry {
		return &logv1.Entry{Op: &logv1.Entry_Apply{Apply: &logv1.Apply{ValidatedAt: st.Revision(), Puts: []*logv1.Put{
			{Key: &logv1.Key{Kind: "Workload", Namespace: "shop", Name: "web"}, Document: document},
		}}}}
	}
	serves := func(revision uint64, stuck float64) {
		t.Helper()
		if err := r.OnState(st, state.Changes{}); err != nil {
			t.Fatal(err)
		}
		if got, _ := r.Served(); got != revision || fleet.Revision() != revision {
			t.Errorf("revision %d is served, of the fleet %d, want %d", got, fleet.Revision(), revision)
		}
		families, err := metrics.Gather()
		if err != nil || len(families) != 1 || families[0].GetName() != "zt_controlplane_stuck" {
			t.Fatalf("metrics: %v, %v", families, err)
		}
		if got := families[0].Metric[0].Gauge.GetValue(); got != stuck {
			t.Errorf("stuck is %v, want %v", got, stuck)
		}
	}
	if err := r.OnState(st, state.Changes{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.Served(); ok {
		t.Error("a state before the first entry is served")
	}
	apply(&logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{TrustDomain: "shop.example", ClusterId: "c", Admin: &logv1.Admin{Name: "a", Role: "admin"}}}})
	docs, problems := spec.Parse([]spec.File{{Name: "f", Content: []byte(`
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
`)}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	apply(put(spec.Canonical(docs[0])))
	good := st.Revision()
	serves(good, 0)
	apply(put([]byte("of a later version")))
	serves(good, 1)
	apply(&logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: "s"}}}})
	serves(good, 1)
	apply(put(spec.Canonical(docs[0])))
	serves(st.Revision(), 0)
}
