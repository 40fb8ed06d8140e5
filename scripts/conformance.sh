#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs other people's test suites (CPython, libevent, libuv) plain and preloaded; installs and builds what is missing.
# scripts/conformance.sh [--quick] [--setting off|accelerate|tiny] [--list] [suite…]; see tests/conformance/README.md
set -eu
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 tests/conformance/conformance.py "$@"
