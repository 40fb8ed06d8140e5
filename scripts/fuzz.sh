#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Coverage-guided fuzzing of what a peer, or a user, can hand us (tests/fuzz/README.md).
# scripts/fuzz.sh [--quick] [--minutes N] [--engine libfuzzer|afl] [--jobs N] [--merge] [--prove] [--no-install] [target…]
#   --quick    the checked-in inputs, then 3 s of each target: for CI
#   --minutes  how long for each target (default 10)
#   --engine   libfuzzer (clang's, the default) or afl (AFL++)
#   --jobs     targets at a time (default: one, --quick: as many as there are CPUs)
#   --merge    afterwards adds to the checked-in inputs those that reach more
#   --prove    breaks the code in each of the ways of tests/fuzz/breaks.txt and wants each found within a minute
# What was found is in build-fuzz/found/TARGET, new inputs are in build-fuzz/corpus/TARGET. The last line is "N passed, N failed".
set -u
cd "$(dirname "$0")/.." || exit 1

all=(settings rules messages rendezvous ring_consumer ring_producer ring_race ready)
seconds=600
engine=libfuzzer
jobs=1
merge=0
prove=0
install=1
targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) seconds=3; jobs=$(nproc) ;;
    --minutes) shift; seconds=$((${1:?--minutes needs a number} * 60)) ;;
    --engine) shift; engine=${1:?--engine needs a name} ;;
    --jobs) shift; jobs=${1:?--jobs needs a number} ;;
    --merge) merge=1 ;;
    --prove) prove=1 ;;
    --no-install) install=0 ;;
    -*) sed -n '4p' "$0" >&2; exit 2 ;;
    *) [[ " ${all[*]} " == *" $1 "* ]] || { echo "unknown target $1; known: ${all[*]}" >&2; exit 2; }; targets+=("$1") ;;
  esac
  shift
done
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")
case "$engine" in
  libfuzzer) compiler=clang++ build=$PWD/build-fuzz setup_option= ;;
  afl) compiler=afl-clang-fast++ build=$PWD/build-fuzz-afl setup_option=--afl ;;
  *) echo "unknown engine $engine; known: libfuzzer afl" >&2; exit 2 ;;
esac
if [ "$install" = 1 ]; then
  scripts/setup.sh --quiet ${setup_option:+"$setup_option"} || exit 1
fi

corpus=$PWD/tests/fuzz/corpus
found=$PWD/build-fuzz/found
grown=$PWD/build-fuzz/corpus
# Leaks: what is left at the end is the harness's own.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:symbolize=1
[ "$engine" = libfuzzer ] || ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:symbolize=0 # AFL++ insists
export UBSAN_OPTIONS=print_stacktrace=1:symbolize=1
limits=(-timeout=20 -rss_limit_mb=3000 -max_len=500 -len_control=0 -print_final_stats=1)

# build SOURCE_DIR BUILD_DIR TARGET…
build_targets() {
  local source=$1 dir=$2 log=$2/said.log
  shift 2
  mkdir -p "$dir"
  if [ ! -f "$dir/build.ninja" ]; then
    AFL_QUIET=1 CXX=$compiler meson setup "$dir" "$source" -Dfuzz=true -Dtests=false -Doptimization=1 \
      -Db_sanitize=address,undefined -Db_lundef=false >"$log" 2>&1 || { cat "$log"; return 1; }
  fi
  local names=("${@/#/tests/fuzz/}")
  AFL_QUIET=1 ninja -C "$dir" "${names[@]/%/_fuzz}" >"$log" 2>&1 || { tail -n 40 "$log"; return 1; }
}

inputs_found() { find "$found/$1" -type f; }

run_libfuzzer() {
  local target=$1 log=$found/$1.log
  "$build/tests/fuzz/${target}_fuzz" "${limits[@]}" -max_total_time="$seconds" -artifact_prefix="$found/$target/" \
    "$grown/$target" "$corpus/$target" >"$log" 2>&1
  local code=$?
  grep -aoE '(cov|ft|corp): [0-9]+' <(grep -a '^#' "$log" | tail -n 1) | tr '\n' ' '
  grep -aoE 'number_of_executed_units: [0-9]+' "$log"
  return "$code"
}

run_afl() {
  local target=$1 log=$found/$1.log out=$build/out/$1
  rm -rf "$out"
  mkdir -p "$build/out"
  AFL_NO_UI=1 AFL_QUIET=1 AFL_SKIP_CPUFREQ=1 AFL_NO_AFFINITY=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_HANG_TMOUT=20000 \
    afl-fuzz -V "$seconds" -t 5000 -m none -i "$corpus/$target" -o "$out" -- "$build/tests/fuzz/${target}_fuzz" >"$log" 2>&1
  local code=$?
  grep -E '^(execs_done|edges_found|total_edges|corpus_count|stability)' "$out/default/fuzzer_stats" | tr -s ' \n' ' '
  echo
  cp "$out"/default/queue/id* "$grown/$target/" 2>/dev/null
  cp "$out"/default/crashes/id* "$out"/default/hangs/id* "$found/$target/" 2>/dev/null
  [ -z "$(inputs_found "$target")" ] && return "$code"
}

# fuzz TARGET: a line, and what was said when it failed
fuzz() {
  local target=$1 said
  rm -rf "${found:?}/$target"
  mkdir -p "$found/$target" "$grown/$target"
  if said=$("run_$engine" "$target"); then
    echo "passed  $target: $said"
  else
    echo "FAILED  $target: $said"
    grep -aE 'does not hold|ERROR|SUMMARY|runtime error|^ *#[0-9]+ .* in mpklink' "$found/$target.log" | head -n 20
    inputs_found "$target" | sed "s|^|again: $build/tests/fuzz/${target}_fuzz |"
    return 1
  fi
}

# A copy of the sources, broken in one way after the other.
prove() {
  local tree passed=0 failed=0 target file change why started code
  tree=$(mktemp -d) || exit 1
  trap 'rm -rf "$tree"' EXIT
  # With times and objects, where there are any: then only what is broken is compiled anew.
  build_targets "$PWD" "$build" "${targets[@]}" || exit 1
  cp -a meson.build meson_options.txt shm preload tools tests "$build" "$tree" || exit 1
  build=$tree/${build##*/}
  found=$tree/found grown=$tree/grown seconds=60
  while IFS='@' read -r target file change why; do
    read -r target file <<<"$target $file"
    [[ "$target" != \#* && " ${targets[*]} " == *" $target "* ]] || continue
    cp "$tree/$file" "$tree/whole"
    sed -i -E "$change" "$tree/$file"
    if cmp -s "$tree/$file" "$tree/whole" || ! build_targets "$tree" "$build" "$target"; then
      echo "FAILED  $target:$why: the change does not fit the code any more"
      failed=$((failed + 1))
    else
      started=$SECONDS
      fuzz "$target" >"$tree/said"
      code=$?
      if [ "$code" = 0 ]; then
        echo "FAILED  $target:$why: not found in $seconds s"
        failed=$((failed + 1))
      else
        echo "passed  $target:$why: found after $((SECONDS - started)) s: $(sed -n 2p "$tree/said" | cut -c 1-140)"
        passed=$((passed + 1))
      fi
    fi
    cp "$tree/whole" "$tree/$file" # a new time: compiled again
  done <tests/fuzz/breaks.txt
  echo "$passed passed, $failed failed"
  exit $((failed != 0))
}

[ "$prove" = 0 ] || prove
mkdir -p "$found" "$grown"
build_targets "$PWD" "$build" "${targets[@]}" || exit 1

export -f fuzz run_libfuzzer run_afl inputs_found
export corpus found grown build engine seconds
export limits_text="${limits[*]}"
results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT
export results
# shellcheck disable=SC2016
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -c \
  'read -ra limits <<<"$limits_text"; fuzz {} >"$results/{}" || touch "$results/{}.failed"; cat "$results/{}"'
failed=$(find "$results" -name '*.failed' | wc -l)

if [ "$merge" = 1 ]; then
  for target in "${targets[@]}"; do
    "$PWD/build-fuzz/tests/fuzz/${target}_fuzz" -merge=1 -use_counters=0 -max_len=500 "$corpus/$target" "$grown/$target" >"$found/$target.merge" 2>&1
  done
fi
echo "$((${#targets[@]} - failed)) passed, $failed failed"
exit $((failed != 0))
