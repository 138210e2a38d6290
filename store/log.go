package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// diskLog is the log on disk, with the terms and votes: raft-wal, which it guards
// in two ways. A disk that has refused a write or a sync is not asked again, since
// what is on it is no longer known: the store fails. And each entry has a CRC-32C
// (in Extensions, on disk only), checked whenever it is read: raft-wal has sums of
// its own, but looks at them only at the tail, and only when it is opened.
type diskLog struct {
	*wal.WAL
	fail func(error)
}

// openLog opens or makes the log, and reads all of it.
func openLog(dir string, logger hclog.Logger, fail func(error)) (*diskLog, error) {
	name := filepath.Join(dir, "log")
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	meta := &metadb.BoltMetaDB{} // wal.Open leaves it open, and locked, when it fails.
	w, err := wal.Open(name, wal.WithLogger(logger), wal.WithMetaStore(meta))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: log: %w", ErrUnreadable, err), meta.Close())
	}
	log := &diskLog{WAL: w, fail: fail}
	if err := log.readThrough(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: log: %w", ErrUnreadable, err), log.Close())
	}
	return log, nil
}

// readThrough reads every entry, so that damage is found before this server votes
// with it, and not by a panic of raft's in the middle of the day. A log holds a few
// thousand entries.
func (l *diskLog) readThrough() error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	for i := first; i <= last; i++ {
		if err := l.GetLog(i, &raft.Log{}); err != nil {
			return fmt.Errorf("entry %d of %d to %d: %w", i, first, last, err)
		}
	}
	return nil
}

// GetLog is part of raft.LogStore. raft calls it from several goroutines.
func (l *diskLog) GetLog(index uint64, to *raft.Log) error {
	if err := l.WAL.GetLog(index, to); err != nil {
		return err
	}
	n := len(to.Extensions) - crc32.Size
	if n < 0 || to.Index != index || binary.LittleEndian.Uint32(to.Extensions[n:]) != sum(to) {
		return fmt.Errorf("%w: the sum of entry %d is wrong", wal.ErrCorrupt, index)
	}
	to.Extensions = to.Extensions[:n]
	return nil
}

// StoreLog is part of raft.LogStore.
func (l *diskLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs is part of raft.LogStore. raft calls it from one goroutine.
func (l *diskLog) StoreLogs(entries []*raft.Log) error {
	sealed := make([]raft.Log, len(entries))
	pointers := make([]*raft.Log, len(entries))
	for i, e := range entries {
		sealed[i] = *e
		sealed[i].Extensions = binary.LittleEndian.AppendUint32(e.Extensions[:len(e.Extensions):len(e.Extensions)], sum(e))
		pointers[i] = &sealed[i]
	}
	err := l.WAL.StoreLogs(pointers)
	if err != nil {
		l.fail(fmt.Errorf("write log: %w", err))
	}
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum covers what raft acts on.
func sum(e *raft.Log) uint32 {
	head := binary.LittleEndian.AppendUint64(nil, e.Index)
	head = binary.LittleEndian.AppendUint64(head, e.Term)
	head = append(head, byte(e.Type))
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, e.Data)
}
