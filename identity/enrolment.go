package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Enrolment is who asks for a token to be redeemed: the same in every try, so that a
// try whose outcome is not known can be repeated.
type Enrolment struct {
	Instance string
	Key      PrivateKey // of the node certificate
}

// enrolmentFile is an enrolment on disk.
type enrolmentFile struct {
	Instance string `json:"instance"`
	Workload string `json:"workload"`
	Key      string `json:"key"` // PEM
}

// OpenEnrolment returns the enrolment of a workload, NAMESPACE/NAME, that is under way
// in a file of mode 0600, or begins one there. Whoever has enrolled removes the file. It
// is an error if the file is damaged.
func OpenEnrolment(path, workload string) (Enrolment, error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		var f enrolmentFile
		if err := json.Unmarshal(raw, &f); err != nil {
			return Enrolment{}, fmt.Errorf("%s: damaged: remove it to enrol anew", path) // err may quote the key
		}
		if f.Workload == workload {
			key, err := ParseKey([]byte(f.Key))
			if err != nil {
				return Enrolment{}, fmt.Errorf("%s: %w", path, err)
			}
			return Enrolment{f.Instance, key}, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Enrolment{}, err
	}
	key, err := NewKey()
	if err != nil {
		return Enrolment{}, err
	}
	secret, err := key.PEM()
	if err != nil {
		return Enrolment{}, err
	}
	e := Enrolment{Instance: NewID(), Key: key}
	if raw, err = json.Marshal(enrolmentFile{e.Instance, workload, string(secret.Reveal())}); err != nil {
		return Enrolment{}, err
	}
	return e, WriteFile(path, raw)
}
