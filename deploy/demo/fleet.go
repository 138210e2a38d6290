package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
)

// proxy is one Envoy beside an application, run by an agent or alone.
type proxy struct {
	*zttest.Process
	name    string // shop/web
	address string // where its peers dial it
	egress  string // where its application dials it
	folder  string // of its agent's state, or of its bootstrap
	agent   bool
	admin   *envoy.Admin
}

// The proxies. Numbers are the last of an address: 11 is the egress address of web,
// 21 where its Envoy listens; applications stand on the 31st and following, as the
// spec says.
var proxies = []struct {
	name  string
	agent bool
}{
	{"shop/web", true}, {"shop/orders", true}, {"bank/payments", true}, {"shop/catalog", false}, {"bank/ledger", false},
}

// startServers makes a cluster of one server and joins two more.
func (d *demo) startServers(ctx context.Context) error {
	d.step("Three servers")
	for n := 1; n <= 3; n++ {
		s := &fleet.Server{Name: fmt.Sprintf("ztd-%d", n), Host: d.block.At(n)}
		var err error
		if n == 1 {
			err = d.show(ctx, "ztd", "init", "--trust-domain", trustDomain, "--data-dir", s.Name)
		} else {
			err = d.join(ctx, s)
		}
		if err != nil {
			return err
		}
		d.servers = append(d.servers, s)
		if err := d.startServer(ctx, s); err != nil {
			return err
		}
		if n == 1 {
			if err := d.importContext(ctx, 1); err != nil {
				return err
			}
		}
	}
	if err := d.awaitMembers(ctx); err != nil {
		return err
	}
	if err := d.importContext(ctx, len(d.servers)); err != nil {
		return err
	}
	return d.showMembers(ctx)
}

func (d *demo) join(ctx context.Context, s *fleet.Server) error {
	token := s.Name + ".token"
	if err := d.show(ctx, "ztctl", "token", "create", "--server", "--out", token); err != nil {
		return err
	}
	args := []string{"join", "--server", d.servers[0].Node(), "--token-file", token, "--data-dir", s.Name}
	d.prompt("ztd " + quoted(args))
	_, err := d.Command(ctx, "ztd", args...)
	return err
}

// startServer starts a server, also one that was killed, and waits until it serves.
func (d *demo) startServer(ctx context.Context, s *fleet.Server) error {
	if err := s.Start(&d.Site); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.Ready(ctx)
}

// importContext takes over the admin's credential once it names so many servers.
func (d *demo) importContext(ctx context.Context, servers int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	const file = "ztd-1.admin.yaml"
	err := d.servers[0].Await(ctx, "the addresses of all servers in "+file, func(context.Context) error {
		b, err := os.ReadFile(filepath.Join(d.Dir, file))
		for _, s := range d.servers[:servers] {
			if err == nil && !strings.Contains(string(b), s.Admin()) {
				err = fmt.Errorf("%s is missing", s.Admin())
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = d.Command(ctx, "ztctl", "context", "import", file)
	return err
}

// members are the servers as the control plane sees them.
type members struct {
	Members []struct {
		ID           string `json:"id"`
		AdminAddress string `json:"adminAddress"`
		Voter        bool   `json:"voter"`
		Leader       bool   `json:"leader"`
		Reachable    bool   `json:"reachable"`
	} `json:"members"`
}

// awaitMembers waits until all servers vote, can be reached and have one leader.
func (d *demo) awaitMembers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return d.servers[0].Await(ctx, "three voters", func(ctx context.Context) error {
		var m members
		if err := d.ask(ctx, &m, "members", "list"); err != nil {
			return err
		}
		well, leaders := 0, 0
		for _, s := range m.Members {
			if s.Voter && s.Reachable {
				well++
			}
			if s.Leader {
				leaders++
			}
		}
		if well != len(d.servers) || leaders != 1 {
			return fmt.Errorf("%d voters can be reached, %d lead", well, leaders)
		}
		return nil
	})
}

// showMembers tells which server is which.
func (d *demo) showMembers(ctx context.Context) error {
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	for _, s := range d.servers {
		role := "voter "
		if s == leader {
			role = "leader"
		}
		d.say("%s  %s  admin %s  nodes %s", s.Name, role, s.Admin(), s.Node())
	}
	return nil
}

// leader is the server that leads now.
func (d *demo) leader(ctx context.Context) (*fleet.Server, error) {
	var m members
	if err := d.ask(ctx, &m, "members", "list"); err != nil {
		return nil, err
	}
	for _, member := range m.Members {
		for _, s := range d.servers {
			if member.Leader && member.AdminAddress == s.Admin() {
				return s, nil
			}
		}
	}
	return nil, errors.New("no server leads")
}

func (d *demo) applySpec(ctx context.Context) error {
	d.step("One spec: who may do what")
	return d.apply(ctx, "first")
}

// startProxies starts the applications and the Envoys, and waits for the receipt.
func (d *demo) startProxies(ctx context.Context) error {
	d.step("Five Envoys join: three with an agent, two without")
	if err := d.startApps(); err != nil {
		return err
	}
	var nodes []string
	for _, s := range d.servers {
		nodes = append(nodes, s.Node())
	}
	for n, f := range proxies {
		short := f.name[strings.LastIndexByte(f.name, '/')+1:]
		p := &proxy{
			name: f.name, agent: f.agent, address: d.block.At(21 + n), egress: d.block.At(11 + n), folder: filepath.Join(d.Dir, short),
		}
		token := short + ".token"
		if _, err := d.Command(ctx, "ztctl", "token", "create", "--workload", f.name, "--out", token); err != nil {
			return err
		}
		start := d.startAlone
		if f.agent {
			start = d.startAgent
		}
		if err := start(ctx, p, short, token, nodes); err != nil {
			return err
		}
		d.proxies = append(d.proxies, p)
	}
	if err := d.awaitAgents(ctx); err != nil {
		return err
	}
	if err := d.apply(ctx, "again"); err != nil {
		return err
	}
	for _, p := range d.proxies {
		if err := d.awaitPeers(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) startApps() error {
	for _, start := range []func() (*zttest.App, error){
		func() (*zttest.App, error) { return zttest.NewHTTPApp("orders", d.block.At(32)+":8080") },
		func() (*zttest.App, error) { return zttest.NewHTTPApp("payments", d.block.At(33)+":8080") },
		func() (*zttest.App, error) { return zttest.NewGRPCApp(d.block.At(34) + ":9000") },
		func() (*zttest.App, error) { return zttest.NewTCPApp(d.block.At(35) + ":7000") },
	} {
		a, err := start()
		if err != nil {
			return err
		}
		d.apps = append(d.apps, a)
	}
	return nil
}

// startAgent starts an agent, which enrols and runs the Envoy.
func (d *demo) startAgent(_ context.Context, p *proxy, short, token string, nodes []string) (err error) {
	args := []string{
		"run", "--workload", p.name, "--server", strings.Join(nodes, ","), "--token-file", token, "--data-dir", short,
		"--address", p.address, "--egress-address", p.egress, "--envoy", d.envoy, "--envoy-concurrency", "1",
	}
	d.prompt(fmt.Sprintf("ztagent run --workload %s --token-file %s --address %s ...", p.name, token, p.address))
	p.admin = envoy.NewAdmin(filepath.Join(p.folder, "envoy-admin.sock"))
	p.Process, err = zttest.Start(zttest.Command{
		Name: "ztagent of " + p.name, Path: d.Program("ztagent"), Dir: d.Dir, Env: d.Env, Log: d.Log(short), Args: args,
	})
	return err
}

// startAlone writes a bootstrap and starts an Envoy with it.
func (d *demo) startAlone(ctx context.Context, p *proxy, short, token string, nodes []string) (err error) {
	d.prompt(fmt.Sprintf("ztctl bootstrap %s --workload %s --token-file %s --address %s ...", short, p.name, token, p.address))
	d.prompt("envoy -c " + short + "/bootstrap.json ...")
	args := []string{
		"bootstrap", short, "--workload", p.name, "--token-file", token, "--address", p.address, "--egress-address", p.egress,
	}
	for _, n := range nodes {
		args = append(args, "--server", n)
	}
	if _, err := d.Command(ctx, "ztctl", args...); err != nil {
		return err
	}
	p.admin = envoy.NewAdmin(filepath.Join(p.folder, "admin.sock"))
	p.Process, err = zttest.Start(zttest.Command{
		Name: "envoy of " + p.name, Path: d.envoy, Dir: d.Dir, Env: d.Env, Log: d.Log(short),
		Args: []string{
			"-c", filepath.Join(p.folder, "bootstrap.json"), "--concurrency", "1", "--disable-hot-restart",
			"--log-level", "warning", "--file-flush-interval-msec", "1000",
		},
	})
	return err
}

// awaitAgents waits until every proxy is enrolled, so that receipts expect it.
func (d *demo) awaitAgents(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, p := range d.proxies {
		err := p.Await(ctx, "its Envoy", func(ctx context.Context) error {
			_, err := p.admin.Get(ctx, "/ready")
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitPeers waits until a proxy has found every peer that it may call well.
func (d *demo) awaitPeers(ctx context.Context, p *proxy) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p.Await(ctx, "its peers", func(ctx context.Context) error {
		body, err := p.admin.Get(ctx, "/stats?format=json&filter="+url.QueryEscape(`^cluster\.svc/.*\.membership_(healthy|total)$`))
		if err != nil {
			return err
		}
		var stats struct {
			Stats []struct {
				Name  string `json:"name"`
				Value int    `json:"value"`
			} `json:"stats"`
		}
		if err := json.Unmarshal([]byte(body), &stats); err != nil {
			return err
		}
		for _, s := range stats.Stats {
			if s.Value != 1 { // each service has one endpoint
				return fmt.Errorf("%s is %d", s.Name, s.Value)
			}
		}
		return nil
	})
}

// proxy is the proxy of a workload.
func (d *demo) proxy(name string) *proxy {
	for _, p := range d.proxies {
		if p.name == name {
			return p
		}
	}
	panic("no proxy " + name) // a mistake in this program
}

// out is where a workload's application reaches its own proxy.
func (p *proxy) out(port int) string { return net.JoinHostPort(p.egress, strconv.Itoa(port)) }
