# SPDX-License-Identifier: MIT
"""What a test needs besides what scripts/setup.sh installs, and whether it runs without.

MPKLINK_SERVICES=all (scripts/services.sh, which installs it): what is missing fails. =installed: it skips. Unset (scripts/test.sh): whatever
is more than scripts/setup.sh installs skips, so that the counts are the same on every machine.
"""

import functools
import os
import shutil
import subprocess

import pytest

from harness import BUILD, PYTHON, SCRIPTS


def has_module(name):
    return subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True).returncode == 0


# What it is called here → (Debian's package, whether it is there)
HEAVY = {
    "gunicorn": ("gunicorn", lambda: has_module("gunicorn")),
    "uvicorn": ("uvicorn", lambda: has_module("uvicorn")),
    "uvloop": ("python3-uvloop", lambda: has_module("uvloop")),
    "requests": ("python3-requests", lambda: has_module("requests")),
    "httpx": ("python3-httpx", lambda: has_module("httpx")),
    "aiohttp": ("python3-aiohttp", lambda: has_module("aiohttp")),
    "grpc": ("python3-grpcio", lambda: has_module("grpc")),
    "redis-py": ("python3-redis", lambda: has_module("redis")),
    "java": ("openjdk-17-jdk-headless", lambda: shutil.which("javac") is not None),
    "go": ("golang-go", lambda: shutil.which("go") is not None),
    "grpc_call": ("libgrpc++-dev and protobuf-compiler-grpc, then ninja", lambda: (BUILD / "tests" / "bench" / "grpc_call").is_file()),
}


@functools.lru_cache(maxsize=None)
def there(name) -> bool:
    return HEAVY[name][1]()


def need(*names) -> None:
    """Skips the test, or fails it, for the first of `names` that it has to do without."""
    wanted = os.environ.get("MPKLINK_SERVICES", "")
    for name in names:
        package = HEAVY[name][0]
        if not wanted:
            pytest.skip(f"scripts/services.sh runs what needs {package}")
        if not there(name):
            assert wanted == "installed", f"{package} is missing"
            pytest.skip(f"{package} is not installed")


@functools.lru_cache(maxsize=None)
def built(source: str, directory: str, *command, **environment) -> None:
    """Compiles tests/programs/services/SOURCE."""
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": directory, "LANG": "C.UTF-8", **environment}
    result = subprocess.run([*command, str(SCRIPTS / "services" / source)], env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
