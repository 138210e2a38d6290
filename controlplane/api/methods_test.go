package api

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestEveryMethodHasARow: who may call it and how it is recorded is decided for
// every method of every service, and for nothing else.
func TestEveryMethodHasARow(t *testing.T) {
	known := map[string]bool{}
	for _, file := range []protoreflect.FileDescriptor{
		ztv1.File_zt_v1alpha1_admin_proto, ztv1.File_zt_v1alpha1_node_proto, ztv1.File_zt_v1alpha1_peer_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				name := "/" + string(service.FullName()) + "/" + string(service.Methods().Get(j).Name())
				known[name] = true
				if _, ok := methods[name]; !ok {
					t.Errorf("%s has no row", name)
				}
			}
		}
	}
	if len(known) < 30 {
		t.Fatalf("only %d methods were found", len(known))
	}
	for name, m := range methods {
		if !known[name] {
			t.Errorf("%s is a row of no method", name)
		}
		// Names that promise a read must read, and no other may be unrecorded.
		short := name[strings.LastIndexByte(name, '/')+1:]
		reads := false
		for _, verb := range []string{"Get", "List", "Watch", "Read", "Fetch", "Can", "Confirm"} {
			reads = reads || strings.HasPrefix(short, verb)
		}
		if reads != (m.record == recordNone) && m.record != recordedBefore {
			t.Errorf("%s: recorded as %d", name, m.record)
		}
	}
}
