package state_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// by makes an entry one of a call.
func by(who, from, method string, e *logv1.Entry) *logv1.Entry {
	e.Who, e.From, e.Method = who, from, method
	e.SpiffeId = "spiffe://control.shop.example/" + who
	return e
}

// TestAuditChain: over random logs, every entry has exactly one record, refused ones
// too, each follows the one before, and a replica that begins with a snapshot makes
// the same.
func TestAuditChain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := state.New()
		var log []*logv1.Entry
		var chain [][]byte
		snapshotAt := rapid.IntRange(0, 20).Draw(t, "snapshot at")
		var snapshot []byte
		for i := range 30 {
			if i == snapshotAt {
				snapshot = snapshotBytes(t, s)
			}
			e := entries(t, s)
			e.Method = "/m"
			if i == 0 {
				e.Op = &logv1.Entry_Init{Init: initOp()}
			}
			sequence, hash := s.AuditHead()
			next, r := state.Apply(s, uint64(i+1), e)
			a, err := state.CheckAudit(r.Audit.Bytes, sequence, hash)
			if err != nil {
				t.Fatalf("record %d %v", i+1, err)
			}
			rec := a.Record
			if rec.GetIndex() != uint64(i+1) || rec.GetRevision() != next.Revision() || !rec.GetWhen().AsTime().Equal(next.When()) {
				t.Fatalf("record %v", rec)
			}
			if refused := rec.GetOutcome() != "ok" && rec.GetOutcome() != "replayed"; refused != (r.Err != nil) || rec.GetOutcome() == "refused" {
				t.Fatalf("%v is recorded as %q", r.Err, rec.GetOutcome())
			}
			if sequence, hash := next.AuditHead(); sequence != rec.GetSequence() || !bytes.Equal(hash, a.Hash) {
				t.Fatalf("the head is at %d", sequence)
			}
			s, log, chain = next, append(log, e), append(chain, r.Audit.Bytes)
		}
		replica, err := state.Read(bytes.NewReader(snapshot))
		if err != nil {
			t.Fatal(err)
		}
		for i := snapshotAt; i < len(log); i++ {
			var r state.Result
			replica, r = state.Apply(replica, uint64(i+1), log[i])
			if !bytes.Equal(r.Audit.Bytes, chain[i]) {
				t.Fatalf("a replica has another record %d", i+1)
			}
		}
	})
}

// TestAuditRecords: what a record says, by the operation and its outcome.
func TestAuditRecords(t *testing.T) {
	c := newCluster(t)
	admin := func(e *logv1.Entry) *logv1.Entry { return by("admin/root", "192.0.2.7", "/m", e) }
	c.must(admin(c.put(doc("Workload", "shop", "web", "the body"), doc("Workload", "bank", "teller", "b"))))
	last := admin(&logv1.Entry{Op: &logv1.Entry_DeleteAdmin{DeleteAdmin: &logv1.DeleteAdmin{Name: "root"}}})
	stale := admin(c.put(doc("Grant", "shop", "g", "1")))
	stale.GetApply().Bases = map[string]uint64{"shop": 1}
	replay := func() *logv1.Entry {
		e := admin(c.put(doc("Grant", "shop", "g", "1")))
		e.IdempotencyKey, e.OperationHash = "k", hashOf("k")
		return e
	}
	same := admin(c.put(doc("Workload", "shop", "web", "the body"))) // no change
	for _, tt := range []struct {
		name    string
		e       *logv1.Entry
		outcome string
		about   string
		detail  string
	}{
		{"no change", same, "ok", "", ""},
		{"stale", stale, "stale-base", "Grant shop/g", ""},
		{"keyed", replay(), "ok", "Grant shop/g", ""},
		{"again", replay(), "replayed", "", ""},
		{"last admin", last, "last-admin", "Admin /root", ""},
		{"token", admin(c.token("t1", "shop/web")), "ok", "Token shop/t1", "for workload shop/web"},
		{"server token", admin(c.token("t2", "")), "ok", "Token /t2", "for a server"},
		{"enrol", by("nobody", "192.0.2.9", "/e", redeem("t1", "i1", "shop/web")), "ok", "Instance shop/i1, Token shop/t1", "of workload shop/web"},
		{"enrol by a used one", redeem("t1", "i2", "shop/web"), "token-invalid", "Instance shop/i2, Token shop/t1", "of workload shop/web"},
		{
			"server", &logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: &logv1.Redeem{Id: "t2", SecretHash: hashOf("t2"), Server: &logv1.Server{Id: "s2"}}}},
			"ok", "Server /s2, Token /t2", "the key-encryption key is handed over",
		},
		{"deregister", admin(&logv1.Entry{Op: &logv1.Entry_Deregister{Deregister: &logv1.Deregister{Instance: "i1"}}}), "ok", "Instance shop/i1", ""},
		{"deregister nobody", admin(&logv1.Entry{Op: &logv1.Entry_Deregister{Deregister: &logv1.Deregister{Instance: "i1"}}}), "not-found", "Instance /i1", ""},
		{"admin", admin(&logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: "ed", Role: "editor", Namespaces: []string{"shop"}}}}}), "ok", "Admin /ed", "role editor of shop"},
		{"proposal", admin(propose("shop")), "ok", "Proposal shop/shop", ""},
		{"access", admin(&logv1.Entry{Op: &logv1.Entry_Access{Access: &logv1.Access{Kind: "Server", Name: "s2"}}}), "ok", "Server /s2", ""},
	} {
		r := c.apply(tt.e)
		rec := r.Audit.Record
		var about []string
		for _, k := range rec.GetResources() {
			about = append(about, k.GetKind()+" "+k.GetNamespace()+"/"+k.GetName())
		}
		if got := strings.Join(about, ", "); rec.GetOutcome() != tt.outcome || got != tt.about || rec.GetDetail() != tt.detail {
			t.Errorf("%s (%v): %q, about %q, %q", tt.name, r.Err, rec.GetOutcome(), got, rec.GetDetail())
		}
		if rec.GetFrom() != tt.e.GetFrom() || rec.GetMethod() != tt.e.GetMethod() || tt.e.GetSpiffeId() != "" && rec.GetWho() != tt.e.GetSpiffeId() {
			t.Errorf("%s: %v", tt.name, rec)
		}
		for _, secret := range [][]byte{[]byte("the body"), hashOf("t1"), hashOf("t2"), hashOf("key of i1"), []byte("sealed")} {
			if bytes.Contains(r.Audit.Bytes, secret) {
				t.Errorf("%s: a record holds %q", tt.name, secret)
			}
		}
	}
}

// TestAuditIsBounded: a record is small whatever callers send, and is always text.
func TestAuditIsBounded(t *testing.T) {
	c := newCluster(t)
	var docs []*logv1.Put
	for i := range 5000 {
		docs = append(docs, doc("Workload", fmt.Sprintf("ns%d", i%1000), fmt.Sprintf("w%04d", 4999-i), "w"))
	}
	r := c.must(by("admin/root", "::1", "/m", c.put(docs...)))
	rec := r.Audit.Record
	if rec.GetResourcesTotal() != 5000 || len(rec.GetResources()) != 64 || len(rec.GetNamespaces()) != 256 || len(r.Audit.Bytes) > 8<<10 {
		t.Errorf("%d of %d resources, %d namespaces, %d bytes", len(rec.GetResources()), rec.GetResourcesTotal(), len(rec.GetNamespaces()), len(r.Audit.Bytes))
	}
	if k := rec.GetResources()[0]; k.GetNamespace() != "ns0" || !slices.IsSortedFunc(rec.GetResources(), func(a, b *logv1.AuditResource) int {
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	}) {
		t.Errorf("not the lowest: %v", rec.GetResources())
	}
	long := strings.Repeat("é", 1<<20)
	r = c.apply(by(long, long, long, redeem("\xff\xfe", long, long+"/\xff")))
	if len(r.Audit.Bytes) > 8<<10 {
		t.Errorf("%d bytes", len(r.Audit.Bytes))
	}
	if _, err := state.ReadAudit(r.Audit.Bytes); err != nil {
		t.Error(err)
	}
}

// TestAuditEncoding pins the canonical encoding and its hash, which other programs
// may compute.
func TestAuditEncoding(t *testing.T) {
	s, r := state.Apply(state.New(), 7, &logv1.Entry{
		Format: 3, When: timestamppb.New(epoch), Who: "init", Method: "init", Op: &logv1.Entry_Init{Init: initOp()},
	})
	const want = "080110071a060880f2d6ca062204696e697432" + "04696e69743a04696e6974" +
		"420d0a0541646d696e1a04726f6f744801" + "5a19747275737420646f6d61696e2073686f702e6578616d706c65" + "62026f6b"
	if got := hex.EncodeToString(r.Audit.Bytes); got != want {
		t.Errorf("encoded as\n%s, want\n%s", got, want)
	}
	_, hash := s.AuditHead()
	if got := hex.EncodeToString(hash); got != "d13371bff4bf8fd74f0a82b5fcf9a06b78c644bcffb477d7f96b2f82c245fff3" {
		t.Errorf("hash %s", got)
	}
}

// TestAuditTampering: a record with any one byte changed, cut off or added is not
// taken for what was written.
func TestAuditTampering(t *testing.T) {
	c := newCluster(t)
	sequence, hash := c.s.AuditHead()
	first := c.must(by("admin/root", "192.0.2.7", "/m", c.put(doc("Workload", "shop", "web", "w")))).Audit
	second := c.must(by("admin/root", "192.0.2.7", "/m", c.put(doc("Workload", "shop", "db", "w")))).Audit
	check := func(what string, b []byte) {
		t.Helper()
		a, err := state.CheckAudit(b, sequence, hash)
		if err == nil {
			_, err = state.CheckAudit(second.Bytes, sequence+1, a.Hash)
		}
		if err == nil {
			t.Errorf("%s: not found", what)
		}
	}
	for i := range first.Bytes {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			b := bytes.Clone(first.Bytes)
			b[i] ^= flip
			check(fmt.Sprintf("byte %d ^ %#x", i, flip), b)
		}
		check(fmt.Sprintf("cut at %d", i), first.Bytes[:i])
	}
	check("another after it", append(bytes.Clone(first.Bytes), first.Bytes...))
	check("unknown field", append(bytes.Clone(first.Bytes), 0xf8, 0x07, 0x01))
	check("the next in its place", second.Bytes)
}

// TestNoRecordsBefore: entries of before there were records give the states and
// snapshots that they gave then; since the first record, everything has one.
func TestNoRecordsBefore(t *testing.T) {
	c := newCluster(t)
	if r := c.must(c.put(doc("Workload", "shop", "web", "w"))); r.Audit != nil || formatOf(t, snapshotOf(t, c.s)) != 1 {
		t.Errorf("an entry of format 1 has the record %v", r.Audit)
	}
	e := by("admin/root", "", "/m", c.put(doc("Workload", "shop", "db", "w")))
	if state.FormatOf(e) != 3 {
		t.Fatalf("format %d", state.FormatOf(e))
	}
	if r := c.must(e); r.Audit.Record.GetSequence() != 1 || r.Audit.Record.GetPrevious() != nil {
		t.Errorf("the first record is %v", r.Audit.Record)
	}
	if r := c.must(c.put(doc("Workload", "shop", "cache", "w"))); r.Audit.Record.GetSequence() != 2 {
		t.Errorf("the second record is %v", r.Audit.Record)
	}
	if got := formatOf(t, snapshotOf(t, c.s)); got != 3 {
		t.Errorf("snapshot of format %d", got)
	}
}

func anchor(server string, lines uint64, hash string, accept bool) *logv1.Entry {
	return &logv1.Entry{Method: "anchor", Op: &logv1.Entry_AnchorJournal{AnchorJournal: &logv1.AnchorJournal{
		Server: server, Lines: lines, Hash: hex.EncodeToString(hashOf(hash)), Accept: accept,
	}}}
}

// TestAnchors: the anchor of a journal goes forward only, unless somebody accepts
// that it does not, and goes with its server.
func TestAnchors(t *testing.T) {
	c := newCluster(t)
	if r := c.apply(anchor("s1", 1, "a", false)); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("of an unknown server: %v", r.Err)
	}
	c.must(&logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: "s1"}}}})
	if r := c.must(anchor("s1", 5, "a", false)); !r.Changed.Journals {
		t.Error("no change is told")
	}
	if r := c.must(anchor("s1", 5, "a", false)); !r.Changed.Empty() {
		t.Errorf("the same again: %+v", r.Changed)
	}
	for name, e := range map[string]*logv1.Entry{
		"shorter": anchor("s1", 4, "b", false), "rewritten": anchor("s1", 5, "b", false),
		"longer, and does not say that it leads through": anchor("s1", 9, "b", false),
	} {
		if r := c.apply(e); !errors.Is(r.Err, state.ErrJournal) || r.Audit.Record.GetOutcome() != "journal-differs" {
			t.Errorf("%s: %v, recorded as %v", name, r.Err, r.Audit.Record)
		}
	}
	for _, bad := range []*logv1.AnchorJournal{{Server: "s1", Lines: 9, Hash: "ab"}, {Server: "s1", Hash: hex.EncodeToString(hashOf("x"))}, {Lines: 9, Hash: hex.EncodeToString(hashOf("x"))}} {
		if r := c.apply(&logv1.Entry{Op: &logv1.Entry_AnchorJournal{AnchorJournal: bad}}); !errors.Is(r.Err, state.ErrInvalid) {
			t.Errorf("%v: %v", bad, r.Err)
		}
	}
	again, err := state.Read(bytes.NewReader(snapshotOf(t, c.s)))
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := again.Anchor("s1"); !ok || a.GetLines() != 5 || !a.GetWhen().IsValid() {
		t.Errorf("restored as %v", a)
	}
	on := anchor("s1", 6, "d", false)
	on.GetAnchorJournal().AfterLines, on.GetAnchorJournal().AfterHash = 5, hex.EncodeToString(hashOf("a"))
	c.must(on)
	accept := func(server, reason string) *logv1.Entry {
		return &logv1.Entry{Op: &logv1.Entry_AcceptJournal{AcceptJournal: &logv1.AcceptJournal{Server: server, Reason: reason}}}
	}
	if r := c.apply(anchor("s1", 2, "c", true)); !errors.Is(r.Err, state.ErrJournal) {
		t.Errorf("accepted by nobody: %v", r.Err)
	}
	if r := c.apply(accept("s2", "why")); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("of a server without an anchor: %v", r.Err)
	}
	if r := c.apply(accept("s1", "")); !errors.Is(r.Err, state.ErrInvalid) {
		t.Errorf("without a reason: %v", r.Err)
	}
	if r := c.must(accept("s1", "the disk was replaced")); r.Audit.Record.GetDetail() != "the disk was replaced" || !r.Changed.Journals {
		t.Errorf("recorded as %v", r.Audit.Record)
	}
	if again, err := state.Read(bytes.NewReader(snapshotOf(t, c.s))); err != nil {
		t.Fatal(err)
	} else if a, _ := again.Anchor("s1"); !a.GetAccepted() {
		t.Errorf("restored as %v", a)
	}
	if r := c.apply(anchor("s1", 2, "c", false)); !errors.Is(r.Err, state.ErrJournal) {
		t.Errorf("one that does not say that it was cut: %v", r.Err)
	}
	c.must(anchor("s1", 2, "c", true))
	if a, _ := c.s.Anchor("s1"); a.GetLines() != 2 || a.GetAccepted() {
		t.Errorf("accepted, and it is %v", a)
	}
	if r := c.apply(anchor("s1", 1, "d", true)); !errors.Is(r.Err, state.ErrJournal) {
		t.Errorf("accepted once, taken twice: %v", r.Err)
	}
	// One that turns out to be good ends the acceptance.
	c.must(accept("s1", "a mistake"))
	c.must(anchor("s1", 2, "c", false))
	if a, _ := c.s.Anchor("s1"); a.GetAccepted() {
		t.Error("it is accepted for good")
	}
	testLetGo(t, c)
	if r := c.must(&logv1.Entry{Op: &logv1.Entry_DeleteServer{DeleteServer: &logv1.DeleteServer{Id: "s1"}}}); !r.Changed.Journals {
		t.Error("it does not go with its server")
	}
}

// TestTry: what the state would say, and nothing has happened.
func TestTry(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Workload", "shop", "web", "w")))
	c.must(c.token("a", "shop/web"))
	before := snapshotOf(t, c.s)
	if err := c.s.Try(redeem("a", "i", "shop/web")); err != nil {
		t.Error(err)
	}
	if err := c.s.Try(redeem("b", "i", "shop/web")); !errors.Is(err, state.ErrTokenInvalid) {
		t.Error(err)
	}
	late := redeem("a", "i", "shop/web")
	late.When = timestamppb.New(c.s.When().Add(2 * time.Hour))
	if err := c.s.Try(late); !errors.Is(err, state.ErrTokenInvalid) {
		t.Error(err)
	}
	if !bytes.Equal(before, snapshotOf(t, c.s)) {
		t.Error("the state has changed")
	}
}

// sampleAudit is sample with an audit chain and an anchor.
func sampleAudit(t testing.TB) *state.State {
	s := sample(t)
	for _, e := range []*logv1.Entry{anchor("s1", 3, "a", false), by("admin/root", "192.0.2.7", "/m", &logv1.Entry{Op: &logv1.Entry_Access{Access: &logv1.Access{}}})} {
		e = proto.CloneOf(e)
		e.Format, e.When = 3, timestamppb.New(s.When().Add(time.Second))
		var r state.Result
		if s, r = state.Apply(s, s.Index()+1, e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	return s
}

// testLetGo: lines go after they were anchored, and what may be gone only grows. The
// anchor of s1 is at 2 lines.
func testLetGo(t *testing.T, c *cluster) {
	t.Helper()
	letGo := func(lines, upTo uint64, hash, after string, afterLines uint64) *logv1.Entry {
		e := anchor("s1", lines, hash, false)
		e.GetAnchorJournal().LetGo, e.GetAnchorJournal().AfterLines = upTo, afterLines
		e.GetAnchorJournal().AfterHash = hex.EncodeToString(hashOf(after))
		return e
	}
	if r := c.apply(letGo(9, 3, "x", "c", 2)); !errors.Is(r.Err, state.ErrInvalid) {
		t.Errorf("lines go that no anchor is after: %v", r.Err)
	}
	c.must(letGo(2, 2, "c", "", 0)) // where it is
	c.must(letGo(9, 0, "x", "c", 2))
	if a, _ := c.s.Anchor("s1"); a.GetLines() != 9 || a.GetLetGo() != 2 {
		t.Errorf("anchored as %v", a)
	}
	if r := c.must(letGo(9, 1, "x", "", 0)); !r.Changed.Empty() {
		t.Errorf("what is gone came back: %+v", r.Changed)
	}
}
