package serve

import (
	"math/rand/v2"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// Retry says when a resource that a proxy has refused is sent to it once more: what made
// it refuse may pass, as a port that another process still holds. Only that resource is,
// by itself, in the newest version, and while nothing is refused nothing waits for this.
// Extensions and secrets are not: see repeatable. Zero fields have defaults.
type Retry struct {
	// First is how long after the first refusal of a version; default 1 s. After each
	// further one it is twice as long.
	First time.Duration
	// Most is the longest that it becomes; default 60 s.
	Most time.Duration
}

func (r Retry) withDefaults() Retry {
	if r.First == 0 {
		r.First = time.Second
	}
	if r.Most == 0 {
		r.Most = time.Minute
	}
	return r
}

// after is how long to wait when a version was refused so many times: up to a quarter
// less than what Retry says, so that a fleet that refuses the same does not answer at
// the same moment.
func (r Retry) after(times int) time.Duration {
	d := r.First
	for ; times > 1 && d < r.Most; times-- {
		d *= 2
	}
	d = min(d, r.Most)
	return d - rand.N(d/4+1)
}

// repeatable says whether an Envoy judges a refused resource of a type anew when it gets
// the same one. Of extensions and secrets Envoy 1.40.0 remembers the hash before it has
// made what they say, and ACKs what it has just refused. What they say is there or is not,
// it waits for nothing on its host; so the next version repairs them, and no repetition.
func repeatable(typeURL string) bool {
	return typeURL != xds.ExtensionType && typeURL != xds.SecretType
}

// refusal is a NACK that was the newest answer about a resource.
type refusal struct {
	Nack
	times int       // that this version was refused on this stream
	due   time.Time // to be sent again; zero: it is being sent, or never is
}

// refuse notes that the one resource of e was refused, and when it is sent again.
func (s *stream) refuse(e *entry, n Nack) (first bool) {
	times := 1
	if e.nack != nil && e.nack.Version == n.Version {
		times, n.When = e.nack.times+1, e.nack.When
	}
	e.alone, e.again = false, false
	e.nack = &refusal{Nack: n, times: times}
	if repeatable(n.TypeURL) {
		e.nack.due = time.Now().Add(s.fleet.cfg.Retry.after(times))
		s.alarm(e.nack.due)
	}
	return times == 1
}

// alarm has retry called at a time, or earlier. mu is held.
func (s *stream) alarm(at time.Time) {
	if !s.retryAt.IsZero() && !at.Before(s.retryAt) {
		return
	}
	s.retryAt = at
	if s.retries == nil {
		s.retries = time.AfterFunc(time.Until(at), func() { s.retry(time.Now()) })
	} else {
		s.retries.Reset(time.Until(at))
	}
}

// retry has sent again what was refused and is due. What was sent in another version
// since is not: the answer to that will tell.
func (s *stream) retry(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	s.retryAt = time.Time{}
	var next time.Time
	for _, w := range s.watches {
		if w == nil {
			continue
		}
		due := 0
		for _, e := range w.known.moved { // what is refused is not at rest
			switch {
			case e == nil || e.nack == nil || e.nack.due.IsZero() || e.nack.Version != e.sent:
			case !e.nack.due.After(now):
				e.again, e.alone, e.nack.due = true, true, time.Time{}
				due++
			case next.IsZero() || e.nack.due.Before(next):
				next = e.nack.due
			}
		}
		if due > 0 {
			s.fleet.metrics.retries.WithLabelValues(typeLabel(w.typeURL)).Add(float64(due))
			w.said = 0
			s.wakeHeldBack(w.typeURL)
		}
	}
	if !next.IsZero() {
		s.alarm(next)
	}
}

// rests ends the retries of a stream that has ended.
func (s *stream) rests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retries != nil {
		s.retries.Stop()
	}
}
