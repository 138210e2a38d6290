package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"
)

// A mark is how far this server is known to have come: what it has on its disk
// must reach as far. A log that ends before is damaged, not torn by a crash.
type mark struct {
	index    uint64 // of an entry that the log has synced; 0: none
	term     uint64 // of that entry
	snapshot uint64 // index of a snapshot that is durable; 0: none
}

// marker keeps the mark in a small file. Going forward it is written lazily, at
// most every markEvery, beside the log's own syncs: of the last entries before a
// power cut it does not know. It goes back only before entries are taken out of the
// log, at once.
//
// The file is two slots, written by turns, so that a torn write leaves the other.
// An older mark is a true one, too.
type marker struct {
	file File
	fail func(error)

	mu      sync.Mutex // guards what follows, and the writing
	now     mark
	written mark
	seq     uint64

	moved   chan struct{} // holds one: now is ahead of written
	stop    chan struct{}
	running sync.WaitGroup // run
}

const (
	markEvery  = 100 * time.Millisecond
	markMagic  = "ztmark1\n"
	markStride = 4096 // a slot never shares a sector, or a page, with the other
	markSize   = len(markMagic) + 4*8 + crc32.Size
)

// createMark makes the file of a new server.
func createMark(files Files, name string) error {
	b := make([]byte, 2*markStride)
	copy(b, encodeMark(mark{}, 1))
	return replaceFile(files, name, b)
}

// openMark reads the file. Nothing moves before start.
func openMark(files Files, name string, fail func(error)) (*marker, error) {
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	m := &marker{
		file: f, fail: fail,
		moved: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	found := false
	for slot := range int64(2) {
		b := make([]byte, markSize)
		if _, err := f.ReadAt(b, slot*markStride); err != nil && !errors.Is(err, io.EOF) {
			return nil, errors.Join(err, f.Close())
		}
		if at, seq, ok := decodeMark(b); ok && (!found || seq > m.seq) {
			m.now, m.seq, found = at, seq, true
		}
	}
	if !found {
		return nil, errors.Join(fmt.Errorf("%s: %w: neither of its two marks is readable", name, errDamaged), f.Close())
	}
	m.written = m.now
	return m, nil
}

func encodeMark(at mark, seq uint64) []byte {
	b := make([]byte, 0, markSize)
	b = append(b, markMagic...)
	for _, v := range []uint64{seq, at.index, at.term, at.snapshot} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeMark(b []byte) (at mark, seq uint64, ok bool) {
	body := b[:markSize-crc32.Size]
	if string(b[:len(markMagic)]) != markMagic || binary.LittleEndian.Uint32(b[len(body):]) != crc32.Checksum(body, castagnoli) {
		return mark{}, 0, false
	}
	v := func(i int) uint64 { return binary.LittleEndian.Uint64(b[len(markMagic)+8*i:]) }
	return mark{index: v(1), term: v(2), snapshot: v(3)}, v(0), true
}

// start makes the mark follow, until close.
func (m *marker) start() { m.running.Go(m.run) }

func (m *marker) run() {
	for {
		select {
		case <-m.moved:
		case <-m.stop:
			return
		}
		if err := m.write(); err != nil {
			m.fail(err)
			return
		}
		pause := time.NewTimer(markEvery)
		select {
		case <-pause.C:
		case <-m.stop:
			pause.Stop()
			return
		}
	}
}

// get returns the mark.
func (m *marker) get() mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// raise says that the log has an entry now.
func (m *marker) raise(index, term uint64) {
	m.mu.Lock()
	m.now.index, m.now.term = index, term
	m.mu.Unlock()
	select {
	case m.moved <- struct{}{}:
	default:
	}
}

// lower takes the mark back to an entry, durably.
func (m *marker) lower(index, term uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now.index <= index && m.written.index <= index {
		return nil
	}
	m.now.index, m.now.term = index, term
	return m.writeLocked()
}

// snapshot says, durably, that there is a snapshot of an index.
func (m *marker) snapshot(index uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.now.snapshot {
		return nil
	}
	m.now.snapshot = index
	return m.writeLocked()
}

// again writes the mark once more. After a sync that failed, what was read may not
// be what is on the disk.
func (m *marker) again() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written = mark{index: ^uint64(0)}
	return m.writeLocked()
}

func (m *marker) write() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writeLocked()
}

func (m *marker) writeLocked() error {
	if m.now == m.written {
		return nil
	}
	m.seq++
	if _, err := m.file.WriteAt(encodeMark(m.now, m.seq), int64((m.seq-1)%2)*markStride); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	if err := m.file.Sync(); err != nil {
		return fmt.Errorf("sync mark: %w", err)
	}
	m.written = m.now
	return nil
}

// close stops following. A log that is closed in good order leaves an exact mark;
// one that has failed writes nothing more.
func (m *marker) close(orderly bool) error {
	close(m.stop)
	m.running.Wait()
	var err error
	if orderly {
		err = m.write()
	}
	return errors.Join(err, m.file.Close())
}
