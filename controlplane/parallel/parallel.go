// Package parallel does many independent things on all processors. The pure packages
// start no goroutines: who calls them hands them [Each].
package parallel

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// Each calls do with every number below n, several at the same time, and returns when
// all calls have. A panic in one of them becomes one of the caller's; the calls that
// have not begun by then are left out.
func Each(n int, do func(i int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	if workers < 2 {
		for i := range n {
			do(i)
		}
		return
	}
	var next atomic.Int64
	var failed atomic.Pointer[string]
	var tasks sync.WaitGroup
	for range workers {
		tasks.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					text := fmt.Sprintf("%v\n\n%s", p, debug.Stack())
					failed.Store(&text)
				}
			}()
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				do(i)
			}
		})
	}
	tasks.Wait()
	if text := failed.Load(); text != nil {
		panic(*text)
	}
}

// Chunks is Each for things so small that each of them is not worth a call: do gets
// the ends of runs of at most size of them.
func Chunks(n, size int, do func(from, to int)) {
	Each((n+size-1)/size, func(i int) { do(i*size, min((i+1)*size, n)) })
}
