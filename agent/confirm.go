package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// How long the agent waits before it calls again, at first and at most. Agents that
// have lost a server do not all come back at once.
const (
	firstConfirm = 250 * time.Millisecond
	maxConfirm   = 30 * time.Second
	// confirmSettled is how long a call must have lasted for the next to be quick again.
	confirmSettled = time.Minute
)

// readTimeout bounds one reading of the Envoy, and maxRead its answers, in bytes.
const (
	readTimeout = 5 * time.Second
	maxRead     = 64 << 20
)

// maxWarming bounds what is told of what is warming.
const maxWarming = 20

// confirm tells the control plane what the Envoy works by, whenever it asks, until ctx
// ends. It is told by the server that holds the Envoy's stream; the others say where
// that is.
func (a *Agent) confirm(ctx context.Context) error {
	var at holder
	wait := firstConfirm
	for ctx.Err() == nil {
		began := a.now()
		elsewhere, err := a.confirmRound(ctx, at.address)
		if status.Code(err) == codes.Unimplemented {
			wait = maxConfirm // a server of an older version
		}
		if a.now().Sub(began) >= confirmSettled {
			wait = firstConfirm
		}
		if at.sentOn(elsewhere) {
			continue
		}
		if err != nil {
			a.log.Debug("nobody asks what the envoy works by", "error", err, "again_in", wait)
		}
		if sleepAbout(ctx, wait) != nil {
			break
		}
		wait = min(2*wait, maxConfirm)
	}
	return nil
}

// holder is the server that is said to hold the Envoy's stream.
type holder struct {
	address string // empty: not known
	atOnce  bool   // it is being called without a pause before
}

// sentOn notes where the server that was called has sent the agent to; empty: nowhere.
// That one is called at once, but not if this one was: two servers may take each other
// for the holder.
func (h *holder) sentOn(elsewhere string) (atOnce bool) {
	atOnce = elsewhere != "" && elsewhere != h.address && !h.atOnce
	*h = holder{elsewhere, atOnce}
	return atOnce
}

// confirmRound calls the servers in turn, first before the others, until one of them
// has listened.
func (a *Agent) confirmRound(ctx context.Context, first string) (elsewhere string, err error) {
	h := a.holding.Load()
	c, err := a.caller(h)
	if err != nil {
		return "", err
	}
	servers := a.servers(h)
	if first != "" {
		servers = append([]string{first}, slices.DeleteFunc(servers, func(s string) bool { return s == first })...)
	}
	for _, server := range servers {
		elsewhere, err = a.confirmTo(ctx, c, server)
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return elsewhere, err
}

// confirmTo answers one server until it goes away, or sends us on.
func (a *Agent) confirmTo(ctx context.Context, c caller, server string) (elsewhere string, err error) {
	_, err = c.call(ctx, server, func(ctx context.Context, node ztv1.NodeServiceClient) error {
		stream, err := node.Confirm(ctx)
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			if m.Elsewhere != "" {
				elsewhere = m.Elsewhere
				return nil
			}
			answer := a.envoy.read(ctx)
			answer.Ask = m.Ask
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	})
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: ended", server)
	}
	return elsewhere, err
}

// admin is the admin interface of the Envoy, on its Unix socket.
type admin struct{ client *http.Client }

func newAdmin(socket string) *admin {
	return &admin{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

func (a *admin) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRead))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return body, err
}

// read is what the Envoy works by. What cannot be read is left out, and so confirms
// nothing.
func (a *admin) read(ctx context.Context) *ztv1.ConfirmRequest {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	out := &ztv1.ConfirmRequest{Digests: map[string]string{}}
	warming := func(names map[string]string) {
		for name := range names {
			if len(out.Warming) < maxWarming {
				out.Warming = append(out.Warming, name)
			}
		}
	}
	// Each part is small, whatever the configuration is: names and versions.
	if live, waiting, err := a.listeners(ctx); err == nil {
		out.Digests[xds.ListenerType] = xds.Digest(live)
		warming(waiting)
	}
	if live, err := a.versions(ctx, "dynamic_active_clusters", "cluster"); err == nil {
		out.Digests[xds.ClusterType] = xds.Digest(live)
	}
	if waiting, err := a.versions(ctx, "dynamic_warming_clusters", "cluster"); err == nil {
		warming(waiting)
	}
	// What cannot be read is nil.
	out.Routes, _ = a.versions(ctx, "dynamic_route_configs", "route_config")
	out.Extensions, out.Layers, _ = a.texts(ctx)
	slices.Sort(out.Warming)
	return out
}

// dump asks for one part of the configuration, of which mask names the fields.
func (a *admin) dump(ctx context.Context, part, mask string, into any) error {
	body, err := a.get(ctx, "/config_dump?resource="+part+"&mask="+url.QueryEscape(mask))
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// listeners are the versions of those that take connections, and of those that wait.
func (a *admin) listeners(ctx context.Context) (live, warming map[string]string, err error) {
	type state struct {
		Version *string `json:"version_info"`
	}
	var held struct {
		Configs []struct {
			Name    string `json:"name"`
			Active  *state `json:"active_state"`
			Warming *state `json:"warming_state"`
		} `json:"configs"`
	}
	if err := a.dump(ctx, "dynamic_listeners", "name,active_state.version_info,warming_state.version_info", &held); err != nil {
		return nil, nil, err
	}
	live, warming = map[string]string{}, map[string]string{}
	for _, l := range held.Configs {
		if l.Active != nil && l.Active.Version != nil {
			live[l.Name] = *l.Active.Version
		}
		if l.Warming != nil && l.Warming.Version != nil {
			warming[l.Name] = *l.Warming.Version
		}
	}
	return live, warming, nil
}

// versions are those of a part whose elements have their name in a field.
func (a *admin) versions(ctx context.Context, part, field string) (map[string]string, error) {
	var held struct {
		Configs []map[string]json.RawMessage `json:"configs"`
	}
	if err := a.dump(ctx, part, "version_info,"+field+".name", &held); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, c := range held.Configs {
		var version string
		var named struct{ Name string }
		if err := errors.Join(json.Unmarshal(c["version_info"], &version), json.Unmarshal(c[field], &named)); err != nil {
			return nil, fmt.Errorf("%s: %w", part, err)
		}
		out[named.Name] = version
	}
	return out, nil
}

// texts are the versions that the Envoy shows as texts among its statistics: those of
// extensions, of which its configuration dump has only some, and of runtime layers. An
// empty one is of what has not come.
func (a *admin) texts(ctx context.Context) (extensions, layers map[string]string, err error) {
	const discovery, text = "extension_config_discovery.", ".version_text"
	body, err := a.get(ctx, "/stats?type=TextReadouts&filter="+url.QueryEscape(`^(extension_config_discovery\..*|runtime)\.version_text$`))
	if err != nil {
		return nil, nil, err
	}
	extensions, layers = map[string]string{}, map[string]string{}
	for line := range strings.Lines(string(body)) {
		stat, version, ok := strings.Cut(strings.TrimSpace(line), ": ")
		name, isVersion := strings.CutSuffix(stat, text)
		version = strings.Trim(version, `"`)
		if !ok || !isVersion || version == "" {
			continue
		}
		if name == "runtime" {
			layers[xds.GatesName] = version
			continue
		}
		if name, ok = strings.CutPrefix(name, discovery); !ok {
			continue
		}
		_, name, _ = strings.Cut(name, ".") // "http_filter." or "network_filter."
		extensions[name] = version
	}
	return extensions, layers, nil
}
