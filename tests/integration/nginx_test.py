# SPDX-License-Identifier: MIT
"""curl and other clients against nginx: files, bodies, proxy, prefork and reload. (Users: identity_test.py.)"""

import os
import signal
import subprocess
import time

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, Combo, make_file, reap_orphans, sha256
from servers import Nginx

WARM = 40  # requests that warm a connection up


def curl(bench, nginx, names, **options) -> dict:
    """Fetches nginx's files `names` in this order over one connection; name → downloaded file (the last one wins)."""
    argv = ["curl", "-sS", "--fail", "-w", "connects %{num_connects} code %{http_code}\\n"]
    files = {}
    for i, name in enumerate(names):
        files[name] = bench.dir / f"got-{i}"
        argv += ["-o", files[name], nginx.url(name)]
    lines = bench.run(argv, CLIENT, timeout_s=60, **options).split("\n")[:-1]
    assert len(lines) == len(names)
    assert lines == ["connects 1 code 200"] + ["connects 0 code 200"] * (len(names) - 1), "the connection was not reused"
    return files


def load(nginx, *options, docroot=None) -> list:
    """http_load.py against nginx: /hello, or with `docroot` the 100 KB file; every body is checked."""
    what = ["--path=/f100k", f"--sha256={docroot.sums['f100k']}"] if docroot else ["--path=/hello", "--body=hello\n"]
    return [PYTHON, SCRIPTS / "http_load.py", f"--port={nginx.port}", *what, *options]


@pytest.mark.parametrize("sendfile", [True, False], ids=["sendfile", "nosendfile"])
def test_files(bench, docroot, sendfile):
    """0 B, 1 B, 100 KB and 200 MB over one warm connection, with checksums."""
    nginx = Nginx(bench, docroot.dir, sendfile=sendfile)
    files = curl(bench, nginx, ["f1"] * WARM + ["f0", "f1", "f100k", "f200m", "f0", "f100k"])
    for name, path in files.items():
        assert path.stat().st_size == docroot.sizes[name], name
        assert sha256(path) == docroot.sums[name], name
    nginx.stop()
    bench.assert_ring(streams=1, min_bytes=200_000_000, exact=True, conserved=True)


@pytest.mark.parametrize("combo,settings", [(Combo.BOTH, {"RING_KIB": 4}), (Combo.BOTH, {"GUARD": "mprotect"})], ids=["both-ring4", "both-mprotect"])
@pytest.mark.parametrize("sendfile", [True, False], ids=["sendfile", "nosendfile"])
def test_files_settings(bench, docroot, settings, sendfile):
    bench.settings = settings
    nginx = Nginx(bench, docroot.dir, sendfile=sendfile)
    files = curl(bench, nginx, ["f1"] * WARM + ["f0", "f100k", "f2m", "f0", "f1", "f100k"])
    for name, path in files.items():
        assert sha256(path) == docroot.sums[name], name
    nginx.stop()
    bench.assert_ring(streams=1, min_bytes=2_000_000, exact=True, conserved=True)


@pytest.mark.no_ring
def test_one_shot_requests(bench, docroot):
    """A connection per request: everything works, and nothing is asked of the ring."""
    nginx = Nginx(bench, docroot.dir)
    for name in ("f0", "f1", "f100k", "f2m"):
        out = bench.dir / "got"
        bench.run(["curl", "-sS", "--fail", "-H", "Connection: close", "-o", out, nginx.url(name)], CLIENT)
        assert sha256(out) == docroot.sums[name]
    nginx.stop()
    bench.assert_gates()


def test_upload(bench, docroot):
    """PUT of a big body, then the same file back, over one connection."""
    nginx = Nginx(bench, docroot.dir, server=f"location /back/ {{ alias {bench.dir}/nginx/dav/; }}")
    body, back = bench.dir / "body", bench.dir / "back"
    make_file(body, 20_000_000)
    argv = ["curl", "-sS", "--fail", "-w", "%{num_connects} %{http_code}\\n"]
    for _ in range(WARM):
        argv += ["-o", "/dev/null", nginx.url("hello")]
    argv += ["--next", "-sS", "--fail", "-w", "%{num_connects} %{http_code}\\n", "-T", body, "-H", "Expect:", nginx.url("dav/body")]
    argv += ["--next", "-sS", "--fail", "-w", "%{num_connects} %{http_code}\\n", "-o", back, nginx.url("back/body")]
    lines = bench.run(argv, CLIENT).split("\n")[:-1]
    assert lines == ["1 200"] + ["0 200"] * (WARM - 1) + ["0 201", "0 200"]
    assert sha256(back) == sha256(body)
    nginx.stop()
    bench.assert_ring(streams=1, min_bytes=40_000_000, exact=True, conserved=True)


def test_proxy(bench, docroot):
    """curl → nginx → nginx with upstream keep-alive: the one in the middle is server and client at once."""
    back = Nginx(bench, docroot.dir, name="back")
    front = Nginx(
        bench, docroot.dir, name="front",
        http=f"upstream back {{ server 127.0.0.1:{back.port}; keepalive 4; }}",
        server='location /via/ { proxy_pass http://back/; proxy_http_version 1.1; proxy_set_header Connection ""; }',
    )  # fmt: skip
    files = curl(bench, front, ["via/f1"] * WARM + ["via/f0", "via/f100k", "via/f2m"])
    for name, path in files.items():
        assert sha256(path) == docroot.sums[name.removeprefix("via/")], name
    front.stop()
    back.stop()
    if bench.combo in (Combo.NEITHER, Combo.CLIENT):
        bench.assert_ring()
        return
    # The upstream connection has both ends on the server side: it is used in `server`, too.
    bench.assert_ring_used(SERVER, 3 if bench.combo is Combo.BOTH else 2, min_bytes=4_000_000)
    if bench.combo is Combo.BOTH:
        bench.assert_ring_used(CLIENT, 1, min_bytes=2_000_000)
    bench.assert_gates()


# ---- prefork and reload --------------------------------------------------------------------------------------------------


def test_prefork(bench, docroot):
    """Four workers: every connection is upgraded, whichever worker has it."""
    nginx = Nginx(bench, docroot.dir, workers=4)
    bench.run(load(nginx, "--connections=32", "--requests=100", docroot=docroot), CLIENT, timeout_s=60)
    nginx.stop()
    bench.assert_ring(streams=32, min_bytes=32 * 60 * 100_000, exact=True, conserved=True)


@pytest.mark.parametrize("workers", [1, 4])
def test_reload(bench, docroot, workers):
    """`nginx -s reload` again and again under load: no request fails (http_load.py says what counts as failed)."""
    nginx = Nginx(bench, docroot.dir, workers=workers)
    client = bench.start(load(nginx, "--connections=8", "--until-eof", docroot=docroot), CLIENT, name="load", stdin=subprocess.PIPE)
    time.sleep(0.5)
    for _ in range(5):
        before = nginx.worker_pids()
        nginx.reload()
        deadline = time.monotonic() + 10
        while set(before) & set(nginx.worker_pids()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not set(before) & set(nginx.worker_pids()), "old workers did not end within 10 s of a reload"
        time.sleep(0.3)
    client.stdin.close()
    text = client.finish()
    assert "failed 0" in text, text
    nginx.stop()
    bench.assert_ring(streams=8, min_bytes=10_000_000)


def test_master_killed_workers_go_on(bench, docroot):
    """The master dies by SIGKILL: its workers still serve what they have (and report at their own end)."""
    nginx = Nginx(bench, docroot.dir, workers=1)
    [worker] = nginx.worker_pids()
    client = bench.start(load(nginx, "--connections=4", "--until-eof"), CLIENT, name="load", stdin=subprocess.PIPE)
    time.sleep(0.7)
    os.kill(nginx.proc.pid, signal.SIGKILL)
    nginx.proc.wait()
    time.sleep(0.7)
    client.stdin.close()
    text = client.finish()
    assert "failed 0" in text, text
    os.kill(worker, signal.SIGQUIT)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        reap_orphans()
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{worker}"), "the worker did not end"
    bench.assert_ring(streams=4, min_bytes=10_000)
