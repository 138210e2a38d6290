//go:build !seededbugs

package state

// seeded is the name of the bug that this build has on purpose: none.
const seeded = ""
