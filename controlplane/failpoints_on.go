//go:build failpoints

package controlplane

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/store"
)

// serveFailpoints is for the crash suite, on loopback, and exists in no build that
// serves: POST /debug/failpoint?arm=NAME[:COUNT][=ACTION] arms, GET /debug/failpoint
// tells how often each was passed, GET /debug/state what the state comes to: the index
// of its last entry and the SHA-256 of its snapshot, and GET /debug/members who is of
// the Raft group, as this server knows it.
func serveFailpoints(mux *http.ServeMux, agreedOn *store.Store) {
	mux.HandleFunc("POST /debug/failpoint", func(w http.ResponseWriter, r *http.Request) {
		if err := failpoint.Arm(r.FormValue("arm")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("GET /debug/failpoint", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(failpoint.Passed()) // the caller may have gone
	})
	mux.HandleFunc("GET /debug/members", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(agreedOn.Members())
	})
	mux.HandleFunc("GET /debug/state", func(w http.ResponseWriter, _ *http.Request) {
		st, sum := agreedOn.State(), sha256.New()
		if _, err := st.WriteTo(sum); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "%d %x\n", st.Index(), sum.Sum(nil))
	})
}
