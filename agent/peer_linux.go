package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// sameUser are the credentials of a Unix socket on which only this process's own
// user, or root, is let in, whatever the mode of the file has become.
type sameUser struct{}

func peerCredentials() credentials.TransportCredentials { return sameUser{} }

// ServerHandshake asks the kernel who is there.
func (sameUser) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uid, err := peerUID(conn)
	if err == nil {
		err = admit(uid, uint32(os.Geteuid()))
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// admit lets root in, and the user that this process runs as.
func admit(uid, own uint32) error {
	if uid != 0 && uid != own {
		return fmt.Errorf("user %d is not let in", uid)
	}
	return nil
}

func peerUID(conn net.Conn) (uint32, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

func (sameUser) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("only for servers")
}

func (sameUser) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}
func (s sameUser) Clone() credentials.TransportCredentials { return s }
func (sameUser) OverrideServerName(string) error           { return nil }

type peerInfo struct{ credentials.CommonAuthInfo }

func (peerInfo) AuthType() string { return "peercred" }
