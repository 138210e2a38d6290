package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/controlplane/api"
)

// maxSkew is how far from the median of the voters' clocks a server still leads and
// signs.
const maxSkew = time.Minute

// errClock is why nothing is signed. It is api.ErrClock for the caller.
var errClock = fmt.Errorf("%w: it is more than %v from the median of the servers' clocks; set it right (NTP)", api.ErrClock, maxSkew)

// skewed tells whether a clock is off, as a pure function: ahead is how far those of
// the voters are ahead of it, its own 0 among them if it votes. known is false if
// they are no majority of the voters. With an even number, the median is all
// between the two in the middle: of two that differ, nobody knows which is right.
func skewed(ahead []time.Duration, voters int) (off, known bool) {
	n := len(ahead)
	if n == 0 || 2*n <= voters {
		return false, false
	}
	sorted := slices.Sorted(slices.Values(ahead))
	return sorted[(n-1)/2] > maxSkew || sorted[n/2] < -maxSkew, true
}

// clock is what this server knows of its own clock.
type clock struct {
	off  atomic.Bool
	skew atomic.Int64 // nanoseconds by which the median is ahead, for the metric
}

// metric is zt_controlplane_clock_skew_seconds.
func (c *clock) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zt_controlplane_clock_skew_seconds",
		Help: "How far the median of the voters' clocks is ahead of this server's, as it last found. Beyond 60 either way it neither leads nor signs.",
	}, func() float64 { return time.Duration(c.skew.Load()).Seconds() })
}

// check returns errClock while the clock is off.
func (c *clock) check() error {
	if c.off.Load() {
		return errClock
	}
	return nil
}

// watchClock judges this server's clock until ctx ends, and hands leadership over
// while it is off. A server that can ask no majority keeps the last verdict.
func watchClock(ctx context.Context, c *clock, others *cluster, every time.Duration, log *slog.Logger) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ahead, voters := others.clocks()
		if off, known := skewed(ahead, voters); known {
			sorted := slices.Sorted(slices.Values(ahead))
			c.skew.Store(int64((sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2))
			if was := c.off.Swap(off); off && !was {
				log.Error("clock is off: this server neither leads nor signs", "behind", time.Duration(c.skew.Load()))
			} else if was && !off {
				log.Info("clock is right again")
			}
		}
		if c.off.Load() && others.store.IsLeader() {
			if err := others.leadElsewhere(ctx); err != nil && !errors.Is(err, context.Canceled) {
				log.Error("leadership was not handed over", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
