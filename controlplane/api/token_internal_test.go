package api

import (
	"context"
	"errors"
	"testing"
)

// TestBarrierPanics: one that panics holds nobody up, and says yes to nobody.
func TestBarrierPanics(t *testing.T) {
	var b barriers
	inside, waits := make(chan struct{}), make(chan struct{})
	go func() {
		defer func() { _ = recover() }()
		_ = b.wait(t.Context(), func() error {
			close(inside)
			<-waits
			panic("broken")
		})
	}()
	<-inside
	second := make(chan error, 1)
	go func() { second <- b.wait(context.Background(), func() error { return nil }) }()
	close(waits)
	if err := <-second; err != nil {
		t.Errorf("one after it: %v", err)
	}
	mine := &barrier{done: make(chan struct{}), err: errBarrier}
	b.next = mine
	close(mine.done)
	if err := b.wait(t.Context(), func() error { return nil }); !errors.Is(err, errBarrier) {
		t.Errorf("who waited for one that broke hears %v", err)
	}
}
