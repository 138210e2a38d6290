package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
)

// Digest stands for names and their versions: equal ones have equal digests, 32 hex
// digits.
func Digest(versions map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		h.Write([]byte(name + "\x00" + versions[name] + "\n"))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
