//go:build system

package recovery_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
)

// TestDivergedServerStops: one of three servers, a follower and then the leader, is
// built to forget a delete. After it its state is another than that of the
// others: it stops, and says which entry, and the others go on. It does not start again
// before it is reseeded, and then all three agree bit by bit.
func TestDivergedServerStops(t *testing.T) {
	r := begin(t, "seededbugs")
	put := func(name string) string {
		return fmt.Sprintf("apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: %s}\nspec: {}\n", name)
	}
	mesh, _, _ := strings.Cut(spec, "---\n")
	for n, role := range []string{"a follower", "the leader"} {
		leader, err := r.Leader(r.Context())
		r.Check(err)
		wrong := (leader + 1) % 3
		s := r.Servers[wrong]
		s.Kill()
		r.Check(s.Start(r.Site, fmt.Sprint("ZT_SEEDED_BUG=lost-delete:goes-", n)))
		r.Check(s.Ready(r.Context()))
		if role == "the leader" {
			r.Check(r.lead(wrong))
		}
		r.apply(wrong, mesh+"---\n"+put("stays")+"---\n"+put(fmt.Sprint("goes-", n)))
		r.Check(r.Converge(r.Context()))
		id := r.IDs[wrong]

		at := time.Now()
		other := (wrong + 1) % 3
		r.Check(r.replace(other, mesh+"---\n"+put("stays")))
		select {
		case <-s.Exited():
		case <-r.Context().Done():
			t.Fatalf("%s has diverged, and goes on", role)
		}
		t.Logf("%s: it stopped %v after the apply was asked for", role, time.Since(at).Round(time.Millisecond))
		said := zttest.Tail(r.Log(s.Name), 5)
		for _, want := range []string{"the state of this server is not that of the others: after entry ", "ztd reseed --data-dir " + s.Name} {
			if !strings.Contains(said, want) {
				t.Errorf("%s: it does not say %q:\n%s", role, want, said)
			}
		}
		for i, o := range r.Servers {
			if i != wrong && !o.Running() {
				t.Fatalf("%s has diverged, and %s has stopped", s.Name, o.Name)
			}
		}
		r.apply(other, put(fmt.Sprint("on-", n)))

		// Also without the bug: what it has on its disk would lead to the right state, but
		// who knows.
		r.Check(s.Start(r.Site))
		select {
		case <-s.Exited():
		case <-r.Context().Done():
			t.Fatal("a server that has diverged starts again")
		}
		r.Until("a reseed", func(ctx context.Context) error {
			_, err := r.Command(ctx, "ztd", "reseed", "--data-dir", s.Name)
			return err
		})
		if _, err := os.Stat(filepath.Join(s.Dir(r.Site), "diverged.json")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("diverged.json is left: %v", err)
		}
		if r.IDs[wrong], err = r.ID(s); err != nil || r.IDs[wrong] == id {
			t.Errorf("it is who it was, %v", err)
		}
		r.Check(s.Start(r.Site))
		r.Check(s.Ready(r.Context()))
		r.Check(r.Together(r.Context()))
		r.Check(r.Converge(r.Context()))
	}
}
