#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Verifies the protocol's Promela models (tests/model/*.pml) with spin. scripts/model.sh [--full] [--keep DIR] [NAME…]
#   --full      larger bounds too (half an hour, up to 6 GB)
#   --keep DIR  leave each case's verifier and trail there (tests/model/README.md says how to replay)
#   NAME…       only the cases whose name has one of these words in it
# A `holds` case must be verified completely, a `found` case, which leaves out one rule or asks too much, must end in an error.
# A line per case; the last line is "N passed, N failed", the exit code 0 when nothing failed.
set -u
cd "$(dirname "$0")/.." || exit 1
models=$PWD/tests/model
work=
full=0
wanted=()
while [ $# -gt 0 ]; do
  case "$1" in
    --full) full=1 ;;
    --keep) shift; mkdir -p "${1:?--keep needs a directory}" || exit 2; work=$(cd "$1" && pwd) ;;
    -*) echo "unknown option $1; known: --full --keep DIR" >&2; exit 2 ;;
    *) wanted+=("$1") ;;
  esac
  shift
done
for tool in spin cc; do
  command -v "$tool" >/dev/null || { echo "$tool is not installed" >&2; exit 2; }
done
if [ -z "$work" ]; then
  work=$(mktemp -d) || exit 1
  trap 'rm -rf "$work"' EXIT
fi

# expect | name | what pan is compiled for | options of tests/model/stream.pml
cases() {
  cat <<'CASES'
holds | switch and sleep                   | safe | -DRING=1
holds | switch and sleep, larger           | safe | -DBYTES=6 -DRING=2 -DTCP_ROOM=3
holds | receiver freezes                   | safe | -DR_FREEZE=1
holds | sender freezes                     | safe | -DS_FREEZE=1 -DBYTES=3 -DTCP_ROOM=1
holds | both freeze                        | safe | -DR_FREEZE=1 -DS_FREEZE=1 -DBYTES=2
holds | receiver freezes, ring of 2        | safe | -DR_FREEZE=1 -DRING=2
holds | sender freezes, ring of 2          | safe | -DS_FREEZE=1 -DRING=2 -DBYTES=3
holds | close without waiting for room     | safe | -DR_FREEZE=1 -DCLOSE_AT_ONCE -DBYTES=3 -DTCP_ROOM=1
holds | sender dies                        | safe | -DCRASH -DRING=2
holds | sender dies, receiver freezes      | safe | -DCRASH -DR_FREEZE=1 -DBYTES=3 -DTCP_ROOM=1
holds | sender dies while it freezes       | safe | -DCRASH -DS_FREEZE=1 -DBYTES=2
holds | again, receiver freezes            | safe | -DCHANNELS=2 -DR_FREEZE=1 -DBYTES=3
holds | again, sender freezes              | safe | -DCHANNELS=2 -DS_FREEZE=1 -DBYTES=3
holds | away from the library              | safe | -DAWAY
holds | away, the freezer stays            | safe | -DAWAY -DS_FREEZE=1 -DFREEZER_STAYS -DBYTES=3 -DTCP_ROOM=1
holds | shut both ways                     | safe | -DSHUT -DRING=2 -DBYTES=3
holds | shut both ways, receiver freezes   | safe | -DSHUT -DR_FREEZE=1 -DBYTES=2 -DTCP_ROOM=1
holds | every run ends                     | ends | -DR_FREEZE=1 -DBYTES=2
found | away, receiver freezes (a limit)   | safe | -DAWAY -DR_FREEZE=1
found | away, the freezer leaves (a limit) | safe | -DAWAY -DS_FREEZE=1 -DBYTES=3 -DTCP_ROOM=1
found | no rescue after EOF                | safe | -DNO_RESCUE -DR_FREEZE=1
found | no rescue after death              | safe | -DNO_RESCUE -DS_FREEZE=1 -DCRASH
found | switch_at after its bytes          | safe | -DSWITCH_AT_LATE
found | switch without bytes               | safe | -DSWITCH_WITHOUT_BYTES
found | tail stored, not exchanged         | safe | -DTAIL_STORED
found | receiver arms by a store           | safe | -DARM_STORED
found | receiver looks once                | safe | -DNO_SECOND_LOOK
found | no bell for space                  | safe | -DNO_SPACE_BELL
found | no look at the head when armed     | safe | -DNO_LOOK_AT_HEAD
found | wish for space before arming       | safe | -DWISH_BEFORE_ARMED
found | wish for space by a store          | safe | -DWISH_STORED
found | EOF without a look at the ring     | safe | -DEOF_UNCHECKED
found | no look after publishing           | safe | -DNO_LOOK_AFTER_PUBLISH -DR_FREEZE=1
found | other bytes before the returned    | safe | -DOTHER_BYTES_FIRST -DR_FREEZE=1
found | no wait for room to return         | safe | -DNO_WAIT_FOR_ROOM -DR_FREEZE=1
found | freeze without bell                | safe | -DFREEZE_WITHOUT_BELL -DR_FREEZE=1
found | freeze without hint                | safe | -DNO_HINT -DR_FREEZE=1
found | hint stored, not exchanged         | safe | -DHINT_STORED -DR_FREEZE=1
found | no look at the hint when armed     | safe | -DNO_LOOK_AT_HINT -DR_FREEZE=1
found | own sleepers not told of a freeze  | safe | -DNO_OWN_BELL -DS_FREEZE=1
found | head stored, not compared          | safe | -DHEAD_STORED -DS_FREEZE=1
found | discarded bytes kept               | safe | -DKEEP_DISCARDED -DS_FREEZE=1
found | return before freeze               | safe | -DRETURN_BEFORE_FREEZE -DS_FREEZE=1
found | return from an old head            | safe | -DCURSOR_FROM_OLD_HEAD -DS_FREEZE=1
found | new channel before the return      | safe | -DRENEW_BEFORE_RETURN -DCHANNELS=2 -DR_FREEZE=1 -DBYTES=3
found | new channel without the receiver   | safe | -DRENEW_UNASKED -DCHANNELS=2 -DS_FREEZE=1
found | told of the shutdown before it     | safe | -DSHUT -DSHUT_WORD_EARLY
found | no rescue of what was refused      | safe | -DSHUT -DRESCUE_UNLESS_RETURNED -DR_FREEZE=1 -DBYTES=2
CASES
  [ "$full" = 0 ] || cat <<'CASES'
holds | full: switch and sleep             | safe | -DBYTES=8 -DRING=3 -DTCP_ROOM=3
holds | full: both freeze                  | safe | -DR_FREEZE=1 -DS_FREEZE=1
holds | full: both freeze, ring of 2       | safe | -DR_FREEZE=1 -DS_FREEZE=1 -DBYTES=3 -DRING=2
holds | full: both freeze, small           | safe | -DR_FREEZE=1 -DS_FREEZE=1 -DBYTES=3
holds | full: again, receiver freezes      | safe | -DCHANNELS=2 -DR_FREEZE=1
holds | full: again, sender freezes        | safe | -DCHANNELS=2 -DS_FREEZE=1
holds | full: receiver freezes             | safe | -DR_FREEZE=1 -DBYTES=6 -DRING=2 -DTCP_ROOM=3
holds | full: sender freezes               | safe | -DS_FREEZE=1 -DBYTES=6 -DRING=2 -DTCP_ROOM=3
holds | full: sender dies while it freezes | safe | -DCRASH -DS_FREEZE=1 -DBYTES=3
holds | full: sender dies                  | safe | -DCRASH -DR_FREEZE=1 -DBYTES=5 -DRING=2
holds | full: close without waiting        | safe | -DCLOSE_AT_ONCE -DR_FREEZE=1 -DS_FREEZE=1 -DBYTES=3 -DRING=2
holds | full: again, either freezes        | safe | -DCHANNELS=2 -DR_FREEZE=1 -DS_FREEZE=1 -DBYTES=3
holds | full: again, receiver twice        | safe | -DCHANNELS=2 -DR_FREEZE=2
holds | full: again, sender twice          | safe | -DCHANNELS=2 -DS_FREEZE=2
holds | full: shut, receiver freezes       | safe | -DSHUT -DR_FREEZE=1 -DBYTES=3 -DTCP_ROOM=1
holds | full: shut, sender freezes         | safe | -DSHUT -DS_FREEZE=1 -DBYTES=2 -DTCP_ROOM=1
holds | full: every run ends, both freeze  | ends | -DR_FREEZE=1 -DS_FREEZE=1 -DBYTES=2
holds | full: every run ends, again        | ends | -DCHANNELS=2 -DR_FREEZE=1 -DBYTES=3
CASES
}

# Sets `outcome`: holds, found, or why the verifier says neither.
verify() {
  local expect=$1 kind=$2 options=$3 flags=(-DSAFETY) run=() log=pan.log
  # `ends`: a run for ever is a cycle without progress, for no step is labelled as progress. -O0: compiling costs more than searching.
  case "$kind" in ends) flags=(-DNP); run=(-l) ;; esac
  [ "$full" = 1 ] && flags+=(-O1 -DCOLLAPSE) || flags+=(-O0)
  # shellcheck disable=SC2086
  spin -a $options "$models/stream.pml" >spin.log 2>&1 && cc -w "${flags[@]}" -o pan pan.c 2>>spin.log
  if [ ! -x pan ]; then outcome="not built: $(tail -n 1 spin.log)"; return; fi
  timeout $((full ? 3600 : 600)) ./pan "${run[@]}" -m1000000 -w$((full ? 25 : 22)) >"$log" 2>&1
  states=$(awk '/states, stored/ { print $1; exit }' "$log")
  if grep -q 'Search not completed' "$log" && grep -q '^pan:1:' "$log"; then
    outcome=found
    error=$(sed -n 's/^pan:1: //p' "$log" | cut -c 1-70)
  elif grep -q 'errors: 0$' "$log" && ! grep -q -e 'Search not completed' -e 'max search depth' "$log"; then
    outcome=holds
  else
    outcome="not completed: $(head -n 1 "$log")"
  fi
}

is_wanted() {
  [ ${#wanted[@]} = 0 ] && return 0
  local word
  for word in "${wanted[@]}"; do [[ "$1" == *"$word"* ]] && return 0; done
  return 1
}

passed=0
failed=0
while IFS='|' read -r expect name kind options; do
  read -r expect <<<"$expect"; read -r name <<<"$name"; read -r kind <<<"$kind"; read -r options <<<"$options"
  is_wanted "$name" || continue
  directory="$work/${name//[^a-zA-Z0-9]/_}"
  mkdir -p "$directory" && cd "$directory" || exit 1
  rm -f pan pan.* ./*.trail
  outcome='' states=0 error=''
  verify "$expect" "$kind" "$options"
  if [ "$outcome" = "$expect" ]; then verdict=ok; passed=$((passed + 1)); else verdict=FAILED; failed=$((failed + 1)); fi
  printf '%-6s %-5s %-38s %9s states  %s  %s\n' "$verdict" "$expect" "$name" "$states" "$options" \
    "$([ "$outcome" = holds ] || echo "[$outcome${error:+: $error}]")"
done < <(cases)
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
