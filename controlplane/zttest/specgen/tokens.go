package specgen

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"time"
)

// Providers are the names of the identity providers of random specs.
func Providers() []string { return []string{"corp", "partner"} }

// Audience is that of both providers.
const Audience = "ztmesh"

// Issuer is the issuer of a provider.
func Issuer(provider string) string { return "https://" + provider + ".example" }

// Key is the signing key of a provider, the same in every process. It is worth
// nothing: anybody can make it.
func Key(provider string) *ecdsa.PrivateKey { return key("provider " + provider) }

// JWKS is the JWK Set with the public key of a provider.
func JWKS(provider string) string {
	point, err := Key(provider).PublicKey.Bytes()
	if err != nil {
		panic(err) // the key is on the curve
	}
	encode := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":%q,"x":%q,"y":%q}]}`,
		provider, encode(point[1:33]), encode(point[33:]))
}

// Token is a token of a provider: claims, and `iss`, `aud` and a distant `exp`
// where claims have none. A nil value leaves a claim out.
func Token(provider string, claims map[string]any) string {
	all := map[string]any{"iss": Issuer(provider), "aud": Audience, "exp": time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		panic(fmt.Sprintf("specgen: claims: %v", err))
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(fmt.Sprintf(`{"alg":"ES256","typ":"JWT","kid":%q}`, provider))) + "." + encode(payload)
	digest := sha256.Sum256([]byte(text))
	der, err := Key(provider).Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		panic(fmt.Sprintf("specgen: sign: %v", err))
	}
	var signature struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &signature); err != nil {
		panic(fmt.Sprintf("specgen: signature: %v", err))
	}
	raw := make([]byte, 64)
	signature.R.FillBytes(raw[:32])
	signature.S.FillBytes(raw[32:])
	return text + "." + encode(raw)
}

// ForeignCA is the CA of the trust domain Foreign, the same in every process.
func ForeignCA() (certPEM string, cert *x509.Certificate, signer *ecdsa.PrivateKey) {
	signer = key("foreign")
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: Foreign},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(nil, template, template, signer.Public(), signer)
	if err == nil {
		cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		panic(fmt.Sprintf("specgen: foreign CA: %v", err))
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), cert, signer
}

// key is the P-256 key of a name.
func key(name string) *ecdsa.PrivateKey {
	seed := sha256.Sum256([]byte("specgen " + name))
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		panic(err) // one in 2^32 seeds is no key; these are known to be
	}
	return k
}
