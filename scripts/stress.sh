#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs tests/programs/stress.cc preloaded at both ends. scripts/stress.sh [--minutes N] [--seed S] [--ring 64B|4|256] [-- options]
#   --minutes  how long in all (default 10); each run takes about 25 s, with a new seed and the next settings
#   --seed     the first seed (default: the time); the following runs count on from it
#   --ring     only this ring size instead of 64B, 4 and 256 KiB in turn
#   options    for the program: --skip=NAME,… --lenient=NAME,… --revoke=1 --classes=d …
# WARMUP 0 and the default, GUARD default and mprotect alternate. Each failure leaves its output and says how to repeat it.
set -u
cd "$(dirname "$0")/.." || exit 1
exec /usr/bin/python3 scripts/stress.py "$@"
