package api

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Backup is AdminService.Backup, on the leader.
func (s *Server) Backup(_ *ztv1.BackupRequest, stream ztv1.AdminService_BackupServer) error {
	ctx := stream.Context()
	st, err := s.read(ctx, false)
	if err != nil {
		return err
	}
	s.cfg.Logger.Info("backup", "who", callOf(ctx).principal.String(), "from", callOf(ctx).address, "revision", st.Revision())
	out := &chunks{stream: stream, sum: sha256.New()}
	w := bufio.NewWriterSize(out, 256<<10)
	if err := s.cfg.Backup(w, st); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return stream.Send(&ztv1.BackupResponse{Size: out.size, Sha256: out.sum.Sum(nil)})
}

// Backup writes a state as the file that is restored from.
type Backup func(w io.Writer, st *state.State) error

// chunks sends what is written.
type chunks struct {
	stream ztv1.AdminService_BackupServer
	sum    hash.Hash
	size   uint64
}

func (c *chunks) Write(p []byte) (int, error) {
	c.sum.Write(p)
	c.size += uint64(len(p))
	return len(p), c.stream.Send(&ztv1.BackupResponse{Chunk: p})
}

// forwardBackup asks the leader, on behalf of the caller.
func (s *Server) forwardBackup(c call, ss grpc.ServerStream) error {
	req := &ztv1.BackupRequest{}
	if err := ss.RecvMsg(req); err != nil {
		return err
	}
	conn, err := s.cfg.Cluster.LeaderConn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(metaPrincipal, c.principal.String(), metaAddress, c.address))
	from, err := ztv1.NewAdminServiceClient(conn).Backup(ctx, req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	for {
		switch m, err := from.Recv(); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		default:
			if err := ss.SendMsg(m); err != nil {
				return err
			}
		}
	}
}
