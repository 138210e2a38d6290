package controlplane

import (
	"context"
	"time"
)

const (
	diskLook     = 500 * time.Millisecond
	diskHandover = 10 // looks between two tries
)

// watchDisk tells the others when the disk of this server fills up or has room again,
// and hands leadership to a server whose disk has room: a leader without refuses what
// adds to the state. It ends with ctx.
func (c *cluster) watchDisk(ctx context.Context) error {
	tick := time.NewTicker(diskLook)
	defer tick.Stop()
	pause := 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		full := c.store.Full()
		if c.full.Swap(full) != full {
			c.moved.send()
		}
		if pause--; !full || pause > 0 || !c.store.IsLeader() {
			continue
		}
		id := c.roomy()
		if id == "" {
			continue
		}
		pause = diskHandover
		if err := c.store.TransferLeadershipTo(ctx, id); err != nil {
			c.log.Warn("the disk is full, and leadership was not handed over", "to", id, "error", err)
		} else {
			c.log.Info("the disk is full: leadership is handed over", "to", id)
		}
	}
}

// DiskFull is api.Cluster: what the others are told. It changes only before they are
// told so again; the store may come to know otherwise and back in between.
func (c *cluster) DiskFull() bool { return c.full.Load() }

// roomy is a voter that this server reaches and whose disk has room; empty: none.
func (c *cluster) roomy() (id string) {
	members := c.store.Members()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range members {
		if p := c.peers[m.ID]; m.Voter && p != nil && p.reachable && !p.full {
			return m.ID
		}
	}
	return ""
}
