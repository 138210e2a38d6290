package zttest

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Calls is callers at work until they are stopped.
type Calls struct {
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	passed int
	failed []string
}

// StartCalls has so many callers make a call over and over, each with a pause behind it.
// A call that returns an error has failed; one that is under way when ctx ends, or when
// the calls are stopped, has 10 s to end by itself, and counts.
func StartCalls(ctx context.Context, callers int, pause time.Duration, call func(context.Context) error) *Calls {
	ctx, stop := context.WithCancel(ctx)
	c := &Calls{stop: stop}
	for range callers {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				c.count(ctx, call)
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
			}
		})
	}
	return c
}

func (c *Calls) count(ctx context.Context, call func(context.Context) error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := call(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.passed++
	} else {
		c.failed = append(c.failed, began.Format("15:04:05.000: ")+err.Error())
	}
}

// Count is how many calls have passed so far, and how many have failed.
func (c *Calls) Count() (passed, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed, len(c.failed)
}

// Stop ends the calls. It is an error if one has failed, or none has passed.
func (c *Calls) Stop() (passed int, err error) {
	c.stop()
	c.wg.Wait()
	if len(c.failed) > 0 || c.passed == 0 {
		err = fmt.Errorf("%d calls passed, %d failed: %q", c.passed, len(c.failed), c.failed[:min(3, len(c.failed))])
	}
	return c.passed, err
}
