package view

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

func begin(t *testing.T) *state.State {
	t.Helper()
	return next(t, state.New(), &logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{
		TrustDomain: "shop.example", ClusterId: "c", Admin: &logv1.Admin{Name: "root", Role: "admin"},
	}}})
}

// with is the state after workloads of a namespace are put.
func with(t *testing.T, st *state.State, namespace string, n int) *state.State {
	t.Helper()
	lineage := st.Lineage()
	apply := &logv1.Apply{Lineage: lineage[:]}
	for i := range n {
		yaml := fmt.Sprintf("apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: %s, name: w%d}\nspec: {}\n", namespace, i)
		docs, problems := spec.Parse([]spec.File{{Content: []byte(yaml)}})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		k := docs[0].Key()
		apply.Puts = append(apply.Puts, &logv1.Put{
			Key: &logv1.Key{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}, Document: spec.Canonical(docs[0]),
		})
	}
	return next(t, st, &logv1.Entry{Op: &logv1.Entry_Apply{Apply: apply}})
}

func next(t *testing.T, st *state.State, e *logv1.Entry) *state.State {
	t.Helper()
	e.Format, e.When = state.FormatOf(e), timestamppb.New(time.Unix(1, 0))
	after, r := state.Apply(st, st.Index()+1, e)
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	return after
}

// TestReaderBlocksNoWriter: while a reader's view of an old state is being made, the
// view of the newest state is there for a writer, who makes the next one of it.
func TestReaderBlocksNoWriter(t *testing.T) {
	old := with(t, begin(t), "a", 3)
	newest := with(t, old, "b", 3)
	c := NewCache()
	if _, err := c.At(newest); err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var blocked atomic.Bool
	blocked.Store(true)
	c.decode = func(b []byte) (*spec.Document, error) {
		if blocked.Load() {
			once.Do(func() { close(begun) })
			<-goOn
		}
		return spec.Decode(b)
	}
	// Of another branch, so that all its documents are decoded.
	other := with(t, begin(t), "c", 3)
	read := make(chan error, 2)
	reader := func() {
		v, err := c.At(other)
		if err == nil && len(v.Documents()) != 3 {
			err = errors.New("not the view of the state")
		}
		read <- err
	}
	go reader()
	<-begun
	go reader() // a second one waits for the first
	blocked.Store(false)
	for range 3 {
		newest = with(t, newest, "b", 4+int(newest.Index()))
		if v, err := c.At(newest); err != nil || len(v.Documents()) < 6 {
			t.Fatal(err)
		}
	}
	select {
	case err := <-read:
		t.Fatalf("the reader was not held: %v", err)
	default:
	}
	close(goOn)
	for range 2 {
		if err := <-read; err != nil {
			t.Error(err)
		}
	}
}

// TestViewIsMadeOnce: who asks for a view that is being made, or for one that follows
// it, waits for it; an error is told to all, and not kept.
func TestViewIsMadeOnce(t *testing.T) {
	first := with(t, begin(t), "a", 5)
	second := with(t, first, "b", 1)
	c := NewCache()
	var decoded atomic.Int64
	fail := atomic.Bool{}
	c.decode = func(b []byte) (*spec.Document, error) {
		decoded.Add(1)
		if fail.Load() {
			return nil, errors.New("newer version")
		}
		return spec.Decode(b)
	}
	fail.Store(true)
	if _, err := c.At(first); err == nil {
		t.Fatal("no error")
	}
	fail.Store(false)
	decoded.Store(0)
	var tasks sync.WaitGroup
	for i := range 20 {
		tasks.Go(func() {
			st, want := first, 5
			if i%2 == 1 {
				st, want = second, 6
			}
			if v, err := c.At(st); err != nil || len(v.Documents()) != want {
				t.Errorf("%v", err)
			}
		})
	}
	tasks.Wait()
	if n := decoded.Load(); n > 11 { // 6, unless the second was asked for before the first
		t.Errorf("%d documents were decoded", n)
	}
}
