package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// secrets is what the Envoy of one instance takes by SDS: what proves who it is,
// and by what it knows the control plane. Whom else to trust is the control plane's
// to say, and comes from there.
type secrets struct {
	instance string
	fleet    *serve.Fleet
}

func newSecrets(instance string, log *slog.Logger, now func() time.Time) *secrets {
	return &secrets{instance, serve.New(serve.Config{
		// Whoever may open the socket is the Envoy of this instance.
		Authorize: func(context.Context) (string, error) { return instance, nil },
		Retain:    true,
		Server:    "ztagent/" + instance,
		Logger:    log,
		Now:       now,
	})}
}

// publish replaces what the Envoy is told. What has not changed is not sent
// again.
func (s *secrets) publish(h *holding) error {
	svidKey, err := h.svid.Key.PEM()
	if err != nil {
		return err
	}
	nodeKey, err := h.node.Key.PEM()
	if err != nil {
		return err
	}
	s.fleet.SetSecrets(s.instance, []*xds.Resource{
		xds.SVID(identity.EncodePEM(h.svid.Chain), svidKey.Reveal()),
		xds.Node(identity.EncodePEM(h.node.Chain), nodeKey.Reveal()),
		xds.ControlBundle(h.TrustDomain, identity.EncodePEM(h.roots)),
	})
	return nil
}

// serve answers on l until ctx ends, and hears of connections.
func (s *secrets) serve(ctx context.Context, l net.Listener, c *connections) error {
	server := grpc.NewServer(grpc.Creds(peerCredentials()), grpc.ConnectionTimeout(10*time.Second))
	s.fleet.RegisterSecrets(server)
	accesslogv3.RegisterAccessLogServiceServer(server, c)
	stop := context.AfterFunc(ctx, func() {
		s.fleet.Close()
		server.Stop()
	})
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve secrets: %w", err)
	}
	return nil
}

// listenUnix takes a socket that only its owner can open. Its caller holds the
// directory's lock: what is there is left over.
func listenUnix(path string) (net.Listener, error) {
	if err := removeIfThere(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("serve secrets: %w", err)
	}
	// Until here the directory, of mode 0700, has kept others out.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
