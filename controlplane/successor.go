package controlplane

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
)

// successor is a member in the making, which is to have the folder of one that cannot
// go on as who it was. It lies in a folder within that:
//
//	data-keys.sealed     of the new member
//	intermediate.sealed  of the new member
//	raft                 its log; without one, it gets everything from the others
//	server.json          who it is, and who it was; written when the former are there
//	agreed               it is to be; from then on there is no way back
type successor struct {
	d    dataDir // of the server
	in   dataDir // the folder within
	file successorFile
	pair *identity.KeyPair
}

type successorFile struct {
	Lost string     `json:"lost"`
	Kept string     `json:"kept"` // where the log of the lost one goes
	New  serverFile `json:"new"`
}

func (r *successor) agreed() string { return r.in.path("agreed") }

func (r *successor) agree() error { return identity.WriteFile(r.agreed(), nil) }

// load reads what an earlier try has left.
func (r *successor) load() (agreed bool, err error) {
	b, err := os.ReadFile(r.in.identityFile())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, &r.file); err != nil {
		return false, fmt.Errorf("%s: %w", r.in.identityFile(), err)
	}
	if _, err := os.Stat(r.agreed()); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return false, nil
}

// make makes the new member's identity, signed by the root, in the place of what an
// earlier try has left. What the old member had is to be kept under a name that begins
// with kept.
func (r *successor) make(s *Server, root *identity.Root, kept, epoch string) (err error) {
	r.file = successorFile{
		Lost: s.id,
		Kept: r.d.path(kept + s.cfg.Now().UTC().Format("20060102T150405Z") + "-" + s.id[:min(8, len(s.id))]),
		New:  serverFile{ID: identity.NewID(), TrustDomain: s.td, Epoch: epoch},
	}
	r.pair, err = newIntermediate(func(key identity.PrivateKey) (*x509.Certificate, error) {
		return root.SignIntermediate(key.Public(), r.file.New.ID)
	})
	if err != nil {
		return err
	}
	kek, ok := s.keys.get().Find(s.data.KEK())
	if !ok {
		return fmt.Errorf("the key-encryption key %q is not among those of %s", s.data.KEK(), s.keys.source)
	}
	if err := errors.Join(os.RemoveAll(string(r.in)), os.MkdirAll(string(r.in), 0o700)); err != nil {
		return err
	}
	data, err := identity.NewDataKeys(r.in.dataKeys(), s.td, r.file.New.ID, kek)
	if err != nil {
		return err
	}
	return errors.Join(r.pair.SaveSealed(r.in.intermediate(), data), writeJSON(r.in.identityFile(), r.file))
}

// finish makes the folder that of the new member, and tells where it keeps what the old
// one had; "" if there was nothing. Each step may be done already.
func (r *successor) finish() (kept string, err error) {
	owner, err := os.ReadFile(r.d.raftOwner())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if strings.TrimSpace(string(owner)) != r.file.New.ID {
		if err := os.Rename(r.d.raft(), r.file.Kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	failpoint.Hit("controlplane.successor.aside")
	if _, err := os.Stat(r.file.Kept); err == nil {
		kept = r.file.Kept
	}
	for _, move := range []struct{ from, to string }{
		{r.in.raft(), r.d.raft()}, {r.in.dataKeys(), r.d.dataKeys()}, {r.in.intermediate(), r.d.intermediate()},
	} {
		if _, err := os.Stat(move.from); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// What was kept is sealed by the keys of before.
		if kept != "" && move.to == r.d.dataKeys() {
			if err := os.Rename(move.to, filepath.Join(kept, filepath.Base(move.to))); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return kept, err
			}
		}
		if err := os.Rename(move.from, move.to); err != nil {
			return kept, err
		}
	}
	failpoint.Hit("controlplane.successor.moved")
	// WriteFile syncs the folder, with the names that were moved.
	if err := writeJSON(r.d.identityFile(), r.file.New); err != nil {
		return kept, err
	}
	failpoint.Hit("controlplane.successor.named")
	if err := os.Remove(r.d.diverged()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	// agreed goes first: what is left without it is of no use, and make sees that.
	if err := os.Remove(r.agreed()); err != nil {
		return kept, err
	}
	return kept, os.RemoveAll(string(r.in))
}

// checkReseed refuses a folder that is neither the old member's nor the new one's.
func (d dataDir) checkReseed() error { return d.checkSuccessor("reseed", d.reseed()) }

// checkRecover is the same of a recovery.
func (d dataDir) checkRecover() error { return d.checkSuccessor("recover", d.recovery()) }

func (d dataDir) checkSuccessor(command, folder string) error {
	if _, err := os.Stat(dataDir(folder).path("agreed")); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("a %s of %s was interrupted; end it: ztd %s --data-dir %s", command, string(d), command, string(d)), err)
	}
	return nil
}
