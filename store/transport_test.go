package store

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestPipelineEndsBehindARefusal: raft reads no answer after one that refuses, and may
// send again. It is told that the pipeline is over, and does not wait for ever.
func TestPipelineEndsBehindARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(1)
		open := func(name string) *transport {
			cfg := Config{Address: name, Listener: m.listen(name), Dial: m.dialFrom(name)}
			return newTransport(cfg, newRaftLogger(slog.New(slog.DiscardHandler), time.Now))
		}
		a, b := open("a"), open("b")
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case call := <-b.Consumer():
					call.Respond(&raft.AppendEntriesResponse{}, nil)
				case <-stop:
					return
				}
			}
		}()
		p, err := a.AppendEntriesPipeline("b", "b")
		if err != nil {
			t.Fatal(err)
		}
		send := func() error {
			_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{})
			return err
		}
		if err := send(); err != nil {
			t.Fatal(err)
		}
		if answer := <-p.Consumer(); answer.Response().Success {
			t.Fatal("the answer is not the one that was sent")
		}
		for n := 0; send() == nil; n++ {
			if n > 10 {
				t.Fatal("goes on behind a refusal")
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		close(stop)
		for _, tr := range []*transport{a, b} {
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute) // of the bubble: what is under way arrives, and its reader ends
	})
}
