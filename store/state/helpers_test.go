package state_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// cluster applies entries one after another, one second apart.
type cluster struct {
	t     testing.TB
	s     *state.State
	index uint64
	now   time.Time
	log   []*logv1.Entry // all that were applied
}

func newCluster(t testing.TB) *cluster {
	c := &cluster{t: t, s: state.New(), now: epoch}
	c.must(&logv1.Entry{Op: &logv1.Entry_Init{Init: initOp()}})
	return c
}

func initOp() *logv1.Init {
	return &logv1.Init{
		TrustDomain: "shop.example", ClusterId: "c1", Roots: [][]byte{[]byte("root")}, SealedRootKey: []byte("sealed"),
		Admin: &logv1.Admin{Name: "root", Role: "admin"},
	}
}

func (c *cluster) apply(e *logv1.Entry) state.Result {
	c.index++
	c.now = c.now.Add(time.Second)
	if e.Format == 0 {
		e.Format = state.FormatOf(e)
	}
	if e.When == nil {
		e.When = timestamppb.New(c.now)
	}
	var r state.Result
	c.log = append(c.log, proto.CloneOf(e))
	c.s, r = state.Apply(c.s, c.index, e)
	return r
}

func (c *cluster) must(e *logv1.Entry) state.Result {
	c.t.Helper()
	r := c.apply(e)
	if r.Err != nil {
		c.t.Fatalf("%v: %v", e, r.Err)
	}
	return r
}

// put is an Apply validated at the newest revision.
func (c *cluster) put(docs ...*logv1.Put) *logv1.Entry {
	return applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Puts: docs})
}

func applyEntry(a *logv1.Apply) *logv1.Entry {
	return &logv1.Entry{Who: "spiffe://control.shop.example/admin/root", Op: &logv1.Entry_Apply{Apply: a}}
}

func doc(kind, namespace, name, bytes string) *logv1.Put {
	return &logv1.Put{Key: &logv1.Key{Kind: kind, Namespace: namespace, Name: name}, Document: []byte(bytes)}
}

func key(kind, namespace, name string) *logv1.Key {
	return &logv1.Key{Kind: kind, Namespace: namespace, Name: name}
}

// retired keeps a name for a while from the state's time on.
func (c *cluster) retired(workload string, d time.Duration) *logv1.Retired {
	return &logv1.Retired{Workload: workload, Until: timestamppb.New(c.s.When().Add(d))}
}

// propose is for one namespace.
func propose(namespace string, docs ...*logv1.Put) *logv1.Entry {
	return &logv1.Entry{Who: "admin/ed", Op: &logv1.Entry_Propose{Propose: &logv1.Propose{Namespaces: []string{namespace}, Puts: docs}}}
}

func hashOf(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

func (c *cluster) token(id, workload string) *logv1.Entry {
	return &logv1.Entry{Op: &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: &logv1.Token{
		Id: id, SecretHash: hashOf(id), Workload: workload, Server: workload == "", Expires: timestamppb.New(c.now.Add(time.Hour)),
	}}}}
}

func redeem(token, instance, workload string) *logv1.Entry {
	return &logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: &logv1.Redeem{
		Id: token, SecretHash: hashOf(token),
		Instance: &logv1.Instance{Id: instance, Workload: workload, Address: "127.0.0.21", KeyHash: hashOf("key of " + instance)},
	}}}
}

func snapshotOf(t testing.TB, s *state.State) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo: %d of %d bytes, %v", n, b.Len(), err)
	}
	return b.Bytes()
}

// formatOf is the format that a snapshot's header says.
func formatOf(t testing.TB, snapshot []byte) uint32 {
	t.Helper()
	size, n := binary.Uvarint(snapshot)
	rec := &logv1.Record{}
	if err := proto.Unmarshal(snapshot[n:n+int(size)], rec); err != nil {
		t.Fatal(err)
	}
	return rec.GetHeader().GetFormat()
}
