package serve

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ztmesh/ztmesh/xds"
)

// What streams share changes nothing that can be asked for: entries and names are what plain
// maps are, after anything that is done to them; and what is at rest is held by nobody alone.
func TestSharedIsAsOwn(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 0))
		var maybe [3]map[string]*xds.Resource // what they may settle at
		for i := range maybe {
			maybe[i] = map[string]*xds.Resource{}
			for _, name := range []string{"a", "b", "c"} {
				if random.IntN(3) > 0 {
					maybe[i][name] = res(xds.ListenerType, name, fmt.Sprint(random.IntN(2)))
				}
			}
		}
		before := make([]map[string]*xds.Resource, len(maybe))
		for i := range maybe {
			before[i] = maps.Clone(maybe[i])
		}
		var entries entries
		var asked names
		wantEntries, wantNames := map[string]entry{}, map[string]struct{}{}
		for range 60 {
			name := string(rune('a' + random.IntN(4)))
			switch at := maybe[random.IntN(len(maybe))]; random.IntN(7) {
			case 0:
				e := entry{sent: fmt.Sprint(random.IntN(2)), acked: fmt.Sprint(random.IntN(2)), had: true, alone: random.IntN(8) == 0}
				*entries.own(name), wantEntries[name] = e, e
			case 1:
				entries.forget(name)
				delete(wantEntries, name)
			case 2: // as after a change that was ACKed
				for name, r := range at {
					e := entry{sent: r.Version, acked: r.Version, had: true}
					*entries.own(name), wantEntries[name] = e, e
					asked.add(name)
					wantNames[name] = struct{}{}
				}
				for name := range maps.Clone(wantEntries) {
					if at[name] == nil && random.IntN(2) == 0 {
						entries.forget(name)
						delete(wantEntries, name)
						asked.remove(name)
						delete(wantNames, name)
					}
				}
			case 3:
				asked.add(name)
				wantNames[name] = struct{}{}
			case 4:
				asked.remove(name)
				delete(wantNames, name)
			default:
				entries.settle(at)
				asked.settle(at)
			}
			if diff := cmp.Diff(wantEntries, maps.Collect(entries.each()), cmp.AllowUnexported(entry{})); diff != "" {
				t.Fatalf("seed %d: entries (-want +got):\n%s", seed, diff)
			}
			got := map[string]struct{}{}
			for name := range asked.each() {
				got[name] = struct{}{}
			}
			if diff := cmp.Diff(wantNames, got); diff != "" || asked.len() != len(wantNames) {
				t.Fatalf("seed %d: %d names (-want +got):\n%s", seed, asked.len(), diff)
			}
			for _, name := range []string{"a", "b", "c", "d"} {
				e, known := entries.get(name)
				want, is := wantEntries[name]
				if _, wanted := wantNames[name]; e != want || known != is || entries.has(name) != is || asked.has(name) != wanted {
					t.Fatalf("seed %d: %s is %v %t, asked for %t; want %v %t", seed, name, e, known, asked.has(name), want, is)
				}
			}
		}
		for i := range maybe {
			if !maps.Equal(maybe[i], before[i]) {
				t.Fatalf("seed %d: what is shared was written", seed)
			}
		}
	}
}

// TestAtRestNothingIsNoted: a stream that has ACKed all that its proxy is told notes nothing
// of it by name, and is told what changes, and only that.
func TestAtRestNothingIsNoted(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	noted := func() (of []string) {
		p := s.known("web-1")
		p.mu.Lock()
		stream := p.streams[0]
		p.mu.Unlock()
		stream.mu.Lock()
		defer stream.mu.Unlock()
		for _, w := range stream.watches {
			if w != nil && w.typeURL != xds.EndpointType && len(w.known.moved)+len(w.subscribed.own)+len(w.outstanding) > 0 {
				of = append(of, typeLabel(w.typeURL))
			}
		}
		return of
	}
	if of := noted(); len(of) > 0 {
		t.Errorf("at rest, there are notes of %v", of)
	}
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension policy/http@2")})
	c.accept(xds.ExtensionType, "+policy/http@2")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision >= 2 })
	if of := noted(); len(of) > 0 {
		t.Errorf("at rest again, there are notes of %v", of)
	}
	c.unsubscribe(xds.ExtensionType, "gate/http")
	c.subscribe(xds.ExtensionType, "gate/http") // it has dropped it
	c.accept(xds.ExtensionType, "+gate/http@1")
	c.silent()
}
