package agent

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
)

var (
	// ErrNotEnrolled is returned when a state directory holds no instance.
	ErrNotEnrolled = errors.New("not enrolled")
	// ErrRunning is returned when another agent works on the state directory.
	ErrRunning = errors.New("an agent runs on this data directory")
)

// dir is a state directory.
type dir string

func (d dir) record() string    { return d.file("agent.json") }
func (d dir) enrolling() string { return d.file("enrolling.json") }
func (d dir) node() string      { return d.file("node.pem") }
func (d dir) svid() string      { return d.file("svid.pem") }
func (d dir) roots() string     { return d.file("roots.pem") }
func (d dir) bootstrap() string { return d.file("bootstrap.json") }
func (d dir) sds() string       { return d.file("sds.sock") }
func (d dir) admin() string     { return d.file("envoy-admin.sock") }
func (d dir) lockFile() string  { return d.file("lock") }

func (d dir) file(name string) string { return filepath.Join(string(d), name) }

// create makes the directory where it is missing, and closes it to others.
func (d dir) create() error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	return os.Chmod(string(d), 0o700)
}

// lock takes the directory until what it returns is closed, or the process
// ends. It returns ErrRunning if another process has it.
func (d dir) lock() (io.Closer, error) {
	lock, err := identity.LockFile(d.lockFile())
	if errors.Is(err, identity.ErrLocked) {
		return nil, fmt.Errorf("%s: %w", d, ErrRunning)
	}
	return lock, err
}

// record is agent.json: what was enrolled. Nothing in it is secret.
type record struct {
	Instance      string   `json:"instance"`      // 32 hex digits; stands in the node certificate
	Workload      string   `json:"workload"`      // "shop/web"
	TrustDomain   string   `json:"trustDomain"`   // of the mesh
	Address       string   `json:"address"`       // where the Envoy listens
	EgressAddress string   `json:"egressAddress"` // where the workload reaches out
	BindAddress   bool     `json:"bindAddress"`   // call the control plane from Address
	Servers       []string `json:"servers"`       // node ports, the nearest first
	Near          int      `json:"near"`          // so many of them are in the instance's zone
	Zone          string   `json:"zone"`          // where it runs; empty: not said
	Weight        uint32   `json:"weight"`        // its share of the calls, against 100; 0: 100
	Token         string   `json:"token"`         // id of the token that was redeemed last
}

// holding is everything that an enrolled instance has. A value is not changed
// once it is shared.
type holding struct {
	record
	node, svid *identity.KeyPair
	roots      []*x509.Certificate
}

// load returns what save wrote, or ErrNotEnrolled.
func (d dir) load() (*holding, error) {
	raw, err := os.ReadFile(d.record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d, ErrNotEnrolled)
	}
	if err != nil {
		return nil, err
	}
	h := &holding{}
	if err := json.Unmarshal(raw, &h.record); err != nil {
		return nil, fmt.Errorf("%s: %w", d.record(), err)
	}
	if h.node, err = identity.LoadKeyPair(d.node()); err != nil {
		return nil, err
	}
	if h.svid, err = identity.LoadKeyPair(d.svid()); err != nil {
		return nil, err
	}
	if raw, err = os.ReadFile(d.roots()); err != nil {
		return nil, err
	}
	if h.roots, err = identity.ParsePEM(raw); err != nil {
		return nil, fmt.Errorf("%s: %w", d.roots(), err)
	}
	if uri, err := identity.URI(h.node.Leaf()); err != nil || uri != identity.NodeID(h.TrustDomain, h.Instance) {
		return nil, fmt.Errorf("%s and %s are not of one instance", d.record(), d.node())
	}
	return h, nil
}

// save makes h durable. Each file is replaced in one step, the record last.
func (d dir) save(h *holding) error {
	raw, err := json.MarshalIndent(h.record, "", "  ")
	if err != nil {
		return err
	}
	if err := identity.WriteFile(d.roots(), identity.EncodePEM(h.roots)); err != nil {
		return err
	}
	if err := h.svid.Save(d.svid()); err != nil {
		return err
	}
	failpoint.Hit("agent.state.half")
	if err := h.node.Save(d.node()); err != nil {
		return err
	}
	return identity.WriteFile(d.record(), append(raw, '\n'))
}

// forget removes what save wrote, and everything made of it; the record first.
func (d dir) forget() error {
	var errs []error
	for _, f := range []string{d.record(), d.enrolling(), d.svid(), d.node(), d.roots(), d.bootstrap()} {
		errs = append(errs, removeIfThere(f))
	}
	return errors.Join(errs...)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readToken reads the token file. What is in it never becomes part of an error.
func readToken(path string) (identity.Token, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return identity.Token{}, fmt.Errorf("token file: %w", err)
	}
	t, err := identity.ParseToken(strings.TrimSpace(string(raw)))
	if err != nil {
		return identity.Token{}, fmt.Errorf("token file %s: %w", path, err)
	}
	return t, nil
}
