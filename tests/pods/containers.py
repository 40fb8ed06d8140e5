# SPDX-License-Identifier: MIT
"""A podman whose images, containers and settings are in one directory, and pods as tests see them."""

import json
import os
import pathlib
import resource
import subprocess
import time

COMMAND_S = 120
# podman asks for more than a machine may give, and never gives back what it took itself (32768 processes).
PROCESSES = 16384

CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{work}/libpod"
static_dir = "{work}/static"
volume_path = "{work}/volumes"
[network]
network_config_dir = "{work}/networks"
"""
STORAGE_CONF = """[storage]
driver = "vfs"
runroot = "{work}/run"
graphroot = "{work}/graph"
"""


class Podman:
    def __init__(self, work: pathlib.Path):
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        values = {"work": work, "files": files if files > 0 else 1024, "processes": PROCESSES}
        (work / "containers.conf").write_text(CONTAINERS_CONF.format(**values))
        (work / "storage.conf").write_text(STORAGE_CONF.format(**values))
        self.env = {**os.environ, "CONTAINERS_CONF": str(work / "containers.conf"), "CONTAINERS_STORAGE_CONF": str(work / "storage.conf")}

    def __call__(self, *words, text=None, check=True) -> str:
        done = subprocess.run(["podman", *map(str, words)], env=self.env, input=text, capture_output=True, text=True, timeout=COMMAND_S)
        assert not check or done.returncode == 0, f"podman {' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr if not check else done.stdout


class Pod:
    """A pod that is there, its containers by their names in the manifest."""

    def __init__(self, podman, name: str):
        self.podman, self.name = podman, name

    def full(self, container: str) -> str:
        return f"{self.name}-{container}"

    def inspect(self, container: str) -> dict:
        return json.loads(self.podman("inspect", self.full(container)))[0]

    def pid(self, container: str) -> int:
        return self.inspect(container)["State"]["Pid"]

    def infra_pid(self) -> int:
        infra = json.loads(self.podman("pod", "inspect", self.name))["InfraContainerID"]
        return json.loads(self.podman("inspect", infra))[0]["State"]["Pid"]

    def logs(self, container: str) -> str:
        return self.podman("logs", self.full(container), check=False)

    def wait(self, container: str) -> int:
        """Its exit code."""
        deadline = time.monotonic() + COMMAND_S
        while (state := self.inspect(container)["State"])["Status"] not in ("exited", "stopped"):
            assert time.monotonic() < deadline, f"{container} did not end\n{self.logs(container)}"
            time.sleep(0.1)
        return state["ExitCode"]

    def stop(self, container: str) -> None:
        self.podman("stop", "--time=20", self.full(container))

    def stats(self, container: str) -> dict:
        """The line that the program wrote into its log at its end."""
        lines = [json.loads(line) for line in self.logs(container).splitlines() if line.startswith('{"')]
        assert len(lines) == 1, f"{container} wrote {len(lines)} statistics\n{self.logs(container)}"
        return lines[0]
