package identity_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/identity"
)

func TestParseControlID(t *testing.T) {
	ok := map[string]identity.Principal{
		"spiffe://control.shop.example/server/" + serverA: {Role: identity.Server, Name: serverA},
		"spiffe://control.shop.example/admin/ada":         {Role: identity.Admin, Name: "ada"},
		"spiffe://control.shop.example/node/" + instance:  {Role: identity.Node, Name: instance},
	}
	for uri, want := range ok {
		got, err := identity.ParseControlID(uri, trustDomain)
		if err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", uri, got, err, want)
		}
		if got.ID(trustDomain) != uri {
			t.Errorf("%s: prints as %s", uri, got.ID(trustDomain))
		}
	}
	bad := []string{
		"", "spiffe://", "spiffe://control.shop.example", "spiffe://control.shop.example/",
		"spiffe://control.shop.example/server", "spiffe://control.shop.example/server/",
		"spiffe://control.shop.example/server//x", "spiffe://control.shop.example/server/x/",
		"spiffe://control.shop.example/server/x/y", "spiffe://control.shop.example/root/x",
		"spiffe://control.shop.example/Admin/ada", "spiffe://control.shop.example/admin/Ada",
		"spiffe://control.shop.example/admin/.", "spiffe://control.shop.example/x/../admin/ada",
		"spiffe://control.shop.example/admin/ad%61", "spiffe://control.shop.example/admin/ada?x",
		"spiffe://control.shop.example/admin/ada#x", "spiffe://control.shop.example/admin/ada ",
		"spiffe://control.shop.example:443/admin/ada", "spiffe://u@control.shop.example/admin/ada",
		"SPIFFE://control.shop.example/admin/ada", "spiffe://Control.shop.example/admin/ada",
		"https://control.shop.example/admin/ada", "//control.shop.example/admin/ada",
		"spiffe://shop.example/admin/ada", "spiffe://control.other.example/admin/ada",
		"spiffe://control.control.shop.example/admin/ada", "spiffe://control.shop.example./admin/ada",
		"spiffe://control.shop.example/admin/" + strings.Repeat("a", 64), "spiffe://control.shop.example/admin/a\x00",
		"spiffe://control.shop.example/admin/-a", "spiffe://control.shop.example/admin/а", // Cyrillic
	}
	for _, uri := range bad {
		if p, err := identity.ParseControlID(uri, trustDomain); err == nil {
			t.Errorf("%q was taken for %v", uri, p)
		}
	}
}

func TestParseWorkloadID(t *testing.T) {
	ns, name, err := identity.ParseWorkloadID("spiffe://shop.example/ns/shop/sa/web", trustDomain)
	if err != nil || ns != "shop" || name != "web" {
		t.Fatalf("got %q %q %v", ns, name, err)
	}
	for _, uri := range []string{
		"spiffe://shop.example/ns/shop/sa", "spiffe://shop.example/ns/shop/sa/", "spiffe://shop.example/ns//sa/web",
		"spiffe://shop.example/ns/shop/sa/web/x", "spiffe://shop.example/ns/shop/gw/web", "spiffe://shop.example/NS/shop/sa/web",
		"spiffe://shop.example/ns/shop/sa/Web", "spiffe://shop.example/ns/shop/sa/w_b", "spiffe://other.example/ns/shop/sa/web",
		"spiffe://control.shop.example/ns/shop/sa/web", "spiffe://shop.example/ns/../sa/web", "spiffe://shop.example",
	} {
		if _, _, err := identity.ParseWorkloadID(uri, trustDomain); err == nil {
			t.Errorf("%q was taken for a workload", uri)
		}
	}
}

func TestIDsRoundTrip(t *testing.T) {
	label := rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		td := strings.Join(rapid.SliceOfN(label, 1, 4).Draw(t, "td"), ".") + ".example"
		a, b := label.Draw(t, "a"), label.Draw(t, "b")
		if strings.HasPrefix(td, "control.") {
			return
		}
		if err := identity.ValidTrustDomain(td); err != nil {
			t.Fatal(err)
		}
		if ns, name, err := identity.ParseWorkloadID(identity.WorkloadID(td, a, b), td); err != nil || ns != a || name != b {
			t.Fatalf("workload: %q %q %v", ns, name, err)
		}
		for uri, role := range map[string]identity.Role{
			identity.ServerID(td, a): identity.Server, identity.AdminID(td, a): identity.Admin, identity.NodeID(td, a): identity.Node,
		} {
			if p, err := identity.ParseControlID(uri, td); err != nil || p != (identity.Principal{Role: role, Name: a}) {
				t.Fatalf("%s: %v %v", uri, p, err)
			}
		}
	})
}

// What is accepted is a SPIFFE ID for go-spiffe too, of the same trust domain,
// and prints as it was.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{
		"spiffe://control.shop.example/admin/ada", "spiffe://shop.example/ns/shop/sa/web", "spiffe://shop.example/ns/shop/sa/%77eb",
		"spiffe://control.shop.example/server/x//", "spiffe://control.SHOP.example/node/x", "spiffe://control.shop.example/node/..",
	} {
		f.Add(s, trustDomain)
	}
	f.Fuzz(func(t *testing.T, uri, td string) {
		p, err := identity.ParseControlID(uri, td)
		ns, name, werr := identity.ParseWorkloadID(uri, td)
		if err != nil && werr != nil {
			return
		}
		id, serr := spiffeid.FromString(uri)
		if serr != nil {
			t.Fatalf("%q: go-spiffe says %v", uri, serr)
		}
		if err == nil && (p.ID(td) != uri || id.TrustDomain().Name() != identity.ControlDomain(td)) {
			t.Fatalf("%q: parsed as %v of %v", uri, p, id.TrustDomain())
		}
		if werr == nil && (identity.WorkloadID(td, ns, name) != uri || id.TrustDomain().Name() != td) {
			t.Fatalf("%q: parsed as %s/%s of %v", uri, ns, name, id.TrustDomain())
		}
	})
}

func FuzzValidTrustDomain(f *testing.F) {
	for _, s := range []string{trustDomain, "a", "a_b.c", "10.0.0.1", "control.x", "a..b", "a.", "-a", "A"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, td string) {
		if identity.ValidTrustDomain(td) != nil {
			return
		}
		for _, s := range []string{td, identity.ControlDomain(td)} {
			if got, err := spiffeid.TrustDomainFromString(s); err != nil || got.Name() != s || len(s) > 255 {
				t.Fatalf("go-spiffe makes %v, %v of %q", got, err, s)
			}
		}
	})
}

func TestValidTrustDomain(t *testing.T) {
	for _, td := range []string{"a", "shop.example", "prod-1.shop_eu.example", strings.Repeat("a.", 123) + "a"} {
		if err := identity.ValidTrustDomain(td); err != nil {
			t.Error(err)
		}
	}
	for _, td := range []string{
		"", "Shop.example", "shop..example", ".shop", "shop.", "control.shop.example", "10.1.2.3", "::1", "shop example",
		"spiffe://shop.example", "shop/example", "-shop.example", "shop-.example", strings.Repeat("a", 64), strings.Repeat("a.", 124) + "a",
	} {
		if identity.ValidTrustDomain(td) == nil {
			t.Errorf("%q is accepted", td)
		}
	}
}

func TestURIOfCertificate(t *testing.T) {
	r := newRogue(t, trustDomain, nil)
	const id = "spiffe://control.shop.example/admin/ada"
	raw := func(names ...asn1.RawValue) func(*x509.Certificate) {
		b, err := asn1.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		return func(c *x509.Certificate) {
			c.URIs = nil
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: b}}
		}
	}
	name := func(tag int, b string) asn1.RawValue { return asn1.RawValue{Class: 2, Tag: tag, Bytes: []byte(b)} }
	for _, tt := range []struct {
		name   string
		change func(*x509.Certificate)
		want   string // empty: refused
	}{
		{"one", nil, id},
		{"two URIs", func(c *x509.Certificate) { c.URIs = append(c.URIs, parseURL(t, id+"2")) }, ""},
		{"the same twice", func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, ""},
		{"none", func(c *x509.Certificate) { c.URIs = nil }, ""},
		{"and a DNS name", func(c *x509.Certificate) { c.DNSNames = []string{"x"} }, ""},
		{"and an address", func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} }, ""},
		{"and an e-mail", func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} }, ""},
		{"only a DNS name", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"x"} }, ""},
		{"and a registered ID, which crypto/x509 leaves out", raw(name(6, id), name(8, "\x2a\x03\x04")), ""},
		{"nothing is normalised", raw(name(6, "SPIFFE://control.shop.example/admin/ada")), "SPIFFE://control.shop.example/admin/ada"},
		{"an empty fragment stays", raw(name(6, id+"#")), id + "#"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := identity.URI(r.leaf(t, id, tt.change).Leaf())
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
