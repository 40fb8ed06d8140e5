#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Plays deploy/kubernetes/pod.yaml with podman, on images made of this machine's files: who meets, who must not, who is left alone.
# scripts/pods.sh [--no-install] [PYTEST OPTION…]
#   --no-install  do not install what is missing
# Needs root. Images, containers and volumes are in a temporary directory and go away. The last line is "N passed, N failed".
set -u
cd "$(dirname "$0")/.." || exit 1

install=1
options=()
for argument in "$@"; do
  case "$argument" in
    --no-install) install=0 ;;
    -h | --help) sed -n '3,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) options+=("$argument") ;;
  esac
done
if [ "$(id -u)" != 0 ]; then
  echo 'pods: containers with networks of their own need root here; run it as root (sudo scripts/pods.sh)' >&2
  exit 1
fi
if [ "$install" = 1 ]; then
  scripts/setup.sh --quiet --pods || exit 1
fi
for program in podman crun musl-gcc; do
  command -v "$program" >/dev/null || { echo "pods: $program is missing; run scripts/setup.sh --pods" >&2; exit 1; }
done

build=${MPKLINK_BUILD:-$PWD/build}
export MPKLINK_BUILD="$build" PYTHONDONTWRITEBYTECODE=1
[ -f "$build/build.ninja" ] || meson setup "$build" || exit 1
ninja -C "$build" preload/libmpklink.so tools/mpklink tools/mpklink-exec || exit 1

# crun refuses a machine with cgroups of both versions (a v2 tree below v1's): it gets a view of v1 alone, which is nobody else's.
# shellcheck disable=SC2016
view='if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified || exit 1; fi; exec "$@"'
output=$(mktemp) || exit 1
trap 'rm -f "$output"' EXIT
timeout 1500 unshare --mount sh -c "$view" sh \
  /usr/bin/python3 -m pytest -q -p no:cacheprovider tests/pods ${options[@]+"${options[@]}"} 2>&1 | tee "$output"
code=${PIPESTATUS[0]}
count() { sed -n "s/.*[^0-9]*\b\([0-9]\+\) $1.*/\1/p" "$output" | tail -n 1; }
passed=$(count passed) failed=$(count failed) errors=$(count 'errors\?')
echo "${passed:-0} passed, $((${failed:-0} + ${errors:-0})) failed"
exit "$code"
