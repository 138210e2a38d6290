package envoy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Admin is the admin interface of an Envoy, whoever has started it.
type Admin struct{ client *http.Client }

// NewAdmin asks at a Unix socket. Nothing is dialled before the first question.
func NewAdmin(socket string) *Admin {
	return &Admin{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, // nothing is left behind that a stop would have to close
	}}}
}

// Get asks the admin interface. An answer other than 200 is an error.
func (a *Admin) Get(ctx context.Context, path string) (string, error) {
	return a.do(ctx, http.MethodGet, path)
}

// Post asks the admin interface to do something.
func (a *Admin) Post(ctx context.Context, path string) (string, error) {
	return a.do(ctx, http.MethodPost, path)
}

func (a *Admin) do(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return string(body), nil
}

// Stat reads one counter or gauge by its full name; one that does not exist is
// 0.
func (a *Admin) Stat(ctx context.Context, name string) (uint64, error) {
	body, err := a.Get(ctx, "/stats?filter="+url.QueryEscape("^"+name+"$"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(body) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && key == name {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, nil
}
