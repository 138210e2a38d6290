package state

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// What Apply answers in Result.Err. An entry that gets one of these has changed
// nothing.
var (
	// ErrUnknownEntry is returned when an entry has an operation or a format that
	// this version does not know, and when its index is not above the state's.
	// Whoever applies must stop: to go on without the entry would be to diverge.
	ErrUnknownEntry = errors.New("entry is not known to this version")
	// ErrNotInit is returned when anything comes before Init.
	ErrNotInit = errors.New("cluster is not initialised")
	// ErrExists is returned when Init comes twice, or a token id is taken.
	ErrExists = errors.New("already exists")
	// ErrNotFound is returned when what is to be removed is not there, and when a
	// valid token is redeemed for a workload that is not; the token stays.
	ErrNotFound = errors.New("not found")
	// ErrInvalid is returned when the fields of an entry contradict one another:
	// a mistake of whoever proposed it.
	ErrInvalid = errors.New("entry is not well formed")
	// ErrStaleBase is returned when a namespace is not at the base that the client
	// saw. The error is a *StaleBaseError.
	ErrStaleBase = errors.New("base revision is stale")
	// ErrRevalidate is returned when documents have changed since the server
	// validated: validate again and propose again.
	ErrRevalidate = errors.New("documents changed since validation")
	// ErrRootKeyReplaced is returned when the sealed root key was replaced since it
	// was read.
	ErrRootKeyReplaced = errors.New("the sealed root key was replaced meanwhile")
	// ErrKeyReused is returned when an idempotency key comes again with another
	// operation.
	ErrKeyReused = errors.New("idempotency key was used for another operation")
	// ErrTokenInvalid is returned when a token does not exist, is used, expired,
	// bound to something else or has another secret. It never says which.
	ErrTokenInvalid = errors.New("token is not valid")
	// ErrJournal is returned when an issuance journal does not go on from where it
	// was: it was cut or rewritten.
	ErrJournal = errors.New("issuance journal is not what it was")
	// ErrLastAdmin is returned when nobody would have the role admin any more.
	ErrLastAdmin = errors.New("the last admin cannot be removed")
)

// StaleBaseError is ErrStaleBase with the revisions that a retry must start from.
type StaleBaseError struct {
	Current map[string]uint64 // every namespace of the entry's bases → its revision now
}

func (e *StaleBaseError) Error() string {
	var b strings.Builder
	b.WriteString(ErrStaleBase.Error())
	for i, ns := range slices.Sorted(maps.Keys(e.Current)) {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s is at %d", sep, ns, e.Current[ns])
	}
	return b.String()
}

// Unwrap makes errors.Is(err, ErrStaleBase) true.
func (e *StaleBaseError) Unwrap() error { return ErrStaleBase }
