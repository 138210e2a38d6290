package store

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/hashicorp/raft"
)

// runScrub reads log and snapshots through at intervals, so that damage is found
// while the other servers are still whole. The store ends with it: it must not vote
// with what it has.
func (s *Store) runScrub() {
	every := s.cfg.Timing.Scrub
	if every == 0 {
		every = time.Hour
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.end.ch:
			return
		}
		if err := s.scrub(); err != nil {
			s.end.set(fmt.Errorf("%w: %w", ErrUnreadable, err))
			return
		}
		s.metrics.scrubs.Inc()
		s.metrics.scrubbed.Set(float64(s.cfg.Now().Unix()))
	}
}

// scrub returns what is damaged. What is removed meanwhile is nobody's loss.
func (s *Store) scrub() error {
	metas, err := s.snapshots.List()
	if err != nil {
		return err
	}
	for _, m := range metas {
		_, r, err := s.snapshots.open(m.ID)
		if errors.Is(err, fs.ErrNotExist) && !s.snapshots.has(m.ID) {
			continue
		}
		if err != nil {
			return err
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	first, _ := s.log.FirstIndex()
	last, _ := s.log.LastIndex()
	for i := first; i <= last && i > 0; i++ {
		select {
		case <-s.end.ch:
			return nil
		default:
		}
		var e raft.Log
		if err := s.log.read(i, &e); err != nil && !errors.Is(err, raft.ErrLogNotFound) {
			return fmt.Errorf("log: %w", err)
		}
	}
	return nil
}

// has says whether a snapshot is one of those that are kept.
func (s *snapshots) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.known {
		if m.ID == id {
			return true
		}
	}
	return false
}
