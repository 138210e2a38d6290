package state

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// derived are trees that are made of others: no snapshot has them, and no digest.
var derived = []string{"members", "retiredEnd", "outcomeOrder"}

// TestEveryCollectionIsHashed: every tree of a state has a digest, and Hash knows it.
func TestEveryCollectionIsHashed(t *testing.T) {
	s := New()
	known := map[any]bool{}
	for _, c := range s.collections() {
		known[c] = true
	}
	v := reflect.ValueOf(s).Elem()
	n := 0
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		switch {
		case strings.HasPrefix(f.Type().String(), "*state.tree["):
			n++
			found := false
			for c := range known {
				found = found || reflect.ValueOf(c).Pointer() == f.Pointer()
			}
			if !found {
				t.Errorf("%s is not among the collections that are hashed", name)
			}
		case strings.HasPrefix(f.Type().String(), "*iradix.Tree[") && !contains(derived, name):
			t.Errorf("%s has no digest: make it by newTree, or list it as derived", name)
		}
	}
	if n != len(known) {
		t.Errorf("%d trees, %d collections", n, len(known))
	}
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// TestCheck: a record whose bytes have changed in memory is found before it is written
// down, though Hash, which is kept up to date, does not see it.
func TestCheck(t *testing.T) {
	s, r := Apply(New(), 1, &logv1.Entry{Format: 1, Op: &logv1.Entry_Init{Init: &logv1.Init{
		TrustDomain: "shop.example", ClusterId: "c1", Admin: &logv1.Admin{Name: "root", Role: "admin"},
	}}})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	document := []byte("a document")
	s, r = Apply(s, 2, &logv1.Entry{Format: 1, Op: &logv1.Entry_Apply{Apply: &logv1.Apply{Puts: []*logv1.Put{{
		Key: &logv1.Key{Kind: "Grant", Namespace: "shop", Name: "g"}, Document: document,
	}}}}})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	before := s.Hash()
	document[0] ^= 1
	if err := s.Check(); !errors.Is(err, ErrCorrupt) || s.Hash() != before {
		t.Errorf("a flipped bit: %v", err)
	}
	document[0] ^= 1
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&b)
	if err != nil || again.Hash() != before {
		t.Errorf("read again: %v", err)
	}
}

// TestDigest: the sum does not depend on the order, and what comes and goes leaves none.
func TestDigest(t *testing.T) {
	var up, down, none digest
	parts := make([]digest, 100)
	for i := range parts {
		x := newTree(encodeNumber).Txn()
		parts[i] = x.of([]byte(fmt.Sprint(i)), uint64(i))
		up.add(parts[i])
	}
	for i := range parts {
		down.add(parts[len(parts)-1-i])
	}
	if up != down || up == none {
		t.Errorf("%x, %x", up, down)
	}
	for _, p := range parts {
		up.take(p)
	}
	if up != none {
		t.Errorf("%x is left", up)
	}
}

// without is a state whose collections keep no digest, to measure what that costs.
func without(s *State) *State {
	next := *s
	next.documents, next.namespaces = bare(s.documents), bare(s.namespaces)
	next.history, next.outcomes = bare(s.history), bare(s.outcomes)
	return &next
}

func bare[T any](t *tree[T]) *tree[T] { return &tree[T]{radix: t.radix} }

// BenchmarkHash is what the digests cost in a state of 50,000 grants: a change of one of
// them, with digests and without, by turns; the hash itself; and a check of all.
func BenchmarkHash(b *testing.B) {
	s, _ := Apply(New(), 1, &logv1.Entry{Format: 1, Op: &logv1.Entry_Init{Init: &logv1.Init{
		TrustDomain: "shop.example", ClusterId: "c1", Admin: &logv1.Admin{Name: "root", Role: "admin"},
	}}})
	op := &logv1.Apply{}
	put := func(i int, text string) *logv1.Put {
		return &logv1.Put{Key: &logv1.Key{Kind: "Grant", Namespace: fmt.Sprint("ns", i%100), Name: fmt.Sprint("g", i)}, Document: []byte(text)}
	}
	for i := range 50_000 {
		op.Puts = append(op.Puts, put(i, strings.Repeat("x", 400)))
	}
	s, r := Apply(s, 2, &logv1.Entry{Format: 1, Op: &logv1.Entry_Apply{Apply: op}})
	if r.Err != nil {
		b.Fatal(r.Err)
	}
	change := func(s *State, i int) (*State, time.Duration) {
		e := &logv1.Entry{
			Format: 1, IdempotencyKey: fmt.Sprint(i), OperationHash: make([]byte, 32),
			Op: &logv1.Entry_Apply{Apply: &logv1.Apply{ValidatedAt: s.revision, Puts: []*logv1.Put{put(7, strings.Repeat("y", 396)+fmt.Sprintf("%04d", i%10000))}}},
		}
		at := time.Now()
		s, r := Apply(s, s.index+1, e)
		if r.Err != nil {
			b.Fatal(r.Err)
		}
		return s, time.Since(at)
	}
	b.Run("apply", func(b *testing.B) {
		with, plain := s, without(s)
		var took, base time.Duration
		n := 0
		for b.Loop() {
			var t time.Duration
			with, t = change(with, n)
			took += t
			plain, t = change(plain, n)
			base += t
			n++
		}
		b.ReportMetric(float64(took.Nanoseconds())/float64(n), "ns/with")
		b.ReportMetric(float64(base.Nanoseconds())/float64(n), "ns/without")
		figure("state-hash-on-an-apply", took.Seconds()/base.Seconds(), "x", 1.5)
	})
	b.Run("hash", func(b *testing.B) {
		n, start := 0, time.Now()
		for b.Loop() {
			_ = s.Hash()
			n++
		}
		figure("state-hash", time.Since(start).Seconds()*1e6/float64(n), "µs", 10)
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			if err := s.Check(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// figure prints what has a goal; see the Makefile.
func figure(name string, value float64, unit string, limit float64) {
	met := map[bool]string{true: "met", false: "short"}[value <= limit]
	fmt.Printf("figure %s %.3g %s goal <= %g %s\n", name, value, unit, limit, met)
}
