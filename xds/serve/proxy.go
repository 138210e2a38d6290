package serve

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/xds"
)

// maxStreams bounds the streams of one instance: an Envoy has one for ADS, or
// one per secret at an agent, and a few that are not yet known to be dead.
const maxStreams = 16

// errRefused is all that a peer learns of why it is not served.
var errRefused = status.Error(codes.PermissionDenied, "refused")

// view is what one proxy is to hold. It is immutable; setters make a new one.
type view struct {
	target  *xds.Resources           // nil: not known yet
	zone    string                   // empty: not known
	secrets map[string]*xds.Resource // nil: not known yet
	gates   map[string]*xds.Resource // nil: not known yet; else the one layer

	// at counts the changes of each type, by indexOf: what was found about one holds
	// for every view with the same count.
	at [len(inOrder)]uint64
}

// proxy is one instance: what it is to hold, and its streams.
type proxy struct {
	instance string
	mark     func()        // tells the fleet's reader that status has changed
	leaving  chan struct{} // guarded by Fleet.mu; not nil while OnDisconnect runs, closed after

	mu          sync.Mutex // guards the following and the token state of the streams' watches
	view        *view
	streams     []*stream // in the order of their coming
	sent, acked progress  // of the newest ADS stream, like all below
	ackedAt     time.Time
	nacks       []Nack
	seen        uint64   // counts how often it came to hold all it should, and new streams
	enforced    progress // as the agent has read it
	differs     []string // what the agent has read that is otherwise
	agent       bool     // an agent speaks for it; whatever the stream
}

func (f *Fleet) newProxy(instance string) *proxy {
	v := &view{}
	for i := range v.at {
		v.at[i] = 1
	}
	return &proxy{instance: instance, view: v, mark: func() { f.mark(instance) }}
}

// setTarget replaces the target. before is the newest revision that the old
// target may still vouch for.
func (p *proxy) setTarget(target *xds.Resources, before uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	moved := inOrder[:]
	if p.view.target != nil {
		if moved = movedTypes(*p.view.target, *target); len(moved) == 0 {
			return
		}
	}
	v := *p.view
	v.target = target
	p.swap(&v, before, moved...)
}

// setSecrets and setGates replace what there is of a type, by name; nil: not known.
func (p *proxy) setSecrets(byName map[string]*xds.Resource, revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (byName == nil) == (p.view.secrets == nil) && equalByName(byName, p.view.secrets) {
		return
	}
	v := *p.view
	v.secrets = byName
	p.swap(&v, revision, xds.SecretType)
}

func (p *proxy) setGates(byName map[string]*xds.Resource, revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if equalByName(byName, p.view.gates) {
		return
	}
	v := *p.view
	v.gates = byName
	p.swap(&v, revision, xds.RuntimeType)
}

func (p *proxy) setZone(zone string, revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if zone == p.view.zone {
		return
	}
	v := *p.view
	v.zone = zone
	p.swap(&v, revision, xds.EndpointType)
}

// forget drops all that is set.
func (p *proxy) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swap(&view{at: p.view.at}, 0, inOrder[:]...)
}

// swap puts a view in place of which some types are new, and wakes the streams for
// them. p.mu is held.
func (p *proxy) swap(v *view, revision uint64, types ...string) {
	for _, typeURL := range types {
		v.at[indexOf(typeURL)]++
	}
	p.view = v
	p.sent.stop(revision)
	p.acked.stop(revision)
	p.enforced.stop(revision)
	p.mark()
	for _, s := range p.streams {
		woken := s.wakeLocked(types...)
		for _, typeURL := range types { // it may have been held back by what is no more
			s.wakeLocked(waiting(typeURL)...)
		}
		// A stream that asks for none of them has no token to take, so another type has
		// to find that nothing is missing.
		if !woken {
			s.wakeAllLocked()
		}
	}
}

// endpointsMoved wakes the streams for clusters whose endpoints changed. first
// says that no endpoints were known at all before.
func (p *proxy) endpointsMoved(clusters []string, first bool, revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view.target == nil {
		return
	}
	mine := (*p.view.target)[xds.ClusterType]
	if !first && !slices.ContainsFunc(clusters, func(c string) bool { return mine[c] != nil }) {
		return
	}
	v := *p.view // what a stream reports of the former view does not count
	p.swap(&v, revision, xds.EndpointType)
}

// join adds a stream. It says whether it is the first, and which one is to make
// room for it.
func (p *proxy) join(s *stream) (first bool, surplus *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first = len(p.streams) == 0
	if len(p.streams) >= maxStreams {
		surplus = p.streams[0]
	}
	p.streams = append(p.streams, s)
	if !s.secretsOnly {
		p.renew()
	}
	return first, surplus
}

// part removes a stream and says whether it was the last.
func (p *proxy) part(s *stream) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	speaker := p.speaker()
	p.streams = slices.DeleteFunc(p.streams, func(o *stream) bool { return o == s })
	if s == speaker {
		p.renew()
		if next := p.speaker(); next != nil {
			next.wakeAllLocked()
		}
	}
	return len(p.streams) == 0
}

// renew forgets what a former stream has shown. p.mu is held.
func (p *proxy) renew() {
	p.sent, p.acked, p.ackedAt, p.nacks = progress{}, progress{}, time.Time{}, nil
	p.enforced, p.differs = progress{}, nil
	p.seen++
	p.mark()
}

// speaker returns the stream whose word counts for Status: the newest of ADS.
// p.mu is held.
func (p *proxy) speaker() *stream {
	for _, s := range slices.Backward(p.streams) {
		if !s.secretsOnly {
			return s
		}
	}
	return nil
}

// report takes the word of a stream on how far it is with a view. It says
// whether Status changed.
func (p *proxy) report(s *stream, v *view, sent, acked bool, nacks []Nack, newest uint64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.speaker() != s {
		return false
	}
	changed := !slices.Equal(p.nacks, nacks)
	p.nacks = nacks
	if p.view != v {
		return changed // a token for the newer view is on its way
	}
	if sent != p.sent.current {
		changed = true
		if sent {
			p.sent.start(now)
		} else {
			p.sent.stop(newest)
		}
	}
	if acked != p.acked.current {
		changed = true
		if acked {
			p.acked.start(now)
			p.ackedAt = now
			p.seen++
		} else {
			p.acked.stop(newest)
			p.enforced.stop(newest)
		}
	}
	return changed
}

// status says how far the proxy is; false if it has no ADS stream.
func (p *proxy) status(newest uint64) (ProxyStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.speaker()
	if s == nil {
		return ProxyStatus{}, false
	}
	return ProxyStatus{
		Instance:      p.instance,
		Since:         s.since,
		SentRevision:  p.sent.at(newest),
		AckedRevision: p.acked.at(newest),
		AckedAt:       p.ackedAt,
		Nacks:         slices.Clone(p.nacks),
		Sent:          p.sent.told(),
		Acked:         p.acked.told(),
		Enforced:      p.enforced.told(),
		Agent:         p.agent,
		Differs:       p.differs,
		newest:        newest,
	}, true
}

// current returns what it is to hold.
func (p *proxy) current() *view {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view
}

// target returns what it is to hold; nil: not known.
func (p *proxy) target() *xds.Resources {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view.target
}

func (p *proxy) connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.streams) > 0
}

// end closes the streams of this moment.
func (p *proxy) end(reason error) {
	p.mu.Lock()
	streams := slices.Clone(p.streams)
	p.mu.Unlock()
	for _, s := range streams {
		s.end(reason)
	}
}

// equalByName compares by version, which stands for the bytes. What has not changed is
// mostly the same map, and then it is not looked at.
func equalByName(a, b map[string]*xds.Resource) bool {
	if len(a) != len(b) {
		return false
	}
	if sameMap(a, b) {
		return true
	}
	for name, r := range a {
		if o := b[name]; o != r && (o == nil || o.Version != r.Version) {
			return false
		}
	}
	return true
}

// movedTypes are the types of which two targets are not equal. With its clusters, a
// proxy's endpoints are others.
func movedTypes(a, b xds.Resources) (moved []string) {
	for _, typeURL := range inOrder {
		if typeURL == xds.EndpointType {
			if slices.Contains(moved, xds.ClusterType) {
				moved = append(moved, typeURL)
			}
		} else if !equalByName(a[typeURL], b[typeURL]) {
			moved = append(moved, typeURL)
		}
	}
	return moved
}

func compareNacks(a, b Nack) int {
	return cmp.Or(cmp.Compare(a.TypeURL, b.TypeURL), cmp.Compare(a.Resource, b.Resource))
}
