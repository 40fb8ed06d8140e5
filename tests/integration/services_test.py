# SPDX-License-Identifier: MIT
"""Other people's HTTP servers and clients, each with each: nginx, gunicorn, uvicorn, node and Java, alone and behind nginx, asked by curl, node,
Java, requests, httpx and aiohttp. The answers are compared byte by byte, and the statistics of both ends say that the rings carried them.

Each test records its verdict as the property `service`, of which scripts/services.sh makes the table of the README.
"""

import json

import pytest

from harness import CLIENT, SERVER, Combo, Stats
from needs import built, need
from servers import Gunicorn, GunicornSync, JavaHttp, Nginx, NodeHttp, Proxied, Uvicorn, UvicornUvloop
from services import ALONE, CLIENTS, GOT, RECORDS, SENT, WARM, ask, assert_carried, assert_only, classes, items, root, wanted  # noqa: F401

pytestmark = RECORDS

# Server → what it needs besides what scripts/setup.sh installs, and how it is started.
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
    "nginx → Java HttpServer": (("java",), JavaHttp),
}
ALL_SERVERS = [*SERVERS, *BEHIND_NGINX]
CLOSES_EACH = "nginx → gunicorn sync"  # the server behind closes a connection after its first answer


def part(stats: Stats, nginx: bool) -> Stats:
    """nginx's processes, or those of the server behind it."""
    return Stats([line for line in stats.lines if (line["comm"] == "nginx") is nginx])


def judge_backend(stats: Stats, server: str, got: int, sent: int) -> str:
    """The verdict on the connections between nginx and what is behind it, as the latter counts them. Both are preloaded."""
    if server == CLOSES_EACH:
        assert_only(stats, server, "short-lived")
        return "TCP (short-lived)"
    assert_carried(stats, server, sent, got)
    assert not stats.plain, f"{server}: a connection to the server behind was not upgraded\n{stats}"
    return "ring"


def judge_one_end(bench, server: str, client: str) -> str:
    """The end that is preloaded says why it stayed on TCP."""
    side = CLIENT if bench.combo is Combo.CLIENT else SERVER
    stats = bench.stats(side)
    if side is SERVER and server in BEHIND_NGINX:
        front = part(stats, nginx=True)
        assert "peer-absent" in front.plain, f"nginx does not account for the client's connection\n{front}"
        assert set(front.plain) <= {"peer-absent", *(("short-lived",) if server == CLOSES_EACH else ())}, front
    else:
        bench.assert_not_used(side)
        assert_only(stats, client if side is CLIENT else server, "peer-absent")
    return "TCP (peer-absent)"


def judge_both(bench, server: str, got: int, sent: int) -> str:
    """The client kept one connection, and both of its ends say that its ring carried all that was asked after the warm-up."""
    client = bench.stats(CLIENT)
    assert_carried(client, "the client", got, sent)
    assert client.upgraded == 1 and not client.plain, f"the client did not keep its one connection\n{client}"
    if server in BEHIND_NGINX:  # nginx has the same bytes once more, in the other direction, with the server behind it
        once_more = server != CLOSES_EACH
        assert_carried(part(bench.stats(SERVER), nginx=True), server, sent + once_more * got, got + once_more * sent)
    else:
        assert_carried(bench.stats(SERVER), server, sent, got)
        assert not bench.stats(SERVER).plain, bench.stats(SERVER)
    return "ring"


def judge(bench, server: str, client: str, echoes: bool) -> dict:
    """What the table is made of."""
    sent = SENT if echoes else 0
    got = GOT + sent
    bench.assert_gates()
    found = {}
    if server in BEHIND_NGINX and bench.combo.preloads(SERVER):
        found["behind"] = judge_backend(part(bench.stats(SERVER), nginx=False), server, got, sent)
    found["verdict"] = judge_both(bench, server, got, sent) if bench.combo is Combo.BOTH else judge_one_end(bench, server, client)
    return found


def run_pair(bench, record_property, root, classes, server: str, client: str) -> None:
    needed, kind = {**SERVERS, **BEHIND_NGINX}[server]
    need(*needed, *CLIENTS[client])
    if kind is JavaHttp:
        built("Http.java", str(classes), "javac", "-d", str(classes))
        JavaHttp.classes = classes
    running = Proxied(bench, root, kind) if server in BEHIND_NGINX else kind(bench, root)
    echoes = kind is not Nginx
    asked = items(echoes, WARM if bench.combo is Combo.BOTH else ALONE)
    assert ask(bench, client, running.url("").rstrip("/"), asked, classes) == wanted(asked, root)
    running.stop()
    found = judge(bench, server, client, echoes)
    record_property("service", json.dumps({"server": server, "client": client, "preloaded": bench.combo.value, **found}))


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("server", ALL_SERVERS)
def test_both(bench, record_property, root, classes, server, client):  # noqa: F811
    run_pair(bench, record_property, root, classes, server, client)


@pytest.mark.parametrize("combo", [Combo.CLIENT, Combo.SERVER], ids=lambda combo: combo.value)
@pytest.mark.parametrize("server", ALL_SERVERS)
def test_one_end(bench, record_property, root, classes, server):  # noqa: F811
    """The end without the library notices nothing; the other one says why it stayed on TCP. Each client has its turn."""
    client = list(CLIENTS)[ALL_SERVERS.index(server) % len(CLIENTS)]
    run_pair(bench, record_property, root, classes, server, client)
