package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// The experiments, in the order in which they are made.
const (
	cold      = "cold"      // all proxies connect at once, to a server that has run for a while
	idle      = "idle"      // nothing happens
	grant     = "grant"     // one caller is added to one service
	endpoint  = "endpoint"  // an instance of a service is added
	wide      = "wide"      // what every proxy judges by changes
	reconnect = "reconnect" // the server is started again; all proxies come back with what they hold
)

var experiments = []string{cold, idle, grant, endpoint, wide, reconnect}

func joined(words []string) string { return strings.Join(words, ", ") }

// bench is one run: a workload, and how it is measured.
type bench struct {
	load     workload
	rounds   int
	plain    bool
	only     []string
	against  []string
	timeout  time.Duration
	progress func(text string, args ...any)
}

func (b *bench) validate() error {
	var errs []error
	for _, e := range b.only {
		if !slices.Contains(experiments, e) {
			errs = append(errs, fmt.Errorf("no such experiment: %q; there are %s", e, joined(experiments)))
		}
	}
	if slices.Equal(b.against, []string{"none"}) {
		b.against = nil
	}
	for _, k := range b.against {
		if k != kindFloor && k != kindSnapshot {
			errs = append(errs, fmt.Errorf("nothing to measure against: %q; there are %s, %s and none", k, kindFloor, kindSnapshot))
		}
	}
	if b.rounds < 1 {
		errs = append(errs, errors.New("at least one round is needed"))
	}
	return errors.Join(errs...)
}

func (b *bench) wants(experiment string) bool {
	return len(b.only) == 0 || slices.Contains(b.only, experiment)
}

// perProcess is how many proxies one process simulates: each is a connection, and a
// process has 20,000 files.
const perProcess = 9000

// fleet is the processes that simulate the proxies, towards one server.
type fleet struct {
	flocks []*child
	path   string // of the fleet file
	total  int
	server string
	plain  bool
	floor  bool
}

func startFleet(ctx context.Context, path string, total int, server string, plain, floor bool) (*fleet, error) {
	f := &fleet{path: path, total: total, server: server, plain: plain, floor: floor}
	for range (total + perProcess - 1) / perProcess {
		c, _, err := start(ctx, "proxies")
		if err != nil {
			return nil, errors.Join(err, f.stop())
		}
		f.flocks = append(f.flocks, c)
	}
	return f, nil
}

func (f *fleet) stop() error {
	var errs []error
	for _, c := range f.flocks {
		errs = append(errs, c.stop())
	}
	return errors.Join(errs...)
}

// all gives an order to every process and unites the answers.
func (f *fleet) all(o order) (answer, error) {
	for i, c := range f.flocks {
		o.From, o.To = i*perProcess, min((i+1)*perProcess, f.total)
		if err := c.tell(o); err != nil {
			return answer{}, err
		}
	}
	united := answer{At: map[string]time.Time{}, Told: map[string]counters{}}
	var errs []error
	for _, c := range f.flocks {
		a, err := c.read()
		errs = append(errs, err)
		for id, t := range a.At {
			united.At[id] = t
		}
		for id, n := range a.Told {
			united.Told[id] = n
		}
	}
	return united, errors.Join(errs...)
}

func (f *fleet) connect(timeout time.Duration) (answer, error) {
	return f.all(order{Do: "connect", Fleet: f.path, Server: f.server, Plain: f.plain, Floor: f.floor, Timeout: timeout})
}

// run makes all experiments, on the control plane and then on what it is measured
// against, which send as much as it did.
func (b *bench) run(ctx context.Context) (_ *report, err error) {
	dir, err := os.MkdirTemp("", "ztbench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &report{Workload: b.load.String(), Proxies: b.load.total(), Plaintext: b.plain}
	path, err := b.mesh(ctx, dir, r)
	if err != nil {
		return nil, err
	}
	for _, kind := range b.against {
		b.progress("measuring %s", kind)
		if err := b.baseline(ctx, kind, path, r); err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
	}
	return r, nil
}

// mesh measures the control plane and returns the fleet file.
func (b *bench) mesh(ctx context.Context, dir string, r *report) (_ string, err error) {
	b.progress("starting a cluster")
	m, err := startMesh(ctx, dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.stop()) }()
	b.progress("applying %s", b.load)
	if _, err := m.apply(ctx, b.load.spec()); err != nil {
		return "", err
	}
	workloads := make([]string, b.load.services)
	for i := range workloads {
		workloads[i] = b.load.ref(i)
	}
	b.progress("enrolling %d proxies", b.load.total())
	if _, err := m.enrol(ctx, workloads, b.load.proxies); err != nil {
		return "", err
	}
	path, err := m.save()
	if err != nil {
		return "", err
	}
	// What enrolling has allocated is no cost of serving: it begins anew, and knows all
	// that were enrolled when it answers a call that only a leader can.
	if _, err := m.restart(ctx); err != nil {
		return "", err
	}
	if err := m.settled(ctx, 0); err != nil {
		return "", err
	}
	server := m.at.Node
	if b.plain {
		server = m.at.Plain
	}
	f, err := startFleet(ctx, path, b.load.total(), server, b.plain, false)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	return path, b.experiments(ctx, &meshSubject{mesh: m, load: b.load}, f, r)
}

func (m *mesh) restart(ctx context.Context) (began time.Time, err error) {
	if err := m.stop(); err != nil {
		return began, err
	}
	began = time.Now()
	return began, m.start(ctx)
}

// subject is a server that the experiments are made on.
type subject interface {
	kind() string
	usage() (usage, error)
	// change makes a change of a kind and returns when it was begun, and whom it
	// must reach; nil: everybody.
	change(ctx context.Context, experiment string, round int) (began time.Time, reaches []string, err error)
	// settled returns when the server knows that all proxies hold all they should.
	settled(ctx context.Context, proxies int) error
	// restart starts the server again at the same address, and returns when the former one
	// had ended; false: it cannot.
	restart(ctx context.Context) (began time.Time, can bool, err error)
}

// experiments are made in order, on connected proxies.
func (b *bench) experiments(ctx context.Context, s subject, f *fleet, r *report) error {
	before, err := s.usage()
	if err != nil {
		return err
	}
	b.progress("%s: %s", s.kind(), cold)
	began := time.Now()
	connected, err := f.connect(b.timeout)
	if err != nil {
		return fmt.Errorf("%s: %w", cold, err)
	}
	after, err := s.usage()
	if err != nil {
		return err
	}
	told, err := f.all(order{Do: "count"})
	if err != nil {
		return err
	}
	m := measure{CPU: after.cpu - before.cpu, Reached: len(connected.At)}
	for _, at := range connected.At {
		m.Latencies = append(m.Latencies, at.Sub(began))
	}
	m.count(told.Told, nil)
	if err := s.settled(ctx, b.load.total()); err != nil {
		return err
	}
	at, err := s.usage()
	if err != nil {
		return err
	}
	m.RSSPerProxy = (at.rss - before.rss) / int64(b.load.total())
	r.add(s.kind(), cold, m)

	if b.wants(idle) {
		if err := b.idle(ctx, s, r); err != nil {
			return err
		}
	}
	for _, experiment := range []string{grant, endpoint, wide} {
		if !b.wants(experiment) {
			continue
		}
		b.progress("%s: %s", s.kind(), experiment)
		for round := range b.rounds {
			m, err := b.change(ctx, s, f, experiment, round)
			if err != nil {
				return fmt.Errorf("%s: %w", experiment, err)
			}
			r.add(s.kind(), experiment, m)
		}
	}
	if b.wants(reconnect) {
		return b.reconnect(ctx, s, f, r)
	}
	return nil
}

// idleFor is how long nothing happens.
const idleFor = 10 * time.Second

func (b *bench) idle(ctx context.Context, s subject, r *report) error {
	b.progress("%s: %s", s.kind(), idle)
	before, err := s.usage()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleFor):
	}
	after, err := s.usage()
	if err != nil {
		return err
	}
	r.add(s.kind(), idle, measure{CPU: after.cpu - before.cpu, Over: idleFor})
	return nil
}

func (b *bench) change(ctx context.Context, s subject, f *fleet, experiment string, round int) (measure, error) {
	var m measure
	if _, err := f.all(order{Do: "mark"}); err != nil {
		return m, err
	}
	before, err := s.usage()
	if err != nil {
		return m, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	began, reaches, err := s.change(ctx, experiment, round)
	if err != nil {
		return m, err
	}
	told, err := f.all(order{Do: "await", IDs: reaches, Timeout: b.timeout})
	if err != nil {
		return m, err
	}
	after, err := s.usage()
	if err != nil {
		return m, err
	}
	m.CPU = after.cpu - before.cpu
	m.count(told.Told, reaches)
	for _, id := range reaches {
		m.Latencies = append(m.Latencies, max(0, told.Told[id].Last.Sub(began)))
	}
	return m, nil
}

func (b *bench) reconnect(ctx context.Context, s subject, f *fleet, r *report) error {
	b.progress("%s: %s", s.kind(), reconnect)
	if _, err := f.all(order{Do: "mark"}); err != nil {
		return err
	}
	began, can, err := s.restart(ctx) // many are back before it says that it is ready
	if !can || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	if err := s.settled(ctx, b.load.total()); err != nil {
		return err
	}
	took := time.Since(began)
	u, err := s.usage()
	if err != nil {
		return err
	}
	told, err := f.all(order{Do: "await"})
	// That is what was done to them: the connection was lost, and a server that has just
	// begun may not know yet who was enrolled last.
	if err != nil && !strings.Contains(err.Error(), "Unavailable") && !strings.Contains(err.Error(), "PermissionDenied") {
		return err
	}
	m := measure{Latencies: []time.Duration{took}, CPU: u.cpu, RSSPerProxy: u.rss / int64(b.load.total()), Reached: b.load.total()}
	m.count(told.Told, []string{})
	r.add(s.kind(), reconnect, m)
	return nil
}

// baseline measures another server with the proxies of a fleet file.
func (b *bench) baseline(ctx context.Context, kind, path string, r *report) (err error) {
	c, at, err := start(ctx, "server", "--kind", kind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	file, err := readFleet(path)
	if err != nil {
		return err
	}
	file.Instances = file.Instances[:b.load.total()]
	s := &otherSubject{child: c, name: kind, load: b.load, file: file, like: r}
	o := order{Do: "load", Fleet: path, Spec: b.load.spec(), Bytes: r.bytesPerProxy(cold), Timeout: b.timeout}
	if _, err := c.ask(o); err != nil {
		return err
	}
	f, err := startFleet(ctx, path, b.load.total(), at.Plain, true, kind == kindFloor)
	if err != nil {
		return err
	}
	return errors.Join(b.experiments(ctx, s, f, r), f.stop())
}
