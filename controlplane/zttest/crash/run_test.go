//go:build system

package crash_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/controlplane/zttest/ledger"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const (
	// patience bounds every wait for what takes a second or two.
	patience = 60 * time.Second
	// reach is how long a server has to come to the failpoint that is armed in it.
	reach = 8 * time.Second

	trustDomain = "crash.example"
	// mesh is what the clients enrol for, with the shortest life of a certificate.
	mesh = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: crash.example, svidTTL: 60s}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: load, name: agent}
spec: {}
`
	workload = "load/agent"
	writers  = 4
)

// run is one run of the suite, over one cluster of three servers.
type run struct {
	*fleet.Cluster
	t       *testing.T
	block   zttest.Block
	ledger  *ledger.Ledger
	rng     *rand.Rand
	reached map[string]int // kills, by failpoint
	missed  map[string]int // kills at no failpoint: it was not reached in time
	renewal *renewal
	past    []string // journals, since the last check, of servers that were removed
	joined  int      // servers and agents that came and went, for their names
}

func (r *run) check(err error) {
	r.t.Helper()
	if err != nil {
		var f *zttest.Failure
		if errors.As(err, &f) {
			err = fmt.Errorf("%w\n--- end of %s\n%s", err, f.Log, zttest.Tail(f.Log, 20))
		}
		r.t.Fatal(err)
	}
}

// ctx ends with the test, or when patience does.
func (r *run) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

// begin makes the cluster.
func begin(t *testing.T, seed uint64) *run {
	t.Helper()
	dir, err := os.MkdirTemp("", "ztcrash")
	if err != nil {
		t.Fatal(err)
	}
	block, err := zttest.NewBlock()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{
		Cluster: &fleet.Cluster{Site: &fleet.Site{Bin: filepath.Join(dir, "bin"), Dir: dir, Env: fleet.Environment()}},
		t:       t, block: block, rng: rand.New(rand.NewPCG(seed, 0)), reached: map[string]int{}, missed: map[string]int{},
	}
	t.Cleanup(r.end)
	r.check(r.Build(t.Context(), filepath.Join("..", "..", ".."), "ztd", "ztagent"))
	r.check(r.Begin(r.ctx(), trustDomain, []*fleet.Server{r.newServer("ztd-1", 1), r.newServer("ztd-2", 2), r.newServer("ztd-3", 3)}))
	r.check(fleet.Until(r.ctx(), "the mesh", func(ctx context.Context) error {
		_, err := r.API(0).Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "m", Content: []byte(mesh)}}})
		return err
	}))
	r.ledger = ledger.New(r.Ports, 4)
	return r
}

// end ends everything, and keeps the folder of a run that failed.
func (r *run) end() {
	for _, s := range r.Servers {
		s.Kill()
	}
	if r.renewal != nil {
		r.renewal.Kill()
	}
	if !r.t.Failed() {
		if err := os.RemoveAll(r.Dir); err != nil {
			r.t.Error(err)
		}
		return
	}
	if r.ledger != nil {
		if err := r.ledger.Save(filepath.Join(r.Dir, "ledger")); err != nil {
			r.t.Error(err)
		}
	}
	r.t.Logf("logs, data directories and ledger are in %s", r.Dir)
}

// newServer is a server with short elections and many snapshots.
func (r *run) newServer(name string, at int) *fleet.Server {
	return &fleet.Server{Name: name, Host: r.block.At(at), Flags: []string{
		"--election-timeout", "200ms", "--snapshot-entries", "32", "--snapshot-interval", "200ms", "--trailing-entries", "16",
	}}
}

// token makes a token for a workload, or for a server if that is "".
func (r *run) token(workload string) string {
	r.t.Helper()
	token, err := r.Token(r.ctx(), workload)
	r.check(err)
	return token
}

// leader is the index of the server that leads now.
func (r *run) leader() int {
	r.t.Helper()
	n, err := r.Leader(r.ctx())
	r.check(err)
	return n
}

// follower is the index of one that does not lead.
func (r *run) follower() int { return (r.leader() + 1 + r.rng.IntN(2)) % 3 }

// restore starts every server that does not run, disarms the others, and waits until
// all serve.
func (r *run) restore() {
	r.t.Helper()
	ctx := r.ctx()
	for _, s := range r.Servers {
		if s.Running() && s.Post(ctx, "/debug/failpoint?arm=") == nil {
			continue
		}
		if s.Running() { // on its way out
			s.Kill()
		}
		r.check(s.Start(r.Site))
	}
	for _, s := range r.Servers {
		r.check(s.Ready(ctx))
	}
	r.check(r.Together(ctx))
}

// load is the clients at work.
type load struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

// startLoad returns once writes are acknowledged.
func (r *run) startLoad() *load {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.t.Context())
	l := &load{stop: stop}
	seed := r.rng.Uint64()
	for _, work := range []func() error{
		func() error { return r.ledger.Writers(ctx, writers, seed, patience) },
		func() error { return r.ledger.Readers(ctx, writers, seed) },
		func() error { return r.ledger.Joiners(ctx, 1, workload, seed, patience) },
	} {
		l.wg.Go(func() {
			if err := work(); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.errs = append(l.errs, err)
			}
		})
	}
	r.moreWrites(3)
	return l
}

// moreWrites waits until so many more writes are acknowledged.
func (r *run) moreWrites(n int) {
	r.t.Helper()
	from := r.ledger.Acknowledged()
	r.check(fleet.Until(r.ctx(), "writes", func(context.Context) error {
		if now := r.ledger.Acknowledged(); now < from+n {
			return fmt.Errorf("%d of %d", now-from, n)
		}
		return nil
	}))
}

// settle asks everything to its end, and compares.
func (r *run) settle(l *load) {
	r.t.Helper()
	l.stop()
	l.wg.Wait()
	r.check(errors.Join(l.errs...))
	r.check(r.Converge(r.ctx()))
	r.check(r.ledger.Check(r.ctx()))
	r.check(r.ledger.CheckJournals(append(r.Journals(), r.past...)...))
	r.past = nil
}

// said is how often a process has said that it is at a failpoint.
func said(log, point string) int {
	b, err := os.ReadFile(log)
	if err != nil {
		return 0
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == "failpoint "+point {
			n++
		}
	}
	return n
}

// dies waits until a process has ended at a failpoint, or else ends it, and has it say
// where it is.
func (r *run) dies(p *zttest.Process, point string, before int, within time.Duration) {
	r.t.Helper()
	give := time.NewTimer(within)
	defer give.Stop()
	select {
	case <-p.Exited():
	case <-give.C:
		if syscall.Kill(p.PID(), syscall.SIGQUIT) == nil {
			select {
			case <-p.Exited():
			case <-time.After(2 * time.Second):
			}
		}
		p.Kill()
	}
	if said(p.Log(), point) > before {
		r.reached[point]++
	} else {
		r.missed[point]++
	}
}
