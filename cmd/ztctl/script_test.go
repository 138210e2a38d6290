package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ztctl": func() { os.Exit(run()) },
	})
}

// TestScript runs testdata/script/*.txtar: commands, what they print, the files
// they leave and their exit codes. A script gets a home of its own.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.Getenv("WORK")+"/home")
			newWorld(env)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":     code,
			"mode":     mode,
			"revision": revision,
			"server":   server, "envoy": runEnvoy, "port": port, "expand": expand, "instance": instanceID, "eventually": eventually,
			"loopback": loopback, "app": runApp, "request": request,
		},
	})
}

// revision NAME: sets a variable to the revision that the last command has told of.
func revision(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: revision NAME")
	}
	told := regexp.MustCompile(`revision (\d+) `).FindStringSubmatch(ts.ReadFile("stdout"))
	if told == nil {
		ts.Fatalf("no revision in: %s", ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], told[1])
}
