package controlplane_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
)

// reseedConfig is that of a server that does not run.
func reseedConfig(dir string) controlplane.Config {
	c := controlplane.Default()
	c.DataDir, c.Logger = dir, slog.New(slog.DiscardHandler)
	return c
}

// damageLog flips a bit of the first entry of a server's log.
func damageLog(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "raft", "log", "*.log"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no log in %s: %v", dir, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(bytes.TrimRight(b, "\x00"))/2] ^= 0x10
	if err := os.WriteFile(names[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs a server that should end by itself, and returns why.
func run(t *testing.T, dir string) error {
	t.Helper()
	cfg := reseedConfig(dir)
	for _, a := range []*string{&cfg.AdminListen, &cfg.NodeListen, &cfg.ClusterListen, &cfg.LocalListen} {
		*a = "127.0.0.1:0"
	}
	s, err := controlplane.New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return s.Run(ctx)
}

// voters are the ids of those that vote and are reached.
func (c *cluster) voters() (ids []string) {
	c.t.Helper()
	resp, err := c.Admin().ListMembers(c.ctx(), &ztv1.ListMembersRequest{})
	if err != nil {
		return nil
	}
	for _, m := range resp.Members {
		if m.Voter && m.Reachable {
			ids = append(ids, m.Id)
		}
	}
	return ids
}

// reseed is Reseed, which waits while the others have no leader to agree.
func (c *cluster) reseed(dir string) (done controlplane.Reseeded, err error) {
	c.t.Helper()
	return controlplane.Reseed(c.ctx(), reseedConfig(dir), nil, patience)
}

// TestReseed: a server whose log is damaged, and one whose log is gone, do not start;
// each comes back as another member, and the cluster is whole.
func TestReseed(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.Apply(shop)
	for name, harm := range map[string]func(dir string){
		"damaged": func(dir string) { damageLog(t, dir) },
		"lost":    func(dir string) { c.check(os.RemoveAll(filepath.Join(dir, "raft"))) },
	} {
		s := c.Others(c.Leader())[0]
		was := s.ID()
		s.Stop()
		harm(s.Dir)
		if err := run(t, s.Dir); !errors.Is(err, store.ErrUnreadable) || !strings.Contains(err.Error(), "ztd reseed --data-dir "+s.Dir) {
			t.Fatalf("%s: run: %v", name, err)
		}
		done, err := c.reseed(s.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if done.Lost != was || done.Server == was || (done.Kept != "") != (name == "damaged") {
			t.Errorf("%s: %+v", name, done)
		}
		if done.Kept != "" {
			if _, err := os.Stat(filepath.Join(done.Kept, "log")); err != nil {
				t.Errorf("what was damaged is not kept: %v", err)
			}
		}
		s.Start()
		if s.ID() != done.Server {
			t.Errorf("%s: it runs as %s, not as %s", name, s.ID(), done.Server)
		}
		c.Until("three voters again", func() bool { return len(c.voters()) == 3 })
		for _, id := range c.voters() {
			if id == was {
				t.Errorf("%s: the lost member still votes", name)
			}
		}
		c.Apply(shop + workload("more", name))
	}
}

// TestReseedWaits: while the others have no leader, a reseed says so and waits; when they
// have one, it goes on.
func TestReseedWaits(t *testing.T) {
	c := newCluster(t, 3, nil)
	others := c.Others(c.Leader())
	for _, s := range others {
		s.Stop()
	}
	damageLog(t, others[0].Dir)
	cfg, waits := reseedConfig(others[0].Dir), make(saying, 1)
	cfg.Logger = slog.New(slog.NewTextHandler(waits, nil))
	result, id := make(chan error, 1), ""
	go func() {
		done, err := controlplane.Reseed(c.ctx(), cfg, nil, patience)
		id = done.Server
		result <- err
	}()
	select {
	case <-waits:
	case err := <-result:
		t.Fatalf("it does not wait: %v", err)
	}
	others[1].Start()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	journal, err := os.ReadFile(filepath.Join(others[0].Dir, "issuance.log"))
	c.check(err)
	if n := bytes.Count(journal, []byte(identity.ServerID(trustDomain, id))); n != 2 {
		t.Errorf("asking again and again, it has signed for itself %d times, beside the intermediate", n-1)
	}
	others[0].Start()
	c.Until("three voters again", func() bool { return len(c.voters()) == 3 })
}

// saying is a log that holds one when somebody waits for a leader.
type saying chan struct{}

func (s saying) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("waiting for the other servers to have a leader")) {
		s <- struct{}{}
	}
	return len(line), nil
}

// TestReseedIsEnded: one that is interrupted when the cluster has agreed is ended by
// the next, by nobody else, and with nothing of the new member's lost.
func TestReseedIsEnded(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.Others(c.Leader())[0]
	s.Stop()
	damageLog(t, s.Dir)
	// The folder cannot be moved aside, which is the first step after the agreement.
	c.check(os.Chmod(s.Dir, 0o700))
	aside := filepath.Join(s.Dir, "raft")
	c.check(os.Rename(aside, aside+".away"))
	c.check(os.WriteFile(aside, nil, 0o600)) // not a folder: its owner cannot be read
	if _, err := c.reseed(s.Dir); err == nil {
		t.Fatal("a reseed that cannot end")
	}
	c.check(os.Remove(aside))
	c.check(os.Rename(aside+".away", aside))
	if err := run(t, s.Dir); err == nil || !strings.Contains(err.Error(), "was interrupted") {
		t.Errorf("run: %v", err)
	}
	done, err := c.reseed(s.Dir)
	if err != nil || done.Kept == "" {
		t.Fatalf("%+v, %v", done, err)
	}
	s.Start()
	c.Until("three voters again", func() bool { return len(c.voters()) == 3 })
}

// TestReseedRefuses: without the others nothing changes, a member takes no other's
// place, and a server that runs is left alone.
func TestReseedRefuses(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.Leader()
	others := c.Others(leader)
	if _, err := controlplane.Reseed(c.ctx(), reseedConfig(others[0].Dir), nil, 0); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a server that runs: %v", err)
	}
	// Whoever has the identity of one member gives up that one only.
	peer := ztv1.NewPeerServiceClient(c.Dial(leader.Addresses().Cluster, c.identityOf(others[0])))
	for what, req := range map[string]*ztv1.ReseedRequest{
		"another's place":            {Lost: others[1].ID(), Server: mesh.NewID()},
		"a member that never was":    {Lost: mesh.NewID(), Server: mesh.NewID()},
		"another's place, as itself": {Lost: others[1].ID(), Server: others[0].ID()},
		"its own, for one in use":    {Lost: others[0].ID(), Server: others[1].ID()},
		"its own, for itself":        {Lost: others[0].ID(), Server: others[0].ID()},
		"no id":                      {Lost: others[0].ID(), Server: "x"},
	} {
		if _, err := peer.Reseed(c.ctx(), req); err == nil || status.Code(err) == codes.Internal {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.Until("three voters as before", func() bool { return len(c.voters()) == 3 })
	for _, s := range c.Servers {
		s.Stop()
	}
	before, err := os.ReadFile(filepath.Join(others[0].Dir, "server.json"))
	c.check(err)
	damageLog(t, others[0].Dir)
	if _, err := controlplane.Reseed(c.ctx(), reseedConfig(others[0].Dir), nil, 0); !errors.Is(err, controlplane.ErrNoPeer) {
		t.Errorf("nobody to ask: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(others[0].Dir, "server.json"))
	c.check(err)
	if !bytes.Equal(before, after) {
		t.Error("it is another server, and nobody has agreed")
	}
	one := mesh.New(t, mesh.Config{TrustDomain: trustDomain})
	one.Servers[0].Stop()
	damageLog(t, one.Servers[0].Dir)
	if _, err := controlplane.Reseed(c.ctx(), reseedConfig(one.Servers[0].Dir), nil, patience); !errors.Is(err, controlplane.ErrNoPeer) || !strings.Contains(err.Error(), "backup") {
		t.Errorf("a server alone: %v", err)
	}
}
