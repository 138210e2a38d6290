package zttest

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
)

// Access is one line of an Envoy's access log, as package xds has it written.
type Access struct {
	Log       string `json:"log"` // ztmesh.access.http or ztmesh.access.tcp
	Listener  string `json:"listener"`
	Caller    string `json:"caller"` // SPIFFE ID of the peer
	Method    string `json:"method"`
	Path      string `json:"path"`
	Details   string `json:"details"` // why the proxy answered as it did
	Matched   string `json:"matched"` // the grant, or what denied
	RequestID string `json:"requestId"`
	Ended     string `json:"ended"` // why the proxy closed the connection
}

// Inbound says whether the line is of the callee's proxy.
func (a Access) Inbound() bool { return strings.HasPrefix(a.Listener, "in/") }

// ReadAccess reads the access lines of a log, which may hold others, too. A line
// that is not complete yet is left out.
func ReadAccess(file string) ([]Access, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []Access
	for line := range bytes.Lines(b) {
		var a Access
		if json.Unmarshal(line, &a) == nil && strings.HasPrefix(a.Log, "ztmesh.access.") {
			out = append(out, a)
		}
	}
	return out, nil
}
