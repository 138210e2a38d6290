// Package netsplit cuts links between real servers in network namespaces, one way or
// both, stops their processes, and holds the cluster to what its clients were told. It
// has tests only, behind the build tag system; they need root and iproute2.
//
// The suite runs itself again in a network, mount and process namespace of its own, in
// which it makes one namespace for each server, and a bridge at which it sits itself,
// as the clients. Everything ends with that. A link is cut in one direction by giving
// the sender a wrong hardware address of the receiver: packets go out, and nobody
// takes them, without a word to anybody.
//
// ZT_ROUNDS is how often each fault is made (1), ZT_SEED chooses how. `make netsplit`
// is the long form.
package netsplit
