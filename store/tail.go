package store

import (
	"sync"

	"github.com/hashicorp/raft"
)

// How much of the end of the log is kept in memory.
const (
	tailEntries = 1024
	tailBytes   = 32 << 20 // of data; the newest entry is kept whatever its size
)

// logTail is the end of the log as it was stored, decrypted. raft reads each entry
// again to send it to each follower, to apply it, and to learn its term when it sends
// the next one.
//
// It holds nothing that the disk does not, and gives up all of it whenever the log is
// cut or a write fails: then the disk says what there is.
type logTail struct {
	mu      sync.Mutex // guards what follows
	most    int        // entries that are kept; 0: none
	entries []raft.Log // of consecutive indexes; nobody changes their data
	bytes   int        // of their data
}

// get tells whether an entry is kept, and gives it.
func (r *logTail) get(index uint64, to *raft.Log) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.entries); n == 0 || index < r.entries[0].Index || index > r.entries[n-1].Index {
		return false
	}
	*to = r.entries[index-r.entries[0].Index]
	return true
}

// add takes in entries that are stored: their copies, since a proposal's own holds on
// to what it has led to.
func (r *logTail) add(entries []*raft.Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		if n := len(r.entries); n > 0 && e.Index != r.entries[n-1].Index+1 {
			r.entries, r.bytes = nil, 0
		}
		r.entries = append(r.entries, *e)
		r.bytes += len(e.Data)
	}
	drop := 0
	for n := len(r.entries); n-drop > r.most || n-drop > 1 && r.bytes > tailBytes; drop++ {
		r.bytes -= len(r.entries[drop].Data)
		r.entries[drop] = raft.Log{} // what follows shares the array
	}
	r.entries = r.entries[drop:]
}

// forget gives up everything.
func (r *logTail) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries, r.bytes = nil, 0
}
