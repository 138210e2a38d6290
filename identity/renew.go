package identity

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Renewer keeps one certificate from ending: it renews at half-life, earlier by
// a jitter of up to a tenth of the life, and tries again, ever more slowly, when
// that fails. It never gives up: a certificate that has ended is reported each
// time that it is tried for again.
type Renewer struct {
	// NotBefore and NotAfter of the certificate in use when Run starts.
	NotBefore, NotAfter time.Time
	// Renew gets a new certificate and puts it into use. It is called from Run's
	// goroutine, with a deadline of Timeout.
	Renew func(context.Context) (notBefore, notAfter time.Time, err error)
	// Report is told each result, and at once when the certificate ends. It is
	// called from Run's goroutine and must not block. Required: nobody else says
	// that a process lives on with a certificate that has ended.
	Report func(Renewal)
	Now    func() time.Time
	// Jitter returns a number in [0, 1). Nil: random.
	Jitter func() float64
	// Timeout of one try. Zero: 30 s.
	Timeout time.Duration
}

// A Renewal is the result of one try, or the news that the certificate ended.
type Renewal struct {
	Err      error     // nil: renewed
	NotAfter time.Time // of the certificate now in use
	Expired  bool      // it has ended
	Next     time.Time // when Run tries next
}

// ErrExpired is what a Renewal carries when a certificate ends between tries.
var ErrExpired = errors.New("the certificate has ended and was not renewed")

const (
	renewTimeout = 30 * time.Second
	firstBackoff = time.Second
	maxBackoff   = 5 * time.Minute
	// glance bounds one sleep: the wall clock can jump (a suspended machine, a
	// corrected clock), and timers do not follow it.
	glance = time.Minute
)

// RenewAt returns when a certificate is to be renewed: half-way, minus up to a
// tenth of its life by jitter in [0, 1). Never later than half-way.
func RenewAt(notBefore, notAfter time.Time, jitter float64) time.Time {
	life := notAfter.Sub(notBefore)
	return notBefore.Add(life / 2).Add(-time.Duration(jitter * float64(life) / 10))
}

// Run renews until ctx ends, and returns its error.
func (r *Renewer) Run(ctx context.Context) error {
	if r.Renew == nil || r.Report == nil || r.Now == nil {
		return errors.New("renewer: Renew, Report and Now are required")
	}
	next := RenewAt(r.NotBefore, r.NotAfter, r.jitter())
	told := false // that the certificate has ended
	for failures := 0; ; {
		if err := r.until(ctx, next, &told); err != nil {
			return err
		}
		notBefore, notAfter, err := r.try(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && !r.Now().Before(notAfter) {
			err = errors.New("the renewed certificate has ended already")
		}
		if err != nil {
			next = r.Now().Add(r.backoff(failures))
			failures++
		} else {
			r.NotBefore, r.NotAfter = notBefore, notAfter
			failures, told = 0, false
			// At least a second, so that a very short life is no busy loop.
			next = later(RenewAt(notBefore, notAfter, r.jitter()), r.Now().Add(firstBackoff))
		}
		expired := !r.Now().Before(r.NotAfter)
		told = told || expired
		r.Report(Renewal{Err: err, NotAfter: r.NotAfter, Expired: expired, Next: next})
	}
}

// until waits for next and reports on the way if the certificate ends.
func (r *Renewer) until(ctx context.Context, next time.Time, told *bool) error {
	for {
		now := r.Now()
		if !*told && !now.Before(r.NotAfter) {
			*told = true
			r.Report(Renewal{Err: ErrExpired, NotAfter: r.NotAfter, Expired: true, Next: next})
		}
		wait := next.Sub(now)
		if wait <= 0 {
			return ctx.Err()
		}
		if end := r.NotAfter.Sub(now); !*told && end < wait {
			wait = end
		}
		timer := time.NewTimer(min(wait, glance))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (r *Renewer) try(ctx context.Context) (notBefore, notAfter time.Time, err error) {
	timeout := r.Timeout
	if timeout == 0 {
		timeout = renewTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return r.Renew(ctx)
}

// backoff doubles from a second to the smaller of five minutes and a twentieth
// of the life, and takes off up to half of it by jitter.
func (r *Renewer) backoff(failures int) time.Duration {
	most := max(firstBackoff, min(maxBackoff, r.NotAfter.Sub(r.NotBefore)/20))
	d := min(most, firstBackoff<<min(failures, 16))
	return d - time.Duration(r.jitter()*float64(d)/2)
}

func (r *Renewer) jitter() float64 {
	if r.Jitter != nil {
		return r.Jitter()
	}
	return rand.Float64()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
