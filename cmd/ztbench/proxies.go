package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// fleetFile is what the processes of proxies read: who they are. Mode 0600; it lives
// as long as the run.
type fleetFile struct {
	TrustDomain string   `json:"trustDomain"`
	Roots       string   `json:"roots"` // PEM
	Instances   []member `json:"instances"`
}

// member is one enrolled instance.
type member struct {
	ID       string `json:"id"`
	Workload string `json:"workload"`
	Address  string `json:"address"`
	Pair     string `json:"pair,omitempty"` // key and chain, PEM
}

func readFleet(path string) (file fleetFile, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return file, err
	}
	return file, json.Unmarshal(b, &file)
}

func proxiesCommand(in io.Reader, out io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "proxies", Short: "Simulate proxies, by orders on standard input", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := &flock{needs: &needsOf{known: map[string]needs{}}, begin: make(chan struct{}, 2*runtime.GOMAXPROCS(0))}
			defer f.disconnect()
			if err := json.NewEncoder(out).Encode(answer{}); err != nil {
				return err
			}
			return obey(cmd.Context(), in, out, f.do)
		},
	}
}

// flock is the proxies of one process.
type flock struct {
	needs   *needsOf
	proxies []*proxy
	begin   chan struct{} // holds one for each that connects and has not said hello yet

	stop func() // ends the connections and waits; nil: there are none
	mu   sync.Mutex
	err  error // the first that a connection ended with, guarded by mu
}

func (f *flock) do(ctx context.Context, o order) (answer, error) {
	switch o.Do {
	case "connect":
		return f.connect(ctx, o)
	case "disconnect":
		f.disconnect()
		return answer{}, nil
	case "mark":
		for _, p := range f.proxies {
			p.mark()
		}
		return answer{}, nil
	case "await":
		return f.await(ctx, o.IDs)
	case "count":
		return answer{Told: f.told()}, f.failed()
	}
	return answer{}, fmt.Errorf("no such order: %q", o.Do)
}

// connect runs all proxies and returns when each has everything. A flock that was
// connected before comes back with what it held.
func (f *flock) connect(ctx context.Context, o order) (answer, error) {
	file, err := readFleet(o.Fleet)
	if err != nil {
		return answer{}, err
	}
	members := file.Instances[o.From:o.To]
	if f.proxies == nil {
		for _, m := range members {
			f.proxies = append(f.proxies, &proxy{
				id: m.ID, floor: o.Floor, needs: f.needs, held: map[string]map[string]string{}, wanted: map[string]map[string]needs{},
			})
		}
	}
	configs := make([]*tls.Config, len(members))
	if !o.Plain {
		if configs, err = clientTLS(file, members); err != nil {
			return answer{}, err
		}
	}
	var mu sync.Mutex // guards at
	at, left := map[string]time.Time{}, make(chan struct{}, len(members))
	lives, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	f.stop = func() { cancel(); wg.Wait() }
	for i, p := range f.proxies {
		p.mu.Lock()
		p.onDone = func() {
			mu.Lock()
			defer mu.Unlock()
			at[p.id] = time.Now()
			left <- struct{}{}
		}
		p.mu.Unlock()
		wg.Go(func() { f.keep(lives, p, o.Server, configs[i]) })
	}
	for range f.proxies {
		select {
		case <-left:
		case <-ctx.Done():
			mu.Lock()
			defer mu.Unlock()
			return answer{}, errors.Join(fmt.Errorf("%d of %d proxies have everything", len(at), len(f.proxies)), f.failed())
		}
	}
	mu.Lock()
	defer mu.Unlock()
	_ = f.failed() // who had to come again has everything, too, only later
	return answer{At: at}, nil
}

// keep connects again, as Envoy does, with what it holds, until ctx ends.
func (f *flock) keep(ctx context.Context, p *proxy, server string, creds *tls.Config) {
	pause := xds.RetryBase
	for ctx.Err() == nil {
		spoke, err := p.run(ctx, f.begin, server, creds)
		if ctx.Err() != nil {
			return
		}
		f.mu.Lock()
		if f.err == nil {
			f.err = fmt.Errorf("%s: %w", p.id, err)
		}
		f.mu.Unlock()
		if spoke {
			pause = xds.RetryBase
		}
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(pause)):
		}
		pause = min(2*pause, xds.RetryMax)
	}
}

// failed is why a connection ended that should not have, since it was asked last.
func (f *flock) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.err
	f.err = nil
	return err
}

func (f *flock) disconnect() {
	if f.stop != nil {
		f.stop()
		f.stop = nil
	}
}

// quiet is how long nothing must come for what is counted to be all.
const quiet = 200 * time.Millisecond

// await returns when each of the instances that are here was told something since
// the last mark, and then nothing more for a while.
func (f *flock) await(ctx context.Context, ids []string) (answer, error) {
	awaited := map[string]bool{}
	for _, id := range ids {
		awaited[id] = true
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		waiting, last := 0, time.Time{} // of those that are awaited, and of all
		for _, p := range f.proxies {
			c := p.counters()
			if c.Last.After(last) {
				last = c.Last
			}
			if c.Responses == 0 && awaited[p.id] {
				waiting++
			}
		}
		if waiting == 0 && time.Since(last) > quiet {
			return answer{Told: f.told()}, f.failed()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return answer{}, errors.Join(fmt.Errorf("%d of %d proxies were told nothing", waiting, len(ids)), f.failed())
		}
	}
}

// told is what each proxy was told since the last mark; those without are left out.
func (f *flock) told() map[string]counters {
	out := map[string]counters{}
	for _, p := range f.proxies {
		if c := p.counters(); c.Responses > 0 {
			out[p.id] = c
		}
	}
	return out
}

func clientTLS(file fleetFile, members []member) ([]*tls.Config, error) {
	parsed, err := identity.ParsePEM([]byte(file.Roots))
	if err != nil {
		return nil, err
	}
	// One looks at the roots for all of them, as each of as many Envoys does once.
	config, err := identity.ClientConfig(identity.Trust{
		TrustDomain: file.TrustDomain, Roots: func() []*x509.Certificate { return parsed }, Now: time.Now,
	})
	if err != nil {
		return nil, err
	}
	out := make([]*tls.Config, len(members))
	for i, m := range members {
		pair, err := identity.ParseKeyPair([]byte(m.Pair))
		if err != nil {
			return nil, err
		}
		out[i] = config.Clone()
		out[i].ServerName = xds.ServerName
		out[i].GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.TLS(), nil }
	}
	return out, nil
}
