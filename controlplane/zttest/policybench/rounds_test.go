package policybench_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	slicesOf = 10                    // of each variant in a round
	slice    = 50 * time.Millisecond // what else the machine does changes little from one to the next
)

// variant is what is compared: who asks, and the Envoys that work for it.
type variant struct {
	load    load
	proxies []*proxy
}

// measured is what the rounds of a variant gave.
type measured struct {
	rate series   // requests per second
	cpu  series   // of all proxies, in µs per request
	each []series // of each of them
}

// alternate measures the variants against one another. A round is short slices of
// all of them in random order, so that what disturbs one disturbs the others.
func (d *bed) alternate(rounds int, variants []*variant) []*measured {
	d.b.Helper()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // an order
	out := make([]*measured, len(variants))
	for i, v := range variants {
		out[i] = &measured{each: make([]series, len(v.proxies))}
	}
	for range rounds {
		asked, took, used := make([]int, len(variants)), make([]time.Duration, len(variants)), make([][]time.Duration, len(variants))
		for i, v := range variants {
			used[i] = make([]time.Duration, len(v.proxies))
		}
		for range slicesOf {
			for _, i := range random.Perm(len(variants)) {
				v := variants[i]
				for k, p := range v.proxies {
					used[i][k] -= d.cpu(p)
				}
				start := time.Now()
				n, err := v.load.ask(slice)
				d.check(err)
				asked[i], took[i] = asked[i]+n, took[i]+time.Since(start)
				for k, p := range v.proxies {
					used[i][k] += d.cpu(p)
				}
			}
		}
		for i, m := range out {
			m.rate = append(m.rate, float64(asked[i])/took[i].Seconds())
			sum := 0.0
			for k, u := range used[i] {
				us := float64(u.Nanoseconds()) / 1000 / float64(asked[i])
				m.each[k] = append(m.each[k], us)
				sum += us
			}
			m.cpu = append(m.cpu, sum)
		}
	}
	return out
}

// series is what the rounds gave.
type series []float64

// quartiles are the 25th, 50th and 75th percentile.
func (s series) quartiles() (low, median, high float64) {
	s = slices.Clone(s)
	slices.Sort(s)
	at := func(q float64) float64 {
		i := q * float64(len(s)-1)
		below := int(i)
		above := min(below+1, len(s)-1)
		return s[below] + (i-float64(below))*(s[above]-s[below])
	}
	return at(0.25), at(0.5), at(0.75)
}

func (s series) String() string {
	low, median, high := s.quartiles()
	return fmt.Sprintf("%.4g [%.4g, %.4g]", median, low, high)
}

// over is the ratio to other, round by round.
func (s series) over(other series) series {
	out := make(series, len(s))
	for i := range s {
		out[i] = s[i] / other[i]
	}
	return out
}

// figure prints a line that `make bench` collects, the median of the rounds, and
// the quartiles beside it.
func figure(w io.Writer, name string, s series, sense string, goal float64) {
	_, median, _ := s.quartiles()
	verdict := "met"
	if sense == "<=" && median > goal || sense == ">=" && median < goal {
		verdict = "short"
	}
	fmt.Fprintf(w, "figure %s %.3f x goal %s %g %s\n", name, median, sense, goal, verdict)
	fmt.Fprintf(w, "%s: %s over %d rounds\n", name, s, len(s))
}
