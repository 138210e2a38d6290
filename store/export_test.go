package store

// For the benchmarks from outside, where the whole control plane is around a store.
var (
	BareRaft = bareRaft
	Patient  = patient
)
