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
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
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

// TestDivergedWithoutMajority: a server diverges while another of the three is down. Of
// the two that are left nobody can tell which is right, not even the leader: both say so
// and go on. The third decides as soon as it is back: who is wrong stops.
func TestDivergedWithoutMajority(t *testing.T) {
	r := begin(t, "seededbugs")
	mesh, _, _ := strings.Cut(spec, "---\n")
	put := func(name string) string {
		return fmt.Sprintf("---\napiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: %s}\nspec: {}\n", name)
	}
	leader, err := r.Leader(r.Context())
	r.Check(err)
	wrong, away := (leader+1)%3, (leader+2)%3
	s := r.Servers[wrong]
	s.Kill()
	r.Check(s.Start(r.Site, "ZT_SEEDED_BUG=lost-delete:goes"))
	r.Check(s.Ready(r.Context()))
	r.apply(leader, mesh+put("stays")+put("goes"))
	r.Check(r.Converge(r.Context()))
	r.Servers[away].Kill()
	r.Check(r.replace(leader, mesh+put("stays")))
	for _, n := range []int{leader, wrong} {
		o := r.Servers[n]
		r.Until(o.Name+" raises the alarm", func(ctx context.Context) error {
			metrics, err := o.Get(ctx, "/metrics")
			if err != nil {
				return err
			}
			if !strings.Contains(metrics, "\nzt_controlplane_state_differs 2\n") {
				return errors.New("the metric does not tell")
			}
			if !strings.Contains(zttest.Tail(r.Log(o.Name), 50), "no majority of all voters says which is right") {
				return errors.New("the log does not tell")
			}
			members, err := r.API(n).ListMembers(ctx, &ztv1.ListMembersRequest{})
			if err != nil {
				return err
			}
			for _, m := range members.Members {
				if m.Differs != (m.Id != r.IDs[away]) {
					return fmt.Errorf("of %s its members say %v", m.Id, m.Differs)
				}
			}
			return nil
		})
	}
	for _, n := range []int{leader, wrong} {
		if !r.Servers[n].Running() {
			t.Fatalf("%s has stopped, though nobody can tell", r.Servers[n].Name)
		}
	}
	r.Check(r.Servers[away].Start(r.Site))
	select {
	case <-s.Exited():
	case <-r.Context().Done():
		t.Fatal("a majority says that it is wrong, and it goes on")
	}
	if said := zttest.Tail(r.Log(s.Name), 5); !strings.Contains(said, "the state of this server is not that of the others") {
		t.Errorf("it says:\n%s", said)
	}
	r.Check(r.Servers[away].Ready(r.Context()))
	r.apply(away, put("on"))
	for _, n := range []int{leader, away} {
		if !r.Servers[n].Running() {
			t.Errorf("%s was right, and has stopped", r.Servers[n].Name)
		}
	}
}
