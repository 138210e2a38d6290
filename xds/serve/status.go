package serve

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ProxyStatus is what a connected proxy has been told and has accepted, as its
// newest ADS stream shows it.
type ProxyStatus struct {
	Instance string
	Since    time.Time // when that stream said who it is

	// SentRevision and AckedRevision are the newest revisions that were wholly sent
	// to the proxy and wholly ACKed by it: listeners, clusters, routes, extensions
	// and gates that were set, endpoints and secrets that it subscribes to. A later
	// revision that changes nothing for the proxy counts at once. 0: none yet.
	SentRevision, AckedRevision uint64

	AckedAt time.Time // when the proxy last came to hold all it should; zero: not yet
	Nacks   []Nack    // what it refuses now, sorted by type and resource

	// Sent, Acked and Enforced say the same of the past: not of revisions that change
	// nothing for the proxy.
	Sent, Acked, Enforced Progress
	// Agent tells whether an agent speaks for the proxy; Differs is what, by its
	// last word, the Envoy does not work by yet: names of types, and resources that
	// are warming.
	Agent   bool
	Differs []string

	newest uint64 // of the fleet
}

// Progress is up to which revision something holds.
type Progress struct {
	Current   bool   // for the newest revision, and what is set now
	Revision  uint64 // if it is not Current
	Spans     []Span // since when, oldest first; not to be changed
	Forgotten bool   // there were earlier ones
}

// EnforcedRevision is the newest revision that its Envoy works by whole, as its agent
// has read there; 0: none yet.
func (s ProxyStatus) EnforcedRevision() uint64 {
	if s.Enforced.Current {
		return s.newest
	}
	return s.Enforced.Revision
}

// Nack is one resource that a proxy refused. The proxy serves on with the
// version it had.
type Nack struct {
	TypeURL  string
	Resource string
	Version  string
	Message  string    // Envoy's own words: at most 1 KiB of printable text
	When     time.Time // it first refused this version, since it connected
}

// maxMessage bounds what is kept of Envoy's words, in bytes.
const maxMessage = 1024

// maxNacks bounds how many refusals are kept for one proxy.
const maxNacks = 100

// sanitise makes the words of a peer fit for logs and terminals.
func sanitise(message string) string {
	cut := false
	if len(message) > maxMessage {
		message, cut = message[:maxMessage], true
	}
	message = strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return -1
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, message)
	if cut {
		message += "…"
	}
	return message
}
