package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
)

// Workload is the one that the clients of a [Test] enrol for.
const Workload = "load/agent"

// mesh is what it needs.
const mesh = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: %s, svidTTL: %s}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: load, name: agent}
spec: {}
`

// Test is a cluster of one test that is held to what its clients were told.
type Test struct {
	*fleet.Test
	Ledger  *Ledger // nil before Begin
	Rand    *rand.Rand
	Writers int // and readers
}

// Begin makes the cluster of servers that have no folder yet; its ledger is kept beside
// its logs if the test fails.
func (t *Test) Begin(trustDomain string, svidTTL time.Duration, documents int, servers ...*fleet.Server) {
	t.T.Helper()
	t.Check(t.Cluster.Begin(t.Context(), trustDomain, servers))
	t.Apply(0, fleet.Documents(fmt.Sprintf(mesh, trustDomain, svidTTL)))
	t.Ledger = New(t.Ports, documents)
	t.T.Cleanup(func() {
		if t.T.Failed() {
			if err := t.Ledger.Save(filepath.Join(t.Dir, "ledger")); err != nil {
				t.T.Error(err)
			}
		}
	})
}

// Load is the clients at work.
type Load struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

// StartLoad returns once writes are acknowledged.
func (t *Test) StartLoad() *Load {
	t.T.Helper()
	ctx, stop := context.WithCancel(t.T.Context())
	l := &Load{stop: stop}
	seed := t.Rand.Uint64()
	for _, work := range []func() error{
		func() error { return t.Ledger.Writers(ctx, t.Writers, seed, t.Patience) },
		func() error { return t.Ledger.Readers(ctx, t.Writers, seed) },
		func() error { return t.Ledger.Joiners(ctx, 1, Workload, seed, t.Patience) },
	} {
		l.wg.Go(func() {
			if err := work(); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.errs = append(l.errs, err)
			}
		})
	}
	t.MoreWrites(3)
	return l
}

// MoreWrites waits until so many more writes are acknowledged.
func (t *Test) MoreWrites(n int) {
	t.T.Helper()
	from := t.Ledger.Acknowledged()
	t.Until("writes", func(context.Context) error {
		if now := t.Ledger.Acknowledged(); now < from+n {
			return fmt.Errorf("%d of %d", now-from, n)
		}
		return nil
	})
}

// Settle has the clients ask everything to its end, and compares. Journals are those of
// servers that are of the cluster no more.
func (t *Test) Settle(l *Load, journals ...string) {
	t.T.Helper()
	l.stop()
	l.wg.Wait()
	t.Check(errors.Join(l.errs...))
	t.Check(t.Converge(t.Context()))
	t.Check(t.Ledger.Check(t.Context()))
	t.Check(t.Ledger.CheckJournals(append(t.Journals(), journals...)...))
}
