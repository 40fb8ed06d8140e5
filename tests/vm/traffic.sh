#!/bin/sh
# SPDX-License-Identifier: MIT
# nginx, then curl and wrk as its clients, all preloaded; runs in the machine of scripts/pku-vm.sh, but needs none. traffic.sh GUARD EXPECT
#   GUARD   the setting MPKLINK_GUARD of all of them
#   EXPECT  what their statistics must say: pkey, off (over rings, under this guard) or plain (all of it over TCP, for want of keys)
# Small loads, by number: a request takes a millisecond and more there, and on a busy host the machine stands still for whole seconds. The
# same makes a full ring give way to TCP, so the file fits in one.
guard=$1
expect=$2
port=8081
dir=$(mktemp -d) || exit 1
server='' failed=0
trap '[ -z "$server" ] || kill "$server"; rm -rf "$dir"' EXIT
mkdir "$dir/root"
dd if=/dev/urandom of="$dir/root/file" bs=1000 count=100 2>/dev/null
cat >"$dir/nginx.conf" <<CONF
daemon off;
user www-data;
worker_processes 1;
pid $dir/nginx.pid;
events { worker_connections 64; }
http {
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path $dir/body;
  proxy_temp_path $dir/proxy;
  fastcgi_temp_path $dir/fastcgi;
  uwsgi_temp_path $dir/uwsgi;
  scgi_temp_path $dir/scgi;
  server {
    listen 127.0.0.1:$port;
    root $dir/root;
    location = /hello { return 200 "hello\n"; }
  }
}
CONF
touch "$dir/server" "$dir/curl" "$dir/wrk"
# For the worker, which is another user and reports its statistics.
chmod -R a+rX "$dir"
chmod 666 "$dir/server"

# preloaded NAME COMMAND…: its statistics go to the file NAME.
preloaded() {
  name=$1
  shift
  LD_PRELOAD=$MPKLINK_BUILD/preload/libmpklink.so MPKLINK_GUARD=$guard MPKLINK_STATS=$dir/$name exec "$@"
}

complain() {
  echo "WRONG: $*"
  failed=1
}

# The sum of a number over the lines of one file.
sum() {
  sed -n "s/.*\"$2\":\([0-9]*\).*/\1/p" "$dir/$1" | awk '{ n += $1 } END { print n + 0 }'
}

# is FILE NUMBER zero|some
is() {
  n=$(sum "$1" "$2")
  case $3,$n in
    zero,0 | some,[1-9]*) ;;
    *) complain "$1: $2 is $n, expected $3" ;;
  esac
}

preloaded server nginx -c "$dir/nginx.conf" -e "$dir/error.log" &
server=$!
tries=0
# It writes the file when it listens.
until [ -s "$dir/nginx.pid" ]; do
  tries=$((tries + 1))
  if [ "$tries" -gt 100 ] || ! kill -0 "$server"; then
    echo 'nginx did not start'
    cat "$dir/error.log"
    exit 1
  fi
  sleep 0.1
done

# One connection: requests until it is upgraded, a file through the ring, and on.
url=http://127.0.0.1:$port
(preloaded curl curl -sS --fail --max-time 60 "$url/hello?[1-30]" -o /dev/null "$url/file" -o "$dir/got" "$url/hello?[1-10]" -o /dev/null) ||
  complain "curl ended with $?"
cmp "$dir/got" "$dir/root/file" || complain 'curl got other bytes'
# wrk knows durations only: after so many answers it gets the signal that ends it early.
cat >"$dir/enough.lua" <<'LUA'
local ffi = require("ffi")
ffi.cdef("int getpid(); int kill(int pid, int signal);")
local answers = 0
response = function()
  answers = answers + 1
  if answers == 200 then ffi.C.kill(ffi.C.getpid(), 2) end
end
LUA
(preloaded wrk wrk -t 1 -c 2 -d 60s --timeout 60s -s "$dir/enough.lua" "$url/hello") >"$dir/wrk.out" || complain "wrk ended with $?"
requests=$(sed -n 's/^ *\([0-9]*\) requests in.*/\1/p' "$dir/wrk.out")
[ "${requests:-0}" -ge 200 ] || complain "wrk made ${requests:-no} requests"
! grep -e 'Socket errors' -e 'Non-2xx' "$dir/wrk.out" || complain 'wrk saw errors'
# Its signal to end in order: only then does it report.
kill -QUIT "$server"
wait "$server" || complain "nginx ended with $?"
server=''
! grep -e 'exited on signal' -e '\[emerg\]' -e '\[alert\]' "$dir/error.log" || complain 'nginx complained'

echo "curl, $requests requests of wrk; statistics with MPKLINK_GUARD=$guard:"
cat "$dir/curl" "$dir/wrk" "$dir/server"
for end in curl wrk server; do
  is "$end" gate_found_open zero
  if [ "$expect" = plain ]; then
    is "$end" no-pku some
    is "$end" upgraded zero
    is "$end" ring_tx_bytes zero
    is "$end" ring_rx_bytes zero
    is "$end" tcp_rx_bytes some
    continue
  fi
  is "$end" upgraded some
  is "$end" ring_tx_bytes some
  is "$end" ring_rx_bytes some
  is "$end" gates some
  # nginx's master has no streams, thus decides on no guard; everyone who has some is under the one expected.
  ! grep -v '"upgraded":0,' "$dir/$end" | grep -v "\"guard\":\"$expect\"" || complain "$end: guard is not $expect"
done
exit "$failed"
