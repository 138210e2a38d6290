package decisions_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/decisions"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

var when = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const patience = 30 * time.Second

// receiver is one whose every stream is that of a proxy of shop/orders, which
// judges its port http and the external service shop/stripe.
func receiver(identify func(context.Context) (decisions.Reporter, error)) *decisions.Receiver {
	if identify == nil {
		identify = func(context.Context) (decisions.Reporter, error) {
			return decisions.Reporter{Instance: "i", Workload: "shop/orders", ID: "spiffe://shop.example/ns/shop/sa/orders"}, nil
		}
	}
	return decisions.New(decisions.Config{
		Identify: identify,
		Called: func(workload string, local uint32, authority string) (string, string, bool) {
			switch {
			case local == 8080:
				return workload, "http", true
			case local == 15001 && authority == "api.stripe.example":
				return "shop/stripe", "external", true
			}
			return "", "", false
		},
		Cut:    func(decisions.Reporter, decisions.Cut) {},
		Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Now: func() time.Time { return when },
	})
}

// open serves r and returns a stream to it.
func open(t *testing.T, r *decisions.Receiver) accesslogservicev3.AccessLogService_StreamAccessLogsClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	r.Register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); srv.Stop(); <-done })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	stream, err := accesslogservicev3.NewAccessLogServiceClient(conn).StreamAccessLogs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func logs(entries ...*accesslogv3.HTTPAccessLogEntry) *accesslogservicev3.StreamAccessLogsMessage {
	return &accesslogservicev3.StreamAccessLogsMessage{
		LogEntries: &accesslogservicev3.StreamAccessLogsMessage_HttpLogs{
			HttpLogs: &accesslogservicev3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
		},
	}
}

// entry is what Envoy logs of a request.
func entry(local uint32, authority, caller, path string, rbac map[string]any) *accesslogv3.HTTPAccessLogEntry {
	fields, err := structpb.NewStruct(rbac)
	if err != nil {
		panic(err)
	}
	return &accesslogv3.HTTPAccessLogEntry{
		CommonProperties: &accesslogv3.AccessLogCommon{
			DownstreamLocalAddress: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: local},
			}}},
			Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.rbac": fields}},
			TlsProperties: &accesslogv3.TLSProperties{PeerCertificateProperties: &accesslogv3.TLSProperties_CertificateProperties{
				SubjectAltName: []*accesslogv3.TLSProperties_CertificateProperties_SubjectAltName{
					{San: &accesslogv3.TLSProperties_CertificateProperties_SubjectAltName_Uri{Uri: caller}},
				},
			}},
		},
		Request:  &accesslogv3.HTTPRequestProperties{RequestMethod: corev3.RequestMethod_GET, Path: path, Authority: authority},
		Response: &accesslogv3.HTTPResponseProperties{},
	}
}

func verdicts(enforced, by, shadow, shadowBy string) map[string]any {
	return map[string]any{
		"zt_enforced_engine_result": enforced, "zt_enforced_effective_policy_id": by,
		"zt_shadow_engine_result": shadow, "zt_shadow_effective_policy_id": shadowBy,
	}
}

const web = "spiffe://shop.example/ns/shop/sa/web"

// TestDifferences: requests whose verdict would be another are counted, by what
// makes them alike; a report about another workload is not believed.
func TestDifferences(t *testing.T) {
	r := receiver(nil)
	stream := open(t, r)
	denied := entry(8080, "orders.shop.mesh", web, "/b?secret=1", verdicts("", "", "allowed", "grant:shop/new"))
	denied.Response.ResponseCodeDetails = "rbac_access_denied_matched_policy[default-deny]"
	lost := verdicts("allowed", "grant:shop/a", "denied", "default-deny")
	for _, m := range []*accesslogservicev3.StreamAccessLogsMessage{
		logs(entry(8080, "orders.shop.mesh", web, "/a", lost), entry(8080, "orders.shop.mesh", web, "/a?x=1", lost)),
		logs(denied),
		logs(
			entry(8080, "orders.shop.mesh", web, "/same", verdicts("allowed", "grant:shop/a", "allowed", "grant:shop/a")),
			entry(8080, "orders.shop.mesh", web, "/blocked", nil), // the shadow policy was not asked
			entry(8081, "orders.shop.mesh", web, "/foreign", lost),
			entry(15001, "v.example", web, "/foreign", lost),
			entry(0, "", web, "/foreign", lost),
			entry(15001, "orders.shop.mesh", web, "/foreign", lost),
			&accesslogv3.HTTPAccessLogEntry{},
			entry(15001, "api.stripe.example", "spiffe://forged", "/v1", lost),
		),
	} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	got, dropped := r.Differences()
	want := []*ztv1.ShadowDifference{
		{Service: "shop/orders", Port: "http", Caller: web, Method: "GET", Path: "/a", Allowed: true, Reason: "grant:shop/a", WouldReason: "default-deny", Count: 2},
		{Service: "shop/orders", Port: "http", Caller: web, Method: "GET", Path: "/b", Reason: "default-deny", WouldAllow: true, WouldReason: "grant:shop/new", Count: 1},
		{
			Service: "shop/stripe", Port: "external", Caller: "spiffe://shop.example/ns/shop/sa/orders", Method: "GET", Path: "/v1",
			Allowed: true, Reason: "grant:shop/a", WouldReason: "default-deny", Count: 1,
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&ztv1.ShadowDifference{}, "first", "last")); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	if dropped != 4 {
		t.Errorf("%d dropped, want the 4 foreign ones", dropped)
	}
	r.Forget("shop/orders")
	if got, _ := r.Differences(); len(got) != 0 {
		t.Errorf("not forgotten: %v", got)
	}
}

// TestBounds: however much is reported, the counters are few and their texts short;
// one workload leaves room for others; what is not kept is counted.
func TestBounds(t *testing.T) {
	r := receiver(nil)
	long := strings.Repeat("ü", 10_000)
	report := func(workload string, i int) {
		r.Take(workload, web, entry(8080, long, long, fmt.Sprintf("/%d/\x1b[2J\xff%s", i, long), verdicts("allowed", long, "denied", long)))
	}
	for w := range 6 {
		for i := range 2 * decisions.MaxOfWorkload {
			report(fmt.Sprintf("shop/w%d", w), i)
		}
	}
	got, dropped := r.Differences()
	if len(got) != decisions.MaxCounters || dropped != 6*2*decisions.MaxOfWorkload-decisions.MaxCounters {
		t.Errorf("%d counters and %d dropped", len(got), dropped)
	}
	for _, d := range got {
		checkTexts(t, d)
	}
	// What has a counter is counted on.
	report("shop/w0", 0)
	if got, _ := r.Differences(); got[0].Count != 2 {
		t.Errorf("the most frequent: %v", got[0])
	}
	r.Forget("shop/w1")
	if got, _ := r.Differences(); len(got) != decisions.MaxCounters-decisions.MaxOfWorkload {
		t.Errorf("%d counters are left", len(got))
	}
}

func checkTexts(t testing.TB, d *ztv1.ShadowDifference) {
	t.Helper()
	for _, s := range []string{d.Service, d.Port, d.Caller, d.Method, d.Path, d.Reason, d.WouldReason} {
		if len(s) > decisions.MaxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("kept: %q", s)
		}
	}
	if len(d.Path) > decisions.MaxPath || strings.Contains(d.Path, "?") && !strings.Contains(d.Path, "/") {
		t.Fatalf("path: %q", d.Path)
	}
}

// TestIdentity: who is not known, or not any more, reports nothing.
func TestIdentity(t *testing.T) {
	var gone atomic.Bool
	r := receiver(func(context.Context) (decisions.Reporter, error) {
		if gone.Load() {
			return decisions.Reporter{}, errors.New("not enrolled")
		}
		return decisions.Reporter{Instance: "i", Workload: "shop/orders"}, nil
	})
	lost := verdicts("allowed", "grant:shop/a", "denied", "default-deny")
	stream := open(t, r)
	if err := stream.Send(logs(entry(8080, "orders.shop.mesh", web, "/before", lost))); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; {
		if got, _ := r.Differences(); len(got) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is counted")
		}
	}
	gone.Store(true)
	if err := stream.Send(logs(entry(8080, "orders.shop.mesh", web, "/after", lost))); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "refused" {
		t.Errorf("ended with %v", err)
	}
	stream = open(t, r)
	if err := stream.Send(logs(entry(8080, "orders.shop.mesh", web, "/never", lost))); err == nil {
		_, err = stream.CloseAndRecv()
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("a new one ended with %v", err)
		}
	}
	if got, _ := r.Differences(); len(got) != 1 || got[0].Path != "/before" {
		t.Errorf("counted: %v", got)
	}
}

// TestMerge: of several servers, equal differences are one.
func TestMerge(t *testing.T) {
	of := func(path string, n int) []*ztv1.ShadowDifference {
		r := receiver(nil)
		for range n {
			r.Take("shop/orders", web, entry(8080, "", web, path, verdicts("allowed", "grant:shop/a", "denied", "default-deny")))
		}
		got, _ := r.Differences()
		return got
	}
	got := decisions.Merge(of("/a", 2), of("/b", 3), of("/a", 2), nil)
	if len(got) != 2 || got[0].Path != "/a" || got[0].Count != 4 || got[1].Count != 3 {
		t.Errorf("merged: %v", got)
	}
}

// FuzzEntry: no log of a proxy, however hostile, does more than fill counters of
// its own workload.
func FuzzEntry(f *testing.F) {
	seed, err := proto.Marshal(entry(8080, "orders.shop.mesh", web, "/a", verdicts("allowed", "g", "denied", "d")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e accesslogv3.HTTPAccessLogEntry
		if proto.Unmarshal(b, &e) != nil {
			return
		}
		r := receiver(nil)
		r.Take("shop/orders", web, &e)
		got, _ := r.Differences()
		for _, d := range got {
			checkTexts(t, d)
			if d.Allowed == d.WouldAllow || d.Service != "shop/orders" && d.Service != "shop/stripe" {
				t.Errorf("counted: %v", d)
			}
		}
	})
}

// TestCut: a connection that was open and that the gate has ended is told of, once and
// as its proxy's; what was refused at once, or is not the proxy's to judge, is not.
func TestCut(t *testing.T) {
	var got []decisions.Cut
	r := decisions.New(decisions.Config{
		Identify: func(context.Context) (decisions.Reporter, error) {
			return decisions.Reporter{Instance: "i", Workload: "shop/orders"}, nil
		},
		Called: func(workload string, local uint32, _ string) (string, string, bool) {
			return workload, "http", local == 8080
		},
		Cut: func(who decisions.Reporter, c decisions.Cut) {
			if who.Instance != "i" {
				t.Errorf("by %v", who)
			}
			got = append(got, c)
		},
		Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Now: func() time.Time { return when },
	})
	connection := func(local uint32, caller, details string, sent uint64) *accesslogv3.TCPAccessLogEntry {
		common := entry(local, "", caller, "", nil).CommonProperties
		common.ConnectionTerminationDetails = details
		common.StartTime, common.Duration = timestamppb.New(when), durationpb.New(time.Minute)
		return &accesslogv3.TCPAccessLogEntry{CommonProperties: common, ConnectionProperties: &accesslogv3.ConnectionProperties{SentBytes: sent}}
	}
	const denied = "rbac_access_denied_matched_policy[default-deny]"
	never := connection(8080, web, denied, 1) // times of which no JSON can be made
	never.CommonProperties.StartTime = &timestamppb.Timestamp{Seconds: 1 << 60}
	long := connection(8080, web, denied, 1)
	long.CommonProperties.StartTime, long.CommonProperties.Duration = timestamppb.New(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)), durationpb.New(290*365*24*time.Hour)
	back := connection(8080, web, denied, 1)
	back.CommonProperties.Duration = durationpb.New(-time.Minute)
	stream := open(t, r)
	if err := stream.Send(&accesslogservicev3.StreamAccessLogsMessage{LogEntries: &accesslogservicev3.StreamAccessLogsMessage_TcpLogs{
		TcpLogs: &accesslogservicev3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: []*accesslogv3.TCPAccessLogEntry{
			{},
			never, long, back,
			connection(8080, web, denied, 0), connection(8080, web, "", 1), connection(8081, web, denied, 1), connection(8080, "", denied, 1),
			connection(8080, web, denied, 1), connection(8080, "\x1b"+strings.Repeat("ü", 10_000), denied, 1),
			connection(8080, web, xds.CutByAgent, 0), connection(8081, web, xds.CutByAgent, 0), connection(8080, web, xds.CutByAgent+"x", 1),
		}},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	want := decisions.Cut{Port: "http", Caller: web, Opened: when, Closed: when.Add(time.Minute)}
	if len(got) != 3 || got[0] != want || got[2] != want || len(got[1].Caller) > decisions.MaxText || strings.Contains(got[1].Caller, "\x1b") {
		t.Errorf("told of %v", got)
	}
}
