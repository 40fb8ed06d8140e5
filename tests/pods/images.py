# SPDX-License-Identifier: MIT
"""Images made of this machine's own files, under the names that deploy/ uses: no registry is asked for anything."""

import pathlib
import re
import shutil
import subprocess

REPO = pathlib.Path(__file__).resolve().parents[2]
OURS = "mpklink:0.1.0"
PYTHON = "docker.io/library/python:3-slim"
MUSL = "localhost/musl:test"

PYTHON_PROGRAM = pathlib.Path("/usr/bin/python3").resolve()
PYTHON_LIBRARY = pathlib.Path("/usr/lib") / PYTHON_PROGRAM.name
# What http.server and http.client never load, and what is large.
LEFT_OUT = shutil.ignore_patterns("test", "tests", "__pycache__", "idlelib", "lib2to3", "ensurepip", "config-*", "pydoc_data", "tkinter", "turtledemo")


def copy_in(root: pathlib.Path, path: pathlib.Path) -> None:
    """The file behind `path`, at the place where a program looks for it."""
    target = root / str(path).lstrip("/")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path.resolve(), target)


def libraries(program) -> list:
    text = subprocess.run(["ldd", str(program)], capture_output=True, text=True, timeout=20).stdout
    return [pathlib.Path(p) for p in re.findall(r"(/\S+) \(0x", text)]


def glibc_root(root: pathlib.Path) -> None:
    """Python on glibc. The loader is reached by the same link as in Debian, with libc beside it."""
    for path in libraries(PYTHON_PROGRAM):
        if "ld-linux" not in path.name:
            copy_in(root, path)
    shutil.copytree(PYTHON_LIBRARY, root / str(PYTHON_LIBRARY).lstrip("/"), ignore=LEFT_OUT)
    for module in (root / str(PYTHON_LIBRARY).lstrip("/")).glob("lib-dynload/*.so"):
        for path in libraries(module):
            if "ld-linux" not in path.name:
                copy_in(root, path)
    copy_in(root, PYTHON_PROGRAM)
    (root / "usr/bin/python3").symlink_to(PYTHON_PROGRAM.name)
    loader = pathlib.Path("/lib64/ld-linux-x86-64.so.2").resolve()
    copy_in(root, loader)
    (root / "lib64").mkdir()
    (root / "lib64/ld-linux-x86-64.so.2").symlink_to(loader)
    for name in ("lib", "bin"):  # merged, as in Debian
        if (root / name).exists():
            shutil.copytree(root / name, root / "usr" / name, dirs_exist_ok=True)
            shutil.rmtree(root / name)
        (root / name).symlink_to(f"usr/{name}")


def musl_root(root: pathlib.Path) -> None:
    """A program linked with musl, and musl: where a glibc library in LD_PRELOAD is fatal."""
    (root / "bin").mkdir()
    (root / "lib").mkdir()
    source = pathlib.Path(__file__).with_name("requests.c")
    subprocess.run(["musl-gcc", "-O1", "-o", root / "bin/requests", source], check=True, timeout=60)
    shutil.copy2("/lib/ld-musl-x86_64.so.1", root / "lib/ld-musl-x86_64.so.1")


def import_root(podman, work: pathlib.Path, fill, name: str) -> None:
    root = work / "root"
    root.mkdir()
    for directory in ("tmp", "proc", "sys", "dev", "etc"):
        (root / directory).mkdir()
    (root / "tmp").chmod(0o1777)
    fill(root)
    archive = work / "root.tar"
    subprocess.run(["tar", "-C", root, "--owner=0", "--group=0", "-cf", archive, "."], check=True, timeout=120)
    podman("import", "--change=ENV PATH=/usr/bin:/bin", archive, name)
    shutil.rmtree(root)
    archive.unlink()


def our_image(podman, work: pathlib.Path, build: pathlib.Path) -> None:
    """The last stage of deploy/Dockerfile itself, with the files of this build: the first stage needs a registry."""
    text = (REPO / "deploy/Dockerfile").read_text()
    last = "FROM" + text.rsplit("\nFROM", 1)[1]
    staged = "COPY --from=build /mpklink /mpklink"
    assert staged in last, f"deploy/Dockerfile has no line {staged!r} in its last stage: change this builder, too"
    context = work / "context"
    (context / "mpklink").mkdir(parents=True)
    for path in (build / "preload/libmpklink.so", build / "tools/mpklink-exec", build / "tools/mpklink"):
        subprocess.run(["strip", "--strip-unneeded", "-o", context / "mpklink" / path.name, path], check=True, timeout=60)
    (context / "Dockerfile").write_text(last.replace(staged, "COPY mpklink /mpklink"))
    podman("build", "--isolation=chroot", "-t", OURS, context)
    shutil.rmtree(context)


def make_all(podman, work: pathlib.Path, build: pathlib.Path) -> None:
    our_image(podman, work, build)
    import_root(podman, work, glibc_root, PYTHON)
    import_root(podman, work, musl_root, MUSL)
