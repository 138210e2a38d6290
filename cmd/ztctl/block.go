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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// blocking is one `ztctl block`.
type blocking struct {
	target blockTarget
	reason string
	length time.Duration // --for; 0: not given
	until  string        // --until, as written
	dryRun bool
	wait   waiting
	key    string
}

func (a *app) newBlock() *cobra.Command {
	var o blocking
	cmd := &cobra.Command{
		Use:   "block [WORKLOAD...] --reason TEXT",
		Short: "Deny at once, over every grant",
		Long: `block cuts somebody off, whatever the grants say: open connections are closed, and
new requests are denied in the name of the Block. It waits until every proxy that is
affected has confirmed (ACKed) it: then it holds everywhere.

It names callers: workloads, or by a flag whole namespaces, trust domains, SPIFFE
IDs or users. --service narrows it to calls to these services; alone, it closes
them to everybody.

The Block ends after --for, at --until, or by ztctl unblock. It is in no file, and
no apply removes it while it holds. It stands in the namespace of what it names, and
takes its name from it: Block shop/web for the workload shop/web. What belongs to no
namespace, such as a user, is blocked in "mesh". To block the same again replaces
the reason and the end.`,
		Example: `  ztctl block shop/web --reason "INC-42: stolen key" --for 1h
  ztctl block --user corp:248289761001 --reason "left the company"
  ztctl block shop/web --service bank/ledger --reason "floods it" --until 2026-08-01T18:00:00Z
  ztctl block --service shop/orders --reason "restoring a backup" --dry-run
  ztctl get blocks
  ztctl unblock shop/web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target.workloads = args
			return a.block(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.reason, "reason", "", "why: a `TEXT` that is shown wherever it denies")
	f.DurationVar(&o.length, "for", 0, "how long: a `DURATION` such as 1h (default: until it is lifted)")
	f.StringVar(&o.until, "until", "", "when it ends: a `TIME` such as 2026-08-01T18:00:00Z")
	o.target.flags(cmd)
	f.BoolVar(&o.dryRun, "dry-run", false, "tell which proxies it would concern, and commit nothing")
	o.wait.flags(cmd)
	keyFlag(cmd, &o.key)
	cmd.MarkFlagsMutuallyExclusive("for", "until")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "no-wait")
	if err := cmd.MarkFlagRequired("reason"); err != nil {
		panic(err) // the flag stands above
	}
	return cmd
}

func (a *app) newUnblock() *cobra.Command {
	var t blockTarget
	var w waiting
	var key string
	cmd := &cobra.Command{
		Use:   "unblock [NAME]",
		Short: "Lift a Block of ztctl block",
		Long: `unblock lifts a Block that ztctl block wrote, and waits until every proxy that is
affected has confirmed (ACKed). Name the Block, or what was blocked as it was named
to ztctl block.`,
		Example: `  ztctl unblock shop/web
  ztctl unblock --user corp:248289761001
  ztctl unblock shop/web --service bank/ledger`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t.workloads = args
			return a.unblock(cmd.Context(), t, w, key)
		},
	}
	t.flags(cmd)
	w.flags(cmd)
	keyFlag(cmd, &key)
	return cmd
}

func (a *app) block(ctx context.Context, o blocking) error {
	ref, b, err := o.target.resolve(a.set.Namespace)
	if err != nil {
		return err
	}
	b.Reason = o.reason
	if b.Until, err = a.end(o); err != nil {
		return err
	}
	if o.length != 0 { // the same again asks for the same end
		a.args = replaceFlag(a.args, "--for", "--until", b.Until.AsTime().Format(time.RFC3339))
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := a.mayReplace(ctx, c, ref, b); err != nil {
		return err
	}
	req := &ztv1.BlockRequest{Namespace: ref.Namespace, Name: ref.Name, Block: b, DryRun: o.dryRun, IdempotencyKey: o.key}
	resp, err := commit(ctx, a, c.Block, req)
	if err != nil {
		return err
	}
	if a.set.Output == "table" {
		fmt.Fprintf(a.out, "Block %s: %s, %s\n", ref, printable(denial(b)), ending(b))
	}
	if o.dryRun {
		return a.print(resp, func() error {
			fmt.Fprintf(a.out, "%s affected; nothing was committed (--dry-run)\n", proxies(resp))
			return nil
		})
	}
	a.note("lift it by: ztctl unblock %s", ref)
	return a.afterCommit(ctx, c, o.wait, "block", resp)
}

// end is until when a Block is asked for, in whole seconds; nil: no end.
func (a *app) end(o blocking) (*timestamppb.Timestamp, error) {
	if o.until == "" && o.length == 0 {
		return nil, nil
	}
	end := a.now().Add(o.length)
	if o.until != "" {
		var err error
		if end, err = timeOf("--until", o.until); err != nil {
			return nil, err
		}
	}
	if !end.After(a.now()) {
		return nil, withHint(fmt.Errorf("the Block would end at %s, which is over", end.UTC().Format(time.RFC3339)),
			"name a later end, or none: the Block then stays until ztctl unblock")
	}
	if whole := end.Truncate(time.Second); !whole.Equal(end) {
		end = whole.Add(time.Second)
	}
	return timestamppb.New(end), nil
}

// timeOf reads the time that a flag gives.
func timeOf(flag, text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, withHint(fmt.Errorf("%s %q is not a time", flag, text), "write it as 2026-08-01T18:00:00Z, or with an offset as 2026-08-01T20:00:00+02:00")
	}
	return t, nil
}

// stored is the Block of a name, nil if there is none.
func (a *app) stored(ctx context.Context, c *client, ref spec.Ref) (*ztv1.Document, error) {
	var doc *ztv1.Document
	err := a.throughElection(ctx, func() error {
		resp, err := c.GetDocument(ctx, &ztv1.GetDocumentRequest{Kind: spec.KindBlock, Namespace: ref.Namespace, Name: ref.Name})
		doc = resp.GetDocument().GetDocument()
		return err
	})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	return doc, a.explain(err)
}

// mayReplace refuses to write a Block over one that denies something else: that one
// would end unseen.
func (a *app) mayReplace(ctx context.Context, c *client, ref spec.Ref, b *ztv1.Block) error {
	doc, err := a.stored(ctx, c, ref)
	if err != nil || doc == nil {
		return err
	}
	old := doc.GetBlock()
	over := old.GetUntil() != nil && !old.Until.AsTime().After(a.now())
	switch {
	case !(&spec.Document{Document: doc}).Operator():
		return withHint(fmt.Errorf("the Block %s is in the files of its namespace", ref), "give this one another name: --name")
	case !over && denial(inFull(old, ref.Namespace)) != denial(b):
		return withHint(fmt.Errorf("the Block %s is in force and says something else: %s", ref, denial(inFull(old, ref.Namespace))),
			"give this one another name, and both hold: --name")
	}
	return nil
}

func (a *app) unblock(ctx context.Context, t blockTarget, w waiting, key string) error {
	ref, _, err := t.resolve(a.set.Namespace)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	doc, err := a.stored(ctx, c, ref)
	switch {
	case err != nil:
		return err
	case doc == nil && key != "": // an earlier try has lifted it, perhaps
	case doc == nil:
		return withHint(fmt.Errorf("there is no Block %s", ref), "ztctl get blocks shows what is blocked")
	case !(&spec.Document{Document: doc}).Operator():
		return withHint(fmt.Errorf("the Block %s is in the files of its namespace", ref), "remove it there, then ztctl apply")
	}
	req := &ztv1.UnblockRequest{Namespace: ref.Namespace, Name: ref.Name, IdempotencyKey: key}
	resp, err := commit(ctx, a, c.Unblock, req)
	if err != nil {
		return err
	}
	if a.set.Output == "table" && doc != nil {
		fmt.Fprintf(a.out, "Block %s is removed; it said: %s\n", ref, printable(denial(inFull(doc.GetBlock(), ref.Namespace))))
	}
	return a.afterCommit(ctx, c, w, "unblock", resp)
}

// inFull is b with every reference as namespace/name.
func inFull(b *ztv1.Block, namespace string) *ztv1.Block {
	b = proto.CloneOf(b)
	for _, list := range [][]string{b.Workloads, b.Services} {
		for i, s := range list {
			if ref, err := spec.ParseRef(s, namespace); err == nil {
				list[i] = ref.String()
			}
		}
	}
	return b
}

// denial says what a Block denies. Two that deny the same say the same.
func denial(b *ztv1.Block) string {
	who := []string{}
	add := func(before string, list []string) {
		for _, s := range slices.Sorted(slices.Values(list)) {
			who = append(who, before+s)
		}
	}
	add("", b.Workloads)
	add("every workload of namespace ", b.Namespaces)
	add("every workload of trust domain ", b.TrustDomains)
	add("", b.SpiffeIds)
	add("user "+b.Users.GetProvider()+":", b.Users.GetSubjects())
	services := strings.Join(slices.Sorted(slices.Values(b.Services)), " and ")
	switch {
	case len(who) == 0:
		return "nobody may call " + services
	case services == "":
		return strings.Join(who, " and ") + " may call nothing"
	}
	return strings.Join(who, " and ") + " may not call " + services
}

// ending says until when a Block holds.
func ending(b *ztv1.Block) string {
	if b.Until == nil {
		return "until it is lifted"
	}
	return "until " + b.Until.AsTime().Format(time.RFC3339)
}

// blockTarget is whom and what a Block is about, as a command line says it.
type blockTarget struct {
	workloads  []string // the arguments
	namespaces []string
	domains    []string
	ids        []string
	users      []string // PROVIDER:SUBJECT
	services   []string
	name, in   string
}

func (t *blockTarget) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&t.namespaces, "caller-namespace", nil, "every workload of this `NAMESPACE`; repeatable")
	f.StringArrayVar(&t.domains, "trust-domain", nil, "every workload of this trust `DOMAIN`; repeatable")
	f.StringArrayVar(&t.ids, "spiffe-id", nil, "the identity `ID`, such as one of a federated trust domain; repeatable")
	f.StringArrayVar(&t.users, "user", nil, "`PROVIDER:SUBJECT`, a user by the \"sub\" of its tokens; repeatable")
	f.StringArrayVar(&t.services, "service", nil, "calls to this `SERVICE` only; repeatable (default: to all)")
	f.StringVar(&t.name, "name", "", "`NAME` of the Block (default: made of what it names)")
	f.StringVar(&t.in, "in", "", "`NAMESPACE` of the Block (default: that of what it names, or mesh)")
}

// resolve is the name of the Block and what it denies. namespace is that of bare
// names.
func (t blockTarget) resolve(namespace string) (spec.Ref, *ztv1.Block, error) {
	b := &ztv1.Block{Namespaces: t.namespaces, TrustDomains: t.domains, SpiffeIds: t.ids}
	var words, homes []string // of its name; where it may belong
	kinds := 0
	for _, list := range [][]string{t.workloads, t.namespaces, t.domains, t.ids, t.users} {
		kinds += min(len(list), 1)
	}
	switch {
	case kinds > 1:
		return spec.Ref{}, nil, withHint(errors.New("a Block names one kind of caller"), "write one Block for each: workloads, --caller-namespace, --trust-domain, --spiffe-id, --user")
	case kinds == 0 && len(t.services) == 0:
		return spec.Ref{}, nil, withHint(errors.New("nobody is named"), "name a workload, such as shop/web, or see --help")
	}
	for _, w := range t.workloads {
		ref, err := spec.ParseRef(w, namespace)
		if err != nil {
			return ref, nil, withHint(err, "write NAMESPACE/NAME, or -n NAMESPACE")
		}
		b.Workloads = append(b.Workloads, ref.String())
		words, homes = append(words, ref.Name), append(homes, ref.Namespace)
	}
	for _, ns := range t.namespaces {
		words, homes = append(words, "namespace-"+ns), append(homes, ns)
	}
	words = slices.Concat(words, t.domains, t.ids)
	for _, u := range t.users {
		provider, subject, ok := strings.Cut(u, ":")
		if !ok || provider == "" || subject == "" || provider != cmp.Or(b.Users.GetProvider(), provider) {
			return spec.Ref{}, nil, withHint(fmt.Errorf("--user %q is not PROVIDER:SUBJECT with one provider for all", u), "name an IdentityProvider and the \"sub\" of its tokens: corp:248289761001")
		}
		if b.Users == nil {
			b.Users = &ztv1.BlockedUsers{Provider: provider}
		}
		b.Users.Subjects = append(b.Users.Subjects, subject)
		words = append(words, u)
	}
	callersHomes := homes
	for _, s := range t.services {
		ref, err := spec.ParseRef(s, cmp.Or(namespace, only(callersHomes)))
		if err != nil {
			return ref, nil, withHint(err, "write --service NAMESPACE/NAME, or -n NAMESPACE")
		}
		b.Services = append(b.Services, ref.String())
		words = append(words, "to-"+ref.Name)
		if callersHomes == nil {
			homes = append(homes, ref.Namespace)
		}
	}
	ref := spec.Ref{Namespace: cmp.Or(t.in, only(homes), spec.MeshNamespace), Name: cmp.Or(t.name, label(strings.Join(words, "-")))}
	return ref, b, nil
}

// only is what all of list are, empty if they differ or there are none.
func only(list []string) string {
	if list = slices.Compact(slices.Sorted(slices.Values(list))); len(list) == 1 {
		return list[0]
	}
	return ""
}
