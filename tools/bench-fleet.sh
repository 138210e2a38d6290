#!/usr/bin/env bash
# Runs workloads (SERVICESxPROXIES:FLAG,FLAG...) one after the other, and the benchmark of
# real Envoys, and writes what came out, on which machine and of which commit, to a file.
# Prints it, too, and ends with the lines of figures. A workload that fails is named in the
# file, and the others are run.
set -uo pipefail
file=$1
shift
out=.bin/$(basename "$file" .md).txt
: > "$out"
load() { cut -d' ' -f1 /proc/loadavg; }
failed=0
{
  echo "# A fleet, measured"
  echo
  echo "Written by \`make bench-fleet\`; what the words mean: [benchmarks](../benchmarks.md#a-fleet)."
  echo
  echo "- commit $(git describe --always --dirty --abbrev=12), $(go env GOVERSION), $(date -u +%Y-%m-%d)"
  echo "- $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(awk '/MemTotal/ {printf "%d", $2 / 1048576}' /proc/meminfo) GiB, Linux $(uname -r)"
  echo "- load average $(load) at the beginning; the simulator runs on the same cores"
} > "$file"
cat "$file"
for f in "$@"; do
  w=${f%%:*} flags=${f#*:}
  began=$SECONDS
  said=$(.bin/ztbench run -w "$w" ${flags//,/ } 2>>"$out.err") || { failed=1; said="failed: $(tail -1 "$out.err")"; }
  printf '%s\n' "$said" >> "$out"
  {
    echo
    echo "## $w ${flags//,/ }"
    echo
    echo '```'
    printf '%s\n' "$said"
    echo '```'
    echo
    echo "$((SECONDS - began)) s; load average then $(load)."
  } | tee -a "$file"
done
said=$(go test -run '^$' -bench . -timeout 10m ./controlplane/zttest/enforced 2>&1) || { failed=1; echo "$said"; }
said=$(grep -E '^(the last of|figure|FAIL|---)' <<< "$said")
printf '%s\n' "$said" >> "$out"
{
  echo
  echo "## Real Envoys"
  echo
  echo '```'
  printf '%s\n' "$said"
  echo '```'
} | tee -a "$file"
echo
grep '^figure' "$out"
exit $failed
