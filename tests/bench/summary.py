# SPDX-License-Identifier: MIT
"""From the runs of a cell to its figures: medians, quartiles, ratios, costs per operation. Pure: records in, records out."""

import statistics

from cells import MEDIAN_LATENCY, NO_RATIO, RATE
from measure import ring_share
from modes import CLIENT, SERVER

PER_OPERATION = ("bells", "sleeps", "gates")


def spread(values):
    """Median and quartiles."""
    values = sorted(values)
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0]}
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "q1": q1, "q3": q3}


def summarize(record):
    for entry in record["modes"].values():
        if entry["runs"]:
            summarize_mode(entry)
    record["ratios"] = {name: ratio for name in record["modes"] if name != "tcp" and (ratio := ratio_to_tcp(record, name))}


def summarize_mode(entry):
    runs = entry["runs"]
    entry["rate"] = spread([run["rate"] for run in runs])
    entry["latency_us"] = {
        name: statistics.median(run["latency_us"][name] for run in runs)
        for name in runs[0]["latency_us"]
        if all(name in run["latency_us"] for run in runs)
    }
    entry["errors"] = sum(run["errors"] for run in runs)
    entry["costs"] = costs(entry)
    entry["library"] = library_figures(entry)


def costs(entry):
    """Of both ends together."""
    runs = entry["runs"]
    cpu_s = sum(sum(run["cpu_s"].values()) for run in runs)
    switches = sum(run["client_switches"] for run in runs) + entry.get("server_switches", 0)
    operations = sum_or_none(run["operations"] for run in runs)
    size = sum_or_none(run["bytes"] for run in runs)
    return {
        "cpu_s_per_100k": cpu_s / operations * 1e5 if operations else None,
        "switches_per_operation": switches / operations if operations else None,
        "cpu_s_per_gb": cpu_s / size * 1e9 if size else None,
    }


def sum_or_none(values):
    values = list(values)
    return None if None in values else sum(values)


def library_figures(entry):
    """What the statistics of both ends say: of the client, unless both are added."""
    ends = entry.get("statistics") or {}
    client, server = ends.get(CLIENT), ends.get(SERVER)
    figures = {
        "upgraded": {side: end["upgraded"] for side, end in ends.items() if end},
        "ring_share": ring_share(client or server) if client or server else None,
        "guards": sorted({guard for end in ends.values() if end for guard in end["guards"]}),
    }
    operations = sum_or_none(run["operations"] for run in entry["runs"])
    if operations and client and server:
        operations += entry.get("operations_outside_rounds", 0)
        figures["per_operation"] = {key: (client[key] + server[key]) / operations for key in PER_OPERATION}
    return figures


# ---- ratios ---------------------------------------------------------------------------------------


def figure_of(run, ratio_of):
    """More is better."""
    if ratio_of == RATE:
        return run["rate"]
    return 1 / run["latency_us"][MEDIAN_LATENCY] if run["latency_us"].get(MEDIAN_LATENCY) else None


def ratio(runs, base_runs, ratio_of):
    """Of the medians, and round by round; None where there is nothing to divide."""
    if ratio_of == NO_RATIO or not runs or not base_runs:
        return None
    figures = {run["round"]: figure_of(run, ratio_of) for run in runs}
    bases = {run["round"]: figure_of(run, ratio_of) for run in base_runs}
    if not all(figures.values()) or not all(bases.values()):
        return None
    per_round = [figures[number] / bases[number] for number in figures if number in bases]
    medians = statistics.median(figures.values()) / statistics.median(bases.values())
    return {"of_medians": medians, "per_round": per_round, "lowest": min(per_round), "highest": max(per_round)} if per_round else None


def ratio_to_tcp(record, name):
    modes = record["modes"]
    if "tcp" not in modes or "failed" in modes["tcp"] or "failed" in modes[name]:
        return None
    return ratio(modes[name]["runs"], modes["tcp"]["runs"], record["ratio_of"])


def compare(comparison, records):
    """A Comparison's ratio; None when one of its cells was not measured."""
    by_name = {record["name"]: record for record in records}
    runs = []
    for cell, mode in ((comparison.cell, comparison.mode), (comparison.base_cell, comparison.base_mode)):
        record = by_name.get(f"{comparison.suite}/{cell}", {"modes": {}})
        runs.append(record["modes"].get(mode, {}).get("runs"))
    found = ratio(*runs, comparison.of)
    return {"suite": comparison.suite, "text": comparison.text, **found} if found else None
