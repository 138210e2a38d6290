package agent

import "testing"

// TestSentOn: servers that send the agent to each other are called no faster than those
// that do not answer.
func TestSentOn(t *testing.T) {
	var at holder
	for n, tt := range []struct {
		elsewhere string
		atOnce    bool
	}{
		{"a:1", true},
		{"", false}, // it went away
		{"a:1", true},
		{"b:1", false},
		{"a:1", true},
		{"b:1", false},
		{"b:1", false}, // itself
		{"", false},
		{"", false},
	} {
		if got := at.sentOn(tt.elsewhere); got != tt.atOnce {
			t.Errorf("%d: sent to %q, called at once: %v", n, tt.elsewhere, got)
		}
	}
}
