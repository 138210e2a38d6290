package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	dataKeySize    = 32
	dataKeyPurpose = "data-keys of server "
	saltSize       = 16
	// A box: number of the data key, salt, counter, AES-256-GCM.
	boxHead = 4 + saltSize + 8
	// BoxOverhead is by how many bytes a box is longer than what is in it.
	BoxOverhead = boxHead + 16
	maxDataKeys = 64
	// maxSubkeys bounds the cache of derived keys: one for each start of the
	// process that has left something in the log.
	maxSubkeys = 256
)

// DataKeys encrypt what one server writes to its disk. They are made here, never
// leave the server, and lie in one file, sealed by a key-encryption key for this
// server alone. The newest one encrypts; the others still decrypt.
//
// A data key is used through keys that are derived from it by HKDF-SHA-256 and a
// random salt: one for each time that a process opens it, in which nonces are
// counted, and one for each stream. So no nonce is used twice with a key, however
// much is written.
//
// All methods may be called from any goroutine.
type DataKeys struct {
	path, td, server string

	seal atomic.Pointer[session]

	mu   sync.Mutex             // guards what follows; held while the file is written
	kek  string                 // id of the key that the file is sealed with
	keys map[uint32]Secret      // by number
	subs map[subkey]cipher.AEAD // derived for boxes
	// streams are those being written, by the number of their key. One that is never
	// closed keeps its key until the process ends.
	streams map[uint32]int
}

// session is a derived key and its counter.
type session struct {
	head  [4 + saltSize]byte
	aead  cipher.AEAD
	count atomic.Uint64
}

// subkey names a derived key: the head of a box without its counter.
type subkey [4 + saltSize]byte

// NewDataKeys makes the first data key of a server; kek seals it into the file at
// path. Without a path nothing is written: for what lives as long as the process.
func NewDataKeys(path, td, server string, kek KEK) (*DataKeys, error) {
	d := &DataKeys{path: path, td: td, server: server, keys: map[uint32]Secret{1: newDataKey()}}
	if err := d.save(kek, createFile); err != nil {
		return nil, err
	}
	return d, d.begin()
}

// OpenDataKeys reads what NewDataKeys has written. It writes nothing. A file that
// none of the keys opens is ErrSealed.
func OpenDataKeys(path, td, server string, keys Keys) (*DataKeys, error) {
	sealed, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("data keys: %w", err)
	}
	plain, err := keys.Open(dataKeyPurpose+server, td, sealed)
	if err != nil {
		return nil, fmt.Errorf("data keys: %s: %w", path, err)
	}
	d := &DataKeys{path: path, td: td, server: server, keys: map[uint32]Secret{}}
	d.kek, _ = SealedBy(sealed)
	for b := plain.Reveal(); len(b) > 0; b = b[4+dataKeySize:] {
		if len(b) < 4+dataKeySize {
			return nil, fmt.Errorf("data keys: %s: cut off", path)
		}
		d.keys[binary.BigEndian.Uint32(b)] = NewSecret(b[4 : 4+dataKeySize])
	}
	return d, d.begin()
}

func newDataKey() Secret {
	b := make([]byte, dataKeySize)
	rand.Read(b)
	return NewSecret(b)
}

// save is called with mu held, or before others know d.
func (d *DataKeys) save(kek KEK, write func(string, []byte) error) error {
	if d.path == "" {
		d.kek = kek.ID()
		return nil
	}
	var plain []byte
	for _, n := range d.numbers() {
		plain = append(binary.BigEndian.AppendUint32(plain, n), d.keys[n].Reveal()...)
	}
	sealed, err := kek.Seal(dataKeyPurpose+d.server, d.td, plain)
	if err != nil {
		return fmt.Errorf("data keys: %w", err)
	}
	if err := write(d.path, sealed); err != nil {
		return fmt.Errorf("data keys: %w", err)
	}
	d.kek = kek.ID()
	return nil
}

func (d *DataKeys) numbers() []uint32 {
	var n []uint32
	for k := range d.keys {
		n = append(n, k)
	}
	slices.Sort(n)
	return n
}

// begin starts a session of the newest key.
func (d *DataKeys) begin() error {
	n := d.numbers()
	if len(n) == 0 {
		return errors.New("data keys: there is none")
	}
	s := &session{}
	binary.BigEndian.PutUint32(s.head[:], n[len(n)-1])
	rand.Read(s.head[4:])
	var err error
	if s.aead, err = derive(d.keys[n[len(n)-1]], s.head[4:], "box"); err != nil {
		return err
	}
	d.seal.Store(s)
	return nil
}

// derive makes a key of a data key, for one salt and use.
func derive(key Secret, salt []byte, use string) (cipher.AEAD, error) {
	b, err := hkdf.Key(sha256.New, key.Reveal(), salt, "ztmesh data "+use, dataKeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(b)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Seal encrypts plain, binds about to it, which Open must be given again, and appends the
// box to to.
func (d *DataKeys) Seal(to, plain, about []byte) []byte {
	s := d.seal.Load()
	count := s.count.Add(1)
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], count)
	to = append(slices.Grow(to, BoxOverhead+len(plain)), s.head[:]...)
	to = binary.BigEndian.AppendUint64(to, count)
	return s.aead.Seal(to, nonce[:], plain, about)
}

// Open decrypts a box of Seal. ErrSealed: it is of another server, about something
// else, or damaged.
func (d *DataKeys) Open(box, about []byte) ([]byte, error) {
	if len(box) < BoxOverhead {
		return nil, ErrSealed
	}
	aead, err := d.sub(subkey(box))
	if err != nil {
		return nil, err
	}
	var nonce [12]byte
	copy(nonce[4:], box[4+saltSize:])
	plain, err := aead.Open(nil, nonce[:], box[boxHead:], about)
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}

func (d *DataKeys) sub(k subkey) (cipher.AEAD, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a, ok := d.subs[k]; ok {
		return a, nil
	}
	a, err := d.derived(k, "box")
	if err != nil {
		return nil, err
	}
	if d.subs == nil || len(d.subs) >= maxSubkeys {
		d.subs = make(map[subkey]cipher.AEAD)
	}
	d.subs[k] = a
	return a, nil
}

// derived is called with mu held.
func (d *DataKeys) derived(k subkey, use string) (cipher.AEAD, error) {
	key, ok := d.keys[binary.BigEndian.Uint32(k[:])]
	if !ok {
		return nil, fmt.Errorf("data key %d is not there: %w", binary.BigEndian.Uint32(k[:]), ErrSealed)
	}
	return derive(key, k[4:], use)
}

// SealTo returns a writer that encrypts to w as a stream. Close ends the stream; it
// does not close w. Without Close, what was written does not open.
func (d *DataKeys) SealTo(w io.Writer, about []byte) (io.WriteCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var k subkey
	n := d.numbers()
	binary.BigEndian.PutUint32(k[:], n[len(n)-1])
	rand.Read(k[4:])
	aead, err := d.derived(k, "stream")
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(k[:]); err != nil {
		return nil, err
	}
	number := n[len(n)-1]
	if d.streams == nil {
		d.streams = map[uint32]int{}
	}
	d.streams[number]++
	return &countedStream{streamWriter: newStreamWriter(w, aead, about), ended: func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.streams[number]--
	}}, nil
}

// countedStream tells when it was closed.
type countedStream struct {
	*streamWriter
	ended  func()
	closed bool
}

func (c *countedStream) Close() error {
	if !c.closed {
		c.closed = true
		defer c.ended()
	}
	return c.streamWriter.Close()
}

// OpenFrom returns a reader of what SealTo wrote to r. It gives nothing that has not
// been authenticated, and io.EOF only at the true end; otherwise ErrSealed.
func (d *DataKeys) OpenFrom(r io.Reader, about []byte) (io.Reader, error) {
	var k subkey
	if _, err := io.ReadFull(r, k[:]); err != nil {
		return nil, cutOff(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	aead, err := d.derived(k, "stream")
	if err != nil {
		return nil, err
	}
	return newStreamReader(r, aead, about), nil
}

// PlainSize returns how many bytes OpenFrom gives of a stream of so many bytes.
func (d *DataKeys) PlainSize(sealed int64) int64 { return plainSize(sealed - int64(len(subkey{}))) }

// KEK returns the id of the key-encryption key that the file is sealed with.
func (d *DataKeys) KEK() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kek
}

// Number returns the number of the data key in use; the first is 1.
func (d *DataKeys) Number() uint32 {
	s := d.seal.Load()
	return binary.BigEndian.Uint32(s.head[:])
}

// Oldest returns the number of the oldest data key that is kept.
func (d *DataKeys) Oldest() uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.numbers()[0]
}

// Renew makes a data key, which is used from now on, and seals the file with kek, in
// one step: after a crash there is either all of it or nothing. What older data keys
// have encrypted stays readable. Where there are as many as are kept, none is made.
func (d *DataKeys) Renew(kek KEK) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.numbers()
	number := n[len(n)-1] + 1
	if len(n) < maxDataKeys {
		d.keys[number] = newDataKey()
	}
	if err := d.save(kek, WriteFile); err != nil {
		delete(d.keys, number)
		return err
	}
	return d.begin()
}

// Drop forgets the data keys below a number, which nothing needs any more; what a
// stream is being written with stays, and so does the one in use.
func (d *DataKeys) Drop(below uint32, kek KEK) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if kek.ID() != d.kek {
		return fmt.Errorf("data keys: sealed with key %s, not %s", d.kek, kek.ID())
	}
	had := maps.Clone(d.keys)
	for _, n := range d.numbers() {
		if n < min(below, d.Number()) && d.streams[n] == 0 {
			delete(d.keys, n)
		}
	}
	if len(d.keys) == len(had) {
		return nil
	}
	if err := d.save(kek, WriteFile); err != nil {
		d.keys = had
		return err
	}
	d.subs = nil
	return nil
}

// DataKeyOf is the number of the data key that a box, or a stream, of which this is the
// beginning, is sealed with.
func DataKeyOf(sealed []byte) (number uint32, ok bool) {
	if len(sealed) < 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(sealed), true
}
