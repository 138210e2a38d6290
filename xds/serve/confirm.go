package serve

import (
	"slices"

	"github.com/ztmesh/ztmesh/xds"
)

// Reading is what an agent has read of its Envoy's admin interface: what is live, and
// not what the Envoy was sent.
type Reading struct {
	Digests map[string]string            // of listeners and clusters, by xds.Digest
	Live    map[string]map[string]string // routes, extensions and runtime layers: type URL → name → version
	Warming []string                     // what is not live yet, by name
}

// maxDiffers bounds what is kept of a reading, and how long a name in it is.
const (
	maxDiffers     = 20
	maxDiffersName = 256 // bytes
)

// AgentSpeaks notes whether an agent speaks for an instance. It has no effect on one
// without a stream.
func (f *Fleet) AgentSpeaks(instance string, speaks bool) {
	if p := f.known(instance); p != nil {
		p.mu.Lock()
		changed := p.agent != speaks
		p.agent = speaks
		p.mu.Unlock()
		if changed {
			p.mark()
			f.notify()
		}
	}
}

// Unconfirmed tells whether an instance has ACKed all that it should hold and no agent
// has confirmed that yet, and which ACK that was.
func (f *Fleet) Unconfirmed(instance string) (seen uint64, ok bool) {
	p := f.known(instance)
	if p == nil {
		return 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen, p.acked.current && !p.enforced.current
}

// Confirm takes what an agent has read after an ACK that Unconfirmed has told of. The
// instance enforces what it has ACKed if that is what it works by. A reading after
// another ACK says nothing. It returns whether it enforces now.
func (f *Fleet) Confirm(instance string, seen uint64, r Reading) bool {
	p := f.known(instance)
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen != seen || !p.acked.current {
		return false
	}
	if p.enforced.current {
		return true
	}
	differs := p.view.differs(r)
	if len(differs) == 0 {
		p.enforced.start(f.cfg.Now())
	}
	if len(differs) == 0 || !slices.Equal(differs, p.differs) {
		p.differs = differs
		p.mark()
		f.notify()
	}
	return p.enforced.current
}

// differs is what a reading shows otherwise than a view says: what is warming, and
// the types of which it is not all.
func (v *view) differs(r Reading) (out []string) {
	for _, name := range r.Warming[:min(len(r.Warming), maxDiffers)] {
		out = append(out, sanitise(name[:min(len(name), maxDiffersName)]))
	}
	if v.target == nil {
		return append(out, "everything")
	}
	// Of these the Envoy shows what takes connections and requests, and no more.
	for _, typeURL := range []string{xds.ListenerType, xds.ClusterType} {
		want := make(map[string]string, len((*v.target)[typeURL]))
		for name, res := range (*v.target)[typeURL] {
			want[name] = res.Version
		}
		if r.Digests[typeURL] != xds.Digest(want) {
			out = append(out, typeLabel(typeURL)+"s")
		}
	}
	// Of these it shows, beside what it is told, what listeners that drain still use.
	for typeURL, want := range map[string]map[string]*xds.Resource{
		xds.RouteType: (*v.target)[xds.RouteType], xds.ExtensionType: (*v.target)[xds.ExtensionType], xds.RuntimeType: v.gates,
	} {
		for name, res := range want {
			if r.Live[typeURL][name] != res.Version {
				out = append(out, typeLabel(typeURL)+"s")
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

// known is the proxy of an instance that has or had a stream here; nil: none.
func (f *Fleet) known(instance string) *proxy {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.proxies[instance]
}
