# SPDX-License-Identifier: MIT
"""The commands of mpklink that are about settings: env, the configuration file, rules, reasons, manual pages, completions, --report.

`run` itself: tool_test.py. Rules through the library: rules_test.py.
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from harness import BUILD, REPO, SO

TOOL = BUILD / "tools" / "mpklink"
PROGRAM = BUILD / "tests" / "programs" / "echo_threads"

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")


def clean_env(home, **extra):
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith(("MPKLINK_", "XDG_"))}
    return {**env, "HOME": str(home), "LC_ALL": "C.UTF-8", **{k: str(v) for k, v in extra.items()}}


@pytest.fixture
def mpklink(tmp_path):
    """run(*args) → CompletedProcess; no configuration file but the test's own."""

    def run(*args, env=None, **kwargs):
        for stream in ("stdout", "stderr"):
            kwargs.setdefault(stream, subprocess.PIPE)
        full = clean_env(tmp_path, MPKLINK_LIBRARY=SO, **(env or {}))
        return subprocess.run([TOOL, *map(str, args)], env=full, text=True, timeout=60, cwd=tmp_path, **kwargs)

    return run


@pytest.fixture
def config(tmp_path):
    def write(text, name="my.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def good(result):
    assert result.returncode == 0 and result.stderr == "", result
    return result.stdout


def refused(result, code, *words):
    """Nothing on stdout, a sentence on stderr that has the words and something to type next."""
    assert result.returncode == code and result.stdout == "", result
    assert result.stderr.startswith("mpklink: ") and re.search(r"mpklink|--\w|; |Try", result.stderr[9:]), result.stderr
    for word in words:
        assert str(word) in result.stderr, result.stderr
    return result.stderr


def variables(text):
    """Of `env --json`."""
    return {k.removeprefix("MPKLINK_"): v for k, v in json.loads(text).items()}


# ---- help, wrong use, output ---------------------------------------------------------------------------------------------


def tree(mpklink, *path):
    """All commands, as their --help names them."""
    text = good(mpklink(*path, "--help"))
    yield path, text
    section = re.search(r"^Subcommands:\n((?:  .*\n)+)", text, re.M)
    for name in re.findall(r"^  (\w[\w-]*) ", section.group(1), re.M) if section else []:
        yield from tree(mpklink, *path, name)


def test_help_everywhere(mpklink):
    seen = dict(tree(mpklink))
    assert {("run",), ("env",), ("rules", "check"), ("rules", "test"), ("reasons",), ("man",), ("completion",), ("bench",)} <= seen.keys()
    for path, text in seen.items():
        assert f"Usage: {' '.join(('mpklink', *path))}" in text
        assert "Examples:\n  " in text, path
    for path in [(c,) for c in ("run", "env", "reasons", "man", "completion")] + [("rules", c) for c in ("check", "print", "test")]:
        assert "--json" in seen[path], path


@pytest.mark.parametrize("args,words", [
    (["runn"], ["unknown command runn; did you mean run?", "Try 'mpklink --help'"]),
    (["reason"], ["did you mean reasons?"]),
    (["rules", "tset"], ["unknown command tset; did you mean test?", "Try 'mpklink rules --help'"]),
    (["env", "--fromat", "sh"], ["unknown option --fromat; did you mean --format?", "Try 'mpklink env --help'"]),
    (["reasons", "peer-absnt"], ["did you mean peer-absent?"]),
    (["man", "mpklink-runn"], ["did you mean mpklink-run?"]),
    (["man"], ["--list"]), ([], ["no command"]), (["xyzzy"], ["unknown command xyzzy\n"]),
    (["completion", "csh"], ["csh"]), (["rules"], ["Try 'mpklink rules --help'"]),
    (["rules", "test", "--exe", "x"], ["--connect"]), (["rules", "test", "--exe", "x", "--connect", "localhost:80"], ["127.0.0.1:8080"]),
    (["rules", "test", "--exe", "x", "--connect", "::1:80"], ["[::1]:8080"]), (["rules", "test", "--exe", "x", "--accept", "127.0.0.1:65536"], ["no address"]),
    (["env", "--rules", "ignroe"], ["--rules", "accelerate or ignore"]), (["env", "--profile", "web"], ["--profile", "safe, balanced, latency"]),
    (["run", "--json", "true"], ["--dry-run"]),
])  # fmt: skip
def test_wrong_use(mpklink, args, words):
    refused(mpklink(*args), 2, *words)


@pytest.mark.parametrize("args", [["reasons"], ["--help"], ["--version"], ["man", "run"], ["env"], ["run", "--dry-run", "true"]])
def test_output_that_cannot_be_written(mpklink, args):
    with open("/dev/full", "w") as full:
        result = mpklink(*args, stdout=full)
    assert result.returncode == 3 and "No space left" in result.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        result = mpklink(*args, stdout=broken)
    assert result.returncode == 3 and "Broken pipe" in result.stderr


def test_programs_get_sigpipe_as_it_was(mpklink):
    ignored = int(good(mpklink("run", "--", "grep", "SigIgn", "/proc/self/status", restore_signals=True)).split()[1], 16)
    assert ignored >> (signal.SIGPIPE - 1) & 1 == 0


# ---- env -----------------------------------------------------------------------------------------------------------------


def test_env_for_a_shell(mpklink, tmp_path):
    before = "/lib/x86_64-linux-gnu/libm.so.6"
    text = good(mpklink("env", "--ring-kib", "64", "--rules", "ignore,port=22;accelerate", env={"LD_PRELOAD": before}))
    script = text + 'printf "%s\\n" "$LD_PRELOAD" "$MPKLINK_RING_KIB" "$MPKLINK_RULES"\n'
    shell = subprocess.run(["env", "-i", "sh", "-c", script], capture_output=True, text=True)
    assert shell.stdout.splitlines()[-3:] == [f"{before}:{SO}", "64", "ignore,port=22;accelerate"]


def test_env_formats(mpklink):
    options = ["--stats", "/tmp/a%b\"c", "--log", "warn"]
    systemd = good(mpklink("env", "--format", "systemd", *options, env={"LD_PRELOAD": "/lib/x86_64-linux-gnu/libm.so.6"}))
    assert systemd.splitlines()[0] == f'Environment="LD_PRELOAD={SO}"'
    assert 'Environment="MPKLINK_STATS=/tmp/a%%b\\"c"' in systemd
    docker = good(mpklink("env", "--format", "docker", *options))
    assert docker.splitlines() == [f"LD_PRELOAD={SO}", "MPKLINK_LOG=warn", 'MPKLINK_STATS=/tmp/a%b"c']
    as_json = good(mpklink("env", "--json", *options))
    assert json.loads(as_json) == json.loads(good(mpklink("env", "--format", "json", *options)))
    assert variables(as_json) == {"LD_PRELOAD": str(SO), "LOG": "warn", "STATS": '/tmp/a%b"c'}
    refused(mpklink("env", "--format", "xml"), 2, "sh")


def test_run_sets_what_env_prints(mpklink, config):
    path = config('[settings]\nspin.us = 7\nlog = "warn"\n[[rule]]\naction = "ignore"\nport = 22\n')
    printed = variables(good(mpklink("env", "--json", "--config", path, "--ring-kib", "64")))
    seen = good(mpklink("run", "--config", path, "--ring-kib", "64", "--", "env"))
    assert {line.split("=", 1)[0].removeprefix("MPKLINK_"): line.split("=", 1)[1] for line in seen.splitlines()
            if line.startswith(("MPKLINK_", "LD_PRELOAD")) and not line.startswith("MPKLINK_LIBRARY")} == printed  # fmt: skip


def test_dry_run_json(mpklink):
    document = json.loads(good(mpklink("run", "--dry-run", "--json", "--guard", "off", "--", "echo", 'a "b"')))
    assert document == {"environment": {"LD_PRELOAD": str(SO), "MPKLINK_GUARD": "off"}, "command": ["echo", 'a "b"']}


# ---- the configuration file ----------------------------------------------------------------------------------------------

FULL = """
[settings]
guard = "off"
fault.report = false
warmup = 4
spin.us = 3
ring.kib = 64
ports = "!22"
profile = "web"
[profile.web]
profile = "safe"
spin.us = 9
[profile.bulk]
ring.kib = 1024
[[rule]]
action = "accelerate"
exe = ["nginx", "/opt/*/java"]
direction = "in"
[[rule]]
action = "ignore"
port = [22, "6000-6010"]
address = ["127.0.0.0/8", "::1"]
uid = 33
"""
FLAT = "accelerate,exe=nginx,exe=/opt/*/java,dir=in;ignore,port=22,port=6000-6010,addr=127.0.0.0/8,addr=::1,uid=33"


def test_file_is_read(mpklink, config):
    got = variables(good(mpklink("env", "--json", "--config", config(FULL))))
    rules = got.pop("RULES")
    assert set(rules.split(";")[1].split(",")) == set(FLAT.split(";")[1].split(",")) and rules.startswith(FLAT.split(";")[0][:10])
    assert got == {"LD_PRELOAD": str(SO), "GUARD": "off", "FAULT_REPORT": "0", "WARMUP": "4", "SPIN_US": "9", "RING_KIB": "64", "PORTS": "!22",
                   "PROFILE": "safe"}  # fmt: skip


@pytest.mark.parametrize("options,env,spin,ring,profile", [
    ([], {}, "9", "64", "safe"),
    (["--profile", "bulk"], {}, "3", "1024", "balanced"),
    ([], {"MPKLINK_PROFILE": "bulk"}, "3", "1024", "balanced"),
    (["--profile", "latency"], {"MPKLINK_PROFILE": "bulk"}, "3", "64", "latency"),
    (["--profile", "bulk"], {"MPKLINK_RING_KIB": "8"}, "3", "8", "balanced"),
    (["--profile", "bulk", "--ring-kib", "16"], {"MPKLINK_RING_KIB": "8"}, "3", "16", "balanced"),
])
def test_who_wins(mpklink, config, options, env, spin, ring, profile):
    """Option, environment, chosen profile, [settings]: in this order, for env and run alike."""
    path = config(FULL)
    got = variables(good(mpklink("env", "--json", "--config", path, *options, env=env)))
    assert (got["SPIN_US"], got["RING_KIB"], got["PROFILE"]) == (spin, ring, profile)
    ran = good(mpklink("run", "--config", path, *options, "--", "sh", "-c", "echo $MPKLINK_SPIN_US $MPKLINK_RING_KIB $MPKLINK_PROFILE", env=env))
    assert ran.split() == [spin, ring, profile]


def test_users_rules_win(mpklink, config):
    got = variables(good(mpklink("env", "--json", "--config", config(FULL), env={"MPKLINK_RULES": "ignore"})))
    assert got["RULES"] == "ignore"


def test_search_order(mpklink, config, tmp_path):
    def level(**env):
        return variables(good(mpklink("env", "--json", env=env))).get("LOG")

    assert level() is None or Path("/etc/mpklink/config.toml").exists()
    config('[settings]\nlog = "info"\n', ".config/mpklink/config.toml")
    assert level() == "info"
    config('[settings]\nlog = "warn"\n', "xdg/mpklink/config.toml")
    assert level(XDG_CONFIG_HOME=tmp_path / "xdg") == "warn"
    named = config('[settings]\nlog = "debug"\n', "named.toml")
    assert level(XDG_CONFIG_HOME=tmp_path / "xdg", MPKLINK_CONFIG=named) == "debug"
    assert level(MPKLINK_CONFIG="/dev/null") is None
    got = mpklink("env", "--json", "--config", config('[settings]\nlog = "off"\n', "option.toml"), env={"MPKLINK_CONFIG": named})
    assert variables(good(got))["LOG"] == "off"


@pytest.mark.parametrize("text,line,words", [
    ("[settings]\nlgo = 1\n", 2, ["unknown setting 'lgo'", "log"]),
    ("[settings]\nring.kb = 1\n", 2, ["unknown setting 'ring.kb'"]),
    ("\nfoo = 1\n", 2, ["unknown key 'foo'", "[settings]"]),
    ("[settings]\nlog = 3.5\n", 2, ["'log' is a number", "expected"]),
    ("[settings]\nlog = [1]\n", 2, ["'log' is a list", "expected"]),
    ('[settings]\nlog = "loud"\n', 2, ["'log'", "off, error, warn, info or debug", "loud"]),
    ("[settings]\nring.kib = 0\n", 2, ["'ring.kib'", "a size in KiB"]),
    ("[settings]\nwarmup = 1\nwarmup = 2\n", 3, []),
    ("[settings]\nwarmup = true\n", 2, ["'warmup' is a boolean"]),
    ("[settings]\nring = 5\n", 2, ["unknown setting 'ring'"]),
    ('[settings]\nstats = "s.json"\n', 2, ["full path"]),
    ('[settings]\nrules = "ignore"\n', 2, ["[[rule]]"]),
    ('[settings]\nprofile = "web"\n', 2, ["no profile 'web'"]),
    ("[profile.safe]\nlog = 1\n", 1, ["built-in"]),
    ('[profile.a]\nprofile = "b"\n[profile.b]\n', 2, ["safe, balanced or latency"]),
    ("settings = 1\n", 1, ["expected a table"]),
    ("[rule]\naction = 'ignore'\n", 1, ["[[rule]]"]),
    ("[[rule]]\nport = 1\n", 1, ["without 'action'"]),
    ("[[rule]]\naction = 'ignroe'\n", 2, ["accelerate or ignore"]),
    ("[[rule]]\naction = 'ignore'\nprot = 1\n", 3, ["unknown key 'prot'", "port"]),
    ("[[rule]]\naction = 'ignore'\nport = 65536\n", 3, ["'port' is 65536"]),
    ("[[rule]]\naction = 'ignore'\nport = '9-8'\n", 3, ["'9-8'", "a port or a range"]),
    ("[[rule]]\naction = 'ignore'\nport = []\n", 3, ["empty list"]),
    ("[[rule]]\naction = 'ignore'\nport = 1.5\n", 3, ["'port' is a number"]),
    ("[[rule]]\naction = 'ignore'\naddress = '127.0.0.1/33'\n", 3, ["an address or a network"]),
    ("[[rule]]\naction = 'ignore'\nuid = 'root'\n", 3, ["number of a user"]),
    ("[[rule]]\naction = 'ignore'\nuid = -1\n", 3, ["'uid' is -1"]),
    ("[[rule]]\naction = 'ignore'\nexe = 'a,b'\n", 3, ["without , and ;"]),
    ("[[rule]]\naction = 'ignore'\nexe = 5\n", 3, ["'exe' is a number"]),
    ("[[rule]]\naction = 'ignore'\ndirection = 'up'\n", 3, ['"in" or "out"']),
    ("[settings\n", 1, []), ("a = \"\n", 1, []), ("\0\n", 1, []), ("[settings]\nlog = 'é\xff", 2, []),
])  # fmt: skip
def test_mistakes_in_the_file(mpklink, config, text, line, words):
    path = config(text)
    for result in (mpklink("run", "--config", path, "--", "touch", "ran"), mpklink("env", "--config", path)):
        refused(result, 2, f"{path}:{line}:", "mpklink man mpklink.toml", *words)
    assert not (path.parent / "ran").exists()
    checked = mpklink("rules", "check", path)
    assert checked.returncode == 1 and f"{path}:{line}:" in checked.stderr
    document = mpklink("rules", "check", "--json", path)
    assert document.returncode == 1 and json.loads(document.stdout)["ok"] is False


def test_file_that_cannot_be_read(mpklink, tmp_path):
    refused(mpklink("env", "--config", "/no/such/file.toml"), 3, "/no/such/file.toml", "No such file")
    refused(mpklink("env", "--config", tmp_path), 3, "directory")
    refused(mpklink("env", env={"MPKLINK_CONFIG": "/no/such"}), 3, "/no/such")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs as another user")
def test_home_of_another_user(tmp_path):
    """Is not looked into; a file that is named must be readable."""
    home = Path(tempfile.mkdtemp(prefix="mpklink-cli-test-"))
    try:
        (home / ".config" / "mpklink").mkdir(parents=True)
        file = home / ".config" / "mpklink" / "config.toml"
        file.write_text("[settings]\nlog = 'warn'\n")
        run = lambda *a: subprocess.run([TOOL, *a], capture_output=True, text=True, cwd="/", user=65534, group=65534, extra_groups=[],  # noqa: E731
                                        env=clean_env(home, MPKLINK_LIBRARY=SO), timeout=60)  # fmt: skip
        home.chmod(0o700)
        assert "LOG" not in variables(good(run("env", "--json")))
        refused(run("env", "--config", str(file)), 3, "Permission denied")
        home.chmod(0o755)
        assert variables(good(run("env", "--json")))["LOG"] == "warn"
        file.chmod(0o600)
        refused(run("env", "--json"), 3, "Permission denied")
    finally:
        shutil.rmtree(home)


# ---- rules ---------------------------------------------------------------------------------------------------------------


def test_rules_check(mpklink, config):
    path = config(FULL)
    assert good(mpklink("rules", "check", path)) == f"{path}: good (7 settings, 2 profiles, 2 rules)\n"
    assert json.loads(good(mpklink("rules", "check", path, "--json"))) == {
        "file": str(path), "ok": True, "error": None, "settings": 7, "profiles": 2, "rules": 2}  # fmt: skip


def test_example_is_good(mpklink):
    assert "good" in good(mpklink("rules", "check", REPO / "tools" / "share" / "config.toml"))


def test_too_many_rules_for_the_library(mpklink, config):
    rule = "[[rule]]\naction = 'ignore'\nport = 1\n"
    assert mpklink("rules", "check", config(rule * 31)).returncode == 0
    assert "too many" in mpklink("rules", "check", config(rule * 32)).stderr


def test_rules_print(mpklink, config):
    path = config(FULL)
    lines = good(mpklink("rules", "print", "--config", path)).splitlines()
    assert len(lines) == 4 and f"{path}:15" in lines[1] and "accelerate" in lines[3]
    flat = good(mpklink("rules", "print", "--flat", "--config", path)).strip()
    again = json.loads(good(mpklink("rules", "print", "--json", "--rules", flat)))
    assert ";".join(rule["rule"] for rule in again) == flat and {rule["where"] for rule in again} == {"--rules"}
    assert json.loads(good(mpklink("rules", "print", "--json"))) == []


@pytest.mark.parametrize("args,action,words", [
    (["--exe", "nginx", "--accept", "127.0.0.1:22"], "accelerate", ["rule 1", ":15"]),
    (["--exe", "nginx", "--connect", "127.0.0.1:22", "--uid", "33"], "ignore", ["MPKLINK_PORTS=!22"]),
    (["--exe", "nginx", "--connect", "127.0.0.1:6005", "--uid", "33"], "ignore", ["rule 2", ":19", "dir is out, not in"]),
    (["--exe", "/opt/jdk/java", "--accept", "[::1]:6005"], "accelerate", ["rule 1"]),
    (["--exe", "/opt/java", "--accept", "[::1]:6005", "--uid", "33"], "ignore", ["rule 2", "exe is /opt/java, not nginx or /opt/*/java"]),
    (["--exe", "redis", "--connect", "127.0.0.1:6005", "--uid", "34"], "accelerate", ["no rule matches", "uid is 34, not 33"]),
    (["--exe", "redis", "--connect", "10.0.0.1:6005", "--uid", "33"], "accelerate", ["addr is 10.0.0.1, not 127.0.0.0/8 or ::1"]),
    (["--exe", "redis", "--connect", "127.0.0.1:80"], "accelerate", ["port is 80, not 22 or 6000-6010"]),
])
def test_rules_test(mpklink, config, args, action, words):
    text = FULL if action != "accelerate" else FULL.replace('ports = "!22"\n', "\n")
    result = mpklink("rules", "test", "--config", config(text), *args)
    assert result.returncode == (0 if action == "accelerate" else 1) and result.stdout.startswith(f"{action}: "), result
    for word in words:
        assert word in result.stdout, result.stdout
    document = json.loads(mpklink("rules", "test", "--json", "--config", config(text), *args).stdout)
    assert document["action"] == action and document["why"] in result.stdout


# ---- the lists -----------------------------------------------------------------------------------------------------------


def reasons_of_the_source():
    text = (REPO / "preload" / "reasons.def").read_text()
    return re.findall(r'^REASON\(\w+, "([^"]+)", "([^"]+)", "([^"]+)"\)$', text, re.M)


def test_reasons(mpklink):
    wanted = reasons_of_the_source()
    assert len(wanted) > 30
    assert [(r["reason"], r["sentence"], r["remedy"]) for r in json.loads(good(mpklink("reasons", "--json")))] == wanted
    slug, sentence, remedy = wanted[2]
    assert good(mpklink("reasons", slug)) == f"{slug}\n  {sentence}\n  Remedy: {remedy}\n"


def settings_of_the_source():
    text = (REPO / "tools" / "settings_table.h").read_text()
    return re.findall(r'^    \{"([a-z.]+)", "([^"]+)", "([^"]+)", "', text, re.M)


def test_readme_has_the_settings(mpklink):
    """One table in the source; README's has the same variables, values and defaults."""
    table = dict(re.findall(r"^\| `MPKLINK_(\w+)` \| (.*) \|$", (REPO / "README.md").read_text(), re.M))
    settings = settings_of_the_source()
    assert {key.upper().replace(".", "_") for key, _, _ in settings} == table.keys()
    for key, values, standard in settings:
        row, text = table[key.upper().replace(".", "_")], good(mpklink("run", "--help"))
        assert f"--{key.replace('.', '-')}" in text
        for value in values.split("|") if "|" in values else []:
            assert f"`{value}`" in row, (key, value, row)
        if standard not in ("none", "0"):
            assert standard in row, (key, standard, row)


# ---- manual pages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([TOOL, "man", "--directory", directory], check=True, timeout=60)
    return sorted(directory.glob("man?/*"))


def test_pages_are_there(mpklink, pages):
    names = {page.name for page in pages}
    assert {"mpklink.1", "mpklink-run.1", "mpklink-env.1", "mpklink-rules.1", "mpklink.toml.5", "libmpklink.7", "mpklink-reasons.7"} <= names
    listed = good(mpklink("man", "--list")).split()
    assert {re.sub(r"\((\d)\)", r".\1", name) for name in listed} == names
    run = next(page for page in pages if page.name == "mpklink-run.1").read_text()
    assert good(mpklink("man", "run")) == run == json.loads(good(mpklink("man", "mpklink-run", "--json")))["roff"]
    for key, _, _ in settings_of_the_source():
        assert "\\-\\-" + key.replace(".", "\\-") + "\\fR" in run, key
    reasons = next(page for page in pages if page.name == "mpklink-reasons.7").read_text()
    assert all(slug.replace("-", "\\-") in reasons for slug, _, _ in reasons_of_the_source())


@pytest.mark.parametrize("checker", [["man", "--warnings", "-E", "UTF-8", "-l"], ["mandoc", "-Tlint", "-W", "warning"]], ids=["man", "mandoc"])
def test_pages_are_clean(pages, checker):
    if not shutil.which(checker[0]):
        pytest.skip(f"{checker[0]} is not installed")
    for page in pages:
        env = {**os.environ, "MANROFFSEQ": "", "MANWIDTH": "100", "LC_ALL": "C.UTF-8"}
        result = subprocess.run([*checker, page], capture_output=True, text=True, timeout=60, env=env)
        assert result.returncode == 0 and result.stderr == "", (page.name, result.stderr[-2000:])
        assert "mandoc" not in checker or result.stdout == "", (page.name, result.stdout)
        assert "mandoc" in checker or "NAME" in result.stdout or "NAME" in result.stdout.upper()


def test_directory_that_cannot_be_written(mpklink):
    refused(mpklink("man", "--directory", "/proc/mpklink"), 3, "/proc/mpklink")


# ---- completions ---------------------------------------------------------------------------------------------------------

COMPLETED = [
    ("mpklink ru", {"run", "rules"}), ("mpklink rules ", {"check", "print", "test"}), ("mpklink run --gu", {"--guard"}),
    ("mpklink run --guard p", {"pkey"}), ("mpklink completion ", {"bash", "zsh", "fish"}), ("mpklink env --format s", {"sh", "systemd"}),
    ("mpklink run --log error --guard o", {"off"}), ("mpklink reasons peer-a", {"peer-absent"}), ("mpklink rules test --con", {"--connect", "--config"}),
]  # fmt: skip
HARNESS = {
    "bash": r"""source {script}; words=({line}); [[ '{line}' == *' ' ]] && words+=('')
        COMP_WORDS=("${{words[@]}}"); COMP_CWORD=$((${{#words[@]}} - 1)); _mpklink; printf '%s\n' "${{COMPREPLY[@]}}" """,
    "fish": r"""source {script}; complete -C '{line}' | string split -f1 \t""",
}


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize("line,wanted", COMPLETED)
def test_completion(mpklink, tmp_path, shell, line, wanted):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "completion"
    script.write_text(good(mpklink("completion", shell)))
    result = subprocess.run([shell, "-c", HARNESS[shell].format(script=script, line=line)], capture_output=True, text=True, timeout=60,
                            env={**clean_env(tmp_path), "PATH": f"{TOOL.parent}:{os.environ['PATH']}"})  # fmt: skip
    assert result.stderr == "", result
    assert wanted == {word for word in result.stdout.split() if word}, result


@pytest.mark.parametrize("line,wanted", COMPLETED)
def test_completion_zsh(mpklink, tmp_path, line, wanted):
    """In a terminal of its own, as people use it: zsh has no way to ask."""
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    (tmp_path / "_mpklink").write_text(good(mpklink("completion", "zsh")))
    (tmp_path / ".zshrc").write_text(
        f"PS1='READY> '; fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -d {tmp_path}/dump\n"
        "zstyle ':completion:*' list-prompt ''; zstyle ':completion:*' verbose no; LISTMAX=1000; bindkey '^I' list-choices; unsetopt zle_bracketed_paste\n")  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-i"], {**clean_env(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"})
    try:
        seen = read_until(terminal, lambda text: "READY> " in text)
        os.write(terminal, line.encode() + b"\t")
        seen = read_until(terminal, lambda text: all(re.search(rf"(^|\s){re.escape(w)}(\s|$)", text.replace(line.strip(), "", 1)) for w in wanted))
        assert "not found" not in seen and "parse error" not in seen
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal, condition, timeout_s=30):
    """What a terminal shows until it is what it should be."""
    import select

    text, deadline = "", time.monotonic() + timeout_s
    while not condition(text):
        left = deadline - time.monotonic()
        assert left > 0, f"the terminal showed {text!r}"
        if select.select([terminal], [], [], left)[0]:
            text += os.read(terminal, 65536).decode(errors="replace")
    return text


# ---- bench ---------------------------------------------------------------------------------------------------------------


def test_bench_becomes_the_suite(mpklink):
    if (BUILD / ".." / "scripts" / "bench.sh").resolve() != REPO / "scripts" / "bench.sh":
        pytest.skip("the build directory is not in the source tree")
    assert "nginx" in good(mpklink("bench", "--list"))


def test_bench_that_is_not_there(tmp_path):
    copy = tmp_path / "bin" / "mpklink"
    copy.parent.mkdir()
    shutil.copy(TOOL, copy)
    result = subprocess.run([copy, "bench"], capture_output=True, text=True, timeout=60)
    refused(result, 3, "scripts/bench.sh", "is not there")


# ---- run --report --------------------------------------------------------------------------------------------------------


def both_ends(mpklink, *options, **kwargs):
    return mpklink("run", "--report", *options, "--", PROGRAM, "both", "--connections=4", "--rounds=300", **kwargs)


def test_report(mpklink):
    result = both_ends(mpklink)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "EXIT-SUCCESS", result
    assert re.search(r"^mpklink: 1 process \(echo_threads\), guard \w+", result.stderr), result.stderr
    assert re.search(r"^  upgraded  [1-8] streams?; [\d.]+ [KM]iB through the ring, ", result.stderr, re.M), result.stderr


def test_report_says_why_not(mpklink):
    result = both_ends(mpklink, "--rules", "ignore")
    remedy = dict((slug, remedy) for slug, _, remedy in reasons_of_the_source())["rule"]
    assert "upgraded  0 streams; 0 bytes through the ring" in result.stderr and "8 rule: " in result.stderr and remedy in result.stderr, result.stderr


def test_report_json_and_own_stats(mpklink, tmp_path):
    stats = tmp_path / "s.json"
    stats.write_text('{"pid":1,"upgraded":1000}\n')
    result = both_ends(mpklink, "--json", "--stats", stats)
    document = json.loads(result.stderr)
    assert document["processes"] == 1 and 1 <= document["upgraded"] <= 8 and document["ring_bytes"] > 10000 and isinstance(document["plain"], dict)
    assert len(stats.read_text().splitlines()) == 2


def test_report_leaves_no_file(mpklink, tmp_path):
    both_ends(mpklink, env={"TMPDIR": str(tmp_path)})
    assert not list(tmp_path.glob("mpklink-*"))


@pytest.mark.parametrize("script,code", [("exit 7", 7), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9), ("exit 0", 0)])
def test_report_keeps_the_exit_code(mpklink, script, code):
    assert mpklink("run", "--report", "--", "bash", "-c", script).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT])
def test_report_forwards_signals(tmp_path, number):
    """Sent to mpklink, it reaches the program, once; the program's answer is mpklink's."""
    script = f"trap 'echo got; exit 5' {int(number)}; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen([TOOL, "run", "--report", "--", "bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=clean_env(tmp_path, MPKLINK_LIBRARY=SO), start_new_session=True)  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
        assert (out, process.returncode) == ("got\n", 5)
    finally:
        process.kill()


def test_report_leaves_the_childs_signals_as_they_were(mpklink):
    fields = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    direct = good(mpklink("run", "--", "sh", "-c", fields))
    assert mpklink("run", "--report", "--", "sh", "-c", fields).stdout == direct


def test_report_of_a_program_that_cannot_be_executed(mpklink):
    refused(mpklink("run", "--report", "--", "/no/such/program"), 127)
