package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// snapshots is the raft.SnapshotStore. Each is one file:
//
//	magic, length of the description, description (a raft.SnapshotMeta as JSON)
//	content (a state.State, as WriteTo writes it, encrypted; see sealedSnapshots)
//	length of the content, CRC-32C of everything before
//
// A file has its name once it is durable; two are kept. Whoever opens one gets it
// only if its sum is right.
type snapshots struct {
	files Files
	dir   string
	fail  func(error)              // the disk has refused
	note  func(index uint64) error // there is a durable one; set by open

	keeping sync.Mutex // held by keep: what it finds on the disk is what known says

	mu    sync.Mutex           // guards what follows; taken after keeping
	known []*raft.SnapshotMeta // newest first
	made  uint64               // sinks so far
}

const (
	retainSnapshots = 2
	snapshotMagic   = "ztsnap1\n"
	snapshotSuffix  = ".snap"
	damagedSuffix   = ".damaged"
	trailerSize     = 8 + crc32.Size
	maxDescription  = 1 << 20
)

var _ raft.SnapshotStore = (*snapshots)(nil)

// openSnapshots finds the snapshots that are whole. damaged are the others that are
// newer than the newest of these, with what is wrong: whether they can be spared
// depends on the log.
func openSnapshots(files Files, dir string, fail func(error)) (s *snapshots, damaged []error, err error) {
	s = &snapshots{files: files, dir: filepath.Join(dir, "snapshots"), fail: fail}
	if err := files.MakeDir(s.dir); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(removeUnfinished(files, s.dir), files.SyncDir(s.dir)); err != nil {
		return nil, nil, err
	}
	names, err := files.List(s.dir)
	if err != nil {
		return nil, nil, err
	}
	slices.Reverse(names)
	for _, name := range names {
		id, ok := strings.CutSuffix(name, snapshotSuffix)
		if !ok {
			continue
		}
		meta, r, err := s.open(id)
		switch {
		case errors.Is(err, errDamaged) && len(s.known) == 0:
			damaged = append(damaged, err)
		case errors.Is(err, errDamaged): // an older one, which nobody needs
		case err != nil:
			return nil, nil, err
		default:
			s.known = append(s.known, meta)
			if err := r.Close(); err != nil {
				return nil, nil, err
			}
		}
	}
	return s, damaged, nil
}

// setAside gives those that are damaged a name by which nobody opens them.
func (s *snapshots) setAside() error {
	names, err := s.files.List(s.dir)
	if err != nil {
		return err
	}
	moved := false
	for _, name := range names {
		id, ok := strings.CutSuffix(name, snapshotSuffix)
		if !ok || slices.ContainsFunc(s.known, func(m *raft.SnapshotMeta) bool { return m.ID == id }) {
			continue
		}
		if err := s.files.Rename(s.path(id), s.path(id)+damagedSuffix); err != nil {
			return err
		}
		moved = true
	}
	if moved {
		return s.files.SyncDir(s.dir)
	}
	return nil
}

// ends tells the term of the entry that the newest snapshot ends with, if that is at
// index.
func (s *snapshots) ends(index uint64) (term uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) == 0 || s.known[0].Index != index {
		return 0, false
	}
	return s.known[0].Term, true
}

// covered is the index of the entry that the newest snapshot ends with; 0 without one.
func (s *snapshots) covered() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) == 0 {
		return 0
	}
	return s.known[0].Index
}

func (s *snapshots) path(id string) string { return filepath.Join(s.dir, id+snapshotSuffix) }

// List is part of raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.known), nil
}

// Open is part of raft.SnapshotStore: raft sends to a follower what it reads here.
// Damage ends the store.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.open(id)
	if errors.Is(err, errDamaged) {
		s.fail(fmt.Errorf("%w: %w", ErrUnreadable, err))
	}
	return meta, r, err
}

func (s *snapshots) open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	f, err := s.files.Open(s.path(id))
	if err != nil {
		return nil, nil, err
	}
	meta, r, err := readSnapshot(f)
	if err == nil && snapshotID(meta.Index, meta.Term) != id {
		err = fmt.Errorf("%w: it is the snapshot %s", errDamaged, snapshotID(meta.Index, meta.Term))
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", s.path(id), err), f.Close())
	}
	meta.ID = id
	return meta, struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}

// readSnapshot checks the whole file, and returns its content.
func readSnapshot(f File) (*raft.SnapshotMeta, io.Reader, error) {
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	least := int64(len(snapshotMagic) + 4 + trailerSize)
	if size < least {
		return nil, nil, fmt.Errorf("%w: %d bytes are no snapshot", errDamaged, size)
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size-crc32.Size)); err != nil {
		return nil, nil, err
	}
	trailer, head := make([]byte, trailerSize), make([]byte, len(snapshotMagic)+4)
	for _, part := range []struct {
		b  []byte
		at int64
	}{{trailer, size - trailerSize}, {head, 0}} {
		if n, err := f.ReadAt(part.b, part.at); n < len(part.b) {
			return nil, nil, err
		}
	}
	if binary.LittleEndian.Uint32(trailer[8:]) != sum.Sum32() || string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, nil, fmt.Errorf("%w: its sum is wrong", errDamaged)
	}
	length, content := int64(binary.LittleEndian.Uint32(head[len(snapshotMagic):])), int64(binary.LittleEndian.Uint64(trailer))
	if length > maxDescription || least+length+content != size {
		return nil, nil, fmt.Errorf("%w: its lengths do not add up", errDamaged)
	}
	description := make([]byte, length)
	if n, err := f.ReadAt(description, int64(len(head))); n < len(description) {
		return nil, nil, err
	}
	meta := &raft.SnapshotMeta{}
	if err := json.Unmarshal(description, meta); err != nil {
		return nil, nil, fmt.Errorf("%w: its description: %w", errDamaged, err)
	}
	meta.Size = content
	return meta, io.NewSectionReader(f, int64(len(head))+length, content), nil
}

// snapshotID sorts as the index does.
func snapshotID(index, term uint64) string { return fmt.Sprintf("%020d-%020d", index, term) }

// Create is part of raft.SnapshotStore.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	meta := &raft.SnapshotMeta{
		Version: version, ID: snapshotID(index, term), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}
	description, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	// A follower may take a snapshot while its leader sends it the very same one.
	s.mu.Lock()
	s.made++
	name := s.path(meta.ID)
	unfinished := fmt.Sprintf("%s-%d%s", name, s.made, newSuffix)
	s.mu.Unlock()
	f, err := s.files.Create(unfinished)
	if err != nil {
		return nil, err
	}
	k := &sink{store: s, meta: meta, file: f, name: name, unfinished: unfinished}
	head := binary.LittleEndian.AppendUint32([]byte(snapshotMagic), uint32(len(description)))
	if _, err := k.write(append(head, description...)); err != nil {
		return nil, errors.Join(err, k.Cancel())
	}
	return k, nil
}

// sink is a raft.SnapshotSink, used by one goroutine.
type sink struct {
	store      *snapshots
	meta       *raft.SnapshotMeta
	file       File
	name       string
	unfinished string // its name until it is durable
	at         int64
	sum        uint32
	closed     bool
}

// ID is part of raft.SnapshotSink.
func (k *sink) ID() string { return k.meta.ID }

// Write is part of raft.SnapshotSink.
func (k *sink) Write(b []byte) (int, error) {
	n, err := k.write(b)
	k.meta.Size += int64(n)
	return n, err
}

func (k *sink) write(b []byte) (int, error) {
	n, err := k.file.WriteAt(b, k.at)
	k.at += int64(n)
	k.sum = crc32.Update(k.sum, castagnoli, b[:n])
	return n, err
}

// Cancel is part of raft.SnapshotSink. A full disk is the usual reason; what there
// was stays.
func (k *sink) Cancel() error {
	if k.closed {
		return nil
	}
	k.closed = true
	return errors.Join(k.file.Close(), k.store.files.Remove(k.unfinished))
}

// Close is part of raft.SnapshotSink. It returns once the snapshot is durable.
func (k *sink) Close() error {
	if k.closed {
		return nil
	}
	if _, err := k.write(binary.LittleEndian.AppendUint64(nil, uint64(k.meta.Size))); err != nil {
		return errors.Join(err, k.Cancel())
	}
	if _, err := k.write(binary.LittleEndian.AppendUint32(nil, k.sum)); err != nil {
		return errors.Join(err, k.Cancel())
	}
	if err := k.file.Sync(); err != nil {
		k.store.fail(fmt.Errorf("write snapshot: %w", err))
		return errors.Join(err, k.Cancel())
	}
	k.closed = true
	if err := errors.Join(k.file.Close(), k.store.keep(k)); err != nil {
		k.store.fail(fmt.Errorf("write snapshot: %w", err))
		return err
	}
	return nil
}

// keep gives a finished snapshot its name, and drops the oldest.
func (s *snapshots) keep(k *sink) error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if err := s.files.Rename(k.unfinished, k.name); err != nil {
		return err
	}
	if err := s.files.SyncDir(s.dir); err != nil {
		return err
	}
	if err := s.note(k.meta.Index); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = slices.DeleteFunc(s.known, func(m *raft.SnapshotMeta) bool { return m.ID == k.meta.ID })
	s.known = append(s.known, k.meta)
	slices.SortFunc(s.known, func(a, b *raft.SnapshotMeta) int { return strings.Compare(b.ID, a.ID) })
	for len(s.known) > retainSnapshots {
		if err := s.files.Remove(s.path(s.known[len(s.known)-1].ID)); err != nil {
			return err
		}
		s.known = s.known[:len(s.known)-1]
	}
	return s.files.SyncDir(s.dir)
}
