#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# clang-tidy over shm/, preload/ and tools/ (.clang-tidy says which checks). scripts/lint.sh [FILE.cc …]
# Exits non-zero on a finding. No check of the format: the tree does not follow clang-format to the letter.
set -u
cd "$(dirname "$0")/.." || exit 1

# A build folder of clang's own: gcc's has options that clang does not know. Nothing is built in it.
build=build-lint
if [ ! -f "$build/compile_commands.json" ]; then
  CXX=clang++ meson setup "$build" >/dev/null || exit 1
fi
[ "$#" -gt 0 ] || set -- shm/*.cc preload/*.cc tools/*.cc

results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT
# A file for the output of each: parallel runs must not mix their lines.
lint() {
  local out=$results/${1//\//-}
  clang-tidy --quiet -p "$build" "$1" >"$out" 2>"$out.err" || echo "$1" >>"$out.failed"
}
export -f lint
export build results
printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" bash -c 'lint "$1"' lint

# A finding in a header comes once for each file that includes it.
cat "$results"/*.cc | sed -E "s#^($PWD/$build/)?\.\./##" | awk '/^[^ ]+: (warning|error): / { show = !seen[$0]++ } show'
failed=$(find "$results" -name '*.failed' | wc -l)
[ "$failed" = 0 ] || grep -hE '^(Error|error)' "$results"/*.err | sort -u
echo "$(($# - failed)) passed, $failed failed"
exit "$((failed != 0))"
