package identity_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/identity"
)

func TestOpenEnrolment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enrolling.json")
	open := func(workload string) identity.Enrolment {
		t.Helper()
		e, err := identity.OpenEnrolment(path, workload)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	first := open("shop/web")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	same := func(a, b identity.Enrolment) bool { return reflect.DeepEqual(a.Key.Public(), b.Key.Public()) }
	if again := open("shop/web"); again.Instance != first.Instance || !same(again, first) {
		t.Error("the second try is another instance")
	}
	if other := open("shop/orders"); other.Instance == first.Instance || same(other, first) {
		t.Error("another workload is the same instance")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content[:len(content)-2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.OpenEnrolment(path, "shop/orders"); err == nil || !strings.Contains(err.Error(), path+": damaged: remove it") || strings.Contains(err.Error(), "PRIVATE") {
		t.Errorf("damaged: %v", err)
	}
}
