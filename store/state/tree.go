package state

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/proto"
)

// digest is the sum, modulo 2^256, of the SHA-256 of each record of a set: whatever the
// order, equal for equal sets, and kept up to date by adding what comes and taking away
// what goes. It finds servers that differ by accident. It is no proof against somebody
// who searches for two sets with one sum.
type digest [4]uint64

func (d *digest) add(o digest) {
	var carry uint64
	for i := range d {
		d[i], carry = bits.Add64(d[i], o[i], carry)
	}
}

func (d *digest) take(o digest) {
	var borrow uint64
	for i := range d {
		d[i], borrow = bits.Sub64(d[i], o[i], borrow)
	}
}

func (d digest) append(b []byte) []byte {
	for _, v := range d {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// tree is a persistent radix tree of records that knows the digest of all of them. Its
// methods are those of iradix.Tree.
type tree[T any] struct {
	radix  *iradix.Tree[record[T]]
	digest digest
	encode func([]byte, T) []byte // appends what a value says, equal for equal ones; nil: no digest is kept
}

// record is a value, and what it has added to the digest of its tree: that is taken away
// again when it goes, whatever has become of the value.
type record[T any] struct {
	value  T
	digest digest
}

func newTree[T any](encode func([]byte, T) []byte) *tree[T] {
	return &tree[T]{radix: iradix.New[record[T]](), encode: encode}
}

// empty is a tree of the same kind without records.
func (t *tree[T]) empty() *tree[T] { return newTree(t.encode) }

func (t *tree[T]) Get(k []byte) (T, bool) {
	r, ok := t.radix.Get(k)
	return r.value, ok
}

func (t *tree[T]) Len() int { return t.radix.Len() }

func (t *tree[T]) Root() *iradix.Node[record[T]] { return t.radix.Root() }

func (t *tree[T]) Insert(k []byte, v T) (*tree[T], T, bool) {
	x := t.Txn()
	old, had := x.Insert(k, v)
	return x.Commit(), old, had
}

func (t *tree[T]) Delete(k []byte) (*tree[T], T, bool) {
	x := t.Txn()
	old, had := x.Delete(k)
	if !had {
		return t, old, false
	}
	return x.Commit(), old, true
}

func (t *tree[T]) Txn() *txn[T] {
	return &txn[T]{radix: t.radix.Txn(), digest: t.digest, encode: t.encode}
}

// sum is the digest of the records as they are, made anew.
func (t *tree[T]) sum() (d digest) {
	x := t.empty().Txn()
	it := t.Root().Iterator()
	for k, r, ok := it.Next(); ok; k, r, ok = it.Next() {
		d.add(x.of(k, r.value))
	}
	return d
}

// known is the digest that was kept up to date.
func (t *tree[T]) known() digest { return t.digest }

// txn is a transaction of a tree; one goroutine uses it. Its methods are those of
// iradix.Txn.
type txn[T any] struct {
	radix  *iradix.Txn[record[T]]
	digest digest
	encode func([]byte, T) []byte
	buf    []byte
}

func (x *txn[T]) of(k []byte, v T) (d digest) {
	if x.encode == nil {
		return d
	}
	x.buf = binary.BigEndian.AppendUint64(x.buf[:0], uint64(len(k)))
	x.buf = x.encode(append(x.buf, k...), v)
	sum := sha256.Sum256(x.buf)
	for i := range d {
		d[i] = binary.BigEndian.Uint64(sum[8*i:])
	}
	return d
}

func (x *txn[T]) Get(k []byte) (T, bool) {
	r, ok := x.radix.Get(k)
	return r.value, ok
}

func (x *txn[T]) Root() *iradix.Node[record[T]] { return x.radix.Root() }

func (x *txn[T]) Insert(k []byte, v T) (T, bool) {
	d := x.of(k, v)
	old, had := x.radix.Insert(k, record[T]{v, d})
	x.digest.take(old.digest)
	x.digest.add(d)
	return old.value, had
}

func (x *txn[T]) Delete(k []byte) (T, bool) {
	old, had := x.radix.Delete(k)
	x.digest.take(old.digest)
	return old.value, had
}

func (x *txn[T]) Commit() *tree[T] {
	return &tree[T]{radix: x.radix.Commit(), digest: x.digest, encode: x.encode}
}

// encodeMessage encodes a record that is a message; none of them has a map.
func encodeMessage[M proto.Message](b []byte, m M) []byte {
	b, err := marshal.MarshalAppend(b, m)
	if err != nil {
		panic(err) // it came from bytes
	}
	return b
}

func encodeDocument(b []byte, d *Document) []byte {
	return append(binary.BigEndian.AppendUint64(b, d.Revision), d.Bytes...)
}

func encodeNumber(b []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(b, n) }
