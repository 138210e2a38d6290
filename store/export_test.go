package store

import (
	"github.com/hashicorp/raft"
)

// OpenLogForBench is a log in a folder, as a store opens one.
func OpenLogForBench(dir string, fail func(error)) (interface {
	raft.LogStore
	raft.StableStore
	Close() error
}, error,
) {
	return openLog(osFiles{}, dir, 0, 0, fail)
}

// RaftConfigForBench is how a store runs raft.
func RaftConfigForBench(id string, t Timing, notify chan<- bool) *raft.Config {
	return raftConfig(Config{ID: id, Timing: t}, nil, notify)
}
