// Package stats says what samples come to, for the benchmarks.
package stats

import (
	"slices"
	"time"
)

// Quantile is the value below which so much of d lies; 0 of none.
func Quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// Median is the value in the middle; 0 of none.
func Median(d []time.Duration) time.Duration { return Quantile(d, .5) }
