package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store/state"
)

// keyring is the key-encryption keys that a server has, and where they are from.
type keyring struct {
	source identity.KeySource
	// needs are the ids of keys that something here is sealed with; nil: none. It is set
	// before others know the keyring.
	needs func() []string

	asking sync.Mutex // held while the source is asked, or its file is written

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

// reload asks the source again. On error the keys stay as they were; it is one that
// the source does not give any more what is needed here.
func (k *keyring) reload(ctx context.Context) error {
	k.asking.Lock()
	defer k.asking.Unlock()
	return k.ask(ctx)
}

// ask is reload with asking held.
func (k *keyring) ask(ctx context.Context) error {
	keys, err := k.source.Read(ctx)
	if err != nil {
		return err
	}
	if k.needs != nil {
		had := k.get()
		for _, id := range k.needs() {
			_, has := keys.Find(id)
			if _, lost := had.Find(id); lost && !has {
				return fmt.Errorf("key-encryption key from %s: it does not give %s any more, which this server needs", k.source, id)
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return nil
}

// take puts a key into the key file.
func (k *keyring) take(ctx context.Context, key identity.KEK) error {
	path, ok := k.source.File()
	if !ok {
		return fmt.Errorf("%w: they are from %s here, and it is for its owner to give the key %s", errNotInFile, k.source.Kind(), key.ID())
	}
	k.asking.Lock()
	defer k.asking.Unlock()
	if err := identity.PutKey(path, key); err != nil {
		return err
	}
	failpoint.Hit("controlplane.key.taken")
	return k.ask(ctx)
}

// forget takes a key out of the key file, unless something here needs it. Where keys
// are in no file, it only looks.
func (k *keyring) forget(ctx context.Context, id string) error {
	k.asking.Lock()
	defer k.asking.Unlock()
	if slices.Contains(k.needs(), id) {
		return fmt.Errorf("%w: %s", errKeyNeeded, id)
	}
	if err := k.ask(ctx); err != nil {
		return err
	}
	path, ok := k.source.File()
	if _, has := k.get().Find(id); !ok || !has {
		return nil
	}
	if err := identity.DropKey(path, id); err != nil {
		return err
	}
	failpoint.Hit("controlplane.key.forgotten")
	return k.ask(ctx)
}

var (
	errNotInFile = errors.New("the keys of this server are not in a file")
	errKeyNeeded = errors.New("something on this server is sealed with the key")
)

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
