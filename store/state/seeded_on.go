//go:build seededbugs

package state

// seeded is the name of the bug that this process has on purpose; store chooses it.
var seeded string

// Sow is called before anything else.
func Sow(bug string) { seeded = bug }
