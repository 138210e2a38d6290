//go:build system

package crash_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	// patience bounds every wait for what takes a second or two.
	patience = 60 * time.Second
	// reach is how long a server has to come to the failpoint that is armed in it.
	reach = 8 * time.Second

	trustDomain = "crash.example"
	// mesh is what the clients enrol for, with the shortest life of a certificate.
	mesh = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: crash.example, svidTTL: 60s}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: load, name: agent}
spec: {}
`
	workload = "load/agent"
	writers  = 4
)

// run is one run of the suite, over one cluster of three servers.
type run struct {
	t       *testing.T
	site    *fleet.Site
	block   zttest.Block
	servers []*fleet.Server
	ids     []string // of the servers
	cred    *fleet.Credential
	ports   []ledger.Ports
	ledger  *ledger.Ledger
	rng     *rand.Rand
	seed    uint64
	reached map[string]int // kills, by failpoint
	missed  map[string]int // kills at no failpoint: it was not reached in time
	renewal *renewal
	joined  int // servers and agents that came and went, for their names
}

func (r *run) check(err error) {
	r.t.Helper()
	if err != nil {
		var f *zttest.Failure
		if errors.As(err, &f) {
			err = fmt.Errorf("%w\n--- end of %s\n%s", err, f.Log, zttest.Tail(f.Log, 20))
		}
		r.t.Fatal(err)
	}
}

// build makes the programs with failpoints in them.
func build(t *testing.T, bin string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-tags", "failpoints", "-o", bin+"/", "./cmd/ztd", "./cmd/ztagent")
	cmd.Dir = filepath.Join("..", "..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// begin makes the cluster.
func begin(t *testing.T, seed uint64) *run {
	t.Helper()
	dir, err := os.MkdirTemp("", "ztcrash")
	if err != nil {
		t.Fatal(err)
	}
	block, err := zttest.NewBlock()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{
		t: t, block: block, site: &fleet.Site{Bin: filepath.Join(dir, "bin"), Dir: dir, Env: fleet.Environment()},
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), reached: map[string]int{}, missed: map[string]int{},
	}
	t.Cleanup(r.end)
	build(t, r.site.Bin)
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for n := range 3 {
		s := r.newServer(fmt.Sprintf("ztd-%d", n+1), n+1)
		if n == 0 {
			_, err := r.site.Command(ctx, "ztd", "init", "--trust-domain", trustDomain, "--data-dir", s.Name)
			r.check(err)
		} else {
			r.join(ctx, s, r.token(""))
		}
		r.servers = append(r.servers, s)
		r.check(s.Start(r.site))
		r.check(s.Ready(ctx))
		if n == 0 {
			r.cred, err = fleet.LoadCredential(filepath.Join(s.Dir(r.site), "admin.yaml"))
			r.check(err)
		}
		r.ports, err = ledger.Connect(r.cred, r.servers)
		r.check(err)
		r.ids = append(r.ids, r.idOf(s))
		r.together()
	}
	r.check(r.until("the mesh", func() error {
		_, err := r.admin(0).Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "m", Content: []byte(mesh)}}})
		return err
	}))
	r.ledger = ledger.New(r.ports, 4)
	return r
}

// end ends everything, and keeps the folder of a run that failed.
func (r *run) end() {
	for _, s := range r.servers {
		if s.Process != nil {
			s.Kill()
		}
	}
	if r.renewal != nil && r.renewal.Process != nil {
		r.renewal.Kill()
	}
	if !r.t.Failed() {
		if err := os.RemoveAll(r.site.Dir); err != nil {
			r.t.Error(err)
		}
		return
	}
	if r.ledger != nil {
		if err := r.ledger.Save(filepath.Join(r.site.Dir, "ledger")); err != nil {
			r.t.Error(err)
		}
	}
	r.t.Logf("logs, data directories and ledger are in %s", r.site.Dir)
}

// newServer is a server with short elections and many snapshots.
func (r *run) newServer(name string, at int) *fleet.Server {
	return &fleet.Server{Name: name, Host: r.block.At(at), Flags: []string{
		"--election-timeout", "200ms", "--snapshot-entries", "32", "--snapshot-interval", "200ms", "--trailing-entries", "16",
	}}
}

func (r *run) idOf(s *fleet.Server) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir(r.site), "server.json"))
	r.check(err)
	var f struct {
		ID string `json:"id"`
	}
	r.check(json.Unmarshal(b, &f))
	return f.ID
}

func (r *run) admin(n int) ztv1.AdminServiceClient {
	return ztv1.NewAdminServiceClient(r.ports[n].Admin)
}

// until asks again until there is no error.
func (r *run) until(what string, ok func() error) error {
	give := time.NewTimer(patience)
	defer give.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-give.C:
			return fmt.Errorf("waited in vain: %s: %w", what, err)
		case <-tick.C:
		}
	}
}

// token makes a token for a workload, or for a server if that is "".
func (r *run) token(workload string) (token string) {
	r.t.Helper()
	r.check(r.until("a token", func() error {
		ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
		defer cancel()
		resp, err := r.admin(r.rng.IntN(len(r.ports))).CreateToken(ctx, &ztv1.CreateTokenRequest{Workload: workload, Server: workload == ""})
		token = resp.GetToken()
		return err
	}))
	return token
}

func (r *run) tokenFile(name, token string) string {
	r.t.Helper()
	file := filepath.Join(r.site.Dir, name+".token")
	r.check(os.WriteFile(file, []byte(token), 0o600))
	return file
}

func (r *run) join(ctx context.Context, s *fleet.Server, token string) {
	r.t.Helper()
	r.check(r.until(s.Name+" joins", func() error {
		_, err := r.site.Command(ctx, "ztd", "join", "--server", r.servers[0].Node(), "--token-file", r.tokenFile(s.Name, token), "--data-dir", s.Name)
		return err
	}))
}

// together waits until every server votes and all know each other.
func (r *run) together() {
	r.t.Helper()
	r.check(r.until("all servers vote", func() error {
		for _, s := range r.servers {
			of, err := r.group(s)
			if err != nil {
				return err
			}
			for _, id := range r.ids {
				if !of[id] {
					return fmt.Errorf("%s does not know that %s votes: %v", s.Name, id, of)
				}
			}
		}
		return nil
	}))
}

// group is who is of the Raft group, and votes, as a server knows it.
func (r *run) group(s *fleet.Server) (votes map[string]bool, err error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	body, err := s.Get(ctx, "/debug/members")
	if err != nil {
		return nil, err
	}
	var all []struct {
		ID    string
		Voter bool
	}
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		return nil, err
	}
	votes = map[string]bool{}
	for _, m := range all {
		votes[m.ID] = m.Voter
	}
	return votes, nil
}

// leader is the index of the server that leads now.
func (r *run) leader() (n int) {
	r.t.Helper()
	r.check(r.until("a leader", func() error {
		for i, s := range r.servers {
			if !s.Running() {
				continue
			}
			ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
			info, err := r.admin(i).GetServerInfo(ctx, &ztv1.GetServerInfoRequest{})
			cancel()
			if err == nil && info.Leader == r.ids[i] {
				n = i
				return nil
			}
		}
		return errors.New("none leads")
	}))
	return n
}

// follower is the index of one that does not lead.
func (r *run) follower() int { return (r.leader() + 1 + r.rng.IntN(2)) % 3 }

// restore starts every server that does not run, disarms the others, and waits until
// all serve.
func (r *run) restore() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	for _, s := range r.servers {
		if s.Running() && s.Post(ctx, "/debug/failpoint?arm=") == nil {
			continue
		}
		if s.Running() { // on its way out
			s.Kill()
		}
		r.check(s.Start(r.site))
	}
	for _, s := range r.servers {
		r.check(s.Ready(ctx))
	}
	r.together()
}

// converge waits until the states of all servers are equal bit by bit. Two states of
// one index that differ are a fault that no waiting mends.
func (r *run) converge() {
	r.t.Helper()
	r.check(r.until("equal states", func() error {
		states := make([]string, len(r.servers))
		for i, s := range r.servers {
			ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
			body, err := s.Get(ctx, "/debug/state")
			cancel()
			if err != nil {
				return err
			}
			states[i] = strings.TrimSpace(body)
		}
		if len(slices.Compact(slices.Clone(states))) == 1 {
			return nil
		}
		for i := range states {
			for j := range i {
				a, _, _ := strings.Cut(states[i], " ")
				b, _, _ := strings.Cut(states[j], " ")
				if a == b && states[i] != states[j] {
					r.t.Fatalf("%s and %s disagree at entry %s: %v", r.servers[i].Name, r.servers[j].Name, a, states)
				}
			}
		}
		return fmt.Errorf("%v", states)
	}))
}

// load is the clients at work.
type load struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

// startLoad returns once writes are acknowledged.
func (r *run) startLoad() *load {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.t.Context())
	l := &load{stop: stop}
	seed := r.rng.Uint64()
	for _, work := range []func() error{
		func() error { return r.ledger.Writers(ctx, writers, seed, patience) },
		func() error { return r.ledger.Readers(ctx, writers, seed) },
		func() error { return r.ledger.Joiners(ctx, 1, workload, seed, patience) },
	} {
		l.wg.Go(func() {
			if err := work(); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.errs = append(l.errs, err)
			}
		})
	}
	r.moreWrites(3)
	return l
}

// moreWrites waits until so many more writes are acknowledged.
func (r *run) moreWrites(n int) {
	r.t.Helper()
	from := r.ledger.Acknowledged()
	r.check(r.until("writes", func() error {
		if now := r.ledger.Acknowledged(); now < from+n {
			return fmt.Errorf("%d of %d", now-from, n)
		}
		return nil
	}))
}

// settle asks everything to its end, and compares.
func (r *run) settle(l *load) {
	r.t.Helper()
	l.stop()
	l.wg.Wait()
	r.check(errors.Join(l.errs...))
	r.converge()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	r.check(r.ledger.Check(ctx))
	var journals []string
	for _, s := range r.servers {
		journals = append(journals, filepath.Join(s.Dir(r.site), "issuance.log"))
	}
	r.check(r.ledger.CheckJournals(journals...))
}

// said is how often a process has said that it is at a failpoint.
func said(log, point string) int {
	b, err := os.ReadFile(log)
	if err != nil {
		return 0
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == "failpoint "+point {
			n++
		}
	}
	return n
}

// dies waits until a process has ended at a failpoint, or else ends it.
func (r *run) dies(p *zttest.Process, point string, before int, within time.Duration) bool {
	give := time.NewTimer(within)
	defer give.Stop()
	select {
	case <-p.Exited():
	case <-give.C:
		p.Kill()
	}
	if said(p.Log(), point) == before {
		return false
	}
	r.reached[point]++
	return true
}
