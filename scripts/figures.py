#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes results into the pages that show them, each between a pair of markers, so that no figure there is typed by hand.

figures.py show RESULTS.xml            prints the table of compatibility of a run of scripts/services.sh
figures.py compatibility RESULTS.xml   keeps it in deploy/services.json, and writes the table into README.md
figures.py services RESULTS.json       what services gain (scripts/services.sh --measure): into deploy/SERVICES.md
figures.py paper RESULTS.json          REST, gRPC and libmpklink (scripts/bench.sh paper): into README.md, with its plot in deploy/paper.svg
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORD = ROOT / "deploy" / "services.json"
# Package → what the table calls it
VERSIONS = {
    "nginx": "nginx", "nginx-light": "nginx", "redis-server": "redis", "nodejs": "node", "gunicorn": "gunicorn", "uvicorn": "uvicorn",
    "python3-uvloop": "uvloop", "python3-requests": "requests", "python3-httpx": "httpx", "python3-aiohttp": "aiohttp",
    "python3-redis": "redis-py", "python3-grpcio": "grpcio", "libgrpc++-dev": "gRPC C++", "openjdk-17-jdk-headless": "OpenJDK",
    "golang-go": "Go", "openssl": "OpenSSL", "curl": "curl", "python3": "Python",
}  # fmt: skip
NOTHING = "–"


class Wrong(Exception):
    """A sentence for whoever called."""


def replace_between(text, name, body):
    """`text` with what is between the markers NAME replaced."""
    begin, end = f"<!-- {name}: made by scripts/figures.py -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise Wrong(f"the markers of {name} are not there once each")
    head, rest = text.split(begin)
    return f"{head}{begin}\n\n{body.strip()}\n\n{end}{rest.split(end)[1]}"


def write_between(path, name, body):
    path.write_text(replace_between(path.read_text(), name, body))


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- compatibility ---------------------------------------------------------------------------------------------------------------


def records_of(junit):
    """What passed says of itself: server, client, preloaded, verdict. In the same order whatever the order of the tests was."""
    found = []
    for case in ElementTree.parse(junit).iter("testcase"):
        if case.find("failure") is None and case.find("error") is None:
            found += [json.loads(p.get("value")) for p in case.iter("property") if p.get("name") == "service"]
    return sorted(found, key=lambda record: ("→" in record["server"], *(record[key].lower() for key in ("server", "client", "preloaded"))))


def failures_of(junit):
    return sum(1 for case in ElementTree.parse(junit).iter("testcase") if case.find("failure") is not None or case.find("error") is not None)


def versions():
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *VERSIONS], capture_output=True, text=True)
    found = dict(line.split(" ", 1) for line in listed.stdout.splitlines() if " " in line)
    plain = lambda version: re.sub(r"^\d+:|[-+~].*$", "", version)
    return {VERSIONS[package]: plain(version) for package, version in found.items() if version}


def compatibility_table(records):
    """A row per server: which clients' bytes went through rings, which stayed on TCP and why."""
    rows = []
    for server in dict.fromkeys(record["server"] for record in records):
        mine = [record for record in records if record["server"] == server]
        both = [record for record in mine if record["preloaded"] == "both"]
        ring = [record["client"] for record in both if record["verdict"] == "ring"]
        other = [f"{record['client']}: {record['verdict']}" for record in both if record["verdict"] != "ring"]
        one_end = sorted({record["verdict"] for record in mine if record["preloaded"] in ("client", "server")})
        behind = {record["behind"] for record in both if record.get("behind")} - {"ring"}
        other += [f"{server.split(' → ')[0]} to {server.split(' → ')[-1]}: {verdict}" for verdict in sorted(behind)]
        rows.append([server, ", ".join(ring) or NOTHING, "; ".join(other) or NOTHING, ", ".join(one_end) or NOTHING])
    return table(["server", "over rings, both ends preloaded", "on TCP all the same", "one end preloaded"], rows)


def compatibility_text(result):
    said = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{compatibility_table(result['records'])}\n\nTested: {said}."


def result_of(junit):
    records = records_of(junit)
    if not records:
        raise Wrong(f"{junit} has no verdicts in it: run scripts/services.sh")
    return {"versions": versions(), "records": records}


def dumped(result):
    """A line per record, so that a change shows as one."""
    line = lambda value: json.dumps(value, ensure_ascii=False)
    records = ",\n".join(line(record) for record in result["records"])
    return f'{{"versions": {line(result["versions"])},\n"records": [\n{records}\n]}}\n'


def write_compatibility(junit):
    if failures_of(junit):
        raise Wrong("a test failed: nothing is written")
    result = result_of(junit)
    RECORD.write_text(dumped(result))
    write_between(ROOT / "README.md", "compatibility", compatibility_text(result))


# ---- measurements ----------------------------------------------------------------------------------------------------------------


def measured(path, suite):
    """The suite's cells, and a sentence on how they were measured."""
    report = json.loads(pathlib.Path(path).read_text())
    cells = [cell for cell in report["cells"] if cell["suite"] == suite]
    if not cells:
        raise Wrong(f"{path} has no cells of the suite {suite}")
    if report["problems"] or not report["complete"]:
        raise Wrong(f"{path} is of a run that was interrupted or had problems: nothing is written")
    machine, options, run = (report["environment"]["machine"], report["options"], report["environment"]["run"])
    how = f"{machine['cpu']}, {machine['usable_cpus']} CPUs, Linux {machine['kernel']}, guard: {options['guards'] or 'none'}; "
    how += f"medians of {options['rounds']} rounds of {options['seconds']:g} s, all modes in turns; load {run['load_before'][0]} before."
    return cells, how


def count(value):
    return NOTHING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def microseconds(value):
    return NOTHING if value is None else f"{value / 1000:.3g} ms" if value >= 1000 else f"{value:.3g} µs"


def rate(cell, mode):
    return cell["modes"].get(mode, {}).get("rate", {}).get("median")


def p50(cell, mode):
    return cell["modes"].get(mode, {}).get("latency_us", {}).get("p50")


def times(cell, mode="mpklink"):
    found = cell["ratios"].get(mode)
    return f"{found['of_medians']:.2f} ({found['lowest']:.2f}–{found['highest']:.2f})" if found else NOTHING


def services_text(cells, how):
    rows = [
        [cell["name"].partition("/")[2], count(rate(cell, "tcp")), count(rate(cell, "mpklink")), times(cell), microseconds(p50(cell, "tcp")),
         microseconds(p50(cell, "mpklink"))]
        for cell in cells
    ]  # fmt: skip
    head = ["client → server", "requests/s, TCP", "libmpklink", "times TCP (lowest–highest round)", "p50, TCP", "libmpklink"]
    return f"{table(head, rows)}\n\n{how}"


def paper_text(cells, how):
    """A row per kind and size of call."""
    rows = []
    for cell in cells:
        name = cell["name"].partition("/")[2]
        each = [f"{count(rate(cell, mode))}, {microseconds(p50(cell, mode))}" if rate(cell, mode) else NOTHING for mode in ("tcp", "unix", "mpklink")]
        rows.append([name, *each, times(cell)])
    return table(["call", "TCP: calls/s, p50", "Unix socket", "libmpklink", "times TCP (lowest–highest round)"], rows) + f"\n\n{how}"


def write_services(path):
    write_between(ROOT / "deploy" / "SERVICES.md", "services", services_text(*measured(path, "services")))


def write_paper(path):
    cells, how = measured(path, "paper")
    plot = pathlib.Path(path).with_name("paper.svg")
    if not plot.is_file():
        raise Wrong(f"{plot} is missing: gnuplot draws it in scripts/bench.sh paper")
    shutil.copy(plot, ROOT / "deploy" / "paper.svg")
    plotted = "![Calls per second and median latency by the size of the message](deploy/paper.svg)"
    write_between(ROOT / "README.md", "paper", f"{paper_text(cells, how)}\n\n{plotted}")


ACTIONS = {
    "show": lambda path: print(compatibility_text(result_of(path))),
    "compatibility": write_compatibility,
    "services": write_services,
    "paper": write_paper,
}


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ACTIONS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        ACTIONS[sys.argv[1]](sys.argv[2])
    except (Wrong, OSError, ValueError, KeyError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
