package identity

import (
	"os"
	"slices"
)

// publicRoots is where Linux distributions keep the CAs of the public web, as
// crypto/x509 has them.
var publicRoots = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL 6
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/pki/tls/cacert.pem",                           // OpenELEC
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL 7
	"/etc/ssl/cert.pem",                                 // Alpine
}

// PublicRoots is the file of this host's CAs of the public web, in PEM; empty if it
// has none. A proxy knows servers outside the mesh by them.
func PublicRoots() string {
	i := slices.IndexFunc(publicRoots, func(name string) bool {
		info, err := os.Stat(name)
		return err == nil && info.Mode().IsRegular() && info.Size() > 0
	})
	if i < 0 {
		return ""
	}
	return publicRoots[i]
}
