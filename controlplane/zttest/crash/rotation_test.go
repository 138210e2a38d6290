//go:build system

package crash_test

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// rotates: a server dies while the key-encryption key is replaced, or the old one is
// dropped. It comes back, and what was begun is ended by asking again.
func (r *run) rotates(point string) {
	r.T.Helper()
	l := r.StartLoad()
	victim := r.Leads()
	if !strings.HasPrefix(point, "api.") && r.Rand.IntN(2) == 0 {
		victim = r.follower()
	}
	s := r.Servers[victim]
	before := said(s.Log(), point)
	ask := r.API((victim + 1) % 3)
	req := &ztv1.RotateKeyRequest{IdempotencyKey: identity.NewID()}
	dropping := point == "controlplane.key.forgotten"
	if !dropping {
		r.arm(s, point)
		_, _ = ask.RotateKey(r.Context(), req) // its outcome is asked for below
		r.dies(s.Process, point, before, reach)
		r.restore()
	}
	r.Until("a rotation", func(ctx context.Context) error {
		_, err := ask.RotateKey(ctx, req)
		return err
	})
	keys := r.sealed()
	if dropping {
		r.arm(s, point)
		_, _ = ask.DropKey(r.Context(), &ztv1.DropKeyRequest{KeyId: keys.Retired[len(keys.Retired)-1]})
		r.dies(s.Process, point, before, reach)
		r.restore()
		keys = r.sealed()
	}
	// Also keys that a leader made which died before anybody knew.
	for _, k := range keys.Servers {
		for _, id := range k.KeyIds {
			if id != keys.Current {
				r.Until("a key dropped", func(ctx context.Context) error {
					_, err := ask.DropKey(ctx, &ztv1.DropKeyRequest{KeyId: id})
					if err != nil && strings.Contains(err.Error(), "no server has a key") {
						return nil
					}
					return err
				})
			}
		}
	}
	for _, k := range r.sealed().Servers {
		if !slices.Equal(k.KeyIds, []string{keys.Current}) {
			r.T.Errorf("after a rotation that died at %s, %s has the keys %v, want %s", point, k.Server, k.KeyIds, keys.Current)
		}
	}
	r.settle(l)
}

// sealed waits until all servers have sealed what they hold with the current key.
func (r *run) sealed() (keys *ztv1.GetKeysResponse) {
	r.T.Helper()
	r.Until("everything is sealed with one key", func(ctx context.Context) (err error) {
		if keys, err = r.API(r.Rand.IntN(3)).GetKeys(ctx, &ztv1.GetKeysRequest{}); err != nil {
			return err
		}
		for _, k := range keys.Servers {
			if k.Error != "" || k.DataKeysSealedBy != keys.Current || k.RootCopySealedBy != keys.Current {
				return fmt.Errorf("%v, the current key is %s", k, keys.Current)
			}
		}
		return nil
	})
	return keys
}
