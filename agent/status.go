package agent

import (
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

// Status is what stands in a state directory. Nothing in it is secret.
type Status struct {
	Instance      string            `json:"instance"`
	Workload      string            `json:"workload"`
	ID            string            `json:"id"` // SPIFFE ID of the workload
	TrustDomain   string            `json:"trustDomain"`
	Address       string            `json:"address"`
	EgressAddress string            `json:"egressAddress"`
	Servers       []string          `json:"servers"`
	Zone          string            `json:"zone,omitempty"`
	Weight        uint32            `json:"weight,omitempty"` // absent: 100
	Running       bool              `json:"running"`          // an agent runs here
	SVID          CertificateStatus `json:"svid"`
	Node          CertificateStatus `json:"node"`
	Bootstrap     string            `json:"bootstrap"`   // path of what the Envoy starts with
	AdminSocket   string            `json:"adminSocket"` // of the Envoy
}

// CertificateStatus is how long a certificate lasts.
type CertificateStatus struct {
	Serial      string    `json:"serial"` // hex
	NotAfter    time.Time `json:"notAfter"`
	SecondsLeft int64     `json:"secondsLeft"` // 0: it has ended
}

// ReadStatus reads a state directory, whether or not an agent runs there. It
// returns ErrNotEnrolled if there is no instance.
func ReadStatus(dataDir string, now time.Time) (*Status, error) {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, err
	}
	d := dir(abs)
	h, err := d.load()
	if err != nil {
		return nil, err
	}
	return &Status{
		Instance: h.Instance, Workload: h.Workload, ID: h.svidID(), TrustDomain: h.TrustDomain,
		Address: h.Address, EgressAddress: h.EgressAddress, Servers: h.Servers, Zone: h.Zone, Weight: h.Weight, Running: d.serving(),
		SVID: certificateStatus(h.svid, now), Node: certificateStatus(h.node, now),
		Bootstrap: d.bootstrap(), AdminSocket: d.admin(),
	}, nil
}

// serving says whether an agent answers here. It asks the socket, since to try the
// lock would be to take it, for a moment, from an agent that starts.
func (d dir) serving() bool {
	conn, err := net.Dial("unix", d.sds())
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was said
	return true
}

func certificateStatus(p *identity.KeyPair, now time.Time) CertificateStatus {
	return CertificateStatus{
		Serial:      serial(p.Leaf()),
		NotAfter:    p.NotAfter(),
		SecondsLeft: max(0, int64(p.NotAfter().Sub(now)/time.Second)),
	}
}

func serial(c *x509.Certificate) string { return fmt.Sprintf("%x", c.SerialNumber) }
