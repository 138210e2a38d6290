package api

import (
	"context"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// GetReport is PeerService.GetReport.
func (s *Server) GetReport(context.Context, *ztv1.GetReportRequest) (*ztv1.GetReportResponse, error) {
	return s.cfg.Cluster.Report(), nil
}

// WatchProxies is PeerService.WatchProxies.
func (s *Server) WatchProxies(req *ztv1.WatchProxiesRequest, stream ztv1.PeerService_WatchProxiesServer) error {
	return s.cfg.Proxies.Tell(stream.Context(), req.Deltas, stream.Send)
}

// ListDifferences is PeerService.ListDifferences.
func (s *Server) ListDifferences(context.Context, *ztv1.ListDifferencesRequest) (*ztv1.ListDifferencesResponse, error) {
	differences, dropped := s.cfg.Differences.Local()
	return &ztv1.ListDifferencesResponse{Differences: differences, Dropped: dropped}, nil
}
