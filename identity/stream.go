package identity

import (
	"bufio"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A stream is cut into chunks, each sealed by AES-256-GCM. The nonce of a chunk is
// its number, and a last byte that is 1 for the last chunk only: chunks that are
// swapped, left out, doubled or cut off do not open. A key seals one stream.
const (
	chunkSize  = 64 << 10
	sealedSize = chunkSize + 16
)

type streamWriter struct {
	w     io.Writer
	aead  cipher.AEAD
	about []byte
	buf   []byte // less than a chunk, or a whole one that may be the last
	out   []byte
	n     uint64
	err   error
}

func newStreamWriter(w io.Writer, aead cipher.AEAD, about []byte) *streamWriter {
	return &streamWriter{w: w, aead: aead, about: about, buf: make([]byte, 0, chunkSize)}
}

func (s *streamWriter) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 && s.err == nil {
		if len(s.buf) == chunkSize {
			s.flush(false)
		}
		m := copy(s.buf[len(s.buf):chunkSize], p)
		s.buf = s.buf[:len(s.buf)+m]
		p, n = p[m:], n+m
	}
	return n, s.err
}

func (s *streamWriter) Close() error {
	if s.err == nil {
		s.flush(true)
	}
	if s.err != nil {
		return s.err
	}
	s.err = errors.New("stream is closed")
	return nil
}

func (s *streamWriter) flush(last bool) {
	s.out = s.aead.Seal(s.out[:0], chunkNonce(s.n, last), s.buf, s.about)
	s.n++
	s.buf = s.buf[:0]
	_, s.err = s.w.Write(s.out)
}

func chunkNonce(n uint64, last bool) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 3, 12), n)
	if last {
		return append(b, 1)
	}
	return append(b, 0)
}

type streamReader struct {
	r     *bufio.Reader
	aead  cipher.AEAD
	about []byte
	in    [sealedSize]byte
	plain []byte // not read yet
	n     uint64
	err   error // io.EOF once the last chunk was opened
}

func newStreamReader(r io.Reader, aead cipher.AEAD, about []byte) *streamReader {
	return &streamReader{r: bufio.NewReaderSize(r, sealedSize), aead: aead, about: about}
}

func (s *streamReader) Read(p []byte) (int, error) {
	for len(s.plain) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		s.err = s.next()
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// next opens a chunk. It returns io.EOF with the last one.
func (s *streamReader) next() error {
	n, err := io.ReadFull(s.r, s.in[:])
	last := false
	switch {
	case err == nil:
		_, peek := s.r.Peek(1)
		last = peek == io.EOF
		if peek != nil && !last {
			return peek
		}
	case errors.Is(err, io.ErrUnexpectedEOF):
		last = true
	default:
		return cutOff(err)
	}
	plain, err := s.aead.Open(s.in[:0], chunkNonce(s.n, last), s.in[:n], s.about)
	if err != nil {
		return fmt.Errorf("chunk %d of a stream: %w", s.n, ErrSealed)
	}
	s.n++
	s.plain = plain
	if last {
		return io.EOF
	}
	if len(plain) == 0 {
		return fmt.Errorf("chunk %d of a stream is empty: %w", s.n-1, ErrSealed)
	}
	return nil
}

// cutOff is the error of an end where a stream must go on.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("a stream is cut off: %w", ErrSealed)
	}
	return err
}

// plainSize is the size of what is in a stream of so many bytes.
func plainSize(sealed int64) int64 {
	chunks := (sealed + sealedSize - 1) / sealedSize
	return sealed - 16*chunks
}
