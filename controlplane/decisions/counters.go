package decisions

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// How much is kept.
const (
	// MaxCounters is how many differences are told apart.
	MaxCounters = 4096
	// MaxOfWorkload is how many of them the proxies of one workload may fill: one
	// that reports nonsense leaves room for the others.
	MaxOfWorkload = 1024
	// MaxPath and MaxText bound what is kept of a path and of every other text, in
	// bytes.
	MaxPath = 256
	MaxText = 512
)

// Difference is one request whose verdict would be another.
type Difference struct {
	Service, Port string // what was called: "shop/orders", "http"
	Caller        string // SPIFFE ID
	Method, Path  string // Path without its query
	Allowed       bool
	Reason        string // "grant:shop/a", "default-deny"
	WouldAllow    bool
	WouldReason   string
}

// bounded is d with texts that are short and printable.
func (d Difference) bounded() Difference {
	d.Path, _, _ = strings.Cut(d.Path, "?")
	d.Path = text(d.Path, MaxPath)
	for _, s := range []*string{&d.Service, &d.Port, &d.Caller, &d.Method, &d.Reason, &d.WouldReason} {
		*s = text(*s, MaxText)
	}
	return d
}

// text cuts s to at most limit bytes, of whole characters, and makes it fit for
// logs and terminals.
func text(s string, limit int) string {
	if len(s) > limit {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	if isPlain(s) {
		return strings.Clone(s) // s keeps a whole message alive
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?' // never longer than what it replaces
		}
		return r
	}, s)
}

func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// counter is how often a Difference was reported.
type counter struct {
	count       uint64
	first, last time.Time
}

// counters are the differences that the proxies here have reported.
type counters struct {
	mu      sync.Mutex // guards what follows
	held    map[key]*counter
	of      map[string]int // how many, by the workload whose proxies reported them
	dropped uint64
}

// key is one counter: what was reported, and by which workload's proxies.
type key struct {
	workload string
	Difference
}

func newCounters() *counters {
	return &counters{held: map[key]*counter{}, of: map[string]int{}}
}

// add counts d, and says whether there was room.
func (c *counters) add(workload string, d Difference, now time.Time) bool {
	k := key{workload, d.bounded()}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.held[k]
	if n == nil {
		if len(c.held) >= MaxCounters || c.of[workload] >= MaxOfWorkload {
			c.dropped++
			return false
		}
		n = &counter{first: now}
		c.held[k] = n
		c.of[workload]++
	}
	n.count++
	n.last = now
	return true
}

// drop counts what was not looked at.
func (c *counters) drop(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped += uint64(n)
}

// forget drops what the proxies of a workload have reported.
func (c *counters) forget(workload string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[workload] == 0 {
		return
	}
	for k := range c.held {
		if k.workload == workload {
			delete(c.held, k)
		}
	}
	delete(c.of, workload)
}

func (c *counters) list() (out []*ztv1.ShadowDifference, dropped uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out = make([]*ztv1.ShadowDifference, 0, len(c.held))
	for k, n := range c.held {
		out = append(out, &ztv1.ShadowDifference{
			Service: k.Service, Port: k.Port, Caller: k.Caller, Method: k.Method, Path: k.Path,
			Allowed: k.Allowed, Reason: k.Reason, WouldAllow: k.WouldAllow, WouldReason: k.WouldReason,
			Count: n.count, First: timestamppb.New(n.first), Last: timestamppb.New(n.last),
		})
	}
	sortDifferences(out)
	return out, c.dropped
}

// sortDifferences puts the most frequent first; equal ones have one order.
func sortDifferences(all []*ztv1.ShadowDifference) {
	slices.SortFunc(all, func(a, b *ztv1.ShadowDifference) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), compare(a, b))
	})
}

func compare(a, b *ztv1.ShadowDifference) int {
	for _, p := range [][2]string{
		{a.Service, b.Service},
		{a.Port, b.Port},
		{a.Caller, b.Caller},
		{a.Method, b.Method},
		{a.Path, b.Path},
		{a.Reason, b.Reason},
		{a.WouldReason, b.WouldReason},
	} {
		if n := strings.Compare(p[0], p[1]); n != 0 {
			return n
		}
	}
	return cmp.Or(compareBool(a.Allowed, b.Allowed), compareBool(a.WouldAllow, b.WouldAllow))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Merge is the differences of several servers as one list: equal ones are added
// up, the most frequent come first. The messages of the first list may be changed.
func Merge(lists ...[]*ztv1.ShadowDifference) []*ztv1.ShadowDifference {
	var all []*ztv1.ShadowDifference
	for _, l := range lists {
		all = append(all, l...)
	}
	slices.SortStableFunc(all, compare)
	out := all[:0]
	for _, d := range all {
		if len(out) == 0 || compare(out[len(out)-1], d) != 0 {
			out = append(out, d)
			continue
		}
		same := out[len(out)-1]
		same.Count += d.Count
		if d.First.AsTime().Before(same.First.AsTime()) {
			same.First = d.First
		}
		if d.Last.AsTime().After(same.Last.AsTime()) {
			same.Last = d.Last
		}
	}
	sortDifferences(out)
	return out
}
