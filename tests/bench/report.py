# SPDX-License-Identifier: MIT
"""The results as one JSON document and as Markdown tables."""

import json

import verdicts
import wording
from suites import COMPARISONS
from summary import compare
from wording import NOTHING, latency_of, modes_of, rate_of, table

SCHEMA = 1


def make_report(records, environment, options, complete):
    """Of summarized records."""
    return {
        "schema": SCHEMA,
        "complete": complete,
        "options": options,
        "environment": environment,
        "cells": records,
        "comparisons": [found for comparison in COMPARISONS if (found := compare(comparison, records))],
        "losing": [found for record in records for found in verdicts.losing_of(record)],
        "problems": [found for record in records for found in verdicts.problems_of(record)],
        "notes": [found for record in records for found in verdicts.notes_of(record)],
    }


def write_json(report, path):
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def write_markdown(report, path, plots):
    lines = ["# Benchmarks of libmpklink", "", *about(report["environment"], report["options"], report["complete"])]
    for suite in dict.fromkeys(record["suite"] for record in report["cells"]):
        records = [record for record in report["cells"] if record["suite"] == suite]
        lines += ["", f"## {suite}", "", *suite_tables(suite, records), *comparisons(report, suite)]
        lines += [f"\n![{plot.stem}]({plot.name})" for plot in plots if plot.stem == suite or plot.stem.startswith(f"{suite}-")]
    lines += ["", *endings(report)]
    path.write_text("\n".join(lines) + "\n")


# ---- the head -------------------------------------------------------------------------------------


def about(environment, options, complete):
    machine, run, versions = environment["machine"], environment["run"], environment["versions"]
    programs = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("mpklink", "commit", "dirty"))
    dirty = " with changes" if versions["dirty"] else ""
    yield f"libmpklink {versions['mpklink']}, commit {versions['commit'][:12]}{dirty}; guards in force: {options['guards'] or 'none'}."
    virtual = " (virtual)" if machine["hypervisor"] else ""
    yield f"Machine: {machine['cpu']}{virtual}, {machine['usable_cpus']} usable CPUs, Linux {machine['kernel']},"
    yield f"protection keys: {'yes' if machine['protection_keys'] else 'no'}, TCP congestion control: {machine['tcp_congestion_control']}."
    yield f"During the run ({run['seconds']:.0f} s, from {run['started']}): steal {run['steal_percent']} %, load {run['load_before'][0]} before,"
    yield f"{run['load_after'][0]} after. Programs: {programs}."
    yield f"Each figure is the median of {options['rounds']} rounds of {options['seconds']} s; all modes of a cell take turns within a round."
    yield "A ratio is the median of a mode to the median of TCP (lowest–highest of the rounds), more than 1 being better than TCP."
    if machine["hypervisor"]:
        yield "A virtual machine makes TCP's wake-ups dear: ratios are smaller on bare metal."
    if environment["settings"]:
        yield "Settings of the preloaded ends: " + " ".join(f"{k}={v}" for k, v in sorted(environment["settings"].items())) + "."
    if not complete:
        yield "**The run was interrupted: cells are missing, or have fewer rounds.**"


# ---- a suite --------------------------------------------------------------------------------------


def suite_tables(suite, records):
    if suite == "idle":
        return idle_table(records)
    lines = []
    units = dict.fromkeys(record["unit"] for record in records)
    by_unit = {unit: [record for record in records if record["unit"] == unit] for unit in units}
    for unit in units:
        lines += [*rate_table(by_unit[unit], unit), ""]
    if any(record["modes"].get("tcp", {}).get("latency_us") for record in records):
        lines += [*latency_table(records), ""]
    for unit in units if suite != "fixed-rate" else ():  # there the client spins until a message is due
        lines += [*cpu_table(by_unit[unit], unit), ""]
    return lines + library_table(records)


def short(record):
    return record["name"].partition("/")[2]


def rate_table(records, unit):
    names = modes_of(records)
    preloaded = [name for name in names if name not in ("tcp", "unix")]
    head = [wording.unit(unit), *names, *(f"{name} to tcp" for name in preloaded)]
    rows = []
    for record in records:
        ratios = [wording.ratio_with_rounds(record["ratios"].get(name)) for name in preloaded]
        rows.append([short(record), *(rate_of(record, name) for name in names), *ratios])
    return table(head, rows)


def latency_table(records):
    names = [name for name in modes_of(records) if name in ("tcp", "unix", "mpklink")]
    percentiles = [p for p in ("p50", "p99", "p999", "max") if any(latency_of(r, "tcp", p) != NOTHING for r in records)]
    head = ["latency", *(f"{percentile} {name}" for percentile in percentiles for name in names)]
    rows = [[short(record), *(latency_of(record, name, p) for p in percentiles for name in names)] for record in records]
    return table(head, rows)


def cpu_table(records, unit):
    key, text = ("cpu_s_per_gb", "GB") if unit == "bytes/s" else ("cpu_s_per_100k", "100,000 operations")
    names = modes_of(records)
    rows = [
        [short(record), *(wording.number(record["modes"].get(name, {}).get("costs", {}).get(key)) for name in names)] for record in records
    ]
    return table([f"CPU seconds per {text}, both ends", *names], rows)


def library_table(records):
    head = [
        "per operation, both ends", "switches, tcp", "switches, mpklink", "bells", "sleeps", "gates", "streams upgraded (client/server)",
        "bytes over the ring",
    ]  # fmt: skip
    return table(head, [[short(record), *library_row(record)] for record in records])


def library_row(record):
    tcp, mpklink = (record["modes"].get(name, {}) for name in ("tcp", "mpklink"))
    library = mpklink.get("library", {})
    per_operation = library.get("per_operation", {})
    switches = [wording.number(entry.get("costs", {}).get("switches_per_operation")) for entry in (tcp, mpklink)]
    counts = [wording.number(per_operation.get(key)) for key in ("bells", "sleeps", "gates")]
    return [*switches, *counts, wording.upgraded(mpklink), wording.percent(library.get("ring_share"))]


def idle_table(records):
    """Of the details of each run: what one more connection costs both processes together."""
    head = [
        "one idle connection, both ends", "mode", "PSS KiB", "of it shared", "page tables KiB", "Shmem of the system KiB", "descriptors", "upgraded",
    ]  # fmt: skip
    rows = []
    for record in records:
        for name, entry in record["modes"].items():
            details = [run["details"] for run in entry["runs"]]
            if details:
                rows.append([short(record), name, *idle_cells(details), wording.upgraded(entry)])
    return table(head, rows)


def idle_cells(details):
    def middle(key):
        values = sorted(one[key] for one in details)
        return values[len(values) // 2]

    kib = [f"{middle(key) / 1024:.1f}" for key in ("pss", "pss_shmem", "page_tables", "system_shmem")]
    return [*kib, f"{middle('descriptors'):.2f}"]


def comparisons(report, suite):
    found = [one for one in report["comparisons"] if one["suite"] == suite]
    return ["", *(f"- {one['text']}: {wording.ratio_with_rounds(one)}" for one in found)] if found else []


# ---- the end --------------------------------------------------------------------------------------


def endings(report):
    return [
        "## Losing cells",
        "",
        *listed([losing_line(one) for one in report["losing"]], f"None: every ratio is at least {verdicts.LOSING_BELOW}."),
        "",
        "## Problems",
        "",
        *listed([problem_line(one) for one in report["problems"]], "None."),
        *(["", "## Notes", "", *listed(report["notes"], "")] if report["notes"] else []),
    ]


def listed(lines, when_empty):
    return [f"- {line}" for line in lines] or [when_empty]


def losing_line(one):
    cpu = f", CPU time per operation {one['cpu_to_tcp']:.2f} of TCP's" if one["cpu_to_tcp"] else ""
    always = ", in every round" if one["highest"] < verdicts.LOSING_BELOW else ""
    return f"{one['cell']} [{one['mode']}]: {wording.ratio_with_rounds(one)}{always}{cpu}"


def problem_line(one):
    return f"{one['cell']} [{', '.join(one['modes'])}]: {one['text']}"
