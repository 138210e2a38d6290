// Package crash ends real servers at every failpoint, under load, starts them again,
// and holds the cluster to what its clients were told. It has tests only, behind the
// build tag system.
//
// One cycle: a failpoint is armed in a server that runs, or in one that starts; the
// process ends there by SIGKILL, sometimes with a second one at any moment; everything
// is started again; every open call is asked again to its end; then the ledger, the
// issuance journals and the states of all three servers, bit by bit, are compared.
//
// ZT_CYCLES is how many (one per failpoint), ZT_SEED chooses them; what failed is run
// again by the seed that it printed. `make crash` is the long form.
package crash
