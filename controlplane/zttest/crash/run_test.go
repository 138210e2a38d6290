//go:build system

package crash_test

import (
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/controlplane/zttest/ledger"
)

const (
	// patience bounds every wait for what takes a second or two.
	patience = 60 * time.Second
	// reach is how long a server has to come to the failpoint that is armed in it.
	reach = 8 * time.Second

	trustDomain = "crash.example"
)

// run is one run of the suite, over one cluster of three servers.
type run struct {
	*ledger.Test
	reached map[string]int // kills, by failpoint
	missed  map[string]int // kills at no failpoint: it was not reached in time
	renewal *renewal
	past    []string // journals, since the last check, of servers that were removed
	joined  int      // servers and agents that came and went, for their names
}

// begin makes the cluster. Certificates have the shortest life.
func begin(t *testing.T, seed uint64) *run {
	t.Helper()
	r := &run{
		Test: &ledger.Test{
			Test: fleet.NewTest(t, patience, []string{"ztd", "ztagent"}), Rand: rand.New(rand.NewPCG(seed, 0)), Writers: 4,
		},
		reached: map[string]int{}, missed: map[string]int{},
	}
	t.Cleanup(func() {
		if r.renewal != nil {
			r.renewal.Kill()
		}
	})
	r.Begin(trustDomain, time.Minute, 4, r.newServer("ztd-1", 1), r.newServer("ztd-2", 2), r.newServer("ztd-3", 3))
	return r
}

// newServer is a server with short elections and many snapshots.
func (r *run) newServer(name string, at int) *fleet.Server {
	return &fleet.Server{Name: name, Host: r.Block.At(at), Flags: []string{
		"--election-timeout", "200ms", "--snapshot-entries", "32", "--snapshot-interval", "200ms", "--trailing-entries", "16",
	}}
}

// token makes a token for a workload, or for a server if that is "".
func (r *run) token(workload string) string {
	r.T.Helper()
	token, err := r.Token(r.Context(), workload)
	r.Check(err)
	return token
}

// follower is the index of one that does not lead.
func (r *run) follower() int { return (r.Leads() + 1 + r.Rand.IntN(2)) % 3 }

// restore starts every server that does not run, disarms the others, and waits until
// all serve.
func (r *run) restore() {
	r.T.Helper()
	ctx := r.Context()
	for _, s := range r.Servers {
		if s.Running() && s.Post(ctx, "/debug/failpoint?arm=") == nil {
			continue
		}
		if s.Running() { // on its way out
			s.Kill()
		}
		r.Check(s.Start(r.Site))
	}
	for _, s := range r.Servers {
		r.Check(s.Ready(ctx))
	}
	r.Check(r.Together(ctx))
}

// settle compares everything, when the clients have ended.
func (r *run) settle(l *ledger.Load) {
	r.T.Helper()
	r.Settle(l, r.past...)
	r.past = nil
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

// dies waits until a process has ended at a failpoint, or else ends it, and has it say
// where it is.
func (r *run) dies(p *zttest.Process, point string, before int, within time.Duration) {
	r.T.Helper()
	give := time.NewTimer(within)
	defer give.Stop()
	select {
	case <-p.Exited():
	case <-give.C:
		if syscall.Kill(p.PID(), syscall.SIGQUIT) == nil {
			select {
			case <-p.Exited():
			case <-time.After(2 * time.Second):
			}
		}
		p.Kill()
	}
	if said(p.Log(), point) > before {
		r.reached[point]++
	} else {
		r.missed[point]++
	}
}
