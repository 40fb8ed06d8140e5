#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Soak and chaos: nginx, redis, Python and node talk to each other, preloaded at both ends, while they are killed, reloaded, stopped, short of
# descriptors, and hand their sockets on in mid-stream. scripts/soak.sh [--minutes N] [--seed S] [--hang-seconds N] [--break KIND] [--keep]
#   --minutes  of chaos (default 2); some 40 s of calm before and after are besides
#   --seed     what happens when and to whom (default: the time); what it does to the processes depends on the machine, too
#   --break    byte, drop, hang, leak: the Python servers do that now and then; plain: nothing is upgraded. The run has to fail
#   --keep     leaves the processes' output, and says where
# The table says what was done and found; the last line is "N passed, N failed".
set -u
cd "$(dirname "$0")/.." || exit 1
exec /usr/bin/python3 scripts/soak.py "$@"
