package controlplane

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// FirstAdmin is the name of the admin that Init makes.
const FirstAdmin = "admin"

// InitConfig is what a new cluster is made of.
type InitConfig struct {
	DataDir     string
	TrustDomain string // of the workloads: "shop.example"; fixed for the life of the cluster
	// KEK is the source of the key-encryption key, as identity.KeySource reads it.
	// Default: DefaultKEK. A file that is not there is made.
	KEK string
	// AdminFile gets the first admin's credential. Default: DefaultAdminFile.
	AdminFile string
	Logger    *slog.Logger
	Now       func() time.Time // default time.Now
	// Format is the newest format of log entries that the cluster begins with; default
	// state.Format. Only tests pretend to be of an older version.
	Format uint32
}

// Init makes a new cluster with one server: its root, its first entry, and the
// first admin's credential. It returns the path of that credential, a contexts
// file of mode 0600 without addresses: a running server fills them in. The folder
// must not be a server's already. Afterwards, New and Run serve from the folder.
func Init(ctx context.Context, cfg InitConfig) (adminFile string, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.AdminFile == "" {
		cfg.AdminFile = DefaultAdminFile(cfg.DataDir)
	}
	if err := identity.ValidTrustDomain(cfg.TrustDomain); err != nil {
		return "", fmt.Errorf("trust domain: %w", err)
	}
	d := dataDir(cfg.DataDir)
	if err := d.outside("admin file", cfg.AdminFile); err != nil {
		return "", err
	}
	keys, err := firstKeys(ctx, cfg.KEK, d)
	if err != nil {
		return "", err
	}
	lock, err := d.create()
	if err != nil {
		return "", err
	}
	defer lock.Close()
	for _, left := range []string{d.dataKeys(), d.raft()} {
		if _, err := os.Stat(left); err == nil {
			return "", fmt.Errorf("%s is there: an earlier init was interrupted, or this is a server without its %s; if it is the former, remove %s and try again",
				left, filepath.Base(d.identityFile()), cfg.DataDir)
		}
	}
	if _, err := os.Lstat(cfg.AdminFile); !errors.Is(err, fs.ErrNotExist) {
		return "", errors.Join(err, fmt.Errorf("%s is there, maybe the credential of another cluster: move it, or name another with --admin-file", cfg.AdminFile))
	}
	journal, err := identity.OpenJournal(d.journal())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()

	id, clusterID := identity.NewID(), identity.NewID()
	kek := keys.get().First()
	data, err := identity.NewDataKeys(d.dataKeys(), cfg.TrustDomain, id, kek)
	if err != nil {
		return "", err
	}
	root, err := identity.NewRoot(cfg.TrustDomain, identity.Signing{Now: cfg.Now, Log: journal.Append})
	if err != nil {
		return "", err
	}
	sealed, err := root.Seal(kek)
	if err != nil {
		return "", err
	}
	intermediate, err := newIntermediate(func(key identity.PrivateKey) (*x509.Certificate, error) {
		return root.SignIntermediate(key.Public(), id)
	})
	if err != nil {
		return "", err
	}
	if err := errors.Join(
		intermediate.SaveSealed(d.intermediate(), data),
		identity.WriteFile(d.roots(), identity.EncodePEM([]*x509.Certificate{root.Certificate()})),
	); err != nil {
		return "", err
	}
	failpoint.Hit("controlplane.init.keys")
	method := "init"
	if cfg.Format != 0 && cfg.Format < state.AuditChain.Format() {
		method = "" // not on record
	}
	if err := bootstrap(ctx, cfg.Now, d, id, data, nil,
		&logv1.Entry{Who: "init", Method: method, Op: &logv1.Entry_Init{Init: &logv1.Init{
			TrustDomain: cfg.TrustDomain, ClusterId: clusterID,
			Roots: [][]byte{root.Certificate().Raw}, SealedRootKey: sealed,
			Admin: &logv1.Admin{Name: FirstAdmin, Role: "admin"},
		}}},
		&logv1.Entry{Who: "init", Method: method, Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{
			Server: &logv1.Server{Id: id},
		}}},
	); err != nil {
		return "", err
	}
	failpoint.Hit("controlplane.init.committed")
	if err := writeAdmin(cfg.AdminFile, root); err != nil {
		return "", err
	}
	return cfg.AdminFile, writeJSON(d.identityFile(), serverFile{ID: id, TrustDomain: cfg.TrustDomain, Epoch: clusterID, Opened: true})
}

// firstKeys asks the source, and makes a key where a file is named that is not there.
func firstKeys(ctx context.Context, text string, d dataDir) (*keyring, error) {
	source, err := keySource(text, d)
	if err != nil {
		return nil, err
	}
	if path, ok := source.File(); ok {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			keys, err := identity.NewKeys(identity.NewKEK())
			if err != nil {
				return nil, err
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return nil, err
			}
			if err := identity.SaveKeys(path, keys); err != nil {
				return nil, err
			}
		}
	}
	return openKeyring(ctx, text, d)
}

func newIntermediate(sign func(identity.PrivateKey) (*x509.Certificate, error)) (*identity.KeyPair, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	cert, err := sign(key)
	if err != nil {
		return nil, err
	}
	return identity.NewKeyPair(key, []*x509.Certificate{cert})
}

// writeAdmin makes the first admin's credential.
func writeAdmin(path string, root *identity.Root) error {
	key, err := identity.NewKey()
	if err != nil {
		return err
	}
	chain, err := root.IssueAdmin(key.Public(), FirstAdmin)
	if err != nil {
		return err
	}
	pem, err := key.PEM()
	if err != nil {
		return err
	}
	contexts := &identity.Contexts{}
	contexts.Put(identity.Context{
		Name: root.TrustDomain(), TrustDomain: root.TrustDomain(),
		Servers:     []string{defaultAdminContextServer},
		Roots:       string(identity.EncodePEM([]*x509.Certificate{root.Certificate()})),
		Certificate: string(identity.EncodePEM(chain)),
		Key:         identity.ContextKey(pem.Reveal()),
	})
	return identity.SaveContexts(path, contexts)
}

// defaultAdminContextServer stands in a new context until a server runs and
// writes where it listens.
const defaultAdminContextServer = "127.0.0.1:7400"

// bootstrap commits the first entries in a store of one server that nobody can
// reach, after the state from, unless that is nil.
func bootstrap(ctx context.Context, now func() time.Time, d dataDir, id string, data *identity.DataKeys, from *state.State, entries ...*logv1.Entry) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s, err := store.Open(store.Config{
		ID: id, Dir: d.raft(), Cipher: data, Bootstrap: true, Address: l.Addr().String(), Listener: l,
		Dial: func(context.Context, string) (net.Conn, error) {
			return nil, errors.New("a cluster in the making has no peers")
		},
		Logger: slog.New(slog.DiscardHandler), // it is elected by nobody but itself, and errors are returned
		Now:    now,
		Timing: store.Timing{Heartbeat: 50 * time.Millisecond, Election: 50 * time.Millisecond, Lease: 50 * time.Millisecond},
	})
	if err != nil {
		return err
	}
	err = waitLeader(ctx, s)
	if err == nil && from != nil {
		err = s.Restore(ctx, from)
	}
	for _, e := range entries {
		if err != nil {
			break
		}
		var r state.Result
		if r, err = s.Propose(ctx, e); err == nil {
			err = r.Err
		}
	}
	return errors.Join(err, s.Close())
}

// JoinConfig is what a new server of an existing cluster needs.
type JoinConfig struct {
	DataDir string
	Server  string // node port of any server of the cluster, host:port
	Token   string // a server token
	Replica bool   // a read replica: it never votes
	Format  uint32 // as in Config
	// KEK is the source of the key-encryption key, as identity.KeySource reads it.
	// Default: DefaultKEK. A file that is not there is filled with the key that the
	// cluster hands over.
	KEK string
	// Replace moves what makes the data directory a server's already aside, to a folder
	// in it; otherwise such a directory is refused.
	Replace bool
	Logger  *slog.Logger
	Now     func() time.Time // default time.Now
}

// Join makes a data directory for a new server of an existing cluster, with a
// one-use server token, which also pins the cluster's root: it is sent to nobody
// else. Afterwards, New and Run serve from the folder.
func Join(ctx context.Context, cfg JoinConfig) (failed error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	d := dataDir(cfg.DataDir)
	keys, err := joinKeys(ctx, cfg.KEK, d)
	if err != nil {
		return err
	}
	token, err := identity.ParseToken(cfg.Token)
	if err != nil {
		return err
	}
	if cfg.Replace {
		moved, err := d.setAside(cfg.Now())
		if err != nil {
			return errors.Join(err, moved.back())
		}
		defer func() { failed = moved.unless(failed) }()
	}
	lock, err := d.create()
	if err != nil {
		return err
	}
	defer lock.Close()
	tlsConfig, err := identity.PinnedClientConfig(token.Pin, cfg.Now, nil)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Server, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		return err
	}
	defer conn.Close()

	id := identity.NewID()
	key, err := identity.NewKey()
	if err != nil {
		return err
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return err
	}
	resp, err := ztv1.NewNodeServiceClient(conn).EnrolServer(ctx, &ztv1.EnrolServerRequest{
		Token: token.Reveal(), Server: id, IntermediateCsr: csr, KeyIds: keys.get().IDs(),
		Replica: cfg.Replica, Format: cmp.Or(cfg.Format, state.Format), Version: Version,
	})
	if err != nil {
		return fmt.Errorf("join by %s: %w", cfg.Server, err)
	}
	failpoint.Hit("controlplane.join.enrolled")
	return saveJoined(d, id, key, token.Pin, keys, resp)
}

// joinKeys asks the source. A file that is not there yet gives none: the cluster
// hands its key over.
func joinKeys(ctx context.Context, text string, d dataDir) (*keyring, error) {
	source, err := keySource(text, d)
	if err != nil {
		return nil, err
	}
	if path, ok := source.File(); ok {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return &keyring{source: source}, nil
		}
	}
	return openKeyring(ctx, text, d)
}

// saveJoined writes what the cluster has answered, after checking that it is of
// the cluster that the token pins, and sealed with a key that is here.
func saveJoined(d dataDir, id string, key identity.PrivateKey, pin identity.Pin, keys *keyring, resp *ztv1.EnrolServerResponse) error {
	roots, err := identity.ParseDER(resp.Roots)
	if err != nil {
		return err
	}
	if len(roots) == 0 || identity.PinOf(roots[0]) != pin {
		return errors.New("the answer names another root than the token")
	}
	certs, err := identity.ParseDER([][]byte{resp.Intermediate})
	if err != nil {
		return err
	}
	intermediate, err := identity.NewKeyPair(key, certs)
	if err != nil {
		return err
	}
	if path, ok := keys.source.File(); ok && keys.get().IsZero() {
		if err := takeKey(path, keys, resp.KeyEncryptionKey); err != nil {
			return err
		}
	}
	kek, ok := keys.get().Find(resp.KeyId)
	if !ok {
		return fmt.Errorf("the cluster's key-encryption key is %q; %s does not give it", resp.KeyId, keys.source)
	}
	// What an earlier try has left is of another enrolment.
	for _, f := range []string{d.dataKeys(), d.intermediate(), d.roots()} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	data, err := identity.NewDataKeys(d.dataKeys(), resp.TrustDomain, id, kek)
	if err != nil {
		return err
	}
	if err := errors.Join(
		intermediate.SaveSealed(d.intermediate(), data),
		identity.WriteFile(d.roots(), identity.EncodePEM(roots)),
	); err != nil {
		return err
	}
	failpoint.Hit("controlplane.join.saved")
	return writeJSON(d.identityFile(), serverFile{ID: id, TrustDomain: resp.TrustDomain, Epoch: resp.Epoch, Peers: resp.Peers})
}

// takeKey keeps the key that the cluster has handed over.
func takeKey(path string, keys *keyring, handed []byte) error {
	kek, err := identity.KEKFrom(handed)
	if err != nil {
		return err
	}
	all, err := identity.NewKeys(kek)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := identity.SaveKeys(path, all); err != nil {
		return err
	}
	return keys.reload(context.Background())
}
