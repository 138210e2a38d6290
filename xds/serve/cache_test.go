package serve

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/ztmesh/ztmesh/xds"
)

// bench is a stream without a transport: a test takes what it says, when it likes.
type bench struct {
	*stream
	random *rand.Rand
	sent   []*discoveryv3.DeltaDiscoveryResponse // neither ACKed nor NACKed
}

// act does one thing at random that a setter or a client may do.
func (b *bench) act(revision uint64) string {
	f, version := b.fleet, func() string { return fmt.Sprint(b.random.IntN(3)) }
	some := func(names ...string) (out []string) {
		return slices.DeleteFunc(slices.Clone(names), func(string) bool { return b.random.IntN(2) == 0 })
	}
	switch b.random.IntN(9) {
	case 0, 1:
		var lines []string
		for _, name := range some("cluster a", "cluster b", "listener a", "listener b", "route a", "extension a", "extension b", "extension c") {
			lines = append(lines, name+"@"+version())
		}
		f.Set(revision, map[string]*xds.Resources{b.instance: target(lines...)})
		return fmt.Sprint("set ", lines)
	case 2:
		cluster := some("a", "b")
		for _, c := range cluster {
			f.SetEndpoints(map[string]*xds.Assignment{c: xds.Everywhere(res(xds.EndpointType, c, version()))})
		}
		return fmt.Sprint("endpoints of ", cluster)
	case 3:
		f.SetGates(b.instance, res(xds.RuntimeType, xds.GatesName, version()))
		f.SetSecrets(b.instance, []*xds.Resource{res(xds.SecretType, xds.SVIDSecret, version())})
		return "gates and secrets"
	case 4, 5:
		typeURL := inOrder[b.random.IntN(len(inOrder))]
		names := []string{"a", "b", "c", "*"}
		switch typeURL {
		case xds.RuntimeType:
			names = []string{xds.GatesName}
		case xds.SecretType:
			names = []string{xds.SVIDSecret}
		}
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: some(names...), ResourceNamesUnsubscribe: some(names[:1]...)}
		if b.watches[indexOf(typeURL)] == nil && b.random.IntN(2) == 0 {
			r.InitialResourceVersions = map[string]string{"a": version()}
		}
		if err := b.heed(r); err != nil {
			panic(err)
		}
		return fmt.Sprint("request ", r)
	case 6:
		if len(b.sent) == 0 {
			return ""
		}
		i := b.random.IntN(len(b.sent))
		m := b.sent[i]
		b.sent = slices.Delete(b.sent, i, i+1)
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce}
		if b.random.IntN(4) == 0 {
			r.ErrorDetail = &rpcstatus.Status{Message: "no"}
		}
		if err := b.heed(r); err != nil {
			panic(err)
		}
		return fmt.Sprint("answer ", r)
	}
	if b.random.IntN(4) == 0 {
		b.retry(time.Now().Add(24 * time.Hour))
		return "retry"
	}
	m := b.respond()
	if m == nil {
		return ""
	}
	b.sent = append(b.sent, m)
	return fmt.Sprint("respond ", m.TypeUrl)
}

// What is remembered of what was found is what would be found now, and nothing waits
// for a token that does not come: whatever is done, in any order.
func TestNothingIsForgotten(t *testing.T) {
	for seed := range uint64(400) {
		f := New(Config{Retain: true, Retry: Retry{First: time.Hour, Most: time.Hour}}) // act retries
		f.senders.limit = 0
		b := &bench{stream: &stream{
			fleet: f, instance: "web-1", ctx: t.Context(), end: func(error) {}, answered: func() {},
		}, random: rand.New(rand.NewPCG(seed, seed))}
		if err := b.join(); err != nil {
			t.Fatal(err)
		}
		var done []string
		for revision := range uint64(60) {
			if what := b.act(revision + 1); what != "" {
				done = append(done, what)
			}
			v := b.proxy.current()
			sent, acked := b.holds(v)
			for _, w := range b.watches {
				if w != nil {
					w.stand = standing{}
				}
			}
			if s, a := b.holds(v); s != sent || a != acked {
				t.Fatalf("seed %d: sent %t and acked %t were remembered, and it is %t and %t; after %q", seed, sent, acked, s, a, done)
			}
			if len(b.tokens) > 0 || (b.watches == [len(inOrder)]*watch{}) { // who has asked for nothing says nothing
				continue
			}
			if got, _ := b.proxy.status(f.Revision()); got.Acked.Current != acked || got.Sent.Current != sent {
				t.Fatalf("seed %d: status says sent %t and acked %t, and it is %t and %t; after %q", seed, got.Sent.Current, got.Acked.Current, sent, acked, done)
			}
			for _, w := range b.watches {
				if w == nil || len(w.outstanding) > 0 { // an ACK is a token, too
					continue
				}
				said := w.said
				w.said = 0
				if r := w.next(v); r != nil {
					t.Fatalf("seed %d: nobody says %v, %v of %s; after %q", seed, maps.Collect(w.known.each()), r, typeLabel(w.typeURL), done)
				}
				w.said = said
			}
		}
	}
}
