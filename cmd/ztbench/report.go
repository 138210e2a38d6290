package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/stats"
)

// measure is what one experiment has shown, in one round.
type measure struct {
	Latencies   []time.Duration `json:"-"` // of each proxy that it had to reach
	Reached     int             `json:"reached"`
	Responses   int             `json:"responses"`
	Wasted      int             `json:"wasted"` // responses to proxies that it did not concern
	Bytes       int             `json:"bytes"`
	CPU         time.Duration   `json:"cpu"` // of the server
	Over        time.Duration   `json:"over,omitempty"`
	RSSPerProxy int64           `json:"rssPerProxy,omitempty"`
}

// count adds what was told; nil: to everybody that it was meant for.
func (m *measure) count(told map[string]counters, reaches []string) {
	meant := map[string]bool{}
	for _, id := range reaches {
		meant[id] = true
	}
	for id, c := range told {
		m.Responses += c.Responses
		m.Bytes += c.Bytes
		if reaches != nil && !meant[id] {
			m.Wasted += c.Responses
		}
	}
	if reaches != nil {
		m.Reached = max(m.Reached, len(reaches))
	}
}

// report is what a run has shown.
type report struct {
	Workload  string `json:"workload"`
	Proxies   int    `json:"proxies"`
	Plaintext bool   `json:"plaintext"`
	Rows      []*row `json:"rows"`
}

// row is one experiment on one kind of server, all rounds of it.
type row struct {
	Kind       string        `json:"kind"`
	Experiment string        `json:"experiment"`
	Rounds     int           `json:"rounds"`
	P50        time.Duration `json:"p50"` // of the proxies, over all rounds
	P99        time.Duration `json:"p99"`
	Last       time.Duration `json:"last"` // the median over rounds of the last proxy's
	measure                  // means of a round

	all, lasts []time.Duration
	sum        measure
}

func (r *report) find(kind, experiment string) *row {
	for _, row := range r.Rows {
		if row.Kind == kind && row.Experiment == experiment {
			return row
		}
	}
	return nil
}

func (r *report) add(kind, experiment string, m measure) {
	row := r.find(kind, experiment)
	if row == nil {
		row = newRow(kind, experiment)
		r.Rows = append(r.Rows, row)
	}
	row.add(m)
}

func newRow(kind, experiment string) *row { return &row{Kind: kind, Experiment: experiment} }

func (w *row) add(m measure) {
	w.Rounds++
	w.all = append(w.all, m.Latencies...)
	if len(m.Latencies) > 0 {
		w.lasts = append(w.lasts, slices.Max(m.Latencies))
	}
	s, n := &w.sum, w.Rounds
	s.Reached, s.Responses, s.Wasted, s.Bytes = s.Reached+m.Reached, s.Responses+m.Responses, s.Wasted+m.Wasted, s.Bytes+m.Bytes
	s.CPU, s.Over, s.RSSPerProxy = s.CPU+m.CPU, s.Over+m.Over, s.RSSPerProxy+m.RSSPerProxy
	w.measure = measure{
		Reached: s.Reached / n, Responses: s.Responses / n, Wasted: s.Wasted, Bytes: s.Bytes / n,
		CPU: s.CPU / time.Duration(n), Over: s.Over / time.Duration(n), RSSPerProxy: s.RSSPerProxy / int64(n),
	}
	w.P50, w.P99, w.Last = stats.Quantile(w.all, 0.5), stats.Quantile(w.all, 0.99), stats.Quantile(w.lasts, 0.5)
}

// bytesPerProxy is what the control plane sent to one proxy that an experiment had to
// reach.
func (r *report) bytesPerProxy(experiment string) int {
	row := r.find(kindMesh, experiment)
	if row == nil || row.Reached == 0 {
		return 0
	}
	return row.Bytes / row.Reached
}

func (r *report) json(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func (r *report) table(out io.Writer) error {
	with := "mTLS"
	if r.Plaintext {
		with = "plaintext"
	}
	fmt.Fprintf(out, "%s, %d proxies, %s\n", r.Workload, r.Proxies, with)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "experiment\tserver\trounds\treached\tp50\tp99\tlast\tresponses\twasted\tbytes\tserver CPU\tRSS/proxy\t")
	for _, e := range experiments {
		for _, row := range r.Rows {
			if row.Experiment != e {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t\n", e, row.Kind, row.Rounds, row.Reached,
				brief(row.P50), brief(row.P99), brief(row.Last), row.Responses, row.Wasted, size(int64(row.Bytes)), cpu(row.measure), size(row.RSSPerProxy))
		}
	}
	return w.Flush()
}

func brief(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(100 * time.Microsecond).String()
}

func cpu(m measure) string {
	if m.Over > 0 {
		return fmt.Sprintf("%.2f%%", 100*m.CPU.Seconds()/m.Over.Seconds())
	}
	return m.CPU.Round(100 * time.Microsecond).String()
}

func size(n int64) string {
	switch {
	case n == 0:
		return "-"
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
