package identity_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/identity"
)

func TestRenewAtIsNeverLate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		life := time.Duration(rapid.Int64Range(int64(time.Second), int64(400*24*time.Hour)).Draw(t, "life"))
		jitter := rapid.Float64Range(0, 0.999999).Draw(t, "jitter")
		at := identity.RenewAt(start, start.Add(life), jitter).Sub(start)
		if at > life/2 || at < life*4/10-time.Nanosecond {
			t.Fatalf("after %v of %v", at, life)
		}
	})
}

// renewal is a run of a Renewer in a bubble: a server that signs for two hours,
// or fails.
type renewal struct {
	tries   []time.Duration // since the start of the run
	reports []identity.Renewal
	fail    func(time.Duration) error
}

func (r *renewal) run(t *testing.T, ctx context.Context, life time.Duration, jitter float64) {
	t.Helper()
	began := time.Now()
	err := (&identity.Renewer{
		NotBefore: began, NotAfter: began.Add(life), Now: time.Now, Jitter: func() float64 { return jitter },
		Renew: func(ctx context.Context) (time.Time, time.Time, error) {
			since := time.Since(began)
			r.tries = append(r.tries, since)
			if r.fail != nil {
				if err := r.fail(since); err != nil {
					return time.Time{}, time.Time{}, err
				}
			}
			return time.Now(), time.Now().Add(life), ctx.Err()
		},
		Report: func(x identity.Renewal) { r.reports = append(r.reports, x) },
	}).Run(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
}

func TestRenewerAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Hour+time.Second)
		defer cancel()
		var r renewal
		r.run(t, ctx, 2*time.Hour, 0)
		for i, at := range r.tries {
			if want := time.Duration(i+1) * time.Hour; at != want {
				t.Errorf("renewed at %v, want %v", at, want)
			}
		}
		if len(r.tries) != 5 || len(r.reports) != 5 {
			t.Errorf("%d tries, %d reports", len(r.tries), len(r.reports))
		}
		for _, x := range r.reports {
			if x.Err != nil || x.Expired || !x.Next.Equal(x.NotAfter.Add(-time.Hour)) {
				t.Errorf("report %+v", x)
			}
		}
	})
}

func TestRenewerRetriesAndTellsTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Hour)
		defer cancel()
		down := errors.New("no server")
		r := renewal{fail: func(since time.Duration) error {
			if since < 3*time.Hour {
				return down
			}
			return nil
		}}
		began := time.Now()
		r.run(t, ctx, 2*time.Hour, 0)
		for i, at := range r.tries[1:] {
			if gap := at - r.tries[i]; at < 3*time.Hour && (gap < time.Second || gap > 5*time.Minute) {
				t.Errorf("try %d comes %v after the one before", i+1, gap)
			}
		}
		if r.tries[1]-r.tries[0] != time.Second || r.tries[2]-r.tries[1] != 2*time.Second {
			t.Errorf("first tries at %v", r.tries[:3])
		}
		ends := 0
		var recovered *identity.Renewal
		for i, x := range r.reports {
			if errors.Is(x.Err, identity.ErrExpired) {
				ends++
			}
			if x.Err == nil && recovered == nil {
				recovered = &r.reports[i]
			}
			if x.Expired != (x.Err != nil && x.NotAfter.Equal(began.Add(2*time.Hour)) && i >= firstExpired(r.reports)) {
				t.Errorf("report %d: %+v", i, x)
			}
		}
		if ends != 1 {
			t.Errorf("the end was told %d times", ends)
		}
		if recovered == nil || recovered.Expired {
			t.Errorf("after the server came back: %+v", recovered)
		}
	})
}

func firstExpired(reports []identity.Renewal) int {
	for i, x := range reports {
		if x.Expired {
			return i
		}
	}
	return len(reports)
}

// The end is told at that moment, also while a long wait is under way.
func TestRenewerTellsTheEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		began := time.Now()
		var told []time.Duration
		err := (&identity.Renewer{
			NotBefore: began, NotAfter: began.Add(2 * time.Hour), Now: time.Now, Jitter: func() float64 { return 0 },
			Renew: func(context.Context) (time.Time, time.Time, error) {
				return time.Time{}, time.Time{}, errors.New("no server")
			},
			Report: func(x identity.Renewal) {
				if errors.Is(x.Err, identity.ErrExpired) {
					told = append(told, time.Since(began))
				}
			},
		}).Run(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || len(told) != 1 || told[0] != 2*time.Hour {
			t.Errorf("%v, told at %v", err, told)
		}
	})
}

// A server that hangs does not hold the renewal up; one that answers with what
// has ended already is a failure.
func TestRenewerBoundsATry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		began := time.Now()
		tries, failed := 0, 0
		err := (&identity.Renewer{
			NotBefore: began, NotAfter: began.Add(2 * time.Hour), Now: time.Now, Timeout: 7 * time.Second,
			Renew: func(ctx context.Context) (time.Time, time.Time, error) {
				switch tries++; tries {
				case 1:
					<-ctx.Done()
					return time.Time{}, time.Time{}, ctx.Err()
				case 2:
					return began, began.Add(time.Minute), nil
				}
				return time.Now(), time.Now().Add(24 * time.Hour), nil
			},
			Report: func(x identity.Renewal) {
				if x.Err != nil {
					failed++
				}
			},
		}).Run(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || tries != 3 || failed != 2 {
			t.Errorf("%v, %d tries, %d failed", err, tries, failed)
		}
	})
}

// The wall clock jumps past the half-life (a machine that slept): the renewal
// comes within a minute, not when a timer set before would have fired.
func TestRenewerFollowsTheWallClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		began := time.Now()
		var at time.Duration
		err := (&identity.Renewer{
			NotBefore: began, NotAfter: began.Add(30 * 24 * time.Hour),
			Now: func() time.Time {
				if now := time.Now(); now.Sub(began) < 10*time.Minute {
					return now
				}
				return time.Now().Add(20 * 24 * time.Hour)
			},
			Renew: func(context.Context) (time.Time, time.Time, error) {
				at = time.Since(began)
				return began.Add(20 * 24 * time.Hour), began.Add(50 * 24 * time.Hour), nil
			},
			Report: func(identity.Renewal) {},
		}).Run(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || at < 10*time.Minute || at > 11*time.Minute {
			t.Errorf("%v, renewed after %v", err, at)
		}
	})
}

func TestRenewerWantsItsParts(t *testing.T) {
	err := (&identity.Renewer{Now: time.Now}).Run(t.Context())
	wantErr(t, err, "required")
}
