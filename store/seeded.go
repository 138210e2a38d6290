//go:build !seededbugs

package store

// seeded is the name of the bug that this build has on purpose: none. See
// seeded_on.go.
const seeded = ""
