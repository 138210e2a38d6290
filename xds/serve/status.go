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
}

// Nack is one resource that a proxy refused. The proxy serves on with the
// version it had.
type Nack struct {
	TypeURL  string
	Resource string
	Version  string
	Message  string // Envoy's own words: at most 1 KiB of printable text
	When     time.Time
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

// progress is the newest revision up to which something holds.
type progress struct {
	current  bool   // it holds for what is set now, and so for the newest revision
	revision uint64 // the newest revision it held for, if not current
}

// stop notes that it no longer holds after revision.
func (p *progress) stop(revision uint64) {
	if p.current {
		p.current, p.revision = false, revision
		return
	}
	p.revision = min(p.revision, revision)
}

// at returns the newest revision that it holds for.
func (p progress) at(newest uint64) uint64 {
	if p.current {
		return newest
	}
	return p.revision
}
