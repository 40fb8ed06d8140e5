# SPDX-License-Identifier: MIT
"""Fixtures: a podman of our own, and pods that go away. scripts/pods.sh prepares the machine."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import pytest
import yaml

import images
from containers import Pod, Podman

REPO = images.REPO
BUILD = pathlib.Path(os.environ.get("MPKLINK_BUILD", REPO / "build")).resolve()
MANIFEST = REPO / "deploy/kubernetes/pod.yaml"
CONFIGMAPS = REPO / "deploy/kubernetes/profiles/configmaps.yaml"


@pytest.fixture(scope="session")
def podman():
    work = pathlib.Path(tempfile.mkdtemp(prefix="mpklink-pods-"))
    work.chmod(0o755)  # other users' containers walk through it
    podman = Podman(work)
    try:
        images.make_all(podman, work, BUILD)
        yield podman
    finally:
        podman("pod", "rm", "--all", "--force", "--time=5", check=False)
        podman("rm", "--all", "--force", "--time=5", check=False)
        with contextlib.suppress(OSError):
            shutil.rmtree(work)


@pytest.fixture
def play(podman):
    """play(manifest) → Pod; removed at the end of the test."""
    pods = []

    def start(manifest: dict) -> Pod:
        pods.append(manifest["metadata"]["name"])
        # An init container that podman removes at once it sometimes cannot remove: podman 4.3 looks before conmon has reported.
        podman("kube", "play", "--network=none", "--annotation=io.podman.annotations.init.container.type=always", "-",
               text=f"{CONFIGMAPS.read_text()}\n---\n{yaml.safe_dump(manifest)}")  # fmt: skip
        return Pod(podman, pods[-1])

    yield start
    for name in pods:
        podman("pod", "rm", "--force", "--time=5", name, check=False)


@pytest.fixture
def manifest() -> dict:
    return yaml.safe_load(MANIFEST.read_text())
