package controlplane_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// often looks at keys, and folds the log, many times a second.
func often(c *controlplane.Config) {
	c.KeyCheck = 50 * time.Millisecond
	c.Timing.SnapshotEntries, c.Timing.TrailingEntries, c.Timing.SnapshotInterval = 8, 8, 50*time.Millisecond
}

func (c *cluster) keys() *ztv1.GetKeysResponse {
	c.t.Helper()
	return mesh.Settled(c.Mesh, "the keys", func() (*ztv1.GetKeysResponse, error) {
		return c.Admin().GetKeys(c.ctx(), &ztv1.GetKeysRequest{})
	})
}

// rotate goes to another key, and waits until everything is sealed with it.
func (c *cluster) rotate(to string) (from, now string) {
	c.t.Helper()
	req := &ztv1.RotateKeyRequest{To: to, IdempotencyKey: mesh.NewID()}
	resp := mesh.Settled(c.Mesh, "a rotation", func() (*ztv1.RotateKeyResponse, error) { return c.Admin().RotateKey(c.ctx(), req) })
	c.sealedWith(resp.To)
	return resp.From, resp.To
}

func (c *cluster) sealedWith(id string) {
	c.t.Helper()
	c.Until("everything is sealed with "+id, func() bool {
		k := c.keys()
		return k.Current == id && !slices.ContainsFunc(k.Servers, func(r *ztv1.ServerKeys) bool {
			return r.Error != "" || r.DataKeysSealedBy != id || r.RootCopySealedBy != id
		})
	})
}

func (c *cluster) drop(id string) *ztv1.DropKeyResponse {
	c.t.Helper()
	return mesh.Settled(c.Mesh, "a key dropped", func() (*ztv1.DropKeyResponse, error) {
		return c.Admin().DropKey(c.ctx(), &ztv1.DropKeyRequest{KeyId: id})
	})
}

// The key of a cluster that serves is replaced, and the old one dropped; everybody goes
// on, and comes back after a restart. What the old key and the old data keys opened,
// they open no more.
func TestKeyRotation(t *testing.T) {
	c := newCluster(t, 3, often)
	c.Submit(shop)
	in := c.Enrol("shop/web")
	first := c.keys()
	if len(first.Servers) != 3 || len(first.Retired) != 0 || first.Current != c.Servers[0].Keys().IDs()[0] {
		t.Fatalf("%v", first)
	}
	old := c.Servers[0].Keys()

	// A dry run changes nothing; it would make a new key.
	dry, err := c.Admin().RotateKey(c.ctx(), &ztv1.RotateKeyRequest{DryRun: true})
	c.check(err)
	if dry.From != first.Current || dry.To != "" || len(dry.Servers) != 3 || c.keys().Current != first.Current || len(c.Leader().Keys().IDs()) != 1 {
		t.Errorf("%v", dry)
	}
	// Through any server, once for a key of idempotency.
	req := &ztv1.RotateKeyRequest{IdempotencyKey: "rotate-1"}
	follower := c.Others(c.Leader())[0]
	resp := mesh.Settled(c.Mesh, "a rotation", func() (*ztv1.RotateKeyResponse, error) { return follower.Admin().RotateKey(c.ctx(), req) })
	again, err := c.Admin().RotateKey(c.ctx(), req)
	c.check(err)
	if resp.From != first.Current || resp.To == "" || again.To != resp.To || again.From != resp.From {
		t.Errorf("%v, and again %v", resp, again)
	}
	c.sealedWith(resp.To)
	for _, s := range c.Servers {
		if ids := s.Keys().IDs(); !slices.Equal(ids, []string{resp.To, first.Current}) {
			t.Errorf("%s has the keys %v", s, ids)
		}
	}
	if k := c.keys(); !slices.Equal(k.Retired, []string{first.Current}) {
		t.Errorf("retired: %v", k.Retired)
	}

	// Log and snapshots go over as the log is folded; so do the data keys.
	n := 0
	c.Until("no data key of before is needed", func() bool {
		n++
		c.Submit(shop + workload("shop", fmt.Sprint("w", n)))
		return !slices.ContainsFunc(c.keys().Servers, func(r *ztv1.ServerKeys) bool { return r.DataKey < 2 || r.OldestDataKey < r.DataKey })
	})
	c.drop(first.Current)
	c.drop(first.Current) // again is no error
	for _, s := range c.Servers {
		if ids := s.Keys().IDs(); !slices.Equal(ids, []string{resp.To}) {
			t.Errorf("%s has the keys %v", s, ids)
		}
		_, err := identity.OpenDataKeys(filepath.Join(s.Dir, "data-keys.sealed"), trustDomain, s.ID(), old)
		if !errors.Is(err, identity.ErrSealed) {
			t.Errorf("the old key opens the data keys of %s: %v", s, err)
		}
		if v := s.Metric("zt_controlplane_old_key"); v != 0 {
			t.Errorf("%s: zt_controlplane_old_key is %v", s, v)
		}
	}
	for _, s := range c.Servers {
		s.Stop()
		s.Start()
	}
	c.Together()
	c.check(in.Renew(c.Servers[1]))
	c.Join("")
	if ids := c.Servers[3].Keys().IDs(); !slices.Equal(ids, []string{resp.To}) {
		t.Errorf("a server that joins has the keys %v", ids)
	}
	_, last := c.rotate("")
	if last == resp.To || last == first.Current {
		t.Errorf("rotated to %s", last)
	}
	c.onRecord("replace_root_key", resp.To, last)
}

// onRecord wants audit records of an operation about certain things.
func (c *cluster) onRecord(operation string, names ...string) {
	c.t.Helper()
	resp, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{PageSize: 1000})
	c.check(err)
	for _, name := range names {
		if !slices.ContainsFunc(resp.Records, func(r *logv1.AuditRecord) bool {
			return r.Operation == operation && len(r.Resources) > 0 && r.Resources[0].Name == name && strings.HasPrefix(r.Who, "spiffe://control.") && r.Outcome == "ok"
		}) {
			c.t.Errorf("no record of %s %s", operation, name)
		}
	}
}

// Who could not open what is sealed anew, or would break without the old key, is named,
// and nothing is changed.
func TestRotationNamesWhoWouldBreak(t *testing.T) {
	c := newCluster(t, 3, often)
	c.Submit(shop)
	first := c.keys().Current
	away := c.Others(c.Leader())[0]
	away.Stop()
	c.Until("the server is found to be away", func() bool {
		_, err := c.Admin().RotateKey(c.ctx(), &ztv1.RotateKeyRequest{})
		return !mesh.Unsettled(err) && strings.Contains(c.refused(codes.FailedPrecondition, err), away.ID()+": it cannot be reached")
	})
	if k := c.keys(); k.Current != first || len(k.Retired) != 0 || len(c.Leader().Keys().IDs()) != 1 {
		t.Errorf("something was changed: %v", k)
	}
	away.Start()
	c.Together()
	_, second := c.rotate("")
	for id, want := range map[string]string{
		first: "replaced before", second: "sealed with " + second + " already", "0123456789abcdef": "does not have key 0123456789abcdef",
	} {
		_, err := c.Admin().RotateKey(c.ctx(), &ztv1.RotateKeyRequest{To: id})
		if text := c.refused(codes.FailedPrecondition, err); !strings.Contains(text, want) {
			t.Errorf("to %s: %s", id, text)
		}
	}
	_, err := c.Admin().DropKey(c.ctx(), &ztv1.DropKeyRequest{KeyId: second})
	c.refused(codes.FailedPrecondition, err)
	_, err = c.Admin().DropKey(c.ctx(), &ztv1.DropKeyRequest{KeyId: "0123456789abcdef"})
	c.refused(codes.NotFound, err)
	away = c.Others(c.Leader())[0]
	away.Stop()
	for _, dry := range []bool{true, false} {
		c.Until("the server is found to be away", func() bool {
			_, err := c.Admin().DropKey(c.ctx(), &ztv1.DropKeyRequest{KeyId: first, DryRun: dry})
			return !mesh.Unsettled(err) && strings.Contains(c.refused(codes.FailedPrecondition, err), away.ID()+": it cannot be reached")
		})
	}
	if ids := c.Leader().Keys().IDs(); len(ids) != 2 {
		t.Errorf("the leader has the keys %v", ids)
	}
	away.Start()
	c.Together()
	c.sealedWith(second)
	dry, err := c.Admin().DropKey(c.ctx(), &ztv1.DropKeyRequest{KeyId: first, DryRun: true})
	c.check(err)
	if len(dry.Servers) != 3 || len(c.Leader().Keys().IDs()) != 2 {
		t.Errorf("a dry run has dropped: %v", dry)
	}
	c.drop(first)
}

// A server that was away for all of it, and has the old key alone, is handed the new one
// and seals what it has.
func TestServerOfBeforeARotation(t *testing.T) {
	c := newCluster(t, 3, often)
	c.Submit(shop)
	s := c.Others(c.Leader())[0]
	s.Stop()
	kept := t.TempDir()
	c.check(os.CopyFS(filepath.Join(kept, "data"), os.DirFS(s.Dir)))
	key, err := os.ReadFile(s.Dir + ".kek")
	c.check(err)
	s.Start()
	c.Together()
	from, to := c.rotate("")
	s.Stop()
	c.check(errors.Join(os.RemoveAll(s.Dir), os.CopyFS(s.Dir, os.DirFS(filepath.Join(kept, "data"))), os.WriteFile(s.Dir+".kek", key, 0o600)))
	c.check(filepath.WalkDir(s.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = os.Chmod(path, 0o600) // CopyFS makes them readable
		}
		return err
	}))
	s.Start()
	c.Together()
	c.sealedWith(to)
	if ids := s.Keys().IDs(); !slices.Equal(ids, []string{to, from}) {
		t.Errorf("it has the keys %v", ids)
	}
	c.drop(from)
}

// Keys from a command: what it gives beside the current one is gone to; it is never
// handed over, and a source that takes the key away that is needed is no danger until a
// restart.
func TestRotationByCommand(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "keys")
	keys := func(list ...identity.KEK) {
		t.Helper()
		all, err := identity.NewKeys(list...)
		if err == nil {
			err = identity.WriteFile(file, all.Text().Reveal())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first, second := identity.NewKEK(), identity.NewKEK()
	keys(first)
	source := "command:/bin/cat " + file
	c := &cluster{mesh.New(t, mesh.Config{TrustDomain: trustDomain, KEK: source, Servers: 2, Tune: func(cfg *controlplane.Config) {
		often(cfg)
		cfg.KEK = source
	}}), t}
	c.Submit(shop)
	_, err := c.Admin().RotateKey(c.ctx(), &ztv1.RotateKeyRequest{})
	if text := c.refused(codes.FailedPrecondition, err); !strings.Contains(text, "has no further key") {
		t.Error(text)
	}
	keys(second, first)
	from, to := c.rotate("")
	if from != first.ID() || to != second.ID() {
		t.Errorf("from %s to %s", from, to)
	}
	resp := c.drop(from)
	for _, r := range resp.Servers {
		if r.Source != "command" || !slices.Contains(r.KeyIds, from) {
			t.Errorf("%v", r)
		}
	}
	keys(first) // a mistake
	_, err = c.Admin().RotateKey(c.ctx(), &ztv1.RotateKeyRequest{})
	if text := c.refused(codes.FailedPrecondition, err); !strings.Contains(text, "does not give "+second.ID()+" any more") {
		t.Error(text)
	}
	_, err = c.Admin().CreateToken(c.ctx(), &ztv1.CreateTokenRequest{Server: true, Ttl: durationpb.New(time.Minute)})
	c.check(err)
	keys(second)
	if k := c.keys(); k.Current != second.ID() {
		t.Errorf("%v", k)
	}
	for _, s := range c.Servers {
		s.Stop()
		s.Start()
	}
	c.Submit(shop + workload("shop", "after"))

	// Who joins must bring the key: the old one, or none, is not enough, and the token
	// stays good.
	token := c.Token("")
	join := func(kek string) error {
		return controlplane.Join(c.ctx(), controlplane.JoinConfig{
			DataDir: filepath.Join(t.TempDir(), "joins"), Server: c.Servers[0].Addresses().Node, Token: token, KEK: kek,
		})
	}
	for what, kek := range map[string]string{"the old key": "env:ZT_TEST_OLD", "no key": "file:" + filepath.Join(t.TempDir(), "none")} {
		t.Setenv("ZT_TEST_OLD", string(first.Text().Reveal()))
		if err := join(kek); err == nil || !strings.Contains(err.Error(), second.ID()) {
			t.Errorf("joined with %s: %v", what, err)
		}
	}
	for what, kek := range map[string]string{
		"a variable that is not set": "env:ZT_TEST_NOT_SET", "a command that fails": "command:/bin/false",
		"a command that prints no key": "command:/bin/echo nothing", "a variable that is no key": "env:ZT_TEST_BAD",
	} {
		t.Setenv("ZT_TEST_BAD", "ztkek1:00")
		if err := join(kek); err == nil || strings.Contains(err.Error(), "join by") {
			t.Errorf("joined with %s, or asked the cluster: %v", what, err)
		}
	}
	t.Setenv("ZT_TEST_BOTH", string(first.Text().Reveal())+string(second.Text().Reveal()))
	c.check(join("env:ZT_TEST_BOTH"))
}

// Keys from the environment: servers that are restarted one after the other with both
// keys go over, and back to one.
func TestRotationByEnvironment(t *testing.T) {
	first, second := identity.NewKEK(), identity.NewKEK()
	const source = "env:ZT_TEST_KEYS"
	give := func(list ...identity.KEK) {
		t.Helper()
		keys, err := identity.NewKeys(list...)
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("ZT_TEST_KEYS", string(keys.Text().Reveal()))
	}
	give(first)
	c := &cluster{mesh.New(t, mesh.Config{TrustDomain: trustDomain, KEK: source, Servers: 3, Tune: func(cfg *controlplane.Config) {
		often(cfg)
		cfg.KEK = source
	}}), t}
	c.Submit(shop)
	rolling := func() {
		t.Helper()
		for _, s := range c.Servers {
			s.Stop()
			s.Start()
			c.Together()
		}
	}
	give(first, second) // in any order
	rolling()
	if from, to := c.rotate(""); from != first.ID() || to != second.ID() {
		t.Errorf("from %s to %s", from, to)
	}
	give(second)
	rolling()
	c.drop(first.ID())
	for _, r := range c.keys().Servers {
		if r.Source != "env" || !slices.Equal(r.KeyIds, []string{second.ID()}) {
			t.Errorf("%v", r)
		}
	}
	c.Submit(shop + workload("shop", "after"))
}
