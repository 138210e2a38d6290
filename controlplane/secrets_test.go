package controlplane_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// TestSecretsStayWhereTheyBelong: through a life of a server that logs all it can,
// no secret of tokens, keys or the key-encryption key stands in the log, in an
// answer that is not its own, or in a file that is not its own; and no file can be
// read by others (CVE-2023-0690).
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	c := newCluster(t, 1, nil) // logs at debug
	c.Submit(shop)
	token, serverToken, unused := c.Token("shop/web"), c.Token(""), c.Token("shop/orders")
	key, req := c.enrolment(token, "shop/web")
	svid, svidCSR := c.NewRequest()
	req.SvidCsr = svidCSR
	node := c.node(c.Servers[0], nil)
	_, err := node.Enrol(c.ctx(), req)
	c.check(err)
	_, err = node.Enrol(c.ctx(), &ztv1.EnrolRequest{Token: unused, Workload: "shop/web", Instance: mesh.NewID(), NodeCsr: svidCSR}) // refused
	if err == nil {
		t.Error("a token of another workload")
	}
	_, csr := c.NewRequest()
	joined, err := node.EnrolServer(c.ctx(), &ztv1.EnrolServerRequest{Token: serverToken, Server: mesh.NewID(), IntermediateCsr: csr, Format: state.Format})
	c.check(err)

	dir := c.Servers[0].Dir
	secrets := map[string][]byte{"KEK": joined.KeyEncryptionKey}
	for name, token := range map[string]string{"token": token, "server token": serverToken, "unused token": unused} {
		secrets[name] = []byte(strings.Split(token, ".")[2])
	}
	intermediate := c.Servers[0].Intermediate()
	for name, k := range map[string]identity.PrivateKey{"intermediate": intermediate.Key, "admin": c.AdminPair().Key, "node": key, "workload": svid} {
		pem, err := k.PEM()
		c.check(err)
		secrets[name+" key"] = bytes.Split(pem.Reveal(), []byte("\n"))[1] // a line of it
		if len(secrets[name+" key"]) < 32 {
			t.Fatalf("%s: no line of a PEM block", name)
		}
	}
	hold := func(where string, content []byte) {
		t.Helper()
		for name, secret := range secrets {
			for _, form := range [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(base64.StdEncoding.EncodeToString(secret))} {
				if bytes.Contains(content, form) {
					t.Errorf("%s holds the %s", where, name)
				}
			}
		}
	}

	var answers []proto.Message
	admin := c.Admin()
	add := func(m proto.Message, err error) {
		t.Helper()
		c.check(err)
		answers = append(answers, m)
	}
	list, err := admin.ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
	add(list, err)
	tokens, err := admin.ListTokens(c.ctx(), &ztv1.ListTokensRequest{})
	add(tokens, err)
	if len(tokens.Tokens) != 1 {
		t.Errorf("tokens: %v", tokens)
	}
	status, err := admin.GetStatus(c.ctx(), &ztv1.GetStatusRequest{})
	add(status, err)
	admins, err := admin.ListAdmins(c.ctx(), &ztv1.ListAdminsRequest{})
	add(admins, err)
	members, err := admin.ListMembers(c.ctx(), &ztv1.ListMembersRequest{})
	add(members, err)
	info, err := admin.GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
	add(info, err)
	revisions, err := admin.ListRevisions(c.ctx(), &ztv1.ListRevisionsRequest{})
	add(revisions, err)
	for _, m := range answers {
		b, err := proto.Marshal(m)
		c.check(err)
		hold(string(m.ProtoReflect().Descriptor().Name()), b)
	}
	hold("the log", []byte(c.Log.String()))
	if !strings.Contains(c.Log.String(), "level=DEBUG") {
		t.Error("the server does not log at debug")
	}
	c.Until("no file is being replaced", func() bool {
		left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
		c.check(err)
		return len(left) == 0
	})
	// Beside the folder they are found, in it they are not.
	for path, name := range map[string]string{dir + ".kek": "KEK", dir + ".admin.yaml": "admin key"} {
		content, err := os.ReadFile(path)
		c.check(err)
		if !bytes.Contains(content, secrets[name]) && !bytes.Contains(content, []byte(hex.EncodeToString(secrets[name]))) {
			t.Errorf("%s does not hold its own secret: the search finds nothing", path)
		}
	}
	seen := 0
	c.check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		// What Raft's log makes is of other modes, in a folder that is closed.
		within := strings.HasPrefix(path, filepath.Join(dir, "raft")+string(filepath.Separator))
		if i.Mode().Perm()&0o077 != 0 && !within {
			t.Errorf("%s has mode %v", path, i.Mode())
		}
		if d.IsDir() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		hold(path, content)
		return nil
	}))
	if seen < 6 {
		t.Errorf("%d files", seen)
	}
}
