# SPDX-License-Identifier: MIT
"""The launcher, build/tools/mpklink: what it sets, what it refuses, and that the program cannot tell it was there.

Run: /usr/bin/python3 -m pytest tests/integration/tool_test.py
MPKLINK_BUILD names the build directory, <repository>/build without it.
The library here is an empty one made by the tests: this is about the tool alone.
"""
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("MPKLINK_BUILD", REPO / "build"))
TOOL = BUILD / "tools" / "mpklink"
NOBODY = 65534
ET_EXEC, ET_DYN, EM_386, EM_X86_64, EM_AARCH64, EM_S390 = 2, 3, 3, 62, 183, 22

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away to another user")


def clean_env(**extra):
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("MPKLINK_")}
    env.update(extra)
    return env


@pytest.fixture(scope="module")
def box():
    """A directory that every user may enter (pytest keeps its own closed to others): some tests change user."""
    path = Path(tempfile.mkdtemp(prefix="mpklink-tool-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def compile_c(target, source, *flags):
    subprocess.run(["gcc", "-O1", "-x", "c", "-", "-o", str(target), *flags], input=source, text=True, check=True)
    return target


@pytest.fixture(scope="module")
def library(box):
    return compile_c(box / "libdummy.so", "int mpklink_dummy;", "-shared", "-fPIC")


@pytest.fixture(scope="module")
def program(box):
    return compile_c(box / "program", "int main(void) { return 0; }")


@pytest.fixture
def mpklink(library):
    """run(*args) → CompletedProcess. The tool is copied nowhere: the library is named by MPKLINK_LIBRARY."""

    def run(*args, env=None, **kwargs):
        full_env = clean_env(**{"MPKLINK_LIBRARY": str(library), **(env or {})})
        for stream in ("stdout", "stderr"):
            kwargs.setdefault(stream, subprocess.PIPE)
        return subprocess.run([TOOL, *map(str, args)], env=full_env, text=True, timeout=30, **kwargs)

    return run


def write_script(path, text, mode=0o755):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def assert_refused(result, code, *words):
    """One sentence on stderr, which contains the words; nothing ran."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("mpklink: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert str(word) in result.stderr


def assert_usage(result, *words):
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def dry_run(result):
    """→ (dict of assignments, command line)"""
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return dict(line.split("=", 1) for line in lines[:-1]), lines[-1]


# ---- the command line ----------------------------------------------------------------------------


def test_version(mpklink):
    result = mpklink("--version")
    assert result.returncode == 0 and result.stdout.startswith("mpklink ") and result.stdout.count(".") == 2


def test_help_names_every_option(mpklink):
    text = mpklink("run", "--help").stdout
    for option in [name for name, _, _ in GOOD_VALUES] + ["stats", "library", "dry-run"]:
        assert f"--{option}" in text


@pytest.mark.parametrize("args", ["", "run", "run --", "frobnicate", "run --gaurd off -- true", "run --guard"])
def test_wrong_use(mpklink, args):
    assert_usage(mpklink(*args.split()))


def test_unknown_option_is_named_and_not_run(mpklink):
    assert_usage(mpklink("run", "--gaurd", "off", "true"), "--gaurd")


GOOD_VALUES = [
    ("guard", "GUARD", ["auto", "pkey", "mprotect", "off", "require"]),
    ("warmup", "WARMUP", ["0", "2", "1000000"]),
    ("spin-us", "SPIN_US", ["auto", "0", "50"]),
    ("ring-kib", "RING_KIB", ["4", "256"]),
    ("peers", "PEERS", ["verified", "same-uid", "any", "0", "0,33,4000000000"]),
    ("ports", "PORTS", ["80", "80,8000-8999", "!22", "!22,!5000-5010"]),
    ("profile", "PROFILE", ["safe", "balanced", "latency"]),
    ("log", "LOG", ["off", "error", "warn", "info", "debug"]),
]


@pytest.mark.parametrize("option,variable,value", [(o, v, x) for o, v, values in GOOD_VALUES for x in values])
def test_option_sets_variable(mpklink, option, variable, value):
    name = f"MPKLINK_{variable}"
    seen = mpklink("run", f"--{option}", value, "--", "printenv", name)
    assert seen.stdout == value + "\n", seen.stderr
    overridden = mpklink("run", f"--{option}={value}", "--", "printenv", name, env={name: "x"})
    assert overridden.stdout == value + "\n"


@pytest.mark.parametrize("option,variable", [(o, v) for o, v, _ in GOOD_VALUES] + [("stats", "STATS")])
def test_without_option_variable_is_untouched(mpklink, option, variable):
    assert mpklink("run", "--", "printenv", f"MPKLINK_{variable}").returncode == 1
    kept = mpklink("run", "--", "printenv", f"MPKLINK_{variable}", env={f"MPKLINK_{variable}": "whatever"})
    assert kept.stdout == "whatever\n"


@pytest.mark.parametrize("option,value", [
    ("guard", "on"), ("guard", ""), ("guard", "PKEY"),
    ("warmup", "-1"), ("warmup", "two"), ("warmup", "1000001"), ("warmup", "99999999999999999999"),
    ("spin-us", "1000001"), ("spin-us", "5us"), ("ring-kib", "0"), ("ring-kib", "65537"),
    ("peers", "root"), ("peers", "0,"),
    ("ports", "65536"), ("ports", "90-80"), ("ports", "80,,81"), ("ports", "1-2-3"),
    ("profile", "fast"), ("log", "verbose"), ("stats", "/nonexistent/dir/file"), ("stats", "/"), ("stats", ""),
    ("stats", "/tmp/" + "x" * 600),
    ("library", "/nonexistent/lib.so"), ("library", "/etc/passwd"),
])
def test_bad_value_is_refused_before_running(mpklink, box, option, value):
    marker = box / "ran"
    assert_usage(mpklink("run", f"--{option}", value, "--", "touch", marker), f"--{option}")
    assert not marker.exists()


def test_stats_is_made_absolute(mpklink, box):
    for given, seen in (("s.json", f"{box}/s.json"), ("/tmp/s.json", "/tmp/s.json")):
        assert mpklink("run", "--stats", given, "--", "printenv", "MPKLINK_STATS", cwd=box).stdout == seen + "\n"


@pytest.mark.parametrize("args,expected", [
    (("--", "printf", "%s,", "--guard", "off"), "--guard,off,"),
    (("printf", "%s,", "--guard", "off"), "--guard,off,"),
    (("printf", "%s,", "a", "--", "b", "--"), "a,--,b,--,"),
    (("--", "printf", "%s,", "--", "b"), "--,b,"),
    (("--log", "info", "printf", "%s,", "", "a b", "'"), ",a b,',"),
    (("printf", "%s,", "run", "--help", "--version"), "run,--help,--version,"),
])
def test_arguments_reach_the_program_as_they_are(mpklink, args, expected):
    result = mpklink("run", *args)
    assert (result.stdout, result.stderr) == (expected, "")


# ---- LD_PRELOAD ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before,after", [
    (None, "{lib}"), ("", "{lib}"), ("/a.so", "/a.so:{lib}"), ("/a.so /b.so", "/a.so /b.so:{lib}"), ("{lib}", "{lib}"),
    ("{lib}:/a.so", "{lib}:/a.so"), ("/a.so {lib}", "/a.so {lib}"), ("{link}", "{link}"),
    ("{lib}.old", "{lib}.old:{lib}"), ("libdummy.so", "libdummy.so:{lib}"),
])
def test_preload_is_appended_once(mpklink, library, box, before, after):
    link = box / "link.so"
    if not link.is_symlink():
        link.symlink_to(library)
    fill = {"lib": library, "link": link}
    env = {} if before is None else {"LD_PRELOAD": before.format(**fill)}
    # A dry run, as /a.so is not there, and the loader says so in every program it starts.
    assignments, _ = dry_run(mpklink("run", "--dry-run", "--", "true", env=env))
    assert assignments["LD_PRELOAD"].strip("'") == after.format(**fill)


def test_preload_is_in_the_program(mpklink, library):
    assert mpklink("run", "--", "printenv", "LD_PRELOAD").stdout == f"{library}\n"
    assert str(library) in mpklink("run", "--", "cat", "/proc/self/maps").stdout


@pytest.mark.parametrize("name", ["with space", "with:colon"])
def test_library_path_that_cannot_be_expressed(mpklink, library, box, name):
    odd = box / name
    odd.mkdir(exist_ok=True)
    shutil.copy(library, odd / "lib.so")
    assert_usage(mpklink("run", "--library", odd / "lib.so", "--", "true"), "space or a colon")
    by_variable = mpklink("run", "--", "true", env={"MPKLINK_LIBRARY": str(odd / "lib.so")})
    assert_refused(by_variable, 126, "space or a colon", odd)


@pytest.mark.parametrize("tool_dir,library_dir", [
    ("build/tools", "build/preload"), ("usr/bin", "usr/lib"), ("usr/bin", "usr/lib64"),
    ("usr/bin", "usr/lib/x86_64-linux-gnu"),
])
@pytest.mark.parametrize("through_link", [False, True])
def test_library_is_found_beside_the_tool(library, box, tool_dir, library_dir, through_link):
    with tempfile.TemporaryDirectory(dir=box) as root:
        tool, lib = Path(root) / tool_dir / "mpklink", Path(root) / library_dir / "libmpklink.so"
        for path, origin in ((tool, TOOL), (lib, library)):
            path.parent.mkdir(parents=True)
            shutil.copy(origin, path)
        started = tool
        if through_link:
            started = Path(root) / "link"
            started.symlink_to(tool)
        command = [started, "run", "printenv", "LD_PRELOAD"]
        result = subprocess.run(command, env=clean_env(), capture_output=True, text=True)
        assert result.stdout == f"{lib}\n", result.stderr


def test_library_that_is_nowhere(box):
    standard = ("/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
    if any(Path(directory, "libmpklink.so").exists() for directory in standard):
        pytest.skip("libmpklink.so is installed on this system")
    with tempfile.TemporaryDirectory(dir=box) as root:
        tool = shutil.copy(TOOL, root)
        result = subprocess.run([tool, "run", "true"], env=clean_env(), capture_output=True, text=True)
        assert_refused(result, 126, "libmpklink.so was not found", "--library")


def test_library_option_wins_over_variable(mpklink, library):
    result = mpklink("run", "--library", library, "printenv", "LD_PRELOAD", env={"MPKLINK_LIBRARY": "/nonexistent.so"})
    assert result.stdout == f"{library}\n"
    assert_refused(mpklink("run", "true", env={"MPKLINK_LIBRARY": "/nonexistent.so"}), 126, "/nonexistent.so")


# ---- dry run -------------------------------------------------------------------------------------


def test_dry_run_prints_and_does_not_run(mpklink, library, box):
    marker = box / "dry"
    result = mpklink("run", "--dry-run", "--guard", "off", "--warmup", "0", "--", "touch", marker, "a b")
    assert result.stdout.splitlines() == [
        f"LD_PRELOAD={library}", "MPKLINK_GUARD=off", "MPKLINK_WARMUP=0", f"touch {marker} 'a b'"]
    assert result.returncode == 0 and not marker.exists()


def test_dry_run_line_can_be_pasted(mpklink):
    words = ["printf", "%s|", "it's", "$HOME", "a\nb", ""]
    line = mpklink("run", "--dry-run", "--", *words).stdout.split("\n", 1)[1]
    pasted = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert pasted.stdout == "it's|$HOME|a\nb||"


def test_dry_run_refuses_too(mpklink):
    assert_refused(mpklink("run", "--dry-run", "no-such-program-at-all"), 127)


# ---- the program cannot tell ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 77, 126, 127, 255])
def test_exit_code(mpklink, code):
    assert mpklink("run", "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP])
def test_death_by_signal(library, number):
    command = [TOOL, "run", "--", "sh", "-c", "echo $$; exec sleep 60"]
    env = clean_env(MPKLINK_LIBRARY=str(library))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert int(process.stdout.readline()) == process.pid  # the program is the process that was started
    process.send_signal(number)
    assert process.wait(timeout=10) == -number
    process.stdout.close()


def test_streams_pass_through(mpklink):
    data = "line\n" * 20000
    result = mpklink("run", "--", "sh", "-c", "cat; echo oops >&2", input=data)
    assert (result.stdout, result.stderr) == (data, "oops\n")


def test_descriptors_and_dispositions_pass_through(mpklink):
    reader, writer = os.pipe()
    fields = "grep -E '^Sig(Ign|Blk|Cgt):' /proc/self/status; ls /proc/self/fd"
    inherited = {"pass_fds": [writer], "stdin": subprocess.DEVNULL}
    direct = subprocess.run(["sh", "-c", fields], capture_output=True, text=True, **inherited)
    wrapped = mpklink("run", "--", "sh", "-c", fields, **inherited)
    os.close(reader)
    os.close(writer)
    assert wrapped.stdout == direct.stdout


def test_name_of_the_program_stays(mpklink):
    assert mpklink("run", "--", "sh", "-c", "tr '\\0' ' ' < /proc/$$/cmdline; :").stdout.startswith("sh -c ")


def test_path_search_is_execvps(mpklink, box):
    first, second = box / "path1", box / "path2"
    for directory in (first, second):
        directory.mkdir()
    write_script(first / "thing", "not executable", 0o644)
    (first / "folder").mkdir()
    write_script(second / "thing", "#!/bin/sh\necho second\n")
    path = f"/nonexistent:{first}:{second}:/usr/bin:/bin"
    assert mpklink("run", "thing", env={"PATH": path}).stdout == "second\n"
    assert_refused(mpklink("run", "thing", env={"PATH": str(first)}), 126, "may not be executed")
    assert_refused(mpklink("run", "folder", env={"PATH": str(first)}), 126, "directory")
    assert mpklink("run", "thing", env={"PATH": ":/usr/bin:/bin"}, cwd=second).stdout == "second\n"


# ---- refusals: not there, not executable ---------------------------------------------------------


def test_not_found(mpklink):
    assert_refused(mpklink("run", "no-such-program-at-all"), 127, "not found in PATH")
    assert_refused(mpklink("run", "--", "/no/such/program"), 127, "does not exist")
    assert_refused(mpklink("run", "--", "/etc/passwd/program"), 127, "does not exist")
    assert_refused(mpklink("run", "--", ""), 127)


def test_closed_stderr(mpklink):
    """A message that nobody can read changes no exit code."""
    closed = subprocess.run(["bash", "-c", f"{TOOL} run -- /no/such/program 2>&-"], env=clean_env(), timeout=30)
    assert closed.returncode == 127


def test_not_executable(mpklink, box):
    assert_refused(mpklink("run", write_script(box / "plain", "#!/bin/sh\n", 0o644)), 126, "may not be executed")
    assert_refused(mpklink("run", box), 126, "directory")
    fifo = box / "fifo"
    os.mkfifo(fifo, 0o755)
    assert_refused(mpklink("run", fifo), 126)


# ---- refusals: ELF -------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("-static",), ("-static-pie",)])
def test_static(mpklink, box, flags):
    path = compile_c(box / f"static{flags[0]}", "int main(void) { return 0; }", *flags)
    assert_refused(mpklink("run", path), 126, "statically linked", path)


def test_the_loader_itself_is_let_through(mpklink, library):
    result = mpklink("run", "--", "/lib64/ld-linux-x86-64.so.2", shutil.which("printenv"), "LD_PRELOAD")
    assert result.stdout == f"{library}\n", result.stderr


def elf_header(bits, machine, order="<", etype=ET_EXEC):
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    layout = "HHIQQQIHHHHHH" if bits == 64 else "HHIIIIIHHHHHH"
    size, entry = (64, 56) if bits == 64 else (52, 32)
    return ident + struct.pack(order + layout, etype, machine, 1, 0, size, 0, 0, size, entry, 0, 0, 0, 0)


@pytest.mark.parametrize("bits,machine,order,name", [
    (64, EM_AARCH64, "<", "arm64"), (32, EM_386, "<", "32-bit x86"), (32, EM_X86_64, "<", "x32"),
    (64, EM_S390, ">", "s390"),
    (64, 4321, "<", "ELF machine number 4321"),
])
def test_other_architecture(mpklink, box, bits, machine, order, name):
    path = write_script(box / "foreign", elf_header(bits, machine, order))
    assert_refused(mpklink("run", path), 126, "built for " + name, "x86-64")


def test_other_libc(mpklink, box):
    loaders = {"/lib/ld-musl-x86_64.so.1": "musl", "/system/bin/linker64": "bionic", "/opt/odd-loader": "unknown"}
    for loader, word in loaders.items():
        path = compile_c(box / "libc", "int main(void) { return 0; }", f"-Wl,--dynamic-linker={loader}")
        assert_refused(mpklink("run", path), 126, word, loader, "glibc")


def test_missing_loader(mpklink, box):
    loader = "/nonexistent/ld-linux-x86-64.so.2"
    path = compile_c(box / "noloader", "int main(void) { return 0; }", f"-Wl,--dynamic-linker={loader}")
    assert_refused(mpklink("run", path), 126, loader)


def test_damaged_elf(mpklink, box, program):
    whole = program.read_bytes()
    for length in (4, 5, 16, 20, 63, 64, 100, 64 + 56, 700, len(whole) // 2):
        path = write_script(box / "cut", whole[:length])
        assert_refused(mpklink("run", path), 126, "damaged ELF")
    for etype in (0, 1, 4):  # none, object file, core
        path = write_script(box / "cut", elf_header(64, EM_X86_64, etype=etype))
        assert_refused(mpklink("run", path), 126, "damaged ELF")


def test_any_bytes_in_the_headers_give_an_answer(mpklink, box, program):
    """Seeded, so that a failure can be had again. --dry-run: the odd file itself must not run."""
    whole, rng = program.read_bytes(), random.Random(20)
    for round_number in range(150):
        odd = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            odd[rng.randrange(16, 64 + 13 * 56)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        result = mpklink("run", "--dry-run", write_script(box / "odd", bytes(odd)))
        assert result.returncode in (0, 126), (round_number, result.returncode, result.stderr)


def test_go_program_runs_with_a_warning(mpklink, box):
    note = """__asm__(".section .note.go.buildid,\\"a\\",@note; .long 4,4,4; .ascii \\"Go\\\\0\\\\0abcd\\"; .text");"""
    path = compile_c(box / "gopher", note + "int main(void) { return 5; }")
    result = mpklink("run", path)
    assert result.returncode == 5
    assert result.stderr.startswith("mpklink: warning: ") and result.stderr.count("\n") == 1
    assert "Go program" in result.stderr
    for quiet in (("--log", "off"), ()):
        silent = mpklink("run", *quiet, path, env={} if quiet else {"MPKLINK_LOG": "off"})
        assert (silent.returncode, silent.stderr) == (5, "")


# ---- refusals: secure mode -----------------------------------------------------------------------


def owned(program, path, uid, gid, mode):
    shutil.copy(program, path)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def says_secure(path, **user):
    """The kernel's own answer: a program prints AT_SECURE, preloaded or not."""
    return subprocess.run([path], capture_output=True, text=True, **user).stdout == "1\n"


@pytest.fixture(scope="module")
def secure_teller(box):
    source = """
        #include <stdio.h>
        #include <sys/auxv.h>
        int main(void) { printf("%lu\\n", getauxval(AT_SECURE)); return 0; }"""
    return compile_c(box / "secure_teller", source)


@needs_root
@pytest.mark.parametrize("uid,gid,mode,caller", [
    (NOBODY, 0, 0o4755, 0),        # root runs nobody's: changes its uid
    (0, 0, 0o4755, 0),             # root runs root's: nothing changes
    (0, 0, 0o4755, NOBODY),        # the usual setuid root
    (NOBODY, 0, 0o4755, NOBODY),   # one's own
    (NOBODY, NOBODY, 0o2755, 0),   # setgid
    (0, 0, 0o2755, 0),
    (0, NOBODY, 0o2745, 0),        # setgid without group x is not setgid
    (0, 0, 0o6755, NOBODY),
    (0, 0, 0o755, NOBODY),
])
def test_set_id_is_refused_where_the_kernel_says_secure(mpklink, box, secure_teller, uid, gid, mode, caller):
    path = owned(secure_teller, box / "setid", uid, gid, mode)
    user = {"user": caller, "group": caller, "extra_groups": []}
    secure = says_secure(path, **user)
    result = mpklink("run", path, **user)
    if secure:
        assert_refused(result, 126, "setuid" if mode & 0o4000 else "setgid", "ignores LD_PRELOAD")
    else:
        assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@needs_root
def test_set_id_without_effect_is_let_through(mpklink, box, secure_teller, library):
    path = owned(secure_teller, box / "setid", 0, 0, 0o4755)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    command = [*as_nobody, TOOL, "run", path]
    result = subprocess.run(command, env=clean_env(MPKLINK_LIBRARY=str(library)), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@needs_root
@pytest.mark.parametrize("effective,permitted,inheritable", [(1, 1024, 0), (0, 1024, 0), (0, 0, 1024), (0, 0, 0)])
@pytest.mark.parametrize("caller", [0, NOBODY])
def test_file_capabilities(mpklink, box, secure_teller, caller, effective, permitted, inheritable):
    path = owned(secure_teller, box / "caps", 0, 0, 0o755)
    value = struct.pack("<IIIII", 0x02000000 | effective, permitted, inheritable, 0, 0)  # revision 2, vfs_cap_data
    try:
        os.setxattr(path, "security.capability", value)
    except OSError as error:
        pytest.skip(f"no file capabilities on this file system: {error}")
    user = {"user": caller, "group": caller, "extra_groups": []}
    secure = says_secure(path, **user)
    result = mpklink("run", path, **user)
    if secure:
        assert_refused(result, 126, "file capabilities", "ignores LD_PRELOAD")
    else:
        assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="for an ordinary user; root has the tests above")
def test_setuid_root_program_of_the_system(mpklink):
    usual = [p for p in ("/usr/bin/passwd", "/usr/bin/su", "/bin/su") if os.path.exists(p)]
    path = next((p for p in usual if os.stat(p).st_mode & 0o4000), None)
    if path is None:
        pytest.skip("no setuid program on this system")
    assert_refused(mpklink("run", path), 126, "setuid")


@needs_root
def test_executable_but_not_readable(mpklink, box, program):
    path = owned(program, box / "closed", 0, 0, 0o711)
    result = mpklink("run", path, user=NOBODY, group=NOBODY, extra_groups=[])
    assert result.returncode == 0 and "cannot be read" in result.stderr


# ---- scripts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static_program(box):
    return compile_c(box / "static_interpreter", "int main(void) { return 0; }", "-static")


@pytest.mark.parametrize("first_line", [
    "#!/bin/sh", "#! /bin/sh -e ", "#!\t/bin/sh", "#!/usr/bin/env sh", "#!/usr/bin/env -S sh -e",
    "#!/usr/bin/env -S X=1 sh",
    "", "# no shebang", "#!",
])
def test_scripts_run(mpklink, box, first_line):
    path = write_script(box / "script", first_line + '\necho "$0:$1:$MPKLINK_GUARD"\n')
    assert mpklink("run", "--guard", "off", path, "arg").stdout == f"{path}:arg:off\n"


def test_empty_file_is_an_empty_shell_script(mpklink, box):
    assert mpklink("run", write_script(box / "empty", "")).returncode == 0


@pytest.mark.parametrize("first_line", [
    "#!{0}", "#! {0} -x", "#!/usr/bin/env {0}", "#!/usr/bin/env -S {0} -x", "#!/usr/bin/env -S{0}",
    "#!/usr/bin/env --split-string=X=1 {0}", "#!/usr/bin/env -S -u A {0}",
])
def test_interpreter_is_checked(mpklink, box, static_program, first_line):
    path = write_script(box / "script", first_line.format(static_program) + "\n")
    assert_refused(mpklink("run", path), 126, "statically linked", static_program, path)


def test_interpreter_is_missing(mpklink, box):
    path = write_script(box / "script", "#!/no/such/interpreter\n")
    assert_refused(mpklink("run", path), 127, "/no/such/interpreter", path)
    path = write_script(box / "script", "#!/usr/bin/env no-such-interpreter\n")
    assert_refused(mpklink("run", path), 127, "no-such-interpreter", path)


@pytest.mark.parametrize("options", ["-i sh", "-S -i sh", "-iS sh", "-S --ignore-environment sh", "-"])
def test_env_that_clears_the_environment(mpklink, box, options):
    path = write_script(box / "script", f"#!/usr/bin/env {options}\n")
    assert_refused(mpklink("run", path), 126, "clears the environment")


def test_nested_scripts_as_deep_as_the_kernel_goes(mpklink, box, static_program):
    previous = "/bin/echo"
    for depth in range(1, 8):
        path = write_script(box / f"nested{depth}", f"#!{previous}\n")
        try:
            kernel_runs = subprocess.run([path], capture_output=True).returncode == 0
        except OSError:
            kernel_runs = False
        result = mpklink("run", path)
        assert (result.returncode == 0) == kernel_runs, (depth, result.stderr)
        if not kernel_runs:
            assert_refused(result, 126, "one #! script too many")
        previous = path
    previous = static_program
    for depth in range(1, 6):
        path = previous = write_script(box / f"nested{depth}", f"#!{previous}\n")
        assert_refused(mpklink("run", path), 126, "statically linked", static_program)


def test_script_that_is_its_own_interpreter(mpklink, box):
    path = box / "selfish"
    assert_refused(mpklink("run", write_script(path, f"#!{path}\n")), 126, "too many")
    write_script(path, f"#!/usr/bin/env {path}\n")
    assert mpklink("run", "--dry-run", path).returncode == 0  # lawful, and ends only by a limit of env's own


@pytest.mark.parametrize("length", [250, 253, 254, 255, 256, 400])
def test_long_first_line_is_cut_as_the_kernel_does(mpklink, box, length):
    """Longer than the kernel reads: execve says ENOEXEC and the shell runs it, where the whole of it is a comment."""
    interpreter = "/" * (length - len("#!bin/sh")) + "bin/sh"
    path = write_script(box / "long", f"#!{interpreter}\necho ran\n")
    assert mpklink("run", path).stdout == "ran\n"
