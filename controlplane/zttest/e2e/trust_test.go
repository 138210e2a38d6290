package e2e_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
)

// foreign is the authority of another trust domain.
type foreign struct {
	root         *identity.Root
	intermediate *identity.KeyPair
}

func newForeign(t *testing.T, td string) *foreign {
	t.Helper()
	root, err := identity.NewRoot(td, identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	check(t, err)
	key, err := identity.NewKey()
	check(t, err)
	cert, err := root.SignIntermediate(key.Public(), mesh.NewID())
	check(t, err)
	pair, err := identity.NewKeyPair(key, []*x509.Certificate{cert})
	check(t, err)
	return &foreign{root, pair}
}

// bundle is what a Mesh document says of it.
func (f *foreign) bundle() string {
	pem := string(identity.EncodePEM([]*x509.Certificate{f.root.Certificate()}))
	return fmt.Sprintf("{trustDomain: %s, bundle: %q}", f.root.TrustDomain(), pem)
}

// certificate is one that it has signed for a URI, its own or not.
func (f *foreign) certificate(t *testing.T, uri string) *tls.Certificate {
	t.Helper()
	u, err := url.Parse(uri)
	check(t, err)
	key, err := identity.NewKey()
	check(t, err)
	by := f.intermediate.Leaf()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{u}, NotBefore: by.NotBefore, NotAfter: by.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, by, key.Public(), f.intermediate.Key)
	check(t, err)
	return &tls.Certificate{Certificate: [][]byte{der, by.Raw}, PrivateKey: key}
}

const meshDocument = `---
apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: shop.example%s}
`

// TestFederation: an identity of a federated trust domain is accepted if a grant
// names it exactly and its own domain has signed it; nobody signs for another
// domain; and it ends when the federation does, for what is open, too.
func TestFederation(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	other, alias, unknown := newForeign(t, "other.example"), newForeign(t, "old.example"), newForeign(t, "third.example")
	const partner = "spiffe://other.example/ns/pay/sa/api"
	base := fmt.Sprintf(bank, m.NewApp(), m.NewTCPApp()) + strings.ReplaceAll(grantTo("web", "http", ""), "web-http", "all") // anyWorkload below
	base = strings.Replace(base, "from: {workloads: [web]}", "from: {anyWorkload: true}", 1)
	grants := ""
	for _, port := range []string{"http", "raw"} {
		grants += strings.Replace(grantTo("partner", port, ""), "workloads: [partner]", "spiffeIDs: [\""+partner+"\"]", 1)
	}
	m.Apply(base)
	in := m.Run("bank/ledger").Acked()
	web := newCaller(m, "bank/web")
	get := func(as *tls.Certificate) mesh.Answer { return in.Raw(8080, as, mesh.Request("GET", ledger, "/")) }
	verdicts := func(when string, federated bool) {
		t.Helper()
		for _, c := range []struct {
			who     string
			as      *tls.Certificate
			status  int
			refused bool // by TLS, which a client may miss; else the gate has closed the connection
		}{
			{"a workload", web.svid, 200, false},
			{"the partner", other.certificate(t, partner), map[bool]int{true: 200}[federated], !federated},
			{"another of its domain", other.certificate(t, partner+"2"), 0, !federated},
			{"one of its domain below the name", other.certificate(t, partner+"/x"), 0, !federated},
			{"our workload, signed by the other domain", other.certificate(t, "spiffe://shop.example/ns/bank/sa/web"), 0, true},
			{"the partner, signed by us", m.Certificate(partner), 0, true},
			{"the partner, signed by an unknown domain", unknown.certificate(t, partner), 0, true},
			{"the partner, signed by an alias", alias.certificate(t, partner), 0, true},
			{"our workload by its former name", alias.certificate(t, "spiffe://old.example/ns/bank/sa/web"), map[bool]int{true: 200}[federated], !federated},
			{"the former name, signed by us", m.Certificate("spiffe://old.example/ns/bank/sa/web"), 0, true},
			{"a server of the other control plane", other.certificate(t, "spiffe://control.other.example/server/x"), 0, true},
			{"a server of ours", m.Certificate("spiffe://control.shop.example/server/x"), 0, true},
		} {
			if a := get(c.as); a.Status != c.status || a.Refused && !c.refused {
				t.Errorf("%s, %s: %+v, want %d, refused by TLS %v", when, c.who, a, c.status, c.refused)
			}
		}
	}
	verdicts("alone", false)
	federation := fmt.Sprintf(", trustDomainAliases: [old.example], federation: [%s, %s]", other.bundle(), alias.bundle())
	dump := func() []byte {
		body, err := in.Get(t.Context(), "/config_dump?resource=dynamic_listeners")
		check(t, err)
		return []byte(body)
	}
	before := dump()
	m.Submit(base + grants + fmt.Sprintf(meshDocument, federation))
	m.Until("the partner is accepted", func() bool { return get(other.certificate(t, partner)).Status == 200 })
	verdicts("federated", true)
	if after := dump(); !bytes.Equal(after, before) {
		t.Errorf("listeners have changed:\n%s\nbefore:\n%s", after, before)
	}
	open := openAll(t, in, other.certificate(t, partner))
	resp := m.Submit(base + fmt.Sprintf(meshDocument, ""))
	m.Until("the ledger has ACKed", func() bool { return m.Proxy(in.ID).AckedRevision >= resp.Revision })
	cut(t, "no longer federated", open)
	verdicts("alone again", false)
}
