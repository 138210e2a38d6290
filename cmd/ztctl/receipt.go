package main

import (
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

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// waiting is how long a command waits for the proxies after it has committed.
type waiting struct {
	skip    bool
	timeout time.Duration
}

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.skip, "no-wait", false, "do not wait for the proxies")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 30*time.Second, "how long to wait for the proxies")
}

// committed is the answer to what has made a revision.
type committed interface {
	proto.Message
	GetRevision() uint64
	GetAffected() []*ztv1.InstanceRef
}

// proxies is "1 proxy is", "2 proxies are".
func proxies(resp committed) string {
	return plural(len(resp.GetAffected()), "proxy is", "proxies are")
}

// afterCommit waits for the proxies and tells how it went. command is what has been
// answered by resp.
func (a *app) afterCommit(ctx context.Context, c *client, w waiting, command string, resp committed) error {
	revision := fmt.Sprintf("revision %d", resp.GetRevision())
	if w.skip {
		return a.print(resp, func() error {
			fmt.Fprintf(a.out, "%s committed; %s affected\n", revision, proxies(resp))
			return nil
		})
	}
	receipt, err := a.awaitReceipt(ctx, c, resp.GetRevision(), w.timeout)
	if a.set.Output != "table" {
		if perr := a.printCommitted(command, resp, receipt); perr != nil {
			return perr
		}
	} else if perr := a.showReceipt(receipt); perr != nil {
		return perr
	}
	switch {
	case err != nil:
		return &exit{exitUnconfirmed, fmt.Errorf("%s is committed, but its receipt cannot be read: %w", revision, a.explain(err))}
	case !receipt.GetComplete():
		return &exit{exitUnconfirmed, unconfirmed(revision, receipt)}
	case a.set.Output == "table":
		fmt.Fprintf(a.out, "%s is confirmed by %s\n", revision, plural(len(receipt.Proxies), "affected proxy", "affected proxies"))
	}
	return nil
}

// printCommitted is what a command that waits says in json and yaml: its answer and
// the receipt.
func (a *app) printCommitted(command string, resp committed, receipt *ztv1.WatchReceiptResponse) error {
	answer, err := toJSON(resp)
	heard, err2 := toJSON(receipt)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	return a.printJSON(fmt.Appendf(nil, "{%q: %s, \"receipt\": %s}", command, answer, heard))
}

// awaitReceipt follows a revision until it is settled or the time is over, and
// returns the last that was heard (nil: nothing). It errs only when no more can
// be heard. A server that goes away is replaced by the next.
func (a *app) awaitReceipt(ctx context.Context, c *client, revision uint64, timeout time.Duration) (*ztv1.WatchReceiptResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	p := &progress{app: a}
	defer p.done()
	var last *ztv1.WatchReceiptResponse
	heard := func(r *ztv1.WatchReceiptResponse) {
		last = r
		p.show(r)
	}
	for {
		settled, err := follow(ctx, c, revision, heard)
		if settled || ctx.Err() != nil {
			return last, nil
		}
		switch status.Code(err) {
		case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented, codes.InvalidArgument:
			return last, err
		}
		c.next()
		select {
		case <-ctx.Done():
			return last, nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// refusalStands is how long a receipt must stay as it is before a NACK in it is
// taken for the answer: at first it may be about the configuration before.
const refusalStands = 2 * time.Second

// follow reads one stream of receipts until waiting has no more use: all have
// ACKed, or each has either ACKed or refused, and stays with that.
func follow(ctx context.Context, c *client, revision uint64, heard func(*ztv1.WatchReceiptResponse)) (settled bool, err error) {
	stream, stop := context.WithCancel(ctx)
	defer stop()
	receipts, err := c.WatchReceipt(stream, &ztv1.WatchReceiptRequest{Revision: revision})
	if err != nil {
		return false, err
	}
	stands := time.AfterFunc(refusalStands, stop)
	stands.Stop() // until there is something to wait for
	defer stands.Stop()
	for before := (*ztv1.WatchReceiptResponse)(nil); ; {
		r, err := receipts.Recv()
		if err != nil {
			return stream.Err() != nil && ctx.Err() == nil, err
		}
		heard(r)
		if r.Complete {
			return true, nil
		}
		if proto.Equal(before, r) {
			continue
		}
		before = r
		if stands.Stop(); answered(r) {
			stands.Reset(refusalStands)
		}
	}
}

// answered tells that every proxy has ACKed or refused.
func answered(r *ztv1.WatchReceiptResponse) bool {
	return len(r.Unreachable) == 0 && len(r.Proxies) > 0 &&
		!slices.ContainsFunc(r.Proxies, func(p *ztv1.ProxyReceipt) bool { return p.State != "acked" && p.State != "nacked" })
}

func count(r *ztv1.WatchReceiptResponse, state string) int {
	n := 0
	for _, p := range r.GetProxies() {
		if p.State == state {
			n++
		}
	}
	return n
}

// unconfirmed is the error of a receipt that is not complete.
func unconfirmed(revision string, r *ztv1.WatchReceiptResponse) error {
	if r == nil {
		return withHint(fmt.Errorf("%s is committed; no server told how far it has got", revision), "see ztctl status")
	}
	err := fmt.Errorf("%s is committed, but confirmed by %d of %s only", revision, count(r, "acked"), plural(len(r.Proxies), "affected proxy", "affected proxies"))
	if count(r, "nacked") > 0 {
		return withHint(err, "a proxy refused its configuration and serves on with the old one; see ztctl status")
	}
	return withHint(err, "the others take it over when they can; see ztctl status")
}

// showReceipt prints the receipt as a table.
func (a *app) showReceipt(r *ztv1.WatchReceiptResponse) error {
	if len(r.GetProxies()) == 0 {
		return nil
	}
	var rows [][]string
	for _, p := range r.Proxies {
		var why []string
		for _, n := range p.Nacks {
			why = append(why, nackLine(n))
		}
		rows = append(rows, []string{p.Workload, p.Instance, p.State, strings.Join(why, "; ")})
	}
	if err := a.columns("WORKLOAD INSTANCE STATE REFUSED", rows); err != nil {
		return err
	}
	for _, s := range r.Unreachable {
		a.note("server %s did not answer; its proxies are unconfirmed", printable(s))
	}
	return nil
}

// nackLine names what was refused and gives Envoy's own words.
func nackLine(n *ztv1.Nack) string {
	kind := n.TypeUrl[strings.LastIndexByte(n.TypeUrl, '.')+1:]
	return strings.TrimSpace(kind+" "+n.Resource) + ": " + n.Message
}

// progress is one line on stderr that is drawn over, and only where a person
// watches.
type progress struct {
	app   *app
	drawn bool
}

func (p *progress) show(r *ztv1.WatchReceiptResponse) {
	if !p.app.progress {
		return
	}
	fmt.Fprintf(p.app.err, "\r\x1b[Kwaiting: %d of %s confirmed revision %d", count(r, "acked"), plural(len(r.Proxies), "proxy", "proxies"), r.Revision)
	p.drawn = true
}

func (p *progress) done() {
	if p.drawn {
		fmt.Fprint(p.app.err, "\r\x1b[K")
	}
}
