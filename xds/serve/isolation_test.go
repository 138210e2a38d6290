package serve

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// interleavings is how many random orders of subscriptions are tried.
const interleavings = 2000

// No order of subscriptions, ACKs, NACKs, reconnects and rotations delivers a
// secret to another than its owner. Every secret's name and bytes name the
// owner; each instance asks for everybody's.
func TestForeignSecretsAreNeverDelivered(t *testing.T) {
	s := newServer(t)
	owners := []string{"web-1", "web-2", "web-3"}
	var pool []string
	for _, o := range owners {
		pool = append(pool, o+"/svid", o+"/bundle")
	}
	pool = append(pool, "zt/shared", "*", "nobody/svid")
	rotate := func(owner string, generation int) {
		var all []*xds.Resource
		for _, name := range []string{owner + "/svid", owner + "/bundle", "zt/shared"} {
			all = append(all, res(xds.SecretType, name, fmt.Sprintf("%s.%d", owner, generation)))
		}
		s.SetSecrets(owner, all)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	delivered := 0
	for round := range interleavings / 20 {
		p := &prober{t: t, s: s, owner: owners[round%len(owners)], random: random, pool: pool}
		p.conn = s.connect(p.owner)
		for step := range 20 { // each continues from the state that the last left
			p.interleave(func() { rotate(p.owner, round*100+step) })
		}
		delivered += p.delivered
		p.conn.Close()
	}
	if delivered < interleavings/4 {
		t.Errorf("only %d secrets delivered: the test shows little", delivered)
	}
	if n := s.count("zt_serve_foreign_names_total", "secret"); n < interleavings/4 {
		t.Errorf("only %v foreign names counted: the test shows little", n)
	}
}

// prober is one instance that asks for whatever it can think of.
type prober struct {
	t         *testing.T
	s         *server
	owner     string
	random    *rand.Rand
	pool      []string
	conn      *client
	delivered int
}

// interleave does a few random requests with a rotation in between, and then
// reads all that is answered.
func (p *prober) interleave(rotate func()) {
	p.t.Helper()
	for i := range 4 {
		switch p.random.IntN(4) {
		case 0, 1:
			p.conn.subscribe(xds.SecretType, p.some()...)
		case 2:
			p.conn.unsubscribe(xds.SecretType, p.some()...)
		case 3:
			p.conn.must(p.conn.Send(&discoveryv3.DeltaDiscoveryRequest{
				TypeUrl: xds.SecretType, ResponseNonce: fmt.Sprint(p.random.IntN(10)),
				ResourceNamesSubscribe: p.some(), InitialResourceVersions: map[string]string{p.some()[0]: "x"},
			}))
		}
		if i == 2 {
			p.s.await(p.owner)
			rotate()
		}
	}
	fence := fmt.Sprint("fence-", p.random.Uint64())
	p.conn.subscribe(xds.SecretType, fence)
	for {
		m, err := p.conn.Recv()
		p.conn.must(err)
		for _, r := range m.GetResources() {
			p.delivered++
			if !strings.HasPrefix(r.GetVersion(), p.owner+".") || !strings.Contains(string(r.GetResource().GetValue()), p.owner) {
				p.t.Fatalf("%s received %s@%s", p.owner, r.GetName(), r.GetVersion())
			}
		}
		if p.random.IntN(4) == 0 {
			p.conn.must(p.conn.Nack(m, "no"))
		} else {
			p.conn.must(p.conn.Ack(m))
		}
		if slices.Contains(m.GetRemovedResources(), fence) {
			return
		}
	}
}

func (p *prober) some() []string {
	names := make([]string, 1+p.random.IntN(3))
	for i := range names {
		names[i] = p.pool[p.random.IntN(len(p.pool))]
	}
	return names
}
