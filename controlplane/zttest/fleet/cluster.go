package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Cluster is servers built with the tag failpoints, which tell on their local port what
// no client may know: who is of the group, and what the state comes to.
type Cluster struct {
	*Site
	Servers []*Server
	IDs     []string // of the servers
	Admin   *Credential
	Ports   []Ports  // of the servers
	Tags    []string // more build tags
}

// Ports are where one server is reached.
type Ports struct {
	Admin *grpc.ClientConn // as the first admin
	Node  *grpc.ClientConn // as nobody
	// AsNode connects to the node port as an instance.
	AsNode func(*identity.KeyPair) (*grpc.ClientConn, error)
}

// Build makes the programs, from the root of the module, with failpoints in them.
func (c *Cluster) Build(ctx context.Context, root string, programs ...string) error {
	args := []string{"build", "-tags", strings.Join(append([]string{"failpoints"}, c.Tags...), ","), "-o", c.Bin + "/"}
	for _, p := range programs {
		args = append(args, "./cmd/"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return os.MkdirAll(filepath.Join(c.Dir, "log"), 0o700)
}

// Begin makes a cluster of servers that have no folder yet, and returns when all vote.
func (c *Cluster) Begin(ctx context.Context, trustDomain string, servers []*Server) error {
	for n, s := range servers {
		if n == 0 {
			if _, err := c.Command(ctx, "ztd", "init", "--trust-domain", trustDomain, "--data-dir", s.Name); err != nil {
				return err
			}
		} else if err := c.Join(ctx, s); err != nil {
			return err
		}
		if err := s.Start(c.Site); err != nil {
			return err
		}
		if err := s.Ready(ctx); err != nil {
			s.Kill()
			return err
		}
		if n == 0 {
			var err error
			if c.Admin, err = LoadCredential(s.Dir(c.Site) + ".admin.yaml"); err != nil {
				return err
			}
		}
		if err := c.Adopt(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// Adopt takes a server that is ready among those of the cluster, as the last, and waits
// until all vote. Admin must be known.
func (c *Cluster) Adopt(ctx context.Context, s *Server) error {
	id, err := c.ID(s)
	if err != nil {
		return err
	}
	ports, err := c.connect(s)
	if err != nil {
		return err
	}
	c.Servers, c.IDs, c.Ports = append(c.Servers, s), append(c.IDs, id), append(c.Ports, ports)
	return c.Together(ctx)
}

func (c *Cluster) connect(s *Server) (p Ports, err error) {
	asAdmin, err := c.Admin.TLS(c.Admin.Pair)
	if err != nil {
		return p, err
	}
	asNobody, err := c.Admin.TLS(nil)
	if err != nil {
		return p, err
	}
	if p.Admin, err = Connect(s.Admin(), asAdmin); err != nil {
		return p, err
	}
	if p.Node, err = Connect(s.Node(), asNobody); err != nil {
		return p, err
	}
	p.AsNode = func(pair *identity.KeyPair) (*grpc.ClientConn, error) {
		config, err := c.Admin.TLS(pair)
		if err != nil {
			return nil, err
		}
		return Connect(s.Node(), config)
	}
	return p, nil
}

// API is the admin API of a server.
func (c *Cluster) API(n int) ztv1.AdminServiceClient {
	return ztv1.NewAdminServiceClient(c.Ports[n].Admin)
}

// ID is what a server's folder says of it.
func (c *Cluster) ID(s *Server) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.Dir(c.Site), "server.json"))
	if err != nil {
		return "", err
	}
	var f struct {
		ID string `json:"id"`
	}
	return f.ID, json.Unmarshal(b, &f)
}

// Token makes a token for a workload, or for a server if that is "", at any server that
// does it.
func (c *Cluster) Token(ctx context.Context, workload string) (token string, err error) {
	n := 0
	err = Until(ctx, "a token", func(ctx context.Context) error {
		n++
		resp, err := c.API(n%len(c.Ports)).CreateToken(ctx, &ztv1.CreateTokenRequest{Workload: workload, Server: workload == ""})
		token = resp.GetToken()
		return err
	})
	return token, err
}

// TokenFile writes a token to a file, for a program to read.
func (c *Cluster) TokenFile(name, token string) (string, error) {
	file := filepath.Join(c.Dir, name+".token")
	return file, os.WriteFile(file, []byte(token), 0o600)
}

// JoinArgs are how ztd makes s a server, by a token, at one that runs.
func (c *Cluster) JoinArgs(s *Server, token string, at int) ([]string, error) {
	file, err := c.TokenFile(s.Name, token)
	return []string{"join", "--server", c.Servers[at].Node(), "--token-file", file, "--data-dir", s.Name}, err
}

// Join makes the folder of a further server, with a new token in each try.
func (c *Cluster) Join(ctx context.Context, s *Server) error {
	return Until(ctx, s.Name+" joins", func(ctx context.Context) error {
		token, err := c.Token(ctx, "")
		if err != nil {
			return err
		}
		args, err := c.JoinArgs(s, token, 0)
		if err != nil {
			return err
		}
		under := slices.Concat(s.Under, []string{c.Program("ztd")}, args)
		_, err = c.Command(ctx, under[0], under[1:]...)
		return err
	})
}

// Together waits until every server knows that all of them vote.
func (c *Cluster) Together(ctx context.Context) error {
	return Until(ctx, "all servers vote", func(ctx context.Context) error {
		for _, s := range c.Servers {
			votes, err := s.Group(ctx)
			if err != nil {
				return err
			}
			for _, id := range c.IDs {
				if !votes[id] {
					return fmt.Errorf("%s does not know that %s votes: %v", s.Name, id, votes)
				}
			}
		}
		return nil
	})
}

// Group is who is of the Raft group, and whether it votes, as this server knows.
func (s *Server) Group(ctx context.Context) (votes map[string]bool, err error) {
	body, err := s.Get(ctx, "/debug/members")
	if err != nil {
		return nil, err
	}
	var all []struct {
		ID    string
		Voter bool
	}
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		return nil, err
	}
	votes = map[string]bool{}
	for _, m := range all {
		votes[m.ID] = m.Voter
	}
	return votes, nil
}

// Leader is the index of a server that says that it leads.
func (c *Cluster) Leader(ctx context.Context) (n int, err error) {
	err = Until(ctx, "a leader", func(ctx context.Context) error {
		for i, s := range c.Servers {
			if !s.Running() {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			info, err := c.API(i).GetServerInfo(ctx, &ztv1.GetServerInfoRequest{})
			cancel()
			if err == nil && info.Leader == c.IDs[i] {
				n = i
				return nil
			}
		}
		return errors.New("none leads")
	})
	return n, err
}

// errDisagree is a fault that no waiting mends.
var errDisagree = errors.New("servers disagree")

// Converge waits until the states of all servers are equal bit by bit.
func (c *Cluster) Converge(ctx context.Context) error {
	var disagree error
	err := Until(ctx, "equal states", func(ctx context.Context) error {
		states := make([]string, len(c.Servers))
		for i, s := range c.Servers {
			body, err := s.Get(ctx, "/debug/state")
			if err != nil {
				return err
			}
			states[i] = strings.TrimSpace(body)
		}
		equal := true
		for i := range states {
			for j := range i {
				a, _, _ := strings.Cut(states[i], " ")
				b, _, _ := strings.Cut(states[j], " ")
				if a == b && states[i] != states[j] {
					disagree = fmt.Errorf("%w: %s and %s at entry %s: %v", errDisagree, c.Servers[i].Name, c.Servers[j].Name, a, states)
					return nil
				}
				equal = equal && states[i] == states[j]
			}
		}
		if !equal {
			return fmt.Errorf("%v", states)
		}
		return nil
	})
	return errors.Join(err, disagree)
}

// Journals are the files of what the servers have signed.
func (c *Cluster) Journals() (files []string) {
	for _, s := range c.Servers {
		files = append(files, filepath.Join(s.Dir(c.Site), "issuance.log"))
	}
	return files
}

// Until asks again and again until there is no error; each time for at most 5 s.
func Until(ctx context.Context, what string, ok func(context.Context) error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := ok(once)
		cancel()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // the end of ctx itself tells less
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %s: %w", what, last)
		case <-tick.C:
		}
	}
}
