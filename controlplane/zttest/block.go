package zttest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Block is a /24 of loopback addresses, "127.88.17.", so that several meshes with
// equal ports can run on one machine. An address is Block and its last number.
type Block string

// NewBlock chooses a block by chance; 127.0 and 127.1 are left to others.
func NewBlock() (Block, error) {
	b := Block(fmt.Sprintf("127.%d.%d.", 2+rand.IntN(253), 1+rand.IntN(254)))
	l, err := net.Listen("tcp", b.At(1)+":0")
	if err != nil {
		return "", fmt.Errorf("the loopback interface must have all of 127.0.0.0/8: %w", err)
	}
	return b, errors.Join(l.Close())
}

// At is one address of the block.
func (b Block) At(n int) string { return fmt.Sprintf("%s%d", string(b), n) }
