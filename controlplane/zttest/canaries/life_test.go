//go:build system

package canaries_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/canaries"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const (
	patience    = 60 * time.Second
	trustDomain = "canary.example"
)

// life is a cluster of real programs, and the secrets that are known of it.
type life struct {
	*fleet.Test
	agents   []*zttest.Process
	canaries []canaries.Canary
	said     map[string][]byte // what programs have written to their streams, or served
	kek      identity.Keys     // all that there ever were
}

func (l *life) read(elem ...string) []byte {
	l.T.Helper()
	b, err := os.ReadFile(l.Path(elem...))
	l.Check(err)
	return b
}

func (l *life) canary(name string, secret []byte, own ...string) {
	l.T.Helper()
	if len(secret) < 16 {
		l.T.Fatalf("the %s has %d bytes", name, len(secret))
	}
	for _, c := range l.canaries {
		if string(c.Secret) == string(secret) {
			l.T.Fatalf("the %s is the %s", name, c.Name)
		}
	}
	l.canaries = append(l.canaries, canaries.Canary{Name: name, Secret: secret, Own: own})
}

// keyOf makes the key of a pair in a file of its owner a canary.
func (l *life) keyOf(name string, pair *identity.KeyPair, own ...string) {
	l.T.Helper()
	secret, _ := scalar(l.T, pair.Key)
	l.canary(name, secret, own...)
}

// tokenOf makes a token, in a file, a canary.
func (l *life) tokenOf(name, file string) {
	l.T.Helper()
	l.canary(name, []byte(strings.Split(strings.TrimSpace(string(l.read(file))), ".")[2]), file)
}

// ctl runs ztctl as the first admin, and keeps what it says.
func (l *life) ctl(args ...string) string {
	l.T.Helper()
	out, err := l.Command(l.Context(), "ztctl", append([]string{"--config", l.Path("ztd-1.admin.yaml")}, args...)...)
	l.keep(fmt.Sprintf("%d: ztctl %s", len(l.said), strings.Join(args, " ")), out, err)
	l.Check(err)
	return out
}

// refused is ctl, or another program, that must fail.
func (l *life) refused(program string, args ...string) {
	l.T.Helper()
	cmd := exec.CommandContext(l.Context(), l.Program(program), args...)
	cmd.Dir, cmd.Env = l.Dir, l.Env
	out, err := cmd.CombinedOutput()
	l.keep(fmt.Sprintf("%d: %s", len(l.said), program), string(out), err)
	if err == nil {
		l.T.Errorf("%s is done", program)
	}
}

func (l *life) keep(what, out string, err error) {
	if err != nil {
		out += err.Error()
	}
	l.said[what] = []byte(out)
}

// The spec of the cluster: what people say in it stands on no disk in clear.
const specText = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: canary.example, svidTTL: 60s}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-orders}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET], paths: ["/said-in-a-path-of-a-grant-0123456789"]}}
`

// said are the parts of documents that are looked for on disks.
var said = []string{
	"/said-in-a-path-of-a-grant-0123456789", "said in the message of an apply 0123456789",
	"said as the reason of a block 0123456789",
}

// begin has everything happen that makes secrets.
func begin(t *testing.T) *life {
	t.Helper()
	l := &life{Test: fleet.NewTest(t, patience, []string{"ztd", "ztagent", "ztctl"}), said: map[string][]byte{}}
	l.BeginThree(trustDomain, "--log-level", "debug", "--snapshot-entries", "32", "--snapshot-interval", "200ms", "--trailing-entries", "16")
	return l
}

func (l *life) spec() {
	l.T.Helper()
	l.Check(os.WriteFile(l.Path("spec.yaml"), []byte(specText), 0o600))
	l.KnowsAll(3)
	l.ctl("apply", "-f", "spec.yaml", "--message", said[1], "--no-wait")
	l.ctl("block", "shop/orders", "--reason", said[2], "--no-wait")
	for _, text := range said {
		l.canary(text, []byte(text), "spec.yaml")
		l.canaries[len(l.canaries)-1].Disk = true
	}
}

// tokens are made by the command, into files.
func (l *life) token(name string, args ...string) string {
	l.T.Helper()
	l.ctl(append([]string{"token", "create", "--out", name + ".token"}, args...)...)
	l.tokenOf("token "+name, name+".token")
	return name + ".token"
}

func (l *life) tokens() {
	l.T.Helper()
	for n := range 2 { // of the joins
		l.tokenOf(fmt.Sprintf("server token of ztd-%d", n+2), fmt.Sprintf("ztd-%d.token", n+2))
	}
	for n := range 6 {
		l.token(fmt.Sprintf("unused-%d", n), "--workload", "shop/web")
	}
	l.token("unused-server", "--server")
	l.token("derived", "--workload", "shop/web", "--idempotency-key", "said-once")
	l.refused("ztctl", "--config", l.Path("ztd-1.admin.yaml"), "token", "create", "--workload", "shop/orders", "--idempotency-key", "said-once")
	deleted := l.token("deleted", "--workload", "shop/web")
	id := strings.Split(string(l.read(deleted)), ".")[1]
	l.ctl("token", "delete", id)
	l.refused("ztctl", "bootstrap", "folder-refused", "--workload", "shop/web", "--server", l.Servers[0].Node(), "--token-file", deleted)
	l.refused("ztctl", "bootstrap", "folder-other", "--workload", "shop/orders", "--server", l.Servers[1].Node(), "--token-file", l.token("of-another", "--workload", "shop/web"))
	l.refused("ztagent", "run", "--no-envoy", "--workload", "shop/orders", "--server", l.Servers[1].Node(), "--token-file", l.token("not-an-agent's", "--server"), "--data-dir", "agent-refused")
}

func (l *life) admins() {
	l.T.Helper()
	load := func(name, file string) {
		c, err := fleet.LoadCredential(l.Path(file))
		l.Check(err)
		l.keyOf(name, c.Pair, file)
	}
	load("first admin's key", "ztd-1.admin.yaml")
	for _, role := range []string{"admin", "viewer", "viewer", "admin", "viewer"} {
		name := fmt.Sprintf("admin-%d", len(l.canaries))
		l.ctl("admin", "add", name, "--role", role, "--out", name+".yaml")
		load(name+"'s key", name+".yaml")
	}
}

// enrol has agents and proxies without agents enrol, at the three servers.
func (l *life) enrol() {
	l.T.Helper()
	for n := range 4 {
		name := fmt.Sprintf("agent-%d", n+1)
		l.agents = append(l.agents, l.Agent(name,
			"--no-envoy", "--workload", "shop/web", "--token-file", l.token(name, "--workload", "shop/web"),
			"--server", l.Servers[n%3].Node(), "--log-level", "debug",
		))
		for _, file := range []string{"node.pem", "svid.pem"} {
			pair, err := identity.LoadKeyPair(l.Path(name, file))
			l.Check(err)
			l.keyOf(name+"'s "+file, pair, name+"/")
		}
	}
	for n := range 6 {
		name := fmt.Sprintf("envoy-%d", n+1)
		l.ctl("bootstrap", name, "--workload", "shop/web", "--server", l.Servers[n%3].Node(), "--token-file", l.token(name, "--workload", "shop/web"))
		pair, err := identity.LoadKeyPair(l.Path(name, "node.pem"))
		l.Check(err)
		l.keyOf(name+"'s node.pem", pair, name+"/")
	}
}

// keysOf are those that a server has now.
func (l *life) keysOf(server string) identity.Keys {
	l.T.Helper()
	keys, err := identity.KeyFile(l.Path(server + ".kek")).Read(l.T.Context())
	l.Check(err)
	return keys
}

// rotate replaces the key-encryption key; both are canaries.
func (l *life) rotate() {
	l.T.Helper()
	old := l.keysOf("ztd-1").First()
	l.ctl("backup", "before.ztbackup")
	l.ctl("key", "rotate", "--dry-run")
	l.ctl("key", "rotate")
	l.ctl("backup", "after.ztbackup")
	now := l.keysOf("ztd-1").First()
	var err error
	l.kek, err = identity.NewKeys(now, old)
	l.Check(err)
	l.canary("old key-encryption key", old.Reveal(), ".kek")
	l.canary("key-encryption key", now.Reveal(), ".kek")
	l.ctl("key", "drop", old.ID())
	l.ctl("key", "status", "-o", "json")
	if got := l.keysOf("ztd-2").IDs(); !slices.Equal(got, []string{now.ID()}) {
		l.T.Errorf("keys %v", got)
	}
}

// sealed are the secrets that the servers hold under their keys.
func (l *life) sealed(dirs ...string) {
	l.T.Helper()
	for _, dir := range dirs {
		var who struct{ ID string }
		l.Check(json.Unmarshal(l.read(dir, "server.json"), &who))
		plain, err := l.kek.Open("data-keys of server "+who.ID, trustDomain, l.read(dir, "data-keys.sealed"))
		l.Check(err)
		for b := plain.Reveal(); len(b) >= 36; b = b[36:] {
			l.canary(fmt.Sprintf("data key %d of %s", binary.BigEndian.Uint32(b), dir), b[4:36])
		}
		data, err := identity.OpenDataKeys(l.Path(dir, "data-keys.sealed"), trustDomain, who.ID, l.kek)
		l.Check(err)
		pair, err := identity.LoadSealedKeyPair(l.Path(dir, "intermediate.sealed"), data)
		l.Check(err)
		l.keyOf(dir+"'s intermediate", pair)
	}
}

func (l *life) root() {
	l.T.Helper()
	der, err := l.kek.Open("root-key", trustDomain, l.read("ztd-1", "root-key.sealed"))
	l.Check(err)
	l.canary("root's key", scalarOf(l.T, der.Reveal()))
	for _, file := range []string{"before.ztbackup", "after.ztbackup"} {
		b := l.read(file)
		var header struct{ Key []byte }
		l.Check(json.Unmarshal(b[12:12+binary.BigEndian.Uint32(b[8:])], &header))
		key, err := l.kek.Open("backup-key", trustDomain, header.Key)
		l.Check(err)
		l.canary("key of "+file, key.Reveal())
	}
}

// errorsToo has everything say no.
func (l *life) errorsToo() {
	l.T.Helper()
	key := strings.TrimSpace(string(l.kek.First().Text().Reveal()))
	wrong := identity.NewKEK()
	l.canary("key of nothing", wrong.Reveal(), "wrong.kek")
	keys, err := identity.NewKeys(wrong)
	l.Check(errors.Join(err, identity.SaveKeys(l.Path("wrong.kek"), keys)))
	l.refused("ztd", "run", "--data-dir", "ztd-1", "--kek", key)
	l.refused("ztd", "run", "--data-dir", "ztd-1", "--kek", "file:"+l.Path("wrong.kek"))
	l.refused("ztd", "run", "--data-dir", "ztd-1", "--kek", "command:/bin/cat "+l.Path("ztd-2.kek")+" "+l.Path("nothing"))
	l.refused("ztd", "restore", "--data-dir", "restored-wrong", "--from", "after.ztbackup", "--kek", "file:"+l.Path("wrong.kek"))
	l.refused("ztd", "join", "--data-dir", "joined-wrong", "--server", l.Servers[0].Node(), "--token-file", "unused-server.token", "--kek", "file:"+l.Path("wrong.kek"))
	l.refused("ztctl", "--config", l.Path("ztd-1.admin.yaml"), "key", "rotate", "--to", "nothing")
	l.refused("ztctl", "--config", l.Path("ztd-1.kek"), "status")
	l.refused("ztctl", "--config", l.Path("ztd-1.admin.yaml"), "apply", "-f", "ztd-1.kek")
}

// reads has everything shown that there is to be shown.
func (l *life) reads() {
	l.T.Helper()
	for _, args := range [][]string{
		{"status"}, {"get"}, {"get", "blocks"}, {"members"}, {"token", "list"}, {"admin", "list"}, {"history"}, {"log"}, {"key", "status"}, {"context", "list"},
	} {
		l.ctl(args...)
		l.ctl(append(args, "-o", "json")...)
	}
	for _, s := range l.Servers {
		for _, path := range []string{"/metrics", "/healthz", "/readyz", "/debug/state", "/debug/members", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1"} {
			body, err := s.Get(l.Context(), path)
			l.Check(err)
			l.said[s.Name+path] = []byte(body)
		}
	}
	for n := range l.Servers {
		stream, err := l.API(n).ReadAudit(l.Context(), &ztv1.ReadAuditRequest{})
		l.Check(err)
		for i := 0; ; i++ {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			l.Check(err)
			l.said[fmt.Sprintf("audit of %s, %d", l.Servers[n].Name, i)] = []byte(m.String())
		}
	}
	for _, p := range l.processes() {
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID(), file))
			l.Check(err)
			l.said[fmt.Sprintf("%s of %s", file, p.Name())] = b
		}
	}
}

func (l *life) processes() (all []*zttest.Process) {
	for _, s := range l.Servers {
		all = append(all, s.Process)
	}
	return append(all, l.agents...)
}

// search looks for all canaries in all that there is.
func (l *life) search() (found []canaries.Found, places int) {
	l.T.Helper()
	f := canaries.NewFinder(l.canaries)
	for where, content := range l.said {
		places++
		found = append(found, f.Find(where, content, false)...)
	}
	l.Check(filepath.WalkDir(l.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		places++
		where := strings.TrimPrefix(path, l.Dir+string(filepath.Separator))
		found = append(found, f.Find(where, content, !strings.HasPrefix(where, "log/"))...)
		return err
	}))
	return found, places
}

// TestCanaries: of 64 secrets of a cluster and of all that has enrolled with it, none
// stands in any file but its owner's, nor in anything that was said. That they would be
// found is shown by planting each of them.
func TestCanaries(t *testing.T) {
	l := begin(t)
	l.spec()
	l.tokens()
	l.admins()
	l.enrol()
	l.rotate()
	l.errorsToo()
	l.reads()
	// Backups of either key are restored, and what they become is searched, too.
	l.Check(identity.SaveKeys(l.Path("restored.kek"), l.kek))
	for n, file := range []string{"before.ztbackup", "after.ztbackup"} {
		out, err := l.Command(l.Context(), "ztd", "restore", "--from", file, "--data-dir", fmt.Sprintf("restored-%d", n), "--kek", "file:"+l.Path("restored.kek"), "--log-level", "debug")
		l.keep("restore of "+file, out, err)
		l.Check(err)
	}
	l.root()
	l.sealed("ztd-1", "ztd-2", "ztd-3", "restored-0", "restored-1")

	if len(l.canaries) < 64 {
		t.Errorf("%d canaries", len(l.canaries))
	}
	found, places := l.search()
	for _, f := range found {
		t.Error(f)
	}
	t.Logf("%d canaries, %d places", len(l.canaries), places)
	for _, s := range l.Servers {
		if !strings.Contains(string(l.read("log", s.Name+".log")), `"level":"DEBUG"`) {
			t.Errorf("%s does not log at debug", s.Name)
		}
	}

	// Each of them is found where it is put, and where it belongs it is.
	for i, c := range l.canaries {
		form := canaries.Forms()[i%len(canaries.Forms())]
		where := filepath.Join([]string{"ztd-1", "ztd-2/raft", "ztd-3/raft/snapshots", "restored-0"}[i%4], "planted")
		l.Check(os.WriteFile(l.Path(where), []byte("before "+form.Write(c.Secret[:len(c.Secret)/2])[0]+" after"), 0o600))
		f := canaries.NewFinder(l.canaries[i : i+1])
		if got := f.Find(where, l.read(where), true); len(got) == 0 || got[0].Canary != c.Name {
			t.Errorf("the %s, planted as %s, is not found: %v", c.Name, form.Name, got)
		}
		if i == 0 {
			if all, _ := l.search(); len(all) == len(found) {
				t.Error("the search finds nothing that was planted")
			}
		}
		l.Check(os.Remove(l.Path(where)))
	}
}
