// Command mutants asks whether anybody would notice if the lowering were wrong. It
// makes every mutant of controlplane/compile and xds that drops or inverts
// something of a matcher (see mutate.go), and has each of them tried, until somebody
// finds something, by
//
//  1. decision scripts: an interpreter of what was built, and the evaluator, come
//     to disagree, or nothing is built;
//  2. golden files and properties of the two packages, as far as they need no
//     Envoy. They hold what no interpreter can ask, such as what a filter does while
//     its resource is missing;
//  3. random requests to random specs by a fixed seed, judged as the scripts are.
//
// It reports who caught how many. All mutants stand in the test binaries, each
// behind its number in ZT_MUTANT, so that each is built once. Run it as "make
// mutation-check".
//
// A mutant that no request can tell from the original stands in equivalent.txt
// with the reason. The list is exact: an entry without a mutant, or whose mutant is
// caught, is an error. What a mutant is not made of, since it judges nothing, stands
// in mutate.go and runtime.go, with the reason too.
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
	flag.IntVar(&c.checks, "checks", 40, "random specs for each mutant that nobody else catches; 0 leaves them out")
	flag.IntVar(&c.parallel, "parallel", 2, "mutants at a time")
	flag.IntVar(&c.every, "every", 1, "try only every n-th mutant")
	flag.DurationVar(&c.limit, "limit", 5*time.Minute, "of one mutant; who takes longer is caught")
	flag.StringVar(&c.only, "only", "", "try only mutants that have this in their name")
	flag.StringVar(&c.again, "again", "", "try only mutants whose name ends a line of this file, such as one with the survivors of a run")
	flag.Parse()
	if err := c.run(); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}
