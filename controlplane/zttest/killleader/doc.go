// Package killleader kills the leader of three real servers, again and again, while real
// Envoys carry requests. It has tests only, behind the build tag system.
//
// One round: the server that leads ends by SIGKILL; a change is asked of the others until
// it is agreed on, and until the Envoys judge by it; then the server is started again.
// Not one request may be lost in all of this.
//
// ZT_KILLS is how many rounds (5). `make kill-leader N=100` is the long form.
package killleader
