package store

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/store/state"
)

// Offline is what a store's directory holds while no process has it open.
type Offline struct {
	// State is what all of the log comes to, also those entries of which this server
	// never learnt that they are committed: any of them may have been acknowledged.
	State *state.State
	// LastIndex and LastTerm are of the last entry, as LastEntry of a Store.
	LastIndex, LastTerm uint64
	// Members is the newest group that log and snapshot name.
	Members []Member

	cfg    Config
	from   *state.State   // the newest snapshot's
	audits []*state.Audit // of the entries after it
}

// ReadOffline reads the directory of a store that is not open, as Open would, and with
// the same checks: what is damaged is refused with ErrUnreadable. Of cfg it needs ID,
// Dir, Cipher and Logger. It tidies up after a crash as Open does, and changes nothing
// else.
func ReadOffline(cfg Config) (_ *Offline, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read store %s: %w", cfg.Dir, err)
		}
	}()
	if cfg.Files == nil {
		cfg.Files = osFiles{}
	}
	if cfg.Format == 0 {
		cfg.Format = state.Format
	}
	s := &Store{cfg: cfg, end: newEnd()}
	defer func() { err = errors.Join(err, s.release()) }()
	there, err := exists(cfg.Files, cfg.Dir, "server-id")
	if err != nil {
		return nil, err
	}
	if !there { // openDir would make one
		return nil, fmt.Errorf("%w: it is not there", ErrUnreadable)
	}
	if s.lock, err = openDir(cfg.Files, cfg.Dir, cfg.ID); err != nil {
		return nil, err
	}
	restored, snapshots, err := s.openDisk(cfg)
	if isDamage(err) {
		err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err != nil {
		return nil, err
	}
	if needs := restored.SnapshotFormat(); needs > cfg.Format {
		return nil, errTooOld(fmt.Errorf("%w: the snapshot at %d is of format %d", state.ErrUnknownEntry, restored.Index(), needs), cfg.Format)
	}
	o := &Offline{State: restored, from: restored, cfg: cfg}
	return o, o.replay(s.log, snapshots)
}

// replay applies the log to the newest snapshot.
func (o *Offline) replay(log *diskLog, snapshots *sealedSnapshots) error {
	metas, err := snapshots.List()
	if err != nil {
		return err
	}
	if len(metas) > 0 {
		o.LastIndex, o.LastTerm = metas[0].Index, metas[0].Term
		o.setMembers(metas[0].Configuration)
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	sealed := &sealedLog{logStore: log, cipher: o.cfg.Cipher}
	for i := o.LastIndex + 1; i <= last; i++ {
		var e raft.Log
		if err := sealed.GetLog(i, &e); err != nil {
			return fmt.Errorf("%w: log: %w", ErrUnreadable, err)
		}
		o.LastIndex, o.LastTerm = e.Index, e.Term
		switch e.Type {
		case raft.LogCommand:
			next, result, err := apply(o.State, &e, o.cfg.Format)
			if err != nil {
				return err
			}
			o.State = next
			if result.Audit != nil {
				o.audits = append(o.audits, result.Audit)
			}
		case raft.LogConfiguration:
			o.setMembers(raft.DecodeConfiguration(e.Data))
		}
	}
	return nil
}

func (o *Offline) setMembers(c raft.Configuration) {
	o.Members = nil
	for _, v := range c.Servers {
		o.Members = append(o.Members, Member{ID: string(v.ID), Address: string(v.Address), Voter: v.Suffrage == raft.Voter})
	}
}

// CopyAudit copies the audit records on the disk of o to the directory of another
// store that is not open, in the place of those that it has, with the records of o's
// whole log and more after them. The chain goes on there without a break.
func (o *Offline) CopyAudit(dir string, more ...*state.Audit) error {
	from, to := filepath.Join(o.cfg.Dir, "audit"), filepath.Join(dir, "audit")
	files := o.cfg.Files
	names, err := files.List(from)
	if err != nil {
		return err
	}
	if err := files.MakeDir(to); err != nil {
		return err
	}
	old, err := files.List(to)
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := files.Remove(filepath.Join(to, name)); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := copyFile(files, filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	if err := files.SyncDir(to); err != nil {
		return err
	}
	cfg := o.cfg
	cfg.Dir = dir
	l, err := openAudit(cfg, o.from)
	if err != nil {
		return err
	}
	for _, a := range append(o.audits[:len(o.audits):len(o.audits)], more...) {
		if err := l.Append(a); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	return errors.Join(l.Sync(), l.Close())
}

// copyFile copies a file, durably but for its name.
func copyFile(files Files, from, to string) (err error) {
	src, err := files.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	size, err := src.Size()
	if err != nil {
		return err
	}
	dst, err := files.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf := make([]byte, 256<<10)
	for at := int64(0); at < size; {
		n, err := src.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if _, err := dst.WriteAt(buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
	return dst.Sync()
}
