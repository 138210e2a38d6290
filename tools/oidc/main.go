// Command oidc is an OpenID provider for tests: the example of zitadel/oidc, at the
// address that its one argument names, a loopback host and port. Its issuer is
// http://HOST:PORT/. It makes a new signing key at each start, knows the users that
// the example ships, and two clients, web and api, whose names are the audiences of
// their tokens; both have the secret "secret" and the redirect of the example,
// http://localhost:9999/auth/callback.
package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "oidc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one argument, HOST:PORT, got %q", args)
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	issuer := "http://" + l.Addr().String() + "/"
	storage.RegisterClients(storage.WebClient("web", "secret"), storage.WebClient("api", "secret"))
	store := storage.NewStorage(storage.NewUserStore(issuer))
	srv := &http.Server{
		Handler:           exampleop.SetupServer(issuer, store, slog.Default(), false),
		ReadHeaderTimeout: 10 * time.Second,
	}
	return srv.Serve(l)
}
