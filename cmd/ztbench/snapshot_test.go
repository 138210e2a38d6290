package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestSnapshotsFollow: what is measured against the control plane tells a change to
// whom the change concerns.
func TestSnapshotsFollow(t *testing.T) {
	w := workload{services: 10, proxies: 1}
	file := fleetFile{TrustDomain: trustDomain}
	for i := range w.services {
		file.Instances = append(file.Instances, member{ID: w.name(i), Workload: w.ref(i), Address: loopback(i)})
	}
	path := filepath.Join(t.TempDir(), "fleet.json")
	b, err := json.Marshal(file)
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := newSnapshots()
	if _, err := s.do(t.Context(), order{Do: "load", Fleet: path, Spec: w.spec()}); err != nil {
		t.Fatal(err)
	}
	versions := func() map[string]string {
		out := map[string]string{}
		for _, m := range file.Instances {
			snapshot, err := s.cache.GetSnapshot(m.ID)
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(snapshot)
			if err != nil {
				t.Fatal(err)
			}
			out[m.ID] = string(b)
		}
		return out
	}
	for _, experiment := range []string{grant, wide} {
		for round := range 2 {
			before := versions()
			if _, err := s.do(t.Context(), order{Do: "change", Spec: changeOf(w, experiment, round)}); err != nil {
				t.Fatal(err)
			}
			changed := map[string]bool{}
			for id, v := range versions() {
				if v != before[id] {
					changed[id] = true
				}
			}
			for _, id := range w.reached(file, experiment, round) {
				if !changed[id] {
					t.Errorf("%s, round %d: %s is told nothing", experiment, round, id)
				}
				delete(changed, id)
			}
			if len(changed) > 0 {
				t.Errorf("%s, round %d: %v are told something, too", experiment, round, changed)
			}
		}
	}
}
