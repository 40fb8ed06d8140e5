# SPDX-License-Identifier: MIT
"""Who the peer is: users, strangers on the rendezvous name, sockets that change hands, namespaces. Whoever is meant is met over the
ring, whoever is not is served by TCP with a reason, and connections are never mixed up."""

import functools
import os
import re
import signal
import subprocess

import pytest

from harness import CLIENT, PROGRAMS, PYTHON, SCRIPTS, SERVER, Bench, Combo, free_port
from servers import Nginx

OTHER_UID = 12345  # nobody's account; not 65534, which is the overflow uid
THIRD_UID = 12346
OVERFLOW_UID = 65534

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to run processes as other users")
only_both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
neither_and_both = pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=["neither", "both"])
either_uid = pytest.mark.parametrize("uid", [0, OTHER_UID], ids=["same-uid", "other-uid"])

# A process as in a container that shares the network of others, as those of a pod do: pid 1 of its own, its own mounts and /proc.
POD = ["unshare", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--mount", "--mount-proc"]
FAKE_ROOT = ["unshare", "--user", "--map-root-user"]  # of whoever starts it
NO_USER = ["unshare", "--user"]  # nobody is mapped: everybody is the overflow uid there
IDLE_NETWORK = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo READY && exec sleep 300"]


@functools.lru_cache
def refusal(prefix) -> str:
    """Why `prefix`, an unshare command line, does not work here; empty when it does."""
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def needs(prefix) -> None:
    """Skips, with the reason, where namespaces cannot be had."""
    why = refusal(tuple(prefix))
    if why:
        pytest.skip(f"{' '.join(prefix)}: {why}")


def load(nginx, *options) -> list:
    return [PYTHON, SCRIPTS / "http_load.py", f"--port={nginx.port}", "--path=/hello", "--body=hello\n", *options]


def owners(role, tag, *options) -> list:
    return [PYTHON, SCRIPTS / "owners.py", role, tag, *options]


def run_owners(bench, *, server=(), client=(), server_prefix=(), client_prefix=(), server_uid=None, client_uid=None, server_settings=None, tag="A") -> None:
    """A pair of owners.py until both have succeeded."""
    s = bench.start([*server_prefix, *owners("server", tag, *server)], SERVER, name=f"server-{tag}", uid=server_uid, settings=server_settings)
    c = bench.start([*client_prefix, *owners("client", tag, f"--port={s.port()}", *client)], CLIENT, name=f"client-{tag}", uid=client_uid)
    bench.succeed(c)
    bench.succeed(s)


def assert_refused(bench, reason, side=None) -> None:
    """Nothing went over a ring, and `side` (None: either) counted `reason`."""
    bench.assert_fell_back()
    sides = [s for s in bench.sides() if side in (None, s)]
    counted = sum(bench.stats(s).plain[reason] for s in sides)
    assert counted >= 1 or not sides, f"{reason} was not counted\n{bench.stats(CLIENT)}\n{bench.stats(SERVER)}"


# ---- users: MPKLINK_PEERS ------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("uid", [0, OTHER_UID, 33, OVERFLOW_UID], ids=["root", "other", "www-data", "nobody"])
def test_users(bench, docroot, uid):
    """nginx started by root with workers as www-data: clients of any uid are upgraded by default."""
    nginx = Nginx(bench, docroot.dir, user="www-data")
    bench.run(load(nginx, "--connections=2", "--requests=200"), CLIENT, uid=uid)
    nginx.stop()
    bench.assert_ring(streams=2, min_bytes=20_000, exact=True, conserved=True)


@needs_root
@pytest.mark.no_ring
@only_both
@pytest.mark.parametrize(
    "uid,peers", [(OTHER_UID, "same-uid"), (0, "same-uid"), (OTHER_UID, "0,33")],
    ids=["other-same-uid", "root-same-uid", "other-not-listed"],
)  # fmt: skip
def test_users_refused(bench, docroot, uid, peers):
    """Peers that the policy refuses stay on TCP, and the statistics say that there was a reason."""
    if peers:
        bench.settings = {"PEERS": peers}
    nginx = Nginx(bench, docroot.dir, user="www-data")
    bench.run(load(nginx, "--connections=2", "--requests=300"), CLIENT, uid=uid)
    nginx.stop()
    bench.assert_fell_back()


@needs_root
@only_both
@pytest.mark.parametrize("uid,peers", [(OTHER_UID, f"33,{OTHER_UID}"), (33, "same-uid"), (OTHER_UID, "any")], ids=["listed", "same-uid", "any"])
def test_users_allowed(bench, docroot, uid, peers):
    bench.settings = {"PEERS": peers}
    nginx = Nginx(bench, docroot.dir, user="www-data")
    bench.run(load(nginx, "--connections=2", "--requests=200"), CLIENT, uid=uid)
    nginx.stop()
    bench.assert_ring(streams=2, min_bytes=20_000, exact=True)


@needs_root
@only_both
@pytest.mark.parametrize("uid,peers", [(OTHER_UID, None), (33, None), (OTHER_UID, f"33,{OTHER_UID}")], ids=["other", "same", "listed"])
def test_owner_unknown(bench, docroot, uid, peers):
    """Where the kernel does not tell who owns the other end, its own user and those that are named are believed, others not, and that is said."""
    bench.preload_last.append(PROGRAMS / "libno_netlink.so")
    if peers:
        bench.settings = {"PEERS": peers}
    nginx = Nginx(bench, docroot.dir, user="www-data")
    bench.run(load(nginx, "--connections=2", "--requests=300"), CLIENT, uid=uid)
    nginx.stop()
    if uid == 33 or peers:
        bench.assert_ring(streams=2, min_bytes=20_000, exact=True)
    else:
        bench.assert_fell_back()
        assert sum(bench.stats(side).plain.get("peer-unknown", 0) for side in (CLIENT, SERVER)) >= 2


# ---- sockets that change hands -------------------------------------------------------------------------------------------
# A listener that root made and that workers of another user accept on (nginx) is test_users.


@needs_root
@pytest.mark.no_ring
@neither_and_both
@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["client", "server"])
def test_user_changes_after_the_socket_was_made(bench, who):
    """The socket is root's, its user no longer is: whoever owns the one is not who answers for it."""
    changes = {who.value: [f"--uid-after={OTHER_UID}"]}
    run_owners(bench, **changes)
    other = SERVER if who is CLIENT else CLIENT
    assert_refused(bench, "peer-uid", other if bench.combo is Combo.BOTH else None)


@needs_root
@only_both
@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["client", "server"])
def test_user_changes_and_any_is_believed(bench, who):
    """It is the check that refuses: without it the same pair meets."""
    bench.settings = {"PEERS": "any"}
    run_owners(bench, **{who.value: [f"--uid-after={OTHER_UID}"]})
    bench.assert_ring(streams=1, min_bytes=20_000, exact=True, conserved=True)


@needs_root
@neither_and_both
@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["client", "server"])
def test_user_changes_on_the_ring(bench, who):
    """A stream that has been upgraded stays so when its process becomes another user."""
    run_owners(bench, **{who.value: [f"--uid-after={OTHER_UID}", "--change-at=100"]})
    bench.assert_ring(streams=1, min_bytes=20_000, exact=True, conserved=True)


@needs_root
@pytest.mark.no_ring
@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["client", "server"])
def test_passed_to_another_user(bench, who):
    """A connection that is passed to a process of another user stays on TCP, and somebody says why."""
    run_owners(bench, **{who.value: [f"--pass-to={OTHER_UID}"]})
    bench.assert_fell_back()


# ---- user namespaces -----------------------------------------------------------------------------------------------------


@needs_root
@neither_and_both
@pytest.mark.parametrize("uid", [0, OTHER_UID], ids=["root", "other"])
@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["client", "server"])
def test_same_user_in_a_user_namespace(bench, who, uid):
    """One user, who is root in a namespace of his own at one end: both ends recognise him."""
    needs(FAKE_ROOT)
    run_owners(bench, **{f"{who.value}_prefix": FAKE_ROOT}, client_uid=uid, server_uid=uid)
    bench.assert_ring(streams=1, min_bytes=20_000, exact=True, conserved=True)


@needs_root
@pytest.mark.no_ring
@neither_and_both
@pytest.mark.parametrize("peers", ["verified", "same-uid", "0"])
def test_root_of_a_user_namespace_is_not_root(bench, peers):
    """`verified` believes that he is who he is, and he is another user for the others; for himself, root is nobody that he knows."""
    needs(FAKE_ROOT)
    run_owners(bench, client_prefix=FAKE_ROOT, client_uid=OTHER_UID, server_uid=0, server_settings={"PEERS": peers})
    assert_refused(bench, "peer-uid", CLIENT if peers == "verified" else None)


@needs_root
@pytest.mark.no_ring
@neither_and_both
@pytest.mark.parametrize("peers", ["verified", "same-uid", str(OVERFLOW_UID)])
@pytest.mark.parametrize("prefix", [FAKE_ROOT, NO_USER], ids=["fake-root", "no-user"])
def test_overflow_uid_is_nobody(bench, peers, prefix):
    """Where a namespace maps neither user, both look alike: the overflow uid, which is not believed, not even when it is named."""
    needs(prefix)
    run_owners(bench, server_prefix=prefix, server_uid=OTHER_UID, client_uid=THIRD_UID, server_settings={"PEERS": peers})
    assert_refused(bench, "peer-uid", SERVER)  # the client knows who the server is


# ---- pods: other pid and mount namespaces, one network -------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("inside", ["client", "server", "both"])
def test_pod(bench, inside):
    """Containers of a pod share the network and nothing else: they meet over the ring. With `both`, the two ends have the same pid."""
    needs(POD)
    prefixes = {f"{who}_prefix": POD for who in ("client", "server") if inside in (who, "both")}
    run_owners(bench, **prefixes)
    bench.assert_ring(streams=1, min_bytes=20_000, exact=True, conserved=True)


@needs_root
@only_both
def test_rootless_pod(bench):
    """The same of a user without rights, each end in a user namespace of its own as well."""
    prefix = [*FAKE_ROOT, *POD[1:]]
    needs(prefix)
    run_owners(bench, client_prefix=prefix, server_prefix=prefix, client_uid=OTHER_UID, server_uid=OTHER_UID)
    bench.assert_ring(streams=1, min_bytes=20_000, exact=True, conserved=True)


@needs_root
@only_both
def test_pod_without_proc(bench):
    hide = [*POD[:-1], "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    needs(hide)
    run_owners(bench, client_prefix=hide, server_prefix=hide)
    bench.assert_ring(streams=1, min_bytes=20_000, exact=True, conserved=True)


@needs_root
def test_pod_of_nginx(bench, docroot):
    """nginx with its workers (www-data) in one container, its client in another."""
    needs(POD)
    nginx = Nginx(bench, docroot.dir, user="www-data", workers=2)
    bench.run([*POD, *load(nginx, "--connections=4", "--requests=200")], CLIENT)
    nginx.stop()
    bench.assert_ring(streams=4, min_bytes=40_000, exact=True, conserved=True)


# ---- other networks ------------------------------------------------------------------------------------------------------


class Networks:
    """Two network namespaces, kept by a process each."""

    def __init__(self, bench):
        needs(["unshare", "--net"])
        self.files = []
        for name in "AB":
            keeper = bench.start(IDLE_NETWORK, name=f"network-{name}")
            keeper.wait_line("^READY$")
            self.files.append(f"/proc/{keeper.pid}/ns/net")
        self.keepers = bench.procs[-2:]

    def enter(self, i) -> list:
        return ["nsenter", f"--net={self.files[i]}", "--"]

    def close(self) -> None:
        for keeper in self.keepers:
            keeper.send_signal(signal.SIGKILL)
            keeper.wait()


def go_on(*paused) -> None:
    for proc in paused:
        proc.wait_line("^PAUSED$")
    for proc in paused:
        proc.stdin.write(b"\n")
        proc.stdin.close()


def twins(bench, networks, moves=(), rounds=5000):
    """Two connections with the same four numbers at the same time, one in each network; bytes of the one are an error in the other.
    `moves`: options of an end of the first pair, by role; its counterpart in the second pair is late, and leaves it the field."""
    port, source = free_port(), free_port()
    moves, servers, clients = dict(moves), [], []
    for i, tag in enumerate("AB"):
        mine = moves if i == 0 else {}
        options = [f"--port={port}", *mine.get("server", ())]
        late = {"WARMUP": 2000} if i == 1 and "server" in moves else {}
        servers.append(bench.start([*networks.enter(i), *owners("server", tag, *options)], SERVER, name=f"server-{tag}", settings=late))
    for i, tag in enumerate("AB"):
        mine = moves if i == 0 else {}
        servers[i].port()
        options = [f"--port={port}", f"--source-port={source}", "--pause-at=5", f"--rounds={rounds}", *mine.get("client", ())]
        late = {"WARMUP": 2000} if i == 1 and "client" in moves else {}
        argv = [*networks.enter(i), *owners("client", tag, *options)]
        clients.append(bench.start(argv, CLIENT, name=f"client-{tag}", stdin=subprocess.PIPE, settings=late))
    go_on(*clients)
    for proc in (*clients, *servers):
        bench.succeed(proc)
    networks.close()


@needs_root
def test_two_networks(bench):
    """127.0.0.1 with the same two ports, twice at once: each pair has its own ring."""
    twins(bench, Networks(bench))
    bench.assert_ring(streams=2, min_bytes=600_000, exact=True, conserved=True)


@needs_root
@neither_and_both
@pytest.mark.parametrize("who", ["client", "server"])
def test_socket_of_another_network(bench, who):
    """An end that has entered another network since it made its socket: there the same addresses are another connection, which waits for
    its own peer (a proxy that connects into containers does this). The two were mixed up once: uids and names were right."""
    networks = Networks(bench)
    twins(bench, networks, {who: [f"--netns-after={networks.files[1]}"]})
    if bench.combo is Combo.BOTH:
        stats = [bench.stats(side) for side in (CLIENT, SERVER)]
        assert max(s.upgraded for s in stats) <= 1, stats  # the pair that stayed at home
        refused = sum(s.plain["other-network"] for s in stats)
        assert refused >= 1, f"no reason\n{stats[0]}\n{stats[1]}"
    bench.assert_gates()


@needs_root
@only_both
@pytest.mark.parametrize("who", ["client", "server"])
def test_enters_another_network_on_the_ring(bench, who):
    """The stream stays on its ring, and the peer is not taken for dead because the kernel does not know it there."""
    networks = Networks(bench)
    run_owners(bench, **{who: [f"--netns-after={networks.files[0]}", "--change-at=100"]})
    networks.close()
    bench.assert_ring(streams=1, min_bytes=20_000, exact=True, conserved=True)
    assert bench.stats(CLIENT).revoked + bench.stats(SERVER).revoked == 0, f"{bench.stats(CLIENT)}\n{bench.stats(SERVER)}"


# ---- somebody else on the name -------------------------------------------------------------------------------------------


@functools.lru_cache
def discover_name() -> str:
    """How the rendezvous of a connection is called, with {connector} and {acceptor} for the two ports: seen in /proc/net/unix
    while a preloaded server waits for a peer that never comes."""
    bench = Bench(Combo.SERVER)
    try:
        server = bench.start([bench.program("echo_threads"), "server", "--connections=1"], SERVER, name="server")
        port, source = server.port(), free_port()
        client = bench.start(
            [bench.program("echo_threads"), "client", f"--port={port}", f"--source-port={source}", "--connections=1", "--pause-at=6"],
            CLIENT, name="client", stdin=subprocess.PIPE,
        )  # fmt: skip
        client.wait_line("^PAUSED$")
        with open("/proc/net/unix", encoding="latin-1") as file:
            names = re.findall(r"@(mpklink/\S*)", file.read())
        client.stdin.write(b"\n")
        client.stdin.close()
        bench.succeed(client)
        bench.succeed(server)
        ours = [n for n in names if f":{source}" in n and f":{port}" in n]
        assert len(ours) == 1, f"want one name with the ports {source} and {port}, see {names}"
        return ours[0].replace(f":{source}", ":{connector}").replace(f":{port}", ":{acceptor}")
    finally:
        bench.cleanup()


def echo_beside_squatter(bench, mode, uid):
    """An echo connection whose rendezvous name somebody has taken before: it stays on TCP, undisturbed."""
    template = discover_name()
    options = ["--connections=1", "--rounds=200", "--max-size=2000"]
    server = bench.start([bench.program("echo_threads"), "server", *options], SERVER, name="server")
    port, source = server.port(), free_port()
    squatter = bench.start(
        [PYTHON, SCRIPTS / "squatter.py", mode, template.format(connector=source, acceptor=port)], name="squatter", uid=uid or None
    )
    squatter.wait_line("^READY$")
    client = bench.start(
        [bench.program("echo_threads"), "client", f"--port={port}", f"--source-port={source}", *options], CLIENT, name="client"
    )
    bench.succeed(client)
    bench.succeed(server)
    assert squatter.running(), squatter.output()
    squatter.send_signal(signal.SIGKILL)
    squatter.wait()
    bench.assert_fell_back()


@needs_root
@pytest.mark.no_ring
@only_both
@either_uid
@pytest.mark.parametrize("mode", ["bind", "listen", "close", "garbage", "flood"])
def test_name_taken(bench, mode, uid):
    """Somebody has bound the name before: he is not believed, the stream stays on TCP and says why."""
    echo_beside_squatter(bench, mode, uid)
    assert bench.stats(SERVER).plain["name-taken"] == 1, bench.stats(SERVER)
    if uid != 0 and mode in ("listen", "close", "garbage", "flood"):  # nobody listens on a name that is only bound
        assert bench.stats(CLIENT).plain["peer-uid"] == 1, bench.stats(CLIENT)


@needs_root
@pytest.mark.no_ring
@pytest.mark.parametrize("combo", [Combo.SERVER], ids=["server"])
@either_uid
@pytest.mark.parametrize("mode", ["connect", "connect-garbage", "connect-close", "connect-flood"])
def test_stranger_connects(bench, mode, uid):
    """Somebody else connects to the acceptor's name and talks nonsense: the stream does not notice."""
    template = discover_name()
    server = bench.start([bench.program("echo_threads"), "server", "--connections=1"], SERVER, name="server")
    port, source = server.port(), free_port()
    client = bench.start(
        [bench.program("echo_threads"), "client", f"--port={port}", f"--source-port={source}", "--connections=1", "--pause-at=6"],
        CLIENT, name="client", stdin=subprocess.PIPE,
    )  # fmt: skip
    client.wait_line("^PAUSED$")
    squatter = bench.start(
        [PYTHON, SCRIPTS / "squatter.py", mode, template.format(connector=source, acceptor=port)], name="squatter", uid=uid or None
    )
    squatter.wait_line("^READY$")
    client.stdin.write(b"\n")
    client.stdin.close()
    bench.succeed(client)
    bench.succeed(server)
    squatter.send_signal(signal.SIGKILL)
    squatter.wait()
    bench.assert_not_used(SERVER)
    bench.assert_gates()


@needs_root
@pytest.mark.no_ring
@pytest.mark.parametrize("combo", [Combo.CLIENT], ids=["client"])
@either_uid
@pytest.mark.parametrize("mode", ["listen", "close", "garbage", "flood", "stream"])
def test_stranger_answers(bench, mode, uid):
    """The acceptor has no library, and somebody else listens in its place."""
    echo_beside_squatter(bench, mode, uid)
    if uid != 0 and mode != "stream":
        assert bench.stats(CLIENT).plain["peer-uid"] == 1, bench.stats(CLIENT)


@needs_root
@only_both
@either_uid
@pytest.mark.parametrize("mode", ["connect", "connect-garbage", "connect-close", "connect-flood", "connect-again"])
def test_stranger_comes_first(bench, mode, uid):
    """A stranger connects to the acceptor's name before the true peer does: he is sent away, and the true peer is met after him. One that
    comes again and again (connect-again), or has the right uid, can keep the stream on TCP, but no more."""
    template = discover_name()
    server = bench.start([bench.program("echo_threads"), "server", "--connections=1"], SERVER, name="server")
    port, source = server.port(), free_port()
    options = ["--connections=1", "--rounds=400", "--max-size=2000", "--pause-at=6"]
    client = bench.start(
        [bench.program("echo_threads"), "client", f"--port={port}", f"--source-port={source}", *options], CLIENT, name="client",
        stdin=subprocess.PIPE, settings={"WARMUP": 30},
    )  # fmt: skip
    client.wait_line("^PAUSED$")
    squatter = bench.start(
        [PYTHON, SCRIPTS / "squatter.py", mode, template.format(connector=source, acceptor=port)], name="squatter", uid=uid or None
    )
    squatter.wait_line("^READY$")
    go_on(client)
    bench.succeed(client)
    bench.succeed(server)
    squatter.send_signal(signal.SIGKILL)
    squatter.wait()
    if uid != 0 and mode != "connect-again":
        bench.assert_ring(streams=1, min_bytes=100_000, exact=True, conserved=True)
    bench.assert_gates()
