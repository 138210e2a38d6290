// Package store is what the cluster has agreed on, made durable: a Raft group of
// servers that replicate log entries and apply them to a [state.State].
//
// It owns the log, the snapshots, membership and leadership, and the answer to
// "was this entry taken?". It refuses to know what entries mean (store/state
// does), who may propose them, and how connections are authenticated: the caller
// hands in a listener and a dialer, which are mTLS in production.
//
// Invariants:
//   - An entry whose Propose returned without error is on the disks of a quorum,
//     fsynced, and applied here. It is never lost and never applied twice.
//   - An error tells truly whether the entry may take effect: ErrUnknown is the
//     only one after which it may.
//   - What was done is on record: the audit record of every entry is kept beside the
//     log, and the log is not cut before those are durable.
//   - States are applied in one order everywhere, and State never goes back. What Watch
//     has shown it does not fall behind, also over a restart without a leader.
//   - A server that cannot go on rightly (an entry that it does not know, a disk
//     that refuses a write) stops: see [Store.Wait]. It never skips.
//
// All methods may be called from any goroutine.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/store/audit"
	"github.com/ztmesh/ztmesh/store/state"
)

// Errors that callers branch on.
var (
	// ErrNotLeader is returned when only the leader can do what was asked. Nothing
	// was done; ask the server that Leader names.
	ErrNotLeader = errors.New("this server is not the leader")
	// ErrUnknown is returned when an entry may or may not take effect: leadership
	// was lost, the store was closed, or the caller did not wait, after the entry
	// was handed to the log. Propose again with the same idempotency key to learn.
	ErrUnknown = errors.New("outcome is not known")
	// ErrBusy is returned when the log did not take the entry in time. Nothing was
	// done.
	ErrBusy = errors.New("log is busy")
	// ErrFull is returned when the disk has no room for an entry. Nothing was done.
	ErrFull = errors.New("the disk is full")
	// ErrTooLarge is returned when an entry is above MaxEntry. Nothing was done.
	ErrTooLarge = errors.New("entry is too large")
	// ErrClosed is returned when the store is closed or has failed. Nothing was
	// done.
	ErrClosed = errors.New("store is closed")
	// ErrRemoved is returned by Wait when this server has been removed from the
	// cluster.
	ErrRemoved = errors.New("this server was removed from the cluster")
	// ErrLocked is returned by Open when another process has the directory open.
	ErrLocked = errors.New("data directory is in use by another process")
	// ErrOtherServer is returned by Open when the directory belongs to another
	// server id.
	ErrOtherServer = errors.New("data directory belongs to another server")
	// ErrAudit is returned when the record of an entry could not be kept: the disk
	// has no room for it. Nothing was done.
	ErrAudit = errors.New("audit log cannot be written")
	// ErrAuditDamaged is returned by Open when an audit record is not what was
	// written; the error names the first one.
	ErrAuditDamaged = errors.New("audit log is damaged")
	// ErrDiverged is what a caller stops with who finds, by HashAt, that the state here is not
	// that of the other servers. The server must be seeded anew from them.
	ErrDiverged = errors.New("the state of this server is not that of the others")
	// ErrUnreadable is returned by Open when log or snapshot are damaged. The
	// server must be seeded anew from its peers: it must not vote with what it has.
	ErrUnreadable = errors.New("data directory is not readable")
)

// MaxEntry is the size of the largest entry, in bytes; a little is left for what
// the log adds to it.
const MaxEntry = 64<<20 - 4<<10

// Config is what a store needs. ID, Dir, Cipher, Address, Listener, Dial, Logger and Now
// are required.
type Config struct {
	// ID is this server's, for ever.
	ID string
	// Dir holds log and snapshots. It is made (0700) if absent.
	Dir string
	// Cipher encrypts what the store writes to Dir.
	Cipher Cipher
	// Bootstrap makes a new cluster of this one server if Dir is empty. Otherwise
	// it is ignored.
	Bootstrap bool
	// Address is where the peers reach Listener (host:port).
	Address string
	// Listener accepts connections of peers, authenticated by the caller. The
	// store closes it.
	Listener net.Listener
	// Dial connects to a peer, authenticated by the caller.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Logger gets what an operator may act on.
	Logger *slog.Logger
	// Now is the clock that entries are stamped by.
	Now func() time.Time
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Timing and Audit may be left empty.
	Timing Timing
	Audit  Audit
	// Format is the newest format of entries that this server reads; default
	// state.Format. Only tests pretend to be of an older version.
	Format uint32
	// Files is the file system that Dir is on. Default: that of this machine.
	Files Files
	// Reserve is how many bytes to keep back for the day that the disk is full. While
	// less than as much again is free, what adds to the state is refused. 0: none,
	// and nothing is refused before a write has found no room.
	Reserve uint64

	segment int64 // bytes of a segment of the log; 16 MiB
}

// Audit says how much of the audit log is kept. Every zero value stands for its
// default.
type Audit struct {
	MaxBytes int64         // above it, the oldest segments go; 1 GiB
	MaxAge   time.Duration // a segment goes when its newest record is older; never
}

// Timing tunes Raft. Every zero value stands for its default.
type Timing struct {
	Heartbeat time.Duration // a follower calls an election without contact for so long; 1 s
	Election  time.Duration // a candidate tries again after so long; 1 s
	Lease     time.Duration // a leader without a quorum for so long steps down; 500 ms
	// Commit bounds how long a follower learns later than the leader that an entry
	// is committed: at most twice this; 20 ms.
	Commit time.Duration
	// A snapshot is taken when SnapshotEntries (4096) have been logged since the
	// last, looked at every SnapshotInterval (30 s) to twice that. TrailingEntries
	// (2048) stay in the log after it, for followers that are a little behind.
	SnapshotInterval time.Duration
	SnapshotEntries  uint64
	TrailingEntries  uint64
	// Scrub is how often log and snapshots are read through for damage; 1 h.
	Scrub time.Duration
}

// Store is one server of the cluster. Make one by Open; Close it.
type Store struct {
	cfg       Config
	fsm       *fsm
	raft      *raft.Raft
	log       *diskLog
	sealed    *sealedLog // log as raft has it
	audit     *audit.Log
	snapshots *snapshots
	space     *space
	lock      io.Closer
	transport *transport
	lead      leadership
	metrics   *metrics
	heard     formats // what members say they read

	proposals chan *Proposal // Submit → answerProposals
	notify    chan bool      // raft → runLeadership
	member    atomic.Bool    // the last committed configuration has this server
	caughtUp  atomic.Bool    // see CaughtUp
	removed   chan struct{}  // fsm → runLeadership: a committed configuration lacks this server; holds one
	down      error          // what raft's shutdown returned; set when runLeadership ends
	stopped   func() error   // waits for everything and gives back what open has taken, once
	end       *end           // set once: by Close, or by whoever finds that the store cannot go on
	tasks     sync.WaitGroup // runLeadership, watchSpace, runScrub
}

// Open opens or makes the data directory, restores the newest snapshot and what Watch has
// shown after it, and joins the Raft group that the log names. Later entries are applied
// once a leader is heard. On error it has closed what it opened, Listener
// included.
func Open(cfg Config) (*Store, error) {
	s, err := open(cfg)
	if err != nil {
		if cfg.Listener != nil {
			_ = cfg.Listener.Close() // The error that matters is the first.
		}
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func (c Config) validate() error {
	var errs []error
	require := func(ok bool, name string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s is required", name))
		}
	}
	require(c.ID != "", "ID")
	require(c.Dir != "", "Dir")
	require(c.Cipher != nil, "Cipher")
	require(c.Address != "", "Address")
	require(c.Listener != nil, "Listener")
	require(c.Dial != nil, "Dial")
	require(c.Logger != nil, "Logger")
	require(c.Now != nil, "Now")
	return errors.Join(errs...)
}

func open(cfg Config) (_ *Store, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Format == 0 {
		cfg.Format = state.Format
	}
	s := &Store{cfg: cfg, proposals: make(chan *Proposal, 256), notify: make(chan bool, 16), removed: make(chan struct{}, 1), end: newEnd()}
	s.lead.changed = make(chan struct{})
	s.heard.of = map[string]uint32{cfg.ID: cfg.Format}
	defer func() {
		if err != nil && s.raft == nil {
			err = errors.Join(err, s.release())
		}
	}()
	if cfg.Files == nil {
		cfg.Files = osFiles{}
	}
	if s.lock, err = openDir(cfg.Files, cfg.Dir, cfg.ID); err != nil {
		return nil, err
	}
	failpoint.Hit("store.open.locked")
	logger := newRaftLogger(cfg.Logger, cfg.Now)
	if s.space, err = newSpace(cfg.Files, cfg.Dir, cfg.Reserve, cfg.Logger); err != nil {
		return nil, err
	}
	cfg.Files = s.space
	restored, snapshots, err := s.openDisk(cfg)
	if isDamage(err) {
		err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err != nil {
		return nil, err
	}
	failpoint.Hit("store.open.restored")
	if needs := restored.SnapshotFormat(); needs > cfg.Format {
		return nil, errTooOld(fmt.Errorf("%w: the snapshot at %d is of format %d", state.ErrUnknownEntry, restored.Index(), needs), cfg.Format)
	}
	if s.audit, err = openAudit(cfg, restored); err != nil {
		return nil, err
	}
	s.metrics = newMetrics(cfg.Metrics)
	s.fsm = newFSM(restored, fsmHooks{
		format: cfg.Format, fail: s.end.set, audit: s.audit, snapshot: s.metrics.snapshots.Inc, configured: s.configured,
	})
	s.transport = newTransport(cfg, logger)
	s.sealed = &sealedLog{
		logStore: hitLog{s.log}, cipher: cfg.Cipher, ends: s.snapshots.ends, covered: s.snapshots.covered, halt: s.log.halt,
		tail: logTail{most: tailEntries},
	}
	if err := s.replay(); err != nil {
		return nil, errors.Join(err, s.transport.Close())
	}
	conf, log := raftConfig(cfg, logger, s.notify), s.sealed
	if cfg.Bootstrap {
		err := raft.BootstrapCluster(conf, log, log, snapshots, s.transport, raft.Configuration{Servers: []raft.Server{
			{ID: raft.ServerID(cfg.ID), Address: raft.ServerAddress(cfg.Address), Suffrage: raft.Voter},
		}})
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return nil, errors.Join(err, s.transport.Close())
		}
	}
	if s.raft, err = raft.NewRaft(conf, s.fsm, log, log, snapshots, s.transport); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrUnreadable, err), s.transport.Close())
	}
	if s.isMember() {
		s.member.Store(true) // by a configuration that this start may not apply again
	}
	s.stopped = sync.OnceValue(func() error {
		s.tasks.Wait()
		return errors.Join(s.down, s.release())
	})
	s.log.start()
	s.tasks.Go(s.runLeadership)
	s.tasks.Go(s.watchSpace)
	s.tasks.Go(s.runScrub)
	go s.answerProposals()
	if err := s.metrics.register(s); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// openDisk opens snapshots and log, and checks that together they hold all that this
// server is known to have had. A damaged snapshot is no loss if the log reaches back
// to the one before it.
func (s *Store) openDisk(cfg Config) (*state.State, *sealedSnapshots, error) {
	snapshots, damaged, err := openSnapshots(cfg.Files, cfg.Dir, s.end.set)
	if err != nil {
		return nil, nil, err
	}
	sealed := &sealedSnapshots{SnapshotStore: snapshots, cipher: cfg.Cipher}
	restored, covered, err := sealed.newest()
	if err != nil {
		return nil, nil, err
	}
	if s.log, err = openLog(cfg.Files, cfg.Dir, cfg.segment, covered, s.end.set); err != nil {
		return nil, nil, errors.Join(append(damaged, fmt.Errorf("log: %w", err))...)
	}
	if err := (&sealedLog{logStore: s.log, cipher: cfg.Cipher}).readThrough(); err != nil {
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	if !s.log.served.known && s.log.last > covered {
		cfg.Logger.Warn("it is not known what was served before; nothing is until a leader is heard", "file", s.log.served.name)
	}
	snapshots.note = s.log.mark.snapshot
	s.snapshots = snapshots
	for _, err := range damaged {
		cfg.Logger.Warn("a damaged snapshot is set aside; the log has what lies after the one before", "error", err)
	}
	return restored, sealed, snapshots.setAside()
}

// isDamage says whether an error of opening is of what the disk holds, and not of
// rights, room or a newer version.
func isDamage(err error) bool {
	return errors.Is(err, errDamaged) || errors.Is(err, errSealed) || errors.Is(err, state.ErrSnapshot) || errors.Is(err, unix.EIO)
}

func raftConfig(cfg Config, logger *raftLogger, notify chan<- bool) *raft.Config {
	or := func(d, standard time.Duration) time.Duration {
		if d == 0 {
			return standard
		}
		return d
	}
	t := cfg.Timing
	c := raft.DefaultConfig()
	c.ProtocolVersion = 3
	c.LocalID = raft.ServerID(cfg.ID)
	c.HeartbeatTimeout = or(t.Heartbeat, time.Second)
	c.ElectionTimeout = or(t.Election, time.Second)
	c.LeaderLeaseTimeout = or(t.Lease, 500*time.Millisecond)
	c.CommitTimeout = or(t.Commit, 20*time.Millisecond)
	c.SnapshotInterval = or(t.SnapshotInterval, 30*time.Second)
	c.SnapshotThreshold, c.TrailingLogs = t.SnapshotEntries, t.TrailingEntries
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 4096
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = 2048
	}
	c.ShutdownOnRemove = false        // runLeadership does it, in a way that can be waited for.
	c.NoSnapshotRestoreOnStart = true // Open has done it, and has refused a damaged one.
	c.NoLegacyTelemetry = true
	c.Logger = logger
	c.NotifyCh = notify
	return c
}

// State returns the newest state applied here. It never blocks. After a Propose
// that returned without error it holds that entry's effect.
func (s *Store) State() *state.State { return s.fsm.state.Load() }

// Wait blocks until the store cannot go on, and returns why; the process must
// then end. It returns nil when ctx is done or the store is closed.
func (s *Store) Wait(ctx context.Context) error {
	select {
	case <-s.end.ch:
		if s.end.why == errClose {
			return nil
		}
		return s.end.why
	case <-ctx.Done():
		return nil
	}
}

// Close hands leadership over if this server has it, and stops. What is under way
// ends with ErrUnknown or ErrClosed.
func (s *Store) Close() error {
	if s.IsLeader() && s.voters() > 1 {
		failpoint.Hit("store.stop.handover")
		// At most one election timeout. Without a successor the others elect one.
		if err := s.raft.LeadershipTransfer().Error(); err != nil {
			s.cfg.Logger.Info("leadership was not handed over", "error", err)
		}
	}
	return s.stop()
}

// stop is Close without handing leadership over.
func (s *Store) stop() error {
	failpoint.Hit("store.stop.shutdown")
	s.end.set(errClose)
	err := s.stopped()
	failpoint.Hit("store.stop.released")
	return err
}

// release gives back what open has taken.
func (s *Store) release() error {
	var errs []error
	if s.metrics != nil {
		s.metrics.unregister()
	}
	if s.audit != nil {
		errs = append(errs, s.audit.Close())
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// errClose is the end of a store that was closed.
var errClose = errors.New("closed")

// end is why the store has stopped, or is about to.
type end struct {
	once sync.Once
	ch   chan struct{} // closed when why is set
	why  error
}

func newEnd() *end { return &end{ch: make(chan struct{})} }

func (e *end) set(why error) {
	e.once.Do(func() {
		e.why = why
		close(e.ch)
	})
}

// err is what a caller gets once ch is closed.
func (e *end) err() error { return fmt.Errorf("%w: %w", ErrClosed, e.why) }
