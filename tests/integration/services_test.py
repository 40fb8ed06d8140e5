# SPDX-License-Identifier: MIT
"""Other people's HTTP servers and clients, each with each: nginx, gunicorn, uvicorn, node and Java, alone and behind nginx, asked by curl, node,
Java, requests, httpx and aiohttp. The answers are compared byte by byte, and the statistics of both ends say that the rings carried them.

Each test records its verdict as the property `service`; scripts/services.sh makes the table of the README from these.
"""

import json
import tempfile
import pathlib
import shutil

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, Combo, Stats, make_file, sha256
from needs import built, need
from servers import Gunicorn, GunicornSync, JavaHttp, Nginx, NodeHttp, Proxied, Uvicorn, UvicornUvloop

SIZES = {"f0": 0, "f1": 1, "f1k": 1000, "f64k": 65536, "f100k": 100_000, "f2m": 2_000_000}
ECHOES = (1, 1000, 65_536, 1_000_000)
WARM = 40  # requests until a connection has surely been upgraded
GOT, SENT = sum(SIZES.values()), sum(ECHOES)

# Server → what it needs, whether it answers POST /echo, the `comm`s of its processes front to back.
PYTHON_COMM = {"gunicorn": "gunicorn", "uvicorn": "python3"}
SERVERS = {
    "nginx": ((), Nginx),
    "node": ((), NodeHttp),
    "gunicorn gthread": (("gunicorn",), Gunicorn),
    "uvicorn asyncio": (("uvicorn",), Uvicorn),
    "uvicorn uvloop": (("uvicorn", "uvloop"), UvicornUvloop),
    "Java HttpServer": (("java",), JavaHttp),
}
BEHIND_NGINX = {
    "nginx → node": ((), NodeHttp),
    "nginx → gunicorn sync": (("gunicorn",), GunicornSync),
    "nginx → gunicorn gthread": (("gunicorn",), Gunicorn),
    "nginx → uvicorn asyncio": (("uvicorn",), Uvicorn),
    "nginx → uvicorn uvloop": (("uvicorn", "uvloop"), UvicornUvloop),
}
ALL_SERVERS = [*SERVERS, *BEHIND_NGINX]
CLIENTS = {
    "curl": (), "Python http.client": (), "node": (), "requests": ("requests",), "httpx": ("httpx",), "aiohttp": ("aiohttp",),
    "Java HttpClient": ("java",),
}  # fmt: skip


@pytest.fixture(scope="session")
def root():
    """The files that every server serves."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="mpklink-services-"))
    directory.chmod(0o755)
    for name, size in SIZES.items():
        make_file(directory / name, size)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def java_classes(tmp_path_factory):
    return tmp_path_factory.mktemp("java")


def use_java(classes) -> None:
    classes.parent.chmod(0o755)
    built("Http.java", str(classes), "javac", "-d", str(classes))
    JavaHttp.classes = classes


# ---- asking ------------------------------------------------------------------------------------------------------------------


def items(echoes: bool) -> list:
    return ["/f1"] * WARM + [f"/{name}" for name in SIZES] + [f"+{size}" for size in ECHOES if echoes] + ["/f1"]


def wanted(asked, root) -> list:
    sums = {f"/{name}": f"200 {size} {sha256(root / name)}" for name, size in SIZES.items()}
    return [sums.get(item) or f"200 {item[1:]} echo" for item in asked]


def ask_by_curl(bench, url, asked) -> list:
    """curl keeps no sums: what it fetched is in files, which are looked at here."""
    argv, places = [], []
    for number, item in enumerate(asked):
        sent, got = bench.dir / f"sent-{number}", bench.dir / f"got-{number}"
        places.append((item, sent, got))
        argv += ["--next"] if argv else []
        argv += ["-sS", "-H", "Expect:", "-w", "%{http_code}\\n", "-o", got]
        if item.startswith("+"):
            make_file(sent, int(item[1:]))
            argv += ["--data-binary", f"@{sent}", url("/echo")]
        else:
            argv += [url(item)]
    codes = bench.run(["curl", *argv], CLIENT, timeout_s=60).split()
    lines = []
    for code, (item, sent, got) in zip(codes, places):
        size = got.stat().st_size if got.exists() else 0
        if item.startswith("+"):
            lines.append(f"{code} {size} {'echo' if sha256(sent) == sha256(got) else 'other bytes'}")
        else:
            got.touch()
            lines.append(f"{code} {size} {sha256(got)}")
    return lines


def ask(bench, client, url, asked, classes) -> list:
    """What the client printed: a line per item."""
    if client == "curl":
        return ask_by_curl(bench, url, asked)
    program = {
        "node": ["node", SCRIPTS / "services" / "http.js", "client"],
        "Java HttpClient": ["java", "-XX:TieredStopAtLevel=1", "-cp", classes, "Http", "client"],
        "Python http.client": [PYTHON, SCRIPTS / "services" / "client.py", "stdlib"],
    }.get(client, [PYTHON, SCRIPTS / "services" / "client.py", client])
    return bench.run([*program, url(), *asked], CLIENT, timeout_s=60).splitlines()


# ---- judging -----------------------------------------------------------------------------------------------------------------


def assert_carried(stats: Stats, who: str, got: int, sent: int) -> None:
    """All that was asked after the warm-up went through rings."""
    assert stats.upgraded >= 1, f"{who} upgraded nothing\n{stats}"
    assert stats.ring_rx >= got, f"{who} took {stats.ring_rx} bytes out of rings, want {got}\n{stats}"
    assert stats.ring_tx >= sent, f"{who} put {stats.ring_tx} bytes into rings, want {sent}\n{stats}"


def assert_only(stats: Stats, who: str, reason: str) -> None:
    assert set(stats.plain) == {reason}, f"{who} stayed on TCP for another reason than {reason}\n{stats}"


def part(stats: Stats, nginx: bool) -> Stats:
    """nginx's processes, or those of the server behind it."""
    return Stats([line for line in stats.lines if (line["comm"] == "nginx") is nginx])


def judge_backend(stats: Stats, server: str, got: int, sent: int) -> None:
    """Of the connections between nginx and what is behind it; both are preloaded."""
    if server == "nginx → gunicorn sync":  # one request per connection
        assert_only(part(stats, nginx=False), server, "short-lived")
        return
    assert_carried(part(stats, nginx=False), server, sent, got)
    assert not part(stats, nginx=False).plain, stats


def judge(bench, server: str, echoes: bool) -> str:
    """The verdict on the connection between client and server, as the table says it."""
    sent = SENT if echoes else 0
    got = GOT + sent
    behind = server in BEHIND_NGINX
    bench.assert_gates()
    if bench.combo.preloads(SERVER):
        stats = bench.stats(SERVER)
        if behind:
            judge_backend(stats, server, got, sent)
        front = part(stats, nginx=True) if behind else stats
    if bench.combo is Combo.CLIENT:
        bench.assert_not_used(CLIENT)
        assert_only(bench.stats(CLIENT), "the client", "peer-absent")
        return "TCP (peer-absent)"
    if bench.combo is Combo.SERVER:
        assert "peer-absent" in front.plain, f"{server}: the client's connection is not accounted for\n{front}"
        if not behind:
            bench.assert_not_used(SERVER)
            assert_only(stats, server, "peer-absent")
        return "TCP (peer-absent)"
    client = bench.stats(CLIENT)
    assert_carried(client, "the client", got, sent)
    assert client.upgraded == 1 and not client.plain, f"the client did not keep its one connection\n{client}"
    if not behind:
        assert_carried(front, server, sent, got)
        assert not front.plain, front
    else:  # nginx has the client's bytes and, unless the server behind closes each connection, the same once more
        times = 1 if server == "nginx → gunicorn sync" else 2
        assert_carried(front, server, (times - 1) * got + sent, got + (times - 1) * sent)
    return "ring"


def run_pair(bench, record_property, root, java_classes, server: str, client: str) -> None:
    needed, kind = {**SERVERS, **BEHIND_NGINX}[server]
    need(*needed, *CLIENTS[client])
    if "java" in (*needed, *CLIENTS[client]):
        use_java(java_classes)
    echoes = server != "nginx"
    running = Proxied(bench, root, kind) if server in BEHIND_NGINX else kind(bench, root)
    url = (lambda path="": running.url(path or "/")) if kind is Nginx else running.url
    asked = items(echoes)
    assert ask(bench, client, url, asked, java_classes) == wanted(asked, root)
    running.stop()
    verdict = judge(bench, server, echoes)
    record_property("service", json.dumps({"server": server, "client": client, "preloaded": bench.combo.value, "verdict": verdict}))


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("server", ALL_SERVERS)
def test_both(bench, record_property, root, java_classes, server, client):
    run_pair(bench, record_property, root, java_classes, server, client)


@pytest.mark.parametrize("combo", [Combo.CLIENT, Combo.SERVER], ids=lambda combo: combo.value)
@pytest.mark.parametrize("server", ALL_SERVERS)
def test_one_end(bench, record_property, root, java_classes, server):
    """The end without the library notices nothing; the other one says why it stayed on TCP. Each client has its turn."""
    client = list(CLIENTS)[ALL_SERVERS.index(server) % len(CLIENTS)]
    run_pair(bench, record_property, root, java_classes, server, client)
