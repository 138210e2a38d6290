package state_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// TestGoldenEntries: a log that any release has written still leads to the state that
// it led to then, which is the golden snapshot of its name, byte for byte. A golden
// file is never rewritten.
func TestGoldenEntries(t *testing.T) {
	for name, c := range map[string]*cluster{"format-1": sampleCluster(t), "format-2": sampleOf(t)} {
		file := filepath.Join("testdata", name+".entries")
		if _, err := os.Stat(file); *update && errors.Is(err, os.ErrNotExist) {
			var b []byte
			for _, e := range c.log {
				e.Format = state.FormatOf(e)
				body, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
				if err != nil {
					t.Fatal(err)
				}
				b = append(binary.AppendUvarint(b, uint64(len(body))), body...)
			}
			if err := os.WriteFile(file, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, newest := state.New(), uint32(0)
		for len(b) > 0 {
			size, n := binary.Uvarint(b)
			e := &logv1.Entry{}
			if err := proto.Unmarshal(b[n:n+int(size)], e); err != nil {
				t.Fatal(err)
			}
			b, newest = b[n+int(size):], max(newest, e.GetFormat())
			var r state.Result
			if s, r = state.Apply(s, s.Index()+1, e); r.Err != nil {
				t.Errorf("%s: entry %d: %v", file, s.Index(), r.Err)
			}
		}
		want, err := os.ReadFile(filepath.Join("testdata", name+".snapshot"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshotOf(t, s), want) || formatOf(t, want) != newest {
			t.Errorf("%s leads elsewhere than to %s.snapshot", file, name)
		}
	}
}
