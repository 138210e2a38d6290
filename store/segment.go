package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
)

// A segment is one file of the log: entries that follow one another.
//
//	header  magic, index of the first entry, seed, sum of these
//	record  length of the body, sum, body
//	...
//	zeros, to the end of what was allocated
//
// The sum of a record is a CRC-32C of its length and body that goes on from the sum
// of the record before it, and for the first from the seed, which is the sum of the
// last record of the segment before. So a record counts only behind the one that it
// was written behind: what an earlier, torn write has left cannot pass for more.
type segment struct {
	name   string
	file   File
	first  uint64
	seed   uint32
	places []place // of each entry
	size   int64   // allocated
}

// place is where an entry lies.
type place struct {
	offset int64  // of its record
	length uint32 // of the record's body
	sum    uint32
}

const (
	segmentMagic  = "ztlog1\n\x00"
	segmentSuffix = ".log"
	headerSize    = len(segmentMagic) + 8 + 4 + 4
	recordHead    = 4 + 4
	bodyHead      = 8 + 8 + 1 + 8 + 4
	// maxBody is what a length may say before it is called damage.
	maxBody = MaxEntry + 64<<10
)

// errDamaged says that a file does not hold what was written to it.
var errDamaged = errors.New("damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(name string) (first uint64, ok bool) {
	_, err := fmt.Sscanf(name, "%020d"+segmentSuffix, &first)
	return first, err == nil && segmentName(first) == name
}

func (s *segment) last() uint64 { return s.first + uint64(len(s.places)) - 1 }

// end is the offset behind the last record.
func (s *segment) end() int64 {
	if len(s.places) == 0 {
		return int64(headerSize)
	}
	p := s.places[len(s.places)-1]
	return p.offset + recordHead + int64(p.length)
}

// chain is the sum that the next record goes on from.
func (s *segment) chain() uint32 { return s.before(len(s.places)) }

// before is the sum that record i goes on from.
func (s *segment) before(i int) uint32 {
	if i == 0 {
		return s.seed
	}
	return s.places[i-1].sum
}

func (s *segment) header() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint64(b, s.first)
	b = binary.LittleEndian.AppendUint32(b, s.seed)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// appendRecord adds the record of an entry to b.
func appendRecord(b []byte, before uint32, e *raft.Log) ([]byte, place) {
	length := bodyHead + len(e.Extensions) + len(e.Data)
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(length))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, e.Index)
	b = binary.LittleEndian.AppendUint64(b, e.Term)
	b = append(b, byte(e.Type))
	var at int64
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(at))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Extensions)))
	b = append(b, e.Extensions...)
	b = append(b, e.Data...)
	sum := recordSum(before, b[start:start+4], b[start+recordHead:])
	binary.LittleEndian.PutUint32(b[start+4:], sum)
	return b, place{length: uint32(length), sum: sum}
}

func recordSum(before uint32, length, body []byte) uint32 {
	return crc32.Update(crc32.Update(before, castagnoli, length), castagnoli, body)
}

// decodeBody reads an entry out of a body whose sum is right. The entry keeps b.
func decodeBody(b []byte, to *raft.Log) error {
	if len(b) < bodyHead {
		return fmt.Errorf("%w: a record of %d bytes", errDamaged, len(b))
	}
	extensions := binary.LittleEndian.Uint32(b[bodyHead-4:])
	if int64(extensions) > int64(len(b)-bodyHead) {
		return fmt.Errorf("%w: extensions of %d bytes in a record of %d", errDamaged, extensions, len(b))
	}
	*to = raft.Log{
		Index: binary.LittleEndian.Uint64(b), Term: binary.LittleEndian.Uint64(b[8:]), Type: raft.LogType(b[16]),
	}
	if at := int64(binary.LittleEndian.Uint64(b[17:])); at != 0 {
		to.AppendedAt = time.Unix(0, at)
	}
	rest := b[bodyHead:]
	if extensions > 0 {
		to.Extensions = rest[:extensions:extensions]
	}
	to.Data = rest[extensions:]
	return nil
}

// read reads entry i of the segment.
func (s *segment) read(i int, to *raft.Log) error {
	p := s.places[i]
	b := make([]byte, recordHead+int(p.length))
	if n, err := s.file.ReadAt(b, p.offset); err != nil && (n < len(b) || !errors.Is(err, io.EOF)) {
		return fmt.Errorf("%s at offset %d: %w", s.name, p.offset, err)
	}
	index := s.first + uint64(i)
	sum := recordSum(s.before(i), b[:4], b[recordHead:])
	if binary.LittleEndian.Uint32(b) != p.length || binary.LittleEndian.Uint32(b[4:]) != p.sum || sum != p.sum {
		return fmt.Errorf("%s at offset %d: %w: the sum of entry %d is wrong", s.name, p.offset, errDamaged, index)
	}
	if err := decodeBody(b[recordHead:], to); err != nil {
		return fmt.Errorf("%s at offset %d: %w", s.name, p.offset, err)
	}
	if to.Index != index {
		return fmt.Errorf("%s at offset %d: %w: entry %d stands in the place of %d", s.name, p.offset, errDamaged, to.Index, index)
	}
	return nil
}

// openSegment reads a segment through, up to the first record that does not count.
// The error is that of the file; one whose header does not count has no entries,
// and bad says so.
func openSegment(files Files, dir, name string, first uint64) (s *segment, bad string, err error) {
	s = &segment{name: filepath.Join(dir, name), first: first}
	if s.file, err = files.Open(s.name); err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", s.name, err), s.file.Close())
		}
	}()
	if s.size, err = s.file.Size(); err != nil {
		return nil, "", err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(s.file, 0, s.size), 256<<10)
	head := make([]byte, headerSize)
	switch ok, err := readFull(r, head); {
	case err != nil:
		return nil, "", err
	case !ok:
		return s, "its header is cut off", nil
	}
	s.seed = binary.LittleEndian.Uint32(head[headerSize-8:])
	if want := s.header(); string(want) != string(head) {
		return s, "its header is wrong", nil
	}
	bad, err = s.readThrough(r)
	return s, bad, err
}

// readThrough finds the places of all records. bad says why the one that would be
// next does not count; empty: there is none.
func (s *segment) readThrough(r io.Reader) (bad string, err error) {
	head := make([]byte, recordHead)
	var body []byte
	for offset := int64(headerSize); ; {
		if ok, err := readFull(r, head); err != nil || !ok {
			return "", err
		}
		length := binary.LittleEndian.Uint32(head)
		if length == 0 {
			return "", nil
		}
		next := s.first + uint64(len(s.places))
		if length < bodyHead || length > maxBody {
			return fmt.Sprintf("entry %d at offset %d has a length of %d", next, offset, length), nil
		}
		if int64(length) > s.size-offset-recordHead {
			return fmt.Sprintf("entry %d at offset %d is cut off", next, offset), nil
		}
		if cap(body) < int(length) {
			body = make([]byte, length)
		}
		body = body[:length]
		if ok, err := readFull(r, body); err != nil {
			return "", err
		} else if !ok {
			return fmt.Sprintf("entry %d at offset %d is cut off", next, offset), nil
		}
		sum := recordSum(s.chain(), head[:4], body)
		if sum != binary.LittleEndian.Uint32(head[4:]) {
			return fmt.Sprintf("the sum of entry %d at offset %d is wrong", next, offset), nil
		}
		var e raft.Log
		if err := decodeBody(body, &e); err != nil || e.Index != next {
			return fmt.Sprintf("entry %d at offset %d says that it is %d", next, offset, e.Index), nil
		}
		s.places = append(s.places, place{offset: offset, length: length, sum: sum})
		offset += recordHead + int64(length)
	}
}

// readFull says whether there was as much.
func readFull(r io.Reader, b []byte) (bool, error) {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	return err == nil, err
}

// clear makes everything behind the last record zeros, durably, if it is not.
func (s *segment) clear() error {
	const chunk = 1 << 20
	buf, zeros, dirty := make([]byte, chunk), make([]byte, chunk), false
	for at := s.end(); at < s.size; at += chunk {
		n := min(chunk, s.size-at)
		if got, err := s.file.ReadAt(buf[:n], at); err != nil && (int64(got) < n || !errors.Is(err, io.EOF)) {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if string(buf[:n]) == string(zeros[:n]) {
			continue
		}
		if _, err := s.file.WriteAt(zeros[:n], at); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		dirty = true
	}
	if dirty {
		return s.file.Sync()
	}
	return nil
}

// rewrite writes what the segment has from entry index on once more, durably. After
// a sync that failed, a kernel may show what it has never written: read again, it
// would count without being on the disk.
func (s *segment) rewrite(index uint64) error {
	from := s.end()
	if i := int64(index) - int64(s.first); i <= 0 {
		from = 0 // with the header
	} else if i < int64(len(s.places)) {
		from = s.places[i].offset
	}
	// The end, too: zeros that were shown may never have been written.
	if n := min(s.size-s.end(), recordHead); n > 0 {
		if _, err := s.file.WriteAt(make([]byte, n), s.end()); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	buf := make([]byte, 1<<20)
	for at := from; at < s.end(); at += int64(len(buf)) {
		n := min(int64(len(buf)), s.end()-at)
		if got, err := s.file.ReadAt(buf[:n], at); err != nil && (int64(got) < n || !errors.Is(err, io.EOF)) {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if _, err := s.file.WriteAt(buf[:n], at); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return s.file.Sync()
}
