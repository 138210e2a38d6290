package controlplane_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// backup asks a server for one and returns it, whole.
func (c *cluster) backup(s *mesh.Server) []byte {
	c.t.Helper()
	stream, err := c.as(s, c.AdminPair()).Backup(c.ctx(), &ztv1.BackupRequest{})
	c.check(err)
	var b bytes.Buffer
	for {
		m, err := stream.Recv()
		c.check(err)
		b.Write(m.Chunk)
		if len(m.Sha256) > 0 {
			if sum := sha256.Sum256(b.Bytes()); !bytes.Equal(sum[:], m.Sha256) || m.Size != uint64(b.Len()) {
				c.t.Fatal("a backup that is not whole")
			}
			return b.Bytes()
		}
	}
}

func (c *cluster) file(content []byte) string {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "backup")
	c.check(os.WriteFile(path, content, 0o600))
	return path
}

// Of three servers all are lost. One is restored and two join it: everybody goes on
// with their certificates, and nothing that was given out is given out again.
func TestRestore(t *testing.T) {
	c := newCluster(t, 3, nil)
	before := c.Submit(shop).Revision
	in := c.Enrol("shop/web")
	serverToken, token := c.Token(""), c.Token("shop/orders")
	// Any server gives the leader's.
	follower := c.Others(c.Leader())[0]
	saved := c.file(c.backup(follower))
	lost := c.Submit(shop + workload("shop", "late")).Revision
	keys, old := c.Servers[0].Keys(), c.Servers[0]
	oldIdentity := c.identityOf(old)
	for _, s := range c.Servers {
		s.Stop()
	}

	s := c.Restore(saved, keys)
	c.Leader()
	if got := c.revision(); got != before {
		t.Errorf("revision %d, was %d", got, before)
	}
	after := c.Submit(shop + workload("shop", "later")).Revision
	if after <= lost+1_000_000 {
		t.Errorf("revision %d after %d of the cluster that is lost", after, lost)
	}
	c.check(in.Renew(s))
	for what, used := range map[string]string{"shop/orders": token, "": serverToken} {
		_, csr := c.NewRequest()
		var err error
		if what == "" {
			_, err = c.node(s, nil).EnrolServer(c.ctx(), &ztv1.EnrolServerRequest{Token: used, Server: mesh.NewID(), IntermediateCsr: csr})
		} else {
			_, req := c.enrolment(used, what)
			_, err = c.node(s, nil).Enrol(c.ctx(), req)
		}
		c.refused(codes.PermissionDenied, err)
	}
	members, err := c.Admin().ListMembers(c.ctx(), &ztv1.ListMembersRequest{})
	c.check(err)
	if len(members.Members) != 1 || members.Members[0].Id != s.ID() {
		t.Errorf("members: %v", members.Members)
	}

	// A server of before has the root's certificate, and is of another epoch.
	for name, epoch := range map[string]string{"its own": epochOf(t, old.Dir), "none": "", "the new one": epochOf(t, s.Dir)} {
		var current identity.Current
		current.Set(oldIdentity)
		cfg, err := identity.ClusterClientConfig(identity.Trust{
			TrustDomain: trustDomain, Roots: c.Roots, Certificate: current.Certificate, Epoch: epoch, Now: time.Now,
		}, identity.ALPNRaft)
		c.check(err)
		if spoken(c.ctx(), s.Addresses().Cluster, cfg) {
			t.Errorf("a server of before, with %s as epoch, may speak", name)
		}
	}

	c.Servers = []*mesh.Server{s}
	c.Join("")
	c.Join("")
	c.Submit(shop + workload("shop", "last"))
}

// What is damaged, cut, of another key or no backup is refused, and nothing is written.
func TestRestoreRefuses(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	c.Token("shop/web")
	whole := c.backup(c.Servers[0])
	kek := controlplane.DefaultKEK(c.Servers[0].Dir)
	dir := filepath.Join(t.TempDir(), "new")
	restore := func(content []byte, kek string, dry bool) (*controlplane.Backup, error) {
		return controlplane.Restore(c.ctx(), controlplane.RestoreConfig{
			DataDir: dir, From: c.file(content), KEK: kek, DryRun: dry, Logger: slog.New(slog.DiscardHandler),
		})
	}
	b, err := restore(whole, kek, true)
	c.check(err)
	if b.TrustDomain != trustDomain || b.Server != c.Servers[0].ID() || b.Documents != 3 || b.Tokens != 1 || b.Servers != 1 || b.Revision != c.revision() {
		t.Errorf("%+v", b)
	}
	if bytes.Contains(whole, []byte("web-reads-orders")) {
		t.Error("a document stands in the backup in clear")
	}
	flip := func(i int) []byte {
		bad := bytes.Clone(whole)
		bad[i] ^= 1
		return bad
	}
	for i := 0; i < len(whole)-46; i += 1 + len(whole)/97 { // what follows the signature is not looked at
		if _, err := restore(flip(i), kek, i%2 == 0); err == nil {
			t.Fatalf("restored with a bit flipped at %d of %d", i, len(whole))
		}
		if _, err := restore(whole[:i], kek, i%2 == 0); !errors.Is(err, controlplane.ErrBackup) {
			t.Fatalf("cut at %d of %d: %v", i, len(whole), err)
		}
	}
	for _, more := range [][]byte{{0}, make([]byte, 200), whole} {
		if _, err := restore(append(bytes.Clone(whole), more...), kek, false); !errors.Is(err, controlplane.ErrBackup) {
			t.Errorf("with more at the end: %v", err)
		}
	}
	// Somebody who can write a checksum but has no server's key.
	forged := flip(len(whole) / 2)
	sum := sha256.Sum256(forged[:len(forged)-114])
	copy(forged[len(forged)-114:], sum[:])
	if _, err := restore(forged, kek, false); err == nil || !strings.Contains(err.Error(), "the signature is wrong") {
		t.Errorf("forged: %v", err)
	}
	other := filepath.Join(t.TempDir(), "kek")
	key := identity.NewKEK()
	c.check(identity.PutKey(other, key))
	_, err = restore(whole, "file:"+other, false)
	if !errors.Is(err, identity.ErrSealed) || !strings.Contains(fmt.Sprint(err), "wants key "+b.KEK()) || !strings.Contains(fmt.Sprint(err), key.ID()) {
		t.Errorf("another key: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
	if _, err := controlplane.Restore(c.ctx(), controlplane.RestoreConfig{DataDir: c.Servers[0].Dir, From: c.file(whole), KEK: kek, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("restored over a server")
	}
}

// Only role admin gets a backup, by whichever server.
func TestBackupNeedsAdmin(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	_, node := c.enrol("shop/web")
	for role, pair := range map[string]*identity.KeyPair{
		"viewer": c.addAdmin("vera", "viewer"), "editor": c.addAdmin("eve", "editor", "shop"), "node": node, "nobody": nil,
	} {
		stream, err := c.as(c.Servers[0], pair).Backup(c.ctx(), &ztv1.BackupRequest{})
		c.check(err)
		if m, err := stream.Recv(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s gets %d bytes", role, len(m.GetChunk()))
		}
	}
}

// A server with another key, or none, opens no port, says which key it wants, and
// leaves everything as it was.
func TestWrongKeyStaysSealed(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	s := c.Servers[0]
	s.Stop()
	taken, err := net.Listen("tcp", "127.0.0.1:0") // a port that it would find taken
	c.check(err)
	defer taken.Close()
	other := filepath.Join(t.TempDir(), "kek")
	key := identity.NewKEK()
	c.check(identity.PutKey(other, key))
	before := digest(t, s.Dir)
	for source, want := range map[string]string{
		"file:" + other:          "wants key " + s.Keys().IDs()[0] + ", and the keys given are " + key.ID(),
		"file:" + other + "2":    "no such file",
		"env:ZT_TEST_NO_KEY":     "the variable is not set",
		"command:/bin/false":     "exit status 1",
		"file:" + s.Dir + "/kek": "lies in the data directory",
	} {
		cfg := controlplane.Default()
		cfg.DataDir, cfg.KEK = s.Dir, source
		cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen = taken.Addr().String(), taken.Addr().String(), taken.Addr().String()
		_, err := controlplane.New(cfg)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "stays sealed") || strings.Contains(err.Error(), "address already in use") {
			t.Errorf("%s: %v", source, err)
		}
	}
	if after := digest(t, s.Dir); after != before {
		t.Error("the data directory has changed")
	}
	s.Start() // and with the right one it opens
}

// digest is over names, times and contents of a folder.
func digest(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, path, i.Size(), i.ModTime(), i.Mode())
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		sum.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(sum.Sum(nil))
}

// epochOf is the epoch that a data directory is of.
func epochOf(t *testing.T, dir string) string {
	t.Helper()
	var s struct{ Epoch string }
	b, err := os.ReadFile(filepath.Join(dir, "server.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil || s.Epoch == "" {
		t.Fatalf("epoch %q, %v", s.Epoch, err)
	}
	return s.Epoch
}

// spoken tells whether a connection to the cluster port is one that is not closed at
// once.
func spoken(ctx context.Context, address string, cfg *tls.Config) bool {
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	_, err = conn.Read(make([]byte, 1)) // raft does not speak first: only an end comes
	return errors.Is(err, os.ErrDeadlineExceeded)
}
