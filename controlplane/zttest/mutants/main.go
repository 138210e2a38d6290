// Command mutants asks whether anybody would notice if the lowering were wrong. It
// makes every mutant of controlplane/compile and xds that drops or inverts
// something of a matcher (see mutate.go), and lets the judges of rbactest try each
// of them: decision scripts, then random requests to random specs by a fixed seed.
// A mutant is caught if an interpreter of what it built and the evaluator come to
// disagree, or if it builds nothing. Golden files and other tests do not count.
//
// All mutants stand in one test binary, each behind its number in ZT_MUTANT, so
// that there is one build. Run it as "make mutation-check".
//
// A mutant that no request can tell from the original stands in equivalent.txt
// with the reason. The list is exact: an entry without a mutant, or whose mutant is
// caught, is an error.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	c := check{}
	flag.StringVar(&c.root, "C", ".", "folder of the module")
	flag.IntVar(&c.checks, "checks", 40, "random specs for each mutant that the scripts do not catch")
	flag.IntVar(&c.parallel, "parallel", 2, "mutants at a time")
	flag.IntVar(&c.every, "every", 1, "try only every n-th mutant")
	flag.DurationVar(&c.limit, "limit", 5*time.Minute, "of one mutant; who takes longer is caught")
	flag.StringVar(&c.only, "only", "", "try only mutants that have this in their name")
	flag.Parse()
	if err := c.run(); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}
