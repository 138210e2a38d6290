// Module protos pins the modules whose .proto files this project imports.
// Nothing of it is compiled: tools/protos.sh copies the files out of the
// module cache, where go.sum vouches for them.
module github.com/ztmesh/ztmesh/tools/protos

go 1.26.0

require (
	github.com/bufbuild/protovalidate v1.2.2 // buf/validate
	github.com/grpc-ecosystem/grpc-gateway v1.16.0 // google/api
)
