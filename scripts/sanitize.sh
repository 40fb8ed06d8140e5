#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The tests with the library built by a sanitizer. scripts/sanitize.sh [address|thread] [--quick] [--no-install]
#   address  AddressSanitizer and UndefinedBehaviorSanitizer (the default), in build-asan
#   thread   ThreadSanitizer, in build-tsan
#   --quick  unit tests and one echo pair of each kind
# A report of any process is a failure, whatever the test itself says. The last line is "N passed, N failed, N skipped".
#
# What ThreadSanitizer sees: threads of one process. The two mappings of one ring, in one process or two, are different memory to it;
# tests/model is for those. It stands behind our library in LD_PRELOAD, not before: its own hooks of read() and write() count as
# synchronisation and would hide most races of ours. AddressSanitizer insists on being first.
set -u
cd "$(dirname "$0")/.." || exit 1

kind=address
quick=0
install=1
for argument in "$@"; do
  case "$argument" in
    address | thread) kind=$argument ;;
    --quick) quick=1 ;;
    --no-install) install=0 ;;
    *) echo "unknown option $argument; known: address thread --quick --no-install" >&2; exit 2 ;;
  esac
done
if [ "$install" = 1 ]; then
  scripts/setup.sh --quiet || exit 1
fi

runtime() { realpath "$(g++ -print-file-name="lib$1.so")"; }
reports=$(mktemp -d) || exit 1
results=$(mktemp -d) || exit 1
trap 'rm -rf "$reports" "$results"' EXIT
chmod 777 "$reports" # nginx's workers are another user

if [ "$kind" = address ]; then
  build=$PWD/build-asan
  setup=(-Db_sanitize=address,undefined)
  # Leaks: the library allocates nothing, and what nginx or Python leave at their end is theirs.
  export ASAN_OPTIONS="log_path=$reports/asan:exitcode=66:detect_leaks=0:detect_stack_use_after_return=0"
  export UBSAN_OPTIONS="log_path=$reports/ubsan:print_stacktrace=1"
  first="$(runtime asan):$(runtime ubsan)"
  last=
  # There the copies are the sanitizer's, and a bad pointer is a report; and its frames are too large for the smallest stacks.
  semantics='not efault and not sets-fault and not sets-codes and not small_stack and not bad_buffer'
  # echo pairs also under the guard that faults on every access outside of a gate
  variants='both and not ring4 and not warm0'
  servers='both and not test_files and not one_shot and not upload and not proxy'
else
  build=$PWD/build-tsan
  setup=(-Db_sanitize=thread)
  export TSAN_OPTIONS="log_path=$reports/tsan:exitcode=66:die_after_fork=0:report_thread_leaks=0"
  first=
  last=$(runtime tsan)
  # Besides: clone_vm makes tasks the runtime knows nothing of, and it must see our close(), which makes that a cancellation point.
  # And it calls handlers as functions, between two loads of ours: with protection keys the gate is closed when such a one has sent.
  # It keeps one pending signal of each number, and knows nothing of sigset().
  semantics='not efault and not sets-fault and not sets-codes and not small_stack and not clone_vm and not cancel and not handler_sends'
  semantics+=' and not bad_buffer and not handlers-told and not handlers-queued'
  variants='both and not ring4 and not warm0 and not mprotect'
  # redis' own threads hand each other buffers by atomics that ThreadSanitizer cannot see: redis is not compiled by it.
  servers='both and not test_files and not one_shot and not upload and not proxy and not unpipelined_threads'
fi
[ -f "$build/build.ninja" ] || CXX=g++ meson setup "$build" "${setup[@]}" || exit 1
ninja -C "$build" || exit 1

run_program() {
  echo "== $1"
  timeout 1200 "$build/tests/$1" >"$results/$1.txt" 2>&1
  echo "exit code $?" >"$results/$1.exit"
  tail -n 5 "$results/$1.txt"
}

# run_integration NAME EXPRESSION FILE… [PYTEST OPTION…]
run_integration() {
  local name=$1 expression=$2
  shift 2
  echo "== $name"
  MPKLINK_BUILD=$build MPKLINK_PRELOAD_FIRST=$first MPKLINK_PRELOAD_LAST=$last \
    timeout 2400 /usr/bin/python3 -m pytest -q -o cache_dir="$results/cache" --junitxml="$results/$name.xml" \
    -m 'not slow and not beyond' -k "$expression" "$@"
  echo "exit code $?" >"$results/$name.exit"
}

run_program unit_tests
if [ "$quick" = 1 ]; then
  run_integration echo 'both and not ring4 and not warm0 and not mprotect and not tiny and (test_threads or test_events)' tests/integration/echo_test.py
else
  [ "$kind" = address ] && run_program model_tests # one thread: nothing for ThreadSanitizer
  run_integration echo "$variants" tests/integration/echo_test.py
  run_integration semantics "$variants and not tiny and $semantics" tests/integration/semantics_test.py -n 3
  # Without curl, which hangs in setlocale() with gcc 12's runtimes alone.
  run_integration servers "$servers" tests/integration/{nginx,redis,wrk}_test.py
fi

for report in "$reports"/*; do
  [ -e "$report" ] || break
  echo "== ${report##*/}"
  head -n 60 "$report"
done
# Counted as one test of its own, so that a report without a failing test is a failure too.
# Not counted: the address sanitizer's remark that a thread jumped on a stack it does not know.
found=$(grep -rlE 'ERROR: |runtime error: |WARNING: ThreadSanitizer' "$reports" | wc -l)
if [ "$found" = 0 ]; then
  echo "All tests passed (no report in any process in 1 test case)" >"$results/reports.txt"
else
  echo "$found processes made reports"
fi
echo "exit code $found" >"$results/reports.exit"
exec /usr/bin/python3 scripts/summary.py "$results"
