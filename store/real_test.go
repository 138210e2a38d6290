package store_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// build makes the real commands and returns their folder.
func build(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-trimpath", "-o", dir, "../cmd/ztd", "../cmd/ztctl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// real is a ztd that runs on the directory of a server of a mesh.
type real struct {
	cmd   *exec.Cmd
	ready time.Duration // from its start until it said so
}

// runReal runs ztd in the place of a server that is stopped, and returns when it is
// ready.
func runReal(t testing.TB, bin string, s *mesh.Server) *real {
	t.Helper()
	r := startReal(t, bin, s)
	r.wait(t, s)
	return r
}

func startReal(t testing.TB, bin string, s *mesh.Server) *real {
	t.Helper()
	address := s.Addresses()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(bin, "ztd"), "run", "--data-dir", s.Dir,
		"--admin-listen", address.Admin, "--node-listen", address.Node, "--cluster-listen", address.Cluster, "--local-listen", address.Local)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &real{cmd: cmd}
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			t.Logf("log of ztd:\n%s", &log)
		}
	})
	return r
}

// wait returns when the server says that it is ready.
func (r *real) wait(t testing.TB, s *mesh.Server) {
	t.Helper()
	start := time.Now()
	mesh.Until(t, "ztd is ready", func() bool {
		resp, err := http.Get("http://" + s.Addresses().Local + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	r.ready = time.Since(start)
}

// kill ends the process, if it has not ended, and waits for it.
func (r *real) kill() {
	if r.cmd.ProcessState == nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait() // it was killed
	}
}

// memory is the most that the process has had resident, in MiB.
func (r *real) memory(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(line)
	if len(fields) == 0 {
		t.Fatalf("no VmHWM in %s", status)
	}
	kib, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// ztctl runs the real command with a contexts file and returns what it prints.
func ztctl(t testing.TB, bin, contexts string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "ztctl"), append(args, "--config", contexts)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("ztctl %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	return out.String()
}

// realCluster stops the servers of a new mesh and runs ztd on their directories.
func realCluster(t testing.TB, bin string, servers int) (m *mesh.Mesh, running []*real) {
	t.Helper()
	m = mesh.New(t, mesh.Config{Servers: servers})
	m.Together()
	for _, s := range m.Servers {
		s.Stop()
	}
	for _, s := range m.Servers {
		running = append(running, startReal(t, bin, s))
	}
	for i, s := range m.Servers {
		running[i].wait(t, s)
	}
	return m, running
}

// applyLarge applies a large spec by ztctl and returns what that took. It must become
// one revision of all its documents.
func applyLarge(t testing.TB, m *mesh.Mesh, bin string, workloads int) time.Duration {
	t.Helper()
	path := filepath.Join(t.TempDir(), "spec.yaml")
	if err := os.WriteFile(path, largeSpec(workloads), 0o600); err != nil {
		t.Fatal(err)
	}
	contexts := m.Contexts(m.Servers...)
	start := time.Now()
	out := ztctl(t, bin, contexts, "apply", "-f", path)
	took := time.Since(start)
	documents := workloads * (1 + grantsOfEach)
	if want := fmt.Sprintf("\n%d added, 0 changed, 0 removed\n", documents); !strings.Contains(out, want) {
		t.Fatalf("no %q in what ztctl says: %.500s", want, out)
	}
	revisions, err := m.Servers[0].Admin().ListRevisions(t.Context(), &ztv1.ListRevisionsRequest{Detail: ztv1.Detail_DETAIL_NAMES})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(revisions.Revisions); n != 1 || len(revisions.Revisions[0].Changes) != documents {
		t.Fatalf("%d revisions", n)
	}
	return took
}

// TestLargeSpec is a small form of BenchmarkReal: real commands, 1,200 documents as one
// revision, one changed grant as another, and all of it there after a restart.
func TestLargeSpec(t *testing.T) {
	bin := build(t)
	m, running := realCluster(t, bin, 3)
	applyLarge(t, m, bin, 200)
	changed := filepath.Join(t.TempDir(), "one.yaml")
	one := grant("team-0", "service-0-calls-0", "workloads: [team-0/service-0]", "service-0", "[/x]")
	if err := os.WriteFile(changed, []byte(one), 0o600); err != nil {
		t.Fatal(err)
	}
	contexts := m.Contexts(m.Servers...)
	if out := ztctl(t, bin, contexts, "apply", "--merge", "-f", changed); !strings.Contains(out, "\n0 added, 1 changed, 0 removed\n") {
		t.Errorf("one changed grant: %s", out)
	}
	for i := range running {
		running[i].kill()
		running[i] = runReal(t, bin, m.Servers[i])
	}
	var resp *ztv1.ListDocumentsResponse
	var err error
	mesh.Until(t, "the first server answers", func() bool { // those of before may still follow the last leader
		resp, err = m.Servers[0].Admin().ListDocuments(t.Context(), &ztv1.ListDocumentsRequest{Namespace: "team-0", Kind: "Grant"})
		return err == nil || !mesh.Unsettled(err)
	})
	if err != nil || len(resp.Documents) != perNamespace*grantsOfEach {
		t.Errorf("after restarts: %d grants, %v", len(resp.GetDocuments()), err)
	}
}

// BenchmarkReal is 10,000 workloads and 50,000 grants by the real ztctl to real ztd, one
// and three: how long, how much memory, and how long a restart takes.
func BenchmarkReal(b *testing.B) {
	bin := build(b)
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprint(servers), func(b *testing.B) {
			m, running := realCluster(b, bin, servers)
			took := applyLarge(b, m, bin, benchWorkloads())
			most := 0
			for _, r := range running {
				most = max(most, r.memory(b))
			}
			name := fmt.Sprintf("large-spec-by-ztctl-of-%d", servers)
			figure(name, took.Seconds(), "s", "<=", 30)
			figure(name+"-resident", float64(most), "MiB", "<=", 4096)
			running[0].kill()
			figure(fmt.Sprintf("restart-of-ztd-with-large-state-of-%d", servers), runReal(b, bin, m.Servers[0]).ready.Seconds(), "s", "<=", 5)
			for b.Loop() { // everything is measured once
			}
		})
	}
}

// benchWorkloads is how many workloads a large spec has: ZT_WORKLOADS, on a machine that
// is too busy for all of them.
func benchWorkloads() int {
	if n, err := strconv.Atoi(os.Getenv("ZT_WORKLOADS")); err == nil {
		return n
	}
	return largeWorkloads
}
