package spec

import (
	"bytes"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
)

// keyAlgorithms are the signature algorithms that a public key may be for
// (RFC 7518, section 3.1, and RFC 8037), by its type.
var keyAlgorithms = map[string][]string{
	"RSA": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
	"EC":  {"ES256", "ES384", "ES512"},
	"OKP": {"EdDSA"},
}

// privateMembers are those of a private or shared key (RFC 7518, sections 6.2.2,
// 6.3.2 and 6.4).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// maxKeys bounds the keys of one set, and so the time that looking at them takes.
const maxKeys = 64

// jwksProblem is why text is not a JWK Set (RFC 7517, section 5) of public keys
// that verify signatures. A key that a proxy might read otherwise is refused.
func jwksProblem(text string) error {
	set, err := jsonObject([]byte(text))
	if err != nil {
		return err
	}
	var keys []json.RawMessage
	if err := json.Unmarshal(set["keys"], &keys); err != nil || len(keys) == 0 {
		return errors.New("\"keys\" is not a list of keys")
	}
	if len(keys) > maxKeys {
		return fmt.Errorf("there are %d keys, more than %d", len(keys), maxKeys)
	}
	for i, raw := range keys {
		key, err := jsonObject(raw)
		if err == nil {
			err = keyProblem(key)
		}
		if err != nil {
			return fmt.Errorf("key %d: %w", i+1, err)
		}
	}
	return nil
}

func keyProblem(key map[string]json.RawMessage) error {
	for _, name := range privateMembers {
		if _, has := key[name]; has {
			return fmt.Errorf("it has the private member %s", show(name))
		}
	}
	texts := map[string]string{}
	for _, name := range []string{"kty", "kid", "use", "alg", "crv", "x", "y", "n", "e"} {
		var s *string
		if raw, has := key[name]; !has {
			continue
		} else if err := json.Unmarshal(raw, &s); err != nil || s == nil {
			return fmt.Errorf("%s is not a text", show(name))
		}
		texts[name] = *s
	}
	algorithms, known := keyAlgorithms[texts["kty"]]
	switch alg, has := texts["alg"]; {
	case !known:
		return fmt.Errorf("kty is %s, not RSA, EC or OKP", show(texts["kty"]))
	case has && !slices.Contains(algorithms, alg):
		return fmt.Errorf("alg is %s, which is not a signature with a public key of kty %s", show(alg), texts["kty"])
	}
	if use, has := texts["use"]; has && use != "sig" {
		return fmt.Errorf("use is %s, not \"sig\"", show(use))
	}
	switch texts["kty"] {
	case "RSA":
		return rsaProblem(texts["n"], texts["e"])
	case "EC":
		return ecProblem(texts["crv"], texts["alg"], texts["x"], texts["y"])
	}
	if x, err := base64.RawURLEncoding.Strict().DecodeString(texts["x"]); texts["crv"] != "Ed25519" || err != nil || len(x) != 32 {
		return errors.New("it is not a public key on Ed25519")
	}
	return nil
}

func rsaProblem(n, e string) error {
	modulus, err := base64.RawURLEncoding.Strict().DecodeString(n)
	exponent, err2 := base64.RawURLEncoding.Strict().DecodeString(e)
	if err != nil || err2 != nil || len(exponent) == 0 || len(exponent) > 4 {
		return errors.New("n or e is not a number in base64url")
	}
	m, x := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if m.BitLen() < 2048 || m.BitLen() > 8192 || m.Bit(0) == 0 || x.Bit(0) == 0 || x.BitLen() < 2 {
		return fmt.Errorf("it is not an RSA key of 2048 to 8192 bits (it has %d)", m.BitLen())
	}
	return nil
}

func ecProblem(crv, alg, x, y string) error {
	curve, size, of := ecdh.Curve(nil), 0, ""
	switch crv {
	case "P-256":
		curve, size, of = ecdh.P256(), 32, "ES256"
	case "P-384":
		curve, size, of = ecdh.P384(), 48, "ES384"
	case "P-521":
		curve, size, of = ecdh.P521(), 66, "ES512"
	default:
		return fmt.Errorf("crv is %s, not P-256, P-384 or P-521", show(crv))
	}
	if alg != "" && alg != of {
		return fmt.Errorf("alg is %s, but crv is %s", show(alg), crv)
	}
	bx, err := base64.RawURLEncoding.Strict().DecodeString(x)
	by, err2 := base64.RawURLEncoding.Strict().DecodeString(y)
	if err != nil || err2 != nil || len(bx) != size || len(by) != size {
		return fmt.Errorf("x or y is not %d bytes in base64url", size)
	}
	if _, err := curve.NewPublicKey(slices.Concat([]byte{4}, bx, by)); err != nil {
		return errors.New("x and y are no point of the curve")
	}
	return nil
}

// jsonObject reads text as one object in which no name stands twice.
func jsonObject(text []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	object := map[string]json.RawMessage{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, errors.New("it is not JSON")
		}
		key, _ := name.(string) // a name of an object is a string
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errors.New("it is not JSON")
		}
		if _, twice := object[key]; twice {
			return nil, fmt.Errorf("%s stands twice", show(key))
		}
		object[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("it is not JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the JSON object")
	}
	return object, nil
}
