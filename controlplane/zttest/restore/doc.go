// Package restore loses a whole cluster of real servers, under Envoys that serve, and
// goes on from a backup. Its suite is behind the build tag system.
package restore
