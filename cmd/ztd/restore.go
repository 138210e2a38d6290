package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane"
)

func restoreCommand(stdout, stderr io.Writer) *cobra.Command {
	var from string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "restore --from FILE",
		Short: "Make a new cluster of a backup, with this server as its first",
		Long: `restore reads a backup (ztctl backup), checks all of it, and makes a data directory of
it, with the key-encryption key of the cluster that it is of. Proxies and admins go
on with their certificates. Join tokens of before are void, servers of before are
refused: they join anew, with empty data directories. What was changed after the
backup is lost. With --dry-run nothing is written.`,
		Example: `  ztd restore --from shop.ztbackup --dry-run --kek file:/media/usb/ztd.kek
  ztd restore --from shop.ztbackup --data-dir /var/lib/ztd && ztd run --data-dir /var/lib/ztd`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := setUp(cmd, stderr)
			if err != nil {
				return err
			}
			b, err := controlplane.Restore(cmd.Context(), controlplane.RestoreConfig{
				DataDir: c.DataDir, From: from, KEK: c.KEK, DryRun: dryRun, Logger: log,
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, `backup of trust domain %s, cluster %s, epoch %d
made %s by server %s, ztd %s
revision %d: %d documents, %d proxies, %d admins
not restored: %d servers, %d join tokens
audit log: record %d (%x) is the last of before, and a restore goes on from it; the records
themselves lie with the cluster of before, and in what ztctl log export has written
key-encryption key: %s
`, b.TrustDomain, b.ClusterID, b.Epoch, b.Made.Format(time.RFC3339), b.Server, b.Version,
				b.Revision, b.Documents, b.Instances, b.Admins, b.Servers, b.Tokens, b.AuditSequence, b.AuditHash, b.KEK())
			if dryRun {
				_, err = fmt.Fprintln(stdout, "it is whole and can be restored; nothing was written")
				return err
			}
			_, err = fmt.Fprintf(stdout, "restored in %s\nnext: ztd run --data-dir %s\n", c.DataDir, c.DataDir)
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "`FILE` with the backup (required)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check the backup, tell what it holds, write nothing")
	_ = cmd.MarkFlagRequired("from")
	withConfig(cmd, "data-dir", "kek", "log-level")
	return cmd
}
