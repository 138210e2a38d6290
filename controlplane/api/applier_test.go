package api

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// outcome is what a call came to.
type outcome struct {
	resp *ztv1.ApplyResponse
	err  error
	done bool
}

// apply calls Apply in a goroutine of its own.
func apply(ctx context.Context, s *Server, req *ztv1.ApplyRequest) *outcome {
	o := &outcome{}
	go func() {
		o.resp, o.err = s.Apply(ctx, req)
		o.done = true
	}()
	synctest.Wait()
	return o
}

func code(t *testing.T, err error) codes.Code {
	t.Helper()
	st, _ := toStatus(err)
	return st.Code()
}

// TestPipeline: changes of several namespaces are handed to the log one after the
// other before any of them is agreed on, each validated on top of those before it.
func TestPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLog(t)
		s, ctx := newServer(l), as(t.Context(), "root")
		first := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("shop", "web")), Bases: map[string]uint64{"shop": 0}})
		// The grant names what is only proposed yet.
		second := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("bank", "api") + grantYAML("bank", "g", "shop/web", "api", "/a"))})
		third := apply(ctx, s, &ztv1.ApplyRequest{Merge: true, Files: files(grantYAML("bank", "g", "shop/web", "api", "/b"))})
		if n := len(l.waiting()); n != 3 || first.done || second.done || third.done {
			t.Fatalf("%d entries are under way, not 3", n)
		}
		l.commit(3)
		synctest.Wait()
		for i, o := range []*outcome{first, second, third} {
			if o.err != nil || o.resp.GetRevision() != uint64(i+2) {
				t.Errorf("apply %d: revision %d, %v", i, o.resp.GetRevision(), o.err)
			}
		}
		// What a caller builds on next is what its own apply made, not a later one.
		if got := second.resp.Bases["bank"]; got != 3 {
			t.Errorf("the second apply's base is %d, not 3", got)
		}
	})
}

// TestPipelineBreaks: a change whose predecessor is not agreed on is judged again,
// and refused if it needed it.
func TestPipelineBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLog(t)
		s, ctx := newServer(l), as(t.Context(), "root")
		apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("ops", "x"))})
		l.commit(1)
		first := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("shop", "web"))})
		needs := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("bank", "api") + grantYAML("bank", "g", "shop/web", "api", "/a"))})
		free := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("ops", "y"))})
		// The first is lost; the others are agreed on as they stand in the log.
		l.mu.Lock()
		lost := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()
		lost.err = ErrUnknown
		close(lost.done)
		l.commit(2)
		synctest.Wait()
		if !errors.Is(first.err, ErrUnknown) {
			t.Errorf("the lost one: %v", first.err)
		}
		if free.done || len(l.waiting()) != 1 {
			t.Fatal("the one that needs nothing was not tried again")
		}
		l.commit(1) // an answer waits for what it may rest on
		synctest.Wait()
		if !needs.done || code(t, needs.err) != codes.InvalidArgument {
			t.Errorf("the one that names a workload which did not come: %v", needs.err)
		}
		if free.err != nil {
			t.Error(free.err)
		}
	})
}

// TestPipelineBases: who names a base of a namespace that is being changed waits
// until it is known whether the base still stands.
func TestPipelineBases(t *testing.T) {
	for name, agreed := range map[string]bool{"agreed": true, "lost": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newFakeLog(t)
				s, ctx := newServer(l), as(t.Context(), "root")
				first := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("shop", "web")), Bases: map[string]uint64{"shop": 0}})
				second := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("shop", "api")), Bases: map[string]uint64{"shop": 0}})
				if len(l.waiting()) != 1 || second.done {
					t.Fatal("the second did not wait")
				}
				other := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("bank", "api"))})
				if len(l.waiting()) != 2 {
					t.Fatal("another namespace had to wait, too")
				}
				if agreed {
					l.commit(2)
				} else {
					l.lose(0)
				}
				synctest.Wait()
				l.commit(9)
				synctest.Wait()
				var stale *state.StaleBaseError
				if agreed && (!errors.As(second.err, &stale) || stale.Current["shop"] != first.resp.GetRevision() || other.err != nil) {
					t.Errorf("second: %v, other: %v", second.err, other.err)
				}
				if !agreed && (second.err != nil || !errors.Is(first.err, ErrUnknown)) {
					t.Errorf("first: %v, second: %v", first.err, second.err)
				}
			})
		})
	}
}

// TestPipelineRights: a right that is taken away while a change is under way is not
// there any more when its turn in the log comes.
func TestPipelineRights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLog(t)
		editor := func(namespaces ...string) *logv1.Entry {
			return &logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: "ed", Role: "editor", Namespaces: namespaces}}}}
		}
		l.put(t, editor("shop"))
		s := newServer(l)
		o := apply(as(t.Context(), "ed"), s, &ztv1.ApplyRequest{Files: files(workloadYAML("shop", "web"))})
		behind := apply(as(t.Context(), "root"), s, &ztv1.ApplyRequest{Files: files(workloadYAML("bank", "api"))})
		l.mu.Lock()
		l.apply(editor("bank")) // before what is under way
		l.mu.Unlock()
		l.commit(2)
		synctest.Wait()
		l.commit(1)
		synctest.Wait()
		if code(t, o.err) != codes.PermissionDenied {
			t.Errorf("without the right: %v", o.err)
		}
		if behind.err != nil {
			t.Errorf("the one behind it: %v", behind.err)
		}
		if _, ok := l.State().Document(state.Key{Kind: "Workload", Namespace: "shop", Name: "web"}); ok {
			t.Error("it took effect")
		}
	})
}

// TestPipelineCancelled: a caller that goes away leaves its change in the log, and
// those behind it where they are.
func TestPipelineCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLog(t)
		s := newServer(l)
		ctx, cancel := context.WithCancel(as(t.Context(), "root"))
		gone := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("shop", "web"))})
		behind := apply(as(t.Context(), "root"), s, &ztv1.ApplyRequest{Files: files(workloadYAML("bank", "api") + grantYAML("bank", "g", "shop/web", "api", "/a"))})
		cancel()
		synctest.Wait()
		if !errors.Is(gone.err, ErrUnknown) || behind.done {
			t.Fatalf("gone: %v", gone.err)
		}
		l.commit(2)
		synctest.Wait()
		if behind.err != nil || behind.resp.Revision != 3 {
			t.Errorf("behind it: %v", behind.err)
		}
	})
}

// TestPipelineIsBounded: no more than so many wait for an outcome, and no more than
// so many wait at all.
func TestPipelineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLog(t)
		s, ctx := newServer(l), as(t.Context(), "root")
		var all []*outcome
		for i := range maxQueued {
			all = append(all, apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML(fmt.Sprintf("n%d", i), "w"))}))
		}
		if n := len(l.waiting()); n != maxOffered {
			t.Errorf("%d are offered", n)
		}
		if o := apply(ctx, s, &ztv1.ApplyRequest{Files: files(workloadYAML("more", "w"))}); code(t, o.err) != codes.ResourceExhausted {
			t.Errorf("one too many: %v", o.err)
		}
		for len(l.waiting()) > 0 {
			l.commit(1)
			synctest.Wait()
		}
		for i, o := range all {
			if o.err != nil || o.resp.Revision != uint64(i+2) {
				t.Fatalf("apply %d came out of turn: %v, %v", i, o.resp, o.err)
			}
		}
	})
}

// TestPipelineIsSequential: whatever is asked at the same time, and whatever becomes
// of the log, each change was valid and allowed on what the one before it had made,
// took effect once, and was answered truly.
func TestPipelineIsSequential(t *testing.T) {
	const writers, rounds = 12, 50
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	l := newFakeLog(t)
	l.pace = 2 * time.Hour // the name of a workload that was deleted may be used again
	for w := range writers {
		l.put(t, &logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: fmt.Sprint("w", w), Role: "admin"}}}})
	}
	for i := range 12 {
		l.put(t, putWorkload(fmt.Sprint("n", i%4), fmt.Sprint("w", i/4)))
	}
	l.effect = nil
	s := newServer(l)
	s.cfg.Now = l.now
	var mu sync.Mutex
	acked, unknown := map[string]uint64{}, map[string]bool{}
	var tasks, committer sync.WaitGroup
	for w := range writers {
		tasks.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := range rounds {
				key := fmt.Sprintf("%d-%d", w, i)
				resp, err := s.Apply(as(t.Context(), fmt.Sprint("w", w)), randomApply(r, key, l.State()))
				mu.Lock()
				switch {
				case err == nil && len(resp.Changes) > 0:
					acked[key] = resp.Revision
				case errors.Is(err, ErrUnknown):
					unknown[key] = true
				}
				mu.Unlock()
			}
		})
	}
	end := make(chan struct{})
	committer.Go(func() {
		r := rand.New(rand.NewPCG(seed, writers))
		for {
			select {
			case <-l.came:
			case <-end:
				return
			}
			switch n := len(l.waiting()); r.IntN(12) {
			case 0:
				l.lose(r.IntN(n + 1))
			case 1:
				l.put(t, meddle(r))
			case 2, 3, 4: // let them pile up, unless nobody else can come
				if n >= writers/2 {
					l.commit(1 + r.IntN(n))
				}
			default:
				l.commit(n)
			}
			if mustGoOn(s, l) {
				l.commit(len(l.waiting()))
			}
		}
	})
	tasks.Wait()
	close(end)
	committer.Wait()

	seen := map[string]int{}
	for _, st := range l.effect {
		checkStep(t, st)
		key := st.entry.GetIdempotencyKey()
		if key == "" {
			continue // meddled
		}
		seen[key]++
		if rev, ok := acked[key]; ok && rev != st.after.Revision() {
			t.Errorf("%s took effect at %d, and was told %d", key, st.after.Revision(), rev)
		} else if !ok && !unknown[key] {
			t.Errorf("%s took effect, and was told otherwise", key)
		}
	}
	for key := range acked {
		if seen[key] != 1 {
			t.Errorf("%s was told that it took effect; it did %d times", key, seen[key])
		}
	}
	t.Logf("%d changes took effect, %d were answered, %d outcomes unknown", len(l.effect), len(acked), len(unknown))
	if len(acked) < writers*rounds/4 || len(unknown) == 0 {
		t.Errorf("%d changes answered and %d unknown show too little", len(acked), len(unknown))
	}
}

// mustGoOn tells whether everybody may be waiting for what is in the log.
func mustGoOn(s *Server, l *fakeLog) bool { return len(l.came) == 0 && len(l.waiting()) > 0 }

// randomApply adds, changes or removes a few documents that name one another across
// namespaces.
func randomApply(r *rand.Rand, key string, st *state.State) *ztv1.ApplyRequest {
	ns := func() string { return fmt.Sprint("n", r.IntN(4)) }
	of := ns()
	req := &ztv1.ApplyRequest{IdempotencyKey: key, Merge: r.IntN(4) > 0}
	yaml := ""
	for i := range 3 {
		if r.IntN(12) > 0 {
			yaml += workloadYAML(of, fmt.Sprint("w", i))
		}
	}
	for i := range 2 {
		if r.IntN(2) == 0 {
			yaml += grantYAML(of, fmt.Sprint("g", i), fmt.Sprintf("%s/w%d", ns(), r.IntN(3)), fmt.Sprint("w", r.IntN(3)), fmt.Sprint("/", r.IntN(100)))
		}
	}
	if yaml == "" {
		yaml = workloadYAML(of, "w0")
	}
	if r.IntN(2) == 0 {
		req.Bases = map[string]uint64{of: st.NamespaceRevision(of)}
	}
	req.Files = files(yaml)
	return req
}

// meddle is an entry of another leader, or of another call.
func meddle(r *rand.Rand) *logv1.Entry {
	switch r.IntN(6) {
	case 0, 1:
		return &logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: fmt.Sprint("w", r.IntN(12)), Role: "admin"}}}}
	case 2:
		return &logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{
			Name: fmt.Sprint("w", r.IntN(12)), Role: "editor", Namespaces: []string{fmt.Sprint("n", r.IntN(4)), fmt.Sprint("n", r.IntN(4))},
		}}}}
	}
	return putWorkload(fmt.Sprint("m", r.IntN(3)), fmt.Sprint("w", r.IntN(3)))
}

func putWorkload(namespace, name string) *logv1.Entry {
	docs, _ := spec.Parse([]spec.File{{Content: []byte(workloadYAML(namespace, name))}})
	return &logv1.Entry{Op: &logv1.Entry_Apply{Apply: &logv1.Apply{
		Puts: []*logv1.Put{{Key: logKey(docs[0].Key()), Document: spec.Canonical(docs[0])}},
	}}}
}

// checkStep judges a change as if it had come alone.
func checkStep(t *testing.T, st step) {
	t.Helper()
	v, err := view.NewCache().At(st.after)
	if err != nil {
		t.Fatal(err)
	}
	if problems := spec.Check(v.Documents(), "shop.example"); len(problems) > 0 {
		t.Errorf("revision %d is not sound: %v", st.after.Revision(), problems)
	}
	for ns, base := range st.entry.GetApply().GetBases() {
		if got := st.before.NamespaceRevision(ns); got != base {
			t.Errorf("revision %d was made on base %d of %s, which stood at %d", st.after.Revision(), base, ns, got)
		}
	}
	if st.entry.GetIdempotencyKey() == "" {
		return
	}
	_, name, _ := strings.Cut(st.entry.GetWho(), "/")
	s := newServer(&fakeLog{})
	for _, c := range st.entry.GetApply().GetPuts() {
		if err := s.may(as(context.Background(), name), st.before, c.GetKey().GetNamespace()); err != nil {
			t.Errorf("revision %d: %v", st.after.Revision(), err)
		}
	}
}
