package state

import (
	"strings"
	"testing"
)

// TestJoined: what is left out of long lists is what clip cuts, so that records stay what
// they were.
func TestJoined(t *testing.T) {
	for _, size := range []int{0, 1, 100, 126, 127, 128, 129, 250, 256, 257, 258, 4096} {
		for _, words := range [][]string{
			{strings.Repeat("x", size)}, {"a", strings.Repeat("é", size), "b"}, {strings.Repeat("x", size), strings.Repeat("y", size), "z"},
		} {
			if got, want := clip("of "+joined(words)), clip("of "+strings.Join(words, ", ")); got != want {
				t.Errorf("%d: %q, want %q", size, got, want)
			}
		}
	}
}
