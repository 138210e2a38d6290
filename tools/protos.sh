#!/usr/bin/env bash
# protos.sh DIR: puts the third-party .proto files that this project imports into
# DIR. They come out of the Go modules that tools/protos/go.mod pins, so go.sum
# vouches for them and no protobuf registry is asked.
set -euo pipefail

dir=${1:?usage: protos.sh DIR}
pins=$(cd "$(dirname "$0")/protos" && pwd)

# A DIR that was filled from the same pins is left alone.
key=$(cat "$pins/go.mod" "$pins/go.sum" "$0" | cksum)
if [ -f "$dir/.key" ] && [ "$(cat "$dir/.key")" = "$key" ]; then
  exit 0
fi

# source_of MODULE: the folder of the module in the cache, downloaded when absent.
source_of() {
  (cd "$pins" && go mod download "$1" && go list -m -f '{{.Dir}}' "$1")
}

# Filled beside DIR and moved, so that a run that is cut short leaves nothing half done.
new=$dir.new.$$
trap 'rm -rf "$new"' EXIT
put() { # put FOLDER FILE...: copies FILEs into DIR/FOLDER
  local to=$new/$1
  shift
  mkdir -p "$to"
  install -m 0644 "$@" "$to/"
}

validate=$(source_of github.com/bufbuild/protovalidate)
gateway=$(source_of github.com/grpc-ecosystem/grpc-gateway)
put buf/validate "$validate/proto/protovalidate/buf/validate/validate.proto"
put google/api "$gateway"/third_party/googleapis/google/api/{annotations,http}.proto
echo "$key" >"$new/.key"

rm -rf "$dir"
mv "$new" "$dir"
