package store

import (
	"io"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/failpoint"
)

// hitLog is the log as raft is given it, with failpoints around what it writes.
type hitLog struct{ *diskLog }

// StoreLogs is part of raft.LogStore.
func (l hitLog) StoreLogs(entries []*raft.Log) error {
	failpoint.Hit("store.log.append")
	err := l.diskLog.StoreLogs(entries)
	failpoint.Hit("store.log.appended")
	return err
}

// DeleteRange is part of raft.LogStore: of entries that a snapshot has, or that
// another leader has overruled.
func (l hitLog) DeleteRange(from, to uint64) error {
	failpoint.Hit("store.log.cut")
	err := l.diskLog.DeleteRange(from, to)
	failpoint.Hit("store.log.uncut")
	return err
}

// Set is part of raft.StableStore: for whom this server has voted.
func (l hitLog) Set(key, value []byte) error {
	return l.keep(func() error { return l.diskLog.Set(key, value) })
}

// SetUint64 is part of raft.StableStore: the term, and that of the vote.
func (l hitLog) SetUint64(key []byte, value uint64) error {
	return l.keep(func() error { return l.diskLog.SetUint64(key, value) })
}

func (l hitLog) keep(set func() error) error {
	failpoint.Hit("store.term.keep")
	err := set()
	failpoint.Hit("store.term.kept")
	return err
}

// halves writes in two steps, so that a crash between them leaves a part.
type halves struct{ io.Writer }

func (h halves) Write(p []byte) (int, error) {
	n, err := h.Writer.Write(p[:len(p)/2])
	if err != nil {
		return n, err
	}
	failpoint.Hit("store.snapshot.half")
	m, err := h.Writer.Write(p[n:])
	return n + m, err
}
