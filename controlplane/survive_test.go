package controlplane_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// memory is what a cluster must not forget.
type memory struct {
	*cluster
	apply     *ztv1.ApplyRequest // took effect
	applied   uint64             // as this revision
	token     string             // was used
	unused    string             // was not
	gone      *identity.KeyPair  // of an instance that was deregistered
	removed   *identity.KeyPair  // of an admin that was removed
	revisions []uint64           // that there were
	serials   map[string]string  // that were signed → where
	tokenIDs  map[string]bool
}

// remember makes a cluster that has something to remember.
func remember(c *cluster) *memory {
	c.t.Helper()
	m := &memory{cluster: c, serials: map[string]string{}, tokenIDs: map[string]bool{}}
	c.Submit(shop + workload("shop", "leaves"))
	m.apply = applyRequest(shop)
	m.apply.IdempotencyKey = "once"
	resp, err := c.Admin().Apply(c.ctx(), m.apply)
	c.check(err)
	m.applied = resp.Revision
	_, err = c.Admin().Block(c.ctx(), &ztv1.BlockRequest{Namespace: "shop", Name: "inc-42", Block: &ztv1.Block{
		Workloads: []string{"web"}, Reason: "INC-42",
	}})
	c.check(err)
	m.token, m.unused = c.Token("shop/orders"), c.Token("shop/orders")
	_, req := c.enrolment(m.token, "shop/orders")
	_, err = c.node(c.Servers[0], nil).Enrol(c.ctx(), req)
	c.check(err)
	id, pair := c.enrol("shop/web")
	m.gone = pair
	_, err = c.Admin().DeregisterInstance(c.ctx(), &ztv1.DeregisterInstanceRequest{Instance: id})
	c.check(err)
	m.removed = c.addAdmin("eve", "admin")
	c.removeAdmin("eve")
	m.note(c.Servers[0])
	return m
}

// note keeps the numbers that a server has given out. No serial may be another server's.
func (m *memory) note(s *mesh.Server) {
	m.t.Helper()
	list, err := m.Admin().ListRevisions(m.ctx(), &ztv1.ListRevisionsRequest{})
	m.check(err)
	for _, r := range list.Revisions {
		if !slices.Contains(m.revisions, r.Revision) {
			m.revisions = append(m.revisions, r.Revision)
		}
	}
	f, err := os.Open(filepath.Join(s.Dir, "issuance.log"))
	m.check(err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var line struct{ Serial string }
		m.check(json.Unmarshal(lines.Bytes(), &line))
		if line.Serial == "" {
			continue
		}
		if at, twice := m.serials[line.Serial]; twice && at != s.Dir {
			m.t.Errorf("serial %s was used in %s and in %s", line.Serial, at, s.Dir)
		}
		m.serials[line.Serial] = s.Dir
	}
}

// holds wants everything to be as it was agreed on.
func (m *memory) holds(when string) {
	m.t.Helper()
	m.revision() // it leads
	s := m.Servers[len(m.Servers)-1]
	can, err := m.Admin().Can(m.ctx(), &ztv1.CanRequest{Caller: "shop/web", Request: "GET orders /"})
	m.check(err)
	if can.Allowed || can.Reason != "block:shop/inc-42" {
		m.t.Errorf("%s: the Block is forgotten (CVE-2022-41316): %v", when, can)
	}
	again, err := m.Admin().Apply(m.ctx(), m.apply)
	if err != nil || again.Revision != m.applied {
		m.t.Errorf("%s: the same key gives revision %d, was %d: %v", when, again.GetRevision(), m.applied, err)
	}
	other := proto.CloneOf(m.apply)
	other.Files[0].Content = append(bytes.Clone(other.Files[0].Content), workload("shop", "other")...)
	if _, err := m.Admin().Apply(m.ctx(), other); err == nil {
		m.t.Errorf("%s: a key was used for something else", when)
	} else {
		m.refused(codes.AlreadyExists, err)
	}
	back := applyRequest(shop + workload("shop", "leaves"))
	if _, err := m.Admin().Apply(m.ctx(), back); err == nil {
		m.t.Errorf("%s: a name is used again whose certificates live", when)
	} else {
		m.refused(codes.InvalidArgument, err)
	}
	_, req := m.enrolment(m.token, "shop/orders")
	if _, err := m.node(s, nil).Enrol(m.ctx(), req); err == nil {
		m.t.Errorf("%s: a token was used twice", when)
	} else {
		m.refused(codes.PermissionDenied, err)
	}
	_, csr := m.NewRequest()
	if _, err := m.node(s, m.gone).Renew(m.ctx(), &ztv1.RenewRequest{NodeCsr: csr}); err == nil {
		m.t.Errorf("%s: an instance that was deregistered renews", when)
	}
	if _, err := m.as(s, m.removed).ListAdmins(m.ctx(), &ztv1.ListAdminsRequest{}); err == nil {
		m.t.Errorf("%s: an admin that was removed is let in", when)
	}
	fresh := m.Token("shop/orders")
	if id := strings.Split(fresh, ".")[1]; m.tokenIDs[id] {
		m.t.Errorf("%s: token id %s comes twice", when, id)
	} else {
		m.tokenIDs[id] = true
	}
}

// Blocks, keys of idempotency, retired names, used tokens, and who was thrown out are
// remembered by a server that is started again, from its log and from a snapshot, and by
// one that was restored (CVE-2022-41316). No revision, serial or token comes twice.
func TestWhatIsRemembered(t *testing.T) {
	c := newCluster(t, 1, often)
	m := remember(c)
	m.holds("before")
	s := c.Servers[0]
	s.Stop()
	s.Start()
	m.holds("after a restart")
	for i := range 20 { // more than what makes a snapshot
		c.addAdmin("admin-"+string(rune('a'+i)), "viewer")
	}
	c.Until("a snapshot", func() bool {
		files, err := filepath.Glob(filepath.Join(s.Dir, "raft", "snapshots", "*.snap"))
		c.check(err)
		return len(files) > 0
	})
	s.Stop()
	s.Start()
	m.holds("after a start from a snapshot")
	saved := c.file(c.backup(s))
	lost := c.Submit(shop + workload("shop", "lost")).Revision
	m.note(s)
	s.Stop()
	restored := c.Restore(saved, s.Keys())
	c.Servers = []*mesh.Server{restored}
	m.holds("after a restore")
	_, req := c.enrolment(m.unused, "shop/orders")
	_, err := c.node(restored, nil).Enrol(c.ctx(), req)
	c.refused(codes.PermissionDenied, err) // tokens of before are void
	if next := c.Submit(shop + workload("shop", "next")).Revision; next <= lost || next <= slices.Max(m.revisions) {
		t.Errorf("revision %d after %d, which is lost, and %v", next, lost, m.revisions)
	}
	c.enrol("shop/orders")
	m.note(restored)
	if len(m.serials) < 25 || len(m.revisions) < 4 {
		t.Errorf("%d serials, %d revisions", len(m.serials), len(m.revisions))
	}
	_, err = c.Admin().Unblock(c.ctx(), &ztv1.UnblockRequest{Namespace: "shop", Name: "inc-42"})
	c.check(err)
}

var update = flag.Bool("update", false, "write the golden backups that are not there")

// golden are backups that must be restorable by every later version: file → the format
// of the log that its cluster began with.
var golden = map[string]uint32{"format-1": 1, "format-2": 2, "format-3": 3}

// goldenSays is what such a backup holds.
type goldenSays struct {
	KEK       string
	Revision  uint64
	Documents int
	Admins    int
	Retired   []string
}

// A backup of every format that there was restores to what it was made of. A golden one
// is never written again.
func TestGoldenBackups(t *testing.T) {
	for name, format := range golden {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", "backup-"+name)
			if _, err := os.Stat(file + ".ztbackup"); *update && errors.Is(err, os.ErrNotExist) {
				writeGolden(t, file, format)
			}
			var want goldenSays
			b, err := os.ReadFile(file + ".json")
			if err == nil {
				err = json.Unmarshal(b, &want)
			}
			if err != nil {
				t.Fatal(err)
			}
			keys, err := identity.ParseKeys(identity.NewSecret([]byte(want.KEK)))
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "restored")
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			check(identity.SaveKeys(dir+".kek", keys))
			cfg := controlplane.RestoreConfig{DataDir: dir, From: file + ".ztbackup", DryRun: true, Logger: slog.New(slog.DiscardHandler)}
			held, err := controlplane.Restore(t.Context(), cfg)
			check(err)
			if held.Revision != want.Revision || held.Documents != want.Documents || held.Admins != want.Admins || held.TrustDomain != trustDomain {
				t.Errorf("it holds %+v, want %+v", held, want)
			}
			cfg.DryRun = false
			_, err = controlplane.Restore(t.Context(), cfg)
			check(err)
			ask := serveRestored(t, dir, keys)
			var got *ztv1.GetKeysResponse
			mesh.Until(t, "it leads", func() bool {
				got, err = ask.GetKeys(t.Context(), &ztv1.GetKeysRequest{})
				return err == nil
			})
			if got.Current != keys.IDs()[0] || !slices.Equal(got.Retired, want.Retired) {
				t.Errorf("keys %v, want %s and retired %v", got, keys.IDs()[0], want.Retired)
			}
			list, err := ask.ListDocuments(t.Context(), &ztv1.ListDocumentsRequest{})
			check(err)
			if len(list.Documents) != want.Documents || list.Revision != want.Revision {
				t.Errorf("%d documents at revision %d, want %+v", len(list.Documents), list.Revision, want)
			}
			resp, err := ask.Apply(t.Context(), applyRequest(shop+workload("shop", "later")))
			check(err)
			if resp.Revision <= want.Revision {
				t.Errorf("revision %d after %d", resp.Revision, want.Revision)
			}
		})
	}
}

// serveRestored serves from a folder whose admins' certificates have long ended: the
// root, which the key opens, signs for one of them.
func serveRestored(t *testing.T, dir string, keys identity.Keys) ztv1.AdminServiceClient {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg := controlplane.Default()
	often(&cfg)
	cfg.DataDir, cfg.Timing.Heartbeat, cfg.Timing.Election, cfg.Timing.Lease = dir, 200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
	cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s, err := controlplane.New(cfg)
	check(err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "roots.pem"))
	check(err)
	roots, err := identity.ParsePEM(pem)
	check(err)
	sealed, err := os.ReadFile(filepath.Join(dir, "root-key.sealed"))
	check(err)
	root, err := identity.OpenRoot(roots[0], sealed, keys, identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	check(err)
	key, err := identity.NewKey()
	check(err)
	chain, err := root.IssueAdmin(key.Public(), controlplane.FirstAdmin)
	check(err)
	pair, err := identity.NewKeyPair(key, chain)
	check(err)
	config, err := (&fleet.Credential{TrustDomain: trustDomain, Roots: roots}).TLS(pair)
	check(err)
	conn, err := fleet.Connect(s.Addresses().Admin, config)
	check(err)
	t.Cleanup(func() { conn.Close() })
	return ztv1.NewAdminServiceClient(conn)
}

// writeGolden makes a backup of a cluster that was begun by a version of a format, and
// is of this version when the backup is made.
func writeGolden(t *testing.T, file string, format uint32) {
	t.Helper()
	reads := format
	c := &cluster{mesh.New(t, mesh.Config{TrustDomain: trustDomain, Format: format, Tune: func(cfg *controlplane.Config) {
		often(cfg)
		cfg.Format = reads
	}}), t}
	c.Submit(shop)
	c.enrol("shop/web")
	c.addAdmin("vera", "viewer")
	c.Token("shop/web")
	reads = 0 // what this version reads
	c.Servers[0].Stop()
	c.Servers[0].Start()
	if format >= 3 {
		c.rotate("")
	}
	c.revision()
	c.check(os.WriteFile(file+".ztbackup", c.backup(c.Servers[0]), 0o644))
	k := c.keys()
	keys := c.Servers[0].Keys()
	b, err := json.MarshalIndent(goldenSays{
		KEK: string(keys.Text().Reveal()), Revision: c.revision(), Documents: 3, Admins: 2, Retired: k.Retired,
	}, "", "  ")
	c.check(errors.Join(err, os.WriteFile(file+".json", append(b, '\n'), 0o644)))
}
