package serve

import (
	"time"
)

// maxSpans bounds how far back is told when something came about.
const maxSpans = 16

// Span is a time from which on something held, for all revisions up to Until.
type Span struct {
	From  time.Time
	Until uint64 // 0: it holds still
}

// progress is the newest revision up to which something holds.
type progress struct {
	current   bool   // it holds for what is set now, and so for the newest revision
	revision  uint64 // the newest revision it held for, if not current
	spans     []Span // when it held, oldest first; at most maxSpans
	forgotten bool   // there were earlier ones
}

// start notes that it holds from now on.
func (p *progress) start(now time.Time) {
	if p.current {
		return
	}
	p.current = true
	if len(p.spans) == maxSpans {
		p.spans, p.forgotten = p.spans[1:], true
	}
	p.spans = append(p.spans[:len(p.spans):len(p.spans)], Span{From: now})
}

// stop notes that it no longer holds after revision.
func (p *progress) stop(revision uint64) {
	if p.current {
		p.current, p.revision = false, revision
		spans := append([]Span(nil), p.spans...) // what Status has given away is not changed
		spans[len(spans)-1].Until = max(revision, 1)
		p.spans = spans
		return
	}
	p.revision = min(p.revision, revision)
}

// at returns the newest revision that it holds for.
func (p progress) at(newest uint64) uint64 {
	if p.current {
		return newest
	}
	return p.revision
}

func (p progress) told() Progress { return Progress{p.current, p.revision, p.spans, p.forgotten} }
