//go:build seededbugs

package store

import (
	"os"

	"github.com/ztmesh/ztmesh/store/state"
)

// seeded is the name of the bug that this process has on purpose, so that the suites
// can show that they would find it; "" is none. Builds with the tag are for tests
// alone.
var seeded = sow(os.Getenv("ZT_SEEDED_BUG"))

func sow(bug string) string {
	state.Sow(bug)
	return bug
}
