//go:build seededbugs

package store

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// TestSeededBugs: each bug that can be sown is found by the short form of
// TestLinearizable, which finds nothing without one. What is found must be a
// violation, and not just a process that breaks.
func TestSeededBugs(t *testing.T) {
	found := regexp.MustCompile(`(?m)^.*seed \d+: .*$`)
	for _, bug := range []string{
		"",
		"stale-read",     // a leader answers reads without asking anybody whether it leads
		"old-answers",    // it takes answers for it that were under way when the read came
		"early-leader",   // a new leader answers before it has committed in its term
		"lost-fsync",     // the log acknowledges what it has not synced
		"lost-vote",      // a vote is not on the disk
		"double-apply",   // a snapshot forgets the idempotency keys
		"forgotten-key",  // the next leader does
		"unchecked-base", // base revisions are not compared
		"late-publish",   // the state shows an entry after its answer
		"skipped-watch",  // a watcher that lags is not told all
		"lazy-served",    // what watchers are shown is not on the disk
		"silent-restore", // watchers are not told what a leader's snapshot has changed
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestLinearizable$", "-test.v")
			cmd.Env = append(os.Environ(), "ZT_SEEDED_BUG="+bug, "ZT_OPS="+operations(bug))
			out, err := cmd.CombinedOutput()
			first := found.Find(out)
			switch {
			case bug == "" && err != nil:
				t.Errorf("without a bug:\n%s", tail(out))
			case bug != "" && (err == nil || first == nil):
				t.Errorf("not found: %v\n%s", err, tail(out))
			default:
				t.Logf("%s", first)
			}
		})
	}
}

// operations is how many may be needed. One bug shows itself in some one in ten
// histories, and not in one or two as the others.
func operations(bug string) string {
	if bug == "old-answers" {
		return "100000"
	}
	return "20000"
}

func tail(b []byte) []byte { return b[max(0, len(b)-4000):] }
