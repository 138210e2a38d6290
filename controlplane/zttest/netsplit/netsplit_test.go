//go:build system

package netsplit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/controlplane/zttest/ledger"
)

const (
	// patience bounds every wait for what takes a few seconds.
	patience    = 60 * time.Second
	trustDomain = "split.example"
	// within says, in the environment, that this is the process in the namespaces.
	within = "ZT_NETSPLIT_WITHIN"
)

// TestNetsplit is the suite.
func TestNetsplit(t *testing.T) {
	if os.Getenv(within) == "" {
		again(t)
		return
	}
	rounds, seed := int(fleet.Number(t, "ZT_ROUNDS", 1)), fleet.Number(t, "ZT_SEED", rand.Uint64())
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
		s.Rand.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
		for _, f := range faults {
			at := time.Now()
			f.make(s)
			s.Check(s.oneLeaderPerTerm())
			t.Logf("round %d, %s: %v", round+1, f.name, time.Since(at).Round(time.Millisecond))
		}
	}
	t.Logf("%+v", s.Ledger.Counts())
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

// split is one run over one cluster. The index of a server is that of its end of the
// network, less one.
type split struct {
	*ledger.Test
	net  *network
	long bool
}

func begin(t *testing.T, rounds int, seed uint64) *split {
	t.Helper()
	s := &split{
		Test: &ledger.Test{
			Test: fleet.NewTest(t, patience, []string{"ztd", "ztctl"}), Rand: rand.New(rand.NewPCG(seed, 0)), Writers: 3,
		},
		net: newNetwork(t, 3), long: rounds > 1,
	}
	var servers []*fleet.Server
	for n := 1; n <= 3; n++ {
		servers = append(servers, &fleet.Server{
			Name: fmt.Sprintf("ztd-%d", n), Host: ip(n), LocalHost: "127.0.0.1", Dial: dialIn(n),
			Under: []string{"ip", "netns", "exec", space(n)}, Flags: []string{"--log-level", "debug"},
		})
	}
	s.Begin(trustDomain, time.Hour, 2, servers...)
	return s
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
		few += time.Duration(s.Rand.Int64N(int64(2 * few)))
	}
	return few
}

// wait lets a fault last.
func (s *split) wait(d time.Duration) {
	s.T.Helper()
	select {
	case <-time.After(d):
	case <-s.T.Context().Done():
		s.T.Fatal(s.T.Context().Err())
	}
}

// settle mends the network and compares everything, when the clients have ended.
func (s *split) settle(l *ledger.Load) {
	s.T.Helper()
	s.net.heal()
	s.Settle(l)
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
	s.T.Helper()
	won, err := s.elections()
	s.Check(err)
	terms := make([]uint64, 0, len(won))
	for term := range won {
		terms = append(terms, term)
	}
	return slices.Max(terms)
}
