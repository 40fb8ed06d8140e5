#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Other people's servers and clients, each with each: installs them, builds, runs the matrix, and prints the table of what went through rings.
# scripts/services.sh [--write] [--no-install] [PYTEST OPTION…]
#   --write       keep the result in deploy/services.json, and put the table into README.md
#   --no-install  do not install what is missing; its tests skip
# scripts/services.sh --measure [--write] [--no-install] [--rounds N] [--seconds S] [--quick] [--cell REGEX]
#   measures instead what each pair gains (plain and preloaded in turns); --write: and puts the table into deploy/SERVICES.md
# The last line of the tests is "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 1
build=${MPKLINK_BUILD:-$PWD/build}
export MPKLINK_BUILD="$build" PYTHONDONTWRITEBYTECODE=1

measure=0
write=0
install=1
options=()
for argument in "$@"; do
  case "$argument" in
    --measure) measure=1 ;;
    --write) write=1 ;;
    --no-install) install=0 ;;
    -h | --help) sed -n '3,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) options+=("$argument") ;;
  esac
done

# What is written is all of it.
partly=0
for option in ${options[@]+"${options[@]}"}; do
  if [ "$measure" = 0 ] || [[ "$option" == --cell* || "$option" == --quick ]]; then partly=1; fi
done
if [ "$write" = 1 ] && [ "$partly" = 1 ]; then
  echo 'services.sh: --write needs a whole run: leave out --quick, --cell and the options of pytest' >&2
  exit 2
fi

if [ "$install" = 1 ]; then
  scripts/setup.sh --quiet --services || exit 1
fi
targets=(preload/libmpklink.so tools/mpklink tests/programs/echo_threads tests/bench/traffic)
if [ ! -f "$build/build.ninja" ]; then
  meson setup "$build" || exit 1
elif [ ! -e "$build/tests/bench/grpc_call" ] && command -v grpc_cpp_plugin >/dev/null; then
  meson setup --reconfigure "$build" || exit 1
fi
if ninja -C "$build" -t query tests/bench/grpc_call >/dev/null 2>&1; then targets+=(tests/bench/grpc_call); fi
ninja -C "$build" "${targets[@]}" || exit 1

if [ "$measure" = 1 ]; then
  /usr/bin/python3 tests/bench --build "$build" --out "$build/services" ${options[@]+"${options[@]}"} services
  code=$?
  [ "$write" = 0 ] || scripts/figures.py services "$build/services/results.json" || exit 1
  exit "$code"
fi

results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT
if [ "$install" = 1 ]; then export MPKLINK_SERVICES=all; else export MPKLINK_SERVICES=installed; fi
timeout 1800 /usr/bin/python3 -m pytest -q -o cache_dir="$results/cache" --junitxml="$results/services.xml" ${options[@]+"${options[@]}"} \
  tests/integration/services_test.py tests/integration/services_tls_test.py tests/integration/services_other_test.py
echo "exit code $?" >"$results/services.exit"
if [ "$write" = 1 ]; then
  scripts/figures.py compatibility "$results/services.xml" || exit 1
else
  scripts/figures.py show "$results/services.xml" || exit 1
fi
exec /usr/bin/python3 scripts/summary.py "$results"
