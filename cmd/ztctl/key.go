package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newKey() *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Short: "The key-encryption keys of the servers", Args: knownCommand, RunE: showHelp,
		Long: `The key-encryption key (KEK) seals the root's key, and the data keys of each server.
It is named by its id; no key is ever shown. Each server has its keys from the source
that its --kek names.

  ztctl key rotate     go over to another key, without a pause
  ztctl key status     wait until nothing is sealed with the old one
  ztctl key drop ID    take the old one out of the servers' key files

Backups that were made before need the old key: keep it for as long as them.`,
		Example: `  ztctl key rotate --dry-run
  ztctl key status`,
	}
	cmd.AddCommand(a.newKeyStatus(), a.newKeyRotate(), a.newKeyDrop())
	return cmd
}

func (a *app) newKeyStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show which server has which keys, and what they seal", Args: cobra.NoArgs,
		Long: `status shows the current key and those that were replaced, and for each server where
it has its keys from, their ids, and what is still sealed with an old one. DATA is
the number of the data key that it encrypts with, and of the oldest that something in
its log or a snapshot still needs: that goes as the log is folded, by itself.`,
		Example: "  ztctl key status\n  ztctl key status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			resp, err := call(cmd.Context(), a, c.GetKeys, &ztv1.GetKeysRequest{})
			if err != nil {
				return err
			}
			return a.print(resp, func() error { return a.showKeys(resp.Current, resp.Retired, resp.Servers) })
		},
	}
}

func (a *app) showKeys(current string, retired []string, servers []*ztv1.ServerKeys) error {
	fmt.Fprintf(a.out, "current key: %s\n", printable(current))
	if len(retired) > 0 {
		fmt.Fprintf(a.out, "replaced:    %s\n", printable(strings.Join(retired, ", ")))
	}
	var rows [][]string
	for _, r := range servers {
		data := ""
		if r.DataKey > 0 {
			data = number(uint64(r.DataKey))
		}
		if r.OldestDataKey < r.DataKey {
			data += " (from " + number(uint64(r.OldestDataKey)) + ")"
		}
		rows = append(rows, []string{r.Server, r.Source, strings.Join(r.KeyIds, ","), data, keyState(current, r)})
	}
	return a.columns("SERVER SOURCE KEYS DATA STATE", rows)
}

// keyState says in words what a server still has to do.
func keyState(current string, r *ztv1.ServerKeys) string {
	switch {
	case r.Error != "":
		return r.Error
	case r.SourceError != "":
		return r.SourceError
	case !slices.Contains(r.KeyIds, current):
		return "does not have the current key"
	case r.DataKeysSealedBy != current:
		return "data keys are sealed with " + r.DataKeysSealedBy
	case r.RootCopySealedBy != "" && r.RootCopySealedBy != current:
		return "its copy of the root key is sealed with " + r.RootCopySealedBy
	}
	return "ok"
}

func (a *app) newKeyRotate() *cobra.Command {
	req := &ztv1.RotateKeyRequest{}
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "rotate", Short: "Seal everything with another key-encryption key", Args: cobra.NoArgs,
		Long: `rotate seals the root's key with another key-encryption key, and waits until every
server has sealed what it holds. Nothing stops meanwhile.

Where the servers have their keys in files, a new key is made and handed to all of
them. Otherwise let the source of every server give a new key beside the current one
first (env: restart them one by one); rotate takes the one that was not used yet, or
that --to names. Servers that could not open what would be sealed are named, and
nothing is changed.

The old key stays where it is, until ztctl key drop. Role: admin.`,
		Example: "  ztctl key rotate --dry-run\n  ztctl key rotate\n  ztctl key rotate --to 5f0c7e2a9b1d4c6e",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.rotateKey(cmd.Context(), req, wait) },
	}
	f := cmd.Flags()
	f.StringVar(&req.To, "to", "", "`ID` of the key to go to (default: the one that was not used yet, or a new one)")
	f.BoolVar(&req.DryRun, "dry-run", false, "tell what would be done, and do nothing")
	f.DurationVar(&wait, "timeout", time.Minute, "how long to wait for the servers")
	keyFlag(cmd, &req.IdempotencyKey)
	return cmd
}

func (a *app) rotateKey(ctx context.Context, req *ztv1.RotateKeyRequest, wait time.Duration) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if req.DryRun {
		resp, err := call(ctx, a, c.RotateKey, req)
		if err != nil {
			return err
		}
		return a.print(resp, func() error {
			to := "a new key, handed to every server that does not have one"
			if resp.To != "" {
				to = "key " + printable(resp.To)
			}
			fmt.Fprintf(a.out, "would go from key %s to %s; nothing was changed\n", printable(resp.From), to)
			return a.showKeys(resp.From, nil, resp.Servers)
		})
	}
	resp, err := commit(ctx, a, c.RotateKey, req)
	if err != nil {
		return err
	}
	a.note("the root key is sealed with %s, no more with %s", resp.To, resp.From)
	now, err := a.awaitKeys(ctx, c, wait)
	if now == nil {
		return err
	}
	return errors.Join(a.print(now, func() error { return a.showKeys(now.Current, now.Retired, now.Servers) }), err)
}

// awaitKeys waits until every server has sealed what it holds with the current key.
func (a *app) awaitKeys(ctx context.Context, c *client, wait time.Duration) (*ztv1.GetKeysResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var last *ztv1.GetKeysResponse
	for {
		now, err := call(ctx, a, c.GetKeys, &ztv1.GetKeysRequest{})
		if err == nil {
			last = now
			if !slices.ContainsFunc(now.Servers, func(r *ztv1.ServerKeys) bool { return keyState(now.Current, r) != "ok" }) {
				return last, nil
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return last, &exit{exitUnconfirmed, withHint(errors.New("not every server has sealed what it holds yet; it will when it can"), "see ztctl key status")}
		}
	}
}

func (a *app) newKeyDrop() *cobra.Command {
	req := &ztv1.DropKeyRequest{}
	cmd := &cobra.Command{
		Use: "drop ID", Short: "Take a key that was replaced out of the servers' key files", Args: cobra.ExactArgs(1),
		Long: `drop takes a key out of the key files of all servers. Servers that have something
sealed with it, or of which that is not known, are named, and nothing is dropped.
Where a server has its keys from the environment or a command, take it out there.

Backups that were made before still need it: keep a copy for as long as them.
Role: admin.`,
		Example: "  ztctl key drop 5f0c7e2a9b1d4c6e --dry-run\n  ztctl key drop 5f0c7e2a9b1d4c6e",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.KeyId = args[0]
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if req.DryRun {
				resp, err := call(cmd.Context(), a, c.DropKey, req)
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					_, err := fmt.Fprintf(a.out, "key %s can be dropped: no server needs it; nothing was changed\n", printable(req.KeyId))
					return err
				})
			}
			resp, err := commit(cmd.Context(), a, c.DropKey, req)
			if err != nil {
				return err
			}
			a.note("key %s is dropped; backups of before still need it", req.KeyId)
			for _, r := range resp.Servers {
				if slices.Contains(r.KeyIds, req.KeyId) {
					a.note("server %s still has it, from %s: take it out there", r.Server, r.Source)
				}
			}
			return a.print(resp, func() error { return nil })
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "tell whether it can be dropped, and drop nothing")
	keyFlag(cmd, &req.IdempotencyKey)
	return cmd
}
