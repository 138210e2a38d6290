package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// port is a listener whose handshakes run in lanes.
type port struct {
	*lanes
	t       *testing.T
	address string
	metrics *prometheus.Registry
}

// idle says whether all turns of a lane are there.
func (l *lane) idle(turns int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.free == turns
}

func newPort(t *testing.T) *port {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	metrics := prometheus.NewRegistry()
	p := &port{t: t, address: l.Addr().String(), metrics: metrics, lanes: newLanes(&tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}, metrics)}
	p.patience = 20 * time.Second // however busy the machine is
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer raw.Close()
				if err := raw.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Error(err)
				}
				c, _, err := p.ServerHandshake(raw)
				if err == nil {
					_, _ = io.Copy(c, c)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
		if !p.all.idle(runtime.GOMAXPROCS(0)) || !p.begun.idle(runtime.GOMAXPROCS(0)) || !p.renewals.idle(1) {
			t.Error("a turn was not given back")
		}
	})
	return p
}

// dial says hello to the port and hears itself.
func (p *port) dial(name string) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", p.address, &tls.Config{
		InsecureSkipVerify: true, ServerName: name, NextProtos: []string{"h2"},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// TestLanes: many handshakes at once all come through, and leave nothing behind.
func TestLanes(t *testing.T) {
	p := newPort(t)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if err := p.dial("any"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestSilentPeersTakeNoTurn: however many stop in the middle of their handshake.
func TestSilentPeersTakeNoTurn(t *testing.T) {
	p := newPort(t)
	for range 50 {
		raw, err := net.Dial("tcp", p.address)
		check(t, err)
		t.Cleanup(func() { raw.Close() })
		// Says hello, and then reads no further than the first byte of the answer.
		go func() {
			_ = tls.Client(&deaf{Conn: raw}, &tls.Config{InsecureSkipVerify: true, ServerName: "any", NextProtos: []string{"h2"}}).Handshake()
		}()
	}
	check(t, p.dial("any"))
}

// deaf writes and does not read.
type deaf struct{ net.Conn }

func (deaf) Read([]byte) (int, error) { return 0, errors.New("deaf") }

// taken holds all turns of newcomers until the function that it returns is called.
func (p *port) taken() (release func()) {
	p.t.Helper()
	for range runtime.GOMAXPROCS(0) {
		check(p.t, p.all.take(time.Second))
	}
	return func() {
		for range runtime.GOMAXPROCS(0) {
			p.all.give(false)
		}
	}
}

// waiting returns when so many handshakes wait for their turn.
func (p *port) waiting(n int) {
	p.t.Helper()
	for {
		p.all.mu.Lock()
		got := len(p.all.queue)
		p.all.mu.Unlock()
		if got == n {
			return
		}
		select {
		case <-p.t.Context().Done():
			p.t.Fatal("the test has ended")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestRenewalsHaveTheirLane: while the processors are taken, other handshakes wait for
// a while and are closed; a renewal goes by.
func TestRenewalsHaveTheirLane(t *testing.T) {
	p := newPort(t)
	p.patience = time.Second
	release := p.taken()
	refused := make(chan error, 1)
	go func() { refused <- p.dial("any") }()
	check(t, p.dial(identity.RenewalServerName))
	if err := <-refused; err == nil {
		t.Error("a handshake without a turn came through")
	}
	release()
	check(t, p.dial("any"))
}

// TestPatienceByName: where a turn comes later than others would wait for it, they are
// closed at once, and an Envoy that says by its server name that it waits is let wait.
func TestPatienceByName(t *testing.T) {
	p := newPort(t)
	p.patience = otherWait
	release := p.taken()
	p.all.pace = (otherWait + proxyWait) / 2
	came := make(chan error, 1)
	go func() { came <- p.dial(xds.ServerName) }()
	p.waiting(1)
	if err := p.dial("any"); err == nil {
		t.Error("a handshake came through before its turn")
	}
	release()
	check(t, <-came)
}

// TestGone: nothing is computed for a client that gave up while it waited.
func TestGone(t *testing.T) {
	p := newPort(t)
	release := p.taken()
	raw, err := net.Dial("tcp", p.address)
	check(t, err)
	given := make(chan error, 1)
	go func() {
		given <- tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: "any", NextProtos: []string{"h2"}}).Handshake()
	}()
	p.waiting(1)
	raw.Close()
	<-given
	release()
	p.waiting(0)
	check(t, p.dial("any")) // it waits behind the other
	all, err := p.metrics.Gather()
	check(t, err)
	for _, f := range all {
		if n := f.GetMetric()[0].GetCounter().GetValue(); f.GetName() == "zt_controlplane_gone_handshakes_total" && n != 1 {
			t.Errorf("%v are gone, want 1", n)
		}
	}
}

// TestLaneBound: of who comes at once, as many wait as will be served in time, and the
// others hear so at once. They are served in order.
func TestLaneBound(t *testing.T) {
	const each = 10 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		l := newLane(2, func(int) {})
		var mu sync.Mutex // guards order
		var order []int   // two get their turns at once, in any order
		ordered := func() bool {
			for i, n := range order {
				if max(n-i, i-n) > 1 {
					return false
				}
			}
			return true
		}
		var refused, late atomic.Int64
		come := func(n int, patience time.Duration) {
			order = nil
			refused.Store(0)
			late.Store(0)
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() {
					began := time.Now()
					if err := l.take(patience); err != nil {
						refused.Add(1)
						if time.Since(began) > 0 {
							late.Add(1)
						}
						return
					}
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					time.Sleep(each)
					l.give(true)
				})
				synctest.Wait() // they come in order
			}
			all.Wait()
		}
		come(400, time.Minute)
		if len(order) != 400 || !ordered() {
			t.Fatalf("served %v", order)
		}
		// Two turns of 10 ms each: 200 a second.
		come(500, 999*time.Millisecond)
		if n := len(order); n < 180 || n > 202 || late.Load() > 10 || !ordered() {
			t.Errorf("served %d of 500, %d of the others waited in vain", n, late.Load())
		}
		// Who waits for longer than was foreseen leaves, and takes no turn with it.
		check(t, l.take(0))
		check(t, l.take(0))
		if err := l.take(0); !errors.Is(err, errCrowdedLane) {
			t.Errorf("without patience: %v", err)
		}
		if err := l.take(50 * time.Millisecond); !errors.Is(err, errCrowdedLane) {
			t.Errorf("no turn was given back, and one was had: %v", err)
		}
		l.give(true) // not to the one that has left
		check(t, l.take(0))
		l.give(true)
		l.give(true)
		if !l.idle(2) {
			t.Error("a turn was lost")
		}
	})
}

// TestLaneAfterStandstill: a lane that stood still for long, as when the process was
// stopped, finds out that it is as fast as before, and lets them wait again.
func TestLaneAfterStandstill(t *testing.T) {
	const each, every, patience = 10 * time.Millisecond, 4 * time.Millisecond, time.Second
	synctest.Test(t, func(t *testing.T) {
		l := newLane(2, func(int) {})
		check(t, l.take(0))
		check(t, l.take(0))
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if err := l.take(time.Hour); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		l.give(true) // to one who has waited, with another behind
		time.Sleep(10 * time.Minute)
		l.give(true)
		all.Wait()
		l.give(true)
		l.give(true)
		if l.pace < patience {
			t.Fatalf("a turn is thought to take %v", l.pace)
		}
		var served atomic.Int64 // of the last second, in which 200 can be
		const n = 1500
		for i := range n {
			all.Go(func() {
				if l.take(patience) != nil {
					return
				}
				time.Sleep(each)
				l.give(true)
				if i >= n-250 {
					served.Add(1)
				}
			})
			time.Sleep(every)
		}
		all.Wait()
		if served.Load() < 180 || l.pace > each {
			t.Errorf("served %d of 250 that came in a second, with %v for a turn", served.Load(), l.pace)
		}
	})
}
