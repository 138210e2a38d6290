package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"sync"
)

// terms is the raft.StableStore: the term and the vote of this server, which it must
// never take back. They are a file of their own, replaced as a whole; one whose sum
// is wrong is damaged, since a crash leaves the one before.
type terms struct {
	files Files
	name  string
	halt  func(error) // see diskLog.halt

	mu     sync.Mutex // guards what follows
	values map[string][]byte
	broken error // the disk has refused
}

const termsMagic = "ztterm1\n"

func createTerms(files Files, name string) error { return replaceFile(files, name, encodeTerms(nil)) }

func openTerms(files Files, name string) (*terms, error) {
	b, err := readAll(files, name)
	if err != nil {
		return nil, err
	}
	values, ok := decodeTerms(b)
	if !ok {
		return nil, fmt.Errorf("%s: %w: its sum is wrong", name, errDamaged)
	}
	return &terms{files: files, name: name, values: values}, nil
}

func encodeTerms(values map[string][]byte) []byte {
	b := []byte(termsMagic)
	for _, k := range slices.Sorted(maps.Keys(values)) {
		for _, v := range [][]byte{[]byte(k), values[k]} {
			b = binary.LittleEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
		}
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeTerms(b []byte) (map[string][]byte, bool) {
	n := len(b) - crc32.Size
	if n < len(termsMagic) || string(b[:len(termsMagic)]) != termsMagic ||
		binary.LittleEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], castagnoli) {
		return nil, false
	}
	values := map[string][]byte{}
	next := func(b []byte) (v, rest []byte, ok bool) {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
			return nil, nil, false
		}
		n := binary.LittleEndian.Uint32(b)
		return b[4 : 4+n], b[4+n:], true
	}
	for b = b[len(termsMagic):n]; len(b) > 0; {
		k, rest, ok := next(b)
		if !ok {
			return nil, false
		}
		if values[string(k)], b, ok = next(rest); !ok {
			return nil, false
		}
	}
	return values, true
}

// Set is part of raft.StableStore, as are the others.
func (t *terms) Set(key, value []byte) error {
	err := t.set(key, value)
	if err != nil {
		t.halt(err) // raft panics when it cannot write its term
	}
	return err
}

func (t *terms) set(key, value []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken != nil {
		return t.broken
	}
	next := maps.Clone(t.values)
	next[string(key)] = slices.Clone(value)
	if seeded == "lost-vote" && strings.HasPrefix(string(key), "LastVote") {
		t.values = next
		return nil
	}
	if err := replaceFile(t.files, t.name, encodeTerms(next)); err != nil {
		t.broken = fmt.Errorf("write terms: %w", err)
		return t.broken
	}
	t.values = next
	return nil
}

func (t *terms) failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.broken != nil
}

func (t *terms) Get(key []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.values[string(key)]), nil
}

func (t *terms) SetUint64(key []byte, value uint64) error {
	return t.Set(key, binary.LittleEndian.AppendUint64(nil, value))
}

func (t *terms) GetUint64(key []byte) (uint64, error) {
	b, err := t.Get(key)
	switch {
	case err != nil || len(b) == 0:
		return 0, err
	case len(b) != 8:
		return 0, errors.New("not a number")
	}
	return binary.LittleEndian.Uint64(b), nil
}
