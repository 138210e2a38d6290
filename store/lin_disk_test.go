package store

import (
	"math/rand/v2"
	"sync"
)

// memDisk is one server's disk across its lives. When the server is killed, so is the
// power of the disk.
type memDisk struct {
	mu    sync.Mutex   // guards files
	files *faultyFiles // of the life that it is in; those of before are dead
}

func newMemDisk(seed uint64) *memDisk {
	return &memDisk{files: newFaulty(rand.New(rand.NewPCG(seed, 3)))}
}

// kill takes the disk from whoever has it, and loses what may be lost.
func (d *memDisk) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files = d.files.cut()
}

// open is the disk for a server's new life.
func (d *memDisk) open() *faultyFiles {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files
}
