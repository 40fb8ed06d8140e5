# SPDX-License-Identifier: MIT
"""What is measured: the suites and their cells."""

from cells import FREE, MEDIAN_LATENCY, NO_RATIO, ONE_CORE, Cell, Comparison
from iperf import Iperf
from modes import BOTH_AND_ONE_END
from other_services import APPS, CrossedGrpc, Fetch, WrkService
from redis_load import Redis
from traffic import Churn, FixedRate, Gateway, Grpc, Idle, Many, PingPong, Stream
from web import H2load, Wrk

HTTP_BODIES = (100, 1000, 10_000, 100_000)
WAYS_TO_WAIT = ("blocking", "poll", "epoll")
IDLE_CONNECTIONS, QUICK_IDLE_CONNECTIONS = 2000, 200


def size(count):
    if count >= 1_000_000 and count % 1_000_000 == 0:
        return f"{count // 1_000_000} MB"
    if count >= 1024 and count % 1024 == 0:
        return f"{count // 1024} KiB"
    return f"{count // 1000} KB" if count >= 1000 and count % 1000 == 0 else f"{count} B"


def nginx():
    for connections in (1, 4, 16, 64, 256, 1000):
        yield Cell("nginx", f"c={connections}", Wrk(connections, 100), quick=connections in (1, 16, 64))
    for body in HTTP_BODIES[1:]:
        yield Cell("nginx", f"c=16, {size(body)}", Wrk(16, body), quick=body == HTTP_BODIES[-1])
    yield Cell("nginx", "c=16, Connection: close", Wrk(16, 100, close=True), upgrade_expected=False)
    yield Cell("nginx", "c=64, 2 workers", Wrk(64, 100, workers=2))


def redis():
    for test in ("get", "set"):
        for connections in (1, 50):
            for pipeline in (1, 16):
                for length in (64, 4096):
                    quick = (connections, pipeline, length) in ((1, 1, 64), (50, 16, 64)) and test == "get"
                    quick = quick or (test, connections, pipeline, length) == ("set", 50, 1, 4096)
                    name = f"{test}, c={connections}, P={pipeline}, {size(length)}"
                    yield Cell("redis", name, Redis(test, connections, pipeline, length), quick=quick)


def pingpong():
    for mode in WAYS_TO_WAIT:
        for length in (64, 1024, 16384, 65536):
            quick = (mode, length) in (("blocking", 64), ("epoll", 64), ("epoll", 16384))
            yield Cell("pingpong", f"{size(length)}, {mode}", PingPong(length, mode), quick=quick)


def fixed_rate():
    rates = {}
    for share in (0.25, 0.5, 0.75):
        workload = FixedRate(64, "epoll", share, rates)
        yield Cell("fixed-rate", f"pingpong, 64 B, epoll, {share:.0%} of TCP", workload, quick=True, ratio_of=MEDIAN_LATENCY)
    yield Cell("fixed-rate", "nginx, c=16, 50% of TCP", H2load(16, 100, 0.5), ratio_of=MEDIAN_LATENCY)


def streaming():
    for streams in (1, 4):
        for length in (1024, 4096, 16384, 65536, 262144):
            quick = (streams, length) in ((1, 4096), (1, 65536), (4, 65536))
            yield Cell("streaming", f"{size(length)}, {streams} stream{'s' if streams > 1 else ''}", Stream(length, streams), quick=quick)
    for length in ("4K", "128K"):
        yield Cell("streaming", f"iperf3, -l {length}", Iperf(length), quick=length == "128K")


def churn():
    yield Cell("churn", "connect, 64 B, close", Churn(), quick=True, upgrade_expected=False)


def many():
    yield Cell("many", "100 busy of 100", Many(100, 100), quick=True)
    yield Cell("many", "100 busy of 10000", Many(10_000, 100))
    yield Cell("many", "100 busy of 1000", Many(1000, 100), quick=True)
    yield Cell("many", "one client, 100 services", Gateway(100, 200))


def idle():
    modes = ("tcp", "mpklink")
    yield Cell("idle", f"{IDLE_CONNECTIONS} connections", Idle(IDLE_CONNECTIONS), modes, ratio_of=NO_RATIO)
    yield Cell("idle", f"{QUICK_IDLE_CONNECTIONS} connections", Idle(QUICK_IDLE_CONNECTIONS), modes, quick=True, ratio_of=NO_RATIO)


def rpc():
    yield Cell("rpc", "REST, nginx, 100 B", Wrk(1, 100), quick=True)
    yield Cell("rpc", "gRPC, unary, 100 B", Grpc(100), quick=True)


def matrix():
    """Never slower than TCP, wherever the processes run and whether the other end is there or not."""
    workloads = {
        "nginx, c=1": (Wrk(1, 100), {"quick": True}),
        "nginx, c=16": (Wrk(16, 100), {}),
        "redis, get, c=1": (Redis("get", 1, 1, 64), {}),
        "redis, get, c=50": (Redis("get", 50, 1, 64), {"quick": True}),
        "pingpong, 64 B, blocking": (PingPong(64, "blocking"), {"quick": True}),
        "pingpong, 64 B, epoll": (PingPong(64, "epoll"), {"quick": True}),
        "stream, 4 KiB": (Stream(4096, 1), {}),
        "stream, 64 KiB": (Stream(65536, 1), {"quick": True}),
        "churn": (Churn(), {"quick": True, "upgrade_expected": False}),
        "gRPC, 100 B": (Grpc(100), {"quick": True}),
    }
    for placement in (ONE_CORE, FREE):
        for name, (workload, special) in workloads.items():
            yield Cell("matrix", f"{name}, {placement}", workload, BOTH_AND_ONE_END, placement=placement, **special)


PAPER_SIZES = (100, 1000, 10_000, 100_000, 1_000_000)


def paper():
    """The comparison of the MPKLink paper: a REST call and a gRPC call, one after the other over one connection, by the size of the message."""
    for length in PAPER_SIZES:
        quick = length in (100, 10_000)
        yield Cell("paper", f"REST, {size(length)}", Wrk(1, length), ("tcp", "mpklink", "guard-off"), quick=quick)
    for length in PAPER_SIZES:
        quick = length in (100, 10_000)
        yield Cell("paper", f"gRPC, {size(length)}", Grpc(length), ("tcp", "unix", "mpklink", "guard-off"), quick=quick)


def services():
    """What other people's servers and clients gain."""
    workloads = {f"wrk → {app}": WrkService(app) for app in APPS}
    workloads.update({f"wrk → nginx → {app}": WrkService(app, proxied=True) for app in APPS})
    workloads["wrk → nginx, TLS"] = WrkService(tls=True)
    workloads.update({f"{library} → nginx": Fetch(library) for library in ("stdlib", "requests", "httpx", "aiohttp", "Java")})
    workloads.update({f"gRPC, {client} → {server}": CrossedGrpc(server, client) for server in ("C++", "Python") for client in ("C++", "Python")})
    for name, workload in workloads.items():
        yield Cell("services", name, workload, ("tcp", "mpklink"), quick=name in ("wrk → node", "wrk → nginx → node", "stdlib → nginx"))


SUITES = {
    "nginx": nginx, "redis": redis, "pingpong": pingpong, "fixed-rate": fixed_rate, "streaming": streaming, "churn": churn, "many": many,
    "idle": idle, "rpc": rpc, "matrix": matrix, "paper": paper, "services": services,
}  # fmt: skip
# Only when they are asked for: they measure what others do again, or need packages of their own (scripts/services.sh installs them).
NAMED_ONLY = ("paper", "services")

COMPARISONS = [
    *(
        Comparison("many", f"{mode}: with {rest} idle connections besides, against without", f"100 busy of {all_of_them}", mode,
                   "100 busy of 100", mode)
        for all_of_them, rest in ((1000, 900), (10_000, 9900))
        for mode in ("tcp", "mpklink")
    ),
    Comparison("rpc", "REST over mpklink against gRPC over TCP, calls per second", "REST, nginx, 100 B", "mpklink", "gRPC, unary, 100 B", "tcp"),
    Comparison("rpc", "REST over TCP against gRPC over TCP, calls per second", "REST, nginx, 100 B", "tcp", "gRPC, unary, 100 B", "tcp"),
    Comparison("rpc", "the same by median latency, REST over mpklink", "REST, nginx, 100 B", "mpklink", "gRPC, unary, 100 B", "tcp", MEDIAN_LATENCY),
]  # fmt: skip


def cells_of(names, quick, pattern):
    """Those of the suites named, in order; all but NAMED_ONLY when none is named. A pattern takes any cell whose full name it matches."""
    chosen = [cell for name in names or [name for name in SUITES if name not in NAMED_ONLY] for cell in SUITES[name]()]
    if pattern is not None:
        return [cell for cell in chosen if pattern.search(cell.full_name)]
    return [cell for cell in chosen if cell.quick or not quick]
