package serve

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/xds"
)

// peevish is a proxy that holds listeners and refuses some of their versions. It answers
// at once, by the clock of its bubble.
type peevish struct {
	*pipe
	fleet *Fleet
	done  chan struct{} // closed at the end

	mu    sync.Mutex  // guards the following
	bad   []string    // what it refuses now: name@version
	said  []string    // what it was told, as adsclient.Says writes it
	times []time.Time // and when
}

// newPeevish connects it. It must be called in a bubble.
func newPeevish(t *testing.T, bad ...string) *peevish {
	t.Helper()
	f := New(Config{Authorize: func(context.Context) (string, error) { return "web-1", nil }, Retain: true})
	f.SetEndpoints(nil)
	p := &peevish{fleet: f, bad: bad, done: make(chan struct{}), pipe: &pipe{
		ctx: t.Context(), requests: make(chan *discoveryv3.DeltaDiscoveryRequest),
		writes: make(chan *discoveryv3.DeltaDiscoveryResponse), read: make(chan struct{}, 1),
	}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.serve(p, "")
	}()
	p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ListenerType, Node: &corev3.Node{Id: "web-1"}}
	go func() {
		for {
			select {
			case m := <-p.writes:
				p.answer(m)
			case <-p.done:
				return
			}
		}
	}()
	t.Cleanup(func() {
		f.Close()
		<-ended
		close(p.done)
	})
	return p
}

func (p *peevish) answer(m *discoveryv3.DeltaDiscoveryResponse) {
	p.read <- struct{}{}
	p.mu.Lock()
	p.said, p.times = append(p.said, adsclient.Says(m)), append(p.times, time.Now())
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce}
	for _, res := range m.GetResources() {
		if slices.Contains(p.bad, res.Name+"@"+res.Version) {
			r.ErrorDetail = &rpcstatus.Status{Message: "address already in use"}
		}
	}
	p.mu.Unlock()
	select {
	case p.requests <- r:
	case <-p.done:
	}
}

// told returns what it was told since the last call, when d has passed.
func (p *peevish) told(d time.Duration) (said []string, times []time.Time) {
	time.Sleep(d)
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	said, times, p.said, p.times = p.said, p.times, nil, nil
	return said, times
}

func (p *peevish) set(revision uint64, lines ...string) {
	p.fleet.Set(revision, map[string]*xds.Resources{"web-1": target(lines...)})
}

// What is refused is sent again, by itself and ever more rarely, and never counts as
// ACKed; when it is taken, that is the end of it.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeevish(t, "a@1", "b@1")
		p.set(1, "listener a@1", "listener b@1", "listener c@1")
		began := time.Now()
		said, _ := p.told(0)
		if want := []string{"+a@1 +b@1 +c@1", "+a@1", "+b@1", "+c@1"}; !slices.Equal(said, want) {
			t.Fatalf("told %q, want each by itself: %q", said, want)
		}
		said, times := p.told(10 * time.Minute)
		var a []time.Duration // between one time that a was sent and the next
		last := began
		for i, what := range said {
			switch what {
			case "+a@1":
				a, last = append(a, times[i].Sub(last)), times[i]
			case "+b@1":
			default:
				t.Fatalf("told %q", what)
			}
		}
		for i, d := range a {
			if most := min(time.Second<<i, time.Minute); d > most || d < most*3/4 {
				t.Errorf("the %d. time after %v, want at most %v and a little less", i+1, d, most)
			}
		}
		if len(a) < 14 || len(a) > 18 {
			t.Errorf("sent %d times in ten minutes", len(a))
		}
		got := p.fleet.Status()[0]
		if got.AckedRevision != 0 || got.SentRevision != 1 || len(got.Nacks) != 2 || !got.Nacks[0].When.Equal(began) {
			t.Errorf("while it is refused: %+v", got)
		}

		p.set(2, "listener a@2", "listener b@1", "listener c@1")
		if said, _ := p.told(0); !slices.Equal(said, []string{"+a@2"}) {
			t.Errorf("a newer version: told %q", said)
		}
		p.mu.Lock()
		p.bad = nil
		p.mu.Unlock()
		if said, _ := p.told(time.Minute); !slices.Equal(said, []string{"+b@1"}) {
			t.Errorf("what made it refuse has passed: told %q", said)
		}
		if got := p.fleet.Status()[0]; got.AckedRevision != 2 || len(got.Nacks) != 0 {
			t.Errorf("when it has taken all: %+v", got)
		}
		if said, _ := p.told(24 * time.Hour); len(said) != 0 {
			t.Errorf("told %q when nothing is refused", said)
		}
	})
}

// A version that was refused and is no longer set is not sent; one that is refused after
// another one begins anew.
func TestRetryOfTheNewestOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeevish(t, "a@1", "a@2")
		p.set(1, "listener a@1", "listener c@1")
		p.told(5 * time.Minute)
		p.set(2, "listener a@2", "listener c@1")
		said, _ := p.told(2 * time.Second) // refused at 0 s and 1 s
		if !slices.Equal(said, []string{"+a@2", "+a@2"}) {
			t.Errorf("told %q", said)
		}
		p.set(3, "listener c@1")
		if said, _ := p.told(time.Hour); !slices.Equal(said, []string{"-a"}) {
			t.Errorf("told %q of what is no more", said)
		}
		if got := p.fleet.Status()[0]; got.AckedRevision != 3 || len(got.Nacks) != 0 {
			t.Errorf("%+v", got)
		}
	})
}
