# SPDX-License-Identifier: MIT
"""Where the programs are that the suite runs."""

import os
import shutil

from processes import BenchError

SYSTEM_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"  # nginx is not on an ordinary user's PATH


def find_program(name):
    return shutil.which(name, path=SYSTEM_PATH)


def program(name):
    path = find_program(name)
    if path is None:
        raise BenchError(f"{name} is not installed: scripts/setup.sh --bench")
    return path


def own_program(build, name):
    path = build / "tests" / "bench" / name
    if not path.is_file():
        raise BenchError(f"{path.name} is not built (does meson say why?)")
    return path
