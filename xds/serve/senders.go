package serve

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// senders make and write the responses of all streams, a few at the same time (see
// Admission.Sending), one of each stream in the order in which they had something to
// say. A stream that is not read does not keep the others waiting.
type senders struct {
	limit    int
	patience time.Duration // a response leaves within this, or the stream ends

	mu     sync.Mutex // guards what follows; taken after any other
	ready  []*stream  // each once
	active int        // at most limit; when nobody is ready, none
}

// add has a stream served that was not ready before.
func (q *senders) add(s *stream) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ready = append(q.ready, s)
	if q.active < q.limit {
		q.active++
		go (&sender{of: q}).run()
	}
}

// take returns the next stream; nil: nobody is ready, and one sender less is active.
func (q *senders) take() *stream {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ready) == 0 {
		q.ready = nil
		q.active--
		return nil
	}
	s := q.ready[0]
	q.ready[0] = nil
	q.ready = q.ready[1:]
	return s
}

// replace has another sender go on in place of one.
func (q *senders) replace() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ready) == 0 {
		q.active--
		return
	}
	go (&sender{of: q}).run()
}

// sender is one of the senders. It ends when nobody is ready, or with a response that
// was not read at once.
type sender struct {
	of   *senders
	late *time.Timer // fires atOnce after a response was begun, and then when patience ends

	mu       sync.Mutex // guards what follows
	to       *stream    // is being written to; nil: none
	began    time.Time  // when that was begun
	replaced bool
}

// atOnce is how long a response takes at most that the peer reads.
const atOnce = 5 * time.Millisecond

func (s *sender) run() {
	for to := s.of.take(); to != nil; to = s.of.take() {
		m := to.respond()
		to.tell()
		if m == nil {
			continue
		}
		s.begin(to)
		err := to.transport.Send(m)
		if err != nil {
			to.end(err)
		}
		replaced := s.finish()
		if to.rest() {
			s.of.add(to)
		}
		if replaced {
			return
		}
	}
}

func (s *sender) begin(to *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to, s.began = to, time.Now()
	if s.late == nil {
		s.late = time.AfterFunc(atOnce, s.isLate)
	} else {
		s.late.Reset(atOnce)
	}
}

func (s *sender) finish() (replaced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late.Stop()
	s.to = nil
	return s.replaced
}

// isLate is called while a response is not read: at first, others are served in the
// meantime; at last, the stream ends, and with it Send.
func (s *sender) isLate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	took := time.Since(s.began)
	switch {
	case s.to == nil || took < atOnce: // it has been read just now; this was about it
	case !s.replaced:
		s.replaced = true
		s.late.Reset(max(0, s.of.patience-atOnce))
		s.of.replace()
	case took >= s.of.patience:
		s.to.fleet.refuse(refusedUnread, "instance", s.to.instance)
		s.to.end(status.Error(codes.DeadlineExceeded, "response was not read"))
	}
}
