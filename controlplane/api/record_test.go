package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/refusals"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Ids of what is there in a world.
var (
	instanceID = strings.Repeat("1", 32)
	serverIDs  = []string{strings.Repeat("a", 32), strings.Repeat("b", 32), strings.Repeat("c", 32)}
)

// world is a server with one of everything that a call can be about, and fakes of all
// that it acts on.
type world struct {
	*Server
	log *recordLog
	// done is what calls have done, beside what is in the log.
	done []string
}

// recordLog is a log that keeps the audit records, or cannot write them.
type recordLog struct {
	*fakeLog
	broken  bool
	records []*logv1.AuditRecord
}

func (l *recordLog) Submit(ctx context.Context, e *logv1.Entry) (Submitted, error) {
	if l.broken {
		return nil, fmt.Errorf("%w: the disk", ErrNotRecorded)
	}
	before := l.State()
	sub, err := l.fakeLog.Submit(ctx, e)
	if err == nil {
		e = proto.CloneOf(e)
		e.Format, e.When = state.FormatOf(e), timestamppb.New(epoch)
		_, r := state.Apply(before, before.Index()+1, e)
		l.records = append(l.records, r.Audit.Record)
	}
	return sub, err
}

func (l *recordLog) Propose(ctx context.Context, e *logv1.Entry) (state.Result, error) {
	sub, err := l.Submit(ctx, e)
	if err != nil {
		return state.Result{}, err
	}
	return sub.Wait(ctx)
}

func (l *recordLog) Watch(_ context.Context, f func(*state.State, state.Changes) error) error {
	return f(l.State(), state.Changes{})
}

// worldCluster is three servers, of which the first leads and is the one that is asked.
type worldCluster struct {
	fakeCluster
	w *world
}

func (c worldCluster) Members() (out []*ztv1.Member) {
	none := uint64(0)
	for i, id := range serverIDs {
		out = append(out, &ztv1.Member{Id: id, Voter: i < 2, Leader: i == 0, Reachable: true, Lag: &none, ClusterAddress: "192.0.2.1:7402"})
	}
	return out
}

func (c worldCluster) act(what, id string) error {
	c.w.done = append(c.w.done, what+" "+id)
	return nil
}

func (c worldCluster) Add(_ context.Context, id, _ string) error { return c.act("add", id) }
func (c worldCluster) Promote(_ context.Context, id string) error {
	return c.act("promote", id)
}
func (c worldCluster) Demote(_ context.Context, id string) error   { return c.act("demote", id) }
func (c worldCluster) Remove(_ context.Context, id string) error   { return c.act("remove", id) }
func (c worldCluster) Transfer(_ context.Context, id string) error { return c.act("transfer", id) }
func (c worldCluster) Heard(string, uint32)                        {}
func (c worldCluster) Lowest() uint32                              { return state.Format }

// worldIssuer signs by saying so; where the journal is broken it does not.
type worldIssuer struct {
	fakeIssuer
	w *world
}

func (i worldIssuer) sign(what string) ([][]byte, time.Time, error) {
	if i.w.log.broken {
		return nil, time.Time{}, fmt.Errorf("journal: write: the disk")
	}
	i.w.done = append(i.w.done, "sign "+what)
	return [][]byte{{1}}, epoch.Add(time.Hour), nil
}

func (i worldIssuer) Roots() [][]byte                                   { return nil }
func (i worldIssuer) Node([]byte, string) ([][]byte, time.Time, error)  { return i.sign("node") }
func (i worldIssuer) Admin([]byte, string) ([][]byte, time.Time, error) { return i.sign("admin") }

func (i worldIssuer) KeyFor([]string) (string, []byte, error) { return "kek", []byte("k"), nil }

func (i worldIssuer) KeyHash([]byte) ([]byte, error) { return []byte("hash"), nil }

func (i worldIssuer) NewToken(string) (string, string, []byte, error) {
	return "zt1", "new", hash32("new"), nil
}

func (i worldIssuer) ParseToken(token string) (string, []byte, error) {
	return token, hash32(token), nil
}

func (i worldIssuer) Intermediate([]byte, string) ([]byte, error) {
	_, _, err := i.sign("intermediate")
	return []byte{1}, err
}

func (i worldIssuer) Workload([]byte, string, string, time.Duration) ([][]byte, time.Time, error) {
	return i.sign("workload")
}

// Report: the one that calls as a server leads, as far as a follower knows.
func (c worldCluster) Report() *ztv1.GetReportResponse {
	return &ztv1.GetReportResponse{Leader: serverIDs[1]}
}

// worldKeys are two keys, which all servers have; the first seals the root key.
type worldKeys struct {
	Keys
	w *world
}

func (k worldKeys) Current(*state.State) string { return "k1" }

func (k worldKeys) Local(context.Context, bool) *ztv1.ServerKeys {
	return &ztv1.ServerKeys{Server: serverIDs[0], Source: sourceFile, KeyIds: []string{"k1", "k2"}}
}

func (k worldKeys) Servers(context.Context, bool) (out []*ztv1.ServerKeys) {
	for _, id := range serverIDs {
		out = append(out, &ztv1.ServerKeys{Server: id, Source: sourceFile, KeyIds: []string{"k1", "k2"}})
	}
	return out
}

func (k worldKeys) act(what string) error {
	k.w.done = append(k.w.done, what)
	return nil
}

func (k worldKeys) Take(context.Context, string, []byte) error { return k.act("take key") }
func (k worldKeys) Forget(context.Context, string) error       { return k.act("forget key") }

func (k worldKeys) ForgetAt(context.Context, string, string) (*ztv1.ServerKeys, error) {
	return &ztv1.ServerKeys{}, k.act("forget key")
}

func (k worldKeys) Reseal(st *state.State, _ string) (sealed, replaces []byte, err error) {
	return []byte("sealed"), hash32(string(st.SealedRootKey())), nil
}

func hash32(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

func newWorld(t *testing.T) *world {
	t.Helper()
	l := &recordLog{fakeLog: newFakeLog(t)}
	l.atOnce = true
	w := &world{Server: newServer(l), log: l}
	w.cfg.Cluster, w.cfg.Issuer = worldCluster{w: w}, worldIssuer{w: w}
	w.cfg.ServerID, w.cfg.Refusals, w.cfg.Keys = serverIDs[0], noRefusals{}, worldKeys{w: w}
	w.cfg.Backup = func(out io.Writer, _ *state.State) error { w.done = append(w.done, "backup"); return nil }
	propose := func(e *logv1.Entry) {
		t.Helper()
		e.Format, e.Method = state.Format, "test"
		if r, err := l.Propose(t.Context(), e); err != nil || r.Err != nil {
			t.Fatalf("%v: %v, %v", e, err, r.Err)
		}
	}
	for _, id := range serverIDs {
		propose(&logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: id, ClusterAddress: "192.0.2.1:7402"}}}})
	}
	propose(&logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: "eve", Role: "viewer"}}}})
	ctx := context.WithValue(t.Context(), callKey{}, call{principal: Principal{Role: RoleAdmin, Name: "root"}, method: "test"})
	for _, req := range []*ztv1.ApplyRequest{
		{Files: files(workloadYAML("shop", "web"))},
		{Files: files(workloadYAML("shop", "web") + workloadYAML("shop", "orders") + grantYAML("shop", "g", "web", "orders", "/*"))},
		{Files: files(workloadYAML("shop", "web")), Shadow: true},
	} {
		if _, err := w.Apply(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Block(ctx, &ztv1.BlockRequest{Namespace: "shop", Name: "b", Block: &ztv1.Block{Workloads: []string{"web"}, Reason: "why"}}); err != nil {
		t.Fatal(err)
	}
	for id, token := range map[string]*logv1.Token{"one": {Workload: "shop/web"}, "two": {Workload: "shop/web"}, "server": {Server: true}} {
		token.Id, token.SecretHash, token.Expires = id, hash32(id), timestamppb.New(epoch.Add(time.Hour))
		propose(&logv1.Entry{Op: &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: token}}})
	}
	propose(&logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: &logv1.Redeem{Id: "one", SecretHash: hash32("one"), Instance: &logv1.Instance{
		Id: instanceID, Workload: "shop/web", Address: "192.0.2.7", Agent: true, KeyHash: []byte("hash"),
	}}}})
	for _, id := range serverIDs {
		propose(&logv1.Entry{Op: &logv1.Entry_AnchorJournal{AnchorJournal: &logv1.AnchorJournal{Server: id, Lines: 1, Hash: hex.EncodeToString(hash32("1"))}}})
	}
	l.records, w.done = nil, nil
	return w
}

// noRefusals keeps none.
type noRefusals struct{ Refusals }

func (noRefusals) Refused(string, string, string, codes.Code, string) {}

// requests are one of each method that is to be on record, which would be carried out.
func requests(w *world) map[string]proto.Message {
	revision := w.log.State().Revision()
	return map[string]proto.Message{
		ztv1.AdminService_Apply_FullMethodName:              &ztv1.ApplyRequest{Files: files(workloadYAML("shop", "new")), Merge: true},
		ztv1.AdminService_Rollback_FullMethodName:           &ztv1.RollbackRequest{Revision: firstRevision(w)},
		ztv1.AdminService_CreateToken_FullMethodName:        &ztv1.CreateTokenRequest{Workload: "shop/web"},
		ztv1.AdminService_DeleteToken_FullMethodName:        &ztv1.DeleteTokenRequest{Id: "two"},
		ztv1.AdminService_DeregisterInstance_FullMethodName: &ztv1.DeregisterInstanceRequest{Instance: instanceID},
		ztv1.AdminService_RemoveMember_FullMethodName:       &ztv1.RemoveMemberRequest{Id: serverIDs[2]},
		ztv1.AdminService_PromoteMember_FullMethodName:      &ztv1.PromoteMemberRequest{Id: serverIDs[2]},
		ztv1.AdminService_DemoteMember_FullMethodName:       &ztv1.DemoteMemberRequest{Id: serverIDs[2]},
		ztv1.AdminService_TransferLeadership_FullMethodName: &ztv1.TransferLeadershipRequest{Id: serverIDs[1]},
		ztv1.AdminService_AddAdmin_FullMethodName:           &ztv1.AddAdminRequest{Name: "bob", Role: "viewer", Csr: []byte("csr")},
		ztv1.AdminService_RemoveAdmin_FullMethodName:        &ztv1.RemoveAdminRequest{Name: "eve"},
		ztv1.AdminService_Block_FullMethodName:              &ztv1.BlockRequest{Namespace: "shop", Name: "c", Block: &ztv1.Block{Workloads: []string{"web"}, Reason: "why"}},
		ztv1.AdminService_Unblock_FullMethodName:            &ztv1.UnblockRequest{Namespace: "shop", Name: "b"},
		ztv1.AdminService_EndShadow_FullMethodName:          &ztv1.EndShadowRequest{Namespace: "shop"},
		ztv1.AdminService_Backup_FullMethodName:             &ztv1.BackupRequest{},
		ztv1.AdminService_RotateKey_FullMethodName:          &ztv1.RotateKeyRequest{To: "k2"},
		ztv1.AdminService_DropKey_FullMethodName:            &ztv1.DropKeyRequest{KeyId: "k2"},
		ztv1.PeerService_TakeKey_FullMethodName:             &ztv1.TakeKeyRequest{KeyId: "k3", Key: []byte("k")},
		ztv1.PeerService_ForgetKey_FullMethodName:           &ztv1.ForgetKeyRequest{KeyId: "k2"},
		ztv1.AdminService_AcceptJournal_FullMethodName:      &ztv1.AcceptJournalRequest{Server: serverIDs[1], Reason: "why"},

		ztv1.NodeService_Enrol_FullMethodName:       &ztv1.EnrolRequest{Token: "two", Workload: "shop/web", Instance: strings.Repeat("2", 32), NodeCsr: []byte("csr")},
		ztv1.NodeService_EnrolServer_FullMethodName: &ztv1.EnrolServerRequest{Token: "server", Server: strings.Repeat("d", 32), IntermediateCsr: []byte("csr"), Format: state.Format},
		ztv1.NodeService_Renew_FullMethodName:       &ztv1.RenewRequest{NodeCsr: []byte("csr"), SvidCsr: []byte("csr")},
		ztv1.NodeService_Place_FullMethodName:       &ztv1.PlaceRequest{Zone: "z1"},
		ztv1.NodeService_Deregister_FullMethodName:  &ztv1.DeregisterRequest{},

		ztv1.PeerService_Announce_FullMethodName: &ztv1.AnnounceRequest{Server: &ztv1.Server{
			Id: serverIDs[1], AdminAddress: "192.0.2.9:1", NodeAddress: "192.0.2.9:2", ClusterAddress: "192.0.2.9:3", Format: state.Format,
		}},
		ztv1.PeerService_Reseed_FullMethodName: &ztv1.ReseedRequest{Lost: serverIDs[1], Server: strings.Repeat("e", 32)},
		ztv1.PeerService_AnchorJournal_FullMethodName: &ztv1.AnchorJournalRequest{
			Lines: 2, Hash: hex.EncodeToString(hash32("2")), AfterLines: 1, AfterHash: hex.EncodeToString(hash32("1")),
		},
		ztv1.PeerService_RecordAccess_FullMethodName: &ztv1.RecordAccessRequest{Who: "admin/root", From: "192.0.2.7", Method: ztv1.PeerService_RecordAccess_FullMethodName, Kind: fmt.Sprint(revision)},
	}
}

// firstRevision is the oldest that is kept.
func firstRevision(w *world) (first uint64) {
	for r := range w.log.State().Revisions(0) {
		if first == 0 || r.Revision < first {
			first = r.Revision
		}
	}
	return first
}

// callers are who calls what, from 192.0.2.7.
var callers = map[Role]Principal{
	RoleNobody: {}, RoleAdmin: {RoleAdmin, "root"}, RoleNode: {RoleNode, instanceID}, RoleServer: {RoleServer, serverIDs[1]},
}

// make1 makes one call through the door.
func (w *world) make1(t *testing.T, name string, req proto.Message) error {
	t.Helper()
	who := func(context.Context) (call, error) {
		return call{principal: callers[methods[name].caller], address: "192.0.2.7"}, nil
	}
	short := name[strings.LastIndexByte(name, '/')+1:]
	method := reflect.ValueOf(w.Server).MethodByName(short)
	ctx := metadata.NewIncomingContext(t.Context(), nil)
	if method.Type().NumIn() == 2 && method.Type().In(0) != reflect.TypeFor[context.Context]() { // (request, stream)
		info := &grpc.StreamServerInfo{FullMethod: name}
		return w.stream(who)(w.Server, &fakeStream{ctx: ctx}, info, func(_ any, s grpc.ServerStream) error {
			return w.Backup(req.(*ztv1.BackupRequest), &grpc.GenericServerStream[ztv1.BackupRequest, ztv1.BackupResponse]{ServerStream: s})
		})
	}
	resp, err := w.unary(who)(ctx, req, &grpc.UnaryServerInfo{FullMethod: name}, func(ctx context.Context, req any) (any, error) {
		out := method.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(req)})
		err, _ := out[1].Interface().(error)
		return out[0].Interface(), err
	})
	if err != nil && resp != nil {
		t.Errorf("%s: answered %v beside %v", name, resp, err)
	}
	return err
}

// fakeStream takes what is sent.
type fakeStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *fakeStream) Context() context.Context { return s.ctx }
func (s *fakeStream) SendMsg(any) error        { return nil }

// TestEveryCallIsOnRecord: every method of every service that changes something, or bears
// a secret, leaves a record with who, from where and what, before it has done anything;
// and where that cannot be written, it is refused and has done nothing.
func TestEveryCallIsOnRecord(t *testing.T) {
	tried := map[string]bool{}
	for name, row := range methods {
		if row.record == recordNone {
			continue
		}
		tried[name] = true
		w := newWorld(t)
		req := requests(w)[name]
		if req == nil {
			t.Errorf("%s is to be on record, and no request of it is tried", name)
			continue
		}
		if err := w.make1(t, name, req); err != nil {
			t.Errorf("%s: %v: the test shows nothing", name, err)
			continue
		}
		id := "spiffe://control.shop.example/" + callers[row.caller].String()
		if row.caller == RoleNobody {
			id = "nobody"
		}
		if name == ztv1.PeerService_RecordAccess_FullMethodName {
			id = "spiffe://control.shop.example/admin/root"
		}
		found := false
		for _, r := range w.log.records {
			found = found || r.Method == name && r.From == "192.0.2.7" && r.Who == id && r.Outcome == "ok"
		}
		signed := strings.Contains(strings.Join(w.done, ","), "sign ")
		if row.record == recordJournal && !signed || row.record != recordJournal && !found {
			t.Errorf("%s is not on record: %v, %v", name, w.log.records, w.done)
		}

		w = newWorld(t)
		req = requests(w)[name]
		w.log.broken = true
		before := w.log.State().Index()
		err := w.make1(t, name, req)
		if code := status.Code(err); code != codes.Unavailable && !(row.record == recordJournal || name == ztv1.AdminService_AddAdmin_FullMethodName) || err == nil {
			t.Errorf("%s, and it cannot be on record: %v", name, err)
		}
		if len(w.done) > 0 || w.log.State().Index() != before {
			t.Errorf("%s was refused, and has done %v", name, w.done)
		}
	}
	for name := range requests(newWorld(t)) {
		if !tried[name] {
			t.Errorf("%s is a request of no method that is to be on record", name)
		}
	}
}

// kept is a real record of refusals.
type kept struct{ *refusals.Log }

func (k kept) Refused(who, method, from string, code codes.Code, reason string) {
	k.Add(refusals.Refusal{Who: who, What: method, From: from, Code: code.String(), Reason: reason})
}

func (k kept) ReadRefusals(func(uint64, string) error, func([]byte) error) error { return nil }

// TestFloodOfRefusedCalls: 100,000 calls that are refused, of all kinds and from as many
// addresses, through the whole door, cost no entry, and bounded disk and memory.
func TestFloodOfRefusedCalls(t *testing.T) {
	const maxBytes = 256 << 10
	w := newWorld(t)
	dir := t.TempDir()
	said := &bytes.Buffer{}
	l, err := refusals.Open(refusals.Config{
		Path: filepath.Join(dir, "refusals.log"), MaxBytes: maxBytes, Now: time.Now, Logger: slog.New(slog.NewTextHandler(said, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.cfg.Refusals, w.cfg.Logger = kept{l}, slog.New(slog.NewTextHandler(said, nil))
	index := w.log.State().Index()
	kinds := []struct {
		who    Principal
		method string
		req    proto.Message
	}{
		{Principal{}, ztv1.AdminService_Apply_FullMethodName, &ztv1.ApplyRequest{}},
		{Principal{RoleAdmin, "eve"}, ztv1.AdminService_Block_FullMethodName, &ztv1.BlockRequest{}},
		{Principal{}, ztv1.NodeService_Enrol_FullMethodName, requests(w)[ztv1.NodeService_Enrol_FullMethodName]},
		{Principal{RoleNode, "gone"}, ztv1.NodeService_Renew_FullMethodName, &ztv1.RenewRequest{}},
	}
	kinds[2].req.(*ztv1.EnrolRequest).Token = "wrong"
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	for i := range 100_000 {
		k := kinds[i%len(kinds)]
		if k.who.Role == RoleNode {
			k.who.Name = fmt.Sprint("gone-", i) // one alone may not call so often
		}
		address := net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)).String()
		who := func(context.Context) (call, error) { return call{principal: k.who, address: address}, nil }
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(address)}})
		_, err := w.unary(who)(ctx, k.req, &grpc.UnaryServerInfo{FullMethod: k.method}, func(ctx context.Context, req any) (any, error) {
			switch r := req.(type) {
			case *ztv1.EnrolRequest:
				return w.Enrol(ctx, r)
			case *ztv1.RenewRequest:
				return w.Renew(ctx, r)
			}
			return nil, fmt.Errorf("%s is let in", k.method)
		})
		if c := status.Code(err); c != codes.PermissionDenied && c != codes.Unauthenticated {
			t.Fatalf("%s by %s: %v", k.method, k.who, err)
		}
		if i%1000 == 0 {
			l.Flush()
		}
	}
	took := time.Since(began)
	l.Flush()
	runtime.GC()
	runtime.ReadMemStats(&after)
	size := int64(0)
	if err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if info, ierr := d.Info(); err == nil && ierr == nil && !d.IsDir() {
			size += info.Size()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	grew := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("100,000 refused calls in %v (%.0f/s): %d bytes on disk, heap grew by %d, %d bytes of text log",
		took.Round(time.Millisecond), 100_000/took.Seconds(), size, grew, said.Len())
	if size > maxBytes*3/2 || grew > 8<<20 || said.Len() > 1<<20 {
		t.Errorf("%d bytes on disk, heap grew by %d, %d bytes of text log", size, grew, said.Len())
	}
	if now := w.log.State().Index(); now != index {
		t.Errorf("%d entries of the log", now-index)
	}
}
