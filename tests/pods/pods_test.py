# SPDX-License-Identifier: MIT
"""deploy/kubernetes/pod.yaml, played as it is and with one thing changed at a time."""

import os
import subprocess

import images
from containers import Pod

REQUESTS = 1000
BODY_BYTES = REQUESTS * len("hello\n")


def container(manifest: dict, name: str) -> dict:
    return next(c for c in manifest["spec"]["containers"] if c["name"] == name)


def set_variable(manifest: dict, name: str, value: str, *containers) -> None:
    for each in containers:
        container(manifest, each)["env"].append({"name": name, "value": value})


def without(manifest: dict, *names) -> dict:
    manifest["spec"]["containers"] = [c for c in manifest["spec"]["containers"] if c["name"] not in names]
    return manifest


def finish(pod, *clients) -> None:
    """Every client has had its answers; then the server ends, which writes its statistics."""
    for client in clients:
        assert pod.wait(client) == 0, pod.logs(client)
        assert f"{REQUESTS} good answers" in pod.logs(client)
    pod.stop("server")


def ring_bytes(line: dict) -> int:
    return line["ring_tx_bytes"] + line["ring_rx_bytes"]


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def user(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


def musl_client(manifest: dict, command: list, **env) -> None:
    sidecar = container(manifest, "sidecar")
    sidecar.update(image=images.MUSL, command=command, args=["8080", str(REQUESTS)], env=[{"name": n, "value": v} for n, v in env.items()])
    sidecar["volumeMounts"] = container(manifest, "client")["volumeMounts"]


# ---- the manifest as it is -----------------------------------------------------------------------------------------------


def test_two_containers_of_a_pod_upgrade_and_the_third_is_served_by_tcp(play, manifest):
    pod = play(manifest)
    server = pod.pid("server")
    assert user(server) == 10001
    finish(pod, "client", "sidecar")
    client, server = pod.stats("client"), pod.stats("server")
    assert client["upgraded"] == 1 and ring_bytes(client) > BODY_BYTES, client
    # The sidecar's connection is the other of the server's two.
    assert server["upgraded"] == 1 and ring_bytes(server) == ring_bytes(client), server
    assert server["tcp_tx_bytes"] > BODY_BYTES, server
    assert not any(line.startswith('{"') for line in pod.logs("sidecar").splitlines()), "the sidecar ran with the library"


def test_containers_of_a_pod_have_one_network_and_else_their_own(play, manifest):
    """What differs (users, mounts, processes) and what is one (the network), so that the test above says what it seems to say."""
    container(manifest, "client")["args"] = ["import time; time.sleep(600)"]
    pod = play(without(manifest, "sidecar"))
    server, client = pod.pid("server"), pod.pid("client")
    assert namespace(server, "net") == namespace(client, "net") != namespace(os.getpid(), "net")
    for kind in ("mnt", "pid"):
        assert namespace(server, kind) != namespace(client, kind), kind
    assert (user(server), user(client)) == (10001, 10002)
    status = open(f"/proc/{server}/status").read()
    assert "Seccomp:\t2" in status and "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status, status


def test_containers_with_their_own_ipc_and_host_name_upgrade(podman, manifest):
    """As above, in a pod that shares its network and nothing else, as containers of one network do without Kubernetes (docker, compose)."""
    podman("volume", "create", "library")
    podman("run", "--rm", "--network=none", "--volume=library:/shared", images.OURS, "--copy-to", "/shared")
    podman("pod", "create", "--name=apart", "--share=net", "--network=none")
    try:
        pod = Pod(podman, "apart")
        for name, uid in (("server", 2001), ("client", 2002)):
            spec = container(manifest, name)
            podman("run", "--detach", "--pod=apart", f"--name={pod.full(name)}", f"--user={uid}", "--volume=library:/mpklink:ro",
                   "--env=MPKLINK_STATS=/dev/stderr", spec["image"], *spec["command"], *spec["args"])  # fmt: skip
        for kind in ("ipc", "uts", "mnt", "pid"):
            assert namespace(pod.pid("server"), kind) != namespace(pod.infra_pid(), kind), kind
        assert namespace(pod.pid("server"), "net") == namespace(pod.infra_pid(), "net")
        finish(pod, "client")
        assert pod.stats("client")["upgraded"] == 1 and ring_bytes(pod.stats("server")) > BODY_BYTES
    finally:
        podman("pod", "rm", "--force", "--time=5", "apart", check=False)
        podman("volume", "rm", "--force", "library", check=False)


# ---- by policy -----------------------------------------------------------------------------------------------------------


def test_a_policy_of_one_user_keeps_two_users_on_tcp(play, manifest):
    set_variable(manifest, "MPKLINK_PEERS", "same-uid", "server", "client")
    pod = play(without(manifest, "sidecar"))
    finish(pod, "client")
    client, server = pod.stats("client"), pod.stats("server")
    assert ring_bytes(client) == ring_bytes(server) == 0
    assert client["plain"].get("peer-uid", 0) + server["plain"].get("peer-uid", 0) >= 1, (client, server)


def test_a_policy_that_names_both_users_lets_them_meet(play, manifest):
    set_variable(manifest, "MPKLINK_PEERS", "10001,10002", "server", "client")
    pod = play(without(manifest, "sidecar"))
    finish(pod, "client")
    assert pod.stats("client")["upgraded"] == 1 and ring_bytes(pod.stats("server")) > BODY_BYTES


def test_the_profile_off_switches_the_library_off(play, manifest):
    container(manifest, "client")["envFrom"] = [{"configMapRef": {"name": "mpklink-off"}}]
    pod = play(without(manifest, "sidecar"))
    finish(pod, "client")
    assert "upgraded" not in pod.logs("client")
    assert pod.stats("server")["upgraded"] == 0


# ---- images that cannot have the library ---------------------------------------------------------------------------------


def test_a_musl_image_runs_untouched_through_the_entry(play, manifest):
    musl_client(manifest, ["/mpklink/mpklink-exec", "requests"], MPKLINK_LOG="warn")
    pod = play(without(manifest, "client"))
    finish(pod, "sidecar")
    log = pod.logs("sidecar")
    assert "LD_PRELOAD is not set" in log
    assert log.count("runs without libmpklink") == 1 and "musl" in log
    assert ring_bytes(pod.stats("server")) == 0


def test_the_same_musl_image_breaks_without_the_entry(play, manifest):
    """What the entry is for; and the image above is one that it matters for."""
    musl_client(manifest, ["requests"], LD_PRELOAD="/mpklink/libmpklink.so")
    pod = play(without(manifest, "client"))
    assert pod.wait("sidecar") == 127 and "good answers" not in pod.logs("sidecar")


# ---- two pods ------------------------------------------------------------------------------------------------------------


def join_networks(first: int, second: int) -> None:
    """A cable between two pods. Their addresses are 10.213.0.1 and 10.213.0.2."""
    subprocess.run(["ip", "link", "add", "mpk-a", "netns", str(first), "type", "veth", "peer", "name", "mpk-b", "netns", str(second)], check=True)
    for pid, name, address in ((first, "mpk-a", "10.213.0.1/24"), (second, "mpk-b", "10.213.0.2/24")):
        enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        subprocess.run([*enter, "address", "add", address, "dev", name], check=True)
        subprocess.run([*enter, "link", "set", name, "up"], check=True)


def test_two_pods_never_share_memory(play, manifest):
    text = container(manifest, "server")["args"][0].replace("127.0.0.1", "0.0.0.0")
    container(manifest, "server")["args"] = [text]
    container(manifest, "client")["args"] = [container(manifest, "client")["args"][0].replace("127.0.0.1", "10.213.0.1")]
    first = play({**without(dict(manifest, spec=dict(manifest["spec"])), "client", "sidecar"), "metadata": {"name": "first"}})
    # The client waits for its cable.
    second = play({**without(dict(manifest, spec=dict(manifest["spec"])), "server", "sidecar"), "metadata": {"name": "second"}})
    assert namespace(first.pid("server"), "net") != namespace(second.pid("client"), "net")
    join_networks(first.pid("server"), second.pid("client"))
    assert second.wait("client") == 0, second.logs("client")
    first.stop("server")
    client, server = second.stats("client"), first.stats("server")
    assert f"{REQUESTS} good answers" in second.logs("client") and server["tcp_tx_bytes"] > BODY_BYTES
    for line in (client, server):
        assert ring_bytes(line) == 0 and line["upgraded"] == 0, line
