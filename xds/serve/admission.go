package serve

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/xds"
)

// Admission bounds what many proxies may cost at once, so that everything else that a
// server does goes on while all of them come back together. Those that wait are let in
// in the order of their coming. Zero fields have defaults.
type Admission struct {
	// Arriving is how many may be in OnConnect; default 2.
	Arriving int
	// Bytes is how much of first answers may be on its way, not ACKed yet; default 64
	// MiB. One that is larger goes by itself.
	Bytes int64
	// Hold is how long a proxy that does not ACK is counted in Bytes; default 5 s.
	Hold time.Duration
	// Waiting is how many streams may wait; default 20,000. Those beyond it are turned
	// away, and an Envoy asks again, within 3 s, at another moment than others.
	Waiting int
	// Sending is how many responses are made and written at the same time; default two
	// for each processor. More would be no faster, and delay whatever else wants to run.
	Sending int
	// Requests is how many requests one stream may make in a second; default 200, after
	// the first 4,096. A name that is not the proxy's counts as one, too. A stream that
	// makes more is answered more slowly.
	Requests float64
	// Streams is how many streams one instance may open in a second; default 1, after
	// the first 32. Those of one that opens more wait.
	Streams float64
}

// The bursts of Requests and Streams.
const (
	requestBurst = 4096
	streamBurst  = 32
)

func (a Admission) withDefaults() Admission {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&a.Arriving, 2)
	def(&a.Waiting, 20_000)
	def(&a.Sending, 2*runtime.GOMAXPROCS(0))
	if a.Bytes == 0 {
		a.Bytes = 64 << 20
	}
	if a.Hold == 0 {
		a.Hold = 5 * time.Second
	}
	if a.Requests == 0 {
		a.Requests = 200
	}
	if a.Streams == 0 {
		a.Streams = 1
	}
	return a
}

var (
	errCrowded = status.Error(codes.Unavailable, "too many proxies are waiting")
	errFlapped = status.Error(codes.ResourceExhausted, "too many streams of this instance are waiting")
)

// minWeight is what a proxy counts for in Bytes at least: what a stream costs besides.
const minWeight = 64 << 10

// admission is the Admission of one fleet at work.
type admission struct {
	Admission
	metrics  *metrics
	arriving *semaphore.Weighted
	bytes    *semaphore.Weighted

	mu        sync.Mutex // guards what follows
	waiting   int
	instances map[string]*arrivals
}

// arrivals are the streams that one instance has opened lately.
type arrivals struct {
	limit   *rate.Limiter
	waiting int
}

func newAdmission(a Admission, m *metrics) *admission {
	a = a.withDefaults()
	return &admission{
		Admission: a, metrics: m,
		arriving: semaphore.NewWeighted(int64(a.Arriving)), bytes: semaphore.NewWeighted(a.Bytes),
		instances: map[string]*arrivals{},
	}
}

// arrive waits until the instance's stream may be told to OnConnect. The caller calls
// the returned function when that is done.
func (a *admission) arrive(ctx context.Context, instance string, now time.Time) (arrived func(), err error) {
	from, err := a.enqueue(instance, now)
	if err != nil {
		return nil, err
	}
	defer a.dequeue(from)
	began := time.Now()
	if err := pace(ctx, from.limit, 1); err != nil {
		return nil, err
	}
	if err := a.arriving.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	a.metrics.admitted.Observe(time.Since(began).Seconds())
	return func() { a.arriving.Release(1) }, nil
}

// pace waits for n times what a limiter allows, which may be more than its burst. Unlike
// its own Wait it does wait where the deadline of ctx would come first: who asks too often
// is to be slow, not told.
func pace(ctx context.Context, l *rate.Limiter, n int) error {
	for n > 0 {
		some := min(n, l.Burst())
		n -= some
		turn := l.ReserveN(time.Now(), some)
		delay := turn.Delay()
		if delay == 0 {
			continue
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			turn.Cancel()
			return context.Cause(ctx)
		}
	}
	return nil
}

func (a *admission) enqueue(instance string, now time.Time) (*arrivals, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting >= a.Waiting {
		return nil, errCrowded
	}
	from := a.instances[instance]
	if from == nil {
		if len(a.instances) >= 2*a.Waiting {
			a.forget(now)
		}
		from = &arrivals{limit: rate.NewLimiter(rate.Limit(a.Streams), streamBurst)}
		a.instances[instance] = from
	}
	if from.waiting >= maxStreams {
		return nil, errFlapped
	}
	from.waiting++
	a.waiting++
	a.metrics.waiting.Inc()
	return from, nil
}

func (a *admission) dequeue(from *arrivals) {
	a.mu.Lock()
	defer a.mu.Unlock()
	from.waiting--
	a.waiting--
	a.metrics.waiting.Dec()
}

// forget drops the instances of which nothing is to be remembered. mu is held.
func (a *admission) forget(now time.Time) {
	for instance, from := range a.instances {
		if from.waiting == 0 && from.limit.TokensAt(now) >= streamBurst {
			delete(a.instances, instance)
		}
	}
}

// answer waits until a proxy's first answer may be on its way. The returned function
// says that it has arrived; it may be called again, and is called after Hold at the
// latest.
func (a *admission) answer(ctx context.Context, target *xds.Resources) (answered func(), err error) {
	weight := min(a.Bytes, max(minWeight, size(target)))
	if err := a.bytes.Acquire(ctx, weight); err != nil {
		return nil, context.Cause(ctx)
	}
	release := sync.OnceFunc(func() { a.bytes.Release(weight) })
	timer := time.AfterFunc(a.Hold, release)
	return func() {
		timer.Stop()
		release()
	}, nil
}

// size is the bytes of all resources.
func size(r *xds.Resources) (n int64) {
	if r == nil {
		return 0
	}
	for _, byName := range *r {
		for _, res := range byName {
			n += int64(res.Size())
		}
	}
	return n
}
