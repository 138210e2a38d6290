package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// flaky is an admin API whose answers get lost: each call of Apply and
// CreateToken takes the next of its errors. A real server cannot be told to lose
// one; everything else is tested against real ones (testdata/script).
type flaky struct {
	ztv1.UnimplementedAdminServiceServer
	errs   []error
	keys   []string // of the applies that are no dry run
	tokens int
}

func (*flaky) WatchReceipt(req *ztv1.WatchReceiptRequest, s grpc.ServerStreamingServer[ztv1.WatchReceiptResponse]) error {
	if err := s.Send(&ztv1.WatchReceiptResponse{Revision: req.Revision, Proxies: []*ztv1.ProxyReceipt{{State: "sent"}}, Counts: &ztv1.ReceiptCounts{Affected: 1, Sent: 1}}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func (f *flaky) next() error {
	if len(f.errs) == 0 {
		return nil
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return err
}

func (f *flaky) ListDocuments(context.Context, *ztv1.ListDocumentsRequest) (*ztv1.ListDocumentsResponse, error) {
	return &ztv1.ListDocumentsResponse{}, nil
}

func (f *flaky) Apply(_ context.Context, req *ztv1.ApplyRequest) (*ztv1.ApplyResponse, error) {
	if req.DryRun {
		return &ztv1.ApplyResponse{}, nil
	}
	f.keys = append(f.keys, req.IdempotencyKey)
	return &ztv1.ApplyResponse{Revision: 7}, f.next()
}

func (f *flaky) CreateToken(_ context.Context, req *ztv1.CreateTokenRequest) (*ztv1.CreateTokenResponse, error) {
	f.tokens++
	f.keys = append(f.keys, req.IdempotencyKey)
	return &ztv1.CreateTokenResponse{Token: "t"}, f.next()
}

// serveFlaky runs f and writes a contexts file that names an address where
// nobody listens, then f's.
func serveFlaky(t *testing.T, f *flaky) (contexts string) {
	t.Helper()
	signing := identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }}
	root := must(identity.NewRoot("shop.example", signing))
	key := must(identity.NewKey())
	ca := must(root.SignIntermediate(key.Public(), "s1"))
	authority := must(identity.NewAuthority(root.Certificate(), must(identity.NewKeyPair(key, []*x509.Certificate{ca})), "s1", signing))
	own := must(authority.MakeServer())
	config := must(identity.ServerConfig(identity.Trust{
		TrustDomain: "shop.example", Now: time.Now,
		Roots:       func() []*x509.Certificate { return []*x509.Certificate{root.Certificate()} },
		Certificate: func() (*tls.Certificate, error) { return own.TLS(), nil },
	}))
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	closed.Close()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	ztv1.RegisterAdminServiceServer(srv, f)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })

	adminKey := must(identity.NewKey())
	chain := must(root.IssueAdmin(adminKey.Public(), "admin"))
	all := &identity.Contexts{}
	all.Put(identity.Context{
		Name: "x", TrustDomain: "shop.example", Servers: []string{closed.Addr().String(), l.Addr().String()},
		Roots: string(identity.EncodePEM([]*x509.Certificate{root.Certificate()})), Certificate: string(identity.EncodePEM(chain)),
		Key: identity.ContextKey(must(adminKey.PEM()).Reveal()),
	})
	contexts = filepath.Join(t.TempDir(), "contexts.yaml")
	if err := identity.SaveContexts(contexts, all); err != nil {
		t.Fatal(err)
	}
	return contexts
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const oneWorkload = "apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: web}\nspec: {}\n"

func runFlaky(t *testing.T, f *flaky, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{in: strings.NewReader(oneWorkload), out: &out, err: &errs, now: time.Now}
	code = a.main(t.Context(), append(args, "--config", serveFlaky(t, f)), nil)
	return code, out.String(), errs.String()
}

func TestApplyAsksAgainWithTheSameKey(t *testing.T) {
	unknown := status.Error(codes.DeadlineExceeded, "outcome unknown")
	away := status.Error(codes.Unavailable, "no leader")
	f := &flaky{errs: []error{unknown, away}}
	code, out, stderr := runFlaky(t, f, "apply", "-f", "-", "--no-wait")
	if code != exitOK || !strings.Contains(out, "revision 7 committed") {
		t.Fatalf("exit %d\n%s%s", code, out, stderr)
	}
	if len(f.keys) != 3 || len(f.keys[0]) != 32 || len(slices.Compact(f.keys)) != 1 {
		t.Fatalf("keys = %q, want three times the same", f.keys)
	}
}

func TestApplyReportsAnUnknownOutcome(t *testing.T) {
	f := &flaky{errs: slices.Repeat([]error{status.Error(codes.DeadlineExceeded, "outcome unknown")}, 1000)}
	code, _, stderr := runFlaky(t, f, "apply", "-f", "-", "--no-wait", "--request-timeout", "200ms")
	if code != exitUnknown || !strings.Contains(stderr, "the outcome is not known") ||
		!strings.Contains(stderr, ": ztctl apply -f - --no-wait --request-timeout 200ms --config ") ||
		!strings.Contains(stderr, " --idempotency-key "+f.keys[0]+" (with the same input)") {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
}

// What a server says has changed nothing, has changed nothing.
func TestNoLeaderIsNoUnknownOutcome(t *testing.T) {
	none := must(status.New(codes.Unavailable, "no leader").WithDetails(protoadapt.MessageV1Of(&ztv1.NothingChanged{}))).Err()
	f := &flaky{errs: slices.Repeat([]error{none}, 1000)}
	code, _, stderr := runFlaky(t, f, "token", "create", "--server", "--request-timeout", "200ms")
	if code != exitError || strings.Contains(stderr, "not known") || len(slices.Compact(f.keys)) != 1 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	f.errs = append([]error{status.Error(codes.Unavailable, "going away")}, slices.Repeat([]error{none}, 1000)...)
	if code, _, stderr = runFlaky(t, f, "token", "create", "--server", "--request-timeout", "200ms"); code != exitUnknown {
		t.Fatalf("after an answer that was lost, exit %d\n%s", code, stderr)
	}
}

// The command to run next asks for the same, whatever its words are.
func TestCommandToRunNext(t *testing.T) {
	a := &app{args: []string{"block", "shop/web", "--reason", "it's \"INC-42\" $HOME"}}
	if got, want := a.again("k1"), `ztctl block shop/web --reason 'it'\''s "INC-42" $HOME' --idempotency-key k1`; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	a.args = []string{"apply", "-f", "shop", "--idempotency-key=k0"}
	if got, want := a.again("k0"), "ztctl apply -f shop --idempotency-key=k0"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	for _, args := range [][]string{{"block", "--for", "1h", "w"}, {"block", "--for=1h", "w"}} {
		if got := strings.Join(replaceFlag(args, "--for", "--until", "T"), " "); got != "block --until T w" {
			t.Error(got)
		}
	}
}

func TestApplyRefusedIsNotRepeated(t *testing.T) {
	f := &flaky{errs: []error{status.Error(codes.PermissionDenied, "no")}}
	if code, _, stderr := runFlaky(t, f, "apply", "-f", "-"); code != exitError || len(f.keys) != 1 || !strings.Contains(stderr, "ztctl: no\n") {
		t.Fatalf("exit %d after %d applies\n%s", code, len(f.keys), stderr)
	}
}

// A token that was made already is not made twice: the same key asks for it.
func TestCreateTokenAsksAgainWithTheSameKey(t *testing.T) {
	f := &flaky{errs: []error{status.Error(codes.Unavailable, "going away")}}
	code, _, stderr := runFlaky(t, f, "token", "create", "--server")
	if code != exitOK || f.tokens != 2 || len(f.keys[0]) != 32 || f.keys[0] != f.keys[1] {
		t.Fatalf("exit %d after %d calls with %q\n%s", code, f.tokens, f.keys, stderr)
	}
}

func TestPeopleGetColourAndProgramsDoNot(t *testing.T) {
	changes := []*ztv1.Change{{Action: "change", Kind: "Grant", Namespace: "shop", Name: "g", Before: "a: 1\n", After: "a: 2\n"}}
	for _, color := range []bool{true, false} {
		var out bytes.Buffer
		(&app{out: &out, color: color}).showChanges(changes)
		plain := strings.NewReplacer(red, "", green, "", bold, "", "\x1b[0m", "").Replace(out.String())
		if want := "~ Grant shop/g\n    @@ -1,1 +1,1 @@\n    -a: 1\n    +a: 2\n0 added, 1 changed, 0 removed\n"; plain != want {
			t.Errorf("got:\n%s\nwant:\n%s", plain, want)
		}
		if got := plain != out.String(); got != color {
			t.Errorf("coloured = %v, want %v", got, color)
		}
	}
}

// Ctrl-C while proxies are awaited: the change is committed all the same.
func TestInterruptedWaitIsUnconfirmed(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	person := &impatient{interrupt: interrupt}
	a := &app{in: strings.NewReader(oneWorkload), out: &bytes.Buffer{}, err: person, now: time.Now, progress: true}
	code := a.main(ctx, []string{"apply", "-f", "-", "--config", serveFlaky(t, &flaky{})}, nil)
	for _, want := range []string{"waiting for revision 7: 1 affected proxy: 1 sent", "ztctl: revision 7 is committed, but not confirmed by each of 1"} {
		if !strings.Contains(person.String(), want) {
			t.Errorf("stderr lacks %q:\n%s", want, person)
		}
	}
	if code != exitUnconfirmed {
		t.Errorf("exit %d, want %d", code, exitUnconfirmed)
	}
}

// impatient presses Ctrl-C as soon as anything is on the screen.
type impatient struct {
	bytes.Buffer
	interrupt func()
}

func (i *impatient) Write(b []byte) (int, error) {
	defer i.interrupt()
	return i.Buffer.Write(b)
}

// TestAskAgain: who enrols waits while a server is busy, for as long as it was asked to,
// and takes any other refusal for what it is.
func TestAskAgain(t *testing.T) {
	full := status.New(codes.ResourceExhausted, "too many instances enrol at once")
	busy, err := full.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	for err, want := range map[error]time.Duration{
		busy.Err(): 2 * time.Second,
		status.Error(codes.Unavailable, "no leader"):       300 * time.Millisecond,
		status.Error(codes.DeadlineExceeded, ""):           300 * time.Millisecond,
		full.Err():                                         0,
		status.Error(codes.PermissionDenied, "token used"): 0,
	} {
		if after, again := askAgain(err); after != want || again != (want > 0) {
			t.Errorf("%v: asked again %v after %v, want %v", err, again, after, want)
		}
	}
	if _, again := askAgain(nil); again {
		t.Error("asked again after an answer")
	}
}
