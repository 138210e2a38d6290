package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// Test is a cluster of one test. Its methods end the test where they have an error.
type Test struct {
	*Cluster
	T        *testing.T
	Block    zttest.Block
	Patience time.Duration // bounds each wait
}

// NewTest is a cluster that has no server yet, with its programs built, also with more
// build tags. When the test ends, so does everything that it runs, and its folder is
// removed; of a test that has failed the ends of the logs are shown, and all but the
// programs is kept.
func NewTest(t *testing.T, patience time.Duration, programs []string, tags ...string) *Test {
	t.Helper()
	dir, err := os.MkdirTemp("", "zt") // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	c := &Test{
		Cluster: &Cluster{Site: &Site{Bin: filepath.Join(dir, "bin"), Dir: filepath.Join(dir, "site"), Env: Environment()}, Tags: tags},
		T:       t, Patience: patience,
	}
	t.Cleanup(func() {
		for _, s := range c.Servers {
			s.Kill()
		}
		gone := dir
		if t.Failed() {
			for _, s := range c.Servers {
				t.Logf("--- end of %s\n%s", c.Log(s.Name), zttest.Tail(c.Log(s.Name), 20))
			}
			t.Logf("logs and data directories are in %s", c.Dir)
			gone = c.Bin
		}
		if err := os.RemoveAll(gone); err != nil {
			t.Error(err)
		}
	})
	c.Block, err = zttest.NewBlock()
	c.Check(err)
	c.Check(c.Build(t.Context(), filepath.Join("..", "..", ".."), programs...))
	return c
}

// Check ends the test if there is an error, with the end of the log that tells more.
func (c *Test) Check(err error) {
	c.T.Helper()
	if err == nil {
		return
	}
	var f *zttest.Failure
	if errors.As(err, &f) {
		err = fmt.Errorf("%w\n--- end of %s\n%s", err, f.Log, zttest.Tail(f.Log, 20))
	}
	c.T.Fatal(err)
}

// Context ends with the test, or when Patience does.
func (c *Test) Context() context.Context {
	ctx, cancel := context.WithTimeout(c.T.Context(), c.Patience)
	c.T.Cleanup(cancel)
	return ctx
}

// Until is the function of this name.
func (c *Test) Until(what string, ok func(context.Context) error) {
	c.T.Helper()
	c.Check(Until(c.Context(), what, ok))
}

// Path is one in the folder of the test.
func (c *Test) Path(elem ...string) string { return filepath.Join(c.Dir, filepath.Join(elem...)) }

// BeginThree begins with three servers.
func (c *Test) BeginThree(trustDomain string, flags ...string) {
	c.T.Helper()
	var servers []*Server
	for n := 1; n <= 3; n++ {
		servers = append(servers, &Server{Name: fmt.Sprintf("ztd-%d", n), Host: c.Block.At(n), Flags: flags})
	}
	c.Check(c.Begin(c.Context(), trustDomain, servers))
}

// KnowsAll waits until the first admin's credential names so many servers.
func (c *Test) KnowsAll(servers int) {
	c.T.Helper()
	c.Until("the credential knows the servers", func(context.Context) error {
		b, err := os.ReadFile(c.Path("ztd-1.admin.yaml"))
		if n := strings.Count(string(b), ":7400"); err == nil && n < servers {
			err = fmt.Errorf("%d of %d", n, servers)
		}
		return err
	})
}

// Leads is the index of the server that leads now.
func (c *Test) Leads() int {
	c.T.Helper()
	n, err := c.Leader(c.Context())
	c.Check(err)
	return n
}

// Apply applies a document, or several, at a server as soon as that can.
func (c *Test) Apply(n int, req *ztv1.ApplyRequest) (revision uint64) {
	c.T.Helper()
	c.Until("an apply", func(ctx context.Context) error {
		resp, err := c.API(n).Apply(ctx, req)
		revision = resp.GetRevision()
		return err
	})
	return revision
}

// Documents asks to apply yaml.
func Documents(yaml string) *ztv1.ApplyRequest {
	return &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "spec.yaml", Content: []byte(yaml)}}}
}

// WorkloadToken is a file with a new token for a workload.
func (c *Test) WorkloadToken(name, workload string) (file string) {
	c.T.Helper()
	token, err := c.Token(c.Context(), workload)
	c.Check(err)
	file, err = c.TokenFile(name, token)
	c.Check(err)
	return file
}

// Agent runs ztagent with its data directory of this name and more flags, until the test
// ends, and returns when it has its certificates.
func (c *Test) Agent(name string, flags ...string) *zttest.Process {
	c.T.Helper()
	p, err := zttest.Start(zttest.Command{
		Name: name, Path: c.Program("ztagent"), Dir: c.Dir, Env: c.Env, Log: c.Log(name),
		Args: slices.Concat([]string{"run", "--data-dir", name}, flags),
	})
	c.Check(err)
	c.T.Cleanup(func() {
		p.Stop(10 * time.Second)
		if c.T.Failed() {
			c.T.Logf("--- end of %s\n%s", p.Log(), zttest.Tail(p.Log(), 20))
		}
	})
	c.Check(p.Await(c.Context(), "its certificates", func(context.Context) error {
		b, err := os.ReadFile(p.Log())
		if err == nil && !strings.Contains(string(b), `"msg":"serving"`) {
			err = errors.New("it does not serve")
		}
		return err
	}))
	return p
}

// AgentWithEnvoy runs an agent of a workload, at all servers, with its Envoy, at two
// addresses of the block. Its name is that of the workload without the namespace.
func (c *Test) AgentWithEnvoy(workload string, address, egress int) {
	c.T.Helper()
	binary, err := envoy.Find()
	c.Check(err)
	_, name, _ := strings.Cut(workload, "/")
	c.Agent(name, slices.Concat(c.AtAll(), []string{
		"--workload", workload, "--token-file", c.WorkloadToken(name, workload), "--envoy", binary, "--envoy-concurrency", "1",
		"--address", c.Block.At(address), "--egress-address", c.Block.At(egress),
	})...)
}

// AtAll are flags of ztagent, or of ztctl bootstrap: all servers.
func (c *Test) AtAll() (flags []string) {
	for _, s := range c.Servers {
		flags = append(flags, "--server", s.Node())
	}
	return flags
}

// Number is one that the environment may say.
func Number(t *testing.T, name string, standard uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return standard
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Deadline is when a run ends that may take so many minutes as ZT_MINUTES says; zero if
// it says nothing.
func Deadline(t *testing.T) time.Time {
	t.Helper()
	if os.Getenv("ZT_MINUTES") == "" {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(Number(t, "ZT_MINUTES", 0)) * time.Minute)
}

// Get calls a service of the mesh as an application does, by the egress port of its
// proxy. An answer other than 200 is an error that begins with its status code.
func Get(ctx context.Context, client *http.Client, egress, service, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(egress, strconv.Itoa(xds.EgressPort))+path, nil)
	if err != nil {
		return err
	}
	req.Host = service
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %q", resp.Status, body)
	}
	return err
}

// Denied wants an error of Get to be that of a proxy which denies.
func Denied(err error) error {
	if err == nil || !strings.HasPrefix(err.Error(), "403 ") {
		return fmt.Errorf("not denied: %v", err)
	}
	return nil
}
