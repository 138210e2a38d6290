//go:build system

package ztmesh_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadmeByHand types what the README says, in an empty folder and a network
// namespace of its own (it needs root), and looks at what a person would see.
// Where a person would wait, it waits.
func TestReadmeByHand(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "## Five minutes by hand")
	_, section, _ = strings.Cut(section, "```sh\n")
	steps, _, ok := strings.Cut(section, "```")
	if !ok {
		t.Fatal("the README has no steps")
	}
	bin := filepath.Join(t.TempDir(), "bin")
	if out, err := exec.Command("go", "build", "-o", bin+"/", "./cmd/...").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	build := "make build envoy && export PATH=$PWD/bin:$PATH\n"
	wait := strings.NewReplacer(
		build, "export PATH="+bin+":$PATH; mkdir -p .tools/envoy/bin; ln -s $ZT_ENVOY .tools/envoy/bin/envoy\n",
		"export ZTCTL_CONFIG", "until curl -sf 127.0.0.1:7403/readyz; do sleep 0.1; done\nexport ZTCTL_CONFIG",
		"curl -i -H", "until curl -sf -o /dev/null -H 'Host: orders.demo.mesh' http://127.0.0.12:15001/orders/7; do sleep 0.1; done\ncurl -is -H",
		"curl -i -X", "curl -is -X",
	)
	if !strings.Contains(steps, build) {
		t.Fatalf("the steps do not begin with %q", build)
	}
	cmd := exec.Command("unshare", "--net", "--pid", "--fork", "--kill-child", "timeout", "-k", "1", "90", "bash", "-c",
		"ip link set lo up\n"+wait.Replace(steps))
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("ended with %v", err) // the last step kills the jobs
	}
	for _, want := range []string{
		"5 added, 0 changed, 0 removed",
		"deny   demo/web   POST orders /orders/7   default",
		"HTTP/1.1 200 OK", "seven",
		"HTTP/1.1 403 Forbidden", "x-ztmesh-reason: rbac_access_denied_matched_policy[default-deny]",
		"demo/orders", "demo/web", "current",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not to be seen", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
