#!/bin/bash
# SPDX-License-Identifier: MIT
# Installs what is needed to build, test and measure on Debian 12. Does nothing, quickly, when all of it is there.
# Usage: scripts/setup.sh [--quiet] [--bench] [--services] [--afl] [--pods] [--package]
#   also what only scripts/bench.sh, scripts/services.sh, scripts/fuzz.sh --engine afl, scripts/pods.sh or scripts/package.sh needs
set -euo pipefail

packages=(
  meson ninja-build g++ gcc binutils clang clang-format clang-tidy libclang-rt-14-dev git ca-certificates
  libfmt-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libunwind-dev catch2
  wrk redis-server redis-tools curl libjemalloc2 libtcmalloc-minimal4 libmimalloc2.0
  python3 python3-pytest python3-pytest-xdist strace gdb valgrind spin procps iproute2 tmux
  qemu-system-x86 xz-utils systemtap-sdt-dev
)
bench_packages=(iperf3 nghttp2-client gnuplot-nox libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev)
service_packages=(
  gunicorn uvicorn python3-uvloop python3-httptools python3-requests python3-httpx python3-aiohttp python3-redis python3-grpcio
  openjdk-17-jdk-headless golang-go
)
pods_packages=(podman crun catatonit musl-tools python3-yaml)
package_packages=(debhelper dpkg-dev fakeroot lintian pkg-config)
services=(nginx redis-server)
pid_files=(/run/nginx.pid /run/redis/redis-server.pid)

policy=/usr/sbin/policy-rc.d
policy_before=$policy.before-mpklink
policy_mark='# written by scripts/setup.sh of libmpklink, for the time of one installation'

say() { printf 'setup: %s\n' "$*" >&2; }

# Programs that other packages than Debian's usual one may provide: any that is there will do.
missing_programs() {
  PATH=$PATH:/usr/sbin:/sbin
  command -v nginx >/dev/null || echo nginx-light
  command -v node >/dev/null || echo nodejs
}

missing_packages() {
  local installed
  # It fails when one is unknown, and still lists the others.
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null |
    sed -n 's/ installed$//p') || true
  printf '%s\n' "${packages[@]}" | grep -vxF -e "$installed" || true
}

# Debian starts a server as soon as its package is installed. policy-rc.d is its way to say no; one that is there
# already is put aside for the time.
forbid_services() {
  if grep -qsF "$policy_mark" "$policy"; then restore_policy; fi # an earlier run was killed
  if [ -e "$policy" ] || [ -L "$policy" ]; then mv -f "$policy" "$policy_before"; fi
  printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy"
  chmod 755 "$policy"
}

restore_policy() {
  rm -f "$policy"
  if [ -e "$policy_before" ] || [ -L "$policy_before" ]; then mv -f "$policy_before" "$policy"; fi
}

has_systemd() { [ -d /run/systemd/system ]; }

# What runs now, one word per service: the unit's name, or a pid file and the process it names.
running_services() {
  local service file pid
  for service in "${services[@]}"; do
    if has_systemd && systemctl is-active --quiet "$service"; then echo "unit:$service"; fi
  done
  for file in "${pid_files[@]}"; do
    pid=$(cat "$file" 2>/dev/null || true)
    if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then echo "pid:$pid"; fi
  done
}

# Stops what was not running before, in case something started it in spite of the policy.
stop_new_services() {
  local before=$1 entry
  for entry in $(running_services); do
    if grep -qxF "$entry" <<<"$before"; then continue; fi
    say "stopping ${entry#*:}, which the installation started"
    case $entry in
      unit:*) systemctl stop "${entry#unit:}" || true ;;
      pid:*) kill "${entry#pid:}" 2>/dev/null || true ;;
    esac
  done
}

# A server that came with us must not appear at the next start of the machine either.
disable_new_services() {
  local name
  if ! has_systemd; then return; fi
  for name in "$@"; do
    case $name in
      nginx-light) systemctl disable --quiet nginx || true ;;
      redis-server) systemctl disable --quiet redis-server || true ;;
    esac
  done
}

install_packages() {
  local before status=0
  before=$(running_services)
  log=$(mktemp) # not local: the trap still needs it when this function is over
  trap 'restore_policy; rm -f "$log"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  forbid_services
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  local apt=(apt-get -y -q -o DPkg::Lock::Timeout=120)
  say "installing $*"
  "${apt[@]}" update >>"$log" 2>&1 || say 'apt-get update failed; trying with the package lists that are there'
  "${apt[@]}" install --no-install-recommends "$@" >>"$log" 2>&1 || status=$?
  stop_new_services "$before"
  if [ "$status" -ne 0 ]; then
    tail -n 20 "$log" >&2
    say "apt-get could not install: $*"
    exit 1
  fi
  disable_new_services "$@"
}

main() {
  local quiet=false missing argument
  for argument in "$@"; do
    case $argument in
      --quiet | -q) quiet=true ;;
      --bench) packages+=("${bench_packages[@]}") ;;
      --services) packages+=("${bench_packages[@]}" "${service_packages[@]}") ;;
      --afl) packages+=(afl++) ;;
      --pods) packages+=("${pods_packages[@]}") ;;
      --package) packages+=("${package_packages[@]}") ;;
      *) say "unknown option $argument; usage: scripts/setup.sh [--quiet] [--bench] [--services] [--afl] [--pods] [--package]"; exit 2 ;;
    esac
  done
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "this is not a Debian system; install what these Debian packages hold: ${packages[*]} nginx nodejs"
    exit 1
  fi
  mapfile -t missing < <(missing_packages; missing_programs)
  if [ "${#missing[@]}" -eq 0 ]; then
    $quiet || say 'everything is installed'
    return
  fi
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -- bash "${BASH_SOURCE[0]}" "$@"; then return; fi
    say "run this as root, or install by hand: apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
  install_packages "${missing[@]}"
  $quiet || say 'done'
}

main "$@"
