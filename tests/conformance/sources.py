# SPDX-License-Identifier: MIT
"""Gets what the suites consist of: Debian packages, and Debian's sources built under build/conformance/."""

import os
import pathlib
import shutil
import subprocess
import sys

PYTHON_PACKAGES = ["libpython3.11-testsuite", "util-linux", "iproute2"]
BUILD_PACKAGES = ["dpkg-dev", "gcc", "make", "autoconf", "automake", "libtool", "pkg-config", "libssl-dev", "cmake", "ninja-build"]
SUITE = "bookworm"
INDEX = f"""Types: deb-src
URIs: http://deb.debian.org/debian
Suites: {SUITE}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


class CannotPrepare(Exception):
    pass


def say(text):
    print(f"conformance: {text}", file=sys.stderr, flush=True)


def quietly(argv, log, **options):
    """Runs a command; its output goes to `log`, and the end of that into the error when it fails."""
    with open(log, "ab") as out:
        done = subprocess.run(argv, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=1800, **options)
    if done.returncode != 0:
        tail = "\n".join(pathlib.Path(log).read_text(errors="replace").splitlines()[-20:])
        raise CannotPrepare(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{tail}")


def install(packages, log):
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages], capture_output=True, text=True)
    present = {line.split()[0] for line in listed.stdout.splitlines() if line.endswith(" installed")}
    missing = [name for name in packages if name not in present]
    if not missing:
        return
    if os.geteuid() != 0:
        raise CannotPrepare(f"as root: apt-get install --no-install-recommends {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300"]
    try:
        quietly([*apt, "install", "--no-install-recommends", *missing], log, env=env)
    except CannotPrepare:
        quietly([*apt, "update"], log, env=env)
        quietly([*apt, "install", "--no-install-recommends", *missing], log, env=env)


def apt_options(cache):
    """apt with sources and lists of its own: /etc is not touched, and apt-get update of the machine not needed."""
    for name in ("sources.d", "lists/partial", "archives/partial"):
        (cache / "apt" / name).mkdir(parents=True, exist_ok=True)
    (cache / "apt/sources.d/source.sources").write_text(INDEX)
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": f"{cache}/apt/sources.d",
        "Dir::State::Lists": f"{cache}/apt/lists",
        "Dir::Cache": f"{cache}/apt",
        "APT::Sandbox::User": "root",  # the folder need not be open to the user _apt
    }
    return [x for key, value in options.items() for x in ("-o", f"{key}={value}")]


def unpacked(package, cache, log):
    """The folder of the package's source with Debian's patches."""
    folder = cache / package
    if folder.exists():
        return folder
    options = apt_options(cache)
    say(f"fetching the source of {package}")
    quietly(["apt-get", *options, "update"], log)
    download = cache / f"{package}.download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir()
    quietly(["apt-get", *options, "source", "--download-only", f"{package}/{SUITE}"], log, cwd=download)
    (description,) = download.glob("*.dsc")
    quietly(["dpkg-source", "--no-check", "-x", description.name, "source"], log, cwd=download)
    (download / "source").rename(folder)
    shutil.rmtree(download)
    return folder


def built(package, program, commands, cache):
    """Builds `program` in the package's source folder unless it is there; gives the folder."""
    log = cache / f"{package}.log"
    install(BUILD_PACKAGES, log)
    folder = unpacked(package, cache, log)
    if not (folder / program).exists():
        say(f"building {package}")
        for command in commands:
            quietly(command, log, cwd=folder)
    return folder


def libevent(cache):
    return built(
        "libevent",
        "test/regress",
        [
            ["./autogen.sh"],
            ["./configure", "--disable-shared", "--enable-static", "--disable-samples", "CFLAGS=-O1 -g -w"],
            ["make", "-j2"],
            ["make", "-j2", "-C", "test", "regress"],
        ],
        cache,
    )


def libuv(cache):
    return built(
        "libuv1",
        "build/uv_run_tests_a",
        [
            ["cmake", "-G", "Ninja", "-B", "build", "-DBUILD_TESTING=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"],
            ["ninja", "-j2", "-C", "build", "uv_run_tests_a"],
        ],
        cache,
    )
