#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds with link-time optimisation, by gcc (build-lto) and by clang (build-clang-lto), and checks that the library is the same one: exports
# as interpose.def says, libc alone needed, unit tests, and bytes through the rings. scripts/lto.sh [--no-install]
# The last line is "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 1
case "${1-}" in
  '') scripts/setup.sh --quiet || exit 1 ;;
  --no-install) ;;
  *) echo "unknown option $1; known: --no-install" >&2; exit 2 ;;
esac

results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT

# check COMPILER BUILD: results of the three steps
check() {
  local compiler=$1 build=$PWD/$2
  echo "== $compiler"
  [ -f "$build/build.ninja" ] || CXX=$compiler meson setup "$build" -Db_lto=true || return 1
  ninja -C "$build" || return 1
  nm -D --defined-only "$build/preload/libmpklink.so" | awk '{ print $3 }' | sort >"$results/$compiler.exports"
  # exports.map is made from interpose.def: one name a line between "global:" and "local:".
  sed -n '/global:/,/local:/p' "$build/preload/exports.map" | sed -n 's/^ *\([A-Za-z0-9_]*\);$/\1/p' | sort >"$results/$compiler.wanted"
  if diff "$results/$compiler.wanted" "$results/$compiler.exports"; then
    echo 'All tests passed (the exports in 1 test case)' >"$results/$compiler-exports.txt"
    echo 'exit code 0' >"$results/$compiler-exports.exit"
  else
    echo 'exit code 1' >"$results/$compiler-exports.exit"
  fi
  timeout 600 "$build/tests/unit_tests" >"$results/$compiler-unit.txt" 2>&1
  echo "exit code $?" >"$results/$compiler-unit.exit"
  tail -n 3 "$results/$compiler-unit.txt"
  MPKLINK_BUILD=$build timeout 900 /usr/bin/python3 -m pytest -q -o cache_dir="$results/cache" --junitxml="$results/$compiler-integration.xml" \
    -m 'not slow and not beyond' -k 'TestTheLibraryFile or (both and (test_threads or test_events)) or (both and semantics_)' \
    tests/integration/presence_test.py tests/integration/echo_test.py tests/integration/semantics_test.py
  echo "exit code $?" >"$results/$compiler-integration.exit"
}

for pair in g++:build-lto clang++:build-clang-lto; do
  check "${pair%:*}" "${pair#*:}" || echo 'exit code 1' >"$results/${pair%:*}-build.exit"
done
exec /usr/bin/python3 scripts/summary.py "$results"
