package controlplane

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

// dataDir is the folder that makes a server what it is. Everything in it is of
// mode 0600, the folder of 0700. What is secret in it is encrypted by the data keys,
// which are sealed by a key that lies elsewhere: who has the folder alone has nothing.
type dataDir string

func (d dataDir) path(name string) string { return filepath.Join(string(d), name) }

func (d dataDir) identityFile() string { return d.path("server.json") }
func (d dataDir) dataKeys() string     { return d.path("data-keys.sealed") }
func (d dataDir) roots() string        { return d.path("roots.pem") }
func (d dataDir) sealedRoot() string   { return d.path("root-key.sealed") }
func (d dataDir) intermediate() string { return d.path("intermediate.sealed") }
func (d dataDir) journal() string      { return d.path("issuance.log") }
func (d dataDir) refusals() string     { return d.path("refusals.log") }
func (d dataDir) raft() string         { return d.path("raft") }
func (d dataDir) peers() string        { return d.path("peers.json") }
func (d dataDir) reseed() string       { return d.path("reseed") }
func (d dataDir) recovery() string     { return d.path("recover") }
func (d dataDir) diverged() string     { return d.path("diverged.json") }
func (d dataDir) addresses() string    { return d.path("addresses.json") }

// DefaultKEK is the source of a server's key-encryption key where none is named: a
// file beside its data directory.
func DefaultKEK(dataDir string) string { return identity.KeyFile(beside(dataDir, ".kek")).String() }

// DefaultAdminFile is where Init writes the first admin's credential where nothing
// else is said: beside the data directory.
func DefaultAdminFile(dataDir string) string { return beside(dataDir, ".admin.yaml") }

func beside(dir, suffix string) string {
	dir = filepath.Clean(dir)
	switch filepath.Base(dir) {
	case ".", "..": // not a name that could have a suffix
		if abs, err := filepath.Abs(dir); err == nil {
			dir = abs
		}
	}
	return dir + suffix
}

// outside refuses a path in the data directory: a copy of the folder would be a copy
// of what opens it.
func (d dataDir) outside(what, path string) error {
	in, err := identity.Within(string(d), path)
	if err == nil && in {
		err = fmt.Errorf("%s %s lies in the data directory: keep it elsewhere, or whoever copies the directory has all", what, path)
	}
	return err
}

// serverFile is server.json: who this server is. It is written last, so that a
// folder with it is complete.
type serverFile struct {
	ID          string   `json:"id"`
	TrustDomain string   `json:"trustDomain"`
	Epoch       string   `json:"epoch"`           // of the cluster that the folder is of; never changes
	Peers       []string `json:"peers,omitempty"` // cluster ports, to be found by at first
	// Opened says that this server has had a log. From then on, one without is lost.
	Opened bool `json:"opened,omitempty"`
}

// Addresses are the ports that a server has taken (host:port).
type Addresses struct {
	Admin   string `json:"admin"`
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	Local   string `json:"local"` // metrics, health, pprof
	// Plaintext is empty unless Config.PlaintextNodes is set.
	Plaintext string `json:"plaintext,omitempty"`
}

// lock holds the folder for this process until it is closed or the process ends.
// Two servers of one folder would each go on from their own last line of the
// journal and of the log.
func (d dataDir) lock() (io.Closer, error) {
	lock, err := identity.LockFile(d.path("lock"))
	if errors.Is(err, identity.ErrLocked) {
		return nil, fmt.Errorf("data directory %s is %w", string(d), identity.ErrLocked)
	}
	return lock, err
}

// create makes the folder and locks it. It refuses one that is a server already.
func (d dataDir) create() (io.Closer, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	lock, err := d.lock()
	if err != nil {
		return nil, err
	}
	if _, err = os.Stat(d.identityFile()); err == nil {
		err = fmt.Errorf("%s is the data directory of a server already; choose another one, or remove it", string(d))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return lock, nil
	}
	return nil, errors.Join(err, lock.Close())
}

// moved are files that were moved into a folder of the data directory.
type moved struct {
	d     dataDir
	to    string
	names []string
}

// setAside moves what makes a folder a server's, which must not run, into a folder
// within: all but its ports. The name of the server goes first.
func (d dataDir) setAside(now time.Time) (moved, error) {
	m := moved{d: d, to: d.path("replaced-" + now.UTC().Format("20060102T150405Z"))}
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	lock, err := d.lock()
	if err != nil {
		return m, err
	}
	defer lock.Close()
	files := []string{
		d.identityFile(), d.raft(), d.dataKeys(), d.intermediate(), d.roots(), d.sealedRoot(), d.peers(), d.reseed(), d.recovery(), d.diverged(),
	}
	names, err := os.ReadDir(string(d))
	if err != nil {
		return m, err
	}
	for _, n := range names { // the journals, with their segments
		if strings.HasPrefix(n.Name(), filepath.Base(d.journal())) || strings.HasPrefix(n.Name(), filepath.Base(d.refusals())) {
			files = append(files, d.path(n.Name()))
		}
	}
	for _, file := range files {
		if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		name := filepath.Base(file)
		if err := errors.Join(os.MkdirAll(m.to, 0o700), os.Rename(file, filepath.Join(m.to, name))); err != nil {
			return m, err
		}
		m.names = append(m.names, name)
	}
	return m, nil
}

// back moves everything back, the name of the server last.
func (m moved) back() error {
	for _, name := range slices.Backward(m.names) {
		if err := os.RemoveAll(m.d.path(name)); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(m.to, name), m.d.path(name)); err != nil {
			return err
		}
	}
	if len(m.names) == 0 {
		return nil
	}
	return os.Remove(m.to)
}

// unless moves everything back if what was to come in its place has failed, and is not
// there.
func (m moved) unless(failed error) error {
	if failed == nil {
		return nil
	}
	if _, err := os.Stat(m.d.identityFile()); err == nil {
		return failed
	}
	return errors.Join(failed, m.back())
}

func (d dataDir) load() (serverFile, error) {
	var s serverFile
	b, err := os.ReadFile(d.identityFile())
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%s is not the data directory of a server: run `ztd init` for a new cluster, or `ztd join` with a server token", string(d))
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", d.identityFile(), err)
	}
	return s, nil
}

func (d dataDir) loadRoots() ([]*x509.Certificate, error) {
	b, err := os.ReadFile(d.roots())
	if err != nil {
		return nil, err
	}
	roots, err := identity.ParsePEM(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.roots(), err)
	}
	return roots, nil
}

func (d dataDir) loadAddresses() Addresses {
	var a Addresses
	if b, err := os.ReadFile(d.addresses()); err == nil {
		_ = json.Unmarshal(b, &a) // a damaged file is as good as none: it only keeps ports stable
	}
	return a
}

// writeJSON replaces a file in one step.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return identity.WriteFile(path, append(b, '\n'))
}
