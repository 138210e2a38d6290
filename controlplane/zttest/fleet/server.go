package fleet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
)

// Server is one ztd. It listens on the ports of production, at an address of its own.
type Server struct {
	*zttest.Process        // of the last start; nil before
	Name            string // also that of its data directory
	Host            string // an IP address
	// LocalHost is where its local port is; default Host.
	LocalHost string
	// Under is a command that runs it, such as ip netns exec NAME.
	Under []string
	// Flags are more flags of ztd run.
	Flags []string
	// Dial reaches its local port; default net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Admin is where administrators connect.
func (s *Server) Admin() string { return s.Host + ":7400" }

// Node is where proxies and agents connect.
func (s *Server) Node() string { return s.Host + ":7401" }

// Local is where metrics and health are served.
func (s *Server) Local() string {
	host := s.LocalHost
	if host == "" {
		host = s.Host
	}
	return host + ":7403"
}

// Dir is its data directory.
func (s *Server) Dir(site *Site) string { return filepath.Join(site.Dir, s.Name) }

// Start starts the process, also one that was killed, with more environment.
func (s *Server) Start(site *Site, env ...string) (err error) {
	args := slices.Concat(s.Under, []string{
		site.Program("ztd"), "run", "--data-dir", s.Name, "--stable-after", "400ms",
		"--admin-listen", s.Admin(), "--node-listen", s.Node(), "--cluster-listen", s.Host + ":7402", "--local-listen", s.Local(),
	}, s.Flags)
	s.Process, err = zttest.Start(zttest.Command{
		Name: s.Name, Path: args[0], Args: args[1:], Dir: site.Dir, Env: slices.Concat(site.Env, env), Log: site.Log(s.Name),
	})
	return err
}

// Ready waits until the server serves.
func (s *Server) Ready(ctx context.Context) error {
	return s.Await(ctx, "readiness", func(ctx context.Context) error {
		_, err := s.Get(ctx, "/readyz")
		return err
	})
}

// Get asks the local port.
func (s *Server) Get(ctx context.Context, path string) (string, error) {
	return s.ask(ctx, http.MethodGet, path)
}

// Post asks the local port.
func (s *Server) Post(ctx context.Context, path string) error {
	_, err := s.ask(ctx, http.MethodPost, path)
	return err
}

func (s *Server) ask(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.Local()+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: s.Dial}}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// Running tells whether the process has been started and has not ended.
func (s *Server) Running() bool {
	if s.Process == nil {
		return false
	}
	select {
	case <-s.Exited():
		return false
	default:
		return true
	}
}
