package main

import (
	"fmt"
	"sync"
	"time"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// progress is one line on stderr that is drawn over, and only where a person
// watches.
type progress struct {
	app   *app
	drawn bool
}

func (p *progress) show(r *ztv1.WatchReceiptResponse) {
	if !p.app.progress {
		return
	}
	fmt.Fprintf(p.app.err, "\r\x1b[Kwaiting for revision %d: %s", r.Revision, confirmedBy(r.Counts))
	p.drawn = true
}

func (p *progress) done() {
	if p.drawn {
		fmt.Fprint(p.app.err, "\r\x1b[K")
	}
}

// count tells, where a person watches, what takes longer than a second and for how
// long it has, until done is called. Nothing else may be written to stderr meanwhile.
func (a *app) count(doing string) (done func()) {
	if !a.progress {
		return func() {}
	}
	begun := time.Now()
	end := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(a.err, "\r\x1b[K%s: %d s", doing, int(time.Since(begun).Seconds()))
			case <-end:
				if time.Since(begun) >= time.Second {
					fmt.Fprint(a.err, "\r\x1b[K")
				}
				return
			}
		}
	})
	return func() {
		close(end)
		drawing.Wait()
	}
}
