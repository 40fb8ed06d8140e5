# SPDX-License-Identifier: MIT
"""The library is updated under running services: two versions side by side stay on TCP and say why, and nobody fails meanwhile.

libmpklink_other.so is the library in another layout version (tests/programs/meson.build)."""

import os
import shutil
import signal
import subprocess

import pytest

import harness
from harness import CLIENT, PROGRAMS, PYTHON, SCRIPTS, SERVER, Combo, eventually, reap_orphans
from servers import Nginx

OTHER_SO = PROGRAMS / "libmpklink_other.so"
OTHER_END = {CLIENT: SERVER, SERVER: CLIENT}

only_both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])


def preload(bench, side, library) -> dict:
    """The environment of a process of `side` that loads `library` in place of ours."""
    return {"LD_PRELOAD": bench.env_for(side)["LD_PRELOAD"].replace(str(harness.SO), str(library))}


def run_echo(bench, libraries) -> None:
    """Two connections, with these libraries by side."""
    options = ["--connections=2", "--rounds=200", "--max-size=2000"]
    env = {side: preload(bench, side, library) for side, library in libraries.items()}
    server = bench.start([bench.program("echo_threads"), "server", *options], SERVER, name="server", env=env.get(SERVER))
    client = bench.start(
        [bench.program("echo_threads"), "client", f"--port={server.port()}", *options], CLIENT, name="client", env=env.get(CLIENT)
    )
    bench.succeed(client)
    bench.succeed(server)


@pytest.mark.no_ring
@only_both
@pytest.mark.parametrize("updated", [CLIENT, SERVER], ids=["client", "server"])
def test_two_versions(bench, updated):
    """One end was restarted with the new version, the other one was not. Both say so."""
    run_echo(bench, {updated: OTHER_SO})
    bench.assert_fell_back()
    for side in (CLIENT, SERVER):
        assert bench.stats(side).plain == {"peer-version": 2}, bench.stats(side)


@only_both
def test_the_other_version_by_itself(bench):
    run_echo(bench, {CLIENT: OTHER_SO, SERVER: OTHER_SO})
    bench.assert_ring(streams=2, min_bytes=100_000, exact=True, conserved=True)


class Installed:
    """A library file that is replaced as package managers do it: the new one is renamed over the old one's name."""

    def __init__(self, bench):
        self.bench, self.path = bench, bench.dir / "libmpklink.so"
        self.install(harness.SO)

    def install(self, library) -> None:
        new = self.path.with_suffix(".new")
        shutil.copy(library, new)
        os.replace(new, self.path)

    def env(self, side) -> dict:
        return preload(self.bench, side, self.path)


def load(nginx, *options) -> list:
    return [PYTHON, SCRIPTS / "http_load.py", f"--port={nginx.port}", "--path=/hello", "--body=hello\n", *options]


class Gain:
    """What the clients' statistics gain from a run."""

    def __init__(self, bench, nginx, library):
        before = bench.stats(CLIENT)
        bench.run(load(nginx, "--connections=4", "--requests=200"), CLIENT, env=preload(bench, CLIENT, library))
        after = bench.stats(CLIENT)
        self.upgraded = after.upgraded - before.upgraded
        self.other_version = after.plain["peer-version"] - before.plain["peer-version"]

    def __repr__(self):
        return f"upgraded {self.upgraded}, other version {self.other_version}"


@only_both
def test_file_is_replaced(bench, docroot):
    """Running processes keep what they have loaded, also through `nginx -s reload`, whose workers are forks; what starts later is new."""
    installed = Installed(bench)
    nginx = Nginx(bench, docroot.dir, env=installed.env(SERVER))
    running = bench.start(load(nginx, "--connections=4", "--until-eof"), CLIENT, name="running", stdin=subprocess.PIPE, env=installed.env(CLIENT))
    eventually(lambda: Gain(bench, nginx, harness.SO).upgraded == 4, what="the upgrade of one's own version")
    installed.install(OTHER_SO)
    new = Gain(bench, nginx, installed.path)
    assert (new.upgraded, new.other_version) == (0, 4), new
    workers = nginx.worker_pids()
    nginx.reload()
    eventually(lambda: not set(workers) & set(nginx.worker_pids()), what="new workers")
    assert Gain(bench, nginx, harness.SO).upgraded == 4
    assert Gain(bench, nginx, installed.path).other_version == 4
    running.stdin.close()
    assert "failed 0" in running.finish()
    nginx.stop()
    bench.assert_ring(streams=12, min_bytes=100_000)


@only_both
def test_new_workers_beside_old_ones(bench, docroot):
    """nginx's own way to a new binary (SIGUSR2): a new master with new workers accepts on the same socket as the old ones, and clients of
    both versions are served by all of them. nginx.conf has to name LD_PRELOAD, or nginx clears it."""
    installed = Installed(bench)
    names = ["LD_PRELOAD", "MPKLINK_STATS", "MPKLINK_TEST_RUN"]
    nginx = Nginx(bench, docroot.dir, env=installed.env(SERVER), main="\n".join(f"env {name};" for name in names), orphan=True)
    nginx.proc.finish()
    pid_file, old_file = nginx.dir / "nginx.pid", nginx.dir / "nginx.pid.oldbin"
    eventually(lambda: pid_file.exists() and pid_file.read_text().strip(), what="nginx's pid")
    old = int(pid_file.read_text())
    running = bench.start(load(nginx, "--connections=4", "--until-eof"), CLIENT, name="running", stdin=subprocess.PIPE)
    assert Gain(bench, nginx, harness.SO).upgraded == 4
    installed.install(OTHER_SO)
    os.kill(old, signal.SIGUSR2)
    eventually(lambda: old_file.exists() and pid_file.exists() and pid_file.read_text().strip() not in ("", str(old)), what="the new master")
    new = int(pid_file.read_text())
    for library in (harness.SO, OTHER_SO) * 2:  # whichever worker takes a connection
        both = Gain(bench, nginx, library)
        assert both.upgraded + both.other_version == 4, both
    end(old)
    updated, left_behind = Gain(bench, nginx, OTHER_SO), Gain(bench, nginx, harness.SO)
    assert (updated.upgraded, left_behind.other_version) == (4, 4), (updated, left_behind)
    running.stdin.close()
    assert "failed 0" in running.finish()
    end(new)
    assert bench.stats(SERVER).plain["peer-version"] >= 4, bench.stats(SERVER)
    bench.assert_ring(streams=8, min_bytes=40_000)


def end(master) -> None:
    """Gracefully, with its workers."""
    os.kill(master, signal.SIGQUIT)
    eventually(lambda: reap_orphans() or not os.path.exists(f"/proc/{master}"), what="the end of a master")
