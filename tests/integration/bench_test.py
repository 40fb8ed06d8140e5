# SPDX-License-Identifier: MIT
"""scripts/bench.sh: its parsers, medians, ratios and verdicts, and one cell measured for real."""

import copy
import json
import re
import signal
import subprocess
import sys

import pytest

from harness import BUILD, PRELOAD_FIRST, REPO, descendants, eventually, is_zombie, read_text

sys.path.append(str(REPO / "tests" / "bench"))

import measure  # noqa: E402
import modes  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import suites  # noqa: E402
import summary  # noqa: E402
import verdicts  # noqa: E402
from cells import MEDIAN_LATENCY, NO_RATIO, RATE, Comparison  # noqa: E402
from estimate import estimate_s  # noqa: E402
from iperf import parse_iperf  # noqa: E402
from processes import BenchError  # noqa: E402
from redis_load import parse_redis  # noqa: E402
from traffic import parse_client  # noqa: E402
from web import parse_h2load, parse_wrk, percentiles  # noqa: E402

pytestmark = pytest.mark.no_ring

WRK = """\
Requests/sec:  24625.62
RESULT {"requests":27089,"duration_us":1100033,"bytes":4141875,"latency_us":{"p50":110,"p90":950,"p99":48760,"p999":60000,"max":61404},\
"errors":{"connect":0,"read":1,"write":0,"timeout":2,"status":0}}
"""
REDIS = """\
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"GET","14174.34","0.063","0.024","0.039","0.087","0.295","12.415"
"""
H2LOAD = "requests: 1982 total, 1982 started, 1982 done, 1980 succeeded, 2 failed, 0 errored, 0 timeout\n"
TRAFFIC = (
    '{"kind":"pingpong","operations":500,"seconds":0.5,"operations_per_second":1000.0,'
    '"latency_ns":{"p50":2500,"p90":3000,"p99":9000,"p999":10000,"max":11000},"errors":0}'
)
STATISTICS = {
    "upgraded": 1, "revoked": 0, "plain": {}, "ring_tx_bytes": 900, "ring_rx_bytes": 0, "tcp_tx_bytes": 100, "tcp_rx_bytes": 0, "bells": 10,
    "sleeps": 5, "spin_hits": 0, "gates": 200, "gate_found_open": 0, "guard": "pkey",
}  # fmt: skip
UNUSED = {**STATISTICS, "upgraded": 0, "ring_tx_bytes": 0, "plain": {"peer-absent": 1}, "guard": "unused"}


# ---- parsers -----------------------------------------------------------------------------------------------------------------


def test_wrk_is_read():
    result = parse_wrk(WRK)
    assert result.rate == pytest.approx(24625.6, abs=0.1)
    assert (result.operations, result.bytes, result.errors) == (27089, 4141875, 3)
    assert result.latency_us["p999"] == 60000


def test_redis_benchmark_is_read():
    result = parse_redis(REDIS, "get", 20000)
    assert (result.rate, result.operations) == (14174.34, 20000)
    assert result.latency_us == {"p50": 39, "p95": 87, "p99": 295, "max": 12415}


def test_h2load_is_read():
    log = "".join(f"1795672296262459\t200\t{us}\n" for us in (30, 10, 20))
    result = parse_h2load(H2LOAD, log, 0.5, 4000)
    assert (result.rate, result.errors, result.details["share_of_rate_kept"]) == (3960, 2, 0.99)
    assert result.latency_us["p50"] == 20 and result.latency_us["max"] == 30


def test_iperf_is_read():
    assert parse_iperf('{"end": {"sum_received": {"bits_per_second": 8e9, "bytes": 5}}}').rate == 1e9


def test_traffic_is_read():
    found = parse_client(TRAFFIC)
    assert found["operations_per_second"] == 1000 and found["latency_us"]["p50"] == 2.5


@pytest.mark.parametrize("parse", [
    parse_wrk, parse_iperf, parse_client, lambda text: parse_redis(text, "set", 1), lambda text: parse_h2load(text, "", 1, 1),
])  # fmt: skip
@pytest.mark.parametrize("text", ["", "connection refused\n", "{}"])
def test_anything_else_is_no_result(parse, text):
    with pytest.raises(BenchError):
        parse(text)


def test_percentiles():
    assert percentiles(list(range(1000))) == {"p50": 500, "p90": 900, "p99": 990, "p999": 999, "max": 999}
    assert percentiles([7]) == {"p50": 7, "p90": 7, "p99": 7, "p999": 7, "max": 7}


def test_statistics_are_added():
    lines = [json.dumps(STATISTICS), json.dumps(UNUSED)]
    found = measure.add_statistics(lines)
    assert (found["upgraded"], found["processes"], found["plain"], found["guards"]) == (1, 2, {"peer-absent": 1}, ["pkey"])
    assert measure.merge_statistics([found, None, found])["bells"] == 40
    assert measure.add_statistics([]) is None and measure.merge_statistics([None]) is None
    assert measure.ring_share(measure.add_statistics([json.dumps(STATISTICS)])) == 0.9
    with pytest.raises(BenchError):
        measure.add_statistics(["{half a line"])


# ---- a recorded cell ---------------------------------------------------------------------------------------------------------


def statistics_of(mode, line):
    return {side: measure.add_statistics([json.dumps(line)] if modes.MODES[mode].preloads(side) else []) for side in modes.BOTH}


def recorded_mode(mode, rates, line):
    ends = statistics_of(mode, line)
    runs = [
        {
            "round": number, "rate": rate, "operations": 1000, "bytes": 64000, "latency_us": {"p50": 1e6 / rate, "p99": 2e6 / rate},
            "errors": 0, "details": {}, "cpu_s": {"client": 0.01, "server": 0.03}, "client_switches": 500, "statistics": ends["client"],
        }
        for number, rate in enumerate(rates, 1)
    ]  # fmt: skip
    return {"runs": runs, "statistics": ends, "server_switches": 1500, "operations_outside_rounds": 0}


def recorded(**rates):
    """A cell of the suite `pingpong` with these rates per mode, as it is before anything is computed."""
    lines = {"mpklink": STATISTICS, "guard-off": {**STATISTICS, "guard": "off"}}
    by_mode = {name.replace("_", "-"): values for name, values in rates.items()}
    return {
        "suite": "pingpong", "name": "pingpong/64 B", "unit": "operations/s", "ratio_of": RATE, "placement": "free", "upgrade_expected": True,
        "modes": {mode: recorded_mode(mode, values, lines.get(mode, UNUSED)) for mode, values in by_mode.items()},
    }  # fmt: skip


def summarized(record):
    summary.summarize(record)
    return record


def problems(record):
    return [f"{', '.join(one['modes'])}: {one['text']}" for one in verdicts.problems_of(summarized(record))]


def test_medians_quartiles_and_ratios():
    record = summarized(recorded(tcp=[100, 200, 90], mpklink=[300, 210, 180], off=[100, 200, 90]))
    assert record["modes"]["tcp"]["rate"] == {"median": 100, "q1": 95, "q3": 150}
    assert record["ratios"]["mpklink"]["of_medians"] == 2.1
    assert record["ratios"]["mpklink"]["per_round"] == [3, 1.05, 2]
    assert record["ratios"]["mpklink"]["lowest"] == 1.05 and record["ratios"]["off"]["of_medians"] == 1
    assert "tcp" not in record["ratios"]


def test_costs_are_of_both_ends():
    mode = summarized(recorded(tcp=[1], mpklink=[1, 1]))["modes"]["mpklink"]
    assert mode["costs"]["cpu_s_per_100k"] == pytest.approx(4)
    assert mode["costs"]["cpu_s_per_gb"] == pytest.approx(0.04 / 64000 * 1e9)
    assert mode["costs"]["switches_per_operation"] == (2 * 500 + 1500) / 2000
    assert mode["library"]["per_operation"] == {"bells": 0.01, "sleeps": 0.005, "gates": 0.2}
    assert mode["library"]["ring_share"] == 0.9


def test_the_ratio_of_latencies_is_the_other_way_round():
    record = recorded(tcp=[100], mpklink=[400])
    record["ratio_of"] = MEDIAN_LATENCY
    assert summarized(record)["ratios"]["mpklink"]["of_medians"] == pytest.approx(4)
    record["ratio_of"] = NO_RATIO
    assert summarized(record)["ratios"] == {}


def test_rounds_that_are_missing_do_not_count():
    record = recorded(tcp=[100, 100], mpklink=[200, 300, 400])
    assert summarized(record)["ratios"]["mpklink"]["per_round"] == [2, 3]
    assert summarized(recorded(tcp=[], mpklink=[1]))["ratios"] == {}


def test_a_cell_as_it_should_be_has_no_problems():
    assert problems(recorded(tcp=[1], unix=[1], mpklink=[1], guard_off=[1], off=[1], one_end=[1])) == []


def test_a_mode_that_cannot_be_is_no_problem():
    record = recorded(tcp=[1], mpklink=[1])
    record["modes"]["unix"] = {"runs": [], "not_applicable": "wrk speaks TCP only"}
    assert problems(record) == []


@pytest.mark.parametrize("mode", ["mpklink", "guard-off"])
def test_false_green_when_nothing_was_upgraded(mode):
    record = recorded(tcp=[1], **{mode.replace("-", "_"): [9]})
    record["modes"][mode] = recorded_mode(mode, [9], UNUSED)
    assert any(re.match(rf"{mode}: FALSE GREEN: the client upgraded no stream \(peer-absent: 1\)", text) for text in problems(record))
    record["upgrade_expected"] = False
    assert problems(record) == []


def test_false_green_in_one_of_the_rounds():
    record = recorded(tcp=[1, 1], mpklink=[9, 9])
    record["modes"]["mpklink"]["runs"][1]["statistics"] = measure.add_statistics([json.dumps(UNUSED)])
    assert problems(record) == ["mpklink: FALSE GREEN: no stream was upgraded in 1 of 2 runs"]


def test_false_green_when_a_side_left_no_statistics():
    record = recorded(tcp=[1], mpklink=[9])
    record["modes"]["mpklink"]["statistics"]["server"] = None
    assert problems(record) == ["mpklink: FALSE GREEN: the server wrote no statistics, so the library was not at work in it"]


def test_false_green_when_another_guard_was_in_force():
    record = recorded(tcp=[1], guard_off=[9])
    record["modes"]["guard-off"] = recorded_mode("guard-off", [9], STATISTICS)
    assert problems(record) == ["guard-off: FALSE GREEN: guard pkey was in force"]


def test_upgrades_where_none_may_be():
    record = recorded(tcp=[1], off=[9])
    record["modes"]["off"] = recorded_mode("off", [9], STATISTICS)
    assert problems(record) == ["off: FALSE RED: streams were upgraded, which must not be in this mode"]


def test_what_was_not_measured_and_what_failed():
    record = recorded(tcp=[1], mpklink=[])
    record["modes"]["tcp"]["runs"][0]["errors"] = 3
    record["modes"]["off"] = {"runs": [], "failed": "nginx does not start"}
    assert problems(record) == [
        "tcp: 3 errors", "mpklink: not measured: there was no run", "off: not measured: nginx does not start"
    ]  # fmt: skip


def test_a_problem_of_several_modes_is_said_once():
    record = recorded(tcp=[1])
    record["modes"] = {mode: {"runs": [], "failed": "nginx is not installed"} for mode in ("tcp", "mpklink")}
    assert problems(record) == ["tcp, mpklink: not measured: nginx is not installed"]


def test_losing_cells_are_named():
    record = summarized(recorded(tcp=[100, 100], unix=[10, 10], mpklink=[96, 97], guard_off=[97, 97], one_end=[50, 150], off=[40, 60]))
    losing = verdicts.losing_of(record)
    assert [(one["mode"], one["of_medians"]) for one in losing] == [("mpklink", 0.965), ("off", 0.5)]
    assert report.losing_line(losing[1]) == "pingpong/64 B [off]: 0.50 (0.40–0.60), in every round, CPU time per operation 1.00 of TCP's"


def test_comparisons_between_cells():
    one, two = recorded(tcp=[100], mpklink=[300]), recorded(tcp=[10])
    two["name"] = "pingpong/other"
    comparison = Comparison("pingpong", "text", "64 B", "mpklink", "other", "tcp")
    assert summary.compare(comparison, [one, two])["of_medians"] == 30
    assert summary.compare(comparison, [one]) is None


# ---- reports -----------------------------------------------------------------------------------------------------------------

ENVIRONMENT = {
    "machine": {"cpu": "a CPU", "hypervisor": True, "usable_cpus": 2, "kernel": "6.1", "protection_keys": True, "tcp_congestion_control": "cubic"},
    "versions": {"mpklink": "0.1.0", "commit": "0123456789abcdef", "dirty": True, "nginx": "1.22"},
    "run": {"started": "now", "seconds": 9, "steal_percent": 0.1, "idle_percent": 50, "load_before": [1, 1, 1], "load_after": [2, 2, 2]},
    "settings": {"MPKLINK_SPIN_US": "0"},
}  # fmt: skip
OPTIONS = {"rounds": 2, "seconds": 0.5, "guards": "pkey"}


def make_report(complete=True):
    record = recorded(tcp=[100, 100], mpklink=[200, 250], off=[90, 90])
    record["modes"]["unix"] = {"runs": [], "not_applicable": "no Unix sockets"}
    record["modes"]["one-end"] = {"runs": [], "failed": "the server ended"}
    return report.make_report([summarized(record)], copy.deepcopy(ENVIRONMENT), OPTIONS, complete)


def test_json_report(tmp_path):
    report.write_json(make_report(), tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["cells"][0]["ratios"]["mpklink"]["of_medians"] == 2.25
    assert [one["mode"] for one in found["losing"]] == ["off"]
    assert [one["text"] for one in found["problems"]] == ["not measured: the server ended"]


def test_markdown_report(tmp_path):
    report.write_markdown(make_report(complete=False), tmp_path / "results.md", [tmp_path / "pingpong.svg"])
    text = (tmp_path / "results.md").read_text()
    assert "commit 0123456789ab with changes; guards in force: pkey." in text
    assert "MPKLINK_SPIN_US=0" in text and "interrupted" in text
    assert "| 64 B | 100 | n/a | 225 | 90 | FAILED | 2.25 (2.00–2.50) | 0.90 (0.90–0.90) | – |" in text
    assert "- pingpong/64 B [off]: 0.90 (0.90–0.90)" in text
    assert "- pingpong/64 B [one-end]: not measured: the server ended" in text
    assert "![pingpong](pingpong.svg)" in text


def test_plots_have_the_figures():
    record = make_report()["cells"][0]
    script = "\n".join(plots.ratio_script("pingpong", [record]).lines)
    assert '"64 B" 2.2500 0.9000' in script and 'title "mpklink"' in script and 'title "unix"' not in script
    lines = plots.latency_script([record]).lines
    assert not any("$p0_tcp" in line for line in lines)  # it has no p999: no line, and no gap drawn as zero


# ---- the suites --------------------------------------------------------------------------------------------------------------


def test_every_cell_has_a_name_of_its_own():
    names = [cell.full_name for cell in suites.cells_of(suites.SUITES, False, None)]
    assert len(names) == len(set(names)) and {name.partition("/")[0] for name in names} == set(suites.SUITES)


def test_comparisons_name_cells_that_are_there():
    names = {cell.full_name for cell in suites.cells_of([], False, None)}
    for one in suites.COMPARISONS:
        assert {f"{one.suite}/{one.cell}", f"{one.suite}/{one.base_cell}"} <= names


def test_the_quick_run_has_cells_of_all_suites_and_is_short():
    quick = suites.cells_of([], True, None)
    assert {cell.suite for cell in quick} == set(suites.SUITES) - set(suites.NAMED_ONLY)
    assert {cell.suite for cell in suites.cells_of(suites.SUITES, True, None)} == set(suites.SUITES)
    assert estimate_s(quick, 3, 0.5) < 8 * 60
    assert estimate_s(suites.cells_of([], False, None), 5, 2) < 100 * 60


def test_environments_of_the_modes(monkeypatch):
    for name, value in {"LD_PRELOAD": "other.so", "MPKLINK_SPIN_US": "7", "MPKLINK_DISABLE": "1", "MPKLINK_BUILD": "elsewhere"}.items():
        monkeypatch.setenv(name, value)

    def seen(mode, side):
        env = modes.environment(modes.MODES[mode], side, "our.so", "stats")
        return {k: v for k, v in env.items() if k == "LD_PRELOAD" or k.startswith("MPKLINK_")}

    ours = {"LD_PRELOAD": "our.so", "MPKLINK_STATS": "stats", "MPKLINK_SPIN_US": "7"}
    assert seen("tcp", modes.CLIENT) == seen("unix", modes.SERVER) == seen("one-end", modes.CLIENT) == {}
    assert seen("mpklink", modes.CLIENT) == seen("one-end", modes.SERVER) == ours
    assert seen("guard-off", modes.SERVER) == {**ours, "MPKLINK_GUARD": "off"}
    assert seen("off", modes.CLIENT) == {**ours, "MPKLINK_DISABLE": "1"}


# ---- for real ----------------------------------------------------------------------------------------------------------------

not_sanitized = pytest.mark.skipif(bool(PRELOAD_FIRST), reason="bench.sh preloads our library only, and measures no sanitizers")


def bench_command(*options):
    return ["scripts/bench.sh", "--no-install", *map(str, options)]


def environment():
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "MPKLINK_BUILD": str(BUILD)}


@not_sanitized
@pytest.mark.limit(120)
def test_one_cell_for_real(tmp_path):
    options = ("--rounds", 1, "--seconds", 0.2, "--out", tmp_path, "--cell", "64 B, epoll", "pingpong")
    result = subprocess.run(bench_command(*options), cwd=REPO, env=environment(), capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "ratio to tcp" in result.stdout and "problems: none" in result.stdout
    found = json.loads((tmp_path / "results.json").read_text())
    (cell,) = found["cells"]
    assert cell["name"] == "pingpong/64 B, epoll" and found["complete"]
    for mode in modes.ALL:
        assert cell["modes"][mode]["rate"]["median"] > 0
    assert cell["modes"]["mpklink"]["library"]["upgraded"] == {"client": 1, "server": 1}
    assert cell["modes"]["mpklink"]["library"]["ring_share"] > 0.9
    assert found["environment"]["machine"]["usable_cpus"] >= 1
    assert "| 64 B, epoll |" in (tmp_path / "results.md").read_text()


def cmdlines_below(pid):
    return " ".join(read_text(f"/proc/{below}/cmdline") for below in descendants(pid)).replace("\0", " ").split()


GOOD_SERVER = [sys.executable, "-c", "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"]


def together(*commands):
    words = [word for command in commands for word in ("--", *command)][1:]
    return subprocess.Popen([sys.executable, REPO / "tests" / "bench" / "together.py", *words], stdout=subprocess.PIPE, text=True)


def test_servers_that_are_started_together_end_together():
    process = together(GOOD_SERVER, GOOD_SERVER)
    assert process.stdout.readline() == process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0 and not descendants(process.pid)


@pytest.mark.parametrize("command", [["true"], ["false"]])
def test_a_server_that_ends_by_itself_ends_the_others(command):
    process = together(GOOD_SERVER, command)
    assert process.wait(20) == 1 and not descendants(process.pid)


@not_sanitized
@pytest.mark.limit(120)
def test_an_interruption_leaves_results_and_no_processes(tmp_path):
    options = ("--rounds", 1, "--seconds", 60, "--out", tmp_path, "--cell", "64 B, epoll", "pingpong")
    process = subprocess.Popen(bench_command(*options), cwd=REPO, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    line = process.stdout.readline()
    while line and not line.startswith("pingpong"):
        line = process.stdout.readline()
    eventually(lambda: "--warmup-ms" in cmdlines_below(process.pid), what="the first client")
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGINT, rest
    assert not [pid for pid in below if read_text(f"/proc/{pid}/stat") != "-" and not is_zombie(pid)]
    found = json.loads((tmp_path / "results.json").read_text())
    assert not found["complete"] and len(found["cells"]) == 1


@pytest.mark.parametrize("options", [["no-such-suite"], ["--rounds", "0"], ["--cell", "("], ["--one-core", "--free"], ["--nonsense"]])
def test_usage_errors_end_with_2(options):
    result = subprocess.run(bench_command(*options), cwd=REPO, env=environment(), capture_output=True, text=True, timeout=30)
    assert result.returncode == 2, result.stderr
