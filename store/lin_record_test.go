package store

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/store/state"
)

// spaces is how many namespaces the clients write; each holds one document.
const spaces = 4

func spaceName(i int) string { return fmt.Sprint("ns", i) }

// view is what a client can see in a state: for each namespace, which operation
// wrote it last, and at which revision.
type view struct {
	revision uint64
	at       [spaces]written
}

type written struct {
	revision uint64
	op       int // 0: none
}

func viewOf(s *state.State) view {
	v := view{revision: s.Revision()}
	for i := range v.at {
		v.at[i].revision = s.NamespaceRevision(spaceName(i))
		if d, ok := s.Document(state.Key{Kind: "Grant", Namespace: spaceName(i), Name: "g"}); ok {
			v.at[i].op, _ = strconv.Atoi(string(d.Bytes))
		}
	}
	return v
}

// What an operation has led to.
const (
	isUnknown  = iota // it may have had its effect, or have it yet
	isApplied         // at revision
	isStale           // refused: a base was another; current tells
	isOutdated        // refused: validated at another revision
	isNothing         // it was not handed over
)

// operation is one call of a client, with all of its retries.
type operation struct {
	id        int
	client    int
	call, end int64 // by the clock of record; end 0: still unknown when all was over

	listed bool // it stands in the history

	// a read: what was seen
	read bool
	saw  view

	// an apply
	key       string
	writes    [spaces]bool
	based     [spaces]bool // bases says what the namespace must be at
	bases     [spaces]uint64
	validated uint64
	tries     int

	outcome  int
	revision uint64
	current  map[string]uint64
}

// attempt is one entry that was proposed. The log must agree with it.
type attempt struct {
	op       *operation
	outcome  int
	revision uint64
	replayed bool
	reused   bool // refused: the key belongs to another operation
}

// glimpse is one look at a state, on any server, whenever.
type glimpse struct {
	server    string
	index     uint64
	call, end int64
	saw       view
}

// record is what everybody has seen, in one order.
type record struct {
	seed uint64

	mu         sync.Mutex // guards what follows
	t          testing.TB
	now        int64
	violations int
	ids        int
	done       int // operations of every kind that were answered
	operations []*operation
	attempts   map[string]*attempt // by Who of the entry
	glimpses   []glimpse
	newest     map[*Store]uint64            // the newest index seen there
	shown      map[string]map[*Store]uint64 // the newest that a watcher was shown, by server and its lives
	log        map[uint64]*raft.Log         // committed
	last       uint64                       // index in log
	read       map[*Store]uint64            // how far its log was read
	leaders    map[uint64]string            // term → server
	finals     map[string]*state.State
	faults     map[string]int
}

func newRecord(seed uint64) *record {
	return &record{
		seed:     seed,
		attempts: map[string]*attempt{}, newest: map[*Store]uint64{}, shown: map[string]map[*Store]uint64{}, log: map[uint64]*raft.Log{}, read: map[*Store]uint64{},
		leaders: map[uint64]string{}, finals: map[string]*state.State{}, faults: map[string]int{},
	}
}

func (r *record) violation(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violate(format, args...)
}

func (r *record) violate(format string, args ...any) {
	if r.violations++; r.violations <= 20 {
		r.t.Errorf("seed %d: %s", r.seed, fmt.Sprintf(format, args...))
	}
}

// begin makes an operation.
func (r *record) begin(client int, read bool) *operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now++
	r.ids++
	return &operation{id: r.ids, client: client, call: r.now, read: read}
}

// finish ends an operation that has an answer, or leaves it open.
func (r *record) finish(o *operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := !o.listed && o.outcome != isNothing
	if o.outcome != isUnknown || o.read {
		r.now++
		o.end = r.now
	}
	if first {
		o.listed = true
		r.done++
		r.operations = append(r.operations, o)
	}
}

// count counts an operation that the history does not hold.
func (r *record) count() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
}

func (r *record) counted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done
}

func (r *record) fault(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[name]++
}

func (r *record) tried(who string, a *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attempts[who] = a
}

// glimpse looks at a server's state, which must not be older than one that was seen
// there before.
func (r *record) glimpse(s *Store) *state.State {
	r.mu.Lock()
	r.now++
	call, floor := r.now, r.newest[s]
	r.mu.Unlock()
	st := s.State()
	saw := viewOf(st)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now++
	if st.Index() < floor {
		r.violate("stale reads go back: %s is at %d and was at %d", s.cfg.ID, st.Index(), floor)
	}
	r.newest[s] = max(r.newest[s], st.Index())
	r.glimpses = append(r.glimpses, glimpse{server: s.cfg.ID, index: st.Index(), call: call, end: r.now, saw: saw})
	return st
}

// leads notes a leader; a term has one.
func (r *record) leads(server string, term uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.leaders[term]; ok && was != server {
		r.violate("two leaders in term %d: %s and %s", term, was, server)
	}
	r.leaders[term] = server
}

func (r *record) readTo(s *Store) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read[s]
}

// committed notes an entry that a server has applied.
func (r *record) committed(s *Store, index uint64, l *raft.Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read[s] = max(r.read[s], index)
	r.last = max(r.last, index)
	was, ok := r.log[index]
	if !ok {
		r.log[index] = l
		return
	}
	if was.Term != l.Term || was.Type != l.Type || !bytes.Equal(was.Data, l.Data) {
		r.violate("%s has committed another entry %d: term %d, not %d", s.cfg.ID, index, l.Term, was.Term)
	}
}

func (r *record) final(server string, s *state.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finals[server] = s
}
