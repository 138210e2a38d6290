// Package disk breaks the disks of real servers: bits flip, tails are cut off, syncs
// fail, and there is no room left. Each time a server either has everything that the
// cluster has acknowledged, or refuses to start and is seeded anew by its peers.
//
// It needs root, for a small file system of its own, and strace, for syncs that fail.
package disk
