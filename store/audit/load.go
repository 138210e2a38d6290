package audit

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ztmesh/ztmesh/store/state"
)

// The directory:
//
//	SEQUENCE.audit  a segment; the 20 digits are its first record
//	complete        the newest record of the segments when they were synced
//	anchor          the head up to which records were let go
const (
	suffix       = ".audit"
	newSuffix    = ".new" // not finished, or not believed yet
	completeName = "complete"
	anchorName   = "anchor"
)

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, suffix) }

// A frame is the length of a record, the CRC-32C of length and record, both as
// little-endian uint32, and the record.
const frameHead = 8

// maxRecord bounds what a damaged length claims. Records are a few hundred bytes.
const maxRecord = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendFrame(to, record []byte) []byte {
	var head [frameHead]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(record)))
	binary.LittleEndian.PutUint32(head[4:], frameSum(head[:4], record))
	return append(append(to, head[:]...), record...)
}

func frameSum(length, record []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, record)
}

// Why a frame is not read.
var (
	errTorn   = errors.New("is cut off")
	errSum    = errors.New("has a wrong sum")
	errLength = errors.New("has a wrong length")
)

// readFrame returns io.EOF at the end of the frames.
func readFrame(r io.Reader) ([]byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err == io.ErrUnexpectedEOF {
		return nil, errTorn
	} else if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n == 0 || n > maxRecord {
		return nil, errLength
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, errTorn
	} else if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(head[4:]) != frameSum(head[:4], b) {
		return nil, errSum
	}
	return b, nil
}

// load reads what is on disk and holds it to itself and to the state's head.
func (l *Log) load(head Head) error {
	var err error
	if l.anchor, err = l.readHead(anchorName); err != nil {
		return err
	}
	complete, err := l.readHead(completeName)
	if err != nil {
		return err
	}
	names, err := l.list()
	if err != nil {
		return err
	}
	l.head = l.anchor
	for i, name := range names {
		c := &checker{log: l, state: head, durable: complete.Sequence, newest: i == len(names)-1}
		if err := c.segment(name); err != nil {
			return err
		}
	}
	if l.head.Sequence < complete.Sequence {
		return &DamageError{l.head.Sequence + 1, "", fmt.Sprintf("is gone, as are those up to %d: the end was cut off", complete.Sequence)}
	}
	if l.head.Sequence < head.Sequence {
		l.head = head // a leader has told of it: a hole
		return nil
	}
	return l.resume()
}

// resume goes on with the last segment.
func (l *Log) resume() error {
	n := len(l.segments)
	if n == 0 || l.segments[n-1].size >= l.cfg.SegmentBytes {
		return nil
	}
	f, err := l.cfg.Files.Open(filepath.Join(l.cfg.Dir, l.segments[n-1].name))
	if err != nil {
		return err
	}
	l.active, l.written, l.dirty = f, l.segments[n-1].size, []File{f}
	return nil
}

// checker verifies one segment while it is loaded.
type checker struct {
	log     *Log
	state   Head   // where the state stands
	durable uint64 // records up to here were synced
	newest  bool   // it is the last segment
}

func (c *checker) segment(name string) error {
	l := c.log
	first, err := strconv.ParseUint(strings.TrimSuffix(name, suffix), 10, 64)
	if err != nil || first == 0 || name != segmentName(first) {
		return fmt.Errorf("%s is not a segment of the audit log; take it out of %s", name, l.cfg.Dir)
	}
	if first <= l.head.Sequence && first <= l.anchor.Sequence {
		return c.leftover(name) // the process ended between anchor and removal
	}
	if first <= l.head.Sequence {
		return &DamageError{first, name, "is there twice"}
	}
	f, err := l.cfg.Files.Open(filepath.Join(l.cfg.Dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	whole, err := reader(f)
	if err != nil {
		return err
	}
	s := &segment{name: name, first: first, last: first - 1}
	at := Head{Sequence: first - 1}
	known := l.head.Sequence == first-1 // else there is a hole before it
	if known {
		at.Hash = l.head.Hash
	}
	in := bufio.NewReaderSize(whole, 256<<10)
	for {
		b, err := readFrame(in)
		if err == io.EOF {
			break
		}
		if err != nil && c.newest && at.Sequence+1 > max(c.durable, c.stateHere(s)) {
			// A crash leaves this, and the log gives these records again.
			if err := l.shorten(name, f, s.size); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return &DamageError{at.Sequence + 1, name, err.Error()}
		}
		a, err := state.ReadAudit(b)
		if err == nil && !known && at.Sequence == first-1 {
			at.Hash = a.Record.GetPrevious()
		}
		if err == nil {
			a, err = state.CheckAudit(b, at.Sequence, at.Hash)
		}
		if err != nil {
			return &DamageError{at.Sequence + 1, name, err.Error()}
		}
		if s.last < s.first {
			s.previous = at.Hash
		}
		at = Head{a.Record.GetSequence(), a.Hash}
		if at.Sequence == c.state.Sequence && !bytes.Equal(at.Hash, c.state.Hash) {
			return &DamageError{at.Sequence, name, "is not the one that the cluster agreed on: it, or one before it, is forged"}
		}
		if at.Sequence > c.state.Sequence {
			l.replayed[at.Sequence] = at.Hash
		}
		s.last, s.hash, s.newest = at.Sequence, at.Hash, a.Record.GetWhen().AsTime()
		s.size += int64(frameHead + len(b))
	}
	if s.last < s.first { // nothing in it
		return l.cfg.Files.Remove(filepath.Join(l.cfg.Dir, name))
	}
	l.segments = append(l.segments, s)
	l.head = at
	return nil
}

// stateHere is the state's sequence if it lies in a segment that has been read so
// far: what the log does not give again must be whole.
func (c *checker) stateHere(s *segment) uint64 {
	if s.first <= c.state.Sequence && c.state.Sequence <= s.last {
		return c.state.Sequence
	}
	return 0
}

func (c *checker) leftover(name string) error {
	return c.log.cfg.Files.Remove(filepath.Join(c.log.cfg.Dir, name))
}

// list is the segments, sorted. What a Fill has left unfinished goes.
func (l *Log) list() (names []string, err error) {
	all, err := l.cfg.Files.List(l.cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, name := range all {
		switch {
		case strings.HasSuffix(name, suffix):
			names = append(names, name)
		case strings.HasSuffix(name, newSuffix):
			if err := l.cfg.Files.Remove(filepath.Join(l.cfg.Dir, name)); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// reader reads a file from its start.
func reader(f File) (io.Reader, error) {
	size, err := f.Size()
	return io.NewSectionReader(f, 0, size), err
}

// shorten keeps the first bytes of a segment.
func (l *Log) shorten(name string, f File, size int64) error {
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return err
	}
	return l.replace(name, b)
}

// replace writes a small file in one step.
func (l *Log) replace(name string, b []byte) error {
	name = filepath.Join(l.cfg.Dir, name)
	f, err := l.cfg.Files.Create(name + newSuffix)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := l.cfg.Files.Rename(name+newSuffix, name); err != nil {
		return err
	}
	return l.cfg.Files.SyncDir(l.cfg.Dir)
}

// writeHead replaces a small file: sequence and hash, and the CRC-32C of both.
func (l *Log) writeHead(name string, h Head) error {
	body := fmt.Sprintf("%d %x", h.Sequence, h.Hash)
	return l.replace(name, fmt.Appendf(nil, "%s %08x\n", body, crc32.Checksum([]byte(body), castagnoli)))
}

func (l *Log) readHead(name string) (Head, error) {
	name = filepath.Join(l.cfg.Dir, name)
	f, err := l.cfg.Files.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Head{}, nil
	}
	if err != nil {
		return Head{}, err
	}
	defer f.Close()
	whole, err := reader(f)
	if err != nil {
		return Head{}, err
	}
	b, err := io.ReadAll(whole)
	if err != nil {
		return Head{}, err
	}
	part := strings.Fields(string(b))
	if len(part) == 3 {
		sequence, serr := strconv.ParseUint(part[0], 10, 64)
		hash, herr := hex.DecodeString(part[1])
		sum := fmt.Sprintf("%08x", crc32.Checksum([]byte(part[0]+" "+part[1]), castagnoli))
		if serr == nil && herr == nil && sum == part[2] {
			return Head{sequence, hash}, nil
		}
	}
	return Head{}, fmt.Errorf("%s is damaged", name)
}
