# SPDX-License-Identifier: MIT
"""mpklink-exec, the entry of containers: which programs get the library, that all others run untouched, and how files get into a shared directory."""

import os
import pathlib
import random
import re
import shutil
import subprocess
import tempfile

import pytest

from harness import BUILD, SO
from installed import assert_ring_used, clean_env, echo

EXEC = BUILD / "tools/mpklink-exec"
SAY_PRELOAD = 'int puts(const char*); char* getenv(const char*);\nint main(void) { const char* p = getenv("LD_PRELOAD"); puts(p ? p : "none"); return 7; }\n'
LOADER = "/lib64/ld-linux-x86-64.so.2"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small file system in a namespace of its own")


@pytest.fixture(scope="module")
def box():
    path = pathlib.Path(tempfile.mkdtemp(prefix="mpklink-exec-test-"))
    yield path
    shutil.rmtree(path)


def compile_c(target, *flags):
    subprocess.run(["gcc", "-O1", "-x", "c", "-", "-o", target, *flags], input=SAY_PRELOAD, text=True, check=True, timeout=60)
    return target


@pytest.fixture(scope="module")
def program(box):
    return compile_c(box / "program")


@pytest.fixture(scope="module")
def static_program(box):
    return compile_c(box / "static", "-static")


@pytest.fixture(scope="module")
def foreign_program(box):
    """Its loader has musl's name. It is glibc's in truth, so that the program can run here and say what it was given."""
    loader = box / "ld-musl-x86_64.so.1"
    shutil.copy2(os.path.realpath(LOADER), loader)
    return compile_c(box / "foreign", f"-Wl,--dynamic-linker={loader}")


def run(*words, **env):
    return subprocess.run([EXEC, *map(str, words)], env=clean_env(**env), capture_output=True, text=True, timeout=30)


def assert_untouched(program, *words, code=7, **env):
    """It runs as without us, silently; with MPKLINK_LOG=warn one line says why, with the words."""
    silent = run(program, **env)
    assert (silent.returncode, silent.stdout, silent.stderr) == (code, "none\n", "")
    loud = run(program, MPKLINK_LOG="warn", **env)
    assert (loud.returncode, loud.stdout) == (code, "none\n")
    assert loud.stderr.startswith(f"mpklink-exec: {program} runs without libmpklink: ") and loud.stderr.count("\n") == 1, loud.stderr
    for word in words:
        assert str(word) in loud.stderr


# ---- who gets it ---------------------------------------------------------------------------------------------------------


def test_it_is_static():
    """It must run where there is no glibc, and where there is nothing at all."""
    headers = subprocess.run(["readelf", "-ld", EXEC], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers and "NEEDED" not in headers


def test_python_gets_the_library_and_uses_it(tmp_path):
    assert_ring_used(echo(tmp_path, [EXEC]))


def test_a_glibc_program_gets_the_library(program):
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (7, f"{SO}\n", "")


def test_other_preloads_stay_and_ours_comes_once(program):
    assert run(program, LD_PRELOAD="libm.so.6").stdout == f"libm.so.6:{SO}\n"
    assert run(EXEC, program).stdout == f"{SO}\n", "an exec of an exec"
    assert run(program, LD_PRELOAD=SO).stdout == f"{SO}\n"


def test_it_becomes_the_program():
    with subprocess.Popen([EXEC, "sh", "-c", "echo $$; exit 3"], env=clean_env(), stdout=subprocess.PIPE, text=True) as process:
        assert int(process.communicate(timeout=30)[0]) == process.pid
    assert process.returncode == 3


def test_scripts_are_followed(box, program, static_program):
    for interpreter, expected in ((program, SO), (static_program, "none")):
        script = box / "script"
        script.write_text(f"#!{interpreter}\n")
        script.chmod(0o755)
        assert run(script).stdout == f"{expected}\n"


def test_path_is_searched(box, program):
    assert run("program", PATH=f"{box}:/usr/bin").stdout == f"{SO}\n"
    assert run("--", "program", PATH=f"{box}:/usr/bin").stdout == f"{SO}\n"


# ---- who does not --------------------------------------------------------------------------------------------------------


def test_a_static_program_is_untouched(static_program):
    assert_untouched(static_program, "statically linked")


def test_a_program_of_another_libc_is_untouched(foreign_program):
    assert_untouched(foreign_program, "musl", foreign_program.parent / "ld-musl-x86_64.so.1")


def newer_library(box) -> pathlib.Path:
    """Ours, wanting a version of glibc that is not there. ld.so ends any program with it."""
    newest = max(re.findall(rb"\0GLIBC_2\.(\d+)(?=\0)", SO.read_bytes()), key=int)
    data = SO.read_bytes().replace(b"\0GLIBC_2." + newest + b"\0", b"\0GLIBC_9." + newest + b"\0")
    path = box / "libnewer.so"
    path.write_bytes(data)
    return path


def test_a_program_with_an_older_glibc_is_untouched(box, program):
    library = newer_library(box)
    by_hand = subprocess.run([program], env=clean_env(LD_PRELOAD=library), capture_output=True, text=True, timeout=30)
    assert by_hand.returncode != 7 and "GLIBC_9." in by_hand.stderr, "ld.so takes it: this test shows nothing"
    assert_untouched(program, "GLIBC_9.", "libc.so.6", MPKLINK_LIBRARY=library)


def test_a_program_whose_glibc_is_not_found_is_untouched(box):
    directory = box / "alone"
    directory.mkdir()
    shutil.copy2(os.path.realpath(LOADER), directory / "ld-linux-x86-64.so.2")
    program = compile_c(directory / "program", f"-Wl,--dynamic-linker={directory / 'ld-linux-x86-64.so.2'}")
    assert_untouched(program, "no glibc was found")


def test_without_a_library_the_program_runs(program, box):
    assert_untouched(program, "cannot be opened", MPKLINK_LIBRARY=box / "nowhere.so")
    (box / "text.so").write_text("not a library")
    assert_untouched(program, "not an x86-64 shared object", MPKLINK_LIBRARY=box / "text.so")


def test_it_can_be_switched_off(program):
    done = run(program, MPKLINK_DISABLE="1", MPKLINK_LOG="debug")
    assert (done.returncode, done.stdout, done.stderr) == (7, "none\n", "")
    assert run(program, MPKLINK_DISABLE="0").stdout == f"{SO}\n"


@pytest.fixture(scope="module")
def stuck_program(box):
    """A program that is ours to preload by all that can be seen, and that the kernel refuses to start: what remains is what we do before."""
    directory = box / "stuck"
    directory.mkdir()
    loader = directory / "ld-linux-x86-64.so.2"
    loader.write_text("not a loader")
    loader.chmod(0o755)
    libc = re.search(r"(/\S+/libc\.so\.6) \(0x", subprocess.run(["ldd", "/bin/true"], capture_output=True, text=True, check=True).stdout)[1]
    shutil.copy2(os.path.realpath(libc), directory / "libc.so.6")
    return compile_c(directory / "program", f"-Wl,--dynamic-linker={loader}")


def damaged(sound: bytes, case: int, rng) -> bytes:
    """Cut short, or with bytes changed where headers, or where version tables are."""
    if case % 3 == 0:
        return sound[: rng.randrange(len(sound))]
    table = sound.index(b"\0GLIBC_2.")
    area = range(64, 64 + 56 * 12) if case % 3 == 1 else range(max(0, table - 4000), min(len(sound), table + 4000))
    data = bytearray(sound)
    for _ in range(12):
        data[rng.choice(area)] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("which", ["ours", "libc"])
def test_damaged_libraries_never_stop_us(box, stuck_program, which):
    """Version tables are read before ld.so reads them, from files that anybody may have made."""
    assert "cannot be executed" in run(stuck_program, MPKLINK_LOG="warn").stderr.splitlines()[-1]
    rng = random.Random(7)
    library = box / "damaged.so" if which == "ours" else stuck_program.parent / "libc.so.6"
    sound = (SO if which == "ours" else library).read_bytes()
    for case in range(90):
        library.write_bytes(damaged(sound, case, rng))
        done = run(stuck_program, MPKLINK_LIBRARY=library if which == "ours" else SO)
        assert done.returncode == 126 and done.stderr.count("\n") == 1, (case, done)
    library.write_bytes(sound)


# ---- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--frobnicate"], ["--"], ["--copy-to"], ["--copy-to", "a", "b"]], ids=str)
def test_wrong_use(words):
    done = run(*words)
    assert done.returncode == 2 and done.stdout == "" and "mpklink-exec --help" in done.stderr


def test_help_and_version():
    assert "Examples:" in run("--help").stdout
    assert run("--version").stdout.startswith("mpklink-exec ")


@pytest.mark.parametrize("name,code", [("nosuch", 127), ("/no/such", 127), ("/", 126), ("/etc/passwd", 126)])
def test_what_cannot_be_executed(name, code):
    done = run(name)
    assert done.returncode == code and name in done.stderr and "; " in done.stderr and done.stderr.count("\n") == 1, done


# ---- --copy-to -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(box):
    """The directory that the image has."""
    directory = box / "image"
    directory.mkdir()
    for path in (EXEC, BUILD / "tools/mpklink", SO):
        shutil.copy2(path, directory)
    return directory


def copy(image, target):
    return subprocess.run([image / "mpklink-exec", "--copy-to", target], env=clean_env(), capture_output=True, text=True, timeout=30)


def test_a_copy_works_and_is_renewed_by_renaming(image, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    for _ in range(2):
        before = {p.name: p.stat().st_ino for p in shared.iterdir()}
        done = copy(image, shared)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert sorted(p.name for p in shared.iterdir()) == ["libmpklink.so", "mpklink", "mpklink-exec"]
        for path in shared.iterdir():
            assert path.read_bytes() == (image / path.name).read_bytes() and path.stat().st_mode & 0o777 == 0o755
            assert path.stat().st_ino != before.get(path.name)
    assert_ring_used(echo(tmp_path, [shared / "mpklink-exec"]))


def test_a_copy_to_nowhere(image, tmp_path):
    done = copy(image, tmp_path / "nowhere")
    assert done.returncode == 3 and "cannot be written: No such file" in done.stderr and "; name a directory" in done.stderr


def test_a_copy_without_the_library(tmp_path):
    shutil.copy2(EXEC, tmp_path)
    done = copy(tmp_path, tmp_path)
    assert done.returncode == 3 and "libmpklink.so is not there" in done.stderr


@needs_root
def test_a_copy_to_a_full_volume(image, tmp_path):
    """Nothing half is left under a name that would be used."""
    command = f"mount -t tmpfs -o size=100k none {tmp_path} && {image}/mpklink-exec --copy-to {tmp_path}; echo code $?; ls {tmp_path}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", command], env=clean_env(), capture_output=True, text=True, timeout=30)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"no file system of its own: {done.stderr.strip()}")
    assert "code 3" in done.stdout and "No space left" in done.stderr and "sizeLimit" in done.stderr
    assert "libmpklink.so\n" not in done.stdout
