package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

func epochState(t *testing.T) *State {
	t.Helper()
	s := New()
	for i, e := range []*logv1.Entry{
		{Op: &logv1.Entry_Init{Init: &logv1.Init{
			TrustDomain: "shop.example", ClusterId: "c1", SealedRootKey: []byte("sealed"), Admin: &logv1.Admin{Name: "root", Role: "admin"},
		}}},
		{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: "old"}}}},
		{Op: &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: &logv1.Token{
			Id: "t", SecretHash: make([]byte, 32), Server: true, Expires: timestamppb.New(time.Unix(1e9, 0)),
		}}}},
	} {
		e.Format = Format
		var r Result
		if s, r = Apply(s, uint64(i+1), e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	return s
}

// A restored state is of a new epoch, above the old numbers, and has neither the
// servers nor the tokens of before; and a snapshot keeps that.
func TestRestored(t *testing.T) {
	s := epochState(t)
	if n, id := s.Epoch(); n != 0 || id != "c1" {
		t.Errorf("first epoch %d %s", n, id)
	}
	restored := func(epoch, server string) *logv1.Entry {
		return &logv1.Entry{Format: 3, Op: &logv1.Entry_Restored{Restored: &logv1.Restored{EpochId: epoch, Server: &logv1.Server{Id: server}}}}
	}
	raised := s.Raised(1000)
	next, r := Apply(raised, raised.Index()+1, restored("e1", "new"))
	if r.Err != nil || !r.Changed.Trust || !r.Changed.Servers || !r.Changed.Tokens {
		t.Fatalf("%+v", r)
	}
	if n, id := next.Epoch(); n != 1 || id != "e1" || next.Index() != 1004 {
		t.Errorf("epoch %d %s at %d", n, id, next.Index())
	}
	_, old := next.Server("old")
	_, has := next.Server("new")
	_, token := next.Token("t")
	if old || !has || token {
		t.Errorf("old server %v, new server %v, token %v", old, has, token)
	}
	var b bytes.Buffer
	if _, err := next.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n, id := again.Epoch(); n != 1 || id != "e1" || !Diff(next, again).Empty() {
		t.Errorf("read: epoch %d %s, %+v", n, id, Diff(next, again))
	}
	for name, e := range map[string]*logv1.Entry{
		"no epoch": restored("", "x"), "the same epoch": restored("e1", "x"), "the first epoch": restored("c1", "x"),
		"no server": restored("e2", ""), "a server of before": restored("e2", "new"),
	} {
		if _, r := Apply(next, next.Index()+1, e); !errors.Is(r.Err, ErrInvalid) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	older := restored("e2", "x")
	older.Format = 2
	if _, r := Apply(next, next.Index()+1, older); !errors.Is(r.Err, ErrInvalid) {
		t.Errorf("as format 2: %v", r.Err)
	}
}

// The root key is replaced by who has seen the one that it replaces.
func TestReplaceRootKey(t *testing.T) {
	s := epochState(t)
	replace := func(was, now string) *logv1.Entry {
		sum := sha256.Sum256([]byte(was))
		return &logv1.Entry{Format: 3, Op: &logv1.Entry_ReplaceRootKey{ReplaceRootKey: &logv1.ReplaceRootKey{SealedRootKey: []byte(now), Replaces: sum[:]}}}
	}
	next, r := Apply(s, 10, replace("sealed", "anew"))
	if r.Err != nil || !r.Changed.Trust || string(next.SealedRootKey()) != "anew" {
		t.Fatalf("%+v", r)
	}
	by := replace("anew", "third")
	by.GetReplaceRootKey().FromKey, by.GetReplaceRootKey().ToKey = "k1", "k2"
	third, r := Apply(next, 11, by)
	if r.Err != nil || !third.RetiredKey("k1") || third.RetiredKey("k2") || len(next.RetiredKeys()) != 0 {
		t.Errorf("%v; retired %v", r.Err, third.RetiredKeys())
	}
	for _, to := range []string{"k1", "k2"} { // one of before, and the one in use
		back := replace("third", "back")
		back.GetReplaceRootKey().FromKey, back.GetReplaceRootKey().ToKey = "k2", to
		if _, r := Apply(third, 12, back); !errors.Is(r.Err, ErrInvalid) {
			t.Errorf("to %s: %v", to, r.Err)
		}
	}
	var b bytes.Buffer
	if _, err := third.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if again, err := Read(&b); err != nil || !again.RetiredKey("k1") || !Diff(third, again).Empty() {
		t.Errorf("read: %v", err)
	}
	if _, r := Apply(next, 11, replace("sealed", "late")); !errors.Is(r.Err, ErrRootKeyReplaced) {
		t.Errorf("late: %v", r.Err)
	}
	if _, r := Apply(next, 11, replace("anew", "")); !errors.Is(r.Err, ErrInvalid) {
		t.Errorf("nothing: %v", r.Err)
	}
}
