package decisions

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
)

// Take is what a stream does with one entry.
func (r *Receiver) Take(workload, self string, e *accesslogv3.HTTPAccessLogEntry) {
	r.take(Reporter{Workload: workload, ID: self}, e)
}
