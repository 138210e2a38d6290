package api

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// TestCVE_2022_24687_PanicIsOneCallsError: what one call panics at ends that call, not
// the server, and its text stays inside.
func TestCVE_2022_24687_PanicIsOneCallsError(t *testing.T) {
	for name, f := range map[string]func() error{
		"a panic": func() error { panic("key of somebody") },
		"an index": func() error {
			var none []string
			_ = none[len(none):][0]
			return nil
		},
	} {
		err := guard(f)
		if err == nil || !strings.Contains(err.Error(), "goroutine") {
			t.Fatalf("%s: %v, want a stack for the log", name, err)
		}
		st, inside := toStatus(err)
		if st.Code() != codes.Internal || !inside || strings.Contains(st.Message(), "key of somebody") || strings.Contains(st.Message(), "goroutine") {
			t.Errorf("%s: answered with %v", name, st)
		}
	}
}
