package controlplane

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store/state"
)

// A backup is one file:
//
//	magic, length of the header, header (a BackupHeader as JSON)
//	stream (a snapshot of store/state), encrypted by a key of its own that the header
//	holds, sealed by the key-encryption key; the SHA-256 of the header is bound to it
//	SHA-256 of everything before, length of the signature, signature, zeros
//
// The signature is that of the server that made it, by its intermediate.
const (
	backupMagic   = "ztbackup"
	backupFormat  = 1
	backupPurpose = "backup"
	backupKey     = "backup-key"
	maxHeader     = 1 << 20
	maxSignature  = 80
	backupTrailer = sha256.Size + 2 + maxSignature
)

// ErrBackup is returned when a file is not a whole and true backup.
var ErrBackup = errors.New("not a backup that can be restored")

// BackupHeader is what a backup says of itself in clear.
type BackupHeader struct {
	Format      int       `json:"format"`
	Made        time.Time `json:"made"`
	Version     string    `json:"version"` // of the program
	TrustDomain string    `json:"trustDomain"`
	ClusterID   string    `json:"clusterId"`
	Epoch       uint64    `json:"epoch"`
	Revision    uint64    `json:"revision"`
	Index       uint64    `json:"index"`
	Server      string    `json:"server"` // that made it
	Root        []byte    `json:"root"`   // DER
	Signer      []byte    `json:"signer"` // DER: the server's intermediate
	Key         []byte    `json:"key"`    // of the stream, sealed
}

// KEK is the id of the key-encryption key that opens the backup.
func (h BackupHeader) KEK() string {
	id, _ := identity.SealedBy(h.Key)
	return id
}

// Backup is a backup that was read and found to be whole and true.
type Backup struct {
	BackupHeader
	// What it holds.
	Documents, Instances, Admins, Servers, Tokens int
	// AuditSequence is the newest audit record of before, and AuditHash its hash: what
	// the record of a restore goes on from. The records are not in the backup.
	AuditSequence uint64
	AuditHash     []byte

	state *state.State
	root  *identity.Root
	kek   identity.KEK
}

// backup writes a state as a backup.
func (s *Server) backup(w io.Writer, st *state.State) error {
	kek, err := s.keys.current(st)
	if err != nil {
		return err
	}
	key := identity.NewStreamKey()
	sealed, err := kek.Seal(backupKey, s.td, key.Reveal())
	if err != nil {
		return err
	}
	epoch, _ := st.Epoch()
	header, err := json.Marshal(BackupHeader{
		Format: backupFormat, Made: s.cfg.Now().UTC().Truncate(time.Second), Version: Version,
		TrustDomain: s.td, ClusterID: st.ClusterID(), Epoch: epoch, Revision: st.Revision(), Index: st.Index(),
		Server: s.id, Root: s.roots[0].Raw, Signer: s.authority.Intermediate().Leaf().Raw, Key: sealed,
	})
	if err != nil {
		return err
	}
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	if _, err := both.Write(backupHead(header)); err != nil {
		return err
	}
	about := sha256.Sum256(header)
	stream, err := identity.SealStream(both, key, about[:])
	if err != nil {
		return err
	}
	if _, err := st.WriteTo(stream); err != nil {
		return err
	}
	if err := stream.Close(); err != nil {
		return err
	}
	sig, by, err := s.authority.SignStatement(backupPurpose, [sha256.Size]byte(sum.Sum(nil)))
	if err != nil {
		return err
	}
	if !bytes.Equal(by.Raw, s.authority.Intermediate().Leaf().Raw) || len(sig) > maxSignature {
		return errors.New("the intermediate was renewed meanwhile: try again")
	}
	trailer := make([]byte, backupTrailer)
	copy(trailer, sum.Sum(nil))
	binary.BigEndian.PutUint16(trailer[sha256.Size:], uint16(len(sig)))
	copy(trailer[sha256.Size+2:], sig)
	_, err = w.Write(trailer)
	return err
}

func backupHead(header []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte(backupMagic), uint32(len(header))), header...)
}

// readBackup reads and checks all of a backup. It writes nothing. now is when: only to
// tell what still lives.
func readBackup(path string, keys identity.Keys) (*Backup, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := openBackup(f, info.Size(), keys)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func openBackup(f io.ReaderAt, size int64, keys identity.Keys) (*Backup, error) {
	b := &Backup{}
	header, root, err := b.verify(f, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	key, err := keys.Open(backupKey, b.TrustDomain, b.Key)
	if err != nil {
		return nil, err // names the keys
	}
	start := int64(len(backupMagic) + 4 + len(header))
	about := sha256.Sum256(header)
	r, err := identity.OpenStream(io.NewSectionReader(f, start, size-start-backupTrailer), key, about[:])
	if err != nil {
		return nil, err
	}
	if b.state, err = state.Read(r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	if err := b.check(root, keys); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return b, nil
}

// verify reads the header and checks sum and signature of the whole.
func (b *Backup) verify(f io.ReaderAt, size int64) (header []byte, root *x509.Certificate, err error) {
	head, trailer := make([]byte, len(backupMagic)+4), make([]byte, backupTrailer)
	if size < int64(len(head)+len(trailer)) {
		return nil, nil, errors.New("it is cut off")
	}
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, nil, err
	}
	if string(head[:len(backupMagic)]) != backupMagic {
		return nil, nil, errors.New("it does not begin as one")
	}
	n := int64(binary.BigEndian.Uint32(head[len(backupMagic):]))
	if n > maxHeader || n > size-int64(len(head)+len(trailer)) {
		return nil, nil, errors.New("it is cut off, or damaged")
	}
	if _, err := f.ReadAt(trailer, size-backupTrailer); err != nil && err != io.EOF {
		return nil, nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, bufio.NewReaderSize(io.NewSectionReader(f, 0, size-backupTrailer), 1<<20)); err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(sum.Sum(nil), trailer[:sha256.Size]) {
		return nil, nil, errors.New("its checksum is wrong: it is cut off, or damaged")
	}
	header = make([]byte, n)
	if _, err := f.ReadAt(header, int64(len(head))); err != nil {
		return nil, nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(header))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b.BackupHeader); err != nil {
		return nil, nil, fmt.Errorf("its header: %w", err)
	}
	if b.Format != backupFormat {
		return nil, nil, fmt.Errorf("its format is %d, known is %d", b.Format, backupFormat)
	}
	if root, err = x509.ParseCertificate(b.Root); err != nil {
		return nil, nil, err
	}
	signer, err := x509.ParseCertificate(b.Signer)
	if err != nil {
		return nil, nil, err
	}
	length := int(binary.BigEndian.Uint16(trailer[sha256.Size:]))
	if length > maxSignature {
		return nil, nil, errors.New("its signature is too long")
	}
	sig := trailer[sha256.Size+2:][:length]
	by, err := identity.VerifyStatement(backupPurpose, [sha256.Size]byte(sum.Sum(nil)), sig, signer, root, b.Made)
	if err != nil {
		return nil, nil, err
	}
	if td, err := identity.RootTrustDomain(root); err != nil || td != b.TrustDomain || by != b.Server {
		return nil, nil, errors.Join(err, errors.New("its header contradicts its certificates"))
	}
	return header, root, nil
}

// check holds the state against the header, and opens the root key: who could have
// made the file without it has made nothing.
func (b *Backup) check(root *x509.Certificate, keys identity.Keys) error {
	st := b.state
	epoch, _ := st.Epoch()
	if st.TrustDomain() != b.TrustDomain || st.ClusterID() != b.ClusterID || st.Revision() != b.Revision ||
		st.Index() != b.Index || epoch != b.Epoch || len(st.Roots()) == 0 || !bytes.Equal(st.Roots()[0], b.Root) {
		return errors.New("its header is of another state")
	}
	ring := &keyring{keys: keys}
	var err error
	if b.kek, err = ring.current(st); err != nil {
		return err
	}
	if b.root, err = identity.OpenRoot(root, st.SealedRootKey(), keys, identity.Signing{}); err != nil {
		return err
	}
	b.Documents = st.NumDocuments()
	b.AuditSequence, b.AuditHash = st.AuditHead()
	for range st.Instances() {
		b.Instances++
	}
	for range st.Admins() {
		b.Admins++
	}
	for range st.Servers() {
		b.Servers++
	}
	for range st.Tokens() {
		b.Tokens++
	}
	return nil
}
