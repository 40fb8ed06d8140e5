# SPDX-License-Identifier: MIT
"""What `meson install` puts where, and that it works from there, from the build tree, and from a folder that was moved. The unit file."""

import configparser
import os
import pathlib
import shutil
import subprocess

import pytest

from harness import BUILD, REPO
from installed import assert_ring_used, clean_env, echo

DROP_IN = REPO / "deploy/systemd/mpklink.conf"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """A prefix in a staging directory, as packagers have it."""
    stage = tmp_path_factory.mktemp("stage")
    done = subprocess.run(["meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", stage], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return stage / "usr/local"


def find_one(directory: pathlib.Path, name: str) -> pathlib.Path:
    found = [path for path in directory.rglob(name) if path.is_file() and "completions" not in path.parts]
    assert len(found) == 1, found
    return found[0]


def test_run_works_from_the_build_tree(tmp_path):
    assert_ring_used(echo(tmp_path, [BUILD / "tools/mpklink", "run", "--"]))


@pytest.mark.parametrize("tool", [["mpklink", "run", "--"], ["mpklink-exec"]], ids=["run", "exec"])
def test_run_works_from_a_prefix(prefix, tmp_path, tool):
    assert_ring_used(echo(tmp_path, [prefix / "bin" / tool[0], *tool[1:]]))


@pytest.mark.parametrize("tool", [["mpklink", "run", "--"], ["mpklink-exec"]], ids=["run", "exec"])
def test_run_works_from_a_folder_that_was_moved(prefix, tmp_path, tool):
    shutil.copytree(prefix, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    lines = echo(tmp_path, [tmp_path / "second/bin" / tool[0], *tool[1:]])
    assert_ring_used(lines)
    dry_run = subprocess.run([tmp_path / "second/bin/mpklink", "run", "--dry-run", "true"], env=clean_env(), capture_output=True, text=True, timeout=30)
    assert dry_run.stdout.splitlines()[0] == f"LD_PRELOAD={find_one(tmp_path / 'second', 'libmpklink.so')}"


def test_one_flat_folder_is_enough(prefix, tmp_path):
    """As in the image for containers."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("mpklink", "mpklink-exec", "libmpklink.so"):
        shutil.copy2(find_one(prefix, name), flat)
    assert_ring_used(echo(tmp_path, [flat / "mpklink-exec"]))
    assert_ring_used(echo(tmp_path, [flat / "mpklink", "run", "--"]))


def test_what_is_installed(prefix):
    """Nothing of the tests, no archive, no header; the library once."""
    files = [str(p.relative_to(prefix)) for p in prefix.rglob("*") if p.is_file()]
    assert sorted(f for f in files if f.startswith("bin/")) == ["bin/mpklink", "bin/mpklink-exec"]
    assert not [f for f in files if f.endswith((".a", ".h", "-bench")) or "/tests/" in f], files
    for name in ("mpklink-exec.1", "mpklink.conf", "pod.yaml", "mpklink.pc"):
        assert sum(f.endswith("/" + name) for f in files) == 1, (name, files)


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="pkg-config is not installed")
def test_pkg_config_names_the_library(prefix):
    def ask(*options):
        env = clean_env(PKG_CONFIG_PATH=find_one(prefix, "mpklink.pc").parent)
        return subprocess.run(["pkg-config", f"--define-variable=prefix={prefix}", *options, "mpklink"], env=env, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    assert pathlib.Path(ask("--variable=preload")).resolve() == find_one(prefix, "libmpklink.so")
    assert ask("--libs") == ""
    assert ask("--modversion").count(".") == 2


# ---- systemd -------------------------------------------------------------------------------------------------------------


def verify(directory: pathlib.Path, drop_in: str) -> str:
    """What systemd-analyze says about a service with this drop-in: nothing, if all is well."""
    (directory / "probe.service").write_text(f"[Unit]\nDescription=probe\n[Service]\nExecStart={shutil.which('true')}\n")
    extra = directory / "probe.service.d"
    extra.mkdir()
    (extra / "mpklink.conf").write_text(drop_in)
    env = clean_env(SYSTEMD_UNIT_PATH=f"{directory}:")
    done = subprocess.run(["systemd-analyze", "verify", "probe.service"], env=env, capture_output=True, text=True, timeout=60)
    return done.stdout + "".join(line for line in done.stderr.splitlines(True) if "probe.service" in line or "mpklink" in line)


needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@needs_analyze
def test_systemd_takes_the_drop_in(tmp_path):
    assert verify(tmp_path, DROP_IN.read_text()) == ""


@needs_analyze
def test_systemd_takes_all_that_the_drop_in_offers_in_comments(tmp_path):
    text = "\n".join(line.lstrip("#") if line.startswith("#") and "=" in line.split()[0] else line for line in DROP_IN.read_text().splitlines())
    assert text.count("\nSystemCallFilter=@pkey") == 1 and text.count("\nRestrictAddressFamilies=") == 1
    assert verify(tmp_path, text) == ""


@needs_analyze
def test_systemd_would_complain(tmp_path):
    assert "Enviroment" in verify(tmp_path, "[Service]\nEnviroment=LD_PRELOAD=libmpklink.so\n")


def test_the_drop_in_says_what_the_library_understands(tmp_path):
    """Its environment, with the library's full path as it says one may write, on both ends of a connection."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(DROP_IN)
    name, value = unit["Service"]["Environment"].split("=", 1)
    assert (name, value) == ("LD_PRELOAD", "libmpklink.so")
    assert_ring_used(echo(tmp_path, LD_PRELOAD=value, LD_LIBRARY_PATH=BUILD / "preload"))
    assert os.path.isabs(unit["Service"]["EnvironmentFile"].lstrip("-"))
