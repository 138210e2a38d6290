#!/usr/bin/env bash
# generate.sh [--check]: writes the code, the API document and the reference of the
# spec that the .proto files stand for, and removes what no .proto file stands for
# any more. With --check it writes nothing, and names what `make generate` would
# change.
# buf and the plugins are on the PATH that the Makefile sets.
set -euo pipefail
cd "$(dirname "$0")/.."

new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
for template in buf.gen.yaml buf.gen.openapi.yaml; do
  buf generate --template "$template" -o "$new"
done
buf build proto -o "$new/spec.binpb"
mkdir -p "$new/docs/spec"
GOWORK=off go run -C tools ./specref <"$new/spec.binpb" >"$new/docs/spec/reference.md"

# listed ROOT: the generated files below ROOT, by their paths in the repository.
listed() {
  (cd "$1" && find proto docs -name '*.pb.go' -o -name '*.pb.gw.go' -o -name '*.swagger.json' -o -path docs/spec/reference.md) | sort
}

stale=0
while read -r file; do
  if cmp -s "$new/$file" "$file"; then
    continue
  elif [ "${1:-}" = --check ]; then
    echo "generated code is not current: $file (run make generate)" >&2
    stale=1
  elif [ -f "$new/$file" ]; then
    install -D -m 0644 "$new/$file" "$file"
  else
    rm "$file"
  fi
done < <({ listed "$new"; listed .; } | sort -u)
exit $stale
