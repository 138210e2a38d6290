package state

import (
	"cmp"
	"fmt"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// formatUnsaid is what a server reads that has not said what it reads: the newest
// format of the versions that did not say.
const formatUnsaid = 2

// A Feature is something that entries hold only once every member reads it.
type Feature string

// The features, each by the words that refuse it.
const (
	Retired    Feature = "names that are not to be used again yet"
	Proposals  Feature = "proposals"
	Replicas   Feature = "read replicas"
	AuditChain Feature = "the audit log"
	Places     Feature = "zones and weights"
	Ahead      Feature = "changes validated on top of others that are not agreed on yet"
	Rotation   Feature = "root keys under another key-encryption key"
)

// Format is the oldest format that a member must read before the feature is used.
func (f Feature) Format() uint32 {
	switch f {
	case Retired, Proposals:
		return 2
	case Replicas, AuditChain, Ahead, Places, Rotation:
		return 3
	}
	return Format + 1 // nobody's
}

// FormatError is returned when an entry, or a feature, needs a format that a member
// does not read. Nothing was done: upgrade that member, or remove it.
type FormatError struct {
	Needs, Reads    uint32
	Server, Version string // of the member that reads least; Version may be empty
}

func (e *FormatError) Error() string {
	version := cmp.Or(e.Version, "of an unknown version")
	return fmt.Sprintf("this needs log format %d, and server %s (%s) reads up to %d", e.Needs, e.Server, version, e.Reads)
}

// Reads is the newest format that a server reads, by its record.
func Reads(v *logv1.Server) uint32 { return cmp.Or(v.GetFormat(), formatUnsaid) }

// Lowest is the newest format that every server reads, as each of them has said in
// its record; heard, which may be nil, has what some have said since. who is the one
// that reads least; nil if there are no servers, which read what this version does.
func (s *State) Lowest(heard map[string]uint32) (format uint32, who *logv1.Server) {
	format = Format
	for v := range s.Servers() {
		if reads := cmp.Or(heard[v.GetId()], Reads(v)); who == nil || reads < format {
			format, who = reads, v
		}
	}
	return format, who
}

// Readable returns a *FormatError unless every server reads a format; see Lowest.
func (s *State) Readable(format uint32, heard map[string]uint32) error {
	if format <= formatUnsaid {
		return nil
	}
	lowest, who := s.Lowest(heard)
	if who == nil || lowest >= format {
		return nil
	}
	return &FormatError{Needs: format, Reads: lowest, Server: who.GetId(), Version: who.GetVersion()}
}

// SnapshotFormat is the oldest format that a reader of this state must know.
func (s *State) SnapshotFormat() uint32 { return s.format() }
