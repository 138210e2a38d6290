package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// ErrSnapshot is returned when what is read is not a whole, undamaged snapshot
// of a known format.
var ErrSnapshot = errors.New("snapshot is not readable")

// marshal gives equal bytes for equal messages; no message of a snapshot has a map.
var marshal = proto.MarshalOptions{Deterministic: true}

// WriteTo writes the state as a snapshot: records of zt.log.v1.Record, each after
// its length as a varint. A Header comes first, then documents, tokens,
// instances, admins, servers, namespaces, revisions, outcomes, retired names,
// proposals and anchors, each sorted (outcomes from the oldest), then an End with the number
// and the SHA-256 of all that precedes it. Equal states give equal bytes.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	sw := &snapshotWriter{w: w, sum: sha256.New()}
	sw.put(&logv1.Record{Record: &logv1.Record_Header{Header: s.header()}})
	for d := range values(s.documents) {
		put := &logv1.Put{Key: d.Key.proto(), Document: d.Bytes}
		sw.put(&logv1.Record{Record: &logv1.Record_Document{Document: &logv1.StoredDocument{Put: put, Revision: d.Revision}}})
	}
	for t := range values(s.tokens) {
		sw.put(&logv1.Record{Record: &logv1.Record_Token{Token: t}})
	}
	for in := range values(s.instances) {
		sw.put(&logv1.Record{Record: &logv1.Record_Instance{Instance: in}})
	}
	for a := range values(s.admins) {
		sw.put(&logv1.Record{Record: &logv1.Record_Admin{Admin: a}})
	}
	for v := range values(s.servers) {
		sw.put(&logv1.Record{Record: &logv1.Record_Server{Server: v}})
	}
	for name, rev := range s.Namespaces() {
		sw.put(&logv1.Record{Record: &logv1.Record_Namespace{Namespace: &logv1.Namespace{Name: name, Revision: rev}}})
	}
	for r := range values(s.history) {
		sw.put(&logv1.Record{Record: &logv1.Record_Revision{Revision: r}})
	}
	order := s.outcomeOrder.Root().Iterator()
	for _, key, ok := order.Next(); ok; _, key, ok = order.Next() {
		o, _ := s.outcomes.Get([]byte(key))
		sw.put(&logv1.Record{Record: &logv1.Record_Outcome{Outcome: o}})
	}
	for r := range values(s.retired) {
		sw.put(&logv1.Record{Record: &logv1.Record_Retired{Retired: r}})
	}
	for p := range values(s.proposals) {
		sw.put(&logv1.Record{Record: &logv1.Record_Proposal{Proposal: p}})
	}
	for a := range values(s.anchors) {
		sw.put(&logv1.Record{Record: &logv1.Record_JournalAnchor{JournalAnchor: a}})
	}
	sw.put(&logv1.Record{Record: &logv1.Record_End{End: &logv1.End{Records: sw.records, Sha256: sw.sum.Sum(nil)}}})
	return sw.n, sw.err
}

// header is the first record of a snapshot.
func (s *State) header() *logv1.Header {
	header := &logv1.Header{
		Format: s.format(), Index: s.index, Revision: s.revision, When: timestamppb.New(s.when),
		TrustDomain: s.trustDomain, ClusterId: s.clusterID, Roots: s.roots, SealedRootKey: s.sealedRootKey,
		Epoch: s.epoch, EpochId: s.epochID,
		Audit: s.auditHead(), RetiredKeys: s.retiredKeys,
	}
	if s.lineage != lineageOf(s.revision) {
		header.Lineage = s.lineage[:]
	}
	return header
}

// format is the oldest that a reader of the snapshot must know.
func (s *State) format() uint32 {
	if s.epoch > 0 || s.lineage != lineageOf(s.revision) || s.auditSequence > 0 || s.anchors.Len() > 0 || len(s.retiredKeys) > 0 {
		return 3
	}
	needs := uint32(1)
	if s.retired.Len()+s.proposals.Len() > 0 {
		needs = 2
	}
	for v := range values(s.servers) {
		needs = max(needs, formatOfServer(v))
	}
	if needs < 3 {
		for in := range values(s.instances) {
			needs = max(needs, formatOfInstance(in))
		}
	}
	return needs
}

func (s *State) auditHead() *logv1.AuditHead {
	if s.auditSequence == 0 {
		return nil
	}
	return &logv1.AuditHead{Sequence: s.auditSequence, Hash: s.auditHash}
}

// snapshotWriter keeps the first error; puts after it do nothing.
type snapshotWriter struct {
	w       io.Writer
	sum     hash.Hash
	buf     []byte
	records uint64
	n       int64
	err     error
}

func (w *snapshotWriter) put(r *logv1.Record) {
	if w.err != nil {
		return
	}
	w.buf = binary.AppendUvarint(w.buf[:0], uint64(marshal.Size(r)))
	if w.buf, w.err = marshal.MarshalAppend(w.buf, r); w.err != nil {
		return
	}
	w.sum.Write(w.buf)
	w.records++
	n, err := w.w.Write(w.buf)
	w.n, w.err = w.n+int64(n), err
}

// Read reads what WriteTo wrote, of this format or an older one. It is strict:
// every record must be known, in its place and in order, the sums must agree and
// nothing may follow. Its errors are ErrSnapshot, or those of r.
func Read(r io.Reader) (*State, error) {
	sr := &snapshotReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New(), l: newLoader()}
	for !sr.ended {
		rec, err := sr.next()
		if err != nil {
			return nil, err
		}
		if err := sr.take(rec); err != nil {
			return nil, fmt.Errorf("%w: record %d: %w", ErrSnapshot, sr.records, err)
		}
	}
	switch _, err := sr.r.ReadByte(); {
	case err == nil:
		return nil, fmt.Errorf("%w: bytes after the end", ErrSnapshot)
	case err != io.EOF:
		return nil, err
	}
	return sr.l.commit(), nil
}

type snapshotReader struct {
	r       *bufio.Reader
	sum     hash.Hash
	sumHere []byte // of all bytes before the record read last
	records uint64 // read so far
	ended   bool
	l       *loader
}

// next reads one record. Memory grows with what is really there, not with what a
// damaged length claims.
func (r *snapshotReader) next() (*logv1.Record, error) {
	size, err := binary.ReadUvarint(r.r)
	if err != nil {
		return nil, cut(err)
	}
	if size == 0 || size > math.MaxInt32 {
		return nil, fmt.Errorf("%w: record of %d bytes", ErrSnapshot, size)
	}
	var body bytes.Buffer
	if size <= 1<<20 {
		body.Grow(int(size))
	}
	if _, err := io.CopyN(&body, r.r, int64(size)); err != nil {
		return nil, cut(err)
	}
	rec := &logv1.Record{}
	if err := proto.Unmarshal(body.Bytes(), rec); err != nil {
		return nil, fmt.Errorf("%w: record %d: %w", ErrSnapshot, r.records, err)
	}
	r.sumHere = r.sum.Sum(nil)
	r.sum.Write(binary.AppendUvarint(nil, size))
	r.sum.Write(body.Bytes())
	r.records++
	return rec, nil
}

// take checks that a record is the one that may come now, and loads it.
func (r *snapshotReader) take(rec *logv1.Record) error {
	if end, ok := rec.GetRecord().(*logv1.Record_End); ok {
		if r.records < 2 || end.End.GetRecords() != r.records-1 || !bytes.Equal(end.End.GetSha256(), r.sumHere) {
			return errors.New("the sum is wrong")
		}
		r.ended = true
		return nil
	}
	if h, ok := rec.GetRecord().(*logv1.Record_Header); ok != (r.records == 1) {
		return errors.New("a header must come first, and only there")
	} else if ok {
		return r.l.header(h.Header)
	}
	return r.l.add(rec)
}

// cut turns the end of the input where a record should be into ErrSnapshot.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: it is cut off", ErrSnapshot)
	}
	return err
}
