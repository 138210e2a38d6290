package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newBackup() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup of the whole cluster",
		Long: `backup writes the state of the cluster, as the leader has it now, into FILE: documents,
trust, admins, enrolled proxies. It is encrypted; ztd restore makes a new cluster of
it, with the key-encryption key, which is not in it: keep that elsewhere. FILE must
not exist; it appears when it is whole. Role: admin.`,
		Example: "  ztctl backup shop-2026-07-01.ztbackup",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.backup(cmd.Context(), args[0]) },
	}
}

func (a *app) backup(ctx context.Context, path string) (err error) {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, withHint(fmt.Errorf("%s is there", path), "a backup replaces nothing: name another file"))
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := os.CreateTemp(filepath.Dir(path), ".backup-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if gone := os.Remove(f.Name()); !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}()
	stream, err := c.Backup(ctx, &ztv1.BackupRequest{})
	if err != nil {
		return a.explain(err)
	}
	size, err := a.receive(stream, f)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, it replaces nothing
		return err
	}
	a.note("%s: %d bytes", path, size)
	return nil
}

// receive writes what comes, and checks that it was all.
func (a *app) receive(stream ztv1.AdminService_BackupClient, to io.Writer) (size uint64, err error) {
	sum := sha256.New()
	for next := a.now().Add(time.Second); ; {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return 0, errors.New("the backup has ended too soon; try again")
		case err != nil:
			return 0, a.explain(err)
		}
		if _, err := io.MultiWriter(to, sum).Write(m.Chunk); err != nil {
			return 0, err
		}
		size += uint64(len(m.Chunk))
		if len(m.Sha256) > 0 {
			if m.Size != size || !bytes.Equal(m.Sha256, sum.Sum(nil)) {
				return 0, errors.New("the backup has not come over whole; try again")
			}
			return size, nil
		}
		if now := a.now(); now.After(next) {
			a.note("%d bytes so far", size)
			next = now.Add(time.Second)
		}
	}
}
