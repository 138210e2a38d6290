package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

var epoch = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// fakeLog is a log of one server that agrees on entries when the test says so.
type fakeLog struct {
	mu     sync.Mutex // guards the rest
	st     *state.State
	queue  []*fakeEntry // submitted, not agreed on
	effect []step       // what has changed documents, in order
	came   chan struct{}
	atOnce bool          // agree on what is submitted at once
	pace   time.Duration // how much later than the one before it each entry is
}

type fakeEntry struct {
	entry  *logv1.Entry
	done   chan struct{}
	result state.Result
	err    error
}

// step is an entry that has changed documents.
type step struct {
	before, after *state.State
	entry         *logv1.Entry
}

func newFakeLog(t testing.TB) *fakeLog {
	l := &fakeLog{st: state.New(), came: make(chan struct{}, 1<<16)}
	l.put(t, &logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{
		TrustDomain: "shop.example", ClusterId: "c", Admin: &logv1.Admin{Name: "root", Role: "admin"},
	}}})
	return l
}

// put agrees on an entry that no call of the test's has asked for, after all that are
// in the queue.
func (l *fakeLog) put(t testing.TB, e *logv1.Entry) {
	t.Helper()
	l.commit(len(l.waiting()))
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.GetApply() != nil {
		e.GetApply().ValidatedAt = l.st.Revision()
	}
	if r := l.apply(e); r.Err != nil {
		t.Errorf("%v: %v", e, r.Err)
	}
}

func (l *fakeLog) apply(e *logv1.Entry) state.Result {
	e = proto.CloneOf(e) // as the store does: who has submitted it goes on reading it
	before := l.st
	e.Format, e.When = state.FormatOf(e), timestamppb.New(l.nowLocked())
	var r state.Result
	l.st, r = state.Apply(before, before.Index()+1, e)
	if r.Err == nil && len(r.Changed.Keys) > 0 {
		l.effect = append(l.effect, step{before, l.st, e})
	}
	return r
}

// now is when the next entry is agreed on.
func (l *fakeLog) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nowLocked()
}

func (l *fakeLog) nowLocked() time.Time {
	return epoch.Add(time.Duration(l.st.Index()) * l.pace)
}

func (l *fakeLog) waiting() []*fakeEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue
}

// commit agrees on the first n entries of the queue.
func (l *fakeLog) commit(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.queue[:min(n, len(l.queue))] {
		e.result = l.apply(e.entry)
		close(e.done)
	}
	l.queue = l.queue[min(n, len(l.queue)):]
}

// lose ends a leadership: the first n entries are agreed on, none of the others, and
// nobody is told which.
func (l *fakeLog) lose(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range l.queue {
		if i < n {
			l.apply(e.entry)
		}
		e.err = fmt.Errorf("%w: leadership lost", ErrUnknown)
		close(e.done)
	}
	l.queue = nil
}

func (l *fakeLog) Submit(_ context.Context, e *logv1.Entry) (Submitted, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &fakeEntry{entry: e, done: make(chan struct{})}
	if l.atOnce {
		f.result = l.apply(e)
		l.effect = nil
		close(f.done)
		return f, nil
	}
	l.queue = append(l.queue, f)
	l.came <- struct{}{}
	return f, nil
}

func (f *fakeEntry) Done() <-chan struct{} { return f.done }

func (f *fakeEntry) Wait(ctx context.Context) (state.Result, error) {
	select {
	case <-f.done:
		return f.result, f.err
	case <-ctx.Done():
		return state.Result{}, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

func (l *fakeLog) Propose(ctx context.Context, e *logv1.Entry) (state.Result, error) {
	f, err := l.Submit(ctx, e)
	if err != nil {
		return state.Result{}, err
	}
	return f.Wait(ctx)
}

func (l *fakeLog) State() *state.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st
}

func (l *fakeLog) Barrier(context.Context) error { return nil }
func (l *fakeLog) IsLeader() bool                { return true }
func (l *fakeLog) Full() bool                    { return false }
func (l *fakeLog) HeardLeader() time.Time        { return epoch }

func (l *fakeLog) Watch(context.Context, func(*state.State, state.Changes) error) error {
	return errors.New("nobody watches")
}

func newServer(l Log) *Server {
	return New(Config{
		Log: l, Views: view.NewCache(), Metrics: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return epoch }, Issuer: fakeIssuer{},
		Cluster: fakeCluster{},
	})
}

// fakeCluster is a cluster whose members are all of this version.
type fakeCluster struct{ Cluster }

func (fakeCluster) Readable(state.Feature) error { return nil }

// fakeIssuer signs nothing.
type fakeIssuer struct{ Issuer }

func (fakeIssuer) TrustDomain() string { return "shop.example" }

// as is a call of an admin.
func as(ctx context.Context, admin string) context.Context {
	return context.WithValue(ctx, callKey{}, call{principal: Principal{Role: RoleAdmin, Name: admin}})
}

func files(yaml string) []*ztv1.File {
	return []*ztv1.File{{Name: "a.yaml", Content: []byte(yaml)}}
}

func workloadYAML(namespace, name string) string {
	return fmt.Sprintf("---\napiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: %s, name: %s}\n"+
		"spec: {serves: [{name: http, port: 8080, protocol: http}]}\n", namespace, name)
}

func grantYAML(namespace, name, from, to, path string) string {
	return fmt.Sprintf("---\napiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: %s, name: %s}\n"+
		"spec: {from: {workloads: [%s]}, to: {services: [%s], methods: [GET], paths: [%s]}}\n", namespace, name, from, to, path)
}
