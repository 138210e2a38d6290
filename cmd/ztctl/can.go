package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// question is one `ztctl can`.
type question struct {
	paths           []string
	caller, request string
	user            string   // PROVIDER:SUBJECT
	claims          []string // NAME=VALUE
	acr             string
	amr             []string
	authTime        string // a time, or how long ago
	at              string
	source          string
	headers         []string // NAME=VALUE
	stale           bool     // as any server knows it
}

func (a *app) newCan() *cobra.Command {
	var q question
	cmd := &cobra.Command{
		Use:   `can CALLER "METHOD SERVICE[:PORT] /PATH"`,
		Short: "Say whether a request is allowed, and why",
		Long: `can decides one request by the committed spec, or with -f by files, without a
server. For a denial it says what would have to differ. Exit code 3: denied.

The request is "METHOD service[:port] /path", "WS service[:port] /path" for a
websocket, "GRPC service[:port] pkg.Service/Method" or "TCP service[:port]"; names
without a namespace are of -n, otherwise of the caller's. A caller without a
namespace is looked for in all of them; it may be a SPIFFE ID.

The flags say what else there is to the request: a user whose token it bears, as
verified; when it begins; where it comes from; its headers.`,
		Example: `  ztctl can web "POST orders /orders/7"
  ztctl can shop/web "GRPC stock shop.v1.Stock/Get"
  ztctl can shop/orders "TCP db" -f shop/
  ztctl can web "DELETE orders /orders/7" --user corp:alice --claim groups=sre --amr hwk --auth-time 5m
  ztctl can web "GET orders /" --at 2026-12-24T22:00:00+01:00 --source 10.1.2.3 --header x-tenant=a`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.caller, q.request = args[0], args[1]
			return a.can(cmd.Context(), q)
		},
	}
	fileFlag(cmd, &q.paths, false)
	f := cmd.Flags()
	f.StringVar(&q.user, "user", "", "`PROVIDER:SUBJECT`, the user of the token; only PROVIDER for one without \"sub\"")
	f.StringArrayVar(&q.claims, "claim", nil, "`NAME=VALUE` of the token; repeatable, also for the values of a list")
	f.StringVar(&q.acr, "acr", "", "how well the user was authenticated: the `VALUE` of \"acr\"")
	f.StringArrayVar(&q.amr, "amr", nil, "by what the user was authenticated: a `VALUE` of \"amr\"; repeatable")
	f.StringVar(&q.authTime, "auth-time", "", "when the user was authenticated: a `TIME`, or how long before the request, such as 5m")
	f.StringVar(&q.at, "at", "", "when the request begins: a `TIME` such as 2026-08-01T18:00:00Z (default: now)")
	f.StringVar(&q.source, "source", "", "the `ADDRESS` that it comes from (default 127.0.0.1)")
	f.StringArrayVar(&q.headers, "header", nil, "`NAME=VALUE` of the request; repeatable")
	staleFlag(cmd, &q.stale)
	cmd.MarkFlagsMutuallyExclusive("stale", "file")
	return cmd
}

func (a *app) can(ctx context.Context, q question) error {
	t, err := q.test(a.now())
	if err != nil {
		return err
	}
	var resp *ztv1.CanResponse
	if len(q.paths) > 0 {
		resp, err = a.canOffline(q, t)
	} else {
		resp, err = a.canOnline(ctx, q, t)
	}
	if err != nil {
		return err
	}
	if err := a.print(resp, func() error {
		a.showStaleness(resp.Staleness)
		color := red
		if resp.Allowed {
			color = green
		}
		fmt.Fprintf(a.out, "%s   %s   %s   %s\n", a.paint(color, verdict(resp.Allowed)), asWhom(t.As), printable(q.request), resp.Reason)
		for _, g := range resp.Grants {
			fmt.Fprintf(a.out, "  by grant %s\n", g)
		}
		if resp.Asks != "" {
			fmt.Fprintf(a.out, "  if the external authorizer of %s agrees, which is asked as well\n", resp.Asks)
		}
		for _, h := range resp.Hints {
			fmt.Fprintf(a.out, "  %s\n", printable(h))
		}
		return nil
	}); err != nil {
		return err
	}
	if !resp.Allowed {
		return &exit{code: exitDenied}
	}
	return nil
}

// test is what q asks, as an Assertion would ask it, but for the caller.
func (q question) test(now time.Time) (*ztv1.Test, error) {
	t := &ztv1.Test{As: &ztv1.Subject{}, Request: q.request, Want: "allow", Source: q.source}
	if q.at != "" {
		var err error
		if now, err = timeOf("--at", q.at); err != nil {
			return nil, err
		}
		t.At = timestamppb.New(now)
	}
	headers, err := pairs("--header", q.headers)
	if err != nil {
		return nil, err
	}
	for name, values := range headers {
		if t.Headers == nil {
			t.Headers = map[string]string{}
		}
		t.Headers[strings.ToLower(name)] = strings.Join(values.Values, ",") // RFC 9110, section 5.3
	}
	t.As.User, err = q.token(now)
	return t, err
}

// token is the user of q, nil for none.
func (q question) token(now time.Time) (*ztv1.User, error) {
	if q.user == "" {
		if len(q.claims)+len(q.amr) > 0 || q.acr+q.authTime != "" {
			return nil, withHint(errors.New("--claim, --acr, --amr and --auth-time are of a user"), "say whose token it is: --user PROVIDER:SUBJECT")
		}
		return nil, nil
	}
	provider, subject, _ := strings.Cut(q.user, ":")
	u := &ztv1.User{Provider: provider, Subject: subject, Acr: q.acr, Amr: q.amr}
	var err error
	if u.Claims, err = pairs("--claim", q.claims); err != nil {
		return nil, err
	}
	if q.authTime != "" {
		when := now
		if ago, err := time.ParseDuration(q.authTime); err == nil {
			when = when.Add(-ago)
		} else if when, err = timeOf("--auth-time", q.authTime); err != nil {
			return nil, withHint(err, "or say how long before the request: 5m")
		}
		u.AuthTime = timestamppb.New(when.Truncate(time.Second))
	}
	return u, nil
}

// pairs reads NAME=VALUE flags; a name may come more than once.
func pairs(flag string, list []string) (map[string]*ztv1.Strings, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]*ztv1.Strings{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, withHint(fmt.Errorf("%s %q is not NAME=VALUE", flag, s), "write %s name=value", flag)
		}
		if out[name] == nil {
			out[name] = &ztv1.Strings{}
		}
		out[name].Values = append(out[name].Values, value)
	}
	return out, nil
}

// as makes caller the caller of t.
func as(t *ztv1.Test, caller string) {
	if isID(caller) {
		t.As.SpiffeId = caller
	} else {
		t.As.Workload = caller
	}
}

func isID(caller string) bool { return strings.HasPrefix(caller, "spiffe://") }

func (a *app) canOffline(q question, t *ztv1.Test) (*ztv1.CanResponse, error) {
	_, ix, err := a.judge(q.paths)
	if err != nil {
		return nil, err
	}
	var refs []string
	ix.Workloads(func(w *policy.Workload) bool {
		refs = append(refs, w.Ref.String())
		return true
	})
	caller, err := a.caller(q.caller, func() ([]string, error) { return refs, nil })
	if err != nil {
		return nil, err
	}
	as(t, caller)
	namespace := a.namespaceOf(caller)
	if err := wellFormed(t, namespace); err != nil {
		return nil, err
	}
	d, err := policy.Can(ix, namespace, t, a.now())
	if err != nil {
		return nil, err
	}
	resp := &ztv1.CanResponse{Allowed: d.Allowed, Reason: d.Reason, Hints: d.Hints}
	if d.Asks != (spec.Ref{}) {
		resp.Asks = d.Asks.String()
	}
	for _, g := range d.Grants {
		resp.Grants = append(resp.Grants, g.String())
	}
	return resp, nil
}

// wellFormed holds t to the form of a test in an Assertion, as a server does.
func wellFormed(t *ztv1.Test, namespace string) error {
	t = proto.CloneOf(t)
	t.At = nil // may be finer than what files say
	asked := &spec.Document{Document: &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindAssertion,
		Metadata: &ztv1.Metadata{Namespace: cmp.Or(namespace, "default"), Name: "can"},
		Spec:     &ztv1.Document_Assertion{Assertion: &ztv1.Assertion{Tests: []*ztv1.Test{t}}},
	}}
	_, problems := spec.Parse([]spec.File{{Content: []byte(spec.YAML(asked))}})
	if len(problems) == 0 {
		return nil
	}
	p := problems[0]
	return withHint(fmt.Errorf("%s: %s", strings.TrimPrefix(p.Path, "spec.tests[0]."), p.Message), "%s", p.Hint)
}

func (a *app) canOnline(ctx context.Context, q question, t *ztv1.Test) (*ztv1.CanResponse, error) {
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	caller, err := a.caller(q.caller, func() ([]string, error) {
		docs, _, err := a.listDocuments(ctx, c, spec.KindWorkload, "", q.stale)
		var refs []string
		for _, d := range docs {
			refs = append(refs, d.Document.GetMetadata().GetNamespace()+"/"+d.Document.GetMetadata().GetName())
		}
		return refs, a.explain(err)
	})
	if err != nil {
		return nil, err
	}
	as(t, caller)
	return call(ctx, a, c.Can, &ztv1.CanRequest{
		Caller: caller, Request: t.Request, Namespace: a.namespaceOf(caller),
		User: t.As.User, At: t.At, Source: t.Source, Headers: t.Headers, Stale: q.stale,
	})
}

// namespaceOf is the namespace of bare names in a request of caller.
func (a *app) namespaceOf(caller string) string {
	if isID(caller) {
		return a.set.Namespace
	}
	ns, _, _ := strings.Cut(caller, "/")
	return cmp.Or(a.set.Namespace, ns)
}

// caller completes the name of a caller: by -n, or by the one workload of that
// name.
func (a *app) caller(name string, workloads func() ([]string, error)) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	if a.set.Namespace != "" {
		return a.set.Namespace + "/" + name, nil
	}
	all, err := workloads()
	if err != nil {
		return "", err
	}
	found := slices.DeleteFunc(all, func(ref string) bool { return !strings.HasSuffix(ref, "/"+name) })
	switch len(found) {
	case 0:
		return "", withHint(fmt.Errorf("no workload %q in any namespace", name), "see ztctl get workloads")
	case 1:
		return found[0], nil
	}
	return "", withHint(fmt.Errorf("workload %q is in several namespaces: %s", name, strings.Join(found, ", ")), "name one of them in full, or use -n")
}
