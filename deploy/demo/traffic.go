package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// pace is the time between two requests, or two round trips, of one caller.
const pace = 20 * time.Millisecond

// traffic are requests that go on beside the steps. All of them are granted
// throughout, so every other answer is a dropped one.
type traffic struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu            sync.Mutex // guards what follows until stop has returned
	sent, dropped int
	slowest       time.Duration
	first, id     string // what was dropped first
}

func (d *demo) startTraffic(ctx context.Context) *traffic {
	t := &traffic{}
	ctx, t.cancel = context.WithCancel(ctx)
	for _, c := range []call{
		d.http("shop/web", "GET", "orders.shop", "/orders/7", "200", ""),
		d.http("shop/orders", "POST", "payments.bank", "/payments", "200", ""),
		d.grpc("shop/web", "Check", "OK", ""),
		d.tcp("bank/payments", "echoed", ""),
	} {
		t.wg.Go(func() { t.repeat(ctx, c) })
	}
	return t
}

func (t *traffic) repeat(ctx context.Context, c call) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		began := time.Now()
		a := c.send(ctx)
		if ctx.Err() != nil {
			return // it may have been cut short by the end
		}
		t.count(c, a, time.Since(began))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (t *traffic) count(c call, a answer, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent++
	t.slowest = max(t.slowest, took)
	if a.status != c.status {
		if t.dropped++; t.first == "" {
			t.first, t.id = fmt.Sprintf("%s | %s | %s %s", c.caller, c.what, a.status, a.reason), a.id
		}
	}
}

func (t *traffic) stop() {
	t.cancel()
	t.wg.Wait()
}

// link is an open connection on which the application says something, and hears it
// back, all the time.
type link struct {
	caller, what string
	mustEnd      bool // what is expected of it
	close        func()

	trips atomic.Int64
	ended chan struct{} // closed when a round trip has failed
	at    time.Time     // of that; set before ended is closed
}

// newLink makes one round trip, and then goes on in the background.
func newLink(rw io.ReadWriter, closer func()) (*link, error) {
	l := &link{ended: make(chan struct{})}
	if err := roundTrip(rw); err != nil {
		closer()
		return nil, err
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if err := roundTrip(rw); err != nil {
				l.at = time.Now()
				close(l.ended)
				return
			}
			l.trips.Add(1)
		}
	}()
	l.close = func() { close(stop); closer(); <-done }
	return l, nil
}

// openTCP opens a connection to the ledger.
func (d *demo) openTCP(ctx context.Context, caller string) (*link, error) {
	conn, err := dial(ctx, d.proxy(caller).out(ledgerPort))
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return newLink(conn, func() { conn.Close() })
}

// duplex is a request body and the body that answers it.
type duplex struct {
	io.Writer
	io.Reader
}

// openHTTP opens a request to payments that goes on in both directions.
func (d *demo) openHTTP(ctx context.Context, caller string) (*link, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, w := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.proxy(caller).out(xds.EgressPort)+"/payments/echo", body)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Host = "payments.bank.mesh"
	// By HTTP/2 the end of a stream is told at once. Envoy's HTTP/1.1 leaves the
	// client a second to close the connection before it does so itself.
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, Protocols: h2c}}).Do(req)
	if err != nil {
		cancel()
		return nil, err
	}
	end := func() { cancel(); w.Close(); resp.Body.Close() }
	if resp.StatusCode != http.StatusOK {
		end()
		return nil, fmt.Errorf("answered %s", resp.Status)
	}
	return newLink(duplex{w, bufio.NewReader(resp.Body)}, end)
}

// cutLimit is how long an open connection may outlive its grant here.
const cutLimit = 5 * time.Second

// watchLinks waits until those links that must end have ended, and shows that the
// others go on.
func (d *demo) watchLinks(ctx context.Context, links []*link, committed time.Time) error {
	limit, cancel := context.WithTimeout(ctx, cutLimit)
	defer cancel()
	for _, l := range links {
		if l.mustEnd {
			select {
			case <-l.ended:
			case <-limit.Done():
			}
		}
	}
	before := make([]int64, len(links))
	for i, l := range links {
		before[i] = l.trips.Load()
	}
	select {
	case <-time.After(25 * pace): // the others have this long to go on, or to be cut as well
	case <-ctx.Done():
		return ctx.Err()
	}
	lines := make([]line, len(links))
	for i, l := range links {
		want, got := "stays", "silent"
		if l.mustEnd {
			want = "cut"
		}
		after, told := "", strconv.FormatInt(l.trips.Load(), 10)
		select {
		case <-l.ended:
			got = "cut"
			after = fmt.Sprintf("%d ms after the commit", l.at.Sub(committed).Milliseconds())
			d.cut = max(d.cut, l.at.Sub(committed))
		default:
			if l.trips.Load() > before[i] {
				got, after = "stays", "went on throughout"
			}
		}
		lines[i] = line{cells: []string{l.caller, l.what, told, got, want, after}, ok: got == want}
	}
	d.record("CALLER,OPEN CONNECTION,ROUND TRIPS,STATE,EXPECTED,WHEN", lines)
	return nil
}
