package controlplane

import (
	"errors"
	"sync"
	"time"
)

var errCrowdedLane = errors.New("TLS: too many handshakes at once")

// lane gives a bounded number of turns, in the order in which they are asked for. It
// lets nobody wait whom it would not serve in time: by Little's law, who comes waits for
// as many turns as stand before it, times what one has taken lately. It is safe for
// concurrent use.
type lane struct {
	waits func(more int) // is told of each that begins and ends waiting

	mu    sync.Mutex // guards what follows
	free  int
	queue []*turn // those that wait, the oldest first
	// pace is the time from one turn to the next while somebody waits, smoothed.
	pace  time.Duration
	given time.Time // when the last turn was given to one who had waited; zero: then nobody waited on
}

// turn is one that waits. Its channel is closed when it has its turn.
type turn struct {
	given chan struct{}
	late  bool // it has left; guarded by lane.mu
}

// firstPace is what a turn is thought to take before one was seen, and smooth how many
// turns the pace remembers. Some may always wait: else a lane that stood still for long, as
// when its process was stopped, would have nobody wait and never see that it is fast again.
const (
	firstPace = time.Millisecond
	smooth    = 32
	someWait  = 2
)

func newLane(turns int, waits func(more int)) *lane {
	return &lane{free: turns, pace: firstPace, waits: waits}
}

// take returns when it is one's turn, which must be given back, or with errCrowdedLane:
// at once if others wait and it would not be within one's patience, or after that.
func (l *lane) take(patience time.Duration) error {
	l.mu.Lock()
	if l.free > 0 {
		l.free--
		l.mu.Unlock()
		return nil
	}
	if n := len(l.queue); n >= someWait && time.Duration(n+1)*l.pace > patience {
		l.mu.Unlock()
		return errCrowdedLane
	}
	t := &turn{given: make(chan struct{})}
	l.queue = append(l.queue, t)
	l.mu.Unlock()

	l.waits(1)
	defer l.waits(-1)
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-t.given:
		return nil
	case <-late.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-t.given: // just now
		return nil
	default:
	}
	t.late = true
	return errCrowdedLane
}

// give gives a turn back: who waits longest has it then. One that was not used says
// nothing of what a turn takes.
func (l *lane) give(used bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if used && !l.given.IsZero() {
		l.pace += (now.Sub(l.given) - l.pace) / smooth
	}
	l.given = time.Time{}
	for len(l.queue) > 0 {
		t := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		if !t.late {
			if len(l.queue) > 0 {
				l.given = now
			}
			close(t.given)
			return
		}
	}
	l.queue = nil
	l.free++
}
