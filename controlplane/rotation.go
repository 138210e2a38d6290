package controlplane

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// keyTimeout bounds asking another server for its keys: a command that prints them may
// take 10 s.
const keyTimeout = 15 * time.Second

// keeper keeps what lies on this server's disk sealed by the key-encryption key that
// the cluster seals its root key with, and is what the API asks of keys (api.Keys).
//
// A rotation has one moment: the entry that replaces the sealed root key. Before it,
// servers only take a further key; after it, each of them seals its data keys anew,
// whenever it comes to it, and makes a data key for what it writes from then on.
// Until its key file is relieved of the old key, it opens what it finds after a crash,
// whichever of the two sealed it.
type keeper struct {
	s      *Server
	store  *store.Store
	others *cluster
	every  time.Duration

	moved  chan struct{} // the root key may have been replaced; holds one
	behind prometheus.Gauge
	hands  map[string]*handing // by server: what could not be handed over; of run's goroutine
}

// newKeeper makes what is set of k usable.
func newKeeper(k *keeper, metrics prometheus.Registerer) *keeper {
	k.moved, k.hands = make(chan struct{}, 1), map[string]*handing{}
	k.behind = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "zt_controlplane_old_key", Help: "1: this server's data keys are sealed by another key-encryption key than the cluster's, or it does not have that one.",
	})
	metrics.MustRegister(k.behind)
	return k
}

// OnState is for store.Watch.
func (k *keeper) OnState(_ *state.State, changed state.Changes) error {
	if changed.Trust {
		select {
		case k.moved <- struct{}{}:
		default:
		}
	}
	return nil
}

// run does what is to be done, whenever the root key was replaced and every so often,
// until ctx ends. Only a disk that refuses to write ends it before.
func (k *keeper) run(ctx context.Context) error {
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	for last := ""; ; {
		err := k.keep(ctx)
		switch {
		case err == nil:
			last = ""
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, errKeyMissing) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT):
			return err
		case err.Error() != last: // what a full disk has no room for is tried again
			last = err.Error()
			k.s.cfg.Logger.Error("not sealed with the cluster's key-encryption key", "error", err)
		}
		select {
		case <-k.moved:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errKeyMissing says that this server has not the cluster's key. It goes on by what it
// has, and signs nothing by the root.
var errKeyMissing = errors.New("the cluster's key-encryption key is missing here")

// keep does what is to be done now.
func (k *keeper) keep(ctx context.Context) error {
	st := k.store.State()
	if !st.Initialized() {
		return nil
	}
	kek, err := k.s.keys.current(st)
	if err != nil {
		rerr := k.s.keys.reload(ctx)
		if kek, err = k.s.keys.current(st); err != nil {
			k.behind.Set(1)
			return fmt.Errorf("%w: %w", errKeyMissing, errors.Join(err, rerr))
		}
	}
	if err := k.reseal(ctx, kek); err != nil {
		k.behind.Set(1)
		return err
	}
	k.behind.Set(0)
	if err := k.prune(kek); err != nil {
		return err
	}
	if k.store.IsLeader() {
		k.handOver(ctx, kek)
	}
	return nil
}

// reseal seals the data keys by kek, and begins to write with a new one.
func (k *keeper) reseal(ctx context.Context, kek identity.KEK) error {
	data := k.s.data
	was := data.KEK()
	if was == kek.ID() {
		return nil
	}
	failpoint.Hit("controlplane.key.reseal")
	if err := data.Renew(kek); err != nil {
		return err
	}
	failpoint.Hit("controlplane.key.resealed")
	k.s.cfg.Logger.Info("data keys are sealed with another key-encryption key", "key", kek.ID(), "before", was, "dataKey", data.Number())
	k.store.NewSegment()
	// What an earlier snapshot holds would otherwise stay for as long as there is nothing
	// new. It is no matter if this one fails: another one will come.
	if err := k.store.Snapshot(ctx); err != nil && ctx.Err() == nil {
		k.s.cfg.Logger.Warn("no snapshot after the keys were replaced", "error", err)
	}
	return nil
}

// prune seals the intermediate by the newest data key, and forgets the data keys that
// nothing on the disk needs.
func (k *keeper) prune(kek identity.KEK) error {
	data := k.s.data
	oldest := data.Oldest()
	if oldest == data.Number() {
		return nil
	}
	sealed, err := os.ReadFile(k.s.dir.intermediate())
	if err != nil {
		return err
	}
	if n, ok := identity.DataKeyOf(sealed); !ok || n < data.Number() {
		if err := k.s.saveIntermediate(nil); err != nil {
			return err
		}
		failpoint.Hit("controlplane.key.settled")
	}
	beginnings, complete, err := k.store.AtRest()
	if err != nil || !complete {
		return err
	}
	needed := data.Number()
	for _, b := range beginnings {
		n, ok := identity.DataKeyOf(b)
		if !ok {
			return nil
		}
		needed = min(needed, n)
	}
	if needed <= oldest {
		return nil
	}
	if err := data.Drop(needed, kek); err != nil {
		return err
	}
	failpoint.Hit("controlplane.key.pruned")
	k.s.cfg.Logger.Info("data keys of before are forgotten: nothing on this disk needs them", "oldest", data.Oldest())
	return nil
}

// handOver gives the cluster's key to servers that were away when it was agreed on.
func (k *keeper) handOver(ctx context.Context, kek identity.KEK) {
	for _, r := range k.Servers(ctx, false) {
		if r.Error != "" || r.Source != sourceFile || slices.Contains(r.KeyIds, kek.ID()) {
			continue
		}
		if k.hands[r.Server] == nil {
			k.hands[r.Server] = &handing{}
		}
		h, now := k.hands[r.Server], k.s.cfg.Now()
		if !h.due(kek.ID(), now) {
			continue
		}
		if _, err := k.Hand(ctx, r.Server, kek.ID()); err != nil {
			if h.failed(kek.ID(), err.Error(), now, k.every) {
				k.s.cfg.Logger.Warn("key-encryption key not handed over; it is tried again, ever more rarely", "server", r.Server, "key", kek.ID(), "error", err)
			}
			continue
		}
		delete(k.hands, r.Server)
		k.s.cfg.Logger.Info("key-encryption key handed over", "server", r.Server, "key", kek.ID())
	}
}

// mostHanding is how long a server is left alone at most that could not take a key. Each
// time is a record in its journal, and a disk that does not take the key may take those.
const mostHanding = time.Hour

// handing is a key that a server could not take.
type handing struct {
	key, cause string
	wait       time.Duration
	next       time.Time
}

// due tells whether a key is to be handed over now.
func (h *handing) due(key string, now time.Time) bool { return h.key != key || !now.Before(h.next) }

// failed notes that it was not taken, and why. It tells whether that is news.
func (h *handing) failed(key, cause string, now time.Time, every time.Duration) (news bool) {
	news = h.key != key || h.cause != cause
	if h.key != key {
		h.wait = every
	} else {
		h.wait = min(2*h.wait, max(every, mostHanding))
	}
	h.key, h.cause, h.next = key, cause, now.Add(h.wait)
	return news
}

// sourceFile is the kind of source to which keys can be handed over.
const sourceFile = "file"

// needs are the ids of the keys that something on this server is sealed with.
func (s *Server) needs() []string {
	ids := []string{s.data.KEK()}
	if sealed, err := os.ReadFile(s.dir.sealedRoot()); err == nil {
		if id, ok := identity.SealedBy(sealed); ok {
			ids = append(ids, id)
		}
	}
	if agreedOn := s.agreedOn.Load(); agreedOn != nil {
		if id, ok := identity.SealedBy(agreedOn.State().SealedRootKey()); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// saveIntermediate keeps what this server signs with from now on; nil: what it has, by
// the newest data key.
func (s *Server) saveIntermediate(pair *identity.KeyPair) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	if pair == nil {
		return s.authority.Intermediate().SaveSealed(s.dir.intermediate(), s.data)
	}
	return errors.Join(pair.SaveSealed(s.dir.intermediate(), s.data), s.authority.Replace(s.roots[0], pair))
}

// Current is api.Keys.
func (k *keeper) Current(st *state.State) string {
	id, _ := identity.SealedBy(st.SealedRootKey())
	return id
}

// Local is api.Keys.
func (k *keeper) Local(ctx context.Context, reload bool) *ztv1.ServerKeys {
	s := k.s
	r := &ztv1.ServerKeys{Server: s.id, Source: s.keys.source.Kind()}
	if reload {
		if err := s.keys.reload(ctx); err != nil {
			r.SourceError = err.Error()
		}
	}
	r.KeyIds = s.keys.get().IDs()
	r.DataKeysSealedBy, r.DataKey, r.OldestDataKey = s.data.KEK(), s.data.Number(), s.data.Oldest()
	if sealed, err := os.ReadFile(s.dir.sealedRoot()); err == nil {
		r.RootCopySealedBy, _ = identity.SealedBy(sealed)
	}
	return r
}

// Servers is api.Keys.
func (k *keeper) Servers(ctx context.Context, reload bool) []*ztv1.ServerKeys {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	members := slices.Collect(k.store.State().Servers())
	out := make([]*ztv1.ServerKeys, len(members))
	var wg sync.WaitGroup
	for n, m := range members {
		wg.Go(func() { out[n] = k.ask(ctx, m, reload) })
	}
	wg.Wait()
	return out
}

// ask is Local of a server; where it does not answer, that.
func (k *keeper) ask(ctx context.Context, m *logv1.Server, reload bool) *ztv1.ServerKeys {
	switch {
	case m.Id == k.s.id:
		return k.Local(ctx, reload)
	case m.ClusterAddress == "":
		return &ztv1.ServerKeys{Server: m.Id, Error: "it has joined, and has not been heard of yet"}
	}
	conn, err := k.others.conn(m.ClusterAddress)
	if err == nil {
		var resp *ztv1.GetKeyReportResponse
		resp, err = ztv1.NewPeerServiceClient(conn).GetKeyReport(ctx, &ztv1.GetKeyReportRequest{Reload: reload})
		if err == nil && resp.GetKeys().GetServer() == m.Id {
			return resp.Keys
		}
	}
	k.s.cfg.Logger.Debug("no answer about keys", "server", m.Id, "error", err)
	return &ztv1.ServerKeys{Server: m.Id, Error: "it cannot be reached"}
}

// Make is api.Keys.
func (k *keeper) Make(ctx context.Context) (id string, err error) {
	key := identity.NewKEK()
	return key.ID(), k.s.keys.take(ctx, key)
}

// Take is api.Keys.
func (k *keeper) Take(ctx context.Context, id string, key []byte) error {
	kek, err := identity.KEKFrom(key)
	if err != nil {
		return err
	}
	if kek.ID() != id {
		return errors.New("the key is not the one that it is called")
	}
	if err := k.s.keys.take(ctx, kek); err != nil {
		return err
	}
	k.s.cfg.Logger.Info("a key-encryption key was added to the key file", "key", id, "source", k.s.keys.source.String())
	return nil
}

// Forget is api.Keys.
func (k *keeper) Forget(ctx context.Context, id string) error { return k.s.keys.forget(ctx, id) }

// Hand is api.Keys.
func (k *keeper) Hand(ctx context.Context, server, id string) (*ztv1.ServerKeys, error) {
	key, ok := k.s.keys.get().Find(id)
	if !ok {
		return nil, fmt.Errorf("key %s is not here", id)
	}
	c, err := k.peer(server)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	resp, err := c.TakeKey(ctx, &ztv1.TakeKeyRequest{KeyId: id, Key: key.Reveal()})
	return resp.GetKeys(), err
}

// ForgetAt is api.Keys.
func (k *keeper) ForgetAt(ctx context.Context, server, id string) (*ztv1.ServerKeys, error) {
	if server == k.s.id {
		if err := k.Forget(ctx, id); err != nil {
			return nil, err
		}
		return k.Local(ctx, false), nil
	}
	c, err := k.peer(server)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	resp, err := c.ForgetKey(ctx, &ztv1.ForgetKeyRequest{KeyId: id})
	return resp.GetKeys(), err
}

func (k *keeper) peer(server string) (ztv1.PeerServiceClient, error) {
	m, ok := k.store.State().Server(server)
	if !ok || m.ClusterAddress == "" {
		return nil, fmt.Errorf("server %s: %w", server, store.ErrNoMember)
	}
	conn, err := k.others.conn(m.ClusterAddress)
	if err != nil {
		return nil, err
	}
	return ztv1.NewPeerServiceClient(conn), nil
}

// Reseal is api.Keys. What it returns has been opened again: nothing would be left to
// go back to.
func (k *keeper) Reseal(st *state.State, id string) (sealed, replaces []byte, err error) {
	roots, err := identity.ParseDER(st.Roots())
	if err != nil || len(roots) == 0 {
		return nil, nil, errors.Join(err, errors.New("no root"))
	}
	keys := k.s.keys.get()
	kek, ok := keys.Find(id)
	if !ok {
		return nil, nil, fmt.Errorf("key %s is not here", id)
	}
	root, err := identity.OpenRoot(roots[0], st.SealedRootKey(), keys, k.s.signing())
	if err != nil {
		return nil, nil, err
	}
	if sealed, err = root.Seal(kek); err != nil {
		return nil, nil, err
	}
	only, err := identity.NewKeys(kek)
	if err != nil {
		return nil, nil, err
	}
	if _, err := identity.OpenRoot(roots[0], sealed, only, k.s.signing()); err != nil {
		return nil, nil, fmt.Errorf("the root key does not open again: %w", err)
	}
	was := sha256.Sum256(st.SealedRootKey())
	return sealed, was[:], nil
}
