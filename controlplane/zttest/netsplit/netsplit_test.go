//go:build system

package netsplit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/controlplane/zttest/ledger"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const (
	// patience bounds every wait for what takes a few seconds.
	patience    = 60 * time.Second
	trustDomain = "split.example"
	mesh        = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: split.example}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: load, name: agent}
spec: {}
`
	workload = "load/agent"
	writers  = 3
	// within says, in the environment, that this is the process in the namespaces.
	within = "ZT_NETSPLIT_WITHIN"
)

// TestNetsplit is the suite.
func TestNetsplit(t *testing.T) {
	if os.Getenv(within) == "" {
		again(t)
		return
	}
	rounds, seed := int(number(t, "ZT_ROUNDS", 1)), number(t, "ZT_SEED", rand.Uint64())
	t.Logf("ZT_SEED=%d ZT_ROUNDS=%d", seed, rounds)
	s := begin(t, rounds, seed)
	faults := []struct {
		name string
		make func(*split)
	}{
		{"follower isolated", (*split).followerIsolated},
		{"leader in the minority", (*split).leaderInMinority},
		{"one-way links", (*split).oneWay},
		{"leader hears nobody", (*split).leaderHearsNobody},
		{"bridge", (*split).bridge},
		{"flapping", (*split).flapping},
		{"leader stopped", (*split).leaderStopped},
		{"administrator in the dark", (*split).black},
	}
	for round := range rounds {
		s.rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
		for _, f := range faults {
			at := time.Now()
			f.make(s)
			s.check(s.oneLeaderPerTerm())
			t.Logf("round %d, %s: %v", round+1, f.name, time.Since(at).Round(time.Millisecond))
		}
	}
	t.Logf("%+v", s.ledger.Counts())
}

// again runs this test in namespaces of its own.
func again(t *testing.T) {
	args := []string{
		"--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", `mount -t tmpfs tmpfs /run && exec "$@"`, "sh",
		os.Args[0], "-test.run", "^TestNetsplit$", "-test.v", "-test.timeout", "0",
	}
	cmd := exec.CommandContext(t.Context(), "unshare", args...)
	cmd.Env = append(os.Environ(), within+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if testing.Verbose() { // long runs are watched
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	if err := cmd.Run(); err != nil {
		t.Logf("%s", out.Bytes())
		t.Fatalf("in the namespaces: %v (this test needs root)", err)
	}
}

// number reads a variable of the environment.
func number(t *testing.T, name string, standard uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return standard
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// split is one run over one cluster. The index of a server is that of its end of the
// network, less one.
type split struct {
	*fleet.Cluster
	t      *testing.T
	net    *network
	ledger *ledger.Ledger
	rng    *rand.Rand
	long   bool
}

func begin(t *testing.T, rounds int, seed uint64) *split {
	t.Helper()
	dir, err := os.MkdirTemp("", "ztsplit")
	if err != nil {
		t.Fatal(err)
	}
	s := &split{
		Cluster: &fleet.Cluster{Site: &fleet.Site{Bin: filepath.Join(dir, "bin"), Dir: dir, Env: fleet.Environment()}},
		t:       t, net: newNetwork(t, 3), rng: rand.New(rand.NewPCG(seed, 0)), long: rounds > 1,
	}
	t.Cleanup(s.end)
	s.check(s.Build(t.Context(), filepath.Join("..", "..", ".."), "ztd", "ztctl"))
	var servers []*fleet.Server
	for n := 1; n <= 3; n++ {
		servers = append(servers, &fleet.Server{
			Name: fmt.Sprintf("ztd-%d", n), Host: ip(n), LocalHost: "127.0.0.1", Dial: dialIn(n),
			Under: []string{"ip", "netns", "exec", space(n)}, Flags: []string{"--log-level", "debug"},
		})
	}
	s.check(s.Begin(s.ctx(), trustDomain, servers))
	s.check(fleet.Until(s.ctx(), "the mesh", func(ctx context.Context) error {
		_, err := s.API(0).Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "m", Content: []byte(mesh)}}})
		return err
	}))
	s.ledger = ledger.New(s.Ports, 2)
	return s
}

func (s *split) end() {
	for _, server := range s.Servers {
		server.Kill()
	}
	if !s.t.Failed() {
		if err := os.RemoveAll(s.Dir); err != nil {
			s.t.Error(err)
		}
		return
	}
	if s.ledger != nil {
		if err := s.ledger.Save(filepath.Join(s.Dir, "ledger")); err != nil {
			s.t.Error(err)
		}
	}
	s.t.Logf("logs, data directories and ledger are in %s", s.Dir)
}

func (s *split) check(err error) {
	s.t.Helper()
	if err != nil {
		var f *zttest.Failure
		if errors.As(err, &f) {
			err = fmt.Errorf("%w\n--- end of %s\n%s", err, f.Log, zttest.Tail(f.Log, 20))
		}
		s.t.Fatal(err)
	}
}

// ctx ends with the test, or when patience does.
func (s *split) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *split) leader() int {
	s.t.Helper()
	n, err := s.Leader(s.ctx())
	s.check(err)
	return n
}

// others are the indexes of the servers beside one.
func others(than int) []int { return []int{(than + 1) % 3, (than + 2) % 3} }

// ends are the numbers of the ends of servers.
func ends(servers []int) (out []int) {
	for _, n := range servers {
		out = append(out, n+1)
	}
	return out
}

// last is how long a fault lasts: a few seconds, more in the long form.
func (s *split) last(few time.Duration) time.Duration {
	if s.long {
		few += time.Duration(s.rng.Int64N(int64(2 * few)))
	}
	return few
}

// wait lets a fault last.
func (s *split) wait(d time.Duration) {
	s.t.Helper()
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
		s.t.Fatal(s.t.Context().Err())
	}
}

// load is the clients at work.
type load struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

// startLoad returns once writes are acknowledged.
func (s *split) startLoad() *load {
	s.t.Helper()
	ctx, stop := context.WithCancel(s.t.Context())
	l := &load{stop: stop}
	seed := s.rng.Uint64()
	for _, work := range []func() error{
		func() error { return s.ledger.Writers(ctx, writers, seed, patience) },
		func() error { return s.ledger.Readers(ctx, writers, seed) },
		func() error { return s.ledger.Joiners(ctx, 1, workload, seed, patience) },
	} {
		l.wg.Go(func() {
			if err := work(); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.errs = append(l.errs, err)
			}
		})
	}
	s.moreWrites(3)
	return l
}

// moreWrites waits until so many more writes are acknowledged.
func (s *split) moreWrites(n int) {
	s.t.Helper()
	from := s.ledger.Acknowledged()
	s.check(fleet.Until(s.ctx(), "writes", func(context.Context) error {
		if now := s.ledger.Acknowledged(); now < from+n {
			return fmt.Errorf("%d of %d", now-from, n)
		}
		return nil
	}))
}

// settle mends the network, asks everything to its end, and compares.
func (s *split) settle(l *load) {
	s.t.Helper()
	s.net.heal()
	l.stop()
	l.wg.Wait()
	s.check(errors.Join(l.errs...))
	s.check(s.Converge(s.ctx()))
	s.check(s.ledger.Check(s.ctx()))
	s.check(s.ledger.CheckJournals(s.Journals()...))
}

// elections are the terms that each server says it has won.
func (s *split) elections() (won map[uint64][]string, err error) {
	won = map[uint64][]string{}
	for _, server := range s.Servers {
		b, err := os.ReadFile(server.Log())
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(b) {
			var said struct {
				Msg  string `json:"msg"`
				Term uint64 `json:"term"`
			}
			if json.Unmarshal(line, &said) == nil && said.Msg == "election won" {
				won[said.Term] = append(won[said.Term], server.Name)
			}
		}
	}
	return won, nil
}

// oneLeaderPerTerm holds the servers to what they have said of their elections.
func (s *split) oneLeaderPerTerm() error {
	won, err := s.elections()
	if err != nil {
		return err
	}
	if len(won) == 0 {
		return errors.New("no server has said that it won an election")
	}
	for term, by := range won {
		if len(by) > 1 {
			return fmt.Errorf("%s all lead in term %d", strings.Join(by, " and "), term)
		}
	}
	return nil
}

// newest is the newest term that somebody leads in.
func (s *split) newest() uint64 {
	s.t.Helper()
	won, err := s.elections()
	s.check(err)
	terms := make([]uint64, 0, len(won))
	for term := range won {
		terms = append(terms, term)
	}
	return slices.Max(terms)
}
