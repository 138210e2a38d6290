package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/audit"
	"github.com/ztmesh/ztmesh/store/state"
)

// recorded is putEntry as a call.
func recorded(s *Store, name string) *logv1.Entry {
	e := putEntry(s.State().Revision(), name, "x")
	e.Who, e.From, e.Method, e.SpiffeId = "admin/root", "192.0.2.7", "/zt/Apply", "spiffe://control.shop.example/admin/root"
	return e
}

func mustRecord(t testing.TB, c *testCluster, s *Store, name string) {
	t.Helper()
	if r, err := s.Propose(c.ctx(), recorded(s, name)); err != nil || r.Err != nil {
		t.Fatalf("%s: %v, %v", name, err, r.Err)
	}
}

// chainOf is the records on a server's disk.
func chainOf(t testing.TB, s *Store) (out [][]byte) {
	t.Helper()
	if err := s.ReadAudit(1, func(a *state.Audit) error {
		out = append(out, a.Bytes)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func sameChain(t testing.TB, a, b *Store) {
	t.Helper()
	ca, cb := chainOf(t, a), chainOf(t, b)
	if len(ca) != len(cb) {
		t.Fatalf("%s has %d records, %s has %d", a.cfg.ID, len(ca), b.cfg.ID, len(cb))
	}
	for i := range ca {
		if !bytes.Equal(ca[i], cb[i]) {
			t.Fatalf("%s and %s differ in record %d", a.cfg.ID, b.cfg.ID, i+1)
		}
	}
}

// TestAuditChainOfCluster: every server keeps the same records, over kills, restarts
// and snapshots; one that was seeded by a snapshot, or has lost its records, gets
// them from another.
func TestAuditChainOfCluster(t *testing.T) {
	c := newTestCluster(t, loopback())
	a := c.begin("a", "b", "c")
	mustRecord(t, c, a, "g0")
	if r, err := a.Propose(c.ctx(), recorded(a, "g0")); err != nil || !r.Replayed {
		t.Fatalf("%v, %v", r, err)
	}
	refused := recorded(a, "stale")
	refused.GetApply().ValidatedAt = 1
	if r, err := a.Propose(c.ctx(), refused); err != nil || !errors.Is(r.Err, state.ErrRevalidate) {
		t.Fatalf("%v, %v", r, err)
	}
	if n := len(chainOf(t, a)); n != 3 {
		t.Fatalf("%d records of three entries", n)
	}
	waitIndex(t, c.servers["c"], a.State().Index())
	c.net.isolate("c", true)
	for i := range 40 {
		mustRecord(t, c, a, fmt.Sprint("h", i))
	}
	waitIndex(t, c.servers["b"], a.State().Index())
	sameChain(t, a, c.servers["b"])
	for _, name := range []string{"a", "b"} {
		if err := c.servers[name].raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	behind := c.servers["c"].State().Index() + 1
	if err := a.log.GetLog(behind, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("c could follow the log, which still has entry %d: %v", behind, err)
	}
	c.net.isolate("c", false)
	waitIndex(t, c.servers["c"], a.State().Index())
	mustRecord(t, c, a, "after")
	waitIndex(t, c.servers["c"], a.State().Index())
	seeded := c.servers["c"]
	c.fill(seeded, a, audit.Range{First: 4, Last: 43})
	sameChain(t, a, seeded)

	// A disk that is lost: the records come back, too.
	c.kill("c")
	if err := os.RemoveAll(filepath.Join(c.dir, "c", "audit")); err != nil {
		t.Fatal(err)
	}
	seeded = c.start("c")
	waitIndex(t, seeded, c.leader().State().Index())
	holes := seeded.AuditHoles()
	if len(holes) != 1 || holes[0].First != 1 {
		t.Fatalf("holes %v", holes)
	}
	c.fill(seeded, c.leader(), holes[0])
	sameChain(t, c.leader(), seeded)
	head, _ := seeded.AuditHeads()
	if sequence, hash := c.leader().State().AuditHead(); head.Sequence != sequence || !bytes.Equal(head.Hash, hash) {
		t.Errorf("head %d, the leader's is %d", head.Sequence, sequence)
	}
}

// fill closes a hole of one server by what another has.
func (c *testCluster) fill(to, from *Store, hole audit.Range) {
	c.t.Helper()
	if got := to.AuditHoles(); len(got) != 1 || got[0] != hole {
		c.t.Fatalf("holes %v, want %v", got, hole)
	}
	records := chainOf(c.t, from)[hole.First-1 : hole.Last]
	if err := to.FillAudit(hole, 0, func() ([]byte, error) {
		if len(records) == 0 {
			return nil, io.EOF
		}
		b := records[0]
		records = records[1:]
		return b, nil
	}); err != nil {
		c.t.Fatal(err)
	}
}

// TestDamagedAuditLog: a server whose records were edited while it was down does not
// start, and names the first; so does one whose log says something else.
func TestDamagedAuditLog(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		c := newTestCluster(t, loopback())
		a := c.begin("a")
		for i := range 5 {
			mustRecord(t, c, a, fmt.Sprint("g", i))
		}
		if snapshot {
			if err := a.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		c.kill("a")
		name := filepath.Join(c.dir, "a", "audit", "00000000000000000001.audit")
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.LastIndex(b, []byte("192.0.2.7"))
		b[at] = '2'
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = Open(c.config("a"))
		var damage *audit.DamageError
		if !errors.Is(err, ErrAuditDamaged) || !errors.As(err, &damage) || damage.Sequence != 5 {
			t.Fatalf("snapshot %v: %v", snapshot, err)
		}
		// What the message says to do.
		if err := os.Rename(filepath.Dir(name), filepath.Join(c.dir, "evidence")); err != nil {
			t.Fatal(err)
		}
		a = c.start("a")
		waitLeads(t, a)
		mustRecord(t, c, a, "more")
		if holes := a.AuditHoles(); snapshot != (len(holes) == 1) {
			t.Errorf("snapshot %v: holes %v", snapshot, holes)
		}
	}
}
