#!/bin/bash
# SPDX-License-Identifier: MIT
# Measures libmpklink against TCP: nginx, redis, ping-pong, fixed rates, streaming, churn, many and idle connections, RPC. Installs what is
# missing, builds, measures, writes results.json, results.md and plots. Exits 1 when a cell could not be measured; a slow one is no failure.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${MPKLINK_BUILD:-$root/build}

usage() {
  cat <<'TEXT'
Usage: scripts/bench.sh [--quick] [--list] [--rounds N] [--seconds S] [--out DIR] [--cell REGEX] [--one-core|--two-cores|--free]
                        [--no-install] [SUITE...]
TEXT
  COLUMNS=120 /usr/bin/python3 "$root/tests/bench" --help | sed '1,/^$/d'
  echo '  --no-install  do not install missing packages'
  echo 'MPKLINK_* settings in the environment hold for all preloaded ends. tests/bench/README.md says what the figures mean.'
}

say() { printf 'bench: %s\n' "$*" >&2; }

# Runs a command silently; shows what it said only if it fails.
quietly() {
  local output
  if output=$("$@" 2>&1); then return; fi
  printf '%s\n' "$output" | tail -n 40 >&2
  say "failed: $*"
  exit 1
}

# A build folder from before the installation does not know what meson would find now.
build() {
  local configured=$build/build.ninja
  if [ ! -f "$configured" ]; then
    say "configuring $build"
    quietly meson setup "$build" "$root"
  elif [ ! -e "$build/tests/bench/grpc_call" ] && command -v grpc_cpp_plugin >/dev/null; then
    quietly meson setup --reconfigure "$build" "$root"
  fi
  say 'building what is measured'
  local targets=(preload/libmpklink.so tools/mpklink tests/bench/traffic)
  if ninja -C "$build" -t query tests/bench/grpc_call >/dev/null 2>&1; then targets+=(tests/bench/grpc_call); fi
  quietly ninja -C "$build" "${targets[@]}"
}

install=true
measures=true
arguments=()
for argument in "$@"; do
  case $argument in
    --no-install) install=false ;;
    -h | --help) usage; exit 0 ;;
    --list) measures=false; arguments+=("$argument") ;;
    *) arguments+=("$argument") ;;
  esac
done

suite() { /usr/bin/python3 "$root/tests/bench" --build "$build" "${arguments[@]}" "$@"; }

if $measures; then
  suite --list >/dev/null # a mistake in the command line shows before anything is installed or built
  if $install && ! "$root/scripts/setup.sh" --bench --quiet >&2; then say 'going on with what is installed'; fi
  build
fi
exec /usr/bin/python3 "$root/tests/bench" --build "$build" ${arguments[@]+"${arguments[@]}"}
