# SPDX-License-Identifier: MIT
"""What the tests of other people's services share: the files that are served, the clients that ask for them, the verdicts on what carried them."""

import pathlib
import shutil
import tempfile

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, Stats, make_file, sha256
from needs import built

SIZES = {"f0": 0, "f1": 1, "f1k": 1000, "f64k": 65536, "f100k": 100_000, "f2m": 2_000_000}
ECHOES = (1, 1000, 65_536, 1_000_000)
WARM = 40  # requests until a connection has surely been upgraded
ALONE = 300  # … until it is clear that the peer has no library: before, the reason would be short-lived (preload/rendezvous_step.cc)
GOT, SENT = sum(SIZES.values()), sum(ECHOES)
PROGRAMS = SCRIPTS / "services"

# pytest warns of properties of test cases, which JUnit's newest schema does not have; scripts/figures.py reads them.
RECORDS = pytest.mark.filterwarnings("ignore:record_property is incompatible")

# Client → what it needs besides what scripts/setup.sh installs.
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
def classes(tmp_path_factory):
    """Where Http.class comes to be, once a test needs it."""
    return tmp_path_factory.mktemp("java")


# ---- asking ------------------------------------------------------------------------------------------------------------------


def items(echoes: bool, warm=WARM) -> list:
    """What is asked over one connection: warm-up, then every size, then bodies that come back."""
    return ["/f1"] * warm + [f"/{name}" for name in SIZES] + [f"+{size}" for size in ECHOES if echoes] + ["/f1"]


def wanted(asked, root) -> list:
    sums = {f"/{name}": f"200 {size} {sha256(root / name)}" for name, size in SIZES.items()}
    return [sums.get(item) or f"200 {item[1:]} echo" for item in asked]


def ask(bench, client, url, asked, classes=None, ca=None) -> list:
    """A line per item: status, size, and the checksum or the word `echo`."""
    if client == "curl":
        return ask_by_curl(bench, url, asked, ca)
    if client == "Java HttpClient":
        built("Http.java", str(classes), "javac", "-d", str(classes))
        argv = ["java", "-XX:TieredStopAtLevel=1", "-cp", classes, "Http", "client"]
    elif client == "node":
        argv = ["node", PROGRAMS / "http.js", "client"]
    else:
        argv = [PYTHON, PROGRAMS / "client.py", "stdlib" if client == "Python http.client" else client]
    return bench.run([*argv, *(["--ca", ca] if ca else []), url, *asked], CLIENT, timeout_s=60).splitlines()


def ask_by_curl(bench, url, asked, ca) -> list:
    """curl keeps no sums: what it fetched is in files, which are looked at here."""
    argv, lines = ["curl"], []
    for number, item in enumerate(asked):
        argv += [*(["--next"] if number else []), "-sS", "-H", "Expect:", "-w", "%{http_code}\\n", "-o", bench.dir / f"got-{number}"]
        argv += ["--cacert", ca] if ca else []
        if item.startswith("+"):
            make_file(bench.dir / f"sent-{number}", int(item[1:]))
            argv += ["--data-binary", f"@{bench.dir}/sent-{number}", f"{url}/echo"]
        else:
            argv += [f"{url}{item}"]
    codes = bench.run(argv, CLIENT, timeout_s=60).split()
    for number, (item, code) in enumerate(zip(asked, codes)):
        got = bench.dir / f"got-{number}"
        got.touch()  # curl makes none for an empty body
        same = item.startswith("+") and sha256(bench.dir / f"sent-{number}") == sha256(got)
        lines.append(f"{code} {got.stat().st_size} {'echo' if same else sha256(got)}")
    return lines


# ---- judging -----------------------------------------------------------------------------------------------------------------


def assert_carried(stats: Stats, who: str, received: int, sent: int) -> None:
    """At least so many bytes went through rings."""
    assert stats.upgraded >= 1, f"{who} upgraded nothing\n{stats}"
    assert stats.ring_rx >= received, f"{who} took {stats.ring_rx} bytes out of rings, want {received}\n{stats}"
    assert stats.ring_tx >= sent, f"{who} put {stats.ring_tx} bytes into rings, want {sent}\n{stats}"


# They end with their connection open. One that has not been given up by then has no reason in the statistics.
LEAVES_OPEN = ("Java HttpClient", "redis-cli")


def assert_only(stats: Stats, who: str, reason: str) -> None:
    found = set(stats.plain) | ({reason} if who in LEAVES_OPEN else set())
    assert found == {reason}, f"{who}: not all that stayed on TCP did so for {reason}\n{stats}"
