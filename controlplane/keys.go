package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store/state"
)

// keyring is the key-encryption keys that a server has, and where they are from.
type keyring struct {
	source identity.KeySource

	mu   sync.Mutex // guards keys; not held while the source is asked
	keys identity.Keys
}

// keySource is the source that text names, or the default one of a data directory.
func keySource(text string, d dataDir) (identity.KeySource, error) {
	if text == "" {
		text = DefaultKEK(string(d))
	}
	source, err := identity.ParseKeySource(text)
	if err != nil {
		return source, err
	}
	if path, ok := source.File(); ok {
		return source, d.outside("key file", path)
	}
	return source, nil
}

// openKeyring asks the source.
func openKeyring(ctx context.Context, text string, d dataDir) (*keyring, error) {
	source, err := keySource(text, d)
	if err != nil {
		return nil, err
	}
	k := &keyring{source: source}
	if err := k.reload(ctx); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; name the source with --kek", err)
	} else if err != nil {
		return nil, err
	}
	return k, nil
}

// reload asks the source again. On error the keys stay as they were.
func (k *keyring) reload(ctx context.Context) error {
	keys, err := k.source.Read(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return nil
}

func (k *keyring) get() identity.Keys {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys
}

// current is the key that seals the cluster's root key.
func (k *keyring) current(st *state.State) (identity.KEK, error) {
	id, ok := identity.SealedBy(st.SealedRootKey())
	if !ok {
		return identity.KEK{}, errors.New("this server has not learnt the cluster's root key yet")
	}
	key, ok := k.get().Find(id)
	if !ok {
		return identity.KEK{}, fmt.Errorf("the cluster's key-encryption key is %s; %s does not give it", id, k.source)
	}
	return key, nil
}
