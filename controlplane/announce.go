package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/api"
	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// advertise is where others reach this server; it is written down for those who
// look, and for the next start.
func (s *Server) advertise(l listeners) (a Addresses, err error) {
	for _, p := range []struct {
		to *string
		l  net.Listener
	}{{&a.Admin, l.admin}, {&a.Node, l.node}, {&a.Cluster, l.cluster}} {
		if *p.to, err = s.advertised(p.l); err != nil {
			return a, err
		}
	}
	a.Local = l.local.Addr().String()
	if l.plain != nil {
		a.Plaintext = l.plain.Addr().String()
	}
	return a, writeJSON(s.dir.addresses(), a)
}

// announce tells the cluster where this server is, again whenever the log does
// not say so. A server that has just joined thereby becomes a member; whether and
// when it votes, the leader decides (see Autopilot).
func (s *Server) announce(ctx context.Context, door *api.Server, others *cluster, agreedOn *store.Store) error {
	self := &ztv1.Server{
		Id: s.id, AdminAddress: s.addresses.Admin, NodeAddress: s.addresses.Node,
		ClusterAddress: s.addresses.Cluster, Version: Version, Format: agreedOn.Format(), Zone: s.cfg.Zone,
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; {
		// Who hears no leader asks again, too: it may have been removed meanwhile, and
		// nobody else would tell.
		if _, leader := agreedOn.Leader(); !told || leader == "" || !s.announced(agreedOn, self) {
			failpoint.Hit("controlplane.announce.asked")
			err := s.announceOnce(ctx, self, door, others, agreedOn)
			if errors.Is(err, store.ErrRemoved) {
				return err
			}
			if told = err == nil; err != nil {
				s.cfg.Logger.Debug("not announced yet", "error", err)
			} else {
				failpoint.Hit("controlplane.announce.done")
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (s *Server) announced(agreedOn *store.Store, self *ztv1.Server) bool {
	e, ok := agreedOn.State().Server(s.id)
	return ok && e.AdminAddress == self.AdminAddress && e.NodeAddress == self.NodeAddress &&
		e.ClusterAddress == self.ClusterAddress && e.Version == self.Version && e.Format == self.Format && e.Zone == self.Zone &&
		slices.ContainsFunc(agreedOn.Members(), func(m store.Member) bool {
			return m.ID == s.id && m.Address == self.ClusterAddress
		})
}

func (s *Server) announceOnce(ctx context.Context, self *ztv1.Server, door *api.Server, others *cluster, agreedOn *store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if agreedOn.IsLeader() {
		return door.AnnounceSelf(ctx, self)
	}
	// Whoever is asked forwards to the leader.
	ask := slices.Clone(s.peers)
	for e := range agreedOn.State().Servers() {
		if e.Id != s.id && e.ClusterAddress != "" && !slices.Contains(ask, e.ClusterAddress) {
			ask = append(ask, e.ClusterAddress)
		}
	}
	for _, m := range agreedOn.Members() { // the state may not be read yet
		if m.ID != s.id && !slices.Contains(ask, m.Address) {
			ask = append(ask, m.Address)
		}
	}
	if _, leader := agreedOn.Leader(); leader != "" && leader != self.ClusterAddress {
		ask = append([]string{leader}, ask...)
	}
	err := errors.New("no other server is known")
	for _, address := range ask {
		conn, cerr := others.conn(address)
		if cerr != nil {
			return cerr
		}
		if _, err = ztv1.NewPeerServiceClient(conn).Announce(ctx, &ztv1.AnnounceRequest{Server: self}); err == nil {
			return nil
		}
		if api.TurnedAway(err) {
			return store.ErrRemoved
		}
	}
	return err
}

// keepAdminContext writes the admin ports of the cluster into the credential that
// Init made, as long as it lies where Init wrote it.
func (s *Server) keepAdminContext(ctx context.Context, agreedOn *store.Store) error {
	return agreedOn.Watch(ctx, func(st *state.State, changed state.Changes) error {
		if !changed.Servers {
			return nil
		}
		contexts, err := identity.LoadContexts(s.cfg.AdminFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			s.cfg.Logger.Warn("admin context not kept up to date", "error", err)
			return nil
		}
		servers := []string{s.addresses.Admin}
		for e := range st.Servers() {
			if e.Id != s.id && e.AdminAddress != "" {
				servers = append(servers, e.AdminAddress)
			}
		}
		roots := string(identity.EncodePEM(s.roots))
		for i := range contexts.Contexts {
			if contexts.Contexts[i].Roots == roots { // the file may hold those of other clusters
				contexts.Contexts[i].Servers = servers
			}
		}
		if err := identity.SaveContexts(s.cfg.AdminFile, contexts); err != nil {
			s.cfg.Logger.Warn("admin context not kept up to date", "error", err)
		}
		return nil
	})
}

// readiness is the revision that is served, and why this server is not ready; "": it is.
func readiness(agreedOn *store.Store, loop *reconciler) (revision uint64, why string) {
	withheld, is := agreedOn.Withheld()
	revision, serves := loop.Served()
	leader, _ := agreedOn.Leader()
	applied, to, caughtUp := agreedOn.CaughtUp()
	switch {
	case is:
		return 0, fmt.Sprintf("no state is served yet: what was served before is not known, and entry %d must be applied first, which takes a leader", withheld)
	case !serves:
		return 0, "no state is served yet"
	case leader == "":
		return revision, fmt.Sprintf("no leader; revision %d is served on", revision)
	case !caughtUp && to == 0:
		return revision, fmt.Sprintf("leader %s has not said yet how far the log is agreed on; revision %d is served on", leader, revision)
	case !caughtUp:
		return revision, fmt.Sprintf("catching up: entry %d is applied, %d is agreed on; revision %d is served on", applied, to, revision)
	}
	return revision, ""
}

// becomeReady closes ready once a state is served and this server has caught up.
func (s *Server) becomeReady(ctx context.Context, loop *reconciler, agreedOn *store.Store) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, why := readiness(agreedOn, loop); why == "" {
			s.cfg.Logger.Info("ready", "server", s.id, "admin", s.addresses.Admin, "node", s.addresses.Node, "cluster", s.addresses.Cluster, "local", s.addresses.Local)
			close(s.ready)
			<-ctx.Done()
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
