package xds

import (
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one xDS resource. It is immutable: it is shared by every proxy
// that is told the same, and read by many goroutines.
type Resource struct {
	Type    string // type URL
	Name    string
	Version string // hex hash of Body.Value: equal bytes, equal version, on every replica
	Body    *anypb.Any
}

// Resources is all that Build makes for one proxy: type URL → name → resource.
// It holds listeners, clusters, routes and extensions, never endpoints, secrets
// or gates. It is immutable once built.
type Resources map[string]map[string]*Resource

// Endpoint is one address of a cluster.
type Endpoint struct {
	Address string // IP address
	Port    uint32
}
