#!/bin/bash
# SPDX-License-Identifier: MIT
# From a fresh clone to a measured comparison: installs, builds, and runs nginx and wrk with and without libmpklink.
# Leaves nothing running and no file but build/. Exits 1 if anything failed, or if nothing was accelerated.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
Usage: scripts/demo.sh [--json] [--seconds N] [--no-install]
  --json         print one JSON document and nothing else on stdout
  --seconds N    length of each wrk run in whole seconds (default 1; there are 40 runs)
  --no-install   do not install missing packages
MPKLINK_* settings in the environment (MPKLINK_GUARD=off, say) hold for the accelerated side.
TEXT
}

say() { printf 'demo: %s\n' "$*" >&2; }

# Runs a command silently; shows what it said only if it fails.
quietly() {
  local output
  if output=$("$@" 2>&1); then return; fi
  printf '%s\n' "$output" | tail -n 40 >&2
  say "failed: $*"
  exit 1
}

build() {
  if [ ! -f "$root/build/build.ninja" ]; then
    say 'configuring build/'
    quietly meson setup "$root/build" "$root"
  fi
  say 'building (the first time takes a while)'
  quietly ninja -C "$root/build"
}

check_seconds() {
  if [[ $1 =~ ^[1-9][0-9]{0,3}$ ]]; then return; fi
  say '--seconds needs a whole number from 1 to 9999'
  exit 2
}

install=true
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --json) arguments+=(--json) ;;
    --seconds)
      check_seconds "${2-}"
      arguments+=(--seconds "$2")
      shift ;;
    --seconds=*) check_seconds "${1#*=}"; arguments+=("$1") ;;
    --no-install) install=false ;;
    -h | --help) usage; exit 0 ;;
    *) say "unknown option $1"; usage >&2; exit 2 ;;
  esac
  shift
done

# What is missing for the tests only need not stop the demo; what it does need fails below, with its name.
if $install && ! "$root/scripts/setup.sh" --quiet >&2; then say 'going on with what is installed'; fi
build
exec /usr/bin/python3 "$root/scripts/demo.py" --build "$root/build" ${arguments[@]+"${arguments[@]}"}
