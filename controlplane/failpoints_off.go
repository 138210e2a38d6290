//go:build !failpoints

package controlplane

import (
	"net/http"

	"github.com/ztmesh/ztmesh/store"
)

// serveFailpoints serves nothing in this build.
func serveFailpoints(*http.ServeMux, *store.Store) {}
