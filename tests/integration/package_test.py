# SPDX-License-Identifier: MIT
"""The packages, installed on this machine, used and removed; the tarball, unpacked anywhere. scripts/package.sh --test runs this."""

import configparser
import contextlib
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from harness import REPO
from installed import assert_ring_used, clean_env, echo

NAMES = ["libmpklink", "libmpklink-dev", "mpklink-tools"]
BUILD_S = 1500

pytestmark = [pytest.mark.slow, pytest.mark.limit(BUILD_S)]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: installs packages")


def sh(*words, code=0, **env) -> str:
    done = subprocess.run(list(map(str, words)), env=clean_env(**env), capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Where scripts/package.sh has put them: made by it now, unless MPKLINK_PACKAGES says that it has just done so. lintian is part of that."""
    given = os.environ.get("MPKLINK_PACKAGES")
    if given:
        return pathlib.Path(given)
    if not all(map(shutil.which, ("dpkg-buildpackage", "dh", "lintian"))):
        pytest.skip("debhelper or lintian is not installed (scripts/setup.sh --package)")
    out = tmp_path_factory.mktemp("packages")
    script = [REPO / "scripts/package.sh", "--no-install", "--out", out]
    done = subprocess.run(script, env=clean_env(), capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return out


@pytest.fixture(scope="module")
def installed(packages):
    """The three packages, installed; removed in the end if a test has not done so."""
    there = subprocess.run(["dpkg-query", "-W", *NAMES], capture_output=True, text=True).stdout.split()
    if there:
        pytest.skip(f"packages of this name are installed already: {' '.join(there)}; apt-get purge them first")
    files = [next(packages.glob(f"{name}_*.deb")) for name in NAMES]
    sh("dpkg", "--install", *files)
    yield [path for name in NAMES for path in sh("dpkg-query", "-L", name).split("\n") if path]
    with contextlib.suppress(AssertionError):
        sh("dpkg", "--purge", *NAMES)


def test_every_package_was_made_and_only_those(packages):
    made = sorted(re.match(r"[^_]+", p.name)[0] for p in packages.glob("*.deb") if "dbgsym" not in p.name)
    assert made == NAMES


@needs_root
def test_installed_mpklink_run(installed, tmp_path):
    assert_ring_used(echo(tmp_path, ["mpklink", "run", "--"], PATH="/usr/sbin:/usr/bin:/sbin:/bin"))
    assert sh("/usr/bin/mpklink", "run", "--dry-run", "true").startswith("LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libmpklink.so\n")


@needs_root
def test_installed_bare_name_in_the_drop_in(installed, tmp_path):
    """As the drop-in of the package writes it, with no path."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(next(path for path in installed if path.endswith("/mpklink.conf")))
    name, value = unit["Service"]["Environment"].split("=", 1)
    assert value == "libmpklink.so"
    assert_ring_used(echo(tmp_path, **{name: value}))


@needs_root
def test_installed_mpklink_exec(installed, tmp_path):
    assert_ring_used(echo(tmp_path, ["/usr/bin/mpklink-exec"]))


@needs_root
@pytest.mark.skipif(not shutil.which("pkg-config"), reason="pkg-config is not installed")
def test_installed_pkg_config(installed):
    assert sh("pkg-config", "--variable=preload", "mpklink").strip() == "/usr/lib/x86_64-linux-gnu/libmpklink.so"


@needs_root
def test_installed_documents(installed):
    for path in ("man1/mpklink-exec.1", "examples/systemd/mpklink.conf", "examples/kubernetes/pod.yaml", "mpklink-tools/copyright"):
        assert any(path in name for name in installed), path


@needs_root
def test_remove_leaves_nothing(installed):
    """The last: nothing of what was installed is there afterwards but directories that other packages have, too."""
    ours = [path for path in installed if not os.path.isdir(path) or os.path.islink(path)]
    assert len(ours) > 10 and all(map(os.path.lexists, ours))
    sh("dpkg", "--remove", *NAMES)
    assert not list(filter(os.path.lexists, ours))
    assert "installed" not in subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status} ", *NAMES], capture_output=True, text=True).stdout.split()
    assert subprocess.run(["env", "LD_PRELOAD=libmpklink.so", "true"], capture_output=True, text=True).stderr.count("cannot be preloaded") == 1


def test_tarball(packages, tmp_path):
    """Unpacked in two places; the tools inside need glibc and nothing else."""
    archive = next(packages.glob("mpklink-*-linux-x86_64.tar.gz"))
    for name in ("here", "and there, too"):
        (tmp_path / name).mkdir()
        sh("tar", "-xf", archive, "-C", tmp_path / name)
    folder = next((tmp_path / "here").iterdir())
    assert_ring_used(echo(tmp_path, [folder / "bin/mpklink", "run", "--"]))
    assert_ring_used(echo(tmp_path, [folder / "bin/mpklink-exec"]))
    needed = re.findall(r"NEEDED +(\S+)", sh("objdump", "-p", folder / "bin/mpklink"))
    assert set(needed) <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}, needed
    if shutil.which("pkg-config"):
        said = sh("pkg-config", "--variable=preload", "mpklink", PKG_CONFIG_PATH=folder / "lib/pkgconfig").strip()
        assert pathlib.Path(said).resolve() == folder / "lib/libmpklink.so"
    # ld.so cannot preload from a path with spaces: a sentence, no silence.
    other = next((tmp_path / "and there, too").iterdir())
    refused = subprocess.run([other / "bin/mpklink", "run", "true"], env=clean_env(), capture_output=True, text=True, timeout=30)
    assert refused.returncode == 126 and "contains a space" in refused.stderr
