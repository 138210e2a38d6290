//go:build system

package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// patience bounds each wait.
const patience = 2 * time.Minute

// run is one cluster and what it has acknowledged.
type run struct {
	*fleet.Test
	rng     *rand.Rand
	acked   []string // names of workloads
	asked   int
	roomy   int // the server whose data directory is a small file system
	did     map[string]int
	started time.Time
}

// TestDisk is the suite: each cycle breaks the disk of one of three servers, and then
// all three must vote, agree bit by bit, and have everything that was acknowledged.
func TestDisk(t *testing.T) {
	cycles, seed := int(fleet.Number(t, "ZT_DISK_CYCLES", 40)), fleet.Number(t, "ZT_SEED", rand.Uint64N(1<<30))
	until := fleet.Deadline(t)
	t.Logf("ZT_SEED=%d ZT_DISK_CYCLES=%d", seed, cycles)
	r := begin(t, seed)
	faults := []func(int) string{r.damage, r.damage, r.damage, r.syncError, r.full}
	for n := 0; n < cycles && (until.IsZero() || time.Now().Before(until)); n++ {
		at := time.Now()
		r.write(4)
		server := r.rng.IntN(len(r.Servers))
		what := faults[n%len(faults)](server)
		r.did[what]++
		r.write(2)
		r.whole()
		if testing.Verbose() {
			fmt.Printf("cycle %d %s: %s, %v\n", n+1, r.Servers[server].Name, what, time.Since(at).Round(time.Millisecond))
		}
		if t.Failed() {
			t.Fatalf("cycle %d of ZT_SEED=%d: %s", n+1, seed, what)
		}
	}
	r.Check(r.Converge(r.Context()))
	t.Logf("%d acknowledged of %d in %v: %v", len(r.acked), r.asked, time.Since(r.started).Round(time.Second), r.did)
	if cycles >= 40 && (r.did["refused, reseeded"] == 0 || r.did["sync error: ended"] == 0) {
		t.Errorf("the faults were not of every kind: %v", r.did)
	}
}

// begin starts three servers; the data directory of the last is on a file system of
// its own, of 192 MiB.
func begin(t *testing.T, seed uint64) *run {
	t.Helper()
	r := &run{
		Test: fleet.NewTest(t, patience, []string{"ztd"}), rng: rand.New(rand.NewPCG(seed, 0)), did: map[string]int{}, started: time.Now(), roomy: 2,
	}
	var servers []*fleet.Server
	for i := range 3 {
		servers = append(servers, &fleet.Server{
			Name: fmt.Sprint("s", i+1), Host: r.Block.At(i + 1),
			Flags: []string{"--election-timeout", "500ms", "--disk-reserve", "32"},
		})
	}
	small := servers[r.roomy].Dir(r.Site)
	r.Check(os.Mkdir(small, 0o700))
	r.Check(syscall.Mount("tmpfs", small, "tmpfs", 0, "size=192m,mode=0700"))
	t.Cleanup(func() {
		for _, s := range servers {
			if s.Running() {
				s.Kill()
			}
		}
		if err := syscall.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	r.Check(r.Begin(r.Context(), "shop.example", servers))
	return r
}

// write applies workloads, each at a server that may be any, and notes those that were
// acknowledged.
func (r *run) write(n int) {
	for range n {
		name := fmt.Sprint("w", r.asked)
		if r.apply(name, 10*time.Second) == nil {
			r.acked = append(r.acked, name)
		}
	}
}

func (r *run) apply(name string, patience time.Duration) error {
	r.asked++
	yaml := fmt.Sprintf("apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: %s}\nspec: {}\n", name)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := errors.New("no server runs")
	for i, s := range r.Servers {
		if !s.Running() {
			continue
		}
		_, err = r.API(i).Apply(ctx, &ztv1.ApplyRequest{
			Files: []*ztv1.File{{Name: "f.yaml", Content: []byte(yaml)}}, Merge: true, IdempotencyKey: name,
		})
		if err == nil {
			return nil
		}
	}
	return err
}

// whole waits until three servers vote, and looks for everything acknowledged.
func (r *run) whole() {
	r.T.Helper()
	r.Check(r.Together(r.Context()))
	r.Until("a read", func(ctx context.Context) error {
		there, token := map[string]bool{}, ""
		for {
			resp, err := r.API(r.asked%len(r.Servers)).ListDocuments(ctx, &ztv1.ListDocumentsRequest{Kind: "Workload", PageSize: 1000, PageToken: token})
			if err != nil {
				return err
			}
			for _, d := range resp.Documents {
				there[d.GetDocument().GetMetadata().GetName()] = true
			}
			if token = resp.NextPageToken; token == "" {
				break
			}
		}
		for _, name := range r.acked {
			if !there[name] {
				r.T.Errorf("%s was acknowledged, and is lost", name)
			}
		}
		return nil
	})
	r.Check(r.Converge(r.Context()))
}

// damage kills a server and damages what it has on its disk.
func (r *run) damage(n int) string {
	s := r.Servers[n]
	s.Kill()
	file, what := r.harm(filepath.Join(s.Dir(r.Site), "raft"))
	log := filepath.Join(r.Dir, "log", s.Name+".log")
	before, err := os.ReadFile(log)
	r.Check(err)
	r.Check(s.Start(r.Site))
	ready := s.Ready(r.Context())
	if ready == nil {
		return "whole all the same"
	}
	if s.Running() {
		r.T.Fatalf("%s, %s: it neither runs nor ends: %v", file, what, ready)
	}
	r.settleID(n) // a server that was refused has changed nothing
	said, err := os.ReadFile(log)
	r.Check(err)
	last := string(said[min(len(before), len(said)):])
	if !strings.Contains(last, "not readable") || !strings.Contains(last, "ztd reseed --data-dir") {
		r.T.Fatalf("%s, %s: it says\n%s", file, what, last)
	}
	return r.reseed(n)
}

// reseed makes the server another member.
func (r *run) reseed(n int) string {
	s := r.Servers[n]
	r.Until("reseed", func(ctx context.Context) error {
		_, err := r.Command(ctx, "ztd", "reseed", "--data-dir", s.Name)
		return err
	})
	was := r.IDs[n]
	if r.settleID(n); r.IDs[n] == was {
		r.T.Fatal("a reseeded server has its old id")
	}
	kept, err := filepath.Glob(filepath.Join(s.Dir(r.Site), "raft.lost-*"))
	r.Check(err)
	if len(kept) == 0 {
		r.T.Error("what was damaged is not kept")
	}
	for _, dir := range kept { // a test may
		r.Check(os.RemoveAll(dir))
	}
	r.Check(s.Start(r.Site))
	r.Check(s.Ready(r.Context()))
	return "refused, reseeded"
}

func (r *run) settleID(n int) {
	id, err := r.ID(r.Servers[n])
	r.Check(err)
	r.IDs[n] = id
}

// harm flips a bit of one file of a log directory, cuts it off, or takes it away.
func (r *run) harm(dir string) (file, what string) {
	var files []string
	for _, pattern := range []string{"log/*.log", "log/*.log", "snapshots/*.snap", "terms", "acked"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		r.Check(err)
		files = append(files, found...)
	}
	file = files[r.rng.IntN(len(files))]
	b, err := os.ReadFile(file)
	r.Check(err)
	used := max(1, len(bytes.TrimRight(b, "\x00")))
	at := r.rng.IntN(used)
	switch r.rng.IntN(4) {
	case 0, 1:
		b[at] ^= 1 << r.rng.IntN(8)
		r.Check(os.WriteFile(file, b, 0o600))
		return file, fmt.Sprintf("a bit of byte %d of %d flipped", at, used)
	case 2:
		r.Check(os.Truncate(file, int64(at)))
		return file, fmt.Sprintf("cut off at %d of %d", at, used)
	default:
		r.Check(os.Remove(file))
		return file, "taken away"
	}
}

// syncError lets one sync of a server fail: it ends at once, says why, and has lost
// nothing.
func (r *run) syncError(n int) string {
	s := r.Servers[n]
	s.Kill()
	under := s.Under
	// Each thread counts for itself; it may be a sync of the start.
	s.Under = []string{
		"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
		"-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", 4+r.rng.IntN(20)),
	}
	r.Check(s.Start(r.Site))
	s.Under = under
	for tries := 0; s.Running() && tries < 200; tries++ {
		name := fmt.Sprint("w", r.asked)
		if r.apply(name, 5*time.Second) == nil {
			r.acked = append(r.acked, name)
		}
	}
	what := "sync error: ended"
	if s.Running() {
		s.Kill()
		what = "sync error: not reached"
	} else if said := zttest.Tail(r.Log(s.Name), 40); !strings.Contains(said, "input/output error") {
		r.T.Errorf("it ended and says\n%s", said)
	}
	// strace has ended; what it traced may need a moment more.
	r.Until("the end of "+s.Name, func(context.Context) error {
		f, err := os.Open(filepath.Join(s.Dir(r.Site), "lock"))
		if err != nil {
			return err
		}
		defer f.Close()
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	})
	r.Check(s.Start(r.Site))
	r.Check(s.Ready(r.Context()))
	return what
}

// full fills the small file system. The cluster takes changes on, led by another
// server; removals and reads go on, and all is as before when there is room.
func (r *run) full(int) string {
	n := r.roomy
	dir := r.Servers[n].Dir(r.Site)
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	r.Check(err)
	chunk := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		r.T.Fatal(err)
	}
	r.Check(f.Close())
	// It says so itself, and every server knows.
	isFull := func(want bool) error {
		return fleet.Until(r.Context(), fmt.Sprintf("disk full: %v", want), func(ctx context.Context) error {
			said, err := r.Servers[n].Get(ctx, "/readyz")
			if err != nil || strings.Contains(said, "disk=full") != want {
				return fmt.Errorf("it says %q: %w", said, err)
			}
			for i := range r.Servers {
				resp, err := r.API(i).ListMembers(ctx, &ztv1.ListMembersRequest{Stale: true}) // as it sees them itself
				if err != nil {
					return err
				}
				known := false
				for _, m := range resp.Members {
					known = known || m.Id == r.IDs[n] && m.DiskFull == want
				}
				if !known {
					return fmt.Errorf("%s does not know: %v", r.Servers[i].Name, resp.Members)
				}
			}
			return nil
		})
	}
	r.Check(isFull(true))
	r.Until("a leader with room", func(ctx context.Context) error {
		leader, err := r.Leader(ctx)
		if err == nil && leader == n {
			err = errors.New("the one without room leads")
		}
		return err
	})
	name := fmt.Sprint("w", r.asked)
	r.Until("a change", func(context.Context) error { return r.apply(name, 5*time.Second) })
	r.acked = append(r.acked, name)
	if !r.Servers[n].Running() {
		r.T.Error("a server has ended since its disk is full")
	}
	r.Check(os.Remove(ballast))
	r.Check(isFull(false))
	return "full disk"
}
