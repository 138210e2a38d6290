package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// judge sends requests of every kind.
func (d *demo) judge(ctx context.Context) error {
	d.step("Real requests through the Envoys")
	d.say(`The reason is what the proxy that decided says: the callee's (grant:..., default-deny;
gate for tcp), or the caller's own (no-grant).`)
	err := d.send(ctx,
		d.http("shop/web", "GET", "orders.shop", "/orders/7", "200", "grant:shop/web-uses-orders"),
		d.http("shop/web", "POST", "orders.shop", "/orders", "403", "default-deny"),
		d.http("shop/web", "GET", "orders.shop", "/admin", "403", "default-deny"),
		d.http("shop/web", "GET", "payments.bank", "/payments/1", "200", "grant:bank/web-shows-payments"),
		d.http("shop/orders", "POST", "payments.bank", "/payments", "200", "grant:bank/orders-pays"),
		d.http("bank/payments", "GET", "orders.shop", "/orders/7", "403", "no-grant"),
		d.http("shop/catalog", "GET", "payments.bank", "/payments/1", "403", "no-grant"),
		d.grpc("shop/web", "Check", "OK", "grant:shop/web-reads-catalog"),
		d.grpc("shop/web", "Watch", "PermissionDenied", "default-deny"),
		d.grpc("shop/orders", "Check", "PermissionDenied", "no-grant"),
		d.tcp("shop/orders", "echoed", "gate"),
		d.tcp("bank/payments", "echoed", "gate"),
		d.tcp("shop/catalog", "closed", "no-grant"),
	)
	if err != nil {
		return err
	}
	d.say("\nTricks, to get around the rule for /orders/** or around the caller's own proxy:")
	return d.send(ctx,
		d.http("shop/web", "GET", "orders.shop", "/orders/../admin", "403", "default-deny"),
		d.http("shop/web", "GET", "orders.shop", "/orders/%2e%2e/admin", "403", "default-deny"),
		d.http("shop/web", "GET", "orders.shop", "//admin", "403", "default-deny"),
		d.http("shop/web", "GET", "orders.shop", "/orders/..%2fadmin", "400", "path_normalization_failed"),
		d.http("shop/web", "GET", "orders.shop", "/orders/%252e%252e/admin", "403", "form"),
		d.stranger("in plain text", nil),
		d.stranger("with no certificate", func() (*tls.Config, error) { return d.strangerTLS(), nil }),
		d.stranger("as a node, not a workload", d.nodeTLS),
	)
}

// strangerTLS takes any server: what it is refused by is the other side.
func (d *demo) strangerTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS13}
}

// nodeTLS shows the certificate with which the Envoy of catalog asks the control
// plane. It is of the same root, and not a workload's.
func (d *demo) nodeTLS() (*tls.Config, error) {
	file := filepath.Join(d.proxy("shop/catalog").folder, "node.pem")
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, err
	}
	c := d.strangerTLS()
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// underTraffic changes a grant and kills the leader while requests go on.
func (d *demo) underTraffic(ctx context.Context) error {
	t := d.startTraffic(ctx)
	err := d.changeGrant(ctx)
	if err == nil {
		err = d.killLeader(ctx)
	}
	t.stop()
	if err != nil {
		return err
	}
	d.sent = t.sent
	d.say("\n%d requests went on from the change until now: %d dropped, the slowest took %d ms", t.sent, t.dropped, t.slowest.Milliseconds())
	if t.dropped > 0 {
		d.failed = append(d.failed, fmt.Sprintf("%d of %d requests were dropped, the first: %s", t.dropped, t.sent, t.first)+d.linesWith(t.id))
	}
	return nil
}

func (d *demo) changeGrant(ctx context.Context) error {
	d.step("A grant changes; from here on, requests go on in the background")
	if err := d.edit("web-uses-orders.yaml", "methods: [GET]", "methods: [GET, POST]"); err != nil {
		return err
	}
	if err := d.apply(ctx, "web may order"); err != nil {
		return err
	}
	if err := d.send(ctx,
		d.http("shop/web", "POST", "orders.shop", "/orders", "200", "grant:shop/web-uses-orders"),
		d.http("shop/web", "DELETE", "orders.shop", "/orders/7", "403", "default-deny"),
	); err != nil {
		return err
	}
	return d.tooWide(ctx)
}

// tooWide tries to grant more than an Assertion lets pass.
func (d *demo) tooWide(ctx context.Context) error {
	d.say("\nA grant that is too wide is refused, since an Assertion says what must not be:")
	const file, narrow, wide = "web-uses-orders.yaml", "paths: [/orders/**]", "paths: [/**]"
	if err := d.edit(file, narrow, wide); err != nil {
		return err
	}
	refused, err := d.refused(ctx, "ztctl", "apply", "-f", "spec")
	if err != nil {
		return err
	}
	d.rows++
	if !refused {
		d.say("FAIL: it was not refused")
		d.failed = append(d.failed, "an apply against an Assertion was not refused")
	}
	return d.edit(file, wide, narrow)
}

// killLeader kills the server that leads, and applies again on the others.
func (d *demo) killLeader(ctx context.Context) error {
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	d.step("The leader is killed, and the next apply goes to another server")
	if err := d.edit("web-uses-orders.yaml", "workloads: [web]", "workloads: [web, bank/payments]"); err != nil {
		return err
	}
	d.prompt(fmt.Sprintf("kill -9 %d    # %s, the leader", leader.PID(), leader.Name))
	killed := time.Now()
	leader.Kill()
	if err := d.apply(ctx, "payments may ask for orders"); err != nil {
		return err
	}
	confirmed := time.Since(killed)
	committed, err := d.committed(ctx)
	if err != nil {
		return err
	}
	d.failover = committed.Sub(killed)
	d.say("committed %.1f s after the kill, confirmed by the Envoys %.1f s after it", d.failover.Seconds(), confirmed.Seconds())
	// A new peer is called once it has been found well, within a second: its own proxy
	// may have taken the grant over after the first look.
	if err := d.awaitPeers(ctx, d.proxy("bank/payments")); err != nil {
		return err
	}
	if err := d.send(ctx,
		d.http("bank/payments", "GET", "orders.shop", "/orders/7", "200", "grant:shop/web-uses-orders"),
	); err != nil {
		return err
	}
	if err := d.startServer(ctx, leader); err != nil {
		return err
	}
	if err := d.awaitMembers(ctx); err != nil {
		return err
	}
	d.say("%s is started again and votes", leader.Name)
	return nil
}

// revoke takes a grant away under open connections.
func (d *demo) revoke(ctx context.Context) error {
	d.step("The only grant of orders at the bank is taken away, under open connections")
	var links []*link
	defer func() {
		for _, l := range links {
			l.close()
		}
	}()
	for _, open := range []struct {
		caller, what string
		dial         func(context.Context, string) (*link, error)
		cut          bool
	}{
		{"shop/orders", "TCP ledger.bank", d.openTCP, true},
		{"shop/orders", "POST payments.bank/payments/echo", d.openHTTP, true},
		{"bank/payments", "TCP ledger.bank", d.openTCP, false},
		{"shop/web", "POST payments.bank/payments/echo", d.openHTTP, false},
	} {
		l, err := open.dial(ctx, open.caller)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", open.caller, open.what, err)
		}
		l.caller, l.what, l.mustEnd = open.caller, open.what, open.cut
		links = append(links, l)
	}
	d.prompt("rm spec/orders-pays.yaml")
	if err := os.Remove(filepath.Join(d.Dir, "spec", "orders-pays.yaml")); err != nil {
		return err
	}
	if err := d.apply(ctx, "orders may not pay"); err != nil {
		return err
	}
	committed, err := d.committed(ctx)
	if err != nil {
		return err
	}
	if err := d.watchLinks(ctx, links, committed); err != nil {
		return err
	}
	return d.send(ctx,
		d.http("shop/orders", "POST", "payments.bank", "/payments", "403", "no-grant"),
		d.tcp("shop/orders", "closed", "no-grant"),
		d.http("shop/web", "GET", "payments.bank", "/payments/1", "200", "grant:bank/web-shows-payments"),
		d.tcp("bank/payments", "echoed", "gate"),
	)
}

// committed is when the newest revision was.
func (d *demo) committed(ctx context.Context) (time.Time, error) {
	var r struct {
		Revisions []struct {
			When time.Time `json:"when"`
		} `json:"revisions"`
	}
	if err := d.ask(ctx, &r, "history", "--limit", "1"); err != nil {
		return time.Time{}, err
	}
	if len(r.Revisions) == 0 {
		return time.Time{}, fmt.Errorf("there is no revision")
	}
	return r.Revisions[0].When, nil
}

// keepRunning says what to try, and waits for the end.
func (d *demo) keepRunning(ctx context.Context) error {
	web := d.proxy("shop/web")
	fmt.Fprintf(d.w, "\n%s until Ctrl-C. In another terminal:\n\n", d.paint(bold, "Everything goes on running"))
	d.say(`cd %s
export PATH=%s:$PATH ZTCTL_CONFIG=$PWD/ztctl.yaml
ztctl status
ztctl can shop/web "DELETE orders /orders/7"
curl -i -H 'Host: orders.shop.mesh' http://%[3]s/orders/7
curl -i -H 'Host: orders.shop.mesh' -X DELETE http://%[3]s/orders/7
curl -i --path-as-is -H 'Host: orders.shop.mesh' http://%[3]s/orders/../admin
$EDITOR spec/web-uses-orders.yaml && ztctl apply -f spec
ztctl history --changes --limit 3
tail -f log/orders.log
kill -9 %[4]d    # %[5]s
`, d.Dir, d.bin, web.out(15001), d.servers[0].PID(), d.servers[0].Name)
	<-ctx.Done()
	return nil
}
