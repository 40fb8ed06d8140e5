#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The guard on emulated machines: with protection keys, on a CPU without them, under a kernel that does not use them.
# scripts/pku-legs.sh [--full] [--no-install] [WORD…]
#   --full        on both kernels, and all cases of the programs tests/programs/guard_*
#   --no-install  skip all of it where qemu is missing
#   WORD…         only the legs or kernels with one of these names: keys no-cpuid no-ospke 6.1 6.12
# Without a machine to be had its cases are skipped; with MPKLINK_TEST_FORCE_PKU=1 they fail.
# A line per case; the last line is "N passed, N failed, N skipped", the exit code 0 when nothing failed.
set -u
cd "$(dirname "$0")/.." || exit 1
export MPKLINK_BUILD=${MPKLINK_BUILD:-$PWD/build}

full=0 install=1
kernels='6.1' legs='keys no-cpuid no-ospke'
words=' '
for argument in "$@"; do
  case "$argument" in
    --full) full=1 kernels='6.1 6.12' ;;
    --no-install) install=0 ;;
    -*) echo "unknown option $argument; known: --full --no-install" >&2; exit 2 ;;
    6.*) kernels=$argument ;;
    *) words+="$argument " ;;
  esac
done
[ "$words" = ' ' ] || legs=$words

# leg | name | command, run by the guest's shell in this folder. 0: passed; 77: skipped; all else: failed.
cases() {
  cat <<'CASES'
keys     | the kernel uses protection keys         | grep -qw pku /proc/cpuinfo && grep -qw ospke /proc/cpuinfo
keys     | unit tests                              | "$MPKLINK_BUILD"/tests/unit_tests --use-colour no '[guard],[segment],[pkey]'
keys     | curl, wrk and nginx, keys required      | sh tests/vm/traffic.sh require pkey
keys     | touches of guarded memory               | sh tests/vm/guard.sh guard_poke pages threads child wild reported
keys     | pointers into it                        | sh tests/vm/guard.sh guard_disclosure sends receives vectors
keys     | signals, cancellation, jumps            | sh tests/vm/guard.sh guard_disturb storm cancel jump_busy handler_forks_exit
keys     | ways around a key                       | sh tests/vm/guard.sh guard_bypass
no-cpuid | the CPU has no protection keys          | ! grep -qwE 'pku|ospke' /proc/cpuinfo
no-cpuid | unit tests                              | "$MPKLINK_BUILD"/tests/unit_tests --use-colour no '[guard],[segment],[pkey]'
no-cpuid | curl, wrk and nginx, keys if any        | sh tests/vm/traffic.sh auto off
no-cpuid | curl, wrk and nginx, keys required      | sh tests/vm/traffic.sh require plain
no-ospke | the kernel does not use protection keys | ! grep -qw ospke /proc/cpuinfo
no-ospke | unit tests                              | "$MPKLINK_BUILD"/tests/unit_tests --use-colour no '[guard],[segment],[pkey]'
no-ospke | curl, wrk and nginx, keys if any        | sh tests/vm/traffic.sh auto off
no-ospke | curl, wrk and nginx, keys required      | sh tests/vm/traffic.sh require plain
CASES
  [ "$full" = 1 ] || return
  for program in guard_poke guard_disclosure guard_disturb guard_keys; do
    echo "keys | $program | sh tests/vm/guard.sh $program"
  done
}

machine_options() {
  case "$1" in
    keys) echo --cpu max ;;
    no-cpuid) echo --cpu max,-pku ;;
    no-ospke) echo --append nopku ;;
    *) return 1 ;;
  esac
}

passed=0 failed=0 skipped=0
# count VERDICT NAME [WHY]
count() {
  case "$1" in
    ok) passed=$((passed + 1)) ;;
    skipped) skipped=$((skipped + 1)) ;;
    FAILED) failed=$((failed + 1)) ;;
  esac
  printf '%-7s %s%s\n' "$1" "$2" "${3:+  [$3]}"
}

# The table's lines of one leg, as "name|command".
cases_of() {
  cases | while IFS='|' read -r leg name command; do
    read -r leg <<<"$leg"; read -r name <<<"$name"; read -r command <<<"$command"
    [ "$leg" != "$1" ] || echo "$name|$command"
  done
}

# One machine for all cases of a leg: a start costs as much as most of them.
run_leg() {
  local kernel=$1 leg=$2 script='' number=0 code line name command out=$work/$1-$2 options
  read -ra options <<<"$(machine_options "$leg")"
  while IFS='|' read -r name command; do
    number=$((number + 1))
    script+="echo '-- $name'; timeout 120 sh -c '${command//\'/\'\\\'\'}'; echo \"CASE $number \$?\""$'\n'
  done < <(cases_of "$leg")
  scripts/pku-vm.sh --kernel "$kernel" "${options[@]}" --timeout 280 -- sh -c "$script" >"$out" 2>&1
  code=$?
  # What the cases printed is of interest when one failed.
  if [ "$code" != 0 ] || grep '^CASE ' "$out" | grep -qvE ' (0|77)$'; then cat "$out"; else grep '^pku-vm: ' "$out"; fi
  number=0
  while IFS='|' read -r name command; do
    number=$((number + 1))
    line=$(sed -n "s/^CASE $number //p" "$out" | tail -n 1)
    case "$line" in
      0) count ok "$kernel $leg: $name" ;;
      77) count skipped "$kernel $leg: $name" 'it says so itself' ;;
      '') count FAILED "$kernel $leg: $name" "no result, the machine ended with $code" ;;
      *) count FAILED "$kernel $leg: $name" "exit code $line" ;;
    esac
  done < <(cases_of "$leg")
}

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
for leg in $legs; do
  machine_options "$leg" >/dev/null || { echo "no leg $leg; known: keys no-cpuid no-ospke" >&2; exit 2; }
done
for kernel in $kernels; do
  why=
  if [ "$install" = 0 ] && ! command -v qemu-system-x86_64 >/dev/null; then
    why='qemu-system-x86_64 is not installed'
  elif ! scripts/pku-vm.sh --kernel "$kernel" --fetch 2>"$work/fetch"; then
    why=$(tail -n 1 "$work/fetch")
  fi
  for leg in $legs; do
    if [ -z "$why" ]; then
      run_leg "$kernel" "$leg"
      continue
    fi
    verdict=skipped
    [ "${MPKLINK_TEST_FORCE_PKU-}" != 1 ] || verdict=FAILED
    while IFS='|' read -r name _; do
      count "$verdict" "$kernel $leg: $name" "$why"
    done < <(cases_of "$leg")
  done
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ $((passed + skipped)) -gt 0 ]
