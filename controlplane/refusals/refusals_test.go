package refusals_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/controlplane/refusals"
	"github.com/ztmesh/ztmesh/journal"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// fixture is a Log with a clock that the test moves.
type fixture struct {
	*refusals.Log
	t       testing.TB
	path    string
	metrics *prometheus.Registry
	said    *bytes.Buffer
	mu      sync.Mutex // guards now
	now     time.Time
}

func open(t testing.TB, path string, maxBytes int64) *fixture {
	t.Helper()
	f := &fixture{t: t, path: path, now: start, metrics: prometheus.NewRegistry(), said: &bytes.Buffer{}}
	var err error
	f.Log, err = refusals.Open(refusals.Config{
		Path: path, MaxBytes: maxBytes, Metrics: f.metrics, Logger: slog.New(slog.NewTextHandler(f.said, nil)),
		Now: func() time.Time { f.mu.Lock(); defer f.mu.Unlock(); return f.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func (f *fixture) ahead(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

// records verifies all that is kept, and returns it.
func (f *fixture) records() (out []refusals.Record) {
	f.t.Helper()
	var at journal.Head
	err := f.Each(func(h journal.Head) error { at = h; return nil }, func(line []byte) error {
		var err error
		if at, err = journal.Verify(bytes.NewReader(append(bytes.Clone(line), '\n')), at, refusals.Check); err != nil {
			return err
		}
		r, err := refusals.Read(line)
		out = append(out, r)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fixture) count(name string) float64 {
	f.t.Helper()
	all, err := f.metrics.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, m := range all {
		if m.GetName() == name {
			return m.GetMetric()[0].GetCounter().GetValue()
		}
	}
	f.t.Fatalf("no metric %s", name)
	return 0
}

func (f *fixture) size() (n int64) {
	f.t.Helper()
	err := filepath.WalkDir(filepath.Dir(f.path), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

func TestAlikeAreOneLine(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "refusals.log"), 0)
	token := refusals.Refusal{Who: "nobody", What: "/zt/Enrol", From: "192.0.2.7", Code: "PermissionDenied", Reason: "token refused"}
	for range 3 {
		f.Add(token)
		f.ahead(time.Second)
	}
	other := token
	other.From, other.Reason = "192.0.2.8", "\xff\x00<\n"+strings.Repeat("x", 1000)
	f.Add(other)
	f.Flush()
	f.Flush() // nothing more
	f.Add(token)
	f.Flush()
	got := f.records()
	if len(got) != 3 {
		t.Fatalf("%d lines: %+v", len(got), got)
	}
	want := refusals.Record{First: start, Last: start.Add(2 * time.Second), Count: 3, Who: "nobody", What: "/zt/Enrol", From: "192.0.2.7", Code: "PermissionDenied", Reason: "token refused"}
	if got[0] != want {
		t.Errorf("%+v, want %+v", got[0], want)
	}
	if r := got[1].Reason; len(r) > 300 || !strings.HasPrefix(r, "?\x00<\n") {
		t.Errorf("reason %q", r)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, f.path, 0)
	if len(again.records()) != 3 {
		t.Error("they do not outlive a restart")
	}
}

// TestFlood: 100,000 refusals, each from another address and in its own name, at more
// than a second's worth each second for an hour, cost what a few thousand do.
func TestFlood(t *testing.T) {
	const maxBytes = 256 << 10
	long := strings.Repeat("r", 10_000)
	f := open(t, filepath.Join(t.TempDir(), "refusals.log"), maxBytes)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	for i := range 100_000 {
		f.Add(refusals.Refusal{
			Who: fmt.Sprintf("spiffe://control.x/node/%d", i), What: fmt.Sprintf("/method/%d", i%1000), From: fmt.Sprintf("10.0.%d.%d", i/256, i%256),
			Code: "PermissionDenied", Reason: long,
		})
		if i%5000 == 4999 {
			f.ahead(3 * time.Minute)
			f.Flush()
		}
	}
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	got, counted := f.records(), uint64(0)
	first := map[string]bool{}
	for _, r := range got {
		counted += r.Count
		first[r.Who] = true
	}
	t.Logf("100,000 refusals: %v, %d lines kept of %d bytes, heap grew by %d", took, len(got), f.size(), int64(after.HeapAlloc)-int64(before.HeapAlloc))
	if n := f.size(); n > maxBytes*3/2 {
		t.Errorf("%d bytes on disk, bound is %d and a segment", n, maxBytes)
	}
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 4<<20 {
		t.Errorf("heap grew by %d", grew)
	}
	if !first[refusals.Others] {
		t.Error("none stands for the others")
	}
	if f.count("zt_refusals_seen_total") != 100_000 || f.count("zt_refusals_lost_total") != 0 {
		t.Error("not all were counted")
	}
	// With room for all lines, none goes uncounted, and lines are few.
	g := open(t, filepath.Join(t.TempDir(), "refusals.log"), 1<<30)
	for i := range 100_000 {
		g.Add(refusals.Refusal{Who: "nobody", What: fmt.Sprintf("/method/%d", i), From: fmt.Sprint(i), Code: "PermissionDenied"})
		if i%10_000 == 9999 {
			g.Flush()
		}
	}
	counted = 0
	for _, r := range g.records() {
		counted += r.Count
	}
	if n := len(g.records()); counted != 100_000 || n > 1000 {
		t.Errorf("%d counted in %d lines", counted, n)
	}
}

// TestCannotWrite: what cannot be written is counted, said once, and made up for.
func TestCannotWrite(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "refusals.log"), 8<<10) // segments of 2 KiB
	block := func(name string) {
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	add := func() {
		f.ahead(time.Minute)
		f.Add(refusals.Refusal{Who: "nobody", What: "/m", From: "192.0.2.7", Code: "Unauthenticated"})
		f.Flush()
	}
	for len(f.records()) < 3 {
		add()
	}
	// The folder goes read-only in effect: whatever the next segment is called is taken.
	var taken []string
	for i := range 40 {
		taken = append(taken, fmt.Sprintf("%s.%020d-%020d", f.path, 1, i))
		block(taken[i])
	}
	for range 30 {
		add()
	}
	lost := f.count("zt_refusals_lost_total")
	if lost == 0 {
		t.Fatal("nothing was lost: the test shows nothing")
	}
	if n := strings.Count(f.said.String(), "refused calls not put on record"); n != 1 {
		t.Errorf("said %d times:\n%s", n, f.said)
	}
	for _, name := range taken {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	add()
	all := f.records()
	if last := all[len(all)-1]; last.Lost != uint64(lost) || last.Count != 1 {
		t.Errorf("the next line is %+v, %v were lost", last, lost)
	}
}

// TestDamaged: a line that was changed is named, kept as evidence, and on record.
func TestDamaged(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "refusals.log"), 0)
	for i := range 3 {
		f.Add(refusals.Refusal{Who: "nobody", What: "/m", From: fmt.Sprint(i), Code: "Unauthenticated"})
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path, bytes.Replace(b, []byte(`"count":1`), []byte(`"count":9`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, f.path, 0)
	again.Flush()
	if got := again.records(); len(got) != 1 || got[0].Code != "DataLoss" || !strings.Contains(got[0].Reason, "line 2") {
		t.Errorf("on record: %+v", got)
	}
	if !strings.Contains(again.said.String(), "was changed") {
		t.Error("nothing is said")
	}
	kept, err := filepath.Glob(f.path + ".damaged-*/refusals.log")
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept: %v, %v", kept, err)
	}
	if got, err := os.ReadFile(kept[0]); err != nil || !bytes.Contains(got, []byte(`"count":9`)) {
		t.Errorf("evidence: %v", err)
	}
}

// BenchmarkAdd is what a refusal costs, alike and different ones.
func BenchmarkAdd(b *testing.B) {
	for name, kinds := range map[string]int{"alike": 1, "different": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			f := open(b, filepath.Join(b.TempDir(), "refusals.log"), 0)
			from := make([]string, min(kinds, 4096))
			for i := range from {
				from[i] = fmt.Sprintf("10.0.%d.%d", i/256, i%256)
			}
			began := time.Now()
			for i := 0; b.Loop(); i++ {
				f.Add(refusals.Refusal{Who: "nobody", What: "/m", From: from[i%len(from)], Code: "Unauthenticated", Reason: "token refused"})
				if i%100_000 == 0 {
					f.Flush()
				}
			}
			rate := float64(b.N) / time.Since(began).Seconds()
			b.ReportMetric(rate, "refusals/s")
			verdict := "met"
			if rate < 100_000 {
				verdict = "short"
			}
			fmt.Printf("figure refusals-%s %.3g 1/s goal >= 100000 %s\n", name, rate, verdict)
		})
	}
}
