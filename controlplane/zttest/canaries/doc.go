// Package canaries looks for secrets where they do not belong. A [Canary] is a secret
// that is known to its owner; [Finder] finds it, or half of it, in anything that
// programs write, in whatever form they would have written it in.
//
// Its suite, behind the build tag system, has the programs live a life: a cluster of
// three servers, agents and proxies enrol, keys are rotated, a backup is made and
// restored. Then it takes all of their secrets by the keys that open them, and looks
// for each of them in everything that they have left behind.
package canaries
