package state_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// covers tells whether told names all that differs.
func covers(told, differs state.Changes) bool {
	return cmp.Equal(told.Union(differs), told.Union())
}

// entries draws entries over few names, so that they meet each other. When they
// refer to a revision they mostly mean the right one.
func entries(t *rapid.T, s *state.State) *logv1.Entry {
	name := rapid.SampledFrom([]string{"a", "b", "c"})
	ref := func(label string) string { return "ns" + name.Draw(t, label) + "/" + name.Draw(t, label) }
	key := func(label string) *logv1.Key {
		return &logv1.Key{
			Kind:      rapid.SampledFrom([]string{"Workload", "Grant"}).Draw(t, label+" kind"),
			Namespace: "ns" + name.Draw(t, label+" namespace"), Name: name.Draw(t, label+" name"),
		}
	}
	e := &logv1.Entry{
		Format: state.Format, Who: "who",
		When: timestamppb.New(s.When().Add(time.Duration(rapid.IntRange(-10, 3600).Draw(t, "seconds")) * time.Second)),
	}
	if rapid.Bool().Draw(t, "keyed") {
		e.IdempotencyKey = name.Draw(t, "idempotency key")
		e.OperationHash = hashOf(name.Draw(t, "hash"))
	}
	switch rapid.IntRange(0, 13).Draw(t, "operation") {
	default:
		op := &logv1.Apply{ValidatedAt: s.Revision() - uint64(rapid.SampledFrom([]int{0, 0, 0, 0, 1}).Draw(t, "behind"))}
		if rapid.Bool().Draw(t, "by lineage") {
			l := s.Lineage()
			op.ValidatedAt, op.Lineage = 0, l[:len(l)-rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "cut")]
		}
		if rapid.Bool().Draw(t, "judged") {
			op.Judged, _ = s.Admin(rapid.SampledFrom([]string{"root", "a"}).Draw(t, "admin"))
		}
		if rapid.Bool().Draw(t, "with base") {
			ns := "ns" + name.Draw(t, "base")
			op.Bases = map[string]uint64{ns: s.NamespaceRevision(ns)}
		}
		for range rapid.IntRange(0, 3).Draw(t, "puts") {
			op.Puts = append(op.Puts, &logv1.Put{Key: key("put"), Document: []byte(name.Draw(t, "bytes"))})
		}
		for range rapid.IntRange(0, 2).Draw(t, "deletes") {
			d := key("delete")
			op.Deletes = append(op.Deletes, d)
			if rapid.Bool().Draw(t, "retires") {
				until := s.When().Add(time.Duration(rapid.IntRange(-1, 2).Draw(t, "hours")) * time.Hour)
				op.Retired = append(op.Retired, &logv1.Retired{Workload: d.GetNamespace() + "/" + d.GetName(), Until: timestamppb.New(until)})
			}
		}
		if rapid.Bool().Draw(t, "ends proposals") {
			op.EndsProposals = []string{"ns" + name.Draw(t, "of")}
		}
		e.Op = &logv1.Entry_Apply{Apply: op}
	case 0:
		e.Op = &logv1.Entry_Init{Init: initOp()}
	case 1:
		id := name.Draw(t, "token")
		tok := &logv1.Token{Id: id, SecretHash: hashOf(id), Expires: timestamppb.New(s.When().Add(2 * time.Hour))}
		if tok.Server = rapid.Bool().Draw(t, "server"); !tok.Server {
			tok.Workload = ref("workload")
		}
		e.Op = &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: tok}}
	case 2:
		e.Op = &logv1.Entry_DeleteToken{DeleteToken: &logv1.DeleteToken{Id: name.Draw(t, "token")}}
	case 3, 4:
		id := name.Draw(t, "token")
		op := &logv1.Redeem{Id: id, SecretHash: hashOf(id)}
		if tok, ok := s.Token(id); ok && tok.GetServer() {
			op.Server = &logv1.Server{Id: name.Draw(t, "server")}
		} else {
			op.Instance = &logv1.Instance{Id: name.Draw(t, "instance"), Workload: ref("workload"), KeyHash: hashOf(name.Draw(t, "key"))}
			if ok && rapid.Bool().Draw(t, "right workload") {
				op.Instance.Workload = tok.GetWorkload()
			}
		}
		e.Op = &logv1.Entry_Redeem{Redeem: op}
	case 5:
		e.Op = &logv1.Entry_Endpoints{Endpoints: &logv1.Endpoints{Withdraw: []string{name.Draw(t, "withdraw")}, Restore: []string{name.Draw(t, "restore")}}}
	case 6:
		e.Op = &logv1.Entry_Deregister{Deregister: &logv1.Deregister{Instance: name.Draw(t, "instance")}}
	case 7:
		role := rapid.SampledFrom([]string{"admin", "viewer", ""}).Draw(t, "role")
		e.Op = &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: name.Draw(t, "admin"), Role: role}}}
	case 8:
		e.Op = &logv1.Entry_DeleteAdmin{DeleteAdmin: &logv1.DeleteAdmin{Name: rapid.SampledFrom([]string{"root", "a"}).Draw(t, "admin")}}
	case 9:
		e.Op = &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: name.Draw(t, "server"), Version: name.Draw(t, "version")}}}
	case 10, 11:
		op := &logv1.Propose{End: rapid.Bool().Draw(t, "end")}
		for range rapid.IntRange(1, 2).Draw(t, "namespaces") {
			op.Namespaces = append(op.Namespaces, "ns"+name.Draw(t, "proposed"))
		}
		for range rapid.IntRange(0, 2).Draw(t, "puts") {
			op.Puts = append(op.Puts, &logv1.Put{Key: key("propose"), Document: []byte(name.Draw(t, "bytes"))})
		}
		e.Op = &logv1.Entry_Propose{Propose: op}
	}
	return e
}

// TestProperties: over random logs, what the package comment promises.
func TestProperties(t *testing.T) { rapid.Check(t, properties) }

func properties(t *rapid.T) {
	var log []*logv1.Entry
	states := []*state.State{state.New()}
	var bytesThen [][]byte
	index := uint64(0)
	indexes := []uint64{0}
	e := &logv1.Entry{Format: state.Format, When: timestamppb.New(epoch), Op: &logv1.Entry_Init{Init: initOp()}}
	for range rapid.IntRange(1, 40).Draw(t, "length") {
		s := states[len(states)-1]
		index += uint64(rapid.IntRange(1, 3).Draw(t, "gap")) // raft has entries of its own
		next, r := state.Apply(s, index, e)
		checkStep(t, s, next, r)
		checkRetired(t, s, next, e, r)
		log, states, indexes = append(log, e), append(states, next), append(indexes, index)
		bytesThen = append(bytesThen, snapshotBytes(t, s))
		e = entries(t, next)
	}
	last := snapshotBytes(t, states[len(states)-1])

	// No state has changed since.
	for i, b := range bytesThen {
		if !bytes.Equal(snapshotBytes(t, states[i]), b) {
			t.Fatalf("state %d was changed by a later entry", i)
		}
	}
	// The log again, decoded anew, from anywhere: replay = snapshot + tail.
	from := rapid.IntRange(0, len(log)).Draw(t, "snapshot at")
	s, err := state.Read(bytes.NewReader(snapshotBytes(t, states[from])))
	if err != nil {
		t.Fatal(err)
	}
	if d := state.Diff(states[from], s); !d.Empty() {
		t.Fatalf("restored state differs: %+v", d)
	}
	for i := from; i < len(log); i++ {
		s, _ = state.Apply(s, indexes[i+1], proto.CloneOf(log[i]))
	}
	if !bytes.Equal(snapshotBytes(t, s), last) {
		t.Fatal("snapshot and tail lead elsewhere than the log")
	}
}

// checkStep checks one Apply.
func checkStep(t *rapid.T, s, next *state.State, r state.Result) {
	differs := state.Diff(s, next)
	switch {
	case !covers(r.Changed, differs):
		t.Fatalf("%+v differs, only %+v is told", differs, r.Changed)
	case (r.Err != nil || r.Replayed) && (!differs.Empty() || !r.Changed.Empty()):
		t.Fatalf("refused (%v) or replayed, but %+v differs", r.Err, differs)
	case next.When().Before(s.When()) || next.Revision() < s.Revision():
		t.Fatal("time or revision goes back")
	case !slices.Equal(r.Changed.Proposals, differs.Proposals) && !slices.Equal(r.Changed.Proposals, proposed(next, r.Changed.Proposals)):
		t.Fatalf("proposals of %v differ, %v are told", differs.Proposals, r.Changed.Proposals)
	case (len(r.Changed.Keys) > 0) != (next.Revision() > s.Revision()):
		t.Fatalf("revision %d → %d with changes %v", s.Revision(), next.Revision(), r.Changed.Keys)
	case next.Revision() > s.Revision() && next.Revision() != next.Index():
		t.Fatal("the revision is not the index")
	case next.Hash() == s.Hash():
		t.Fatal("another index, and the same hash")
	case !r.Replayed && r.Revision != next.Revision():
		t.Fatalf("answer %d, revision %d", r.Revision, next.Revision())
	}
	checkState(t, next)
}

// proposed are those of the namespaces that have a proposal.
func proposed(s *state.State, namespaces []string) (out []string) {
	for _, ns := range namespaces {
		if _, ok := s.Proposal(ns); ok {
			out = append(out, ns)
		}
	}
	return out
}

// checkRetired: a name is kept exactly from the entry that deletes the workload
// and says so until its time.
func checkRetired(t *rapid.T, s, next *state.State, e *logv1.Entry, r state.Result) {
	for _, ns := range []string{"nsa", "nsb", "nsc"} {
		for _, name := range []string{"a", "b", "c"} {
			w := ns + "/" + name
			want, _ := s.Retired(w)
			k := state.Key{Kind: "Workload", Namespace: ns, Name: name}
			_, there := next.Document(k)
			if r.Err == nil && !there && slices.Contains(r.Changed.Keys, k) {
				for _, said := range e.GetApply().GetRetired() {
					if said.GetWorkload() == w && said.GetUntil().AsTime().After(next.When()) {
						want = said.GetUntil().AsTime()
					}
				}
			}
			if !want.After(next.When()) {
				want = time.Time{}
			}
			if got, ok := next.Retired(w); ok == want.IsZero() || !got.Equal(want) {
				t.Fatalf("%s is retired until %v, want %v", w, got, want)
			}
		}
	}
}

// checkState checks what holds in every state.
func checkState(t *rapid.T, s *state.State) {
	again, err := state.Read(bytes.NewReader(snapshotBytes(t, s)))
	if err != nil || again.Hash() != s.Hash() || s.Check() != nil {
		t.Fatalf("hash %x, and %x of what was read again; %v, %v", s.Hash(), again.Hash(), err, s.Check())
	}
	newest := map[string]uint64{}
	for d := range s.Documents("", "") {
		newest[d.Key.Namespace] = max(newest[d.Key.Namespace], d.Revision)
	}
	for ns, rev := range newest {
		if s.NamespaceRevision(ns) < rev || s.NamespaceRevision(ns) > s.Revision() {
			t.Fatalf("namespace %s at %d, a document at %d", ns, s.NamespaceRevision(ns), rev)
		}
	}
	of := map[string]int{}
	for in := range s.Instances() {
		of[in.GetWorkload()]++
	}
	for w, n := range of {
		if len(slices.Collect(s.InstancesOf(w))) != n {
			t.Fatalf("%s has %d instances", w, n)
		}
		ns, name, _ := bytes.Cut([]byte(w), []byte("/"))
		if _, ok := s.Document(state.Key{Kind: "Workload", Namespace: string(ns), Name: string(name)}); !ok {
			t.Fatalf("instances of %s, which is not there", w)
		}
	}
	for p := range s.Proposals() {
		if got, ok := s.Proposal(p.GetNamespace()); !ok || got != p {
			t.Fatalf("proposal of %s", p.GetNamespace())
		}
		for _, put := range p.GetPuts() {
			if put.GetKey().GetNamespace() != p.GetNamespace() {
				t.Fatalf("a proposal for %s holds %v", p.GetNamespace(), put.GetKey())
			}
		}
	}
	if s.Initialized() && !slices.ContainsFunc(slices.Collect(s.Admins()), func(a *logv1.Admin) bool { return a.GetRole() == "admin" }) {
		t.Fatal("nobody is admin")
	}
}

func snapshotBytes(t *rapid.T, s *state.State) []byte {
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDocuments: every filter and page agrees with a scan.
func TestDocuments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"a", "ab", "b", "b-1", "c"})
		key := rapid.Custom(func(t *rapid.T) state.Key {
			return state.Key{Kind: part.Draw(t, "kind"), Namespace: part.Draw(t, "namespace"), Name: part.Draw(t, "name")}
		})
		op := &logv1.Apply{}
		want := rapid.SliceOfNDistinct(key, 0, 40, func(k state.Key) state.Key { return k }).Draw(t, "keys")
		for _, k := range want {
			op.Puts = append(op.Puts, doc(k.Kind, k.Namespace, k.Name, fmt.Sprint(k)))
		}
		s, _ := state.Apply(state.New(), 1, &logv1.Entry{Format: 1, Op: &logv1.Entry_Init{Init: initOp()}})
		s, r := state.Apply(s, 2, &logv1.Entry{Format: 1, Op: &logv1.Entry_Apply{Apply: op}})
		if r.Err != nil || s.NumDocuments() != len(want) {
			t.Fatalf("%d documents, %v", s.NumDocuments(), r.Err)
		}
		kind, ns := rapid.SampledFrom([]string{"", "a", "ab", "b", "zz"}).Draw(t, "of kind"), rapid.SampledFrom([]string{"", "a", "b", "zz"}).Draw(t, "of namespace")
		var after state.Key
		if rapid.Bool().Draw(t, "page") {
			after = key.Draw(t, "after")
		}
		want = slices.DeleteFunc(want, func(k state.Key) bool {
			return kind != "" && k.Kind != kind || ns != "" && k.Namespace != ns || k.Compare(after) <= 0
		})
		slices.SortFunc(want, state.Key.Compare)
		var got []state.Key
		for d := range s.DocumentsAfter(after, kind, ns) {
			got = append(got, d.Key)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("after %v of kind %q namespace %q: %v, want %v", after, kind, ns, got, want)
		}
	})
}

func TestUnion(t *testing.T) {
	a := state.Changes{Keys: []state.Key{{Kind: "B"}, {Kind: "C"}}, InstanceIDs: []string{"2"}, Proposals: []string{"b"}, Tokens: true}
	b := state.Changes{Keys: []state.Key{{Kind: "A"}, {Kind: "B"}}, InstanceIDs: []string{"1", "2"}, Proposals: []string{"a", "b"}, Admins: true}
	want := state.Changes{
		Keys: []state.Key{{Kind: "A"}, {Kind: "B"}, {Kind: "C"}}, InstanceIDs: []string{"1", "2"}, Proposals: []string{"a", "b"}, Tokens: true, Admins: true,
	}
	if got := a.Union(b); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	if got := (state.Changes{}).Union(); !got.Empty() {
		t.Errorf("%+v", got)
	}
	if a.Keys[0].Kind != "B" || len(a.Keys) != 2 {
		t.Error("Union changed its receiver")
	}
}
