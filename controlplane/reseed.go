package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// ErrNoPeer is returned by Reseed when no other server has taken it over. Nothing
// was changed here.
var ErrNoPeer = errors.New("no other server of the cluster has agreed")

// Reseeded is what Reseed has done.
type Reseeded struct {
	Lost   string // id of the member that this was
	Server string // id of the one that it is now
	Kept   string // where the data lies that was lost or damaged; empty if there was none
}

// Reseed puts a new member in the place of one whose log is lost or damaged. Such a
// server cannot go on as who it was: it does not know any more what it has voted for
// and acknowledged. It still has its identity, the sealed root and the key that opens
// it, so it needs no token: it makes itself an identity under a new id, and asks the
// other servers, as the member that it was, to take that one instead. Afterwards New
// and Run serve from the folder; the cluster sends it everything.
//
// cfg is that of Run; peers are cluster ports to ask, beside those that the folder
// knows. While the others do not answer, or have no leader, they are asked again for
// patience. The server must not run. What is damaged is kept beside. A Reseed that was
// interrupted, at whatever moment, is ended by another one.
func Reseed(ctx context.Context, cfg Config, peers []string, patience time.Duration) (Reseeded, error) {
	d := dataDir(cfg.DataDir)
	lock, err := d.lock()
	if err != nil {
		return Reseeded{}, err
	}
	defer lock.Close()
	r := reseeding{successor{d: d, in: dataDir(d.reseed())}}
	if err := d.checkRecover(); err != nil {
		return Reseeded{}, err
	}
	if agreed, err := r.load(); err != nil {
		return Reseeded{}, err
	} else if agreed {
		return r.end()
	}
	s, err := New(cfg)
	if err != nil {
		return Reseeded{}, err
	}
	if err := s.openIdentity(); err != nil {
		return Reseeded{}, err
	}
	defer s.journal.Close()
	if err := r.prepare(s); err != nil {
		return Reseeded{}, err
	}
	if err := r.await(ctx, s, slices.Concat(peers, d.loadPeers(), s.peers), patience); err != nil {
		return Reseeded{}, err
	}
	return r.end()
}

func (r *reseeding) end() (Reseeded, error) {
	kept, err := r.finish()
	return Reseeded{Lost: r.file.Lost, Server: r.file.New.ID, Kept: kept}, err
}

// reseeding is one under way.
type reseeding struct{ successor }

// prepare makes the new member's identity, unless there is one.
func (r *reseeding) prepare(s *Server) (err error) {
	if r.file.Lost == s.id {
		data, err := identity.OpenDataKeys(r.in.dataKeys(), s.td, r.file.New.ID, s.keys.get())
		if err != nil {
			return err
		}
		r.pair, err = identity.LoadSealedKeyPair(r.in.intermediate(), data)
		return err
	}
	root, err := s.rootBesideLog()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: this server has never been told the sealed root; make it anew: ztd join with a token from ztctl token create --server, into another data directory", err)
	}
	if err != nil {
		return err
	}
	return r.make(s, root, "raft.lost-", s.epoch)
}

// reseedAgain is how long the others are left alone before they are asked again.
const reseedAgain = time.Second

// await asks until the others have agreed, or have refused, or patience ends. It says what
// is waited for.
func (r *reseeding) await(ctx context.Context, s *Server, peers []string, patience time.Duration) error {
	end := time.Now().Add(patience)
	as, err := r.identities(s) // once: each certificate is on record in the journal
	if err != nil {
		return err
	}
	for said := false; ; said = true {
		passing, err := r.ask(ctx, as, peers)
		if err == nil || !passing || ctx.Err() != nil || !time.Now().Add(reseedAgain).Before(end) {
			return err
		}
		if !said {
			s.cfg.Logger.Info("waiting for the other servers to have a leader, which agrees", "patience", patience, "error", err)
		}
		if await(ctx, time.After(reseedAgain)) != nil {
			return err
		}
	}
}

// identities are the member that is lost, and the new one, which is known if an answer
// has gone astray.
func (r *reseeding) identities(s *Server) ([]identity.Trust, error) {
	authority, err := identity.NewAuthority(s.roots[0], r.pair, r.file.New.ID, s.signing())
	if err != nil {
		return nil, err
	}
	own, err := authority.MakeServer()
	if err != nil {
		return nil, err
	}
	var fresh identity.Current
	fresh.Set(own)
	as := s.trust()
	asNew := as
	asNew.Certificate = fresh.Certificate
	return []identity.Trust{as, asNew}, nil
}

// ask asks one server after the other, as each identity in turn. passing says of an error
// that it may be another one soon: somebody was not there, or had no leader.
func (r *reseeding) ask(ctx context.Context, as []identity.Trust, peers []string) (passing bool, err error) {
	if len(peers) == 0 {
		return false, fmt.Errorf("%w: this folder knows none; name one with --peer HOST:7402. A cluster of one server comes back from a backup only", ErrNoPeer)
	}
	var errs []error
	asked := map[string]bool{}
	for len(peers) > 0 {
		address := peers[0]
		peers = peers[1:]
		if asked[address] {
			continue
		}
		asked[address] = true
		for _, trust := range as {
			resp, err := r.askOne(ctx, trust, address)
			if err == nil {
				r.file.New.Peers = resp.Peers
				return false, errors.Join(writeJSON(r.in.identityFile(), r.file), r.agree())
			}
			errs = append(errs, fmt.Errorf("%s: %s", address, status.Convert(err).Message()))
			c := status.Code(err)
			passing = passing || c == codes.Unavailable || c == codes.DeadlineExceeded || c == codes.Aborted
			if c != codes.PermissionDenied && c != codes.Unavailable && c != codes.Canceled {
				break
			}
		}
	}
	return passing, fmt.Errorf("%w, and nothing was changed:\n%w\nstart the others first; if most of them are lost as well, restore a backup (docs/operations.md)", ErrNoPeer, errors.Join(errs...))
}

func (r *reseeding) askOne(ctx context.Context, trust identity.Trust, address string) (*ztv1.ReseedResponse, error) {
	return askPeer(ctx, trust, address, func(ctx context.Context, peer ztv1.PeerServiceClient) (*ztv1.ReseedResponse, error) {
		return peer.Reseed(ctx, &ztv1.ReseedRequest{Lost: r.file.Lost, Server: r.file.New.ID})
	})
}

// askPeer makes one call to a server of the cluster, over a connection of its own, for
// at most 15 s: this server does not run.
func askPeer[T any](ctx context.Context, trust identity.Trust, address string, ask func(context.Context, ztv1.PeerServiceClient) (T, error)) (none T, err error) {
	t, err := identity.ClusterClientConfig(trust, identity.ALPNHTTP2)
	if err != nil {
		return none, err
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(t)))
	if err != nil {
		return none, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	return ask(ctx, ztv1.NewPeerServiceClient(conn))
}

// hasLog says whether the log is where it was.
func (s *Server) hasLog() error {
	if _, err := os.Stat(s.dir.raftOwner()); err == nil || !errors.Is(err, fs.ErrNotExist) || !s.who.Opened {
		return nil // the store says what is wrong with it
	}
	return fmt.Errorf("%w: %s is lost", store.ErrUnreadable, s.dir.raft())
}

// raftOwner is the file of the store that says whose log it is.
func (d dataDir) raftOwner() string { return filepath.Join(d.raft(), "server-id") }

// noteOpened writes down that there is a log, before this server is a voter.
func (s *Server) noteOpened() error {
	if s.who.Opened {
		return nil
	}
	s.who.Opened = true
	return writeJSON(s.dir.identityFile(), s.who)
}

// keepPeers keeps beside the log where the others are, for Reseed.
func (s *Server) keepPeers(ctx context.Context, agreedOn *store.Store) error {
	return agreedOn.Watch(ctx, func(st *state.State, changed state.Changes) error {
		if !changed.Servers {
			return nil
		}
		peers := []string{}
		for e := range st.Servers() {
			if e.Id != s.id && e.ClusterAddress != "" {
				peers = append(peers, e.ClusterAddress)
			}
		}
		if err := writeJSON(s.dir.peers(), peers); err != nil {
			s.cfg.Logger.Warn("the addresses of the other servers are not kept", "error", err)
		}
		return nil
	})
}

// loadPeers reads them; a damaged file is as good as none.
func (d dataDir) loadPeers() (peers []string) {
	if b, err := os.ReadFile(d.peers()); err == nil {
		_ = json.Unmarshal(b, &peers)
	}
	return peers
}
