package controlplane

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// RecoverConfig says how to go on without a quorum.
type RecoverConfig struct {
	// Lost are the ids of the servers that are given up. Whatever only they have is lost.
	Lost []string
	// Reports are files of survivors that do not run, as Report gives them.
	Reports []string
	// Peers are cluster ports to ask, beside those that the log names.
	Peers []string
	// DryRun judges and tells. Nothing is changed.
	DryRun bool
	// Confirm is asked before anything is changed. Its error ends the recovery.
	Confirm func(Recovered) error
}

// Recovered is what a recovery has done, or will do.
type Recovered struct {
	Before   Survivor   `json:"before"`         // the server that this was
	Compared []Survivor `json:"compared"`       // the other survivors: they join anew
	Lost     []string   `json:"lost"`           // given up
	Server   string     `json:"server"`         // the id of the one that goes on; empty: not yet known
	Kept     string     `json:"kept,omitempty"` // where the log of before lies
	Done     bool       `json:"done"`
	// Resumed: an earlier recovery was interrupted when it was decided; it was ended.
	Resumed bool `json:"resumed,omitempty"`
}

// Recover makes a cluster whose quorum is lost for ever go on from one server, which
// must not run. It has everything that is in the log of that server, committed or not.
// What only the lost servers have acknowledged is lost.
//
// All other members are compared first: those that answer, or that a report is brought
// of, must have no more than this one; all others must be given up by name. As after
// Restore, the cluster is of a new epoch, with one server of a new id: the servers of
// before are refused, whatever they show, and so are join tokens; revisions go on above
// all that can have been given out. Proxies and admins go on with their certificates.
//
// A recovery that was interrupted is ended by another one, and until then New refuses
// the folder if it was decided; otherwise nothing has changed. The errors are
// ErrRecover, store.ErrUnreadable if the log here is damaged, and those of the disk.
func Recover(ctx context.Context, cfg Config, how RecoverConfig) (Recovered, error) {
	d := dataDir(cfg.DataDir)
	lock, err := d.lock()
	if err != nil {
		return Recovered{}, err
	}
	defer lock.Close()
	r := recovering{successor: successor{d: d, in: dataDir(d.recovery())}, how: how}
	if err := d.checkReseed(); err != nil {
		return Recovered{}, err
	}
	if decided, err := r.load(); err != nil {
		return Recovered{}, err
	} else if decided {
		r.done = Recovered{Before: Survivor{Server: r.file.Lost}, Resumed: true}
		return r.end()
	}
	s, log, err := openStopped(cfg)
	if err != nil {
		return Recovered{}, err
	}
	defer s.journal.Close()
	if r.done, err = judged(ctx, s, log, how); err != nil {
		return r.done, err
	}
	if how.DryRun {
		return r.done, nil
	}
	if how.Confirm != nil {
		if err := how.Confirm(r.done); err != nil {
			return r.done, err
		}
	}
	if err := r.build(ctx, s, log); err != nil {
		return r.done, err
	}
	failpoint.Hit("controlplane.recover.built")
	if err := r.agree(); err != nil {
		return r.done, err
	}
	failpoint.Hit("controlplane.recover.decided")
	return r.end()
}

// Report tells what a server that does not run has, for a recovery elsewhere.
func Report(cfg Config) (Survivor, error) {
	lock, err := dataDir(cfg.DataDir).lock()
	if err != nil {
		return Survivor{}, err
	}
	defer lock.Close()
	s, log, err := openStopped(cfg)
	if err != nil {
		return Survivor{}, err
	}
	return s.survivor(log), s.journal.Close()
}

// openStopped opens a server that does not run, and reads its log.
func openStopped(cfg Config) (*Server, *store.Offline, error) {
	s, err := New(cfg)
	if err != nil {
		return nil, nil, err
	}
	if err := s.dir.checkDiverged(); err != nil {
		return nil, nil, err
	}
	log, err := store.ReadOffline(store.Config{
		ID: s.id, Dir: s.dir.raft(), Cipher: s.data, Logger: s.cfg.Logger, Now: s.cfg.Now, Format: s.cfg.Format, Audit: s.cfg.Audit,
	})
	if errors.Is(err, store.ErrUnreadable) {
		err = fmt.Errorf("%w\na damaged log is not gone on from: recover another survivor, and join this one anew; if there is none, restore a backup (docs/operations.md)", err)
	}
	if err != nil {
		return nil, nil, err
	}
	if !log.State.Initialized() {
		return nil, nil, fmt.Errorf("%w: it has never heard of what the cluster has agreed on", ErrRecover)
	}
	if _, epoch := log.State.Epoch(); epoch != s.epoch {
		return nil, nil, fmt.Errorf("%w: it is of epoch %s, and its log is of %s", ErrRecover, s.epoch, epoch)
	}
	return s, log, s.openIdentity()
}

func (s *Server) survivor(log *store.Offline) Survivor {
	votes := slices.ContainsFunc(log.Members, func(m store.Member) bool { return m.ID == s.id && m.Voter })
	return Survivor{
		Server: s.id, TrustDomain: s.td, Epoch: s.epoch, Voter: votes, LastTerm: log.LastTerm, LastIndex: log.LastIndex,
		Revision: log.State.Revision(), When: log.State.When(), From: "this server",
	}
}

// judged asks the others, and judges.
func judged(ctx context.Context, s *Server, log *store.Offline, how RecoverConfig) (Recovered, error) {
	r := recovery{self: s.survivor(log), members: map[string]bool{s.id: false}, silent: map[string]string{}, lost: slices.Compact(slices.Sorted(slices.Values(how.Lost)))}
	addresses := map[string]string{}
	for v := range log.State.Servers() {
		r.members[v.Id], addresses[v.Id] = false, v.ClusterAddress
	}
	for _, m := range log.Members {
		r.members[m.ID] = m.Voter
		addresses[m.ID] = cmp.Or(addresses[m.ID], m.Address)
	}
	for _, file := range how.Reports {
		report, err := s.readReport(file)
		if err != nil {
			return Recovered{}, err
		}
		r.survivors = append(r.survivors, report)
	}
	r.ask(ctx, s, addresses, how.Peers)
	slices.SortFunc(r.survivors, func(a, b Survivor) int { return cmp.Or(cmp.Compare(a.Server, b.Server), b.compare(a)) })
	r.survivors = slices.CompactFunc(r.survivors, func(a, b Survivor) bool { return a.Server == b.Server }) // of two reports, the one with more
	return Recovered{Before: r.self, Compared: r.survivors, Lost: r.lost}, r.judge()
}

// readReport reads what Report has given on another server.
func (s *Server) readReport(file string) (Survivor, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Survivor{}, err
	}
	var report Survivor
	if err := json.Unmarshal(b, &report); err != nil || report.Server == "" {
		return Survivor{}, errors.Join(fmt.Errorf("%s is not a report of ztd recover --report", file), err)
	}
	switch {
	case report.TrustDomain != s.td || report.Epoch != s.epoch:
		return Survivor{}, fmt.Errorf("%s is of another cluster, or of another epoch of this one", file)
	case report.Server == s.id:
		return Survivor{}, fmt.Errorf("%s is the report of this server", file)
	}
	report.From = file
	return report, nil
}

// ask asks every other member where it stands, all at once.
func (r *recovery) ask(ctx context.Context, s *Server, addresses map[string]string, peers []string) {
	var mu sync.Mutex // guards r and asked
	var wg sync.WaitGroup
	asked := map[string]bool{}
	for id, address := range addresses {
		if id != s.id && address != "" {
			asked[address] = true
			peers = append(peers, address)
		}
	}
	voters := r.members
	slices.Sort(peers)
	for _, address := range slices.Compact(peers) {
		wg.Go(func() {
			report, err := s.askReport(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				r.survivors = append(r.survivors, Survivor{
					Server: report.Server, TrustDomain: s.td, Epoch: s.epoch, Voter: voters[report.Server], Leader: report.Leader,
					LastTerm: report.LastTerm, LastIndex: report.LastIndex, Revision: report.Revision, When: report.When.AsTime(), From: address,
				})
				return
			}
			for id, a := range addresses {
				if a == address {
					r.silent[id] = fmt.Sprintf("%s: %s", address, status.Convert(err).Message())
				}
			}
		})
	}
	wg.Wait()
}

// askReport asks a member of this epoch. It must be who the log says is a member.
func (s *Server) askReport(ctx context.Context, address string) (*ztv1.GetReportResponse, error) {
	return askPeer(ctx, s.trust(), address, func(ctx context.Context, peer ztv1.PeerServiceClient) (*ztv1.GetReportResponse, error) {
		return peer.GetReport(ctx, &ztv1.GetReportRequest{})
	})
}

// recovering is a recovery that is under way.
type recovering struct {
	successor
	how  RecoverConfig
	done Recovered
}

// build makes the server that is to go on, with all that it needs, beside the one that
// there is.
func (r *recovering) build(ctx context.Context, s *Server, log *store.Offline) error {
	root, err := identity.OpenRoot(s.roots[0], log.State.SealedRootKey(), s.keys.get(), s.signing())
	if err != nil {
		return err
	}
	epoch := identity.NewID()
	if err := r.make(s, root, "raft.before-recover-", epoch); err != nil {
		return err
	}
	raised := log.State.Raised(restoreStep)
	recovered, result := state.Apply(raised, raised.Index()+1, &logv1.Entry{
		Format: state.Format, When: timestamppb.New(s.cfg.Now()), Who: "recover", Method: "recover",
		Op: &logv1.Entry_Restored{Restored: &logv1.Restored{
			EpochId: epoch, Server: &logv1.Server{Id: r.file.New.ID}, Recovered: s.id, Lost: r.done.Lost,
		}},
	})
	if result.Err != nil {
		return result.Err
	}
	data, err := identity.OpenDataKeys(r.in.dataKeys(), s.td, r.file.New.ID, s.keys.get())
	if err != nil {
		return err
	}
	if err := bootstrap(ctx, s.cfg.Now, r.in, r.file.New.ID, data, recovered); err != nil {
		return err
	}
	if err := log.CopyAudit(r.in.raft(), result.Audit); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	r.file.New.Opened = true
	return errors.Join(
		writeJSON(r.in.identityFile(), r.file),
		identity.WriteFile(r.d.sealedRoot(), log.State.SealedRootKey()),
	)
}

func (r *recovering) end() (Recovered, error) {
	kept, err := r.finish()
	r.done.Server, r.done.Kept, r.done.Done = r.file.New.ID, kept, err == nil
	return r.done, err
}
