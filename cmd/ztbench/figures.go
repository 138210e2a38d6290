package main

import (
	"fmt"
	"io"
	"time"
)

// goal is what a figure of a run is to reach. Goals inform, they fail nothing.
type goal struct {
	name       string
	experiment string
	unit       string
	limit      float64
	// value reads it out of the control plane's row and, where there is one, the
	// floor's; false: it has none to tell.
	value func(mesh, floor *row) (float64, bool)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// alone is a value that needs no floor.
func alone(read func(*row) float64) func(mesh, floor *row) (float64, bool) {
	return func(mesh, _ *row) (float64, bool) { return read(mesh), true }
}

// beside is a value that is told against the floor.
func beside(read func(mesh, floor *row) float64) func(mesh, floor *row) (float64, bool) {
	return func(mesh, floor *row) (float64, bool) {
		if floor == nil || floor.Last == 0 && floor.Over == 0 {
			return 0, false
		}
		return read(mesh, floor), true
	}
}

func overFloor(mesh, floor *row) float64 { return float64(mesh.Last) / float64(floor.Last) }

// goals are those of a workload. The floor has no TLS, so what is told against it is
// told in plaintext only.
func goals(load workload, plain bool) []goal {
	coldLimit, propagated := 1.5, 20.0
	if !plain {
		coldLimit = 4
	}
	if load.services >= 1000 {
		coldLimit = 2
	}
	if load.total() >= 5000 {
		propagated = 50
	}
	all := []goal{
		{"grant-p99", grant, "ms", propagated, alone(func(m *row) float64 { return milliseconds(m.P99) })},
		{"grant-cpu", grant, "ms", 10, alone(func(m *row) float64 { return milliseconds(m.CPU) })},
		{"grant-wasted", grant, "pushes", 0, alone(func(m *row) float64 { return float64(m.Wasted) })},
		{"endpoint-p99", endpoint, "ms", 20, alone(func(m *row) float64 { return milliseconds(m.P99) })},
		{"reconnect", reconnect, "s", 30, alone(func(m *row) float64 { return m.Last.Seconds() })},
		{"reconnect-rss", reconnect, "MiB", 2048, alone(func(m *row) float64 { return float64(m.RSSPerProxy*int64(load.total())) / (1 << 20) })},
	}
	if load.total() <= 1000 {
		all = append(all, goal{"cold", cold, "s", coldLimit, alone(func(m *row) float64 { return m.Last.Seconds() })})
	}
	if plain {
		all = append(all,
			goal{"cold-over-floor", cold, "x", 2, beside(overFloor)},
			goal{"wide-over-floor", wide, "x", 2, beside(overFloor)},
			goal{"rss-beyond-floor", cold, "KiB", 40, beside(func(m, f *row) float64 { return float64(m.RSSPerProxy-f.RSSPerProxy) / 1024 })},
			goal{"idle-beyond-floor", idle, "%", 0.5, beside(func(m, f *row) float64 {
				return 100 * (m.CPU.Seconds()/m.Over.Seconds() - f.CPU.Seconds()/f.Over.Seconds())
			})},
		)
	}
	return all
}

// figures are a line for each goal.
func (r *report) figures(load workload, out io.Writer) error {
	with := "mtls"
	if r.Plaintext {
		with = "plain"
	}
	for _, g := range goals(load, r.Plaintext) {
		m := r.find(kindMesh, g.experiment)
		if m == nil {
			continue
		}
		v, ok := g.value(m, r.find(kindFloor, g.experiment))
		if !ok {
			continue
		}
		verdict := "met"
		if v > g.limit {
			verdict = "short"
		}
		name := fmt.Sprintf("fleet-%dx%d-%s-%s", load.services, load.proxies, with, g.name)
		if _, err := fmt.Fprintf(out, "figure %s %.3g %s goal <= %g %s\n", name, v, g.unit, g.limit, verdict); err != nil {
			return err
		}
	}
	return nil
}
