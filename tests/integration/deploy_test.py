# SPDX-License-Identifier: MIT
"""The files under deploy/ that are not run here (scripts/pods.sh plays the pod): they parse, belong together, and say only what the library knows."""

import re
import shutil
import subprocess

import pytest

from harness import BUILD, REPO
from installed import clean_env

yaml = pytest.importorskip("yaml", reason="python3-yaml is not installed")

KUBERNETES = REPO / "deploy/kubernetes"
VERSION = re.search(r"version: '([^']+)'", (REPO / "meson.build").read_text())[1]
ENTRY = "/mpklink/mpklink-exec"


def documents(path) -> list:
    return list(yaml.safe_load_all(path.read_text()))


CONFIGMAPS = {d["metadata"]["name"]: d["data"] for d in documents(KUBERNETES / "profiles/configmaps.yaml")}


def kustomize(directory) -> list:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True, timeout=60)
    if "unknown command" in done.stderr:
        pytest.skip("this kubectl knows no kustomize")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pod_spec(document: dict) -> dict:
    return document["spec"]["template"]["spec"] if document["kind"] == "Deployment" else document["spec"]


def assert_library_is_provided(spec: dict) -> None:
    """The init container fills the volume that every container with our entry mounts, where its command says it is."""
    volumes = {v["name"]: v for v in spec["volumes"]}
    assert volumes["mpklink"]["emptyDir"]["sizeLimit"] == "32Mi"
    [init] = [c for c in spec["initContainers"] if c["name"] == "mpklink"]
    assert init["args"] == ["--copy-to", init["volumeMounts"][0]["mountPath"]] and "command" not in init
    assert init["image"] == f"mpklink:{VERSION}"
    for container in spec["containers"]:
        mounts = {m["mountPath"]: m for m in container.get("volumeMounts", [])}
        if container["command"][0] == ENTRY:
            assert mounts["/mpklink"] == {"name": "mpklink", "mountPath": "/mpklink", "readOnly": True}
            assert all(source["configMapRef"]["name"] in CONFIGMAPS for source in container["envFrom"])
        else:
            assert not mounts and not any(name.startswith("MPKLINK") for name in str(container.get("env", "")))


def assert_closed(container: dict) -> None:
    security = container["securityContext"]
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_pod_is_whole():
    [pod] = documents(KUBERNETES / "pod.yaml")
    spec = pod_spec(pod)
    assert_library_is_provided(spec)
    for container in spec["initContainers"] + spec["containers"]:
        assert_closed(container)
    assert [c["command"][0] == ENTRY for c in spec["containers"]] == [True, True, False]
    users = [c["securityContext"]["runAsUser"] for c in spec["containers"][:2]]
    assert len(set(users)) == 2, "the example is to show two users"


def test_kustomize_takes_the_example():
    made = kustomize(KUBERNETES)
    assert [d["kind"] for d in made] == ["ConfigMap"] * len(CONFIGMAPS) + ["Pod"]
    assert made[-1] == documents(KUBERNETES / "pod.yaml")[0], "kustomize reads the file as Python does, anchors and all"


def test_kustomize_puts_the_library_into_a_deployment():
    [before] = documents(KUBERNETES / "overlay/deployment.yaml")
    [after] = [d for d in kustomize(KUBERNETES / "overlay") if d["kind"] == "Deployment"]
    assert_library_is_provided(pod_spec(after))
    assert_closed(pod_spec(after)["initContainers"][0])
    old, new = pod_spec(before)["containers"], pod_spec(after)["containers"]
    assert [c["name"] for c in new] == [c["name"] for c in old] and all(c["command"][0] == ENTRY for c in new)
    assert [c["image"] for c in new] == [c["image"] for c in old] and new[0]["ports"] == old[0]["ports"]


@pytest.mark.parametrize("name", CONFIGMAPS)
def test_profiles_hold_what_the_library_understands(name):
    """Each value through the tool, which asks the library's own parser."""
    for variable, value in CONFIGMAPS[name].items():
        if variable == "MPKLINK_DISABLE":
            assert value == "1"
            continue
        option = "--" + variable.removeprefix("MPKLINK_").lower().replace("_", "-")
        command = [BUILD / "tools/mpklink", "run", option, value, "--dry-run", "true"]
        done = subprocess.run(command, env=clean_env(), capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 and f"{variable}={value}" in done.stdout, done.stderr


def test_one_version_everywhere():
    texts = {path: path.read_text() for path in (REPO / "deploy").rglob("*") if path.is_file()}
    for path, text in texts.items():
        for found in re.findall(r"\bmpklink:(\d[\w.]*\d)", text):
            assert found == VERSION, f"{path} says {found}, meson.build {VERSION}"
    assert (REPO / "deploy/debian/changelog").read_text().startswith(f"libmpklink ({VERSION})")


def test_the_dockerfile_ends_with_nothing_but_three_files():
    last = (REPO / "deploy/Dockerfile").read_text().rsplit("\nFROM ", 1)[1]
    lines = [line for line in last.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "scratch" and [line.split()[0] for line in lines[1:]] == ["COPY", "ENTRYPOINT", "CMD"]
