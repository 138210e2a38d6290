package store

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestRaftLogger(t *testing.T) {
	var out bytes.Buffer
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	l := newRaftLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: drop})), func() time.Time { return now })
	l.Info("entering leader state", "leader", "a") // debug, and so not here
	peer := l.With("peer", "b").Named("replication")
	for range 5 {
		peer.Error("failed to heartbeat", "error", hclog.Fmt("%d of %d", 1, 2))
	}
	l.Warn("failed to contact", "server-id", "b")
	now = now.Add(quiet)
	peer.Error("failed to heartbeat", "error", "x")
	want := strings.TrimLeft(`
level=ERROR msg="failed to heartbeat" peer=b error="1 of 2"
level=WARN msg="failed to contact" server-id=b
level=ERROR msg="failed to heartbeat" peer=b error=x held_back=4
`, "\n")
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
