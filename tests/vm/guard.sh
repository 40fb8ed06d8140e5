#!/bin/sh
# SPDX-License-Identifier: MIT
# Cases of a program tests/programs/guard_*, both ends preloaded, keys required; runs in the machine of scripts/pku-vm.sh, but needs none.
# guard.sh PROGRAM [CASE…]   without cases: all that it lists
# What a touch must come to is said by the program (TALLY …, BYPASS …, ENDED …, CORE …); what the library says is in the statistics.
program=$MPKLINK_BUILD/tests/programs/$1
shift
[ $# -gt 0 ] || set -- $("$program" list)
dir=$(mktemp -d) || exit 1
server='' failed=0
trap '[ -z "$server" ] || kill "$server"; rm -rf "$dir"' EXIT
cd "$dir" || exit 1

preloaded() {
  LD_PRELOAD=$MPKLINK_BUILD/preload/libmpklink.so MPKLINK_GUARD=require MPKLINK_STATS=$dir/stats exec "$program" "$@"
}

complain() {
  echo "WRONG: $*"
  failed=1
}

for name in "$@"; do
  rm -f stats
  (preloaded server "--case=$name") >server.out 2>server.err &
  server=$!
  tries=0
  until port=$(sed -n 's/^PORT //p' server.out) && [ -n "$port" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || break
    sleep 0.1
  done
  (preloaded client "--port=$port" "--case=$name") >client.out 2>client.err || complain "$name: the client ended with $?"
  wait "$server" || complain "$name: the server ended with $?"
  server=''
  cat server.out client.out server.err client.err | sed "s/^/$name: /"
  cat server.out client.out >both.out
  # (wrong_way: an emulated machine does a locked instruction's load by itself, and says that was what faulted.)
  # Every touch of guarded memory faulted with our key, of the gaps without one; and there were some.
  while read -r _ who counts; do
    # shellcheck disable=SC2086  # name=number…
    eval $counts
    case $who in gaps | overrun) right=$accerr ;; *) right=$pkuerr ;; esac
    [ "$touched" -gt 0 ] && [ "$right" = "$touched" ] && [ "$wrong_key$wrong_place$other" = 000 ] || complain "$name: TALLY $who $counts"
  done <<TALLIES
$(grep '^TALLY ' both.out || echo '- - touched=1 pkuerr=1 wrong_key=0 wrong_place=0 other=0')
TALLIES
  case $name in
    table)
      for way in loads memfd mprotect mremap madv_dontneed core_dump write_to_pipe vmsplice; do
        grep -q "^BYPASS $way blocked\$" both.out || complain "$name: $way"
      done ;;
    reported) ! grep -q '^ENDED exit' both.out || complain "$name: a touch went through" ;;
    core) grep -q '^CORE 1' both.out || complain "$name: no core" ;;
  esac
  grep -q '"guard":"pkey"' stats || complain "$name: no guard in force"
  grep -q '"upgraded":[1-9]' stats || complain "$name: nothing went over a ring"
  # One case opens the key itself.
  [ "$name" = opened ] || ! grep -qv '"gate_found_open":0,' stats || complain "$name: a gate was found open"
done
exit "$failed"
