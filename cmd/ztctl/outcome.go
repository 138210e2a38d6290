package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// keyFlag lets a command that changes something be repeated.
func keyFlag(cmd *cobra.Command, key *string) {
	cmd.Flags().StringVar(key, "idempotency-key", "", "repeat the call of this `KEY`, whose outcome is not known (default: a new key)")
}

// commit changes something for good. An outcome that is not known is asked for again,
// of the other servers too, for twice the time that a call may take: with its
// idempotency key, which it gets here unless it has one, the call takes effect at most
// once. What has no key, such as a vote, may be said twice.
func commit[Req proto.Message, Resp any](ctx context.Context, a *app, method func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) (Resp, error) {
	key := giveKey(req)
	again, cancel := context.WithTimeout(ctx, 2*a.set.RequestTimeout)
	defer cancel()
	open := false // an earlier try may have taken effect
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		call, done := a.deadline(ctx)
		resp, err := method(call, req)
		done()
		if err == nil {
			return resp, nil
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
			open = open || !changedNothing(err)
		default:
			return resp, a.explain(err)
		}
		select {
		case <-time.After(wait):
			continue
		case <-again.Done():
		}
		if !open {
			return resp, a.explain(err)
		}
		return resp, a.unknown(key, err)
	}
}

// giveKey returns the idempotency key of a request, and makes one if it may have one
// and is no dry run.
func giveKey(req proto.Message) string {
	m := req.ProtoReflect()
	field := m.Descriptor().Fields().ByName("idempotency_key")
	if field == nil {
		return ""
	}
	if dry := m.Descriptor().Fields().ByName("dry_run"); dry != nil && m.Get(dry).Bool() {
		return ""
	}
	if m.Get(field).String() == "" {
		m.Set(field, protoreflect.ValueOfString(identity.NewID()))
	}
	return m.Get(field).String()
}

// changedNothing tells whether a call that failed so is certain to have had no
// effect: it was sent to nobody, or a server says so.
func changedNothing(err error) bool {
	var away *unreachable
	if errors.As(err, &away) {
		return true
	}
	return slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool {
		_, nothing := d.(*ztv1.NothingChanged)
		return nothing
	})
}

// unknown is the error of a call whose outcome is not known, with the command that
// tells. It is neither a success nor a failure, and has an exit code of its own.
func (a *app) unknown(key string, err error) error {
	text := fmt.Errorf("the outcome is not known: the change may or may not take effect: %s", status.Convert(err).Message())
	hint := "run this to learn it; it takes effect at most once: " + a.again(key)
	if slices.Contains(a.args, "-") {
		hint += " (with the same input)"
	}
	return &exit{exitUnknown, withHint(text, "%s", hint)}
}

// again is the command line of this process, with a key.
func (a *app) again(key string) string {
	words := []string{"ztctl"}
	for _, arg := range a.args {
		words = append(words, quote(arg))
	}
	has := slices.ContainsFunc(a.args, func(s string) bool {
		return s == "--idempotency-key" || strings.HasPrefix(s, "--idempotency-key=")
	})
	if key != "" && !has {
		words = append(words, "--idempotency-key", quote(key))
	}
	return strings.Join(words, " ")
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=,@%+-]+$`)

// quote is a word as a shell reads it back.
func quote(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// staleFlag lets a command that reads be answered by any server.
func staleFlag(cmd *cobra.Command, stale *bool) {
	cmd.Flags().BoolVar(stale, "stale", false, "be answered by the server that is asked from what it knows, however old; needs no quorum")
}

// headStaleness is showStaleness for documents, which stand alone on stdout where a
// program reads them.
func (a *app) headStaleness(s *ztv1.Staleness) {
	if s != nil && a.set.Output != "table" {
		defer func(out io.Writer) { a.out = out }(a.out)
		a.out = a.err
	}
	a.showStaleness(s)
}

// showStaleness heads a table whose content may be old.
func (a *app) showStaleness(s *ztv1.Staleness) {
	if s == nil {
		return
	}
	age := "has heard no leader since it started"
	if s.Age != nil {
		age = "last heard a leader " + s.Age.AsDuration().Round(time.Millisecond).String() + " ago"
	}
	fmt.Fprintf(a.out, "stale: revision %d, by server %s, which %s\n", s.Revision, printable(s.Server), age)
}

// replaceFlag gives another flag, and value, the place of one.
func replaceFlag(args []string, flag, by, value string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == flag && i+1 < len(args):
			i++
			out = append(out, by, value)
		case strings.HasPrefix(args[i], flag+"="):
			out = append(out, by, value)
		default:
			out = append(out, args[i])
		}
	}
	return out
}
