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
	"strconv"
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

func number(t *testing.T, name string, standard uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return standard
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// run is one cluster and what it has acknowledged.
type run struct {
	t       *testing.T
	rng     *rand.Rand
	c       *fleet.Cluster
	acked   []string // names of workloads
	asked   int
	roomy   int // the server whose data directory is a small file system
	did     map[string]int
	started time.Time
}

// TestDisk is the suite: each cycle breaks the disk of one of three servers, and then
// all three must vote, agree bit by bit, and have everything that was acknowledged.
func TestDisk(t *testing.T) {
	cycles, seed := int(number(t, "ZT_DISK_CYCLES", 40)), number(t, "ZT_SEED", rand.Uint64N(1<<30))
	var until time.Time // zero: all cycles
	if s := os.Getenv("ZT_MINUTES"); s != "" {
		until = time.Now().Add(time.Duration(number(t, "ZT_MINUTES", 0)) * time.Minute)
	}
	t.Logf("ZT_SEED=%d ZT_DISK_CYCLES=%d", seed, cycles)
	r := begin(t, seed)
	faults := []func(int) string{r.damage, r.damage, r.damage, r.syncError, r.full}
	for n := 0; n < cycles && (until.IsZero() || time.Now().Before(until)); n++ {
		at := time.Now()
		r.write(4)
		server := r.rng.IntN(len(r.c.Servers))
		what := faults[n%len(faults)](server)
		r.did[what]++
		r.write(2)
		r.whole()
		if testing.Verbose() {
			fmt.Printf("cycle %d %s: %s, %v\n", n+1, r.c.Servers[server].Name, what, time.Since(at).Round(time.Millisecond))
		}
		if t.Failed() {
			t.Fatalf("cycle %d of ZT_SEED=%d: %s", n+1, seed, what)
		}
	}
	r.check(r.c.Converge(r.ctx()))
	t.Logf("%d acknowledged of %d in %v: %v", len(r.acked), r.asked, time.Since(r.started).Round(time.Second), r.did)
	if cycles >= 40 && (r.did["refused, reseeded"] == 0 || r.did["sync error: ended"] == 0) {
		t.Errorf("the faults were not of every kind: %v", r.did)
	}
}

func (r *run) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *run) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// begin starts three servers; the data directory of the last is on a file system of
// its own, of 192 MiB.
func begin(t *testing.T, seed uint64) *run {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &run{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), did: map[string]int{}, started: time.Now(), roomy: 2,
		c: &fleet.Cluster{Site: &fleet.Site{Bin: t.TempDir(), Dir: dir, Env: fleet.Environment()}},
	}
	r.check(r.c.Build(r.ctx(), root, "ztd"))
	net := fmt.Sprintf("127.%d.%d.", 64+os.Getpid()>>8&63, os.Getpid()&255)
	var servers []*fleet.Server
	for i := range 3 {
		servers = append(servers, &fleet.Server{
			Name: fmt.Sprint("s", i+1), Host: net + fmt.Sprint(i+1),
			Flags: []string{"--election-timeout", "500ms", "--disk-reserve", "32"},
		})
	}
	small := servers[r.roomy].Dir(r.c.Site)
	r.check(os.Mkdir(small, 0o700))
	r.check(syscall.Mount("tmpfs", small, "tmpfs", 0, "size=192m,mode=0700"))
	t.Cleanup(func() {
		for _, s := range servers {
			if s.Running() {
				s.Kill()
			}
		}
		if err := syscall.Unmount(small, 0); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, s := range servers {
				t.Logf("%s:\n%s", s.Name, zttest.Tail(r.c.Log(s.Name), 20))
			}
		}
	})
	r.check(r.c.Begin(r.ctx(), "shop.example", servers))
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
	for i, s := range r.c.Servers {
		if !s.Running() {
			continue
		}
		_, err = r.c.API(i).Apply(ctx, &ztv1.ApplyRequest{
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
	r.t.Helper()
	r.check(r.c.Together(r.ctx()))
	r.check(fleet.Until(r.ctx(), "a read", func(ctx context.Context) error {
		there, token := map[string]bool{}, ""
		for {
			resp, err := r.c.API(r.asked%len(r.c.Servers)).ListDocuments(ctx, &ztv1.ListDocumentsRequest{Kind: "Workload", PageSize: 1000, PageToken: token})
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
				r.t.Errorf("%s was acknowledged, and is lost", name)
			}
		}
		return nil
	}))
	r.check(r.c.Converge(r.ctx()))
}

// damage kills a server and damages what it has on its disk.
func (r *run) damage(n int) string {
	s := r.c.Servers[n]
	s.Kill()
	file, what := r.harm(filepath.Join(s.Dir(r.c.Site), "raft"))
	log := filepath.Join(r.c.Dir, "log", s.Name+".log")
	before, err := os.ReadFile(log)
	r.check(err)
	r.check(s.Start(r.c.Site))
	ready := s.Ready(r.ctx())
	if ready == nil {
		return "whole all the same"
	}
	if s.Running() {
		r.t.Fatalf("%s, %s: it neither runs nor ends: %v", file, what, ready)
	}
	r.settleID(n) // a server that was refused has changed nothing
	said, err := os.ReadFile(log)
	r.check(err)
	last := string(said[min(len(before), len(said)):])
	if !strings.Contains(last, "not readable") || !strings.Contains(last, "ztd reseed --data-dir") {
		r.t.Fatalf("%s, %s: it says\n%s", file, what, last)
	}
	return r.reseed(n)
}

// reseed makes the server another member.
func (r *run) reseed(n int) string {
	s := r.c.Servers[n]
	r.check(fleet.Until(r.ctx(), "reseed", func(ctx context.Context) error {
		_, err := r.c.Command(ctx, "ztd", "reseed", "--data-dir", s.Name)
		return err
	}))
	was := r.c.IDs[n]
	if r.settleID(n); r.c.IDs[n] == was {
		r.t.Fatal("a reseeded server has its old id")
	}
	kept, err := filepath.Glob(filepath.Join(s.Dir(r.c.Site), "raft.lost-*"))
	r.check(err)
	if len(kept) == 0 {
		r.t.Error("what was damaged is not kept")
	}
	for _, dir := range kept { // a test may
		r.check(os.RemoveAll(dir))
	}
	r.check(s.Start(r.c.Site))
	r.check(s.Ready(r.ctx()))
	return "refused, reseeded"
}

func (r *run) settleID(n int) {
	id, err := r.c.ID(r.c.Servers[n])
	r.check(err)
	r.c.IDs[n] = id
}

// harm flips a bit of one file of a log directory, cuts it off, or takes it away.
func (r *run) harm(dir string) (file, what string) {
	var files []string
	for _, pattern := range []string{"log/*.log", "log/*.log", "snapshots/*.snap", "terms", "acked"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		r.check(err)
		files = append(files, found...)
	}
	file = files[r.rng.IntN(len(files))]
	b, err := os.ReadFile(file)
	r.check(err)
	used := max(1, len(bytes.TrimRight(b, "\x00")))
	at := r.rng.IntN(used)
	switch r.rng.IntN(4) {
	case 0, 1:
		b[at] ^= 1 << r.rng.IntN(8)
		r.check(os.WriteFile(file, b, 0o600))
		return file, fmt.Sprintf("a bit of byte %d of %d flipped", at, used)
	case 2:
		r.check(os.Truncate(file, int64(at)))
		return file, fmt.Sprintf("cut off at %d of %d", at, used)
	default:
		r.check(os.Remove(file))
		return file, "taken away"
	}
}

// syncError lets one sync of a server fail: it ends at once, says why, and has lost
// nothing.
func (r *run) syncError(n int) string {
	s := r.c.Servers[n]
	s.Kill()
	under := s.Under
	// Each thread counts for itself; it may be a sync of the start.
	s.Under = []string{
		"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
		"-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", 4+r.rng.IntN(20)),
	}
	r.check(s.Start(r.c.Site))
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
	} else if said := zttest.Tail(r.c.Log(s.Name), 40); !strings.Contains(said, "input/output error") {
		r.t.Errorf("it ended and says\n%s", said)
	}
	// strace has ended; what it traced may need a moment more.
	r.check(fleet.Until(r.ctx(), "the end of "+s.Name, func(context.Context) error {
		f, err := os.Open(filepath.Join(s.Dir(r.c.Site), "lock"))
		if err != nil {
			return err
		}
		defer f.Close()
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}))
	r.check(s.Start(r.c.Site))
	r.check(s.Ready(r.ctx()))
	return what
}

// full fills the small file system. The cluster takes changes on, led by another
// server; removals and reads go on, and all is as before when there is room.
func (r *run) full(int) string {
	n := r.roomy
	dir := r.c.Servers[n].Dir(r.c.Site)
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	r.check(err)
	chunk := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		r.t.Fatal(err)
	}
	r.check(f.Close())
	// It says so itself, and every server knows.
	isFull := func(want bool) error {
		return fleet.Until(r.ctx(), fmt.Sprintf("disk full: %v", want), func(ctx context.Context) error {
			said, err := r.c.Servers[n].Get(ctx, "/readyz")
			if err != nil || strings.Contains(said, "disk=full") != want {
				return fmt.Errorf("it says %q: %w", said, err)
			}
			for i := range r.c.Servers {
				resp, err := r.c.API(i).ListMembers(ctx, &ztv1.ListMembersRequest{Stale: true}) // as it sees them itself
				if err != nil {
					return err
				}
				known := false
				for _, m := range resp.Members {
					known = known || m.Id == r.c.IDs[n] && m.DiskFull == want
				}
				if !known {
					return fmt.Errorf("%s does not know: %v", r.c.Servers[i].Name, resp.Members)
				}
			}
			return nil
		})
	}
	r.check(isFull(true))
	r.check(fleet.Until(r.ctx(), "a leader with room", func(ctx context.Context) error {
		leader, err := r.c.Leader(ctx)
		if err == nil && leader == n {
			err = errors.New("the one without room leads")
		}
		return err
	}))
	name := fmt.Sprint("w", r.asked)
	r.check(fleet.Until(r.ctx(), "a change", func(context.Context) error { return r.apply(name, 5*time.Second) }))
	r.acked = append(r.acked, name)
	if !r.c.Servers[n].Running() {
		r.t.Error("a server has ended since its disk is full")
	}
	r.check(os.Remove(ballast))
	r.check(isFull(false))
	return "full disk"
}
