# SPDX-License-Identifier: MIT
"""SVG plots by gnuplot: the ratios of each suite, latency percentiles at fixed rates, the paper's calls by the size of the message."""

import subprocess

from modes import MODES, plain_environment
from processes import BenchError
from programs import program

PERCENTILES = ("p50", "p90", "p99", "p999", "max")
COLOURS = {
    "tcp": "#555555", "unix": "#e69f00", "mpklink": "#0072b2", "guard-off": "#56b4e9", "off": "#999999", "one-end": "#cc79a7",
}  # fmt: skip


def quoted(text):
    return '"' + text.replace("\\", "/").replace('"', "'") + '"'


def gnuplot(script, path):
    head = [f"set terminal svg noenhanced size {script.width},{script.height} background rgb 'white'", f"set output {quoted(str(path))}"]
    result = subprocess.run(
        [program("gnuplot")], input="\n".join([*head, *script.lines]), capture_output=True, text=True, timeout=60, env=plain_environment()
    )
    if result.returncode != 0:
        raise BenchError(f"gnuplot: {result.stderr.strip()[-300:]}")


class Script:
    def __init__(self, width, height, lines):
        self.width, self.height, self.lines = width, height, lines


# ---- ratios ---------------------------------------------------------------------------------------


def ratio_script(suite, records):
    """A group of bars for each cell, one for each mode; the line at 1 is TCP."""
    names = [name for name in MODES if any(name in record["ratios"] for record in records)]
    labels = [record["name"].partition("/")[2] for record in records]
    longest = max(map(len, labels))
    lines = ["$data << EOD"]
    for label, record in zip(labels, records):
        values = [f"{record['ratios'][name]['of_medians']:.4f}" if name in record["ratios"] else "NaN" for name in names]
        lines.append(" ".join([quoted(label), *values]))
    lines += [
        "EOD",
        f"set title {quoted(f'{suite}: ratio to TCP (1), more is better')}",
        "set style data histograms",
        "set style histogram clustered gap 1",
        "set style fill solid noborder",
        "set xtics rotate by -35 scale 0",
        "set yrange [0:*]",
        "set grid ytics",
        "set key outside top center horizontal maxrows 1",
        f"set rmargin {4 + len(labels[-1]) * 0.7:.0f}",
        f"set bmargin {2 + longest * 0.3:.0f}",
        "plot "
        + ", ".join(
            f"$data using {column}:xtic(1) title {quoted(name)} linecolor rgb '{COLOURS[name]}'" for column, name in enumerate(names, 2)
        )
        + ", 1 notitle linecolor rgb 'black'",
    ]
    return Script(max(700, 200 + 7 * longest + 80 * len(records)), 400 + 6 * longest, lines) if names else None


# ---- latency at fixed rates -----------------------------------------------------------------------


def latency_script(records):
    """A panel for each load, a line for each mode."""
    lines = [f"set multiplot layout 1,{len(records)}", "set logscale y", "set grid", "set ylabel 'µs'", "set xrange [-0.3:4.3]"]
    lines.append("set xtics (" + ", ".join(f"{quoted(name)} {at}" for at, name in enumerate(PERCENTILES)) + ")")
    lines.append("set key bottom right")
    every = [us for record in records for entry in record["modes"].values() for us in entry.get("latency_us", {}).values() if us]
    if every:
        lines.append(f"set yrange [{min(every) / 3:.3g}:{max(every) * 1.5:.3g}]")
    for number, record in enumerate(records):
        plotted = []
        for name, entry in record["modes"].items():
            points = [(at, entry.get("latency_us", {}).get(p)) for at, p in enumerate(PERCENTILES)]
            if any(value is None for _, value in points):
                continue
            block = f"$p{number}_{name.replace('-', '_')}"
            lines += [f"{block} << EOD", *(f"{at} {value}" for at, value in points), "EOD"]
            plotted.append(f"{block} with linespoints title {quoted(name)} linewidth 2 linecolor rgb '{COLOURS[name]}'")
        lines.append(f"set title {quoted(record['name'].partition('/')[2])}")
        if plotted:
            lines.append("plot " + ", ".join(plotted))
    return Script(440 * len(records), 420, [*lines, "unset multiplot"])


# ---- the paper's comparison -----------------------------------------------------------------------

PAPER_LINES = {
    ("REST", "tcp"): "#555555", ("REST", "mpklink"): "#0072b2", ("gRPC", "tcp"): "#cc79a7", ("gRPC", "unix"): "#e69f00",
    ("gRPC", "mpklink"): "#009e73",
}  # fmt: skip
UNITS = {"B": 1, "KB": 1000, "MB": 1_000_000}


def call_of(record):
    """("REST", bytes) of the cell "paper/REST, 10 KB"."""
    kind, _, length = record["name"].partition("/")[2].partition(", ")
    number, unit = length.split()
    return kind, int(number) * UNITS[unit]


def paper_script(records):
    """Two panels by the size of the message: calls per second, and median latency."""
    panels = (
        ("calls per second", lambda entry: entry.get("rate", {}).get("median")),
        ("median latency, µs", lambda entry: entry.get("latency_us", {}).get("p50")),
    )
    lines = ["set multiplot layout 1,2", "set logscale xy", "set grid", "set xlabel 'bytes in a message'"]
    lines += ["set format x '%.0s%c'", "set key outside bottom center horizontal maxrows 3"]
    for number, (title, figure_of) in enumerate(panels):
        plotted = []
        for (kind, mode), colour in PAPER_LINES.items():
            cells = [(call_of(record)[1], figure_of(record["modes"].get(mode, {}))) for record in records if call_of(record)[0] == kind]
            points = sorted((length, value) for length, value in cells if value)
            if not points:
                continue
            block = f"$p{number}_{kind}_{mode}"
            lines += [f"{block} << EOD", *(f"{length} {value}" for length, value in points), "EOD"]
            plotted.append(f"{block} with linespoints title {quoted(f'{kind}, {mode}')} linewidth 2 linecolor rgb '{colour}'")
        lines.append(f"set title {quoted(title)}")
        if plotted:
            lines.append("plot " + ", ".join(plotted))
    return Script(1000, 460, [*lines, "unset multiplot"])


def write_plots(report, directory):
    """The files written."""
    written = []
    for suite in dict.fromkeys(record["suite"] for record in report["cells"]):
        records = [record for record in report["cells"] if record["suite"] == suite]
        scripts = {suite: paper_script(records) if suite == "paper" else ratio_script(suite, records)}
        if suite == "fixed-rate":
            scripts["fixed-rate-latency"] = latency_script(records)
        for name, script in scripts.items():
            if script is not None:
                gnuplot(script, directory / f"{name}.svg")
                written.append(directory / f"{name}.svg")
    return written
