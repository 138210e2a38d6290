package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// restoreStep is by how much a restored log goes on above the backup's index, and so
// its revisions above all that the lost cluster can have given out after it: at 10,000
// entries a second it would have needed three years. Revisions stay below 2^53, which
// JSON numbers bear, for 8,000 restores.
const restoreStep = 1 << 40

// RestoreConfig is what a cluster is restored from.
type RestoreConfig struct {
	DataDir string // of the new server; must not be one's already
	From    string // the backup, a file
	// KEK is the source of the key-encryption key, as identity.KeySource reads it.
	// Default: DefaultKEK of DataDir.
	KEK string
	// DryRun checks the backup and tells what it holds. Nothing is written.
	DryRun bool
	Logger *slog.Logger
	Now    func() time.Time // default time.Now
}

// Restore makes a new cluster with one server of a backup. It has the root of the one
// that the backup is of, so that proxies and admins go on with their certificates; a
// new epoch, so that servers of before are refused; no join tokens; and revisions
// above all that were given out. Nothing is written before all of the backup was
// checked. Afterwards, New and Run serve from the folder, and further servers join.
func Restore(ctx context.Context, cfg RestoreConfig) (b *Backup, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	d := dataDir(cfg.DataDir)
	keys, err := openKeyring(ctx, cfg.KEK, d)
	if err != nil {
		return nil, err
	}
	if b, err = readBackup(cfg.From, keys.get()); err != nil || cfg.DryRun {
		return b, err
	}
	lock, err := d.create()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	for _, left := range []string{d.dataKeys(), d.raft()} {
		if _, err := os.Stat(left); err == nil {
			return nil, fmt.Errorf("%s is there: an earlier restore was interrupted; remove %s and try again", left, cfg.DataDir)
		}
	}
	return b, b.restoreTo(ctx, d, cfg)
}

func (b *Backup) restoreTo(ctx context.Context, d dataDir, cfg RestoreConfig) (err error) {
	journal, err := identity.OpenJournal(d.journal())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	id, epoch := identity.NewID(), identity.NewID()
	data, err := identity.NewDataKeys(d.dataKeys(), b.TrustDomain, id, b.kek)
	if err != nil {
		return err
	}
	all, err := identity.NewKeys(b.kek)
	if err != nil {
		return err
	}
	root, err := identity.OpenRoot(b.root.Certificate(), b.state.SealedRootKey(), all, identity.Signing{Now: cfg.Now, Log: journal.Append})
	if err != nil {
		return err
	}
	intermediate, err := newIntermediate(func(key identity.PrivateKey) (*x509.Certificate, error) {
		return root.SignIntermediate(key.Public(), id)
	})
	if err != nil {
		return err
	}
	if err := errors.Join(
		intermediate.SaveSealed(d.intermediate(), data),
		identity.WriteFile(d.roots(), identity.EncodePEM([]*x509.Certificate{root.Certificate()})),
		identity.WriteFile(d.sealedRoot(), b.state.SealedRootKey()),
	); err != nil {
		return err
	}
	// The snapshot that the new log begins with is of the new epoch already.
	raised := b.state.Raised(restoreStep)
	restored, result := state.Apply(raised, raised.Index()+1, &logv1.Entry{
		Format: state.Format, When: timestamppb.New(cfg.Now()), Who: "restore", Method: "restore",
		Op: &logv1.Entry_Restored{Restored: &logv1.Restored{EpochId: epoch, Server: &logv1.Server{Id: id}}},
	})
	if result.Err != nil {
		return result.Err
	}
	if err := bootstrap(ctx, cfg.Now, d, id, data, restored); err != nil {
		return err
	}
	// The audit records of before lie with the servers of before, and in what was exported:
	// here the chain goes on from its head, which the state holds, with the record of this.
	if err := store.BeginAudit(d.raft(), result.Audit); err != nil {
		return err
	}
	return writeJSON(d.identityFile(), serverFile{ID: id, TrustDomain: b.TrustDomain, Epoch: epoch})
}
