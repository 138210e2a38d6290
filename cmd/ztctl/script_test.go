package main

import (
	"os"
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
			"code":   code,
			"mode":   mode,
			"server": server, "envoy": runEnvoy, "port": port, "expand": expand, "instance": instanceID, "eventually": eventually,
			"loopback": loopback, "app": runApp, "request": request,
		},
	})
}
