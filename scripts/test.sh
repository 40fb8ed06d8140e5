#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs, builds and passes the tests. scripts/test.sh [--full] [--no-install]
#   --full  also the tests that take minutes (marked slow), whole conformance suites, larger models: hours
# The last line is "N passed, N failed, N skipped"; the exit code is 0 when nothing failed.
set -u
cd "$(dirname "$0")/.." || exit 1

full=0
full_option=
install_option=
quick_option=--quick
install=1
for argument in "$@"; do
  case "$argument" in
    --full) full=1 full_option=--full quick_option= ;;
    --no-install) install=0 install_option=--no-install ;;
    *) echo "unknown option $argument; known: --full --no-install" >&2; exit 2 ;;
  esac
done

if [ "$install" = 1 ]; then
  scripts/setup.sh || exit 1
fi
build=${MPKLINK_BUILD:-$PWD/build}
export MPKLINK_BUILD="$build"
[ -f "$build/build.ninja" ] || meson setup "$build" || exit 1
ninja -C "$build" || exit 1

results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT

run_program() {
  echo "== $1"
  timeout 600 "$build/tests/$1" >"$results/$1.txt" 2>&1
  echo "exit code $?" >"$results/$1.exit"
  tail -n 40 "$results/$1.txt"
}

# A suite that ends with a line "N passed, N failed[, N skipped]".
run_suite() {
  local name=$1
  shift
  echo "== $name"
  timeout $((full ? 5400 : 900)) "$@" 2>&1 | tee "$results/$name.line" | tail -n 15
  echo "exit code ${PIPESTATUS[0]}" >"$results/$name.exit"
}
run_program unit_tests
# Each of the two lines takes one CPU.
run_suite pku scripts/pku-legs.sh ${full_option:+"$full_option"} ${install_option:+"$install_option"} &
run_program model_tests
run_suite model scripts/model.sh ${full_option:+"$full_option"}
wait
if [ "$full" = 1 ]; then
  run_suite soak scripts/soak.sh --minutes 2
  run_suite fuzz scripts/fuzz.sh ${install_option:+"$install_option"}
fi
run_suite conformance scripts/conformance.sh --build "$build" ${quick_option:+"$quick_option"}

marks="not slow and not beyond"
[ "$full" = 1 ] && marks="not beyond"
run_pytest() {
  timeout $((full ? 7200 : 2400)) /usr/bin/python3 -m pytest -q -o cache_dir="$results/cache" -m "$marks" "$@"
}
# Files whose tests mostly wait: several at a time. All others have the machine for themselves.
waiting=()
for file in semantics allocator bad_cases busy_set cli coverage data_path deploy doctor doctor_process dump dump_tshark exec exhaustion fault_owners figures \
  guard identity install live node non_network process python redis requests rules services services_other services_tls ss status stop_points tool versions; do
  waiting+=("tests/integration/${file}_test.py")
done
run_tests() {
  local name=$1
  shift
  echo "== $name"
  run_pytest "$@" --junitxml="$results/$name.xml"
  local code=$?
  # What failed is run once more, alone: on a shared machine a time limit of the harness can strike. Said here, and counted as passed only
  # if it passes now; summary.py names each.
  if [ "$code" = 1 ]; then
    run_pytest tests/integration -n 0 --last-failed --last-failed-no-failures=none --junitxml="$results/$name.again.xml"
    code=$?
  fi
  echo "exit code $code" >"$results/$name.exit"
}
run_tests waiting "${waiting[@]}" -n 4
run_tests integration tests/integration "${waiting[@]/#/--ignore=}"

exec /usr/bin/python3 scripts/summary.py "$results"
