package judge_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/judge"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
)

const (
	envoys     = 4
	perHearing = 150 // requests to one workload of one spec
	hearings   = 3   // workloads of one spec, at most
)

// TestRandom holds real Envoys to the evaluator on random specs, and on requests
// that try to get around them. At a disagreement it prints the smallest spec and
// request that it finds to show it.
//
// ZT_PAIRS says how many requests to judge and ZT_SEED with which spec to begin:
// `make fuzz-authz N=1000000 SEED=7`.
func TestRandom(t *testing.T) {
	run := &run{
		t: t, court: judge.New(t, specgen.TrustDomain), began: time.Now(), reasons: map[string]int{},
		want: int64(number(t, "ZT_PAIRS", 20_000)), generator: rapid.Custom(specgen.Sound),
	}
	seed := number(t, "ZT_SEED", rand.IntN(1<<30))
	t.Logf("ZT_SEED=%d ZT_PAIRS=%d", seed, run.want)
	run.next.Store(int64(seed) - 1)
	var proxies []*judge.Proxy
	for range envoys {
		proxies = append(proxies, run.court.Proxy())
	}
	var g errgroup.Group
	for _, p := range proxies {
		g.Go(func() error {
			for run.pairs.Load() < run.want && !run.failed.Load() {
				if err := run.spec(p, int(run.next.Add(1))); err != nil {
					run.failed.Store(true)
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	t.Log(run)
	var found *finding
	if errors.As(err, &found) {
		t.Fatal(shrink(proxies[0], found))
	}
	check(t, err)
	for _, reason := range []string{"grant", "default", "form", "transport", "health", "block", "token", "exception", "external"} {
		if run.want >= 10_000 && run.reasons[reason] == 0 {
			t.Errorf("no request was judged by %s", reason)
		}
	}
}

// number is an environment variable that says one.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	check(t, err)
	return n
}

// run is one run of TestRandom.
type run struct {
	t         *testing.T
	court     *judge.Court
	generator *rapid.Generator[[]*spec.Document]
	began     time.Time
	want      int64

	next, pairs, specs atomic.Int64
	failed             atomic.Bool

	mu      sync.Mutex // guards what follows
	reasons map[string]int
	told    time.Time
}

func (r *run) String() string {
	pairs, spent := r.pairs.Load(), time.Since(r.began)
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d pairs of %d specs in %s, %.0f/s: %v", pairs, r.specs.Load(), spent.Round(time.Second), float64(pairs)/spent.Seconds(), r.reasons)
}

// finding is a disagreement.
type finding struct {
	seed     int
	docs     []*spec.Document
	question judge.Question
	says     string
}

func (f *finding) Error() string { return f.says }

// spec asks about some workloads of one spec.
func (r *run) spec(p *judge.Proxy, seed int) error {
	docs := r.generator.Example(seed)
	s := judge.NewSpec(specgen.TrustDomain, docs)
	g := reqgen.New(specgen.TrustDomain, docs)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	r.specs.Add(1)
	for _, to := range services(s, g) {
		var questions []judge.Question
		for range perHearing {
			if q, ok := question(random, s, g, to); ok {
				questions = append(questions, q)
			}
		}
		if len(questions) == 0 {
			continue
		}
		h, err := p.Hear(s, to.judge)
		if err != nil {
			return fmt.Errorf("seed %d: %s: %w\n%s", seed, to.judge, err, s.YAML())
		}
		answers, err := h.Ask(questions)
		if err != nil {
			return fmt.Errorf("seed %d: %s: %w\n%s", seed, to.judge, err, s.YAML())
		}
		for i, a := range answers {
			if diff := h.Difference(questions[i], a); diff != "" {
				return &finding{seed, docs, questions[i], diff}
			}
		}
		r.count(s, questions)
	}
	return nil
}

func (r *run) count(s *judge.Spec, questions []judge.Question) {
	r.mu.Lock()
	for _, q := range questions {
		reason, _, _ := strings.Cut(s.Index.Decide(q.Request.Request).Reason, ":")
		r.reasons[reason]++
	}
	tell := time.Since(r.told) > 10*time.Second
	if tell {
		r.told = time.Now()
	}
	r.mu.Unlock()
	r.pairs.Add(int64(len(questions)))
	if tell {
		r.t.Log(r)
	}
}

// service is what is asked for, and whose proxy judges it.
type service struct{ ref, judge spec.Ref }

// services are those of a spec with the most rules, and a caller of an external one.
func services(s *judge.Spec, g *reqgen.Generator) []service {
	rules := map[spec.Ref]int{}
	var all []service
	for _, ref := range g.Services() {
		w, _ := s.Index.Workload(ref)
		for _, p := range w.Ports {
			rules[ref] += len(s.Index.Rules(ref, p.Name)) + 3*len(s.Index.Plaintext(ref, p.Name))
		}
		all = append(all, service{ref, ref})
	}
	slices.SortFunc(all, func(a, b service) int { return cmp.Or(rules[b.ref]-rules[a.ref], a.ref.Compare(b.ref)) })
	all = all[:min(hearings, len(all))]
	s.Index.Workloads(func(w *policy.Workload) bool {
		for _, e := range s.Index.Externals(w.Ref) {
			all = append(all, service{e.Service, w.Ref})
			return false
		}
		return true
	})
	return all
}

// reachable are addresses from which this machine can call; the first is what it
// calls from by itself.
var reachable = []netip.Addr{{}, netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.4"), netip.MustParseAddr("127.1.2.3")}

// question is a random request that can be asked here and now.
func question(random *rand.Rand, s *judge.Spec, g *reqgen.Generator, to service) (judge.Question, bool) {
	r, ok := g.To(random.IntN, to.ref)
	if !ok {
		return judge.Question{}, false
	}
	if to.ref != to.judge {
		r.CallerID, r.Plaintext, r.Source = policy.ID(specgen.TrustDomain, to.judge), false, netip.Addr{}
	}
	if !slices.Contains(reachable, r.Source) {
		r.Source = reachable[max(0, random.IntN(4*len(reachable))-3*len(reachable))]
	}
	judge.MoveTo(&r, time.Now())
	list := s.Questions(r)
	if len(list) == 0 {
		return judge.Question{}, false
	}
	q := list[random.IntN(len(list))]
	if s.Slow(q) && random.IntN(32) > 0 {
		q = list[len(list)-1]
	}
	return q, !s.Slow(q) || random.IntN(32) == 0
}
